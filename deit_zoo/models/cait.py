"""CaiT: depth for Vision Transformers, by LayerScale and class-attention.

  CaiT           https://arxiv.org/abs/2103.17239
  Talking heads  https://arxiv.org/abs/2003.02436

Patches attend to each other first (with talking heads); the class token enters in the last two
blocks, and there it alone is updated. Every branch is scaled by a learned gain per channel.
Shapes: B batch, N patches, D embedding, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit_zoo.models.layers import (
    DropPath,
    Mlp,
    PatchEmbed,
    ZooModel,
    as_pair,
    attend,
    init_linear,
    layer_norm,
    new_head,
    new_token,
    overwritable,
    pick_layers,
    predicting,
    readable,
    runs_at_once,
    to_grid,
    untouched,
)

# Bytes of scores that go together: of several images up to TILE for each thread, which stays in a
# core's cache; one image is cut above WHOLE, into pieces of PART.
TILE, WHOLE, PART = 1_000_000, 6_000_000, 2_500_000
# From so many patches and up to this width, one fused kernel beats mixing in half precision.
FOLD_TOKENS, FOLD_DIM = 400, 256


class TalkingHeadsAttention(nn.Module):
    """Self-attention whose heads are mixed linearly before and after the softmax (section 5)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_l = nn.Linear(num_heads, num_heads)
        self.proj_w = nn.Linear(num_heads, num_heads)

    def softmax_map(self, query: Tensor, key: Tensor) -> Tensor:
        """Softmax of the mixed scores (B, H, N, N)."""
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        return mix_heads(self.proj_l, scores).softmax(dim=-1)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, H, N, D/H)."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.heads(x)
        if torch.is_grad_enabled():
            out = mix_heads(self.proj_w, self.softmax_map(query, key)) @ value  # (B, H, N, D/H)
        else:
            first = self.proj_l.weight * query.shape[-1] ** -0.5
            out = talk(query, key, value, first, self.proj_w.weight, self.proj_w.bias)
        return self.proj(out.transpose(1, 2).reshape(x.shape))

    def attention(self, x: Tensor) -> Tensor:
        """The softmax map (B, H, N, N), after the first mixing and before the second."""
        query, key, _ = self.heads(x)
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
        return x.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        if predicting(self) and readable(self.k, self.v):
            shape = (self.num_heads, -1, x.shape[-1])
            key, value = self.k.weight.view(shape), self.v.weight.view(shape)
            return self.proj(attend(self.q(x[:, :1]), x, key, value, self.v.bias))
        query, key, value = self.split(self.q(x[:, :1])), self.split(self.k(x)), self.v(x)
        out = F.scaled_dot_product_attention(query, key, self.split(value))  # (B, H, 1, D/H)
        return self.proj(out.transpose(1, 2).flatten(2))  # (B, 1, D)

    def attention(self, x: Tensor) -> Tensor:
        """The softmax map of the class token (B, H, 1, 1 + N)."""
        query, key = self.split(self.q(x[:, :1])), self.split(self.k(x))
        return ((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)).softmax(dim=-1)


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
        if predicting(self):
            attn, mlp = self.attn, self.mlp
            x = add_scaled(x, self.gamma_1, attn(self.norm1(x)), overwritable(attn, "proj"))
            return add_scaled(x, self.gamma_2, mlp(self.norm2(x)), overwritable(mlp, "fc2"))
        x = x + self.drop_path(self.gamma_1 * self.attn(self.norm1(x)))
        return x + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x)))

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
        self.img_size = as_pair(img_size)
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.num_classes = num_classes
        self.num_prefix_tokens = 1

        patch_embed = PatchEmbed(
            img_size=self.img_size, patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim
        )
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
        self.apply(init_linear)

    def embed(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to patch tokens with positions (B, N, D)."""
        return self.patch_embed(x) + self.pos_embed

    def read_class(self, patches: Tensor) -> Tensor:
        """The class token (B, 1, D) after the class-attention blocks, before the last norm."""
        cls = self.cls_token.expand(patches.shape[0], -1, -1)
        for block in self.blocks_token_only:
            cls = self._run(block, cls, patches)
        return cls

    def forward_features(self, x: Tensor) -> Tensor:
        """Images to the class token and all patches after the last norm (B, 1 + N, D)."""
        x = self.embed(x)
        for block in self.blocks:
            x = self._run(block, x)
        return self.norm(torch.cat((self.read_class(x), x), dim=1))

    def may_skip(self) -> bool:
        """Only the result is wanted, and nobody watches the last norm."""
        return predicting(self) and self.answers_as(CaiT) and untouched(self.norm)

    def forward_prefix(self, x: Tensor) -> Tensor:
        """The class token of `forward_features` (B, 1, D)."""
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(self.read_class(x))

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens to logits; with `pre_logits` to the class token (B, D)."""
        return tokens[:, 0] if pre_logits else self.head(tokens[:, 0])

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Any, ...]:
        """Patch tokens (B, N, D) of the last n self-attention blocks or of the listed ones.

        `reshape` gives (B, D, h, w). No class token exists among the patches:
        `return_class_token` pairs each result with the (B, D) one that class-attention reads
        out of those patches, which for the last block is the model's own.
        """
        wanted = pick_layers(n, len(self.blocks))
        seen: dict[int, Tensor] = {}
        x = self.embed(x)
        for number, block in enumerate(self.blocks[: max(wanted) + 1]):
            x = self._run(block, x)
            if number in wanted:
                seen[number] = x
        patches = [self.norm(seen[number]) if norm else seen[number] for number in wanted]
        if reshape:
            patches = [to_grid(tokens, self.patch_embed.grid_size) for tokens in patches]
        if not return_class_token:
            return tuple(patches)
        read = [self.read_class(seen[number])[:, 0] for number in wanted]
        return tuple(zip(patches, map(self.norm, read) if norm else read, strict=True))

    def attention(self, x: Tensor, layers: Sequence[int] = (-1,)) -> list[Tensor]:
        """Softmax maps of the listed blocks, self-attention first, class-attention last.

        Self-attention gives (B, H, N, N) after the first mixing of heads; class-attention, the
        last `depth_token_only` layers, gives (B, H, 1, 1 + N).
        """
        depth = len(self.blocks)
        wanted = pick_layers(tuple(layers), depth + len(self.blocks_token_only))
        maps: dict[int, Tensor] = {}
        x = self.embed(x)
        for number, block in enumerate(self.blocks[: max(wanted) + 1]):
            if number in wanted:
                maps[number] = cast(Block, block).attention(x)
            x = self._run(block, x)
        cls = self.cls_token.expand(x.shape[0], -1, -1)
        for number, block in enumerate(self.blocks_token_only, start=depth):
            if number in wanted:
                maps[number] = cast(ClassBlock, block).attention(cls, x)
            cls = self._run(block, cls, x)
        return [maps[number] for number in wanted]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort parameters by depth, in timm's form; blocks are as coarse
        as it gets."""
        return {
            "stem": r"^(?:cls_token|pos_embed|patch_embed)",
            "blocks": r"^blocks\.(\d+)",
            "blocks_token_only": [(r"^blocks_token_only\.(\d+)", None), (r"^norm", (99999,))],
        }


def add_scaled(x: Tensor, gain: Tensor, branch: Tensor, overwrite: bool) -> Tensor:
    """x + gain · branch, in the memory of the branch if that may be."""
    over = branch if overwrite and branch.dtype == x.dtype == gain.dtype else None
    return torch.addcmul(x, gain, branch, out=over)


def mix_heads(linear: nn.Linear, scores: Tensor) -> Tensor:
    """Apply a linear layer over the heads of (B, H, N, N) without moving them last."""
    return mixed(linear.weight, scores) + linear.bias[:, None, None]


def mixed(weight: Tensor, scores: Tensor) -> Tensor:
    """Linear combinations of the heads of (B, H, N, N), by one small matrix product."""
    return (weight.expand(scores.shape[0], -1, -1) @ scores.flatten(2)).view_as(scores)


def talk(
    query: Tensor, key: Tensor, value: Tensor, first: Tensor, second: Tensor, bias: Tensor
) -> Tensor:
    """Talking-heads attention (B, H, N, D/H) without gradients, in the form that suits the device.

    `first` (H, H) mixes scores before the softmax and holds their scale; its bias is left out,
    since it moves all scores of a row alike. `second` and `bias` mix after it; the bias adds the
    same row to every patch.
    """
    constant = bias[:, None, None] * value.sum(dim=2, keepdim=True)
    if suits_folding(query):
        return talk_folded(query, key, value, first, second) + constant
    # A graph must not depend on the batch it is made with; tiles are of one precision, and for the
    # cache of a CPU.
    device = query.device.type
    tiled = device == "cpu" and runs_at_once() and not torch.is_autocast_enabled(device)
    form = talk_in_tiles if tiled else talk_whole
    return form(query, key, value, first, second) + constant


def talk_whole(query: Tensor, key: Tensor, value: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """All scores (B, H, N, N) at once."""
    shares = mixed(first, query @ key.transpose(-2, -1)).softmax(dim=-1)
    return mixed(second, shares) @ value


def talk_in_tiles(
    query: Tensor, key: Tensor, value: Tensor, first: Tensor, second: Tensor
) -> Tensor:
    """A few images or a few queries at a time: scores stay in the cache, and little is held."""
    batch, heads, tokens, head_dim = query.shape
    images, rows = tile(batch, tokens, heads * tokens**2 * query.element_size())
    out = query.new_empty(batch, tokens, heads, head_dim).transpose(1, 2)
    # Scores and shares go to and fro between two pieces of memory.
    one, other = (query.new_empty(images * heads * rows * tokens) for _ in range(2))
    for b in range(0, batch, images):
        few = slice(b, b + images)
        for n in range(0, tokens, rows):
            part = slice(n, n + rows)
            some = query[few, :, part]
            shape, flat = (*some.shape[:3], tokens), (len(some), heads, -1)
            count = len(some) * heads * some.shape[2] * tokens
            scores, mix = one[:count].view(shape), other[:count].view(shape)
            torch.matmul(some, key[few].transpose(-2, -1), out=scores)
            torch.bmm(first.expand(len(some), -1, -1), scores.view(flat), out=mix.view(flat))
            torch.softmax(mix, dim=-1, out=scores)
            torch.bmm(second.expand(len(some), -1, -1), scores.view(flat), out=mix.view(flat))
            out[few, :, part] = mix @ value[few]
    return out


def tile(batch: int, tokens: int, image_bytes: int) -> tuple[int, int]:
    """How many images, and queries of each, are computed at once."""
    threads = torch.get_num_threads()
    images = max(1, min(batch, threads * TILE // image_bytes))
    parts = 1 if image_bytes <= WHOLE else ceil(image_bytes / PART)
    return images, ceil(tokens / parts)


def suits_folding(query: Tensor) -> bool:
    """Whether one fused kernel of head size D is better: where many scores would move through
    memory in half precision, and kernels take heads so large."""
    _, heads, tokens, head_dim = query.shape
    half = query.dtype in (torch.bfloat16, torch.float16)
    return half and tokens >= FOLD_TOKENS and heads * head_dim <= FOLD_DIM


def talk_folded(query: Tensor, key: Tensor, value: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """One fused attention with heads of size D, and no scores in memory.

    Mixed scores are those of queries that hold every head's, each times its share; what the second
    mixing gives is the sum over heads of values times their shares.
    """
    batch, heads, tokens, head_dim = query.shape
    wide = (batch, heads, tokens, heads * head_dim)
    every = key.transpose(1, 2).reshape(batch, 1, tokens, -1).expand(wide)
    # (B, 1, N, H, D/H) by (H, 1, H, 1)
    asked = (query.transpose(1, 2)[:, None] * first[:, None, :, None]).reshape(wide)
    held = (value.transpose(1, 2)[:, None] * second.t()[:, None, :, None]).reshape(wide)
    read = F.scaled_dot_product_attention(asked, every, held, scale=1.0).sum(dim=1)
    return read.view(batch, tokens, heads, head_dim).transpose(1, 2)
