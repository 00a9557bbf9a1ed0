"""The addresses of the service: POST /classify, GET /health and GET /metrics.

Answers are in the words of `classify --json`; what goes wrong is one sentence under "error".
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deit_zoo.errors import DataError, words_of
from deit_zoo.inference.serve.batcher import Batcher, Images
from deit_zoo.inference.serve.metrics import FORMAT, Metrics
from deit_zoo.results import Prediction
from deit_zoo.version import __version__

MAX_BODIES = 16  # of the largest size, that may be in memory at the same time
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
    for a request to arrive and as many for its answer, classes of an image unless asked
    for another number, and the most of them.
    """

    max_bytes: int = 32 << 20
    max_images: int = 64
    max_waiting: int = 256
    timeout: float = 30.0
    topk: int = 5
    max_topk: int = 100


class AdmissionControl:
    """How many images wait, and how many bytes of requests there are: both have a bound."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.images, self.body_bytes = limits, 0, 0

    @contextmanager
    def admit(self, images: int) -> Iterator[None]:
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

    def __init__(self, receive: Receive, admission: AdmissionControl) -> None:
        self.receive, self.admission, self.length = receive, admission, 0

    async def __call__(self) -> Message:
        message = await self.receive()
        size = len(message.get("body", b""))
        self.length += size
        self.admission.body_bytes += size
        if self.length > self.admission.limits.max_bytes:
            raise _too_large(self.admission.limits)
        if self.admission.body_bytes > MAX_BODIES * self.admission.limits.max_bytes:
            raise _busy("too much is being sent")
        return message

    def __enter__(self) -> BoundedBody:
        return self

    def __exit__(self, *_: object) -> None:
        self.admission.body_bytes -= self.length


class CountingMiddleware:
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

    async def bad_query(request: Request, error: Exception) -> Response:
        most = limits.max_topk
        return _error(400, f"topk must be a whole number from 1 to {most}, as in /classify?topk=3")

    app = FastAPI(
        title="deit-zoo serve", version=__version__, redoc_url=None, redirect_slashes=False
    )
    app.add_middleware(CountingMiddleware, metrics=metrics)
    app.add_exception_handler(AnyHTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, bad_query)
    app.add_exception_handler(Exception, _failed)
    admission = AdmissionControl(limits)
    metrics.waiting.set_function(lambda: admission.images)

    @app.post("/classify", openapi_extra=BODY)
    async def classify(
        request: Request, topk: int = Query(limits.topk, ge=1, le=limits.max_topk)
    ) -> Response:
        """The most probable classes of an image, or of each of a form's files."""
        started = time.perf_counter()
        if others := [name[:LONGEST_NAME] for name in request.query_params if name != "topk"]:
            raise HTTPException(
                400, f"{others[0]!r} is not known; /classify?topk=N is all there is"
            )
        with BoundedBody(request.receive, admission) as body:
            images = await _received(request, body, limits)
            names = [name for name, _ in images]
            with admission.admit(len(images)):
                answers = await _answers(images, topk, batcher, limits.timeout, request.receive)
                # In a thread: what is large would keep the others waiting.
                good, content = await asyncio.to_thread(_encoded, names, answers)
        metrics.images.labels("answered").inc(good)
        metrics.images.labels("unreadable").inc(len(answers) - good)
        metrics.seconds.observe(time.perf_counter() - started)
        return Response(content, 200 if good else 422, media_type="application/json")

    @app.head("/health", include_in_schema=False)  # as load balancers ask
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
    kind = request.headers.get("content-type", "").lower()
    coding = (request.headers.get("content-encoding") or "identity").lower()
    wrong = "application/json" if kind.startswith("application/json") else coding[:LONGEST_NAME]
    if wrong != "identity":
        cure = "POST the bytes of an image as they are, or a form of files"
        raise HTTPException(415, f"{wrong!r} is not read; {cure}")
    if not kind.startswith("multipart/"):
        if not (data := await request.body()):
            raise HTTPException(400, "the request is empty; POST the bytes of an image")
        return [("body", data)]
    most = limits.max_images
    parser = MultiPartParser(request.headers, request.stream(), max_files=most, max_fields=most)
    parser.spool_max_size = limits.max_bytes  # in memory, where it is counted; never on a disk
    try:
        form = await parser.parse()
    except UnicodeError as error:
        raise HTTPException(400, "the form is not in its charset; leave charset= out") from error
    except (MultiPartException, ValueError) as error:  # older starlettes let the parser's through
        reason = words_of(error).lower()
        cure = f"send at most {most} files, as curl -F images=@FILE does"
        raise HTTPException(400, f"the form cannot be read ({reason}); {cure}") from error
    images: Images = []
    try:
        for field, value in form.multi_items():
            if not isinstance(value, UploadFile):
                problem = (
                    f"{field[:LONGEST_NAME]!r} is text; send files, and ?topk=N in the address"
                )
                raise HTTPException(400, problem)
            name = (value.filename or f"image {len(images) + 1}")[:LONGEST_NAME]
            # A charset may have made a text of it that cannot be sent.
            name = name.encode("utf-8", "backslashreplace").decode()
            images.append((name, await value.read()))
    finally:
        await form.close()
    if not images:
        raise HTTPException(400, "the form holds no file; send one, as curl -F images=@FILE does")
    return images


async def _answers(
    images: Images, topk: int, batcher: Batcher, timeout: float, receive: Receive
) -> list[list[Prediction] | BaseException]:
    """The classes of each image, or why it has none. 504 where these are not known in time; none
    of a client who has gone, which is all that can be received after a request."""
    submitted = batcher.submit(images, topk)
    images.clear()  # the bytes are held until they are read, and no longer
    answers = asyncio.gather(*map(asyncio.wrap_future, submitted), return_exceptions=True)
    gone = asyncio.ensure_future(receive())
    try:
        await asyncio.wait((answers, gone), timeout=timeout, return_when="FIRST_COMPLETED")
        if answers.done():
            return answers.result()
        if gone.done():
            raise HTTPException(400, "the client has gone")
        problem = f"there was no answer within {timeout:g} seconds; send fewer images at once"
        raise HTTPException(504, problem)
    finally:
        gone.cancel()
        for answer in submitted:
            answer.cancel()


def _encoded(
    names: list[str], answers: list[list[Prediction] | BaseException]
) -> tuple[int, bytes]:
    """How many images have classes, and an entry for each image as JSON: these, or its error."""
    rows = [_row(name, answer) for name, answer in zip(names, answers, strict=True)]
    return sum("error" not in row for row in rows), json.dumps(rows, ensure_ascii=False).encode()


def _row(name: str, answer: list[Prediction] | BaseException) -> dict[str, Any]:
    if isinstance(answer, DataError):
        return {"image": name, "error": str(answer)}
    if isinstance(answer, BaseException):
        raise answer
    # Not asdict, which copies each value.
    return {
        "image": name,
        "predictions": [
            {"label": x.label, "probability": x.probability, "index": x.index, "folder": x.folder}
            for x in answer
        ],
    }


def _too_large(limits: Limits) -> HTTPException:
    most = f"{limits.max_bytes / 2**20:g} MiB"
    return HTTPException(413, f"the request is larger than {most}; send fewer or smaller images")


def _busy(why: str) -> HTTPException:
    headers = {"Retry-After": str(RETRY_SECONDS)}
    return HTTPException(503, f"{why}; try again in {RETRY_SECONDS} s", headers)


def refusal(why: str) -> Response:
    """The answer to a request that is not looked at; its connection ends."""
    error = _busy(why)
    return _error(error.status_code, error.detail, {**(error.headers or {}), "Connection": "close"})


def _error(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": text}, status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AnyHTTPException), error
    if error.status_code in (404, 405):
        there = "POST images to /classify, or GET /health, /metrics or /docs"
        return _error(error.status_code, f"there is nothing here; {there}", error.headers)
    return _error(error.status_code, error.detail, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return _error(500, "the service failed at this request; its log says why")
