"""Whether a server can be reached at all, and within seconds a word of it.

What follows asks a server that is ill again and again; where there is no network that would be
half a minute of nothing. A name is looked up by the system, which may take longer than any time-out
that can be given to it, so it is asked in a thread.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from deit_zoo.terminal import Terminal

REACH_SECONDS = 3.0  # of silence
PATIENCE_SECONDS = 15.0  # two time-outs of a resolver whose first server is dead, and a connection
CONNECT_SECONDS = 5.0  # a lost first packet of a connection is sent again after 1 and 3 seconds
_PORTS = {"http": 80, "https": 443}


class Reach:
    """Whether servers can be reached; all are looked for at once, each in a thread of its own."""

    def __init__(self, urls: Iterable[str]) -> None:
        self._problems: dict[str, str | None] = {}
        self._threads: dict[str, tuple[threading.Thread, str]] = {}
        self._begin = time.monotonic()
        for url in set(urls):
            try:
                host, port = _first_hop(url)
            except ValueError as error:
                self._problems[url] = f"{error}: no address of the web, or its proxy has none"
                continue
            thread = threading.Thread(target=self._look, args=(url, host, port), daemon=True)
            self._threads[url] = thread, host
            thread.start()

    def problem(self, url: str) -> str | None:
        """Why the server of one of the addresses cannot be reached; None where it can.

        One that has not answered soon is waited for, and that is said.
        """
        if url not in self._threads:
            return self._problems[url]
        thread, host = self._threads[url]
        thread.join(max(0.0, self._begin + REACH_SECONDS - time.monotonic()))
        left = self._begin + PATIENCE_SECONDS - time.monotonic()
        if thread.is_alive() and left > 0:
            Terminal(stderr=True).print(
                f"no answer from {host} in {REACH_SECONDS:g} seconds; waiting for it, "
                f"{PATIENCE_SECONDS:g} seconds at most",
                markup=False,
            )
            thread.join(left)
        return self._problems.get(url, f"no answer in {PATIENCE_SECONDS:g} seconds ({host})")

    def _look(self, url: str, host: str, port: int) -> None:
        try:
            _connect(host, port)
        except (OSError, UnicodeError) as error:
            self._problems[url] = f"{error} ({host})"
        else:
            self._problems[url] = None


def _connect(host: str, port: int) -> None:
    """Raises OSError where no address of a host takes a connection in time.

    All are asked at once: those of IPv6 come first, and may lead nowhere.
    """
    problem = 0
    with selectors.DefaultSelector() as waiting, ExitStack() as sockets:
        for family, kind, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            try:
                connection = sockets.enter_context(socket.socket(family, kind))
                connection.setblocking(False)
                connection.connect(address)
            except BlockingIOError:
                waiting.register(connection, selectors.EVENT_WRITE, connection)
            except OSError as error:
                problem = error.errno or 0
            else:
                return
        end = time.monotonic() + CONNECT_SECONDS
        while waiting.get_map():
            ended = waiting.select(max(0.0, end - time.monotonic()))
            if not ended:
                raise TimeoutError(f"no answer in {CONNECT_SECONDS:g} seconds")
            for key, _ in ended:
                problem = key.data.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not problem:
                    return
                waiting.unregister(key.data)
    raise OSError(problem, os.strerror(problem))


def _first_hop(url: str) -> tuple[str, int]:
    """The host and port that a request for an address goes to: its own, or a proxy's."""
    target = urlsplit(url)
    if target.scheme not in _PORTS or not target.hostname:  # a manifest's URLs have both
        raise ValueError(
            f"HF_ENDPOINT is {url.rpartition('@')[2]!r}, without http:// or https:// and a name"
        )
    proxies = getproxies()
    proxy = proxies.get(target.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(target.hostname):
        target = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if not target.hostname:
        raise ValueError(f"{proxy!r} names no server")
    return target.hostname, target.port or _PORTS.get(target.scheme, 1080)
