"""A GET of an address that others wrote. A redirect leads to no private network that the address
was not in, and what a server sends drop by drop comes to an end.
"""

from __future__ import annotations

import ipaddress
import math
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError, InvalidHeader
from urllib3.util import Retry

from deit_zoo.errors import redact
from deit_zoo.version import USER_AGENT

# A piece must come in each window: 4 kB/s.
WINDOW_SECONDS, PIECE = 60.0, 1 << 18
LONGEST_PAUSE = 300.0
READ_SIGNS = 300


class RefusedError(requests.RequestException):
    """An address that is not asked, however often it is tried."""


class SlowError(requests.Timeout):
    """A server that sends too little for too long."""


# What another attempt does not mend.
FINAL = (
    RefusedError,
    requests.TooManyRedirects,
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
)


@contextmanager
def get(
    url: str, headers: Mapping[str, str] | None = None, *, timeout: float, seconds: float = math.inf
) -> Iterator[tuple[requests.Response, Iterator[bytes]]]:
    """The answer of an address, and its body in pieces as they come.

    `timeout` is for each wait, `seconds` for all. Raises RequestException alone.
    """
    with _Watch(seconds) as watch, requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Adapter(watch))
        session.hooks["response"].append(lambda response, **_: _check_redirect(response, url))
        session.headers["User-Agent"] = USER_AGENT
        session.verify = os.environ.get("SSL_CERT_FILE") or True  # as huggingface_hub's client
        with watch.errors():
            response = session.get(url, headers=headers, stream=True, timeout=timeout)
        response.reason = shortened(response.reason or "")
        with response:
            yield response, _pieces(response, watch)


def shortened(text: str) -> str:
    """What a server says, no longer than a person reads, and masked: half a password is not."""
    masked = redact(text)
    return masked if len(masked) <= READ_SIGNS else f"{masked[:READ_SIGNS]}..."


def reason_of(error: BaseException) -> str:
    """The innermost reason of an error, on one line of bounded length."""
    inner: object = error
    while isinstance(inner, BaseException):
        error, inner = inner, getattr(inner, "reason", None) or (inner.args or (None,))[-1]
    text = (str(error) or type(error).__name__).splitlines()[0]
    if "CERTIFICATE_VERIFY_FAILED" in text:
        text += "; set SSL_CERT_FILE and REQUESTS_CA_BUNDLE to the certificates of your site"
    # Behind the connection, which an address names as well.
    return shortened(text.split(": ", 1)[-1] if text.startswith(("<", "Connection(")) else text)


def asked_pause(headers: Mapping[str, str]) -> float | None:
    """The pause in seconds that a server asks for, by a number or a date, within reason."""
    try:
        seconds = Retry().parse_retry_after(headers["Retry-After"])
    except (KeyError, InvalidHeader, ValueError, OverflowError):  # or a date beyond year 9999
        return None
    return min(seconds, LONGEST_PAUSE)


def is_private(host: str) -> bool:
    """Whether a host is this machine or one of a private network; what has no address is not."""
    try:
        addresses = {ipaddress.ip_address(host)}
    except ValueError:
        try:
            entries = socket.getaddrinfo(host, None)
        except (OSError, UnicodeError):
            return False
        addresses = {ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in entries}
    return any(not (getattr(one, "ipv4_mapped", None) or one).is_global for one in addresses)


def _pieces(response: requests.Response, watch: _Watch) -> Iterator[bytes]:
    with watch.errors():
        for piece in response.iter_content(PIECE):
            watch.received += len(piece)
            yield piece


class _Watch:
    """Ends connections that are too slow: each byte that comes would prolong a time-out."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.received = 0
        self.reason = ""
        self._connections: list[socket.socket] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        for connection in self._connections:
            connection.close()

    def add(self, connection: socket.socket) -> None:
        """Watch this connection: a second handle, for TLS takes the first."""
        self._connections.append(connection.dup())
        if self.reason:
            _shut(connection)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Within it what breaks off is a RequestException, and of its own doing a SlowError."""
        try:
            yield
        except (OSError, HTTPError, ValueError) as error:  # OSError: no file of certificates
            if self.reason:
                raise SlowError(self.reason) from error
            if isinstance(error, requests.RequestException):
                raise
            raise requests.exceptions.InvalidURL(str(error)) from error
        if self.reason:  # without a length, its end looks like any other
            raise SlowError(self.reason)

    def _run(self) -> None:
        while not self.reason:
            before, left = self.received, self.end - time.monotonic()
            if self._done.wait(max(0.0, min(WINDOW_SECONDS, left))):
                return
            if left <= WINDOW_SECONDS:
                self.reason = f"no end in time, after {self.received:,} bytes"
            elif self.received == before:
                self.reason = f"less than {PIECE:,} bytes came in {WINDOW_SECONDS:g} seconds"
        for connection in self._connections:
            _shut(connection)


class _Adapter(HTTPAdapter):
    """Connections that a watch knows, those to a proxy too."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def get_connection_with_tls_context(self, *arguments: Any, **options: Any) -> Any:
        """As HTTPAdapter does; the class of connections is a pool's own."""
        pool: Any = super().get_connection_with_tls_context(*arguments, **options)
        if "ConnectionCls" not in vars(pool):
            pool.ConnectionCls = _watched(pool.ConnectionCls, self.watch)
        return pool


def _watched(kind: Any, watch: _Watch) -> Any:
    class Connection(kind):  # type: ignore[misc]
        def _new_conn(self) -> socket.socket:
            connection: socket.socket = super()._new_conn()
            watch.add(connection)
            return connection

    return Connection


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended by itself


def _check_redirect(response: requests.Response, url: str) -> None:
    """Raises RefusedError where a redirect leads out of the web, or into a private network."""
    if not response.is_redirect:
        return
    location = response.headers["Location"]
    try:
        target, first = urlsplit(urljoin(response.url, location)), urlsplit(url)
        is_web = target.scheme in ("https", first.scheme) and target.port != 0 and target.hostname
    except ValueError:
        is_web = None
    if not is_web:
        reason = f"{location!r}, which is no address of the web, or not encrypted as its own"
    elif is_private(str(target.hostname)) and not is_private(str(first.hostname)):
        reason = f"{target.hostname}, which is in a private network"
    else:
        return
    response.close()
    raise RefusedError(f"it redirects to {reason}")
