"""DeiT III's other builds: parallel blocks, more of them, and a stem of several steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import deit_zoo
import golden
from deit_zoo.errors import ZooError
from deit_zoo.registry.names import resolve
from deit_zoo.weights import load
from support.tables import each_row


@each_row(
    ("options", "num_params"),
    [
        # forward/deit_small_patch16_18x2_LS and _36_LS of the golden files.
        ({"blocks": "18x2"}, 64_665_064),
        ({"blocks": "36"}, 64_665_064),
        ({"blocks": "12"}, 22_059_496),
    ],
)
def test_create_builds_it_by_name(options: dict[str, Any], num_params: int) -> None:
    model = deit_zoo.create("deit3_small", device="meta", **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_params


@pytest.mark.parametrize("options", [{"blocks": "2x2"}, {"stem": "hmlp"}], ids=str)
def test_a_file_of_it_says_how_it_is_built(options: dict[str, Any], tmp_path: Path) -> None:
    with torch.device("meta"):
        spec = resolve("deit3_small").variant(options.get("blocks"), options.get("stem", "linear"))
        model = spec.build(img_size=32, num_classes=3)
    golden.filled(model).eval()
    load.save_model(model, tmp_path / "model.safetensors", labels=["a", "b", "c"])
    loaded = deit_zoo.create(checkpoint=tmp_path)
    assert loaded.spec is not None
    assert (loaded.spec.blocks, loaded.spec.stem) == (spec.blocks, spec.stem)
    images = torch.from_numpy(golden.normals("builds", (2, 3, 32, 32)))
    with torch.inference_mode():
        assert torch.equal(loaded(images), model(images))


def test_attention_shows_the_heads_of_both_branches() -> None:
    model = resolve("deit3_small").variant("2x2", "linear").build(img_size=32).eval()
    [maps] = model.attention(torch.zeros(1, 3, 32, 32))
    assert maps.shape == (1, 12, 5, 5)


@each_row(
    ("name", "options"),
    [
        ("deit_small", {"blocks": "18x2"}),
        ("cait_s24_224", {"stem": "hmlp"}),
        ("deit3_small", {"blocks": "18x3"}),
        ("deit3_small", {"blocks": "0"}),
        ("deit3_small", {"blocks": "1000"}),
        ("deit3_small", {"stem": "conv"}),
    ],
)
def test_another_build_is_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ZooError, match="a DeiT III is, with blocks such as '36' or '18x2'"):
        deit_zoo.create(name, **options)


def test_no_weights_were_published_for_it() -> None:
    with pytest.raises(ZooError, match="none were published so"):
        deit_zoo.create("deit3_small", pretrained=True, blocks="18x2")


def test_the_stem_is_for_patches_of_16_pixels() -> None:
    with pytest.raises(ZooError, match="makes patches of 16 pixels, not of 14"):
        deit_zoo.create("deit3_huge", stem="hmlp", device="meta")


def test_a_copy_of_it_cannot_be_optimized() -> None:
    model = resolve("deit3_small").variant("1x2", "linear").build(img_size=32).eval()
    with pytest.raises(ZooError, match="cannot be optimized; use the model as it is"):
        deit_zoo.optimize(model)
