"""Pillow's resizing and RandAugment's operations on many images, in torch operations.

Equal to Pillow in every bit: what rounds is done in the type and in the order of its C code, or of
the Python above it. Images are uint8; a batch is (N, 3, H, W), and each image of it has arguments
of its own, float64 (N, 6), as `record` describes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deit_zoo.augment.record import FILL, NO_OPERATION, OPERATIONS

FRACTION_BITS = 22  # of a weight in resizing
HALF = 1 << (FRACTION_BITS - 1)
LUMINANCE = (19595, 38470, 7471)  # of 65536: what red, green and blue add to grey


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """One image (H, W, 3) as (3, *size), bicubically, columns first: `data.transforms.resize`."""
    height, width, _ = image.shape
    rows_out, columns_out = size
    if (height, width) == size:
        return image.permute(2, 0, 1)
    if 0 in (height, width):  # a random crop of a line of pixels may be
        return torch.zeros(3, *size, dtype=torch.uint8, device=image.device)
    columns = _resampled(image.transpose(0, 1).reshape(width, -1), columns_out)
    rows = columns.view(columns_out, height, 3).transpose(0, 1).reshape(height, -1)
    return _resampled(rows, rows_out).view(rows_out, columns_out, 3).permute(2, 0, 1)


def augmented(images: Tensor, operations: Sequence[int], arguments: Tensor) -> Tensor:
    """A batch after one layer: each image by its own operation, a number of OPERATIONS."""
    result = images.clone()
    for number in sorted(set(operations) - {NO_OPERATION}):
        places = [place for place, other in enumerate(operations) if other == number]
        chosen = torch.tensor(places, device=images.device)
        result[chosen] = _FUNCTIONS[OPERATIONS[number]](images[chosen], arguments[chosen])
    return result


def _resampled(lines: Tensor, size: int) -> Tensor:
    """Lines (L, X) as (size, X), weighted in integers (Pillow's Resample.c)."""
    if len(lines) == size:
        return lines
    first, weights = _weights(len(lines), size)
    total = torch.full((size, lines.shape[1]), HALF, dtype=torch.int32, device=lines.device)
    for tap, weight in enumerate(weights):
        line = (first + tap).clamp(max=len(lines) - 1).to(lines.device)
        total += lines[line].to(torch.int32) * weight[:, None].to(lines.device)
    return (total >> FRACTION_BITS).clamp_(0, 255).to(torch.uint8)


def _weights(length: int, size: int) -> tuple[Tensor, Tensor]:
    """The first line that each new one is made of (S,), and the weights from there on (K, S)."""
    scale = length / size
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    centre = (torch.arange(size, dtype=torch.float64) + 0.5) * scale
    first = (centre - support + 0.5).trunc().clamp(min=0)
    count = (centre + support + 0.5).trunc().clamp(max=length) - first
    weights = torch.zeros(int(count.max()), size, dtype=torch.float64)
    total = torch.zeros(size, dtype=torch.float64)
    for tap, weight in enumerate(weights):
        weight.copy_(_bicubic((tap + first - centre + 0.5) * (1.0 / stretch)))
        weight.masked_fill_(tap >= count, 0.0)
        total += weight
    scaled = weights / total * (1 << FRACTION_BITS)
    return first.long(), torch.where(scaled < 0, scaled - 0.5, scaled + 0.5).to(torch.int32)


def _bicubic(distance: Tensor) -> Tensor:
    x = distance.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    low, high = (value[..., None].to(torch.float64) for value in images.flatten(2).aminmax(dim=2))
    # Divided by a tensor: torch would multiply a number with the inverse.
    scale = torch.full_like(high, 255.0) / (high - low)
    level = torch.arange(256, dtype=torch.float64, device=images.device)
    stretched = (level * scale + -low * scale).clamp(0, 255)
    return _mapped(images, torch.where(high <= low, level, stretched).to(torch.uint8))


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    counts = _histograms(images)
    level = torch.arange(256, device=images.device)
    highest = images.flatten(2).amax(dim=2, keepdim=True).long()
    step = (counts.sum(dim=2, keepdim=True) - counts.gather(2, highest)) // 255
    before = counts.cumsum(dim=2) - counts
    equal = (step // 2 + before) // step.clamp(min=1)
    return _mapped(images, torch.where(step == 0, level, equal.clamp(max=255)).to(torch.uint8))


def _posterize(images: Tensor, arguments: Tensor) -> Tensor:
    bits = _first(arguments).long().clamp(0, 8)
    return images & (256 - (1 << (8 - bits))).to(torch.uint8)


def _solarize_add(images: Tensor, arguments: Tensor) -> Tensor:
    brighter = (images + _first(arguments).long()).clamp(max=255).to(torch.uint8)
    return torch.where(images < 128, brighter, images)


def _contrast(images: Tensor, arguments: Tensor) -> Tensor:
    grey = _grey(images).flatten(1)
    mean = (grey.sum(dim=1).to(torch.float64) / grey.shape[1] + 0.5).to(torch.int32)
    return _blended(mean.view(-1, 1, 1, 1), images, arguments)


def _moved(images: Tensor, arguments: Tensor) -> Tensor:
    """By the map from each pixel to where it comes from, bicubically (Pillow's Geometry.c)."""
    height, width = images.shape[2:]
    x = torch.arange(width, dtype=torch.float64, device=images.device) + 0.5
    y = torch.arange(height, dtype=torch.float64, device=images.device)[:, None] + 0.5
    a, b, c, d, e, f = arguments[:, :, None, None].unbind(1)
    from_x, from_y = a * x + b * y + c, d * x + e * y + f  # (N, H, W)
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    from_x, from_y = from_x - 0.5, from_y - 0.5
    left, top = from_x.floor(), from_y.floor()
    flat = images.flatten(2)  # (N, 3, H * W)

    def line(row: Tensor) -> Tensor:
        columns = [(left.long() + tap).clamp(0, width - 1) for tap in (-1, 0, 1, 2)]
        pixels = [(row * width + column).flatten(1)[:, None] for column in columns]
        values = [flat.gather(2, place.expand(-1, 3, -1)).view_as(images) for place in pixels]
        return _cubic([value.to(torch.float64) for value in values], (from_x - left)[:, None])

    lines = [line((top.long() + tap).clamp(0, height - 1)) for tap in (-1, 0, 1, 2)]
    values = _cubic(lines, (from_y - top)[:, None]).clamp(0, 255).to(torch.uint8)
    fill = torch.tensor(FILL, dtype=torch.uint8, device=images.device)[:, None, None]
    return torch.where(inside[:, None], values, fill)


def _cubic(values: Sequence[Tensor], t: Tensor) -> Tensor:
    """Between the second and the third of four values, a share `t` of the way."""
    v1, v2, v3, v4 = values
    return v2 + t * ((v3 - v1) + t * ((2 * (v1 - v2) + v3 - v4) + t * (v2 - v1 - v3 + v4)))


def _blended(other: Tensor, images: Tensor, arguments: Tensor) -> Tensor:
    """From `other` towards the images and beyond, in float32, cut to integers (Blend.c)."""
    start = other.to(torch.int32)
    share = _first(arguments).to(torch.float32)
    mixed = start.to(torch.float32) + share * (images.to(torch.int32) - start).to(torch.float32)
    return mixed.clamp(0, 255).to(torch.uint8)


def _smoothed(images: Tensor) -> Tensor:
    """ImageFilter.SMOOTH: the border stays.

    Pillow sums in float32, but no sum of integers over 13 is as near to a half as its error.
    """
    values = images.to(torch.int32)
    rows = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    square = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    thirteen = square + 4 * values[:, :, 1:-1, 1:-1]
    result = images.clone()
    result[:, :, 1:-1, 1:-1] = ((2 * thirteen + 13) // 26).to(torch.uint8)
    return result


def _grey(images: Tensor) -> Tensor:
    """(N, H, W) int32."""
    red, green, blue = images.to(torch.int32).unbind(1)
    weighted = red * LUMINANCE[0] + green * LUMINANCE[1] + blue * LUMINANCE[2]
    return (weighted + (1 << 15)) >> 16


def _histograms(images: Tensor) -> Tensor:
    """How often each channel has each level, (N, 3, 256)."""
    channels = images.flatten(0, 1).flatten(1).long()
    number = torch.arange(len(channels), device=images.device)[:, None]
    counts = torch.bincount((channels + 256 * number).flatten(), minlength=256 * len(channels))
    return counts.view(-1, 3, 256)


def _mapped(images: Tensor, table: Tensor) -> Tensor:
    """Each pixel as the table (N, 3, 256) says for its level."""
    return table.gather(2, images.flatten(2).long()).view_as(images)


def _first(arguments: Tensor) -> Tensor:
    return arguments[:, 0].view(-1, 1, 1, 1)


_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": lambda images, _: 255 - images,
    "Posterize": _posterize,
    "Solarize": lambda images, a: torch.where(images < _first(a), images, 255 - images),
    "SolarizeAdd": _solarize_add,
    "Color": lambda images, a: _blended(_grey(images)[:, None], images, a),
    "Contrast": _contrast,
    "Brightness": lambda images, a: _blended(torch.zeros_like(images), images, a),
    "Sharpness": lambda images, a: _blended(_smoothed(images), images, a),
    **dict.fromkeys(("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"), _moved),
}
