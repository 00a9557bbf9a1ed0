"""The training images of one process: which, in which order, and augmented by which draws.

The order is that of repeated augmentation (arXiv 1901.09335) over virtual replicas: micro-batches
that each have their own mixup draw. Draws depend on an image's position alone. A bad image is
replaced by another, and a loader whose worker was killed starts again where it stopped: neither
ends a run, both are reported.
"""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from threading import current_thread, main_thread
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from deit_zoo.data.image_set import ImageSet
from deit_zoo.data.loader import make_loader, read_batches
from deit_zoo.data.transforms import error_context
from deit_zoo.distributed import how_it_ended
from deit_zoo.errors import DataError, ZooError
from deit_zoo.recipes.plan import EPOCH_UNIT, Plan
from deit_zoo.training.seeding import seed_from_key

REPLACEMENTS = 10
DEATHS_PER_EPOCH = 3
DYING_SECONDS = 5  # between what a dying worker breaks off and its end, on a busy machine

Batch = tuple[Tensor, Tensor, Tensor]


class Key(NamedTuple):
    """One image of a run: what to load, and what its random draws depend on."""

    image: int
    epoch: int
    replica: int
    position: int


def replica_indices(
    num_images: int,
    *,
    epoch: int,
    replica: int,
    replicas: int,
    repeats: int,
    count: int | None = None,
    shuffle: bool = True,
) -> list[int]:
    """The images of one replica in one epoch, in order (upstream's RASampler).

    Each image of the epoch's permutation is repeated, repeats go to different replicas, and an
    epoch ends after as many images as an epoch without repeats would have: `count` of them, or
    as upstream rounds it.
    """
    generator = torch.Generator().manual_seed(epoch)
    order = torch.randperm(num_images, generator=generator) if shuffle else torch.arange(num_images)
    order = order.repeat_interleave(repeats)
    padding = -len(order) % replicas
    order = torch.cat((order, order[:padding]))
    if count is None:
        count = num_images // EPOCH_UNIT * EPOCH_UNIT // replicas
    return order[replica::replicas][:count].tolist()


class ReplicaBatches(Sampler[list[Key]]):
    """Batches for the loader of one process: step by step, its replicas one after another.

    An epoch begins `first_batch` batches after the start of `first_step`.
    """

    def __init__(self, plan: Plan, replicas: range) -> None:
        self.plan = plan
        self.replicas = replicas
        self.epoch = 0
        self.first_step = 0
        self.first_batch = 0

    def __len__(self) -> int:
        steps = self.plan.steps_per_epoch - self.first_step
        return steps * len(self.replicas) - self.first_batch

    def __iter__(self) -> Iterator[list[Key]]:
        recipe, size = self.plan.recipe, self.plan.replica_batch
        orders = {
            replica: replica_indices(
                self.plan.num_images,
                epoch=self.epoch,
                replica=replica,
                replicas=recipe.replicas,
                repeats=recipe.repeated_aug,
                count=self.plan.images_per_replica,
            )
            for replica in self.replicas
        }
        share = len(self.replicas)
        first = self.first_step * share + self.first_batch
        for number in range(first, self.plan.steps_per_epoch * share):
            step, offset = divmod(number, share)
            replica = self.replicas[offset]
            positions = range(step * size, (step + 1) * size)
            yield [Key(orders[replica][p], self.epoch, replica, p) for p in positions]


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
        parts = (self.seed, key.epoch, key.replica, key.position, attempt, "replacement")
        digest = hashlib.sha256(repr(parts).encode()).digest()
        return int.from_bytes(digest[:8], "little") % len(self.images)


class TrainLoader:
    """The batches of one process, epoch by epoch, from workers that live as long as it does.

    `tell` is called with a sentence where a worker was killed and the loader starts again. So a
    run whose processes were all sent SIGTERM still gets the batches of its last step.
    """

    def __init__(
        self,
        images: ImageSet,
        transform: Callable[[Image.Image], Any],
        plan: Plan,
        replicas: range,
        tell: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.images = KeyedImages(images, transform, plan.recipe.seed)
        self.plan = plan
        self.order = ReplicaBatches(plan, replicas)
        self.tell = tell
        self._loader: DataLoader[Any] | None = None
        self._workers: list[BaseProcess] = []

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """(images, labels, bad) of each replica in each step; one without bad images has zeros.

        Raises ZooError where workers die again and again.
        """
        self.order.epoch, self.order.first_step = epoch, first_step
        delivered = deaths = 0
        while True:
            self.order.first_batch = delivered
            try:
                for images, labels, bad in self._start():
                    delivered += 1
                    yield images, labels, bad
                return
            except (RuntimeError, OSError, EOFError) as error:
                wait([worker.sentinel for worker in self._workers], timeout=DYING_SECONDS)
                codes = [worker.exitcode for worker in self._workers]
                ends = [how_it_ended(code) for code in codes if code is not None]
                if not ends:
                    raise
                message = ", ".join(f"a loader worker {end}" for end in ends)
                deaths += 1
                self.close()
                if deaths > DEATHS_PER_EPOCH:
                    raise ZooError(
                        f"loader workers died {deaths} times in epoch {epoch + 1} ({message}); "
                        "memory or shared memory (/dev/shm) is mostly what they lack: give fewer "
                        "--workers"
                    ) from error
                self.tell(
                    f"{message} in epoch {epoch + 1}; loading starts again at batch {delivered}"
                )

    def close(self) -> None:
        """End the workers; another epoch starts new ones."""
        for worker in self._workers:
            worker.kill()
            worker.join()
        self._loader, self._workers = None, []

    def _start(self) -> Iterator[Any]:
        if self._loader is not None:
            return read_batches(self._loader)
        others = active_children()
        self._loader = make_loader(
            self.images, self.order, self.plan.workers, pin_memory=self.plan.device == "cuda"
        )
        with _deaths_wait_for_the_next_batch():
            batches = read_batches(self._loader)
        self._workers = [process for process in active_children() if process not in others]
        return batches


@contextmanager
def _deaths_wait_for_the_next_batch() -> Iterator[None]:
    """Take torch's SIGCHLD handler away again: it raises wherever the program is, as in a step."""
    if not hasattr(signal, "SIGCHLD") or current_thread() is not main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        of_torch = str(getattr(previous, "__module__", "")).startswith("torch.")
        keep = signal.SIG_DFL if of_torch or previous is None else previous
        signal.signal(signal.SIGCHLD, keep)
