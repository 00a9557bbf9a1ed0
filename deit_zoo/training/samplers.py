"""Which image stands where: repeated augmentation (arXiv 1901.09335) over virtual replicas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import Sampler

from deit_zoo.recipes.plan import EPOCH_UNIT, Plan


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
            step, place = divmod(number, share)
            replica = self.replicas[place]
            positions = range(step * size, (step + 1) * size)
            yield [Key(orders[replica][p], self.epoch, replica, p) for p in positions]
