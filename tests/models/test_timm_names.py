"""What timm's users call on a model: the same names, and the same answers for the same weights."""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch

import deit_zoo
from deit_zoo.errors import ImageSizeError, ZooError
from deit_zoo.models.model import ZooModel
from deit_zoo.registry import MODELS
from deit_zoo.weights.formats import to_file_keys
from support.tables import each_row

# One of each family, and DeiT with two prefix tokens.
NAMES = ["deit_tiny", "deit_tiny_distilled", "cait_xxs24_224", "deit3_small"]
DIGITS = ["deit_pico_digits", "deit_pico_distilled_digits", "convnet_pico_digits"]


def pair_of(name: str) -> tuple[ZooModel, Any]:
    """Five blocks of our model and of timm's with the same random weights."""
    cut = {"depth": 5, "img_size": 64}
    ours = MODELS[name].build(**cut).eval()
    alias = next(alias for alias in MODELS[name].aliases if alias.endswith("_in1k"))
    theirs = timm.create_model(alias, pretrained=False, **cut).eval()
    theirs.load_state_dict(to_file_keys(ours.state_dict(), ours.spec))
    return ours, theirs


@each_row("name", [*NAMES, *DIGITS])
def test_the_width_of_features_has_timms_name(name: str) -> None:
    model = deit_zoo.create(name, num_classes=0, device="meta").eval()
    size = model.img_size
    assert model(torch.zeros(1, 3, *size, device="meta")).shape == (1, model.num_features)


@each_row("name", ["deit_base_384", *NAMES, *DIGITS])
def test_timm_prepares_images_as_the_models_own_transform_does(name: str) -> None:
    model = deit_zoo.create(name, device="meta")
    config, own = timm.data.resolve_model_data_config(model), deit_zoo.transform(model)
    assert config == {
        "input_size": (3, *own.img_size),
        "crop_mode": "center",
        **{key: getattr(own, key) for key in ("crop_pct", "interpolation", "mean", "std")},
    }


@each_row("name", NAMES)
@torch.inference_mode()
def test_intermediates_are_those_of_timm(name: str) -> None:
    ours, theirs = pair_of(name)
    image = torch.rand(2, 3, 64, 64)
    for options in (
        {},
        {"indices": 2},
        {"indices": [0, -1], "norm": True},
        {"indices": [1, 3], "stop_early": True, "output_fmt": "NLC"},
    ):
        last, maps = ours.forward_intermediates(image, **options)
        their_last, their_maps = theirs.forward_intermediates(image, **options)
        assert [found.shape for found in maps] == [expected.shape for expected in their_maps]
        for found, expected in zip((last, *maps), (their_last, *their_maps), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        alone = ours.forward_intermediates(image, intermediates_only=True, **options)
        assert all(torch.equal(one, other) for one, other in zip(alone, maps, strict=True))


@torch.inference_mode()
def test_prefix_tokens_come_in_pairs_as_in_timm() -> None:
    ours, theirs = pair_of("deit_tiny_distilled")
    image = torch.rand(1, 3, 64, 64)
    options: dict[str, Any] = {"return_prefix_tokens": True, "intermediates_only": True}
    found, expected = (m.forward_intermediates(image, 1, **options)[0] for m in (ours, theirs))
    assert [part.shape for part in found] == [(1, 192, 4, 4), (1, 2, 192)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_convnets_intermediates_are_its_maps() -> None:
    model = deit_zoo.create("convnet_pico_digits").eval()
    image = torch.rand(1, 3, 16, 16)
    last, maps = model.forward_intermediates(image, norm=True)
    assert [tuple(found.shape[1:]) for found in maps] == [(32, 16, 16), (64, 8, 8), (128, 4, 4)]
    assert torch.equal(maps[-1].flatten(2).transpose(1, 2), last)
    assert torch.equal(last, model.forward_features(image))


def test_a_form_that_is_none_is_refused() -> None:
    model = deit_zoo.create("deit_pico_digits")
    with pytest.raises(ZooError, match="output_fmt is 'CHW'; give NCHW or NLC"):
        model.forward_intermediates(torch.rand(1, 3, 16, 16), output_fmt="CHW")


@each_row("name", DIGITS)
def test_another_input_size_is_the_model_that_create_makes_of_that_size(name: str) -> None:
    model = deit_zoo.create(name, pretrained=True)
    model.set_input_size((24, 32))
    made = deit_zoo.create(name, pretrained=True, img_size=(24, 32))
    assert (model.img_size, deit_zoo.transform(model).img_size) == ((24, 32), (24, 32))
    image = torch.rand(1, 3, 24, 32)
    with torch.inference_mode():
        assert torch.equal(model(image), made(image))


@each_row("name", NAMES)
def test_every_family_takes_another_input_size(name: str) -> None:
    model = MODELS[name].build(img_size=32, depth=2).eval().to(torch.bfloat16)
    model.pos_embed.requires_grad_(False)
    model.set_input_size(48)
    assert model.pos_embed.dtype == torch.bfloat16
    assert not model.pos_embed.requires_grad
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 48, 48).to(torch.bfloat16)).shape == (1, 1000)


@each_row("name", DIGITS)
def test_a_size_of_no_pixels_is_refused(name: str) -> None:
    for size in (0, ()):
        with pytest.raises(ImageSizeError, match=rf"img_size is {re.escape(repr(size))}; give one"):
            deit_zoo.create(name).set_input_size(size)


def test_a_size_that_patches_do_not_tile_leaves_the_model_as_it_was() -> None:
    model = deit_zoo.create("deit_pico_digits").eval()
    with pytest.raises(ImageSizeError, match="the nearest size that can is"):
        model.set_input_size(18)
    with pytest.raises(ZooError, match=r"create\(name, patch_size=8\) resamples its filters"):
        model.set_input_size(16, patch_size=8)
    assert model(torch.rand(1, 3, 16, 16)).shape == (1, 10)
