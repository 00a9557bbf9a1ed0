"""Augmenting on a GPU, by Triton: the pixels that Pillow makes, in some five launches a batch.

Each kernel does Pillow's arithmetic in Pillow's order and types, and none may fuse a product with
the sum that follows: rounded once where Pillow rounds twice, it would be another pixel. What is
drawn is read from the rows of words in the slot; no launch waits for the host or lets it wait.

A crop is bytes in the order of Pillow, (height, width, 3). From then on a pixel is an int32, red in
its lowest byte, so that one load brings three channels. A program has a tile of one place, ROWS x
COLUMNS; its loads go to the nearest pixel there is, only its stores are masked. S is the side of a
finished image, always a constant.

Launching costs more than some of the kernels: hence few of them, with few arguments. An operation
that has to know its whole image finds it counted by the kernel that wrote the pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deit_zoo.augment import record
from deit_zoo.manifest import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    import numpy as np

EXACT: dict[str, Any] = {"enable_fp_fusion": False, "num_stages": 1}
# Tiles, and warps for them: a thread has several rows, which share the weight of a column.
COLUMNS_TILE: dict[str, Any] = {"ROWS": 16, "COLUMNS": 32, "num_warps": 4}
ROWS_TILE: dict[str, Any] = {"ROWS": 16, "COLUMNS": 32, "num_warps": 4}
# Square rather than long, so that a turned one touches few lines of memory.
OPERATE_TILE: dict[str, Any] = {"ROWS": 32, "COLUMNS": 16, "num_warps": 8}
NORMALIZE_TILE: dict[str, Any] = {"ROWS": 32, "COLUMNS": 32, "num_warps": 4}
MIN_PLACES = 256  # so that the same kernel serves most numbers of places

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
FIRST_LAYER = tl.constexpr(record.FIRST_LAYER)
LAYER_WORDS = tl.constexpr(record.LAYER)

NO_OPERATION = tl.constexpr(record.NO_OPERATION)
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
HEAD = tl.constexpr(2)  # lines of S before the weights in the spans of an axis


def finish(slot: Tensor, records: np.ndarray, images: Tensor) -> None:
    """Write every place of a slot, finished, into its row of images (N, 3, S, S), on their GPU.

    `records` are the slot's rows on the host, (places, words). Noise lies at multiples of 4 bytes.
    """
    assert images.is_contiguous(), "rows of images are written as one piece"
    size = images.shape[-1]
    sides = records[:, record.HEIGHT : record.WIDTH + 1]
    operations = records[:, record.FIRST_LAYER :: record.LAYER]
    operates = (operations != record.NO_OPERATION).any(axis=0).tolist()
    if (sides == size).all() and not any(operates) and not records[:, record.FLIP].any():
        constants = {"WORDS": records.shape[1], "S": size, **NORMALIZE_TILE, **EXACT}
        _normalize[_grid(size, len(records), NORMALIZE_TILE)](slot, images, **constants)
        return
    _resize_and_operate(slot, sides, operates, images, records.shape[1])


def _resize_and_operate(
    slot: Tensor, sides: np.ndarray, operates: list[bool], images: Tensor, words: int
) -> None:
    """`sides` are heights and widths of crops; `operates`: whether a layer changes any image."""
    places, size, device = len(sides), images.shape[-1], images.device
    constants = {"WORDS": words, "S": size, **EXACT}
    most_rows, rows = int(sides[:, 0].max()), int(sides[:, 0].sum())
    # The most pixels of a side that one of the resized side is made of.
    taps = 2 * -(-2 * max(int(sides.max()), size) // size) + 1
    spans = torch.empty(places, 2, HEAD.value + taps, size, dtype=torch.int32, device=device)
    counts = torch.empty(len(operates), places, 3, 256, dtype=torch.int32, device=device)
    narrow = torch.empty(rows, size, dtype=torch.int32, device=device)
    # An operation reads one half and writes the other.
    pixels = torch.empty(2, places, size, size, dtype=torch.int32, device=device)
    _weights[places, 2](
        slot,
        spans,
        taps,
        counts,
        PLACES=max(MIN_PLACES, triton.next_power_of_2(places)),
        BLOCK=triton.next_power_of_2(size),
        num_warps=8,
        **constants,
    )
    if rows and sides[:, 1].any():
        _columns[_grid(size, places, COLUMNS_TILE, most_rows)](
            slot, spans, taps, narrow, **COLUMNS_TILE, **constants
        )
    _rows[_grid(size, places, ROWS_TILE)](
        slot, spans, taps, narrow, counts, pixels, **ROWS_TILE, **constants
    )
    grid = _grid(size, places, OPERATE_TILE)
    *before, last = range(max(len(operates), 1))
    for layer in before:
        if operates[layer]:
            _operate[grid](
                slot, counts, pixels, images, LAYER=layer, LAST=False, **OPERATE_TILE, **constants
            )
    _operate[grid](slot, counts, pixels, images, LAYER=last, LAST=True, **OPERATE_TILE, **constants)


def _grid(
    size: int, places: int, tile: dict[str, Any], rows: int | None = None
) -> tuple[int, int, int]:
    """Programs for so many rows (as many as columns, if not said) of `size` pixels, of places."""
    rows = size if rows is None else rows
    return triton.cdiv(size, tile["COLUMNS"]), triton.cdiv(rows, tile["ROWS"]), places


@triton.jit  # type: ignore[untyped-decorator]
def _row_of_words(slot, place, WORDS: tl.constexpr):  # type: ignore[no-untyped-def]
    return slot.to(tl.pointer_type(tl.int64), bitcast=True) + place * WORDS


@triton.jit
def _argument(row, word):  # type: ignore[no-untyped-def]
    return tl.load(row + word).to(tl.float64, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def _spans_of(spans, place, axis, taps, S: tl.constexpr):  # type: ignore[no-untyped-def]
    """Lines of S numbers for the columns (axis 0) or rows (1) of a place.

    The first holds the number of its taps and, of columns, where the place's rows begin among those
    of all; then come the first pixel of each, and the weights of each tap.
    """
    return spans + (place * 2 + axis).to(tl.int64) * ((HEAD + taps) * S)


# Numbers that change from batch to batch must not make a kernel of their own.
@triton.jit(do_not_specialize=["taps"])  # type: ignore[untyped-decorator]
def _weights(  # type: ignore[no-untyped-def]
    slot,
    spans,
    taps,
    counts,
    PLACES: tl.constexpr,
    BLOCK: tl.constexpr,
    WORDS: tl.constexpr,
    S: tl.constexpr,
):
    """Of which pixels those of a resized side are made: of columns (axis 0) or rows (1).

    Also nothing is counted yet.
    """
    place, axis = tl.program_id(0), tl.program_id(1)
    span = _spans_of(spans, place, axis, taps, S)
    if axis == 0:
        others = tl.arange(0, PLACES)
        heights = _row_of_words(slot, others, WORDS) + HEIGHT
        before = tl.sum(tl.load(heights, mask=others < place, other=0), axis=0)
        tl.store(span + 1, before.to(tl.int32))
        values = tl.arange(0, 256)
        for layer in tl.static_range((WORDS - FIRST_LAYER) // LAYER_WORDS):
            target = _counts_of(counts, tl.num_programs(0), place, layer)
            for channel in tl.static_range(3):
                tl.store(target + channel * 256 + values, tl.zeros((256,), tl.int32))
    side = tl.load(_row_of_words(slot, place, WORDS) + WIDTH - axis).to(tl.int32)
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
    for tap in range(most):
        weight = _bicubic((tap + low - centers + 0.5) * inverse) / total
        rounded = tl.where(weight < 0.0, weight * 4194304.0 - 0.5, weight * 4194304.0 + 0.5)
        rounded = tl.where(tap < count, rounded.to(tl.int32), 0)
        tl.store(span + (HEAD + tap) * S + xs, rounded, mask=inside)
    tl.store(span, most)
    tl.store(span + S + xs, low, mask=inside)


@triton.jit
def _bicubic(x):  # type: ignore[no-untyped-def]
    x = tl.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return tl.where(x < 1.0, near, tl.where(x < 2.0, far, 0.0))


@triton.jit(do_not_specialize=["taps"])  # type: ignore[untyped-decorator]
def _columns(  # type: ignore[no-untyped-def]
    slot,
    spans,
    taps,
    narrow,
    WORDS: tl.constexpr,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A crop to (height, S) pixels, from right to left where it is flipped."""
    place = tl.program_id(2)
    row = _row_of_words(slot, place, WORDS)
    height = tl.load(row + HEIGHT).to(tl.int32)
    ys = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    if tl.program_id(1) * ROWS < height:
        width = tl.load(row + WIDTH).to(tl.int32)
        columns = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
        span = _spans_of(spans, place, 0, taps, S)
        span_of_x = span + _nearest(columns, S, COLUMNS)
        low = tl.load(span_of_x + S)
        lines = slot + tl.load(row + OFFSET) + tl.minimum(ys, height - 1) * (width * 3)
        red = tl.full((ROWS, COLUMNS), 1 << 21, dtype=tl.int32)
        green = red
        blue = red
        # Said to lie side by side, which is nearly so: then a warp has neighbours of a row, and a
        # thread several rows, which share a weight. None are taken as one, for want of alignment.
        for tap in range(tl.load(span)):
            weight = tl.load(span_of_x + (HEAD + tap) * S)
            offsets = tl.minimum(low + tap, width - 1) * 3
            source = lines + tl.max_contiguous(offsets, [1, 2])
            red += weight * tl.load(source).to(tl.int32)
            green += weight * tl.load(source + 1).to(tl.int32)
            blue += weight * tl.load(source + 2).to(tl.int32)
        xs = tl.where(tl.load(row + FLIP) != 0, S - 1 - columns, columns)
        target = narrow + (tl.load(span + 1) + ys).to(tl.int64) * S + tl.max_contiguous(xs, [1, 2])
        pixel = _pixel(_rounded(red), _rounded(green), _rounded(blue))
        tl.store(target, pixel, mask=(ys < height) & (columns < S))


@triton.jit(do_not_specialize=["taps"])  # type: ignore[untyped-decorator]
def _rows(  # type: ignore[no-untyped-def]
    slot,
    spans,
    taps,
    narrow,
    counts,
    pixels,
    WORDS: tl.constexpr,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """What `_columns` left to (S, S)."""
    place = tl.program_id(2)
    row = _row_of_words(slot, place, WORDS)
    height = tl.load(row + HEIGHT).to(tl.int32)
    xs = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    ys = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    span = _spans_of(spans, place, 1, taps, S)
    span_of_y = span + _nearest(ys, S, ROWS)
    low = tl.load(span_of_y + S)
    begin = tl.load(_spans_of(spans, place, 0, taps, S) + 1)
    sources = narrow + begin.to(tl.int64) * S + _nearest(xs, S, COLUMNS)
    red = tl.full((ROWS, COLUMNS), 1 << 21, dtype=tl.int32)
    green = red
    blue = red
    for tap in range(tl.load(span)):
        weight = tl.load(span_of_y + (HEAD + tap) * S)
        one, two, three = _channels(tl.load(sources + tl.minimum(low + tap, height - 1) * S))
        red += weight * one
        green += weight * two
        blue += weight * three
    red, green, blue = _rounded(red), _rounded(green), _rounded(blue)
    inside = (ys < S) & (xs < S)
    target = pixels + place.to(tl.int64) * (S * S) + ys * S + xs
    tl.store(target, _pixel(red, green, blue), mask=inside)
    _count(red, green, blue, inside, row, counts, 0, WORDS)


@triton.jit  # type: ignore[untyped-decorator]
def _nearest(xs, S: tl.constexpr, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Those within S where tiles stick out; else neighbours are known to be loaded as one piece."""
    if S % TILE != 0:
        xs = tl.minimum(xs, S - 1)
    return xs


@triton.jit
def _rounded(total):  # type: ignore[no-untyped-def]
    """A sum of bytes by weights, whose fraction has 22 bits, as a byte again."""
    return tl.minimum(tl.maximum(total >> 22, 0), 255)


@triton.jit
def _pixel(red, green, blue):  # type: ignore[no-untyped-def]
    return red | (green << 8) | (blue << 16)


@triton.jit
def _channels(pixel):  # type: ignore[no-untyped-def]
    return pixel & 255, (pixel >> 8) & 255, pixel >> 16


@triton.jit
def _counts_of(counts, places, place, layer):  # type: ignore[no-untyped-def]
    return counts + (layer * places + place) * (3 * 256)


@triton.jit  # type: ignore[untyped-decorator]
def _count(  # type: ignore[no-untyped-def]
    red, green, blue, inside, row, counts, LAYER: tl.constexpr, WORDS: tl.constexpr
):
    """Count a tile for its next operation, from this layer on, if it has to know its whole image.

    How often each value is in each channel; for Contrast the sum of lightness, in their place.
    """
    layers: tl.constexpr = (WORDS - FIRST_LAYER) // LAYER_WORDS
    operation = NO_OPERATION
    layer = 0
    for later in tl.static_range(layers - 1, LAYER - 1, -1):
        code = tl.load(row + FIRST_LAYER + later * LAYER_WORDS).to(tl.int32)
        layer = tl.where(code != NO_OPERATION, later, layer)
        operation = tl.where(code != NO_OPERATION, code, operation)
    if layers > LAYER:
        target = _counts_of(counts, tl.num_programs(2), tl.program_id(2), layer)
        if (operation == AUTO_CONTRAST) | (operation == EQUALIZE):
            _count_values(target, red, inside)
            _count_values(target + 256, green, inside)
            _count_values(target + 512, blue, inside)
        elif operation == CONTRAST:
            lightness = tl.where(inside, _lightness(red, green, blue), 0)
            tl.atomic_add(target, tl.sum(tl.ravel(lightness), axis=0), sem="relaxed")


@triton.jit
def _count_values(target, values, inside):  # type: ignore[no-untyped-def]
    counted = tl.histogram(tl.ravel(values), 256, mask=tl.ravel(inside))
    tl.atomic_add(target + tl.arange(0, 256), counted, mask=counted > 0, sem="relaxed")


@triton.jit
def _lightness(red, green, blue):  # type: ignore[no-untyped-def]
    """Pillow's L."""
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


@triton.jit  # type: ignore[untyped-decorator]
def _operate(  # type: ignore[no-untyped-def]
    slot,
    counts,
    pixels,
    images,
    LAYER: tl.constexpr,
    LAST: tl.constexpr,
    WORDS: tl.constexpr,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A layer's operation on each image that has one; the last layer normalises all of them."""
    place, places = tl.program_id(2), tl.num_programs(2)
    row = _row_of_words(slot, place, WORDS)
    word: tl.constexpr = FIRST_LAYER + LAYER * LAYER_WORDS
    operation = NO_OPERATION
    if word < WORDS:
        operation = tl.load(row + word).to(tl.int32)
    half = 0  # where the operations before left the image
    for before in tl.static_range(LAYER):
        code = tl.load(row + FIRST_LAYER + before * LAYER_WORDS)
        half = tl.where(code != NO_OPERATION, 1 - half, half)
    if LAST | (operation != NO_OPERATION):
        positions = tl.arange(0, ROWS * COLUMNS)
        x = tl.program_id(0) * COLUMNS + positions % COLUMNS
        y = tl.program_id(1) * ROWS + positions // COLUMNS
        inside = (x < S) & (y < S)
        image = pixels + (half * places + place).to(tl.int64) * (S * S)
        source = image + _nearest(y, S, ROWS) * S + _nearest(x, S, COLUMNS)
        red, green, blue = _channels(tl.load(source))
        if operation >= FIRST_MOVE:
            red, green, blue = _moved(image, row + word + 1, y, x, S)
        elif operation == COLOR:
            share = _argument(row, word + 1)
            grey = _lightness(red, green, blue)
            red, green, blue = (
                _blend(grey, red, share),
                _blend(grey, green, share),
                _blend(grey, blue, share),
            )
        elif operation == SHARPNESS:
            inner = (x > 0) & (x < S - 1) & (y > 0) & (y < S - 1)
            share = _argument(row, word + 1)
            red, green, blue = _sharpened(source, red, green, blue, inner, share, S)
        elif operation >= 0:
            argument = _argument(row, word + 1)
            of_image = _counts_of(counts, places, place, LAYER)
            red, green, blue = (
                tl.gather(_table(operation, argument, of_image, 0, S), red, 0),
                tl.gather(_table(operation, argument, of_image, 1, S), green, 0),
                tl.gather(_table(operation, argument, of_image, 2, S), blue, 0),
            )
        if LAST:
            _store_normalized(red, green, blue, y, x, inside, slot, row, images, S)
        else:
            target = pixels + ((1 - half) * places + place).to(tl.int64) * (S * S) + y * S + x
            tl.store(target, _pixel(red, green, blue), mask=inside)
            _count(red, green, blue, inside, row, counts, LAYER + 1, WORDS)


@triton.jit  # type: ignore[untyped-decorator]
def _table(operation, argument, counts, channel, S: tl.constexpr):  # type: ignore[no-untyped-def]
    """What an operation by value alone makes of each value of a channel."""
    values = tl.arange(0, 256)
    out = values
    if (operation == AUTO_CONTRAST) | (operation == EQUALIZE):
        count = tl.load(counts + channel * 256 + values)
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
        lightness = tl.load(counts).to(tl.float64)
        mean = (lightness / (S * S) + 0.5).to(tl.int32)
        out = _blend(tl.zeros_like(values) + mean, values, argument)
    return tl.minimum(tl.maximum(out, 0), 255)


@triton.jit
def _blend(one, other, share):  # type: ignore[no-untyped-def]
    """From one (0) to another (1) and beyond, in float32, cut to what a byte holds."""
    return _cut(one.to(tl.float32) + share.to(tl.float32) * (other - one).to(tl.float32))


@triton.jit
def _cut(value):  # type: ignore[no-untyped-def]
    return tl.minimum(tl.maximum(value, 0.0), 255.0).to(tl.int32)


@triton.jit  # type: ignore[untyped-decorator]
def _sharpened(  # type: ignore[no-untyped-def]
    source, red, green, blue, inner, share, S: tl.constexpr
):
    """Away from what is smooth; the border is left as it is."""
    red_below, green_below, blue_below = _smooth_row(source + S, 1.0 / 13.0, inner)
    red_here, green_here, blue_here = _smooth_row(source, 5.0 / 13.0, inner)
    red_above, green_above, blue_above = _smooth_row(source - S, 1.0 / 13.0, inner)
    smooth_red = _cut(0.5 + red_below + red_here + red_above)
    smooth_green = _cut(0.5 + green_below + green_here + green_above)
    smooth_blue = _cut(0.5 + blue_below + blue_here + blue_above)
    return (
        _blend(tl.where(inner, smooth_red, red), red, share),
        _blend(tl.where(inner, smooth_green, green), green, share),
        _blend(tl.where(inner, smooth_blue, blue), blue, share),
    )


@triton.jit
def _smooth_row(source, middle, inner):  # type: ignore[no-untyped-def]
    red_left, green_left, blue_left = _channels(tl.load(source - 1, mask=inner, other=0))
    red, green, blue = _channels(tl.load(source, mask=inner, other=0))
    red_right, green_right, blue_right = _channels(tl.load(source + 1, mask=inner, other=0))
    return (
        _smooth(red_left, red, red_right, middle),
        _smooth(green_left, green, green_right, middle),
        _smooth(blue_left, blue, blue_right, middle),
    )


@triton.jit
def _smooth(left, center, right, middle):  # type: ignore[no-untyped-def]
    left, center, right = left.to(tl.float32), center.to(tl.float32), right.to(tl.float32)
    return left * (1.0 / 13.0) + center * middle + right * (1.0 / 13.0)


@triton.jit  # type: ignore[untyped-decorator]
def _moved(image, arguments, y, x, S: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where an affine map takes each pixel from, bicubically."""
    x, y = x.to(tl.float64) + 0.5, y.to(tl.float64) + 0.5
    a, b, c = _argument(arguments, 0), _argument(arguments, 1), _argument(arguments, 2)
    d, e, f = _argument(arguments, 3), _argument(arguments, 4), _argument(arguments, 5)
    from_x = a * x + b * y + c
    from_y = d * x + e * y + f
    shown = (from_x >= 0.0) & (from_x < S) & (from_y >= 0.0) & (from_y < S)
    from_x = tl.where(shown, from_x, 0.0) - 0.5
    from_y = tl.where(shown, from_y, 0.0) - 0.5
    left, top = tl.floor(from_x), tl.floor(from_y)
    dx, dy = from_x - left, from_y - top
    column, row = left.to(tl.int32) - 1, top.to(tl.int32) - 1
    red_1, green_1, blue_1 = _moved_row(image, row, column, dx, S)
    red_2, green_2, blue_2 = _moved_row(image, row + 1, column, dx, S)
    red_3, green_3, blue_3 = _moved_row(image, row + 2, column, dx, S)
    red_4, green_4, blue_4 = _moved_row(image, row + 3, column, dx, S)
    return (
        tl.where(shown, _cut(_cubic(red_1, red_2, red_3, red_4, dy)), FILL_RED),
        tl.where(shown, _cut(_cubic(green_1, green_2, green_3, green_4, dy)), FILL_GREEN),
        tl.where(shown, _cut(_cubic(blue_1, blue_2, blue_3, blue_4, dy)), FILL_BLUE),
    )


@triton.jit  # type: ignore[untyped-decorator]
def _moved_row(image, row, column, dx, S: tl.constexpr):  # type: ignore[no-untyped-def]
    line = image + tl.minimum(tl.maximum(row, 0), S - 1) * S
    red_1, green_1, blue_1 = _tap(line, column, S)
    red_2, green_2, blue_2 = _tap(line, column + 1, S)
    red_3, green_3, blue_3 = _tap(line, column + 2, S)
    red_4, green_4, blue_4 = _tap(line, column + 3, S)
    return (
        _cubic(red_1, red_2, red_3, red_4, dx),
        _cubic(green_1, green_2, green_3, green_4, dx),
        _cubic(blue_1, blue_2, blue_3, blue_4, dx),
    )


@triton.jit  # type: ignore[untyped-decorator]
def _tap(line, column, S: tl.constexpr):  # type: ignore[no-untyped-def]
    return _channels(tl.load(line + tl.minimum(tl.maximum(column, 0), S - 1)))


@triton.jit
def _cubic(a, b, c, d, t):  # type: ignore[no-untyped-def]
    """Pillow's curve through four values; differences of integers are integers."""
    return b + t * ((c - a) + t * ((2 * (a - b) + c - d) + t * (b - a - c + d)))


@triton.jit  # type: ignore[untyped-decorator]
def _normalize(  # type: ignore[no-untyped-def]
    slot, images, WORDS: tl.constexpr, S: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Crops that are finished but for this."""
    row = _row_of_words(slot, tl.program_id(2), WORDS)
    x = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    y = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None]
    inside = (x < S) & (y < S)
    source = slot + tl.load(row + OFFSET) + (y * S + x) * 3
    red = tl.load(source, mask=inside, other=0)
    green = tl.load(source + 1, mask=inside, other=0)
    blue = tl.load(source + 2, mask=inside, other=0)
    _store_normalized(red, green, blue, y, x, inside, slot, row, images, S)


@triton.jit  # type: ignore[untyped-decorator]
def _store_normalized(  # type: ignore[no-untyped-def]
    red, green, blue, y, x, inside, slot, row, images, S: tl.constexpr
):
    """A tile of an image with zero mean and unit spread, or noise in the erased box."""
    target = images + tl.load(row + ROW) * (3 * S * S) + (y * S + x)
    y -= tl.load(row + ERASE_TOP).to(tl.int32)
    x -= tl.load(row + ERASE_LEFT).to(tl.int32)
    height = tl.load(row + ERASE_HEIGHT).to(tl.int32)
    width = tl.load(row + ERASE_WIDTH).to(tl.int32)
    erased = (y >= 0) & (y < height) & (x >= 0) & (x < width) & inside
    noise = slot.to(tl.pointer_type(tl.float32), bitcast=True) + tl.load(row + NOISE) // 4
    noise += y * width + x
    plane = height * width
    red = _normalized(red, MEAN_RED, STD_RED)
    tl.store(target, tl.where(erased, tl.load(noise, mask=erased, other=0.0), red), mask=inside)
    green = _normalized(green, MEAN_GREEN, STD_GREEN)
    drawn = tl.load(noise + plane, mask=erased, other=0.0)
    tl.store(target + S * S, tl.where(erased, drawn, green), mask=inside)
    blue = _normalized(blue, MEAN_BLUE, STD_BLUE)
    drawn = tl.load(noise + 2 * plane, mask=erased, other=0.0)
    tl.store(target + 2 * S * S, tl.where(erased, drawn, blue), mask=inside)


@triton.jit
def _normalized(value, mean, std):  # type: ignore[no-untyped-def]
    share = tl.div_rn(value.to(tl.float32), tl.full(value.shape, 255.0, tl.float32))
    return tl.div_rn(share - mean, tl.full(value.shape, std, tl.float32))
