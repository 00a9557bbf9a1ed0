"""Augmenting on a GPU: Pillow's pixels in every bit, by Triton's interpreter and on a device.

Expected is what timm and Pillow make of the same draws.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from deit_zoo.augment import kernels, record
from deit_zoo.recipes.deit import DEIT_SMALL
from deit_zoo.recipes.recipe import Recipe
from deit_zoo.training.timm_bridge import TrainAugment, train_augment
from harness.slots import RARE_SIZES, SIZES, batches, by_pillow, drawn_slot
from support.command import run_python

SMALL_SIZES = ((40, 30), (9, 60), (90, 11), (1, 1), (1, 50), (70, 1), (16, 16), (13, 7))
# Both layers apply an operation to every image, so that a few images are enough for all.
ALWAYS = replace(DEIT_SMALL, img_size=16, rand_augment="rand-m9-mstd0.5-inc1-p1")
INTERPRETED = """
import sys
import torch
from deit_zoo.augment import kernels

for file in sys.argv[1:]:
    slot, rows, images = torch.load(file)
    kernels.finish(slot, rows.numpy(), images)
    torch.save(images, file)
"""


def interpreted(folder: Path, slot: Tensor, rows: Any, images: Tensor) -> Tensor:
    """What the kernels write into these images."""
    file = folder / "batch.pt"
    torch.save((slot, torch.from_numpy(rows), images), file)
    run_python(["-c", INTERPRETED, file], env=os.environ | {"TRITON_INTERPRET": "1"}, check=True)
    return torch.load(file)


def operations_of(rows: Any) -> set[int]:
    return set(rows[:, record.FIRST_LAYER :: record.LAYER].ravel().tolist())


@pytest.mark.parametrize(
    ("recipe", "count"),
    [
        pytest.param(ALWAYS, 32, id="every operation"),
        # Several tiles, none of which the side is a multiple of; three layers, some skipped.
        pytest.param(replace(ALWAYS, img_size=41, rand_augment="rand-m7-n3"), 4, id="odd side"),
        pytest.param(replace(ALWAYS, img_size=32, rand_augment=None), 8, id="no RandAugment"),
    ],
)
def test_interpreted_kernels_make_the_pixels_of_pillow(
    recipe: Recipe, count: int, tmp_path: Path
) -> None:
    augment = train_augment(replace(recipe, random_erasing=0.5))
    (drawn,) = batches(augment, count, count, SMALL_SIZES)
    slot, rows = drawn_slot(drawn, augment)
    if recipe is ALWAYS:
        assert operations_of(rows) == set(range(len(record.OPERATIONS)))
    found = interpreted(tmp_path, slot, rows, torch.full((count, 3, *[recipe.img_size] * 2), 99.0))
    assert unequal(found, by_pillow(drawn, augment), rows) == {}


def unequal(found: Tensor, expected: Tensor, rows: Any) -> dict[int, list[int]]:
    """The rows of words of places that differ in any bit."""
    differs = (found != expected).flatten(1).any(1)
    return {int(place): rows[place].tolist() for place in differs.nonzero()}


def test_a_place_is_written_into_its_row_of_images_and_nowhere_else(tmp_path: Path) -> None:
    augment = train_augment(ALWAYS)
    (drawn,) = batches(augment, 2, 2, SMALL_SIZES)
    slot, rows = drawn_slot(drawn, augment)
    rows[:, record.ROW] = (3, 0)
    slot[: rows.nbytes] = torch.from_numpy(rows).view(torch.uint8).flatten()
    found = interpreted(tmp_path, slot, rows, torch.full((4, 3, 16, 16), 99.0))
    assert torch.equal(found[[3, 0]], by_pillow(drawn, augment))
    assert (found[[1, 2]] == 99.0).all()


def test_what_is_finished_but_for_its_normalisation_is_only_normalised_and_erased(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    augment = train_augment(
        replace(ALWAYS, rand_augment=None, hflip=0.0, random_erasing=1.0, crop_scale=(1.0, 1.0))
    )
    (drawn,) = batches(augment, 3, 3, ((16, 16),))
    slot, rows = drawn_slot(drawn, augment)
    found = interpreted(tmp_path, slot, rows, torch.full((3, 3, 16, 16), 99.0))
    assert torch.equal(found, by_pillow(drawn, augment))
    launched = compiled(monkeypatch, tmp_path, rows, 16)
    assert list(launched) == ["_normalize"]


TYPES = {
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
}


def compiled(monkeypatch: pytest.MonkeyPatch, folder: Path, rows: Any, size: int) -> dict[str, str]:
    """The code of each kernel that a batch launches, as an H200 would be given it."""
    code: dict[str, str] = {}

    def compile_it(kernel: Any, *given: Any, grid: Any, warmup: bool, **options: Any) -> None:
        names = [parameter.name for parameter in kernel.params]
        constants = {name: options.pop(name) for name in list(options) if name in names}
        types = dict.fromkeys(names, "constexpr")
        for name, value in zip(names, given, strict=False):
            types[name] = TYPES[value.dtype] if isinstance(value, Tensor) else "i32"
        source = ASTSource(fn=kernel, signature=types, constexprs=constants)
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        code[f"{kernel.__name__}{constants.get('LAYER', '')}"] = built.asm["ptx"]

    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder / "triton"))
    monkeypatch.setattr(JITFunction, "run", compile_it)
    images = torch.zeros(len(rows), 3, size, size)
    kernels.finish(torch.zeros(rows.nbytes, dtype=torch.uint8), rows, images)
    return code


@pytest.mark.parametrize(
    ("layers", "operating"), [(0, ["_operate0"]), (2, ["_operate0", "_operate1"])]
)
def test_compiled_for_an_h200_no_kernel_fuses_or_approximates(
    layers: int, operating: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = np.zeros((4, record.num_words(layers)), dtype=np.int64)
    rows[:, [record.HEIGHT, record.WIDTH]] = 300, 340
    code = compiled(monkeypatch, tmp_path, rows, 224)
    assert list(code) == ["_weights", "_columns", "_rows", *operating]
    found = {name: re.findall(r"fma\.|\.approx|div\.full", ptx) for name, ptx in code.items()}
    assert found == {name: [] for name in code}
    # Whether this looks at what it should: divisions that round to the nearest are there.
    assert "div.rn.f64" in code["_weights"]
    assert "div.rn.f32" in code[operating[-1]]


@pytest.fixture
def augment() -> TrainAugment:
    return train_augment(DEIT_SMALL)


def on_a_gpu(slot: Tensor, rows: Any) -> Tensor:
    images = torch.full((len(rows), 3, 224, 224), 99.0, device="cuda")
    kernels.finish(slot.cuda(), rows, images)
    return images.cpu()


@pytest.mark.gpu
def test_on_a_gpu_1000_images_are_those_of_pillow(augment: TrainAugment) -> None:
    seen: set[int] = set()
    for drawn in batches(augment, 1000, 125, (*SIZES, *RARE_SIZES)):
        slot, rows = drawn_slot(drawn, augment)
        seen |= operations_of(rows)
        assert unequal(on_a_gpu(slot, rows), by_pillow(drawn, augment), rows) == {}
    assert seen == {record.NO_OPERATION, *range(len(record.OPERATIONS))}


@pytest.mark.gpu
def test_on_a_gpu_another_number_of_images_of_other_sizes_compiles_nothing_more(
    augment: TrainAugment, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = batches(augment, 5 * 16 + 3, 16, (*SIZES, *RARE_SIZES))
    on_a_gpu(*drawn_slot(first, augment))
    compilations: list[str] = []

    def note(**told: Any) -> None:
        compilations.append(told["repr"])

    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", note)
    for drawn in others:
        on_a_gpu(*drawn_slot(drawn, augment))
    assert compilations == []
