"""Whether a server can be reached at all, within seconds.

What follows asks a server that is ill again and again; where there is no network that would be
half a minute of nothing. A name is looked up by the system, which may take longer than any time-out
that can be given to it, so it is asked in a thread.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

REACH_SECONDS = 3.0
_PORTS = {"http": 80, "https": 443}


def unreachable(urls: Iterable[str]) -> dict[str, str]:
    """Of these addresses those that cannot be reached, and why; all are tried at once."""
    found: dict[str, str | None] = {}

    def look(url: str) -> None:
        host, port = _first_hop(url)
        try:
            socket.create_connection((host, port), timeout=REACH_SECONDS).close()
        except (OSError, UnicodeError) as error:
            found[url] = f"{error} ({host})"
        else:
            found[url] = None

    threads = {url: threading.Thread(target=look, args=(url,), daemon=True) for url in urls}
    for thread in threads.values():
        thread.start()
    deadline = time.monotonic() + REACH_SECONDS
    for url, thread in threads.items():
        thread.join(max(0.0, deadline - time.monotonic()))
        found.setdefault(url, f"no answer in {REACH_SECONDS:g} seconds ({_first_hop(url)[0]})")
    return {url: reason for url, reason in found.items() if reason is not None}


def _first_hop(url: str) -> tuple[str, int]:
    """The host and port that a request for an address goes to: its own, or a proxy's."""
    target = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(target.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(target.hostname or ""):
        target = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return target.hostname or "", target.port or _PORTS.get(target.scheme, 1080)
