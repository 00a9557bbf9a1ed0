"""The training images of one process, on its device, step by step.

Draws depend on an image's place alone, so nothing depends on who decodes it. A bad image is
replaced by another, and a loader whose worker was killed starts again where it stopped: neither
ends a run, both are reported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from deit_zoo.augment.device import finish
from deit_zoo.augment.draws import Augment
from deit_zoo.augment.record import BAD, LABEL, OPERATIONS, ROW
from deit_zoo.augment.ring import Pixels, Ring, SlotWriter, Words
from deit_zoo.data.decode import error_context, read_pixels
from deit_zoo.data.image_set import ImageSet
from deit_zoo.data.loader import Loader, WorkersDiedError
from deit_zoo.data.transforms import resize
from deit_zoo.distributed import DistributedContext
from deit_zoo.errors import DataError, RecipeError, ZooError
from deit_zoo.recipes.plan import Plan
from deit_zoo.training.micro_batches import Batch
from deit_zoo.training.places import (
    PLACES_PER_CHUNK,
    Chunk,
    EpochPlaces,
    Key,
    Numbers,
    Place,
    Share,
)
from deit_zoo.training.seeding import seed_from_key
from deit_zoo.training.teacher_labels import TeacherLabels

REPLACEMENTS = 10
DEATHS_PER_EPOCH = 3
AHEAD = 2  # chunks that each worker has before it
COPIES = 4  # chunks on their way to a GPU


class Filled(NamedTuple):
    """A slot with so many places, in so many bytes."""

    slot: int
    places: int
    bytes: int


@dataclass(eq=False)
class ChunkImages(Dataset[Filled]):
    """Chunks of images, decoded and left in a slot of the ring, in a loader's worker.

    Where `on_device`, crops are left, and what is to be done to them; else Pillow does it here,
    but for normalising and erasing.
    """

    images: ImageSet
    augment: Augment
    seed: int
    ring: Ring
    on_device: bool

    def __getitem__(self, task: tuple[int, Chunk]) -> Filled:
        slot, chunk = task
        writer = SlotWriter(self.ring, slot, chunk.num_places)
        for image, places in chunk.images:
            pixels = self._decoded(image)
            for place in places:
                key = Key(image, chunk.epoch, place.replica, place.position)
                self._add(writer, key, place, pixels)
        return Filled(slot, chunk.num_places, writer.end)

    def _add(self, writer: SlotWriter, key: Key, place: Place, decoded: Pixels | DataError) -> None:
        """One place of an image."""
        index, pixels, bad = key.image, decoded, 0
        if isinstance(pixels, DataError):
            bad = 1 + index
            index, pixels = self._replacement(key, pixels)
        seed_from_key(self.seed, key.epoch, key.replica, key.position, "augment")
        with error_context(self.images.name_of(index)):
            height, width = pixels.shape[:2]
            draws = self.augment.draw(width, height)
            top, left, height, width = draws.box
            crop = pixels[top : top + height, left : left + width]
            flip, layers = draws.flip, self.augment.layers_of(draws) if self.on_device else []
            if not self.on_device:
                flip, crop = False, np.asarray(self.augment.by_pillow(as_image(crop), draws))
            elif not writer.fits(crop):
                crop = np.asarray(resize(as_image(crop), self.augment.img_size[::-1]))
        writer.add(
            crop,
            flip=flip,
            layers=layers,
            erase=draws.erase,
            noise=draws.noise,
            row=place.row,
            # With several labels an image is told by its number.
            label=self.images.label_of(index) if self.images.label_sets is None else index,
            bad=bad,
        )

    def _decoded(self, index: int) -> Pixels | DataError:
        """An image, or why it cannot be had."""
        try:
            return read_pixels(
                self.images.read(index), self.images.name_of(index), self.images.reading
            )
        except DataError as error:
            return error

    def _replacement(self, key: Key, error: DataError) -> tuple[int, Pixels]:
        """The first of a place's replacements that can be read.

        Chosen by a hash: a draw from the generators would change the augmentation.
        """
        for attempt in range(REPLACEMENTS):
            parts = (self.seed, key.epoch, key.replica, key.position, attempt, "replacement")
            digest = hashlib.sha256(repr(parts).encode()).digest()
            index = int.from_bytes(digest[:8], "little") % len(self.images)
            pixels = self._decoded(index)
            if not isinstance(pixels, DataError):
                return index, pixels
            error = pixels
        raise DataError(
            f"{REPLACEMENTS + 1} images in a row cannot be read, the last: {error}; "
            "`deit-zoo data check` lists every bad one"
        )


def as_image(pixels: Pixels) -> Image.Image:
    """Pixels (H, W, 3) for Pillow, of a crop without extent too."""
    if 0 in pixels.shape:
        return Image.new("RGB", (pixels.shape[1], pixels.shape[0]))
    return Image.fromarray(np.ascontiguousarray(pixels))


class ChunkOrder(Sampler[tuple[int, Chunk]]):
    """What the loader's workers are given: chunk after chunk, each with a free slot.

    Chunks are those of an epoch from `first_step` on, without the first `delivered`.
    """

    def __init__(self, plan: Plan, ring: Ring) -> None:
        self.steps = plan.steps_per_epoch
        self.ring = ring
        self.places: EpochPlaces | None = None
        self.first_step = self.delivered = 0

    def __iter__(self) -> Iterator[tuple[int, Chunk]]:
        assert self.places is not None, "asked before the epoch was set"
        self.ring.take_all_back()
        steps = range(self.first_step, self.steps)
        chunks = chain.from_iterable(self.places.share(step).chunks() for step in steps)
        for chunk in islice(chunks, self.delivered, None):
            yield self.ring.take(), chunk


class TrainLoader:
    """The batches of one process, epoch by epoch, from workers that live as long as it does.

    The processes of a node decode for each other where images are shown repeatedly. Where a worker
    was killed, the loader starts again and calls `tell` with a sentence; so a run whose workers get
    its SIGTERM too still has the batches of its last step. Batches hold the labels that a teacher
    gave, where they are `taught`.
    """

    def __init__(
        self,
        images: ImageSet,
        augment: Augment,
        plan: Plan,
        replicas: range,
        tell: Callable[[str], None] = lambda sentence: None,
        group: DistributedContext | None = None,
        taught: TeacherLabels | None = None,
    ) -> None:
        recipe = plan.recipe
        self.plan = plan
        self.taught = taught
        self.replicas = replicas
        self.tell = tell
        self.group = group or DistributedContext(device=torch.device(plan.device))
        self.peers = plan.processes // plan.nodes if recipe.repeated_aug > 1 else 1
        self.neighbours = self.group.neighbours(self.peers)
        self.img_size = augment.img_size
        on_gpu = self.group.device.type == "cuda"
        on_device = augments_on_device(plan, augment)
        self.labels: Numbers | None = None
        most = recipe.repeated_aug  # places of an image in a step
        if recipe.sampling == "balanced":
            self.labels = np.array([images.label_of(n) for n in range(len(images))], dtype=np.int64)
            rarest = int(np.unique(self.labels, return_counts=True)[1].min())
            often = -(-len(images) // (len(images.classes) * rarest)) + 1
            most = min(most * often, recipe.batch_size)
        self.ring = Ring(
            AHEAD * plan.workers + (COPIES if on_gpu else 1),
            places=PLACES_PER_CHUNK + most - 1,
            img_size=augment.img_size,
            layers=augment.layers if on_device else 0,
            pinned=on_gpu,
        )
        self.images = ChunkImages(images, augment, recipe.seed, self.ring, on_device=on_device)
        self.order = ChunkOrder(plan, self.ring)
        # What is copied and augmented there goes on beside the steps of the network.
        self.stream = torch.cuda.Stream(self.group.device) if on_gpu else None  # type: ignore[no-untyped-call]
        self.loader = Loader(self.images, self.order, plan.workers, batched=False)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batch of each replica in each step, on the device."""
        places, filled = self._places(epoch), self.filled(epoch, first_step)
        size = self.plan.replica_batch
        for step in range(first_step, self.plan.steps_per_epoch):
            with torch.cuda.stream(self.stream):
                images, labels, bad = self._step(places.share(step), filled)
                known = self.taught.read(epoch, step, self.replicas) if self.taught else None
                taught = None if known is None else self._to_device(known)
            ready = None if self.stream is None else self.stream.record_event()
            for number, begin in enumerate(range(0, len(images), size)):
                rows = slice(begin, begin + size)
                of_replica = None if taught is None else taught[number]
                yield Batch(images[rows], labels[rows], [] if begin else bad, ready, of_replica)

    def filled(self, epoch: int, first_step: int = 0) -> Iterator[Filled]:
        """Slots as workers fill them; each is read, and given back, before the next is taken."""
        self.order.places, self.order.first_step = self._places(epoch), first_step
        delivered = deaths = 0
        while True:
            self.order.delivered = delivered
            try:
                for filled in self.loader.read():
                    delivered += 1
                    yield filled
                return
            except WorkersDiedError as error:
                deaths += 1
                self.end_workers()
                if deaths > DEATHS_PER_EPOCH:
                    raise ZooError(
                        f"loader workers died {deaths} times in epoch {epoch + 1} ({error.ends}); "
                        f"{error.advice}"
                    ) from error
                self.tell(
                    f"{error.ends} in epoch {epoch + 1}; loading starts again at part {delivered}"
                )

    def finish(self, filled: Filled, images: Tensor) -> Words:
        """Write a slot's images to their rows of `images`, on the device; what its rows say."""
        slot, places, num_bytes = filled
        rows = self.ring.rows(slot, places)
        # On other GPUs nothing tells when a copy is done, and so the slot free.
        wait = not images.is_cuda
        copy = self.ring.bytes[slot, :num_bytes].to(images.device, non_blocking=not wait)
        finish(copy, rows, images)
        return rows

    def close(self) -> None:
        """End the workers, and let go of the pages that a GPU copies from."""
        self.end_workers()
        self.ring.close()

    def _places(self, epoch: int) -> EpochPlaces:
        """What this process and those that decode for it have in an epoch."""
        peer, share = self.group.rank % self.peers, len(self.replicas)
        first = self.replicas.start - peer * share
        everybody = range(first, first + self.peers * share)
        return EpochPlaces(
            self.plan, epoch, everybody, peer=peer, peers=self.peers, labels=self.labels
        )

    def _step(self, share: Share, filled: Iterator[Filled]) -> tuple[Tensor, Tensor, list[int]]:
        """One step's, from its chunks, and from the other processes."""
        images = torch.empty(share.num_rows, 3, *self.img_size, device=self.group.device)
        of_rows = torch.empty(share.num_rows, 2, dtype=torch.int64)  # label, bad
        done = 0
        while done < share.num_rows:
            ready = next(filled)
            rows = self.finish(ready, images)
            of_rows[rows[:, ROW]] = torch.from_numpy(rows[:, [LABEL, BAD]])
            self.ring.give_back(
                ready.slot, copied=None if self.stream is None else self.stream.record_event()
            )
            done += ready.places
        labels, bad = of_rows.t().contiguous()
        labels = self._to_device(labels)
        if self.peers > 1:
            order = self._to_device(torch.from_numpy(share.order))
            images, labels = (
                self.group.exchange(values, share.sends, share.receives, self.neighbours)[order]
                for values in (images, labels)
            )
        return images, labels, [number - 1 for number in bad.tolist() if number]

    def _to_device(self, values: Tensor) -> Tensor:
        """Values there; on CUDA without waiting for what its stream has still to do."""
        if self.stream is None:
            return values.to(self.group.device)
        return values.pin_memory().to(self.group.device, non_blocking=True)

    def end_workers(self) -> None:
        """Another epoch starts new ones."""
        self.loader.close()
        self.loader = Loader(self.images, self.order, self.plan.workers, batched=False)


def augments_on_device(plan: Plan, augment: Augment) -> bool:
    """Whether crops are finished there, or in the workers by Pillow."""
    if plan.augment == "device" and not augment.on_device:
        by_timm = f"rand_augment {plan.recipe.rand_augment!r}"
        what = "three_augment" if plan.recipe.three_augment else by_timm
        raise RecipeError(
            f"augment is 'device', where of {what} only {', '.join(OPERATIONS)} can be done; type "
            "--set augment=workers"
        )
    on_device = plan.device == "cuda" if plan.augment == "auto" else plan.augment == "device"
    return on_device and augment.on_device
