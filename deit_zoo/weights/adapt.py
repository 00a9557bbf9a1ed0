"""What of a checkpoint is computed anew when a model of another shape is asked for.

Positions for another grid of patches, as upstream's fine-tuning does it. The first convolution for
another number of channels, by timm's rule: one channel gets the sum of the three, so that a grey
image answers as it does in three equal channels; more are filled by repeating the three, scaled so
that the sum stays. And for another patch size, by FlexiViT's pseudo-inverse of resizing
(arXiv 2212.08013), which is an approximation: figures are those of the published size alone.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from deit_zoo.errors import CheckpointError

RGB = 3
PATCH_EMBED = "patch_embed.proj.weight"
_FIRST_CONVS = (PATCH_EMBED, "stem.weight", "stem.conv.weight")


def first_conv(tensors: dict[str, Tensor]) -> str | None:
    """The key of the convolution that reads the image (D, C, h, w)."""
    return next((k for k in _FIRST_CONVS if k in tensors and tensors[k].ndim == 4), None)


def with_channels(filters: Tensor, in_chans: int) -> Tensor:
    """Filters (D, 3, h, w) for images of `in_chans` channels: timm's `adapt_input_conv`."""
    own = filters.shape[1]
    if own == in_chans:
        return filters
    if own != RGB:
        raise CheckpointError(
            f"the weights are for images of {own} channels, and only those for {RGB} can be "
            f"fitted to in_chans={in_chans}; leave it out to take images of {own}"
        )
    filters = filters.float()
    if in_chans == 1:
        return filters.sum(dim=1, keepdim=True)
    repeated = filters.repeat(1, math.ceil(in_chans / RGB), 1, 1)[:, :in_chans]
    return repeated * (RGB / in_chans)


def with_patch_size(filters: Tensor, patch_size: int) -> Tensor:
    """Square filters (D, C, p, p) for patches of another size: the least-squares answer to a
    resized patch, timm's `resample_patch_embed`."""
    own = filters.shape[-1]
    if own == patch_size:
        return filters
    basis = torch.eye(own * own).reshape(own * own, 1, own, own)
    resized = F.interpolate(basis, (patch_size, patch_size), mode="bicubic", antialias=True)
    inverse = torch.linalg.pinv(resized.reshape(own * own, patch_size * patch_size))
    flat = filters.float().flatten(2) @ inverse.T  # (D, C, p²) -> (D, C, p'²)
    return flat.reshape(*filters.shape[:2], patch_size, patch_size)
