"""CaiT: depth for Vision Transformers, by LayerScale and class-attention.

  CaiT           https://arxiv.org/abs/2103.17239
  Talking heads  https://arxiv.org/abs/2003.02436

Patches attend to each other first (with talking heads); the class token enters in the last two
blocks, and there it alone is updated. Every branch is scaled by a learned gain per channel.
Shapes: B batch, N patches, D embedding, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit_zoo.models.deit import Attention
from deit_zoo.models.layers import (
    DropPath,
    Mlp,
    init_linear,
    layer_norm,
    new_head,
    new_token,
    softmax_map,
    split_heads,
    trunc_normal,
)
from deit_zoo.models.model import ZooModel


class HeadMixing(nn.Module):
    """A linear map of the heads of (B, H, N, N), as one small matrix product for each image.

    The same as moving the heads last, through nn.Linear, and back, without moving them. It is no
    nn.Linear, each of which adapters take to act on the last dimension. Training on a GPU puts a
    kernel of its own into `kernel`.
    """

    kernel: Callable[[HeadMixing, Tensor], Tensor] | None = None

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        linear = nn.Linear(num_heads, num_heads)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel is not None:
            return self.kernel(self, x)
        weight = self.weight.expand(x.shape[0], -1, -1)
        return torch.baddbmm(self.bias[:, None], weight, x.flatten(2)).view_as(x)


def init_weights(module: nn.Module) -> None:
    """The mixing of heads begins as linear layers do."""
    init_linear(module)
    if isinstance(module, HeadMixing):
        trunc_normal(module.weight)
        nn.init.zeros_(module.bias)


class TalkingHeadsAttention(Attention):
    """Self-attention whose heads are mixed linearly before and after the softmax (section 5)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads)
        self.proj_l = HeadMixing(num_heads)
        self.proj_w = HeadMixing(num_heads)

    def softmax_map(self, query: Tensor, key: Tensor) -> Tensor:
        """Softmax of the mixed scores (B, H, N, N)."""
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        return self.proj_l(scores).softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = split_heads(self.qkv(x), self.num_heads)
        out = self.proj_w(self.softmax_map(query, key)) @ value  # (B, H, N, D/H)
        return self.proj(out.transpose(1, 2).reshape(x.shape))

    def attention(self, x: Tensor) -> Tensor:
        """The softmax map (B, H, N, N), after the first mixing and before the second."""
        query, key, _ = split_heads(self.qkv(x), self.num_heads)
        return self.softmax_map(query, key)


class ClassAttention(nn.Module):
    """The class token asks, itself and all patches answer (section 3.2), on one fused kernel."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def split(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, H, N, D/H)."""
        batch, tokens, dim = x.shape
        return x.reshape(batch, tokens, self.num_heads, dim // self.num_heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = map(self.split, (self.q(x[:, :1]), self.k(x), self.v(x)))
        out = F.scaled_dot_product_attention(query, key, value)  # (B, H, 1, D/H)
        return self.proj(out.transpose(1, 2).flatten(2))  # (B, 1, D)

    def attention(self, x: Tensor) -> Tensor:
        """The softmax map of the class token (B, H, 1, 1 + N)."""
        return softmax_map(self.split(self.q(x[:, :1])), self.split(self.k(x)))


class Block(nn.Module):
    """Talking-heads attention and MLP among the patches, each branch under LayerScale."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        layer_scale_init: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.gamma_1 = nn.Parameter(torch.full((dim,), layer_scale_init))
        self.gamma_2 = nn.Parameter(torch.full((dim,), layer_scale_init))
        self.norm1 = layer_norm(dim)
        self.attn = TalkingHeadsAttention(dim, num_heads)
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = layer_norm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.gamma_1 * self.attn(self.norm1(x)))
        return x + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x)), branch=1)

    def attention(self, x: Tensor) -> Tensor:
        """The softmax map (B, H, N, N) of what enters the block."""
        return self.attn.attention(self.norm1(x))


class ClassBlock(nn.Module):
    """Class-attention and MLP: only the class token (B, 1, D) changes; no stochastic depth."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, layer_scale_init: float) -> None:
        super().__init__()
        self.gamma_1 = nn.Parameter(torch.full((dim,), layer_scale_init))
        self.gamma_2 = nn.Parameter(torch.full((dim,), layer_scale_init))
        self.norm1 = layer_norm(dim)
        self.attn = ClassAttention(dim, num_heads)
        self.norm2 = layer_norm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, cls: Tensor, patches: Tensor) -> Tensor:
        cls = cls + self.gamma_1 * self.attn(self.norm1(torch.cat((cls, patches), dim=1)))
        return cls + self.gamma_2 * self.mlp(self.norm2(cls))

    def attention(self, cls: Tensor, patches: Tensor) -> Tensor:
        """The softmax map of the class token (B, H, 1, 1 + N)."""
        return self.attn.attention(self.norm1(torch.cat((cls, patches), dim=1)))


class CaiT(ZooModel):
    """Class-attention in image Transformers (section 3, sizes in Table 3).

    Positions are added to patches only. The released models were distilled through their one
    head, so there is no distillation token.
    Raises ImageSizeError for a size that patches do not tile.
    """

    def __init__(
        self,
        *,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 192,
        depth: int = 24,
        depth_token_only: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        layer_scale_init: float = 1e-5,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        patch_embed = self.cut_patches(img_size, patch_size, in_chans, embed_dim)
        # Parameters stand in upstream's order: optimizer states follow it.
        self.cls_token = new_token(1, 1, embed_dim)
        self.pos_embed = new_token(1, patch_embed.num_patches, embed_dim)
        self.patch_embed = patch_embed
        # One rate for every block, not a ramp as in DeiT.
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, layer_scale_init, drop_path_rate)
            for _ in range(depth)
        )
        self.blocks_token_only = nn.ModuleList(
            ClassBlock(embed_dim, num_heads, mlp_ratio, layer_scale_init)
            for _ in range(depth_token_only)
        )
        self.norm = layer_norm(embed_dim)
        self.head = new_head(embed_dim, num_classes)
        self.apply(init_weights)

    def embed(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to patch tokens with positions (B, N, D)."""
        return self.patch_embed(x) + self.pos_embed

    def read_class(self, patches: Tensor) -> Tensor:
        """The class token (B, 1, D) after the class-attention blocks, before the last norm."""
        cls = self.cls_token.expand(patches.shape[0], -1, -1)
        for block in self.blocks_token_only:
            cls = self._run(block, cls, patches)
        return cls

    def finish(self, x: Tensor) -> Tensor:
        """The class token, read out of the patches, and these, under the last norm."""
        return self.norm(torch.cat((self.read_class(x), x), dim=1))

    def class_token(self, output: Tensor, number: int, norm: bool) -> Tensor:
        """No class token exists among the patches: the (B, D) one that class-attention reads out
        of them, which for the last block is the model's own."""
        return super().class_token(self.read_class(output), number, norm)

    def _entered(self, x: Tensor) -> Generator[tuple[nn.Module, tuple[Tensor, ...]], None, Tensor]:
        patches = yield from super()._entered(x)
        cls = self.cls_token.expand(x.shape[0], -1, -1)
        for block in self.blocks_token_only:
            yield block, (cls, patches)
            cls = self._run(block, cls, patches)
        return cls

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort parameters by depth, in timm's form; blocks are as coarse
        as it gets."""
        return {
            "stem": r"^(?:cls_token|pos_embed|patch_embed)",
            "blocks": r"^blocks\.(\d+)",
            "blocks_token_only": [(r"^blocks_token_only\.(\d+)", None), (r"^norm", (99999,))],
        }
