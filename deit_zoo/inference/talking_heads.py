"""Talking-heads attention without gradients, in the form that suits a device and a size.

All forms compute softmax(first · scores) mixed by `second`, and its product with the values:

- in one: all scores at once, in whatever graph is being made;
- in tiles: a few images or queries at a time, whose scores stay in a CPU's cache;
- fused: one fused kernel, for many patches in half precision.

Shapes: B batch, N patches, D embedding, H heads.
"""

from __future__ import annotations

from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

# Bytes of scores that go together: of several images up to TILE for each thread, which stays in a
# core's cache; one image is cut above WHOLE, into pieces of PART.
TILE, WHOLE, PART = 1_000_000, 6_000_000, 2_500_000
# From so many patches and up to this width, one fused kernel beats mixing in half precision.
FUSED_TOKENS, FUSED_DIM = 400, 256


def talking_heads(
    query: Tensor, key: Tensor, value: Tensor, first: Tensor, second: Tensor, bias: Tensor
) -> Tensor:
    """Talking-heads attention (B, H, N, D/H).

    `first` (H, H) mixes scores before the softmax and holds their scale; its bias is left out,
    since it moves all scores of a row alike. `second` and `bias` mix after it; the bias adds the
    same row to every patch.
    """
    constant = bias[:, None, None] * value.sum(dim=2, keepdim=True)
    if suits_fusing(query):
        return talking_heads_fused(query, key, value, first, second) + constant
    # A graph must not depend on the batch it is made with; tiles are of one precision, and for the
    # cache of a CPU.
    device = query.device.type
    tiled = device == "cpu" and runs_at_once() and not torch.is_autocast_enabled(device)
    if tiled:
        return talking_heads_in_tiles(query, key, value, first, second).add_(constant)
    return talking_heads_in_one(query, key, value, first, second) + constant


def mix(weight: Tensor, scores: Tensor) -> Tensor:
    """Linear combinations of the heads of (B, H, N, N), by one small matrix product."""
    return (weight.expand(scores.shape[0], -1, -1) @ scores.flatten(2)).view_as(scores)


def talking_heads_in_one(
    query: Tensor, key: Tensor, value: Tensor, first: Tensor, second: Tensor
) -> Tensor:
    """All scores (B, H, N, N) at once."""
    shares = mix(first, query @ key.transpose(-2, -1)).softmax(dim=-1)
    return mix(second, shares) @ value


def talking_heads_in_tiles(
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
            scores, mixed = one[:count].view(shape), other[:count].view(shape)
            torch.matmul(some, key[few].transpose(-2, -1), out=scores)
            torch.bmm(first.expand(len(some), -1, -1), scores.view(flat), out=mixed.view(flat))
            torch.softmax(mixed, dim=-1, out=scores)
            torch.bmm(second.expand(len(some), -1, -1), scores.view(flat), out=mixed.view(flat))
            out[few, :, part] = mixed @ value[few]
    return out


def tile(batch: int, tokens: int, image_bytes: int) -> tuple[int, int]:
    """How many images, and queries of each, are computed at once."""
    threads = torch.get_num_threads()
    images = max(1, min(batch, threads * TILE // image_bytes))
    parts = 1 if image_bytes <= WHOLE else ceil(image_bytes / PART)
    return images, ceil(tokens / parts)


def suits_fusing(query: Tensor) -> bool:
    """Whether one fused kernel of head size D is better: where many scores would move through
    memory in half precision, and kernels take heads so large."""
    _, heads, tokens, head_dim = query.shape
    half = query.dtype in (torch.bfloat16, torch.float16)
    return half and tokens >= FUSED_TOKENS and heads * head_dim <= FUSED_DIM


def talking_heads_fused(
    query: Tensor, key: Tensor, value: Tensor, first: Tensor, second: Tensor
) -> Tensor:
    """One fused attention with heads of size D, and no scores in memory.

    Mixed scores are those of queries that hold every head's, each times its share; what the second
    mixing gives is the sum over heads of values times their shares.
    """
    batch, heads, tokens, head_dim = query.shape
    wide = (batch, heads, tokens, heads * head_dim)
    keys = key.transpose(1, 2).reshape(batch, 1, tokens, -1).expand(wide)
    # (B, 1, N, H, D/H) by (H, 1, H, 1)
    queries = (query.transpose(1, 2)[:, None] * first[:, None, :, None]).reshape(wide)
    values = (value.transpose(1, 2)[:, None] * second.t()[:, None, :, None]).reshape(wide)
    out = F.scaled_dot_product_attention(queries, keys, values, scale=1.0).sum(dim=1)
    return out.view(batch, tokens, heads, head_dim).transpose(1, 2)


def runs_at_once() -> bool:
    """Whether operations run as they are called: no graph is being made of them, by torch.compile,
    torch.export or a trace, and no transform of torch.func, such as vmap, stands in between."""
    recorded = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    return not recorded and torch._C._functorch.peek_interpreter_stack() is None
