"""The addresses of the service: POST /classify, GET /health and GET /metrics.

Answers are in the words of `classify --json`; what goes wrong is one sentence under "error".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deit_zoo.errors import DataError
from deit_zoo.inference.serve.batcher import Batcher, Images
from deit_zoo.inference.serve.metrics import FORMAT, Metrics
from deit_zoo.version import __version__

HELD = 16  # the largest requests whose bytes may be held at the same time
LONGEST_NAME = 200
RETRY_SECONDS = 1
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "images": {"type": "array", "items": {"type": "string", "format": "binary"}}
                    },
                }
            },
        },
    }
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a client may ask for: bytes and images of a request, images of all that wait, seconds
    for a request to arrive and as many for its answer, and the classes of an image unless it says.
    """

    max_bytes: int = 32 << 20
    max_images: int = 64
    max_waiting: int = 256
    timeout: float = 30.0
    topk: int = 5


class Room:
    """How many images wait, and how many bytes of requests are held: both have a bound."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.images, self.held = limits, 0, 0

    @contextmanager
    def of(self, images: int) -> Iterator[None]:
        """Within it so many images more wait. 503 where there is no room for them."""
        if self.images + images > self.limits.max_waiting:
            raise _busy(f"{self.images} images wait already")
        self.images += images
        try:
            yield
        finally:
            self.images -= images


class BoundedBody:
    """What a client sends, counted as it comes: 413 or 503 for more than there is room for."""

    def __init__(self, receive: Receive, room: Room) -> None:
        self.receive, self.room, self.length = receive, room, 0

    async def __call__(self) -> Message:
        message = await self.receive()
        size = len(message.get("body", b""))
        self.length += size
        self.room.held += size
        if self.length > self.room.limits.max_bytes:
            raise _too_large(self.room.limits)
        if self.room.held > HELD * self.room.limits.max_bytes:
            raise _busy("too much is being sent")
        return message

    def __enter__(self) -> BoundedBody:
        return self

    def __exit__(self, *_: object) -> None:
        self.room.held -= self.length


class Counted:
    """The application, with each answer counted by its status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.requests.labels(str(message["status"])).inc()
            await send(message)

        try:
            await self.app(scope, receive, counting)
        except Exception:  # which becomes an answer further out
            self.metrics.requests.labels("500").inc()
            raise


def create_app(
    batcher: Batcher, facts: Mapping[str, Any], limits: Limits, metrics: Metrics
) -> FastAPI:
    """The application; `facts` are what GET /health says of the model."""
    app = FastAPI(title="deit-zoo serve", version=__version__, redoc_url=None)
    app.add_middleware(Counted, metrics=metrics)
    app.add_exception_handler(AnyHTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _bad_query)
    app.add_exception_handler(Exception, _failed)
    room = Room(limits)
    metrics.waiting.set_function(lambda: room.images)

    @app.post("/classify", openapi_extra=BODY)
    async def classify(
        request: Request, topk: Annotated[int, Query(ge=1, le=1_000_000)] = limits.topk
    ) -> Response:
        """The most probable classes of an image, or of each of a form's files."""
        started = time.perf_counter()
        with room.of(1), BoundedBody(request.receive, room) as body:
            images = await _received(request, body, limits)
            with room.of(len(images) - 1):
                rows = await _rows(images, topk, batcher, limits.timeout)
        good = sum("error" not in row for row in rows)
        metrics.images.labels("answered").inc(good)
        metrics.images.labels("unreadable").inc(len(rows) - good)
        metrics.seconds.observe(time.perf_counter() - started)
        return JSONResponse(rows, status_code=200 if good else 422)

    @app.get("/health")
    async def health() -> Response:
        """What is served; 503 where the model failed at the last batch."""
        if batcher.failure is not None:
            return _error(503, "the model fails; the service's log says why")
        return JSONResponse({"status": "ok", **facts})

    @app.get("/metrics")
    async def show_metrics() -> Response:
        """Requests, images, batches, times and memory, for Prometheus."""
        return Response(metrics.text(), media_type=FORMAT)

    return app


async def _received(request: Request, body: BoundedBody, limits: Limits) -> Images:
    """The images of a request with their names; HTTPException where it has none, or too much."""
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limits.max_bytes:
        raise _too_large(limits)
    try:
        reading = _parsed(Request(request.scope, body), limits)
        return await asyncio.wait_for(reading, limits.timeout)
    except asyncio.TimeoutError as error:
        problem = f"the request did not arrive within {limits.timeout:g} seconds; send it again"
        raise HTTPException(408, problem) from error
    except ClientDisconnect as error:  # whom nobody answers
        raise HTTPException(400, "the client has gone") from error


async def _parsed(request: Request, limits: Limits) -> Images:
    if not request.headers.get("content-type", "").startswith("multipart/"):
        if not (data := await request.body()):
            raise HTTPException(400, "the request is empty; POST the bytes of an image")
        return [("body", data)]
    try:
        form = await request.form(max_files=limits.max_images, max_fields=limits.max_images)
    except AnyHTTPException as error:
        if error.status_code != 400:
            raise
        reason = error.detail.rstrip(".").lower()
        most = f"send at most {limits.max_images} files, as curl -F images=@FILE does"
        raise HTTPException(400, f"the form cannot be read ({reason}); {most}") from error
    images: Images = []
    try:
        for field, value in form.multi_items():
            if not isinstance(value, UploadFile):
                problem = (
                    f"{field[:LONGEST_NAME]!r} is text; send files, and ?topk=N in the address"
                )
                raise HTTPException(400, problem)
            name = (value.filename or f"image {len(images) + 1}")[:LONGEST_NAME]
            images.append((name, await value.read()))
    finally:
        await form.close()
    if not images:
        raise HTTPException(400, "the form holds no file; send one, as curl -F images=@FILE does")
    return images


async def _rows(
    images: Images, topk: int, batcher: Batcher, timeout: float
) -> list[dict[str, Any]]:
    """An entry for each image: its classes, or why it cannot be read."""
    answers = [asyncio.wrap_future(answer) for answer in batcher.submit(images, topk)]
    names = [name for name, _ in images]
    images.clear()  # the bytes are held until they are read, and no longer
    try:
        done = await asyncio.wait_for(asyncio.gather(*answers, return_exceptions=True), timeout)
    except asyncio.TimeoutError as error:
        problem = f"there was no answer within {timeout:g} seconds; send fewer images at once"
        raise HTTPException(504, problem) from error
    return [_row(name, answer) for name, answer in zip(names, done, strict=True)]


def _row(name: str, answer: Any) -> dict[str, Any]:
    if isinstance(answer, DataError):
        return {"image": name, "error": str(answer)}
    if isinstance(answer, BaseException):
        raise answer
    return {"image": name, "predictions": [asdict(prediction) for prediction in answer]}


def _too_large(limits: Limits) -> HTTPException:
    most = f"{limits.max_bytes / 2**20:g} MiB"
    return HTTPException(413, f"the request is larger than {most}; send fewer or smaller images")


def _busy(why: str) -> HTTPException:
    headers = {"Retry-After": str(RETRY_SECONDS)}
    return HTTPException(503, f"{why}; try again in {RETRY_SECONDS} s", headers)


def _error(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": text}, status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AnyHTTPException), error
    if error.status_code in (404, 405):
        there = "POST images to /classify, or GET /health, /metrics or /docs"
        return _error(error.status_code, f"there is nothing here; {there}", error.headers)
    return _error(error.status_code, error.detail, error.headers)


async def _bad_query(request: Request, error: Exception) -> Response:
    return _error(400, "topk must be a whole number, 1 or more, as in /classify?topk=3")


async def _failed(request: Request, error: Exception) -> Response:
    return _error(500, "the service failed at this request; its log says why")
