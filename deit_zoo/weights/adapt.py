"""What of a checkpoint is computed anew when a model of another shape is asked for.

Positions for another grid of patches, as upstream's fine-tuning does it. The first convolution for
another number of channels, by timm's rule: one channel gets the sum of the three, so that a grey
image answers as it does in three equal channels; more are filled by repeating the three, scaled so
that the sum stays. And for another patch size, by FlexiViT's pseudo-inverse of resizing
(arXiv 2212.08013), which is an approximation: figures are those of the published size alone.

Weights of others may be for images of another mean and spread than ImageNet's. All images are
normalised alike here, in training, on GPUs and in exported files: so the first convolution is made
one that answers to these as it did to those.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deit_zoo.errors import CheckpointError, ZooError
from deit_zoo.manifest import IMAGENET_MEAN, IMAGENET_STD
from deit_zoo.models.layers import as_pair, resize_pos_embed
from deit_zoo.registry import ModelSpec

RGB = 3
PATCH_EMBED, PATCH_BIAS = "patch_embed.proj.weight", "patch_embed.proj.bias"
_FIRST_CONVS = (PATCH_EMBED, "patch_embed.proj.0.weight", "stem.weight", "stem.conv.weight")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What a model takes: image size, and of a transformer the patch size."""

    img_size: tuple[int, int]
    patch_size: int | None
    in_chans: int
    known_size: bool  # whether the file says its image size, or its positions do

    @property
    def grid(self) -> tuple[int, int]:
        """Patches of an image: rows, columns."""
        assert self.patch_size is not None, "only patches have a grid"
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    def changed(
        self,
        img_size: int | tuple[int, int] | None,
        patch_size: int | None,
        in_chans: int | None,
    ) -> Shape:
        """The same but for what is given. Raises ZooError for a patch size of a convnet."""
        if patch_size is not None and self.patch_size is None:
            raise ZooError(f"patch_size is {patch_size}, but a convnet has none; leave it out")
        return replace(
            self,
            img_size=self.img_size if img_size is None else as_pair(img_size),
            patch_size=self.patch_size if patch_size is None else patch_size,
            in_chans=self.in_chans if in_chans is None else in_chans,
        )


def own_shape(
    spec: ModelSpec,
    tensors: dict[str, Tensor],
    metadata: dict[str, Any],
    img_size: int | tuple[int, int] | None,
) -> Shape:
    """The shape of the model that a file was saved of, as it says or as its tensors do.

    Where the file does not say its image size, it is the first that has as many positions of what
    is stated beside it, the `img_size` asked for, and a square. Warns where the last two have.
    """
    patch: int | None = spec.arch.get("patch_size")
    key = _first_conv(tensors)
    filters = tensors[key] if key else None
    if patch is not None and filters is not None and key == PATCH_EMBED:
        patch = filters.shape[3]
    size = as_pair(metadata["img_size"]) if "img_size" in metadata else None
    if size is None and patch is not None and (table := _positions(tensors)) is not None:
        patches = table.shape[1] - _num_prefix(spec)
        stated = metadata.get("input_size")
        sizes = (stated, img_size, math.isqrt(max(patches, 0)) * patch)
        pairs = dict.fromkeys(as_pair(one) for one in sizes if one)
        fitting = [(h, w) for h, w in pairs if h * w == patches * patch**2]
        size = fitting[0] if fitting else None
        if len(fitting) > 1 and not (stated and as_pair(stated) == size):
            asked, square = ("{}x{}".format(*one) for one in fitting)
            warnings.warn(
                "the file does not say its image size: its positions are read as those of "
                f"{asked} pixels, as img_size says, not of {square}; deit_zoo.save writes the size",
                stacklevel=2,
            )
    return Shape(
        img_size=size or as_pair(spec.img_size),
        patch_size=patch,
        in_chans=RGB if filters is None else filters.shape[1],
        known_size=size is not None,
    )


def adapt(spec: ModelSpec, tensors: dict[str, Tensor], own: Shape, shape: Shape) -> tuple[str, ...]:
    """Fit tensors in place to another shape. Returns what was done, a phrase each."""
    done = []
    if (conv := _first_conv(tensors)) is not None:
        if own.in_chans != shape.in_chans:
            tensors[conv] = with_channels(tensors[conv], shape.in_chans)
            done.append(f"{conv} from {own.in_chans} channels to {shape.in_chans}, by timm's rule")
        if own.patch_size not in (None, shape.patch_size):
            tensors[conv] = with_patch_size(tensors[conv], shape.patch_size or 0)
            done.append(
                f"{conv} from patches of {own.patch_size} pixels to {shape.patch_size}, which is "
                "an approximation"
            )
    table = _positions(tensors)
    if table is None or own.patch_size is None or not own.known_size or own.grid == shape.grid:
        return tuple(done)
    prefix = _num_prefix(spec)
    if table.shape[1] == prefix + own.grid[0] * own.grid[1]:  # else they are misfits, and named
        tensors["pos_embed"] = resize_pos_embed(table.float(), own.grid, shape.grid, prefix)
        grids = (f"{height}x{width}" for height, width in (own.grid, shape.grid))
        done.append(f"pos_embed from {' to '.join(grids)} patches, bicubic")
    return tuple(done)


def normalized_alike(
    spec: ModelSpec, tensors: dict[str, Tensor], metadata: dict[str, Any]
) -> tuple[str, ...]:
    """Fit the first convolution in place to the images of the zoo, where those of a checkpoint
    were normalised otherwise. Returns what was done, a phrase each."""
    mean, std = metadata.get("mean"), metadata.get("std")
    conv = _first_conv(tensors)
    if mean is None or std is None or conv is None or tensors[conv].shape[1] != RGB:
        return ()
    if {len(mean), len(std)} - {1, RGB} or min(std) <= 0:
        raise CheckpointError(
            f"the weights are for images of mean {mean} and std {std}; both must be {RGB} numbers, "
            "and those of std above 0"
        )
    numbers = partial(torch.tensor, dtype=torch.float64, device="cpu")  # as the weights are
    theirs = [numbers(values).expand(RGB) for values in (mean, std)]
    ours = [numbers(values) for values in (IMAGENET_MEAN, IMAGENET_STD)]
    if all(map(torch.allclose, ours, theirs)):
        return ()
    if conv != PATCH_EMBED:  # its border of zeros would be of another colour
        raise CheckpointError(
            f"the weights are for images of mean {mean} and std {std}, and those of {spec.name} "
            f"must be for {IMAGENET_MEAN} and {IMAGENET_STD}; give some that were trained so"
        )
    filters, bias = tensors[conv], tensors.get(PATCH_BIAS)
    if bias is None or bias.shape != filters.shape[:1] or not filters.is_floating_point():
        return ()  # misfits, and named
    scale, shift = ours[1] / theirs[1], (ours[0] - theirs[0]) / theirs[1]
    filters = filters.double()
    tensors[conv] = (filters * scale[:, None, None]).float()
    tensors[PATCH_BIAS] = (bias + (filters * shift[:, None, None]).sum(dim=(1, 2, 3))).float()
    done = f"{conv} from images of mean {mean} and std {std} to ImageNet's mean and std"
    return (done,)


def _first_conv(tensors: dict[str, Tensor]) -> str | None:
    """The key of the convolution that reads the image (D, C, h, w)."""
    return next((k for k in _FIRST_CONVS if k in tensors and tensors[k].ndim == 4), None)


def with_channels(filters: Tensor, in_chans: int) -> Tensor:
    """Filters (D, 3, h, w) for images of `in_chans` channels: timm's `adapt_input_conv`."""
    own = filters.shape[1]
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
    basis = torch.eye(own * own, device="cpu").reshape(own * own, 1, own, own)
    resized = F.interpolate(basis, (patch_size, patch_size), mode="bicubic", antialias=True)
    inverse = torch.linalg.pinv(resized.reshape(own * own, patch_size * patch_size))
    flat = filters.float().flatten(2) @ inverse.T  # (D, C, p²) -> (D, C, p'²)
    return flat.reshape(*filters.shape[:2], patch_size, patch_size)


def _positions(tensors: dict[str, Tensor]) -> Tensor | None:
    table = tensors.get("pos_embed")
    return table if table is not None and table.ndim == 3 else None


def _num_prefix(spec: ModelSpec) -> int:
    if spec.family in ("cait", "deit3"):
        return 0
    return 2 if spec.arch.get("distilled") else 1
