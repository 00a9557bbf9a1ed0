"""What one forward pass sees: the images of one or several replicas, mixed, on the device.

A virtual replica is a unit of draws, not of a forward pass: its mixing and its masks of stochastic
depth are drawn on the CPU by the key of its place. So the device and the number of replicas that go
through together change nothing but the order of sums.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deit_zoo.models.layers import DropPath
from deit_zoo.training.seeding import seed_from_key

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Batch(NamedTuple):
    """What the loader has of one replica in one step, as a rule on its device.

    `bad` are the numbers of images that could not be read: of the whole step, with its first
    replica. On a GPU images are there when the event `ready` is. `taught` are the labels that a
    teacher gives, where they are known.
    """

    images: Tensor
    labels: Tensor
    bad: list[int]
    ready: torch.cuda.Event | None = None
    taught: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """Images (B, C, H, W) and their soft targets; `bad` are the images that could not be read.

    `taught` are the labels that a teacher gives them, where they are known. `last` says whether it
    is the last of its step.
    """

    images: Tensor
    targets: Tensor
    taught: Tensor | None
    bad: list[int]
    last: bool


@dataclass(eq=False)
class MicroBatches:
    """The forward passes of an epoch's steps, `per_pass` replicas in each."""

    model: nn.Module
    mix: Mix
    batches: Iterator[Batch]
    replicas: range
    per_pass: int
    key: tuple[int, int]
    device: torch.device

    def __post_init__(self) -> None:
        self.ahead: Batch | None = None
        self.idle = IdleClock(self.device)
        self.drop_paths = active_drop_paths(self.model)

    def of_step(self, number: int) -> Iterator[MicroBatch]:
        """The passes of a step. Masks are put into the model for the pass that is yielded."""
        for first in range(0, len(self.replicas), self.per_pass):
            chosen = self.replicas[first : first + self.per_pass]
            images, targets, masks, taught, bad = zip(
                *(self._replica(number, r) for r in chosen), strict=True
            )
            self._put_masks(join(masks, dim=2))
            known = tuple(labels for labels in taught if labels is not None)
            yield MicroBatch(
                images=join(images),
                targets=join(targets),
                taught=join(known) if len(known) == len(chosen) else None,
                bad=[image for of_replica in bad for image in of_replica],
                last=chosen[-1] == self.replicas[-1],
            )

    def leave_out(self) -> None:
        """Pass over the images of a step."""
        for _ in self.replicas:
            self._next()

    def _replica(
        self, number: int, replica: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, list[int]]:
        """A replica's images, targets and masks, what is known to be taught, and its bad images."""
        batch = self._next()
        if batch.ready is not None:
            current = torch.cuda.current_stream(self.device)
            with self.idle:
                current.wait_event(batch.ready)
            batch.images.record_stream(current)
            batch.labels.record_stream(current)
            if batch.taught is not None:
                batch.taught.record_stream(current)
        images = batch.images.to(self.device, non_blocking=True)
        labels = batch.labels.to(self.device, non_blocking=True)
        seed_from_key(*self.key, number, replica, "mixup")
        images, targets = self.mix(images, labels)
        seed_from_key(*self.key, number, replica, "drop_path")
        masks = draw_masks(self.drop_paths, len(images))
        taught = batch.taught
        if taught is not None:
            taught = taught.to(self.device, non_blocking=True)
        return images, targets, masks, taught, batch.bad

    def look_ahead(self) -> None:
        """Have the next step's images made, while the device is busy with this one's."""
        self.ahead = self._wait()

    def _next(self) -> Batch:
        batch = self.ahead or self._wait()
        self.ahead = None
        if batch is None:
            raise ValueError("the loader has no more images, but the epoch has more steps")
        return batch

    def _wait(self) -> Batch | None:
        with self.idle:
            return next(self.batches, None)

    def _put_masks(self, masks: Tensor) -> None:
        """Give each drop-path of the model its masks (drop-paths, branches, B, 1, 1).

        They are written where the last ones were: a CUDA graph reads from there, and is recorded
        anew where a tensor of a module lies elsewhere.
        """
        if self.drop_paths and self.device.type == "cuda":
            masks = masks.pin_memory().to(self.device, non_blocking=True)
        for drop_path, own in zip(self.drop_paths, masks, strict=True):
            if drop_path.masks is None or drop_path.masks.shape != own.shape:
                drop_path.masks = torch.empty_like(own, device=self.device)
            drop_path.masks.copy_(own)


class IdleClock:
    """Seconds within it in which a device has nothing to do: on a CPU, all of them."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.seconds = 0.0
        self.began = 0.0
        self.marks: deque[torch.cuda.Event] = deque()

    def __enter__(self) -> None:
        self.began = time.perf_counter()
        self._mark()

    def __exit__(self, *_: object) -> None:
        if not self.on_gpu:
            self.seconds += time.perf_counter() - self.began
        self._mark()

    def read(self) -> float:
        """What was counted since it was last read; of a GPU, what is over there too."""
        while len(self.marks) > 1 and self.marks[1].query():  # type: ignore[no-untyped-call]
            begin, end = self.marks.popleft(), self.marks.popleft()
            self.seconds += begin.elapsed_time(end) / 1000
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def _mark(self) -> None:
        """Between what was launched before and after."""
        if self.on_gpu:
            self.marks.append(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
            self.marks[-1].record()


def active_drop_paths(model: nn.Module) -> list[DropPath]:
    """The drop-paths of a model that drop something, in the order of the blocks."""
    paths = (module for module in model.modules() if isinstance(module, DropPath))
    return [path for path in paths if path.rate > 0.0 and path.training]


def draw_masks(drop_paths: list[DropPath], batch: int) -> Tensor:
    """Masks as the blocks would draw them, branch after branch (drop-paths, branches, B, 1, 1)."""
    branches = max((drop_path.branches for drop_path in drop_paths), default=2)
    masks = torch.empty(len(drop_paths), branches, batch, 1, 1)
    for drop_path, branches in zip(drop_paths, masks, strict=True):
        for branch in branches:
            branch.copy_(drop_path.keep_mask(branch))
    return masks


def join(parts: tuple[Tensor, ...], dim: int = 0) -> Tensor:
    """One tensor of all; of one, that itself."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)
