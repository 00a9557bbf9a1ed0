"""3-Augment: an image is grey, solarised or blurred; then its colours change.

  DeiT III  https://arxiv.org/abs/2204.07118

One of the three is chosen evenly for every image. Before it, a random resized crop, or the simple
one for much data: the short side resized, reflected by 4 pixels on every side, and a square of it.
Pillow does all of it, in the loader's workers.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from deit_zoo.augment.draws import Draws, Operation
from deit_zoo.augment.record import Box, Layer
from deit_zoo.data.transforms import resize

PADDING = 4  # of the simple crop, on every side
SOLARIZE_FROM = 128
BLUR = (0.1, 2.0)  # the radius of the blur, drawn evenly between


@dataclass(kw_only=True)
class ThreeAugment:
    """Crop, flip, one of three, colours. `box_of` draws the crop of an image; None: the simple one.

    `color_jitter` is how far from 1 the factors of brightness, contrast and saturation may be.
    """

    img_size: tuple[int, int]
    hflip: float
    color_jitter: float
    box_of: Callable[[int, int], Box] | None
    layers: int = 0
    on_device: bool = False

    def draw(self, width: int, height: int) -> Draws:
        if self.box_of is None:
            box, crop = Box(0, 0, height, width), self._simple_crop(width, height)
        else:
            box = self.box_of(width, height)
            crop = Operation(resize, (self.img_size[::-1],))
        flip = [Operation(ImageOps.mirror, ())] if random.random() < self.hflip else []
        operations = (crop, *flip, one_of_three(), *colours(self.color_jitter))
        return Draws(box, False, operations, None, None)

    def layers_of(self, draws: Draws) -> list[Layer]:
        return []

    def by_pillow(self, crop: Image.Image, draws: Draws) -> Image.Image:
        for operation in draws.operations:
            crop = operation(crop)
        return crop

    def _simple_crop(self, width: int, height: int) -> Operation:
        rows, columns = self.img_size
        size = (columns, int(columns * height / width))
        if width * rows > height * columns:
            size = (int(rows * width / height), rows)
        left, top = (
            random.randint(0, side + 2 * PADDING - own)
            for side, own in zip(size, (columns, rows), strict=True)
        )
        return Operation(simple_crop, (size, Box(top, left, rows, columns)))


def one_of_three() -> Operation:
    """Grey, solarised or blurred."""
    choice = random.randrange(3)
    if choice == 0:
        return Operation(grey, ())
    if choice == 1:
        return Operation(ImageOps.solarize, (SOLARIZE_FROM,))
    return Operation(blurred, (random.uniform(*BLUR),))


def colours(most: float) -> list[Operation]:
    """Brightness, contrast and saturation, in an order that is drawn too."""
    if not most:
        return []
    kinds = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    random.shuffle(kinds)
    return [
        Operation(enhanced, (random.uniform(max(0.0, 1.0 - most), 1.0 + most),), {"kind": kind})
        for kind in kinds
    ]


def simple_crop(image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    """A box of the image as it is resized to (width, height) and reflected around."""
    pixels = np.asarray(resize(image, size))
    rows = _reflected(box.top, box.height, size[1])
    columns = _reflected(box.left, box.width, size[0])
    return Image.fromarray(np.ascontiguousarray(pixels[rows[:, None], columns]))


def grey(image: Image.Image) -> Image.Image:
    """The luminance, in all three channels."""
    return image.convert("L").convert("RGB")


def blurred(image: Image.Image, radius: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def enhanced(
    image: Image.Image, factor: float, *, kind: Callable[[Image.Image], ImageEnhance._Enhance]
) -> Image.Image:
    """Brightness, contrast or saturation times a factor."""
    return kind(image).enhance(factor)


def _reflected(start: int, count: int, length: int) -> NDArray[np.int64]:
    """The lines of `length` that so many are, from `start` in the padded image on."""
    lines = np.abs(np.arange(start - PADDING, start - PADDING + count))
    return np.where(lines < length, lines, 2 * (length - 1) - lines)
