"""DeiT III: plain Vision Transformers, trained better.

  DeiT III    https://arxiv.org/abs/2204.07118
  LayerScale  https://arxiv.org/abs/2103.17239

DeiT's network with a learned gain per channel on every branch. The class token, which has no
position, is put in front of patches that have theirs already.
Shapes: B batch, N tokens (class and patches), D embedding, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deit_zoo.models import deit
from deit_zoo.models.layers import (
    PatchEmbed,
    as_pair,
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
        self.gamma_1 = nn.Parameter(torch.full((dim,), layer_scale_init))
        self.gamma_2 = nn.Parameter(torch.full((dim,), layer_scale_init))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.gamma_1 * self.attn(self.norm1(x)))
        return x + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x)), branch=1)


class LayerScaleTransformer(deit.Transformer):
    """DeiT III's plain ViT (sizes in Table 1 of ViT; M is 512 wide, H has patches of 14 pixels).

    LayerScale starts at 1e-4, the token and positions at a spread of 0.02, as upstream; timm's
    start elsewhere.
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
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.img_size = as_pair(img_size)
        self.patch_size = patch_size
        self.embed_dim = embed_dim

        patch_embed = PatchEmbed(
            img_size=self.img_size, patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim
        )
        # Parameters stand in upstream's order: optimizer states follow it.
        self.cls_token = new_token(1, 1, embed_dim)
        self.pos_embed = new_token(1, patch_embed.num_patches, embed_dim)
        self.patch_embed = patch_embed
        # One rate for every block, as in CaiT.
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, layer_scale_init, drop_path_rate)
            for _ in range(depth)
        )
        self.norm = layer_norm(embed_dim)
        self.head = new_head(embed_dim, num_classes)
        self.apply(init_linear)

    def embed(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to tokens (B, 1 + N, D): the class, and patches with positions."""
        patches = self.patch_embed(x) + self.pos_embed
        return torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1)
