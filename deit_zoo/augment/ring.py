"""Pixels from a loader's workers: slots of shared memory that live as long as the loader.

A worker fills a slot with rows of words and the bytes that they point to (augment/record.py), and
sends its number. The training process copies the slot to the device, and lends it out again.
"""

from __future__ import annotations

import os
from collections import deque
from multiprocessing import util
from multiprocessing.heap import Arena
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deit_zoo.augment import record
from deit_zoo.augment.record import Box, Layer
from deit_zoo.errors import ZooError

WORD = 8
PAGE = 4096
LARGE = 1 << 20  # bytes of a crop that the worker itself makes smaller

Pixels = npt.NDArray[np.uint8]
Words = npt.NDArray[np.int64]


class Ring:
    """`slots` slots, each with room for so many places of images of this (height, width)."""

    def __init__(
        self, slots: int, *, places: int, img_size: tuple[int, int], layers: int, pinned: bool
    ) -> None:
        self.words = record.num_words(layers)
        # The image, and noise of 12 bytes a pixel, which covers a third of it, as rounded.
        area, sides = img_size[0] * img_size[1], sum(img_size)
        self.of_image = 3 * area + WORD
        self.of_place = self.of_image + 4 * area + 8 * sides + 4 * WORD
        of_places = places * (self.words * WORD + self.of_place)
        self.slot_bytes = -(-of_places // PAGE) * PAGE
        self.arena = shared_memory(slots * self.slot_bytes)
        self._free = deque(range(slots))
        self._copied: deque[tuple[int, torch.cuda.Event]] = deque()
        self.pinned = pinned
        if pinned:
            self._pin()

    def __getstate__(self) -> dict[str, Any]:
        """What a worker needs: copies are the training process's."""
        return vars(self) | {"_copied": deque(), "pinned": False}

    @property
    def memory(self) -> Any:
        """All slots, as bytes that processes share."""
        return self.arena.buffer

    @property
    def bytes(self) -> Tensor:
        """All slots (slots, slot_bytes)."""
        return torch.frombuffer(self.memory, dtype=torch.uint8).view(-1, self.slot_bytes)

    def rows(self, slot: int, places: int) -> Words:
        """The rows of a slot (places, words)."""
        begin = slot * self.slot_bytes
        count = places * self.words
        rows = np.frombuffer(self.memory, dtype=np.int64, count=count, offset=begin)
        return rows.reshape(places, self.words)

    def take(self) -> int:
        """A slot to be filled; waits for the oldest copy where all are in use."""
        while self._copied and (not self._free or self._copied[0][1].query()):  # type: ignore[no-untyped-call]
            slot, event = self._copied.popleft()
            event.synchronize()
            self._free.append(slot)
        return self._free.popleft()

    def give_back(self, slot: int, copied: torch.cuda.Event | None = None) -> None:
        """A slot that was read, or will have been when its copy is done."""
        if copied is None:
            self._free.append(slot)
        else:
            self._copied.append((slot, copied))

    def take_all_back(self) -> None:
        """Every slot is free again: nobody fills one any more."""
        for _, event in self._copied:
            event.synchronize()
        self._copied.clear()
        self._free = deque(range(len(self.memory) // self.slot_bytes))

    def close(self) -> None:
        """Let go of the pages that a GPU copies from."""
        self.take_all_back()
        if self.pinned:
            runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            runtime.cudaHostUnregister(self.bytes.data_ptr())
            self.pinned = False

    def _pin(self) -> None:
        """Keep the pages where they are, so that a GPU copies from them beside its work."""
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        error = runtime.cudaHostRegister(self.bytes.data_ptr(), len(self.memory), 0)
        if int(error):
            self.pinned = False
            raise ZooError(
                f"{len(self.memory) / 2**30:.1f} GiB of shared memory cannot be pinned for the "
                f"GPU ({runtime.cudaGetErrorString(error)}); give fewer --workers"
            )


def shared_memory(size: int) -> Any:
    """Memory of this process and its workers; on Linux not of /dev/shm, which may be small."""
    try:
        if not hasattr(os, "memfd_create"):
            return Arena(size)
        descriptor = os.memfd_create("deit_zoo")
        os.ftruncate(descriptor, size)
        arena = Arena(size, descriptor)
        util.Finalize(arena, os.close, (descriptor,))
        return arena
    except OSError as error:
        raise ZooError(
            f"{size / 2**30:.1f} GiB of shared memory for the loader's workers cannot be had "
            f"({error.strerror}); give fewer --workers"
        ) from error


class SlotWriter:
    """A slot that is being filled, place by place."""

    def __init__(self, ring: Ring, slot: int, places: int) -> None:
        self.rows = ring.rows(slot, places)
        self.rows[:] = 0
        self.arguments = self.rows.view(np.float64)
        self.memory = ring.bytes[slot].numpy()
        self.end = self.rows.nbytes
        self.of_image, self.of_place = ring.of_image, ring.of_place
        self.left = places
        self.row = 0

    def fits(self, pixels: Pixels) -> bool:
        """Whether a crop is small enough, and leaves room for what is still to come."""
        spare = len(self.memory) - self.end - self.left * self.of_place
        return pixels.nbytes <= min(LARGE, spare + self.of_image - WORD)

    def add(
        self,
        pixels: Pixels,
        *,
        flip: bool,
        layers: list[Layer],
        erase: Box | None,
        noise: Tensor | None,
        row: int,
        label: int,
        bad: int,
    ) -> None:
        """The next place: a crop (H, W, 3), and what is to be done to it."""
        words, arguments = self.rows[self.row], self.arguments[self.row]
        words[record.PLACE] = self._copy(pixels), *pixels.shape[:2], flip, row, label, bad
        if erase is not None and noise is not None:
            words[record.ERASE] = erase
            words[record.NOISE] = self._copy(noise.numpy())
        words[record.FIRST_LAYER :: record.LAYER] = record.NO_OPERATION
        begins = range(record.FIRST_LAYER, len(words), record.LAYER)
        for begin, layer in zip(begins, layers, strict=True):
            words[begin] = layer.operation
            arguments[begin + 1 : begin + 1 + len(layer.arguments)] = layer.arguments
        self.row += 1
        self.left -= 1

    def _copy(self, values: npt.NDArray[np.generic]) -> int:
        """The place of values in the slot, which begins at a whole word."""
        begin = -(-self.end // WORD) * WORD
        self.end = begin + values.nbytes
        room = self.memory[begin : self.end].view(values.dtype).reshape(values.shape)
        room[...] = values
        return begin
