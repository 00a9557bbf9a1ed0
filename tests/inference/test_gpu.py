"""What a GPU does to predictions: the CPU's classes, by faster kernels."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import deit_zoo
from deit_zoo.data.digits import digits

pytestmark = pytest.mark.gpu
NAME = "deit_pico_digits"
HELD_OUT = slice(1437, 1437 + 128)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [image for image, _ in list(digits())[HELD_OUT]]


def best(images: list[Image.Image], device: str, fast: bool = False) -> list[str]:
    found = deit_zoo.classify(images, NAME, topk=1, device=device, fast=fast)
    return [first.label for [first] in found]


def test_a_gpu_gives_the_classes_of_the_cpu(images: list[Image.Image]) -> None:
    assert best(images, "cuda") == best(images, "cpu")


def test_the_fast_copy_on_a_gpu_gives_nearly_all_classes_of_the_cpu(
    images: list[Image.Image],
) -> None:
    # In bfloat16; an image whose two best classes are nearly equal may change them.
    pairs = list(zip(best(images, "cuda", fast=True), best(images, "cpu"), strict=True))
    assert sum(found != expected for found, expected in pairs) <= 1


@pytest.mark.parametrize("batch", [1, 3])
def test_the_compiled_copy_on_a_gpu_gives_the_logits_of_the_cpu(batch: int) -> None:
    model = deit_zoo.create(NAME, pretrained=True).eval()
    pixels = torch.randn(batch, 3, 16, 16)
    with torch.inference_mode():
        expected = model(pixels)
        fast = deit_zoo.optimize(model.cuda(), "float32", compile=True)
        for _ in range(3):  # a graph is recorded, then replayed
            found = fast(pixels.cuda()).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
