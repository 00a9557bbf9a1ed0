"""What a GPU computes in another way than the model says: the same function, in less time.

Patches do not overlap, so their projection is one matrix product; as a convolution it costs several
times that. Of matrices as small as heads by heads no library has a fast product: two kernels mix
heads, forwards and backwards, and add up the gradient of the weight.

Shapes: B batch, N patches, D embedding, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.library import triton_op, wrap_triton

from deit_zoo.models.cait import HeadMixing
from deit_zoo.models.layers import PatchEmbed

BLOCK = 1024  # scores of a head that a program holds at once
BLOCKS = 4  # that a program adds up for the gradient of the weight


def use_kernels(model: nn.Module) -> None:
    """Let a model that trains on a GPU compute so."""
    for module in model.modules():
        if isinstance(module, HeadMixing):
            module.kernel = mix_by_kernel
        elif isinstance(module, PatchEmbed) and isinstance(module.proj, nn.Conv2d):
            module.kernel = project_patches


def project_patches(module: PatchEmbed, x: Tensor) -> Tensor:
    """What PatchEmbed gives for images (B, C, H, W): patches side by side, times one matrix."""
    (rows, columns), side = module.grid_size, module.proj.kernel_size[0]
    x = x.reshape(*x.shape[:2], rows, side, columns, side)
    patches = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, N, C·side·side)
    return F.linear(patches, module.proj.weight.flatten(1), module.proj.bias)


def mix_by_kernel(module: HeadMixing, x: Tensor) -> Tensor:
    """What HeadMixing gives for (B, H, N, N), in the precision of matrix products."""
    if torch.is_autocast_enabled("cuda"):
        x = x.to(torch.get_autocast_dtype("cuda"))
    return mix_heads(x.contiguous(), module.weight, module.bias)


@triton_op("deit_zoo::mix_heads", mutates_args={})
def mix_heads(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """weight (H, H) times the heads of x (B, H, N, N), plus bias (H); sums are in float32."""
    batch, heads = x.shape[:2]
    size = x.shape[2] * x.shape[3]
    out = torch.empty_like(x)
    grid = (triton.cdiv(size, BLOCK), batch)
    wrap_triton(_mix)[grid](x, weight, bias, out, size, HEADS=heads, BLOCK=BLOCK)
    return out


@triton_op("deit_zoo::mix_heads_gradient", mutates_args={})
def mix_heads_gradient(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of weight (H, H) and bias (H), from x and that of what was mixed."""
    batch, heads = x.shape[:2]
    size = x.shape[2] * x.shape[3]
    parts = triton.cdiv(size, BLOCK * BLOCKS)
    sums = torch.empty(batch, parts, heads, heads + 1, dtype=torch.float32, device=x.device)
    grid = (parts, batch)
    wrap_triton(_gradient)[grid](x, grad, sums, size, HEADS=heads, BLOCK=BLOCK, BLOCKS=BLOCKS)
    total = sums.sum(dim=(0, 1))
    return total[:, :heads].contiguous(), total[:, heads].contiguous()


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = ctx.saved_tensors
    grad = grad.contiguous()
    of_weight, of_bias = mix_heads_gradient(x, grad)
    of_x = mix_heads(grad, weight.t().contiguous(), torch.zeros_like(of_bias))
    return of_x, of_weight, of_bias


mix_heads.register_autograd(_backward, setup_context=_keep)


@triton.jit  # type: ignore[untyped-decorator]
def _mix(  # type: ignore[no-untyped-def]
    x, weight, bias, out, size, HEADS: tl.constexpr, BLOCK: tl.constexpr
):
    """One block of scores of every head of one image."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    first = tl.program_id(1).to(tl.int64) * HEADS * size
    for o in tl.static_range(HEADS):
        total = tl.zeros((BLOCK,), dtype=tl.float32) + tl.load(bias + o)
        for i in tl.static_range(HEADS):
            scores = tl.load(x + first + i * size + places, mask=inside, other=0.0)
            total += tl.load(weight + o * HEADS + i) * scores.to(tl.float32)
        tl.store(out + first + o * size + places, total.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _gradient(  # type: ignore[no-untyped-def]
    x, grad, sums, size, HEADS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr
):
    """Of some blocks of one image: gradient times scores, of every head with every head."""
    image, part = tl.program_id(1), tl.program_id(0)
    first = image.to(tl.int64) * HEADS * size
    target = sums + (image * tl.num_programs(0) + part) * HEADS * (HEADS + 1)
    for o in tl.static_range(HEADS):
        for i in tl.static_range(HEADS + 1):
            total = tl.zeros((BLOCK,), dtype=tl.float32)
            for block in range(BLOCKS):
                places = (part * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
                inside = places < size
                of_out = tl.load(grad + first + o * size + places, mask=inside, other=0.0)
                product = of_out.to(tl.float32)
                if i < HEADS:  # the last column is the bias's
                    scores = tl.load(x + first + i * size + places, mask=inside, other=0.0)
                    product *= scores.to(tl.float32)
                total += product
            tl.store(target + o * (HEADS + 1) + i, tl.sum(total, axis=0))
