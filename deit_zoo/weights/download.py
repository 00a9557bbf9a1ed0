"""A file at an address, through a `.part` that a later call continues from."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import requests
from huggingface_hub import constants

from deit_zoo.terminal import Bar
from deit_zoo.weights import web

ATTEMPTS, BACKOFF_SECONDS = 5, 1.0
CONNECT_ATTEMPTS = 2  # a refused connection or an unknown name seldom mends itself
LARGEST = 8 << 30  # bytes of a URL that states no size; CaiT-M48 has 1.4 GB
RETRIED = frozenset((429, 500, 502, 503, 504))


class UnavailableError(Exception):
    """A source has not got the file, and why; never leaves `weights` and `hub`."""


def download(url: str, file: Path) -> None:
    """Bring a URL to a file through a `.part` that a later call continues from.

    Raises UnavailableError with the last reason when the attempts are used up.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _continue(url, file)
        except _InterruptedError as error:
            if attempt >= error.attempts:
                raise UnavailableError(f"{error} ({attempt} attempts)") from error
            backoff = BACKOFF_SECONDS * 2 ** (attempt - 1)
            time.sleep(backoff if error.pause is None else error.pause)
        else:
            return


class _InterruptedError(Exception):
    """A download that another attempt may complete, after the pause that the server asks for."""

    def __init__(self, reason: str, *, pause: float | None = None, attempts: int = ATTEMPTS):
        super().__init__(reason)
        self.pause, self.attempts = pause, attempts


def _continue(url: str, file: Path) -> None:
    """One attempt, from where the last one ended if the server still has the same file."""
    part, etag = file.with_name(f"{file.name}.part"), file.with_name(f"{file.name}.etag")
    tag = etag.read_bytes() if part.exists() and etag.exists() else b""
    have = part.stat().st_size if re.fullmatch(rb"[!-~]+", tag) else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"}
    if have:
        headers["If-Range"] = tag.decode("ascii")
    try:
        with web.get(url, headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as (response, body):
            status = f"{response.status_code} {response.reason}"
            if response.status_code == 416 and have:
                if response.headers.get("Content-Range") != f"bytes */{have}":
                    part.unlink()  # longer than the file: begin again
                    raise _InterruptedError(status, pause=0.0)
            elif response.status_code in RETRIED:
                raise _InterruptedError(status, pause=web.asked_pause(response.headers))
            elif response.status_code >= 400:
                raise UnavailableError(status)
            else:
                _receive(response, body, part, etag, have)
    except requests.TooManyRedirects as error:
        raise UnavailableError("it redirects without end") from error
    except web.FINAL as error:
        raise UnavailableError(web.reason_of(error)) from error
    except requests.ConnectionError as error:
        raise _InterruptedError(web.reason_of(error), attempts=CONNECT_ATTEMPTS) from error
    except requests.RequestException as error:
        raise _InterruptedError(web.reason_of(error)) from error
    part.replace(file)
    etag.unlink(missing_ok=True)


def _receive(
    response: requests.Response, body: Iterator[bytes], part: Path, etag: Path, have: int
) -> None:
    if (packing := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise UnavailableError(f"it answers packed by {packing:.40}, which was not asked for")
    if response.status_code != 206 or not have:
        have = 0  # the server sends the whole file
        part.unlink(missing_ok=True)
        etag.unlink(missing_ok=True)
        if tag := response.headers.get("ETag"):
            etag.write_text(tag, encoding="utf-8")
    length = web.content_length(response)
    total = None if length is None else have + length
    with part.open("ab") as stream, Bar(part.stem, size=total, done=have, in_bytes=True) as bar:
        for piece in body:
            stream.write(piece)
            bar.advance(len(piece))
            if stream.tell() > LARGEST:
                raise UnavailableError(f"it is larger than {LARGEST >> 30} GiB")
    size = part.stat().st_size
    if total is not None and size != total:
        raise _InterruptedError(f"the body ended after {size} of {total} bytes")
