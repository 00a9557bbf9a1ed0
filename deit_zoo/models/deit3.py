"""DeiT III: plain Vision Transformers, trained better.

  DeiT III    https://arxiv.org/abs/2204.07118
  LayerScale  https://arxiv.org/abs/2103.17239

DeiT's network with a learned gain per channel on every branch. The class token, which has no
position, is put in front of patches that have theirs already.
Shapes: B batch, N tokens (class and patches), D embedding, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from deit_zoo.errors import ZooError
from deit_zoo.models import deit
from deit_zoo.models.layers import (
    DropPath,
    Mlp,
    init_linear,
    layer_norm,
    new_head,
    new_token,
)


class Block(deit.Block):
    """DeiT's block with each branch under LayerScale."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        layer_scale_init: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__(dim, num_heads, mlp_ratio, drop_path_rate)
        self.register_load_state_dict_pre_hook(rename_gains)  # type: ignore[no-untyped-call]
        self.gamma_1 = nn.Parameter(torch.full((dim,), layer_scale_init))
        self.gamma_2 = nn.Parameter(torch.full((dim,), layer_scale_init))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.gamma_1 * self.attn(self.norm1(x)))
        return x + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x)), branch=1)


def rename_gains(block: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Take the gains by timm's names too, which `deit_zoo.save` gives them in files."""
    for number, branch in product((1, 2), ("", "_1")):  # the second of a parallel block
        if (gain := state.pop(f"{prefix}ls{number}.gamma{branch}", None)) is not None:
            state[f"{prefix}gamma_{number}{branch}"] = gain


class ParallelBlock(nn.Module):
    """Two attentions side by side, then two MLPs, each branch by itself (arXiv:2203.09795)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        layer_scale_init: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(rename_gains)  # type: ignore[no-untyped-call]
        self.gamma_1 = nn.Parameter(torch.full((dim,), layer_scale_init))
        self.gamma_1_1 = nn.Parameter(torch.full((dim,), layer_scale_init))
        self.gamma_2 = nn.Parameter(torch.full((dim,), layer_scale_init))
        self.gamma_2_1 = nn.Parameter(torch.full((dim,), layer_scale_init))
        self.norm1, self.norm11 = layer_norm(dim), layer_norm(dim)
        self.attn, self.attn1 = deit.Attention(dim, num_heads), deit.Attention(dim, num_heads)
        self.drop_path = DropPath(drop_path_rate)
        self.drop_path.branches = 4
        self.norm2, self.norm21 = layer_norm(dim), layer_norm(dim)
        hidden_dim = int(dim * mlp_ratio)
        self.mlp, self.mlp1 = Mlp(dim, hidden_dim), Mlp(dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        one = self.gamma_1 * self.attn(self.norm1(x))
        two = self.gamma_1_1 * self.attn1(self.norm11(x))
        x = x + self.drop_path(one) + self.drop_path(two, branch=1)
        one = self.gamma_2 * self.mlp(self.norm2(x))
        two = self.gamma_2_1 * self.mlp1(self.norm21(x))
        return x + self.drop_path(one, branch=2) + self.drop_path(two, branch=3)

    def attention(self, x: Tensor) -> Tensor:
        """The softmax maps (B, 2·H, N, N) of both attentions."""
        maps = (self.attn.attention(self.norm1(x)), self.attn1.attention(self.norm11(x)))
        return torch.cat(maps, dim=1)


class HMLPStem(nn.Sequential):
    """Patches of 4 pixels, then of 2 and of 2 of these: no pixel of another patch is seen
    (arXiv:2203.09795)."""

    def __init__(self, in_chans: int, embed_dim: int) -> None:
        width = embed_dim // 4
        super().__init__(
            nn.Conv2d(in_chans, width, kernel_size=4, stride=4),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.Conv2d(width, width, kernel_size=2, stride=2),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.Conv2d(width, embed_dim, kernel_size=2, stride=2),
            nn.BatchNorm2d(embed_dim),
        )


class LayerScaleTransformer(deit.Transformer):
    """DeiT III's plain ViT (sizes in Table 1 of ViT; M is 512 wide, H has patches of 14 pixels).

    LayerScale starts at 1e-4, the token and positions at a spread of 0.02, as upstream; timm's
    start elsewhere. `parallel` blocks and the `hmlp_stem` are the authors' too; no weights with
    them were published.
    Raises ImageSizeError for a size that patches do not tile.
    """

    def __init__(
        self,
        *,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        layer_scale_init: float = 1e-4,
        parallel: bool = False,
        hmlp_stem: bool = False,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        patch_embed: Any = self.cut_patches(img_size, patch_size, in_chans, embed_dim)
        if hmlp_stem:
            if patch_size != 16:
                raise ZooError(f"the hMLP stem makes patches of 16 pixels, not of {patch_size}")
            patch_embed.proj = HMLPStem(in_chans, embed_dim)
        # Parameters stand in upstream's order: optimizer states follow it.
        self.cls_token = new_token(1, 1, embed_dim)
        self.pos_embed = new_token(1, patch_embed.num_patches, embed_dim)
        self.patch_embed = patch_embed
        # One rate for every block, as in CaiT.
        kind = ParallelBlock if parallel else Block
        self.blocks = nn.ModuleList(
            kind(embed_dim, num_heads, mlp_ratio, layer_scale_init, drop_path_rate)
            for _ in range(depth)
        )
        self.norm = layer_norm(embed_dim)
        self.head = new_head(embed_dim, num_classes)
        self.apply(init_linear)

    def embed(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to tokens (B, 1 + N, D): the class, and patches with positions."""
        patches = self.patch_embed(x) + self.pos_embed
        return torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1)
