"""A small convolutional teacher: residual 3x3 convolutions under group norm.

DeiT learns best from a convnet (section 5.2: its inductive bias comes along). The published
teacher is a RegNetY-16GF; this one is small enough to ship. Group norm (arXiv 1803.08494) keeps
no running statistics, so a replica's batch is all that a step sees.
Shapes: B batch, D channels, (h, w) the last feature map, N = h·w.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit_zoo.errors import ZooError
from deit_zoo.models.layers import as_pair, check_divisible, check_input, init_linear, new_head
from deit_zoo.models.model import ZooModel

GROUPS = 8
torch.fx.wrap("check_input")  # as in layers.py


class Block(nn.Module):
    """Two 3x3 convolutions around a residual; the first may halve the resolution."""

    def __init__(self, in_dim: int, dim: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, in_dim)
        self.conv1 = nn.Conv2d(in_dim, dim, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(GROUPS, dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        same = stride == 1 and in_dim == dim
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_dim, dim, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.relu(self.norm2(out)))


class ConvNet(ZooModel):
    """Pre-activation residual network (arXiv 1603.05027); `dims` are the channels of its stages.

    Each stage after the first halves the resolution.
    """

    global_pool = "avg"

    def __init__(
        self,
        *,
        img_size: int | Sequence[int] = 16,
        in_chans: int = 3,
        num_classes: int = 10,
        dims: Sequence[int] = (32, 64, 128),
        depth: int = 1,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if drop_path_rate:
            raise ZooError(f"drop_path_rate is {drop_path_rate}; a convnet here has no drop-path")
        self.img_size = as_pair(img_size)
        self.embed_dim = dims[-1]
        self.num_prefix_tokens = 0
        self.in_chans = in_chans
        self.stride = 2 ** (len(dims) - 1)
        check_divisible(self.img_size, self.stride)
        self.stem = nn.Conv2d(in_chans, dims[0], 3, padding=1, bias=False)
        blocks = []
        for stage, dim in enumerate(dims):
            for number in range(depth):
                first = stage > 0 and number == 0
                blocks.append(Block(dims[stage - 1] if first else dim, dim, 2 if first else 1))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.GroupNorm(GROUPS, self.embed_dim)
        self.head = new_head(self.embed_dim, num_classes)
        self.apply(init_linear)

    def embed(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to the first feature map."""
        check_input(x, self.img_size, self.in_chans)
        return self.stem(x)

    def finish(self, x: Tensor) -> Tensor:
        """The last feature map as tokens (B, N, D)."""
        return F.relu(self.norm(x)).flatten(2).transpose(1, 2)

    def finish_early(self, x: Tensor) -> Tensor:
        """An earlier feature map as tokens, without the norm, whose channels fit the last alone."""
        return x.flatten(2).transpose(1, 2)

    def normed(self, output: Tensor, number: int) -> Tensor:
        """A feature map under the last norm, whose channels fit the last block alone."""
        return F.relu(self.norm(output)) if number == len(self.blocks) - 1 else output

    def split_prefix(self, output: Tensor, as_map: bool) -> tuple[Tensor, Tensor]:
        """No token stands before a feature map."""
        tokens = output.flatten(2).transpose(1, 2)
        return tokens[:, :0], output if as_map else tokens

    def set_input_size(
        self, img_size: int | Sequence[int] | None = None, patch_size: int | None = None
    ) -> None:
        """Take images of another size from now on; a convnet has no patches."""
        if patch_size is not None:
            raise ZooError(f"patch_size is {patch_size}, but a convnet has none; leave it out")
        size = self.img_size if img_size is None else as_pair(img_size)
        check_divisible(size, self.stride)
        self.img_size = size

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens to logits; with `pre_logits` to their mean (B, D)."""
        pooled = tokens.mean(dim=1)
        return pooled if pre_logits else self.head(pooled)

    def class_token(self, output: Tensor, number: int, norm: bool) -> Tensor:
        """A convnet has none: the mean over a feature map (B, D)."""
        return (self.normed(output, number) if norm else output).mean(dim=(2, 3))

    def attention(self, x: Tensor, layers: Sequence[int] = (-1,)) -> list[Tensor]:
        """A convnet has none: raises ZooError."""
        raise ZooError("a convnet has no attention maps; choose a deit or cait model")

    def no_weight_decay(self) -> set[str]:
        """Nothing beyond biases and norms."""
        return set()
