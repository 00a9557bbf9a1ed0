"""What a GPU computes in another way: the same results, on the CPU and by Triton's interpreter."""

from __future__ import annotations

import os

from support.command import run_python

CODE = """
import torch
from deit_zoo.models.cait import HeadMixing
from deit_zoo.models.layers import PatchEmbed
from deit_zoo.training.kernels import use_kernels

def results(module, scores, grad, dtype):
    module.to(dtype).zero_grad()
    x = scores.to(dtype).requires_grad_()
    out = module(x)
    out.backward(grad.to(dtype))
    return [v.double().clone() for v in (out, x.grad, module.weight.grad, module.bias.grad)]

torch.manual_seed(0)
# 13 patches leave a block of scores partly filled; 70 need several for each image and head.
for heads, side in ((4, 13), (6, 70), (16, 3)):
    module = HeadMixing(heads)
    scores, grad = (torch.randn(2, heads, side, side) for _ in range(2))
    expected = results(module, scores, grad, torch.float64)
    use_kernels(module)
    found = results(module, scores, grad, torch.float32)
    for mine, theirs in zip(found, expected, strict=True):
        bound = 1e-5 * theirs.abs().max().item()
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=bound)
    print("heads")

# An image that is no square, in patches of 4.
module = PatchEmbed(img_size=(12, 20), patch_size=4, in_chans=3, embed_dim=8).double()
images = torch.randn(2, 3, 12, 20, dtype=torch.float64)
expected = module(images)
use_kernels(module)
assert module.kernel is not None
torch.testing.assert_close(module(images), expected, rtol=1e-12, atol=1e-12)
print("patches")
"""


def test_a_gpu_computes_the_same_function_as_the_model_says() -> None:
    done = run_python(["-c", CODE], env=os.environ | {"TRITON_INTERPRET": "1"})
    assert done.stdout == "heads\n" * 3 + "patches\n", done.stderr
