"""Which image stands where: the order of an epoch, and who decodes what for whom.

The order is that of repeated augmentation (arXiv 1901.09335) over virtual replicas: micro-batches
that each have their own mixup draw. A place is one image of one replica in one step. The
processes of a node share out a step's different images: each is decoded once, by one of them, for
all its places.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from deit_zoo.recipes.plan import Plan

# In the unit that a loader's worker fills; the last image's places may lie beyond.
PLACES_PER_CHUNK = 64

Numbers = npt.NDArray[np.int64]


class Key(NamedTuple):
    """One image of a run: what to load, and what its random draws depend on."""

    image: int
    epoch: int
    replica: int
    position: int


class Place(NamedTuple):
    """Where an image goes: to a replica's position in the epoch, and to a row of this process."""

    replica: int
    position: int
    row: int


class Chunk(NamedTuple):
    """Images of one step, each with its places."""

    epoch: int
    images: list[tuple[int, list[Place]]]

    @property
    def num_places(self) -> int:
        """Rows that it fills."""
        return sum(len(places) for _, places in self.images)


def epoch_order(
    num_images: int, *, epoch: int, replicas: int, repeats: int, count: int, shuffle: bool = True
) -> Numbers:
    """The images of every replica in one epoch, in order (replicas, count): upstream's RASampler.

    Each image of the epoch's permutation is repeated, repeats go to different replicas, and an
    epoch ends after as many images as an epoch without repeats would have.
    """
    generator = torch.Generator().manual_seed(epoch)
    order = torch.randperm(num_images, generator=generator) if shuffle else torch.arange(num_images)
    needed = replicas * count
    order = order[: -(-needed // repeats)].repeat_interleave(repeats)[:needed]
    return order.view(count, replicas).t().numpy()


def balanced_images(labels: Numbers, epoch: int) -> Numbers:
    """As many images as there are, each class as often as any other, give or take one.

    The images of a class take turns: none comes once more before all of them have come. Which come
    more often, and which class has one more, each epoch draws anew.
    """
    generator = torch.Generator().manual_seed(epoch)
    classes = np.unique(labels)
    order = torch.randperm(len(classes), generator=generator).tolist()
    share, more = divmod(len(labels), len(classes))
    images: list[int] = []
    for place, number in enumerate(order):
        own = np.flatnonzero(labels == classes[number])
        count = share + (place < more)
        drawn: list[int] = []
        while len(drawn) < count:
            drawn += own[torch.randperm(len(own), generator=generator).numpy()].tolist()
        images += drawn[:count]
    return np.array(images, dtype=np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What one process has in a step.

    It decodes `images`, `sends[p]` of whose places are of process p, in the order of their rows;
    it gets `receives[p]` from process p, and `order[i]` of all that is for its own row i.
    """

    epoch: int
    images: list[tuple[int, list[Place]]]
    sends: list[int]
    receives: list[int]
    order: Numbers

    @property
    def num_rows(self) -> int:
        """Rows that this process fills."""
        return sum(self.sends)

    def chunks(self) -> Iterator[Chunk]:
        """Its images in parts of about equal size, in their order."""
        parts = -(-self.num_rows // PLACES_PER_CHUNK)
        chunk = Chunk(self.epoch, [])
        for image in self.images:
            if chunk.num_places >= self.num_rows / parts:
                yield chunk
                chunk = Chunk(self.epoch, [])
            chunk.images.append(image)
        if chunk.images:
            yield chunk


class EpochPlaces:
    """The places of one epoch, for one of the processes that share out the decoding.

    They are `peers` processes, of which this is number `peer`; together they have `replicas`.
    With balanced sampling, `labels` are those of all images.
    """

    def __init__(
        self,
        plan: Plan,
        epoch: int,
        replicas: range,
        *,
        peer: int,
        peers: int,
        labels: Numbers | None = None,
    ) -> None:
        recipe = plan.recipe
        self.epoch = epoch
        self.size = plan.replica_batch
        self.replicas = replicas
        self.peer, self.peers = peer, peers
        order = epoch_order(
            plan.num_images,
            epoch=epoch,
            replicas=recipe.replicas,
            repeats=recipe.repeated_aug,
            count=plan.images_per_replica,
        )
        if labels is not None:
            order = balanced_images(labels, epoch)[order]
        self.order = order[replicas.start : replicas.stop].copy()

    def share(self, step: int) -> Share:
        """What this process has in a step."""
        begin = step * self.size
        images = self.order[:, begin : begin + self.size].ravel()
        _, first, number = np.unique(images, return_index=True, return_inverse=True)
        # Numbered as they come, and dealt out in turn.
        rank = np.empty(len(first), dtype=np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        rank = rank[number]
        decoder = rank % self.peers
        receiver = np.arange(len(images)) // (len(images) // self.peers)
        own = np.flatnonzero(decoder == self.peer)
        places: dict[int, list[Place]] = {}
        for row, place in enumerate(own.tolist()):
            replica, offset = divmod(place, self.size)
            where = Place(self.replicas[replica], begin + offset, row)
            places.setdefault(int(rank[place]), []).append(where)
        received = np.flatnonzero(receiver == self.peer)
        # What comes from process 0 comes first, and of each process in the order of the places.
        arrival = np.argsort(decoder[received], kind="stable")
        order = np.empty(len(received), dtype=np.int64)
        order[arrival] = np.arange(len(received))
        return Share(
            epoch=self.epoch,
            images=[(int(images[own[of[0].row]]), of) for _, of in sorted(places.items())],
            sends=np.bincount(receiver[own], minlength=self.peers).tolist(),
            receives=np.bincount(decoder[received], minlength=self.peers).tolist(),
            order=order,
        )
