"""What a Hub answers, checked before huggingface_hub makes names of files and pauses of it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from huggingface_hub import get_session

from deit_zoo.weights.download import UnavailableError
from deit_zoo.weights.web import LONGEST_PAUSE, asked_pause, reason_of

# As huggingface_hub reads them.
_COMMIT, _ETAGS = "X-Repo-Commit", ("X-Linked-ETag", "ETag")
_RESET = re.compile(r"(?i)(\bt=)(\d+)")


def check_from_now_on() -> None:
    """Check all that huggingface_hub's client is answered, and those that it makes after this one.

    It makes one after an error, in a fork, or where somebody closes its session. What makes them is
    replaced in place: `set_client_factory` would end what other threads are fetching. A version
    that calls it otherwise has the client checked that it has now.
    Raises UnavailableError where it can make none of what the environment says.
    """
    own: Any = sys.modules[get_session.__module__]
    factory = getattr(own, "_GLOBAL_CLIENT_FACTORY", None)  # a private name
    if factory is not None and not isinstance(factory, _CheckedClients):
        own._GLOBAL_CLIENT_FACTORY = _CheckedClients(factory)
    try:
        client = get_session()
    except ImportError as error:
        raise UnavailableError(
            "a SOCKS proxy needs two more packages: pip install socksio pysocks"
        ) from error
    except OSError as error:
        file = os.environ.get("SSL_CERT_FILE", "")
        raise UnavailableError(f"no certificates in SSL_CERT_FILE={file!r} ({error})") from error
    except Exception as error:  # httpx's InvalidURL is no ValueError, and quotes of passwords
        reason = reason_of(error) if isinstance(error, ValueError) else type(error).__name__
        raise UnavailableError(
            f"{reason}: give a proxy as http://, https://, socks5:// or socks5h://, with %2F for a "
            "/ and %23 for a # in its password"
        ) from error
    _checked(client)


@dataclass(frozen=True, slots=True)
class _CheckedClients:
    factory: Callable[[], Any]

    def __call__(self) -> Any:
        return _checked(self.factory())


def _checked(client: Any) -> Any:
    hooks = client.event_hooks
    if _check not in hooks["response"]:
        client.event_hooks = {**hooks, "response": [*hooks["response"], _check]}
    return client


def _check(response: Any) -> None:
    """Shorten the pauses that are asked for. Raises ValueError for names that lead elsewhere.

    The cache names a file by its ETag, and a folder by the commit.
    """
    headers = response.headers
    if (pause := asked_pause(headers)) is not None:
        headers["Retry-After"] = f"{pause:.0f}"
    if limit := headers.get("RateLimit"):
        headers["RateLimit"] = _RESET.sub(_shortened, limit)
    if (commit := headers.get(_COMMIT)) is None:
        return
    etag = next((headers[name] for name in _ETAGS if headers.get(name)), None)
    names = [commit] if etag is None else [commit, etag.lstrip("W/").strip('"')]
    for name in names:
        if not re.fullmatch(r"\w[\w.+=-]{0,127}", name, re.ASCII):
            raise ValueError(f"it answers {name!r:.80}, which is no name: check HF_ENDPOINT")


def _shortened(reset: re.Match[str]) -> str:
    return f"{reset[1]}{min(float(reset[2]), LONGEST_PAUSE):.0f}"
