"""Augmenting on a GPU, by Triton: the pixels that Pillow makes, in some ten launches a batch.

Each kernel does Pillow's arithmetic in Pillow's order and types, and none may fuse a product with
the sum that follows: rounded once where Pillow rounds twice, it would be another pixel. What is
drawn is read from the rows of words in the slot; no launch waits for the host or lets it wait.

Pixels are bytes in the order of Pillow, (height, width, 3), until they are normalised. A program
has a block of the bytes of one place. S is the side of a finished image, always a constant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deit_zoo.augment import record
from deit_zoo.data.transforms import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    import numpy as np

BLOCK = 512  # bytes, or numbers, of a program: two for each thread, so that neighbours read lines
COUNT_BLOCK = 2048  # pixels of one that counts values
MIN_PLACES = 256  # so that the same kernel serves most numbers of places
EXACT: dict[str, Any] = {"enable_fp_fusion": False, "num_warps": 8, "num_stages": 1}

OFFSET = tl.constexpr(record.OFFSET)
HEIGHT = tl.constexpr(record.HEIGHT)
WIDTH = tl.constexpr(record.WIDTH)
FLIP = tl.constexpr(record.FLIP)
ROW = tl.constexpr(record.ROW)
ERASE_TOP = tl.constexpr(record.ERASE_TOP)
ERASE_LEFT = tl.constexpr(record.ERASE_LEFT)
ERASE_HEIGHT = tl.constexpr(record.ERASE_HEIGHT)
ERASE_WIDTH = tl.constexpr(record.ERASE_WIDTH)
NOISE = tl.constexpr(record.NOISE)

NUMBER_OF = {name: tl.constexpr(number) for number, name in enumerate(record.OPERATIONS)}
AUTO_CONTRAST = NUMBER_OF["AutoContrast"]
EQUALIZE = NUMBER_OF["Equalize"]
INVERT = NUMBER_OF["Invert"]
POSTERIZE = NUMBER_OF["Posterize"]
SOLARIZE = NUMBER_OF["Solarize"]
SOLARIZE_ADD = NUMBER_OF["SolarizeAdd"]
COLOR = NUMBER_OF["Color"]
CONTRAST = NUMBER_OF["Contrast"]
BRIGHTNESS = NUMBER_OF["Brightness"]
SHARPNESS = NUMBER_OF["Sharpness"]
FIRST_MOVE = NUMBER_OF["Rotate"]  # from here on they move pixels

FILL_RED, FILL_GREEN, FILL_BLUE = (tl.constexpr(value) for value in record.FILL)
MEAN_RED, MEAN_GREEN, MEAN_BLUE = (tl.constexpr(value) for value in IMAGENET_MEAN)
STD_RED, STD_GREEN, STD_BLUE = (tl.constexpr(value) for value in IMAGENET_STD)


def finish(slot: Tensor, records: np.ndarray, images: Tensor) -> None:
    """Write every place of a slot, finished, into its row of images (N, 3, S, S), on their GPU.

    `records` are the slot's rows on the host, (places, words). Noise lies at multiples of 4 bytes.
    """
    batch = _Batch(slot, records, images)
    sides = records[:, [record.HEIGHT, record.WIDTH]]
    layers = records[:, record.FIRST_LAYER :: record.LAYER].T
    untouched = (layers == record.NO_OPERATION).all() and not records[:, record.FLIP].any()
    if untouched and (sides == batch.size).all():
        batch.normalize(None)
        return
    pixels = batch.resize(sides)
    for number, operations in enumerate(layers):
        if (operations != record.NO_OPERATION).any():
            pixels = batch.operate(pixels, record.FIRST_LAYER + number * record.LAYER)
    batch.normalize(pixels)


class _Batch:
    """A slot on a GPU with its launches."""

    def __init__(self, slot: Tensor, records: np.ndarray, images: Tensor) -> None:
        assert images.is_contiguous(), "rows of images are written as one piece"
        self.slot, self.images = slot, images
        self.places, words = records.shape
        self.size = images.shape[-1]
        self.num_bytes = 3 * self.size * self.size
        # The same bytes, read as other types: a kernel takes an address, not a length.
        self.words, self.numbers = slot[:8].view(torch.int64), slot[:8].view(torch.float64)
        self.noise = slot[:8].view(torch.float32)
        self.constants = {"WORDS": words, "S": self.size}

    def new(self, *shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.images.device)

    def resize(self, sides: np.ndarray) -> Tensor:
        """Crops at S x S, flipped: (places, S, S, 3)."""
        places, size = self.places, self.size
        heights, widths = sides.T
        taps = _num_taps(int(sides.max()), size)
        starts = self.new(places, dtype=torch.int64)
        first, counts = (self.new(places, 2, size, dtype=torch.int32) for _ in range(2))
        weights = self.new(places, 2, taps, size, dtype=torch.int32)
        spans = (starts, first, counts, weights, taps)
        _weights[places, 2](
            self.words,
            *spans,
            PLACES=max(MIN_PLACES, triton.next_power_of_2(places)),
            BLOCK=triton.next_power_of_2(size),
            **self.constants,
            **EXACT,
        )
        narrow = self.new(int(heights.sum()), size, 3)
        blocks = triton.cdiv(int(heights.max()) * size * 3, BLOCK)
        if blocks and widths.any():
            _columns[blocks, places](
                self.slot, self.words, *spans, narrow, BLOCK=BLOCK, **self.constants, **EXACT
            )
        pixels = self.new(places, size, size, 3)
        _rows[triton.cdiv(self.num_bytes, BLOCK), places](
            narrow, self.words, *spans, pixels, BLOCK=BLOCK, **self.constants, **EXACT
        )
        return pixels

    def operate(self, pixels: Tensor, word: int) -> Tensor:
        """A layer's operation on each image; `word` is the first of the layer's in a row."""
        counts = torch.zeros(self.places, 3, 256, dtype=torch.int32, device=pixels.device)
        tables = self.new(self.places, 3, 256)
        out = torch.empty_like(pixels)
        row = (self.words, self.numbers, word)
        blocks = triton.cdiv(self.size * self.size, COUNT_BLOCK)
        _counts[blocks, self.places](
            pixels, self.words, word, counts, BLOCK=COUNT_BLOCK, **self.constants, **EXACT
        )
        _tables[3, self.places](counts, *row, tables, **self.constants, **EXACT)
        blocks = triton.cdiv(self.num_bytes, BLOCK)
        _operate[blocks, self.places](
            pixels, *row, tables, out, BLOCK=BLOCK, **self.constants, **EXACT
        )
        return out

    def normalize(self, pixels: Tensor | None) -> None:
        """Normalised and erased, into the rows of images; None: the pixels are the crops."""
        _normalize[triton.cdiv(self.num_bytes, BLOCK), self.places](
            self.slot if pixels is None else pixels,
            self.words,
            self.noise,
            self.images,
            CROPS=pixels is None,
            BLOCK=BLOCK,
            **self.constants,
            **EXACT,
        )


def _num_taps(side: int, size: int) -> int:
    """The most pixels of a side that one of the resized side is made of."""
    return 2 * -(-2 * max(side, size) // size) + 1


# Numbers that change from batch to batch must not make a kernel of their own.
@triton.jit(do_not_specialize=["taps"])  # type: ignore[untyped-decorator]
def _weights(  # type: ignore[no-untyped-def]
    words,
    starts,
    first,
    counts,
    weights,
    taps,
    PLACES: tl.constexpr,
    WORDS: tl.constexpr,
    S: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of which pixels those of a resized side are made: of columns (axis 0) or rows (1).

    Also where the rows of a place begin among those of all.
    """
    place, axis = tl.program_id(0), tl.program_id(1)
    others = tl.arange(0, PLACES)
    heights = tl.load(words + others * WORDS + HEIGHT, mask=others < place, other=0)
    if axis == 0:
        tl.store(starts + place, tl.sum(heights, axis=0))
    side = tl.load(words + place * WORDS + WIDTH - axis).to(tl.int32)
    xs = tl.arange(0, BLOCK)
    inside = xs < S
    scale = side.to(tl.float64) / S
    stretch = tl.maximum(scale, 1.0)
    support = 2.0 * stretch
    inverse = 1.0 / stretch
    centers = (xs.to(tl.float64) + 0.5) * scale
    low = tl.maximum((centers - support + 0.5).to(tl.int32), 0)
    high = tl.minimum((centers + support + 0.5).to(tl.int32), side)
    count = tl.where(inside, tl.maximum(high - low, 0), 0)
    most = tl.max(count, axis=0)
    total = tl.zeros((BLOCK,), dtype=tl.float64)
    for tap in range(most):
        total += tl.where(tap < count, _bicubic((tap + low - centers + 0.5) * inverse), 0.0)
    total = tl.where(total == 0.0, 1.0, total)
    line = place * 2 + axis
    for tap in range(most):
        weight = _bicubic((tap + low - centers + 0.5) * inverse) / total
        rounded = tl.where(weight < 0.0, weight * 4194304.0 - 0.5, weight * 4194304.0 + 0.5)
        target = weights + (line.to(tl.int64) * taps + tap) * S + xs
        tl.store(target, rounded.to(tl.int32), mask=tap < count)
    tl.store(first + line * S + xs, low, mask=inside)
    tl.store(counts + line * S + xs, count, mask=inside)


@triton.jit
def _bicubic(x):  # type: ignore[no-untyped-def]
    x = tl.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return tl.where(x < 1.0, near, tl.where(x < 2.0, far, 0.0))


@triton.jit(do_not_specialize=["taps"])  # type: ignore[untyped-decorator]
def _columns(  # type: ignore[no-untyped-def]
    slot,
    words,
    starts,
    first,
    counts,
    weights,
    taps,
    out,
    WORDS: tl.constexpr,
    S: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A crop (height, width, 3) to (height, S, 3)."""
    place = tl.program_id(1)
    row_of_words = words + place * WORDS
    height = tl.load(row_of_words + HEIGHT).to(tl.int32)
    width = tl.load(row_of_words + WIDTH).to(tl.int32)
    positions = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = positions < height * S * 3
    y, x, channel = positions // (3 * S), positions % (3 * S) // 3, positions % 3
    line = place * 2
    low = tl.load(first + line * S + x, mask=inside, other=0)
    count = tl.load(counts + line * S + x, mask=inside, other=0)
    values = _weighted(
        slot + tl.load(row_of_words + OFFSET) + ((y * width + low) * 3 + channel),
        3,
        weights + line.to(tl.int64) * taps * S + x,
        count,
        S,
        BLOCK,
    )
    tl.store(out + tl.load(starts + place) * (3 * S) + positions, values, mask=inside)


@triton.jit(do_not_specialize=["taps"])  # type: ignore[untyped-decorator]
def _rows(  # type: ignore[no-untyped-def]
    narrow,
    words,
    starts,
    first,
    counts,
    weights,
    taps,
    out,
    WORDS: tl.constexpr,
    S: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What `_columns` left to (S, S, 3), from right to left where it is flipped."""
    place = tl.program_id(1)
    positions = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = positions < S * S * 3
    y, x, channel = positions // (3 * S), positions % (3 * S) // 3, positions % 3
    flip = tl.load(words + place * WORDS + FLIP).to(tl.int32)
    x = tl.where(flip != 0, S - 1 - x, x)
    line = place * 2 + 1
    low = tl.load(first + line * S + y, mask=inside, other=0)
    count = tl.load(counts + line * S + y, mask=inside, other=0)
    values = _weighted(
        narrow + tl.load(starts + place) * (3 * S) + ((low * S + x) * 3 + channel),
        3 * S,
        weights + line.to(tl.int64) * taps * S + y,
        count,
        S,
        BLOCK,
    )
    tl.store(out + place.to(tl.int64) * (3 * S * S) + positions, values, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _weighted(  # type: ignore[no-untyped-def]
    source, step, weights, count, S: tl.constexpr, BLOCK: tl.constexpr
):
    """Sums of weights, whose fraction has 22 bits, times pixels that lie `step` bytes apart."""
    total = tl.full((BLOCK,), 1 << 21, dtype=tl.int32)
    for tap in range(tl.max(count, axis=0)):
        taken = tap < count
        weight = tl.load(weights + tap * S, mask=taken, other=0)
        total += weight * tl.load(source + tap * step, mask=taken, other=0).to(tl.int32)
    return tl.minimum(tl.maximum(total >> 22, 0), 255).to(tl.uint8)


@triton.jit(do_not_specialize=["word"])  # type: ignore[untyped-decorator]
def _counts(  # type: ignore[no-untyped-def]
    pixels,
    words,
    word,
    counts,
    WORDS: tl.constexpr,
    S: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """How often each value is in each channel; of Contrast the sum of lightness, in their place."""
    place = tl.program_id(1)
    operation = tl.load(words + place * WORDS + word).to(tl.int32)
    positions = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = positions < S * S
    source = pixels + place.to(tl.int64) * (3 * S * S) + positions * 3
    target = counts + place * (3 * 256)
    if (operation == AUTO_CONTRAST) | (operation == EQUALIZE):
        values = tl.arange(0, 256)
        for channel in tl.static_range(3):
            found = tl.load(source + channel, mask=inside, other=0).to(tl.int32)
            counted = tl.histogram(found, 256, mask=inside)
            tl.atomic_add(target + channel * 256 + values, counted, mask=counted > 0, sem="relaxed")
    elif operation == CONTRAST:
        tl.atomic_add(target, tl.sum(_lightness(source, inside), axis=0), sem="relaxed")


@triton.jit
def _lightness(source, inside):  # type: ignore[no-untyped-def]
    """Pillow's L of the pixels whose red is at `source`."""
    red = tl.load(source, mask=inside, other=0).to(tl.int32)
    green = tl.load(source + 1, mask=inside, other=0).to(tl.int32)
    blue = tl.load(source + 2, mask=inside, other=0).to(tl.int32)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


@triton.jit(do_not_specialize=["word"])  # type: ignore[untyped-decorator]
def _tables(  # type: ignore[no-untyped-def]
    counts,
    words,
    numbers,
    word,
    tables,
    WORDS: tl.constexpr,
    S: tl.constexpr,
):
    """What an operation by value alone makes of each value of a channel."""
    channel, place = tl.program_id(0), tl.program_id(1)
    line = place * 3 + channel
    operation = tl.load(words + place * WORDS + word).to(tl.int32)
    argument = tl.load(numbers + place * WORDS + word + 1)
    values = tl.arange(0, 256)
    out = values
    if (operation == AUTO_CONTRAST) | (operation == EQUALIZE):
        count = tl.load(counts + line * 256 + values)
        lowest = tl.min(tl.where(count > 0, values, 255), axis=0)
        highest = tl.max(tl.where(count > 0, values, 0), axis=0)
        if operation == AUTO_CONTRAST:
            if lowest < highest:
                scale = 255.0 / (highest - lowest).to(tl.float64)
                out = (values.to(tl.float64) * scale - lowest.to(tl.float64) * scale).to(tl.int32)
        else:
            of_highest = tl.sum(tl.where(values == highest, count, 0), axis=0)
            step = (S * S - of_highest) // 255
            if step > 0:
                out = (step // 2 + tl.cumsum(count, axis=0) - count) // step
    elif operation == INVERT:
        out = 255 - values
    elif operation == POSTERIZE:
        bits = tl.minimum(tl.maximum(argument.to(tl.int32), 0), 8)
        out = (values >> (8 - bits)) << (8 - bits)
    elif operation == SOLARIZE:
        out = tl.where(values < argument, values, 255 - values)
    elif operation == SOLARIZE_ADD:
        out = tl.where(values < 128, values + argument.to(tl.int32), values)
    elif operation == BRIGHTNESS:
        out = _blend(tl.zeros_like(values), values, argument)
    elif operation == CONTRAST:
        lightness = tl.load(counts + place * (3 * 256)).to(tl.float64)
        mean = (lightness / (S * S) + 0.5).to(tl.int32)
        out = _blend(tl.zeros_like(values) + mean, values, argument)
    out = tl.minimum(tl.maximum(out, 0), 255)
    tl.store(tables + line * 256 + values, out.to(tl.uint8))


@triton.jit
def _blend(one, other, share):  # type: ignore[no-untyped-def]
    """From one (0) to another (1) and beyond, in float32, cut to what a byte holds."""
    mixed = one.to(tl.float32) + share.to(tl.float32) * (other - one).to(tl.float32)
    return tl.minimum(tl.maximum(mixed, 0.0), 255.0).to(tl.int32)


@triton.jit(do_not_specialize=["word"])  # type: ignore[untyped-decorator]
def _operate(  # type: ignore[no-untyped-def]
    pixels,
    words,
    numbers,
    word,
    tables,
    out,
    WORDS: tl.constexpr,
    S: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One operation for each image."""
    place = tl.program_id(1)
    operation = tl.load(words + place * WORDS + word).to(tl.int32)
    arguments = numbers + place * WORDS + word + 1
    positions = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = positions < S * S * 3
    y, x, channel = positions // (3 * S), positions % (3 * S) // 3, positions % 3
    image = pixels + place.to(tl.int64) * (3 * S * S)
    value = tl.load(image + positions, mask=inside, other=0).to(tl.int32)
    if operation >= FIRST_MOVE:
        value = _moved(image + channel, arguments, y, x, channel, inside, S)
    elif operation == COLOR:
        grey = _lightness(image + positions - channel, inside)
        value = _blend(grey, value, tl.load(arguments))
    elif operation == SHARPNESS:
        inner = (x > 0) & (x < S - 1) & (y > 0) & (y < S - 1) & inside
        smooth = 0.5 + _smooth_row(image + positions + 3 * S, 1.0 / 13.0, inner)
        smooth += _smooth_row(image + positions, 5.0 / 13.0, inner)
        smooth += _smooth_row(image + positions - 3 * S, 1.0 / 13.0, inner)
        smooth = tl.minimum(tl.maximum(smooth, 0.0), 255.0).to(tl.int32)
        value = _blend(tl.where(inner, smooth, value), value, tl.load(arguments))
    elif operation >= 0:
        table = tables + (place * 3 + channel) * 256
        value = tl.load(table + value, mask=inside, other=0).to(tl.int32)
    target = out + place.to(tl.int64) * (3 * S * S) + positions
    tl.store(target, value.to(tl.uint8), mask=inside)


@triton.jit
def _smooth_row(source, middle, inner):  # type: ignore[no-untyped-def]
    left = tl.load(source - 3, mask=inner, other=0).to(tl.float32)
    center = tl.load(source, mask=inner, other=0).to(tl.float32)
    right = tl.load(source + 3, mask=inner, other=0).to(tl.float32)
    return left * (1.0 / 13.0) + center * middle + right * (1.0 / 13.0)


@triton.jit  # type: ignore[untyped-decorator]
def _moved(  # type: ignore[no-untyped-def]
    image, arguments, y, x, channel, inside, S: tl.constexpr
):
    """Where an affine map takes each pixel from, bicubically."""
    x, y = x.to(tl.float64) + 0.5, y.to(tl.float64) + 0.5
    a, b, c = tl.load(arguments), tl.load(arguments + 1), tl.load(arguments + 2)
    d, e, f = tl.load(arguments + 3), tl.load(arguments + 4), tl.load(arguments + 5)
    from_x = a * x + b * y + c
    from_y = d * x + e * y + f
    shown = (from_x >= 0.0) & (from_x < S) & (from_y >= 0.0) & (from_y < S) & inside
    from_x = tl.where(shown, from_x, 0.0) - 0.5
    from_y = tl.where(shown, from_y, 0.0) - 0.5
    left, top = tl.floor(from_x), tl.floor(from_y)
    dx, dy = from_x - left, from_y - top
    column, row = left.to(tl.int32) - 1, top.to(tl.int32) - 1
    value = _cubic(
        _moved_row(image, row, column, dx, shown, S),
        _moved_row(image, row + 1, column, dx, shown, S),
        _moved_row(image, row + 2, column, dx, shown, S),
        _moved_row(image, row + 3, column, dx, shown, S),
        dy,
    )
    fill = tl.where(channel == 0, FILL_RED, tl.where(channel == 1, FILL_GREEN, FILL_BLUE))
    return tl.where(shown, tl.minimum(tl.maximum(value, 0.0), 255.0).to(tl.int32), fill)


@triton.jit  # type: ignore[untyped-decorator]
def _moved_row(  # type: ignore[no-untyped-def]
    image, row, column, dx, shown, S: tl.constexpr
):
    line = image + tl.minimum(tl.maximum(row, 0), S - 1) * (3 * S)
    return _cubic(
        _tap(line, column, shown, S),
        _tap(line, column + 1, shown, S),
        _tap(line, column + 2, shown, S),
        _tap(line, column + 3, shown, S),
        dx,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _tap(line, column, shown, S: tl.constexpr):  # type: ignore[no-untyped-def]
    position = tl.minimum(tl.maximum(column, 0), S - 1) * 3
    return tl.load(line + position, mask=shown, other=0).to(tl.int32)


@triton.jit
def _cubic(a, b, c, d, t):  # type: ignore[no-untyped-def]
    """Pillow's curve through four values; differences of integers are integers."""
    return b + t * ((c - a) + t * ((2 * (a - b) + c - d) + t * (b - a - c + d)))


@triton.jit  # type: ignore[untyped-decorator]
def _normalize(  # type: ignore[no-untyped-def]
    pixels,
    words,
    noise,
    images,
    WORDS: tl.constexpr,
    S: tl.constexpr,
    CROPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Pixels (S, S, 3) to (3, S, S) with zero mean and unit spread, or noise in the erased box."""
    place = tl.program_id(1)
    row_of_words = words + place * WORDS
    if CROPS:
        source = pixels + tl.load(row_of_words + OFFSET)
    else:
        source = pixels + place.to(tl.int64) * (3 * S * S)
    positions = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = positions < S * S * 3
    channel, pixel = positions // (S * S), positions % (S * S)
    value = tl.load(source + pixel * 3 + channel, mask=inside, other=0).to(tl.float32)
    mean = tl.where(channel == 0, MEAN_RED, tl.where(channel == 1, MEAN_GREEN, MEAN_BLUE))
    std = tl.where(channel == 0, STD_RED, tl.where(channel == 1, STD_GREEN, STD_BLUE))
    value = tl.div_rn(tl.div_rn(value, tl.full((BLOCK,), 255.0, tl.float32)) - mean, std)
    y = pixel // S - tl.load(row_of_words + ERASE_TOP).to(tl.int32)
    x = pixel % S - tl.load(row_of_words + ERASE_LEFT).to(tl.int32)
    height = tl.load(row_of_words + ERASE_HEIGHT).to(tl.int32)
    width = tl.load(row_of_words + ERASE_WIDTH).to(tl.int32)
    erased = (y >= 0) & (y < height) & (x >= 0) & (x < width) & inside
    first = tl.load(row_of_words + NOISE) // 4
    drawn = tl.load(noise + first + ((channel * height + y) * width + x), mask=erased, other=0.0)
    target = images + tl.load(row_of_words + ROW) * (3 * S * S) + positions
    tl.store(target, tl.where(erased, drawn, value), mask=inside)
