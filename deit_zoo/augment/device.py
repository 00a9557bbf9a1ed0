"""From a slot that a worker filled to float32 images, where the model is.

A crop is resized, flipped, given the operations of RandAugment, normalised, and erased in a box.
Squares on CUDA by kernels, all else by torch operations: the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deit_zoo.augment import record
from deit_zoo.augment.operations import augmented, resized
from deit_zoo.data.transforms import normalize

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def finish(slot: Tensor, records: NDArray[np.int64], images: Tensor) -> None:
    """Write the image of each place to its row of `images`, (N, 3, H, W) float32."""
    if slot.device.type == "cuda" and images.shape[-2] == images.shape[-1]:  # kernels know squares
        from deit_zoo.augment import kernels

        kernels.finish(slot, records, images)
        return
    places = records[:, : record.FIRST_LAYER].tolist()
    pixels = [_resized(slot, place, (images.shape[-2], images.shape[-1])) for place in places]
    for layer in range(record.FIRST_LAYER, records.shape[1], record.LAYER):
        operations = records[:, layer].tolist()
        if set(operations) != {record.NO_OPERATION}:
            words = torch.from_numpy(records[:, layer + 1 : layer + 1 + record.ARGUMENTS].copy())
            arguments = words.view(torch.float64).to(images.device)
            pixels = list(augmented(torch.stack(pixels), operations, arguments))
    for place, image in zip(places, pixels, strict=True):
        images[place[record.ROW]] = image
    # All at once where these are all, as they are where there is one slot.
    whole = len(places) == len(images)
    for part in [images] if whole else [images[place[record.ROW]] for place in places]:
        normalize(part.div_(torch.tensor(255.0, device=images.device)))
    for place in places:
        if place[record.ERASE_HEIGHT]:
            _erase(slot, place, images[place[record.ROW]])


def _resized(slot: Tensor, place: list[int], size: tuple[int, int]) -> Tensor:
    """The crop of a place, resized and flipped, (3, *size) uint8."""
    offset, height, width = place[record.OFFSET], place[record.HEIGHT], place[record.WIDTH]
    crop = slot[offset : offset + height * width * 3].view(height, width, 3)
    image = resized(crop, size)
    return image.flip(2) if place[record.FLIP] else image


def _erase(slot: Tensor, place: list[int], image: Tensor) -> None:
    top, left, height, width = place[record.ERASE]
    noise = slot[place[record.NOISE] :][: 3 * height * width * 4].view(torch.float32)
    image[:, top : top + height, left : left + width] = noise.view(3, height, width)
