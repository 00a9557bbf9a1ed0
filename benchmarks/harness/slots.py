"""Slots as a loader's worker fills them, and the same images finished by Pillow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deit_zoo.augment import record
from deit_zoo.augment.draws import Draws
from deit_zoo.data.transforms import normalized
from deit_zoo.training.seeding import seed_from_key
from deit_zoo.training.timm_bridge import TrainAugment

Drawn = Sequence[tuple[Image.Image, Draws]]  # images as they were read
# Width and height of what ImageNet is mostly made of, and of what is rare.
SIZES = ((500, 375), (500, 333), (375, 500), (500, 375), (640, 480), (333, 500), (800, 600))
RARE_SIZES = ((100, 900), (3000, 400), (32, 24), (1200, 900), (1, 500), (700, 1))


def photograph(number: int, width: int, height: int) -> Image.Image:
    """Smooth in parts, noisy in others, and the same for the same number."""
    generator = np.random.default_rng(number)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    noise = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return Image.blend(coarse.resize((width, height), Image.Resampling.BICUBIC), noise, 0.2)


def batches(
    augment: TrainAugment,
    count: int,
    batch: int,
    sizes: Sequence[tuple[int, int]] = SIZES,
) -> Iterator[Drawn]:
    """So many images in batches, each with the draws of a key of its own."""
    photographs = [photograph(number, *size) for number, size in enumerate(sizes)]
    for first in range(0, count, batch):
        drawn = []
        for number in range(first, min(first + batch, count)):
            image = photographs[number % len(photographs)]
            seed_from_key(0, 0, 0, number, "augment")
            drawn.append((image, augment.draw(*image.size)))
        yield drawn


def drawn_slot(drawn: Drawn, augment: TrainAugment) -> tuple[Tensor, Any]:
    """A slot of these images in their order, and its rows of words."""
    rows = np.zeros((len(drawn), record.num_words(augment.layers)), dtype=np.int64)
    numbers = rows.view(np.float64)
    content = bytearray(rows.nbytes)

    def put(part: bytes, *, multiple_of: int) -> int:
        content.extend(bytes(-len(content) % multiple_of))
        content.extend(part)
        return len(content) - len(part)

    for number, (image, draws) in enumerate(drawn):
        row, box = rows[number], draws.box
        row[record.OFFSET] = put(crop_of(image, draws).tobytes(), multiple_of=1)
        row[record.HEIGHT], row[record.WIDTH], row[record.FLIP] = box.height, box.width, draws.flip
        row[record.ROW] = number
        if draws.erase is not None and draws.noise is not None:
            row[record.ERASE_TOP : record.ERASE_WIDTH + 1] = draws.erase
            row[record.NOISE] = put(draws.noise.numpy().tobytes(), multiple_of=4)
        for layer, (operation, arguments) in enumerate(augment.layers_of(draws)):
            first = record.FIRST_LAYER + layer * record.LAYER
            row[first] = operation
            numbers[number, first + 1 : first + 1 + len(arguments)] = arguments
    content[: rows.nbytes] = rows.tobytes()
    return torch.frombuffer(content, dtype=torch.uint8), rows


def crop_of(image: Image.Image, draws: Draws) -> Image.Image:
    """What is cut out of an image."""
    top, left, height, width = draws.box
    return image.crop((left, top, left + width, top + height))


def by_pillow(drawn: Drawn, augment: TrainAugment) -> Tensor:
    """The finished images (N, 3, S, S)."""
    finished = []
    for image, draws in drawn:
        pixels = np.asarray(augment.by_pillow(crop_of(image, draws), draws)).copy()
        one = normalized(torch.from_numpy(pixels).permute(2, 0, 1))
        if draws.erase is not None and draws.noise is not None:
            top, left, height, width = draws.erase
            one[:, top : top + height, left : left + width] = draws.noise
        finished.append(one)
    return torch.stack(finished)
