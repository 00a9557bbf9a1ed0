"""DeiT: Vision Transformers trained on ImageNet alone, with or without a distillation token.

  DeiT  https://arxiv.org/abs/2012.12877
  ViT   https://arxiv.org/abs/2010.11929

An image is cut into patches; a class token (and, for a distilled model, a distillation token with
a head of its own) goes in front of them; pre-norm blocks of self-attention and MLP follow.
Shapes: B batch, N tokens (prefix and patches), D embedding, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit_zoo.models.layers import (
    DropPath,
    Mlp,
    init_linear,
    layer_norm,
    new_head,
    new_token,
    softmax_map,
    split_heads,
)
from deit_zoo.models.model import ZooModel


class Attention(nn.Module):
    """Multi-head self-attention on one fused kernel."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = split_heads(self.qkv(x), self.num_heads)
        out = F.scaled_dot_product_attention(query, key, value)  # (B, H, N, D/H)
        return self.proj(out.transpose(1, 2).reshape(x.shape))

    def attention(self, x: Tensor) -> Tensor:
        """The softmax map (B, H, N, N)."""
        query, key, _ = split_heads(self.qkv(x), self.num_heads)
        return softmax_map(query, key)


class Block(nn.Module):
    """Self-attention and MLP, each behind a norm and with a residual."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = layer_norm(dim)
        self.attn = Attention(dim, num_heads)
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = layer_norm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)), branch=1)

    def attention(self, x: Tensor) -> Tensor:
        """The softmax map (B, H, N, N) of what enters the block."""
        return self.attn.attention(self.norm1(x))


class Transformer(ZooModel):
    """Prefix tokens and patches through pre-norm blocks: what DeiT and DeiT III have in common."""

    def prefix_tokens(self) -> list[Tensor]:
        """The learned tokens (1, 1, D) in front of the patches, without positions."""
        return [self.cls_token]


class VisionTransformer(Transformer):
    """DeiT (section 3) and, with `distilled=True`, distilled DeiT (section 4).

    A distilled model returns `(class_logits, distillation_logits)` in train mode and their mean
    in eval mode (upstream's code; the paper adds the two softmax outputs).
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
        distilled: bool = False,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.distilled = distilled
        self.num_prefix_tokens = 2 if distilled else 1
        patch_embed = self.cut_patches(img_size, patch_size, in_chans, embed_dim)
        # Parameters stand in upstream's order: optimizer states follow it.
        self.cls_token = new_token(1, 1, embed_dim)
        self.pos_embed = new_token(1, self.num_prefix_tokens + patch_embed.num_patches, embed_dim)
        self.dist_token = new_token(1, 1, embed_dim) if distilled else None
        self.patch_embed = patch_embed
        # The rate grows linearly from 0 at the first block (float32, as upstream computes it).
        ramp = torch.linspace(0, drop_path_rate, depth, device="cpu") if drop_path_rate else None
        rates = [0.0] * depth if ramp is None else ramp.tolist()
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, rate) for rate in rates)
        self.norm = layer_norm(embed_dim)
        self.head = new_head(embed_dim, num_classes)
        self.head_dist = new_head(embed_dim, num_classes) if distilled else None
        self.apply(init_linear)

    def prefix_tokens(self) -> list[Tensor]:
        """The class token and, in a distilled model, the distillation token (1, 1, D)."""
        return [self.cls_token] if self.dist_token is None else [self.cls_token, self.dist_token]

    def embed(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to tokens with positions (B, N, D): class, distillation, patches."""
        patches = self.patch_embed(x)
        tokens = [token.expand(patches.shape[0], -1, -1) for token in self.prefix_tokens()]
        return torch.cat((*tokens, patches), dim=1) + self.pos_embed

    def forward_head(
        self, tokens: Tensor, pre_logits: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Tokens to logits; with `pre_logits` to the class token, or the mean of both tokens."""
        if self.head_dist is None:
            return super().forward_head(tokens, pre_logits)
        if pre_logits:
            return (tokens[:, 0] + tokens[:, 1]) / 2
        logits, logits_dist = self.head(tokens[:, 0]), self.head_dist(tokens[:, 1])
        return (logits, logits_dist) if self.training else (logits + logits_dist) / 2

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The head, or (head, distillation head)."""
        return self.head if self.head_dist is None else (self.head, self.head_dist)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head, or both heads of a distilled model, by fresh ones; 0 is no head."""
        super().reset_classifier(num_classes, global_pool)
        if self.head_dist is not None:
            self.head_dist = new_head(self.embed_dim, num_classes, like=self)
