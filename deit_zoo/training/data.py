"""The training images of one process, augmented by draws that depend on their place alone.

A bad image is replaced by another, and a loader whose worker was killed starts again where it
stopped: neither ends a run, both are told.
"""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from threading import current_thread, main_thread
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deit_zoo.data.image_set import ImageSet
from deit_zoo.data.transforms import error_context
from deit_zoo.errors import DataError, ZooError
from deit_zoo.evaluation.accuracy import (
    block_signals,
    leave_signals_to_the_main_process,
    one_sentence,
)
from deit_zoo.recipes.plan import Plan
from deit_zoo.training.samplers import Key, ReplicaBatches
from deit_zoo.training.seeding import seed_from_key

REPLACEMENTS = 10
DEATHS_PER_EPOCH = 3

Batch = tuple[Tensor, Tensor, Tensor]


class KeyedImages(Dataset[tuple[Any, int, int]]):
    """Images that are asked for by key: the key seeds the augmentation.

    An item is (image, label, bad): 0, or 1 + the number of the image that could not be read and
    that another one replaces.
    """

    def __init__(
        self, images: ImageSet, transform: Callable[[Image.Image], Any], seed: int
    ) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed

    def __getitem__(self, key: Key) -> tuple[Any, int, int]:
        seed_from_key(self.seed, key.epoch, key.replica, key.position, "augment")
        index, image, bad = self._readable(key)
        with error_context(self.images.name_of(index)):
            return self.transform(image), self.images.label_of(index), bad

    def _readable(self, key: Key) -> tuple[int, Image.Image, int]:
        """The image of a key, or else the first of its replacements that can be read."""
        index, bad = key.image, 0
        for attempt in range(REPLACEMENTS + 1):
            try:
                return index, self.images.open(index), bad
            except DataError as error:
                bad, last = bad or 1 + index, error
                index = self._replacement(key, attempt)
        raise DataError(
            f"{REPLACEMENTS + 1} images in a row cannot be read, the last: {last}; "
            "`deit-zoo data check` lists every bad one"
        )

    def _replacement(self, key: Key, attempt: int) -> int:
        """Another image, by a hash: a draw from the generators would change the augmentation."""
        place = (self.seed, key.epoch, key.replica, key.position, attempt, "replacement")
        digest = hashlib.sha256(repr(place).encode()).digest()
        return int.from_bytes(digest[:8], "little") % len(self.images)


class Supply:
    """The batches of one process, epoch by epoch, from workers that live as long as it does.

    `say` is called with a sentence where a worker was killed and the loader starts again.
    """

    def __init__(
        self,
        images: ImageSet,
        transform: Callable[[Image.Image], Any],
        plan: Plan,
        replicas: range,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.images = KeyedImages(images, transform, plan.recipe.seed)
        self.plan = plan
        self.order = ReplicaBatches(plan, replicas)
        self.say = say
        self._loader: DataLoader[Any] | None = None
        self._workers: list[Any] = []

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """(images, labels, bad) of each replica in each step; one without bad images has zeros.

        Raises ZooError where workers die again and again.
        """
        self.order.epoch, self.order.first_step = epoch, first_step
        delivered = deaths = 0
        while True:
            self.order.first_batch = delivered
            try:
                with one_sentence():
                    for images, labels, bad in self._start():
                        delivered += 1
                        yield images, labels, bad
                return
            except (RuntimeError, OSError, EOFError) as error:
                told = self._deaths()
                if not told:
                    raise
                deaths += 1
                self.close()
                if deaths > DEATHS_PER_EPOCH:
                    raise ZooError(
                        f"loader workers died {deaths} times in epoch {epoch + 1} ({told}); memory "
                        "or shared memory (/dev/shm) is mostly what they lack: give fewer --workers"
                    ) from error
                self.say(f"{told} in epoch {epoch + 1}; loading starts again at batch {delivered}")

    def close(self) -> None:
        """End the workers; another epoch starts new ones."""
        for worker in self._workers:
            worker.kill()
            worker.join()
        self._loader, self._workers = None, []

    def _start(self) -> Iterator[Any]:
        if self._loader is None:
            self._loader = DataLoader(
                self.images,
                batch_sampler=self.order,
                num_workers=self.plan.workers,
                persistent_workers=self.plan.workers > 0,
                pin_memory=self.plan.device == "cuda",
                worker_init_fn=leave_signals_to_the_main_process,
            )
        with _deaths_wait_for_the_next_batch(), block_signals():
            batches = iter(self._loader)
        self._workers = getattr(batches, "_workers", [])
        return batches

    def _deaths(self) -> str:
        """The workers that are dead, in words."""
        wait([worker.sentinel for worker in self._workers], timeout=1)
        codes = [worker.exitcode for worker in self._workers if not worker.is_alive()]
        return ", ".join(f"a loader worker {_ended(code)}" for code in codes)


@contextmanager
def _deaths_wait_for_the_next_batch() -> Iterator[None]:
    """Take torch's SIGCHLD handler away again: it raises wherever the program is, as in a step."""
    if not hasattr(signal, "SIGCHLD") or current_thread() is not main_thread():
        yield
        return
    held = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        torchs = str(getattr(held, "__module__", "")).startswith("torch.")
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if torchs or held is None else held)


def _ended(code: int | None) -> str:
    if code is not None and code < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"was killed by {names.get(-code, f'signal {-code}')}"
    return f"ended with status {code}"
