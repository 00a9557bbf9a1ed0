"""The kernels that mix heads on a GPU, run by Triton's interpreter on the CPU."""

from __future__ import annotations

import os

from support.command import run_python

CODE = """
import torch
from deit_zoo.models.cait import HeadMixing
from deit_zoo.training.head_mixing import mix_by_kernel

def results(module, scores, grad, dtype):
    module.to(dtype).zero_grad()
    x = scores.to(dtype).requires_grad_()
    out = module(x)
    out.backward(grad.to(dtype))
    return [v.double().clone() for v in (out, x.grad, module.weight.grad, module.bias.grad)]

torch.manual_seed(0)
# 13 patches leave a block of scores partly filled; 70 need several for each image and head.
for heads, side in ((4, 13), (6, 70), (16, 3)):
    module = HeadMixing(heads, heads)
    scores, grad = (torch.randn(2, heads, side, side) for _ in range(2))
    expected = results(module, scores, grad, torch.float64)
    module.kernel = mix_by_kernel
    found = results(module, scores, grad, torch.float32)
    for mine, theirs in zip(found, expected, strict=True):
        bound = 1e-5 * theirs.abs().max().item()
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=bound)
    print("the same")
"""


def test_kernels_mix_heads_as_the_matrix_product_does() -> None:
    done = run_python(["-c", CODE], env=os.environ | {"TRITON_INTERPRET": "1"})
    assert done.stdout == "the same\n" * 3, done.stderr
