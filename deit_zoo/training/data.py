"""The training images of one process: which, in which order, and augmented by which draws.

The order is that of repeated augmentation (arXiv 1901.09335) over virtual replicas: micro-batches
that each have their own mixup draw. Draws depend on an image's position alone, and a bad image is
replaced by another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from deit_zoo.data.image_set import ImageSet
from deit_zoo.data.loader import make_loader, read_batches
from deit_zoo.data.transforms import error_context
from deit_zoo.errors import DataError, ZooError
from deit_zoo.recipes.plan import EPOCH_UNIT, Plan
from deit_zoo.training.seeding import seed_from_key

REPLACEMENTS = 10

Batch = tuple[Tensor, Tensor, Tensor]


class WorkerDied(ZooError):
    """A process that reads images died; the run continues from its last state."""


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
    """Batches for the loader of one process: step by step, its replicas one after another."""

    def __init__(self, plan: Plan, replicas: range) -> None:
        self.plan = plan
        self.replicas = replicas
        self.epoch = 0
        self.first_step = 0

    def __len__(self) -> int:
        return (self.plan.steps_per_epoch - self.first_step) * len(self.replicas)

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
        for step in range(self.first_step, self.plan.steps_per_epoch):
            positions = range(step * size, (step + 1) * size)
            for replica in self.replicas:
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
    """The batches of one process, epoch by epoch, from workers that live as long as it does."""

    def __init__(
        self,
        images: ImageSet,
        transform: Callable[[Image.Image], Any],
        plan: Plan,
        replicas: range,
    ) -> None:
        self.images = KeyedImages(images, transform, plan.recipe.seed)
        self.plan = plan
        self.order = ReplicaBatches(plan, replicas)
        self._loader: DataLoader[Any] | None = None
        self._batches: Iterator[Any] = iter(())

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """(images, labels, bad) of each replica in each step; one without bad images has zeros."""
        self.order.epoch, self.order.first_step = epoch, first_step
        if self._loader is None:
            self._loader = make_loader(
                self.images, self.order, self.plan.workers, pin_memory=self.plan.device == "cuda"
            )
        self._batches = read_batches(self._loader)
        for _ in range(len(self.order)):
            images, labels, bad = next(self._batches)
            yield images, labels, bad

    def close(self) -> None:
        """End the workers, which nothing else refers to; another epoch starts new ones."""
        self._loader, self._batches = None, iter(())


@contextmanager
def worker_death_as_error() -> Iterator[None]:
    """Within it, the death of a loader's worker is one sentence.

    torch raises it when the worker dies, wherever the program is then, as in a step or an
    evaluation: what it was doing is lost, the last state is not.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        # Where the loader was waiting for the worker, the signal is named by the first of two.
        named = error.__cause__ if isinstance(error.__cause__, RuntimeError) else error
        message = str(named).split(". ")[0].rstrip(". ")
        raise WorkerDied(
            f"{message}; memory or shared memory (/dev/shm) is mostly what it lacked: give fewer "
            "--workers; the same command continues from the last state"
        ) from error
