"""The service as a process: its socket, its time-outs, and an end that answers what has come."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from deit_zoo.errors import ZooError
from deit_zoo.inference.serve.app import refusal

if TYPE_CHECKING:
    from fastapi import FastAPI

KEEP_ALIVE_SECONDS = 30
MOST_CONNECTIONS = 1000


class TimedProtocol(H11Protocol):
    """HTTP, where a connection is closed on which no whole request begins in time, or whose client
    does not read its answer: uvicorn would wait for either for ever."""

    seconds = 30.0
    most = MOST_CONNECTIONS
    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most + self.most // 4:  # of whom these are told why
            transport.abort()
            return
        transport.set_write_buffer_limits(0)  # so any byte that is not sent pauses writing
        self._set_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        self._stop_unread()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_unread()

    def _set_timer(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.seconds, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


def bind(host: str, port: int) -> socket.socket:
    """A socket with its address, on which nobody is let in yet. ZooError where it is taken."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if not host:  # to the system that is every address
            raise OSError("it is empty")
        if sys.platform != "win32":  # where it would share the port of a service that runs
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise ZooError(
            f"port {port} of {host!r:.120} cannot be listened on ({reason}); give another --port "
            "or --host"
        ) from error
    return listener


def address(listener: socket.socket) -> str:
    """Where the service is found."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: FastAPI, listener: socket.socket, *, timeout: float) -> None:
    """Serve until Ctrl-C or SIGTERM; requests that have come are then answered first."""

    class Protocol(TimedProtocol):
        seconds = timeout
        most = most_connections()

    full = refusal(f"over {Protocol.most:,} connections are open")

    async def bounded(scope: Any, receive: Any, send: Any) -> None:
        connections = len(server.server_state.connections)
        await (app if connections <= Protocol.most else full)(scope, receive, send)

    config = uvicorn.Config(
        bounded,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(timeout) + 1,
        backlog=Protocol.most // 4,  # let in at one go, before any of them can be let go
    )
    server = uvicorn.Server(config)

    def stop(*_: Any) -> None:
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):  # which uvicorn raises again when it is done
        signal.signal(number, stop)
    server.run(sockets=[listener])


def most_connections() -> int:
    """How many may be open: fewer where the system lets this process have few files, for asyncio
    does not bear that there are none left. Its own limit is raised as far as it may be."""
    try:
        import resource
    except ImportError:  # on Windows, which has no such limit
        return MOST_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = 4 * MOST_CONNECTIONS
    if 0 <= soft < enough:
        soft = enough if hard < 0 else min(hard, enough)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(MOST_CONNECTIONS, soft // 4) if soft >= 0 else MOST_CONNECTIONS
