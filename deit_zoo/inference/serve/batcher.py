"""Images of many requests in one batch: threads read them, and one thread asks the model."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition, Thread
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from deit_zoo.data.transforms import EvalTransform, as_tensor
from deit_zoo.inference.classify import predictions
from deit_zoo.inference.compiled import MOST_SIZES
from deit_zoo.models.model import ZooModel
from deit_zoo.results import Prediction

# Seconds that an image waits for others that are being read; where none is, it does not wait.
MOST_WAIT = 0.05
GRACE = 5.0  # seconds that the model gets to finish its batch at the end
Images: TypeAlias = list[tuple[str, bytes]]  # with their names


class _Ready(NamedTuple):
    """Pixels that wait for the model, and how many classes are asked for."""

    pixels: Tensor
    topk: int


class Batcher:
    """The model, and all that waits for it. `on_batch` is called with the size of each batch.

    `failure` is why the last batch had no answers; None where it had.
    """

    def __init__(
        self,
        network: ZooModel,
        prepare: EvalTransform,
        *,
        batch_size: int,
        threads: int,
        on_batch: Callable[[int], object] = lambda size: None,
    ) -> None:
        self.network, self.prepare, self.batch_size = network, prepare, batch_size
        self.on_batch = on_batch
        self.failure: str | None = None
        self._reading = 0
        self._ready: dict[Future[list[Prediction]], _Ready] = {}  # in the order of their reading
        self._closed = False
        self._changed = Condition()
        self._pool = ThreadPoolExecutor(threads, "read")
        self._worker = Thread(target=self._answer_all, name="model", daemon=True)
        self._worker.start()

    def submit(self, images: Images, topk: int) -> list[Future[list[Prediction]]]:
        """A future for each encoded image: of its classes, or of the DataError that it has.

        One that is cancelled lets go of its image, unless the model looks at it already.
        """
        answers: list[Future[list[Prediction]]] = [Future() for _ in images]
        with self._changed:
            self._reading += len(images)
        for (name, data), answer in zip(images, answers, strict=True):
            answer.add_done_callback(self._drop)
            self._pool.submit(self._read, data, name, topk, answer)
        return answers

    def warm_up(self) -> None:
        """Have the model answer batches of several sizes, before anybody waits: a copy that is
        compiled has code for these, and compiles no more.
        """
        pixels = torch.zeros(3, *self.prepare.img_size, dtype=torch.uint8)
        # Such as 1, 3, 10 and 32.
        steps = [self.batch_size ** (step / (MOST_SIZES - 1)) for step in range(MOST_SIZES)]
        for size in dict.fromkeys(map(round, steps)):
            predictions(self.network, [pixels] * size, 1)
        if (compiled := getattr(self.network, "compiled", None)) is not None:
            compiled.closed = True

    def close(self) -> None:
        """Let go of what still waits; the batch that the model has is finished."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._worker.join(GRACE)

    def _drop(self, answer: Future[list[Prediction]]) -> None:
        with self._changed:
            self._ready.pop(answer, None)

    def _read(self, data: bytes, name: str, topk: int, answer: Future[list[Prediction]]) -> None:
        ready = None
        try:
            if not answer.cancelled():
                ready = _Ready(as_tensor(data, self.prepare.pixels, name), topk)
        except Exception as error:  # raised again where the answer is waited for
            if answer.set_running_or_notify_cancel():
                answer.set_exception(error)
        finally:
            with self._changed:
                self._reading -= 1
                if ready and not answer.cancelled():
                    self._ready[answer] = ready
                self._changed.notify_all()

    def _next_batch(self) -> dict[Future[list[Prediction]], _Ready]:
        """What is ready, once that is a whole batch or no more is to be waited for."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._closed)
            until = time.monotonic() + MOST_WAIT
            while self._reading and len(self._ready) < self.batch_size and not self._closed:
                if not self._changed.wait(until - time.monotonic()):
                    break
            if self._closed:
                return {}
            batch: dict[Future[list[Prediction]], _Ready] = {}
            while self._ready and len(batch) < self.batch_size:
                answer = next(iter(self._ready))
                ready = self._ready.pop(answer)
                if answer.set_running_or_notify_cancel():  # from here on it cannot be cancelled
                    batch[answer] = ready
            return batch

    def _answer_all(self) -> None:
        while not self._closed:
            if not (batch := self._next_batch()):  # each was cancelled meanwhile
                continue
            try:
                topk = max(one.topk for one in batch.values())
                best = predictions(self.network, [one.pixels for one in batch.values()], topk)
                self.failure = None
            except Exception as error:  # the next batch may have more luck
                self.failure = str(error) or type(error).__name__
                for answer in batch:
                    answer.set_exception(error)
                continue
            self.on_batch(len(batch))
            for (answer, ready), classes in zip(batch.items(), best, strict=True):
                answer.set_result(classes[: ready.topk])
