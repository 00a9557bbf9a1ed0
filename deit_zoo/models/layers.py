"""What the families share: patch embedding, MLP, stochastic depth, initialisation, positions.

Shapes: B batch, N tokens, D embedding, (h, w) the grid of patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit_zoo.errors import ImageSizeError, check_whole, whole_number

LAYER_NORM_EPS = 1e-6
INIT_STD = 0.02


class PatchEmbed(nn.Module):
    """Square patches, each projected to one token: (B, C, H, W) -> (B, h·w, D).

    Training on a GPU puts the way it computes this into `kernel`.
    """

    kernel: Callable[[PatchEmbed, Tensor], Tensor] | None = None

    def __init__(
        self, *, img_size: tuple[int, int], patch_size: int, in_chans: int, embed_dim: int
    ) -> None:
        super().__init__()
        self.set_img_size(img_size, patch_size)
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def set_img_size(self, img_size: tuple[int, int], patch_size: int) -> None:
        """The size of the images, and the grid of patches that follows from it."""
        check_divisible(img_size, patch_size)
        self.img_size = img_size
        self.grid_size = (img_size[0] // patch_size, img_size[1] // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    @property
    def in_chans(self) -> int:
        """What its first convolution reads, also where an adapter was put around that."""
        channels = (getattr(part, "in_channels", None) for part in self.proj.modules())
        return int(next(filter(None, channels)))

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.img_size, self.in_chans)
        if self.kernel is not None:
            return self.kernel(self, x)
        return self.proj(x).flatten(2).transpose(1, 2)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drop a residual branch per sample, in training only.

    A block has one for all its branches, which are `branch` 0, 1 and so on. Whoever draws masks
    beforehand puts them, one for each branch (branches, B, 1, ..., 1), into `masks`; without them
    each call draws its own.
    """

    masks: Tensor | None = None
    branches = 2

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def keep_mask(self, x: Tensor) -> Tensor:
        """Draw 1 (keep) or 0 (drop) for every sample: (B, 1, ..., 1)."""
        return x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1.0 - self.rate)

    def forward(self, x: Tensor, branch: int = 0) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        mask = self.keep_mask(x) if self.masks is None else self.masks[branch]
        return x * (mask / (1.0 - self.rate)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.4g}"


def layer_norm(dim: int) -> nn.LayerNorm:
    """LayerNorm with the papers' epsilon."""
    return nn.LayerNorm(dim, eps=LAYER_NORM_EPS)


def new_token(*shape: int) -> nn.Parameter:
    """A learned token or position table, started as upstream starts it."""
    return nn.Parameter(trunc_normal(torch.empty(shape)))


def new_head(dim: int, num_classes: int, *, like: nn.Module | None = None) -> nn.Module:
    """A fresh classifier on the device and of the dtype of `like`; for 0 classes the identity."""
    check_whole("num_classes", num_classes, 0, "the number of classes, or 0 for none")
    if num_classes == 0:
        return nn.Identity()
    reference = torch.empty(0) if like is None else next(like.parameters())
    head = nn.Linear(dim, num_classes, device=reference.device, dtype=reference.dtype)
    init_linear(head)
    return head


def num_outputs(head: nn.Module) -> int:
    """The width of what a head gives: of its last linear layer, else of its last matrix, or 0."""
    widths = [getattr(layer, "out_features", None) for layer in head.modules()]
    matrices = [value.shape[0] for value in head.parameters() if value.ndim == 2]
    return next((int(width) for width in reversed(matrices + widths) if width is not None), 0)


def trunc_normal(tensor: Tensor) -> Tensor:
    """Fill with a normal of std 0.02; the cut at ±2 never bites, as in timm 0.3.2."""
    # A tensor on the meta device is about to be replaced by a checkpoint's.
    return tensor if tensor.is_meta else nn.init.trunc_normal_(tensor, std=INIT_STD)


def init_linear(module: nn.Module) -> None:
    """Linear layers: normal weights, zero bias. Convolutions keep torch's default (as upstream)."""
    if isinstance(module, nn.Linear) and not module.weight.is_meta:
        trunc_normal(module.weight)
        nn.init.zeros_(module.bias)


def as_pair(img_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from an int or a pair."""
    given = img_size if isinstance(img_size, Sequence) else (img_size, img_size)
    pair = [whole_number(side) or 0 for side in given]
    if len(pair) != 2 or min(pair) < 1:
        raise ImageSizeError(
            f"img_size is {img_size!r}; give one number of pixels or (height, width), "
            "for example img_size=(192, 256)"
        )
    return pair[0], pair[1]


def check_divisible(img_size: tuple[int, int], patch_size: int) -> None:
    """Refuse an image size that patches do not tile, naming the nearest one that they do."""
    nearest = tuple(max(1, round(side / patch_size)) * patch_size for side in img_size)
    if nearest != img_size:
        height, width = nearest
        size = height if height == width else f"{nearest}, typed as {height}x{width}"
        raise ImageSizeError(
            f"images of {img_size[0]}x{img_size[1]} pixels cannot be cut into patches of "
            f"{patch_size}x{patch_size}; the nearest size that can is img_size={size}"
        )


@torch.fx.wrap  # a call of its own in a symbolic trace, where there are no sizes to compare yet
def check_input(x: Tensor, img_size: tuple[int, int], in_chans: int) -> None:
    """Refuse a batch that the model was not built for, saying how to build one that was."""
    if not all(isinstance(size, int) for size in x.shape[1:]):
        return  # torch.jit.trace: sizes are tensors, on which no branch should depend
    if x.ndim != 4 or x.shape[1] != in_chans:
        raise ImageSizeError(
            f"the model takes a batch of shape (B, {in_chans}, {img_size[0]}, {img_size[1]}), "
            f"not {tuple(x.shape)}; add a batch dimension with x[None], or build it with in_chans="
        )
    if x.shape[2] != img_size[0] or x.shape[3] != img_size[1]:
        raise ImageSizeError(
            f"the model takes images of {img_size[0]}x{img_size[1]} pixels, not "
            f"{x.shape[2]}x{x.shape[3]}; resize them with deit_zoo.transform(model), or build it "
            f"with deit_zoo.create(name, img_size=({x.shape[2]}, {x.shape[3]}))"
        )


def resize_pos_embed(
    pos_embed: Tensor, grid_size: tuple[int, int], new_grid_size: tuple[int, int], num_prefix: int
) -> Tensor:
    """Resample a position table (1, prefix + h·w, D) to another grid, as upstream's fine-tuning.

    Bicubic with a = -0.75, half-pixel centres and no antialiasing; prefix rows stay as they are.
    """
    if grid_size == new_grid_size:
        return pos_embed
    prefix, patches = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    table = patches.reshape(1, *grid_size, -1).permute(0, 3, 1, 2)  # (1, D, h, w)
    table = F.interpolate(table, size=new_grid_size, mode="bicubic", align_corners=False)
    return torch.cat((prefix, table.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N, 3·D) to queries, keys and values, each (B, H, N, D/H)."""
    batch, tokens, dim = qkv.shape
    qkv = qkv.reshape(batch, tokens, 3, num_heads, dim // (3 * num_heads))
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def softmax_map(query: Tensor, key: Tensor) -> Tensor:
    """What a fused kernel does not give away: softmax of the scaled scores (B, H, Q, N)."""
    return ((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)).softmax(dim=-1)
