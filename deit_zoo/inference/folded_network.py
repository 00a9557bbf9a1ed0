"""The network of an optimized copy: the model's function by fewer operations.

What is folded changes no result beyond rounding:

- the last block computes only the tokens that reach a head;
- the normalisation of pixels moves into the patch projection, which then takes uint8 as it is;
- positions, the projection's bias and the prefix tokens become one table;
- LayerScale moves into the projections before it, the score's scale into the mixing of heads;
- keys and values are padded to whole vector registers, and the padding is masked.

Shapes: B batch, N tokens, D embedding, H heads.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit_zoo.inference.talking_heads import runs_at_once, talking_heads
from deit_zoo.manifest import IMAGENET_MEAN, IMAGENET_STD
from deit_zoo.models import cait, deit, deit3
from deit_zoo.models.layers import Mlp, split_heads

LANES = 16  # float32 numbers in the widest vector register of a CPU


class FoldedNetwork(nn.Module):
    """What is computed, in straight lines."""

    def __init__(self, model: deit.Transformer | cait.CaiT, dtype: torch.dtype) -> None:
        super().__init__()
        self.patches = Patches(model, dtype)
        if isinstance(model, deit.Transformer):
            tokens = model.num_prefix_tokens + model.patch_embed.num_patches
            self.blocks = nn.ModuleList(
                DeiTBlock(cast(deit.Block, block), tokens, dtype) for block in model.blocks[:-1]
            )
            self.reader: nn.Module = LastBlock(model, dtype)
        else:
            self.blocks = nn.ModuleList(
                CaiTBlock(cast(cait.Block, block), dtype) for block in model.blocks
            )
            self.reader = ClassBlocks(model, dtype)
        self.norm = deepcopy(model.norm).to(dtype)
        # Heads cost nothing beside the blocks, so they stay in full precision.
        heads = model.get_classifier()
        full = torch.promote_types(dtype, torch.float32)
        self.heads = nn.ModuleList(
            deepcopy(head).to(full) for head in (heads if isinstance(heads, tuple) else (heads,))
        )
        self.to(model.pos_embed.device)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images)
        for block in self.blocks:
            x = block(x)
        tokens = self.norm(self.reader(x))  # (B, 1 or 2, D)
        logits = [
            head(tokens[:, number].to(torch.promote_types(tokens.dtype, torch.float32)))
            for number, head in enumerate(self.heads)
        ]
        return logits[0] if len(logits) == 1 else (logits[0] + logits[1]) / 2

    def bytes_of_scores(self) -> int:
        """Of one image in one block of a CaiT on a CPU; 0 where they do not matter."""
        positions = self.patches.positions  # (1, N, D)
        if not isinstance(self.reader, ClassBlocks) or not positions.is_cpu:
            return 0
        num_heads = cast(CaiTBlock, self.blocks[0]).attn.num_heads
        return int(num_heads * positions.shape[1] ** 2 * positions.dtype.itemsize)


def exact(part: Any) -> Any:
    """A tensor or a module in float64, on the CPU: Apple's GPUs have none."""
    return part.cpu().double()


class Patches(nn.Module):
    """Pixels, or normalised images, to tokens with positions (B, N, D)."""

    def __init__(self, model: deit.Transformer | cait.CaiT, dtype: torch.dtype) -> None:
        super().__init__()
        projection = model.patch_embed.proj
        self.patch_size = projection.kernel_size[0]
        weight, bias = exact(projection.weight), exact(projection.bias)
        positions, prefix = exact(model.pos_embed), None
        if isinstance(model, deit.Transformer):
            prefix = exact(torch.cat(model.prefix_tokens(), dim=1))
            # Of a DeiT III only patches have positions.
            if placed := positions.shape[1] - model.patch_embed.num_patches:
                prefix, positions = prefix + positions[:, :placed], positions[:, placed:]
            prefix = prefix.to(dtype)
        self.register_buffer("prefix", prefix)
        self.register_buffer("weight", weight.flatten(1).to(dtype, copy=True))
        self.register_buffer("positions", (positions + bias).to(dtype))
        if weight.shape[1] == len(IMAGENET_MEAN):
            mean = weight.new_tensor(IMAGENET_MEAN)[:, None, None]
            std = weight.new_tensor(IMAGENET_STD)[:, None, None]
            # (p / 255 - mean) / std of a pixel p, multiplied by the weight
            shift = (weight * (mean / std)).sum(dim=(1, 2, 3))
            self.register_buffer("pixel_weight", (weight / (255 * std)).flatten(1).to(dtype))
            self.register_buffer("pixel_positions", (positions + bias - shift).to(dtype))

    weight: Tensor
    positions: Tensor
    pixel_weight: Tensor
    pixel_positions: Tensor
    prefix: Tensor | None

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.dtype == torch.uint8
        weight = self.pixel_weight if pixels else self.weight
        positions = self.pixel_positions if pixels else self.positions
        batch, channels, height, width = images.shape
        side = self.patch_size
        # Numbers change type where they lie in order, and only then move.
        grid = images.to(weight.dtype).view(
            batch, channels, height // side, side, width // side, side
        )
        rows = grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, positions.shape[1], weight.shape[1])
        x = add(F.linear(rows, weight), positions)
        if self.prefix is None:
            return x
        return torch.cat((self.prefix.expand(batch, -1, -1), x), dim=1)


class FastBlock(nn.Module):
    """Norms, attention and MLP of a block: LayerScale is in their last projections, the scale of
    talking heads' scores in the heads' mixing."""

    def __init__(self, block: deit.Block | cait.Block, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm1, self.norm2 = (deepcopy(norm).to(dtype) for norm in (block.norm1, block.norm2))
        attn: Any = exact(deepcopy(block.attn))
        mlp = exact(deepcopy(block.mlp))
        if isinstance(block, deit3.Block | cait.Block):
            for linear, gamma in ((attn.proj, block.gamma_1), (mlp.fc2, block.gamma_2)):
                linear.weight.mul_(exact(gamma)[:, None])
                linear.bias.mul_(exact(gamma))
        if isinstance(block, cait.Block):
            attn.proj_l.weight.mul_((attn.proj.in_features // attn.num_heads) ** -0.5)
        self.attn, self.mlp = attn.to(dtype), FastMlp(mlp.to(dtype))


class FastMlp(nn.Module):
    """The model's MLP, with GELU in the memory of its input."""

    def __init__(self, mlp: Mlp) -> None:
        super().__init__()
        self.fc1, self.fc2 = mlp.fc1, mlp.fc2

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        # A large tensor is new memory from the system, which costs more than its numbers do.
        return self.fc2(torch.ops.aten.gelu_(hidden) if runs_at_once() else F.gelu(hidden))


def add(x: Tensor, branch: Tensor) -> Tensor:
    """x + branch, in the memory of x, which no one outside the network holds."""
    return x.add_(branch) if runs_at_once() else x + branch


class DeiTBlock(FastBlock):
    """Self-attention and MLP; keys and values are padded where that is faster."""

    def __init__(self, block: deit.Block, tokens: int, dtype: torch.dtype) -> None:
        super().__init__(block, dtype)
        device = block.attn.qkv.weight.device
        # Whole registers are worth their mask where these are wide and products are fast.
        wide = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"
        self.padding = -tokens % LANES if wide else 0
        mask = torch.zeros(1, 1, 1, tokens + self.padding, dtype=dtype, device=device)
        mask[..., tokens:] = -torch.inf
        self.register_buffer("mask", mask if self.padding else None)

    mask: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        attn = self.attn
        padded = self.norm1(x)
        if self.padding:
            padded = F.pad(padded, (0, 0, 0, self.padding))
        query, key, value = split_heads(attn.qkv(padded), attn.num_heads)
        query = query[:, :, : x.shape[1]]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask)
        x = add(x, attn.proj(out.transpose(1, 2).reshape(x.shape)))
        return add(x, self.mlp(self.norm2(x)))


def attend(query: Tensor, tokens: Tensor, key: Tensor, value: Tensor, value_bias: Tensor) -> Tensor:
    """Attention of a few queries (B, Q, D) over tokens (B, N, D), whose keys and values are never
    formed: the projections `key` and `value` (H, D/H, D) act on the side of the queries.

    Equal to softmax(q (K x)^T) (V x + b), since a row of the softmax sums to 1 and a bias of the
    keys moves all scores of a row alike. Worth it while Q is small against N.
    """
    num_heads, head_dim, dim = key.shape
    batch, queries, _ = query.shape
    query = (query * head_dim**-0.5).view(batch * queries, num_heads, head_dim).transpose(0, 1)
    wide = (query @ key).transpose(0, 1).reshape(batch, queries * num_heads, dim)
    read = (wide @ tokens.transpose(1, 2)).softmax(dim=-1) @ tokens  # (B, Q·H, D)
    read = read.view(batch * queries, num_heads, dim).transpose(0, 1) @ value.transpose(1, 2)
    return read.transpose(0, 1).reshape(batch, queries, dim) + value_bias


class LastBlock(FastBlock):
    """The last block of a DeiT, for the tokens that reach a head (B, 1 or 2, D)."""

    def __init__(self, model: deit.Transformer, dtype: torch.dtype) -> None:
        super().__init__(cast(deit.Block, model.blocks[-1]), dtype)
        self.num_prefix_tokens = model.num_prefix_tokens

    def forward(self, x: Tensor) -> Tensor:
        attn, tokens = self.attn, self.norm1(x)
        weights = attn.qkv.weight.view(3, attn.num_heads, -1, x.shape[-1])
        query, key, value = weights.unbind(0)  # each (H, D/H, D)
        query_bias, _, value_bias = attn.qkv.bias.chunk(3)
        prefix = tokens[:, : self.num_prefix_tokens]
        queries = F.linear(prefix, query.flatten(0, 1), query_bias)
        out = attn.proj(attend(queries, tokens, key, value, value_bias))
        x = x[:, : self.num_prefix_tokens] + out
        return x + self.mlp(self.norm2(x))


class CaiTBlock(FastBlock):
    """Talking-heads attention and MLP."""

    def forward(self, x: Tensor) -> Tensor:
        attn = self.attn
        query, key, value = split_heads(attn.qkv(self.norm1(x)), attn.num_heads)
        first, second, bias = attn.proj_l.weight, attn.proj_w.weight, attn.proj_w.bias
        out = talking_heads(query, key, value, first, second, bias)
        x = add(x, attn.proj(out.transpose(1, 2).reshape(x.shape)))
        return add(x, self.mlp(self.norm2(x)))


class ClassBlocks(nn.Module):
    """Class-attention of a CaiT: patches to the class token (B, 1, D)."""

    def __init__(self, model: cait.CaiT, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("cls_token", model.cls_token.detach().to(dtype, copy=True))
        self.blocks = deepcopy(model.blocks_token_only).to(dtype)

    cls_token: Tensor

    def forward(self, x: Tensor) -> Tensor:
        cls = self.cls_token.expand(x.shape[0], -1, -1)
        for block in cast("list[cait.ClassBlock]", self.blocks):
            attn, tokens = block.attn, block.norm1(torch.cat((cls, x), dim=1))
            shape = (attn.num_heads, -1, x.shape[-1])
            key, value = attn.k.weight.view(shape), attn.v.weight.view(shape)
            out = attn.proj(attend(attn.q(tokens[:, :1]), tokens, key, value, attn.v.bias))
            cls = cls + block.gamma_1 * out
            cls = cls + block.gamma_2 * block.mlp(block.norm2(cls))
        return cls
