"""Published weights for other channels and patches: timm's rules, and files that say their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import resample_patch_embed
from timm.models import adapt_input_conv

import deit_zoo
from deit_zoo import weights
from deit_zoo.data.transforms import normalized
from deit_zoo.errors import CheckpointError, ImageSizeError, ZooError
from deit_zoo.manifest import IMAGENET_MEAN, IMAGENET_STD
from deit_zoo.weights.adapt import with_channels, with_patch_size
from support.machine import NAME

FILTERS = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("in_chans", range(1, 14))
def test_filters_for_other_channels_are_timms(in_chans: int) -> None:
    expected = adapt_input_conv(in_chans, FILTERS)
    torch.testing.assert_close(with_channels(FILTERS, in_chans), expected, rtol=0, atol=0)


@pytest.mark.parametrize("patch_size", [4, 8, 14, 32])
def test_filters_for_other_patches_are_timms(patch_size: int) -> None:
    expected = resample_patch_embed(FILTERS, [patch_size, patch_size])
    torch.testing.assert_close(with_patch_size(FILTERS, patch_size), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [NAME, "convnet_pico_digits"])
def test_a_grey_image_answers_in_one_channel_as_in_three(name: str) -> None:
    grey = torch.rand(2, 1, 16, 16)
    three = deit_zoo.create(name, pretrained=True)
    one = deit_zoo.create(name, pretrained=True, in_chans=1)
    with torch.inference_mode():
        torch.testing.assert_close(one(grey), three(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(("own", "asked"), [(1, None), (3, 1)])
def test_a_stem_of_several_steps_takes_one_channel_too(
    own: int, asked: int | None, tmp_path: Path
) -> None:
    model = deit_zoo.create("deit3_small", blocks="1", stem="hmlp", img_size=32, in_chans=own)
    deit_zoo.save(model, tmp_path / "a.safetensors")
    one = deit_zoo.create(checkpoint=tmp_path / "a.safetensors", in_chans=asked)
    grey = torch.rand(2, 1, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(one(grey), model.eval()(grey.expand(-1, own, -1, -1)))


def test_more_channels_than_three_that_are_equal_answer_as_three_do() -> None:
    # The filters' sum stays: 6 channels are the three, twice, at half the weight.
    grey = torch.rand(2, 1, 16, 16)
    three = deit_zoo.create(NAME, pretrained=True)
    six = deit_zoo.create(NAME, pretrained=True, in_chans=6)
    with torch.inference_mode():
        torch.testing.assert_close(
            six(grey.expand(-1, 6, -1, -1)), three(grey.expand(-1, 3, -1, -1))
        )


def test_a_file_says_by_itself_how_many_channels_it_takes(tmp_path: Path) -> None:
    weights.save(deit_zoo.create(NAME, pretrained=True, in_chans=4), tmp_path / "a.safetensors")
    model = deit_zoo.create(NAME, checkpoint=tmp_path / "a.safetensors")
    assert (model.patch_embed.proj.in_channels, model.adapted) == (4, ())
    with pytest.raises(CheckpointError, match=r"for images of 4 channels, and only those for 3"):
        deit_zoo.create(NAME, checkpoint=tmp_path / "a.safetensors", in_chans=3)


def test_a_file_says_by_itself_how_large_its_patches_are(tmp_path: Path) -> None:
    weights.save(deit_zoo.create(NAME, pretrained=True, patch_size=8), tmp_path / "a.safetensors")
    model = deit_zoo.create(NAME, checkpoint=tmp_path / "a.safetensors")
    assert (model.patch_size, model.img_size, model.adapted) == (8, (16, 16), ())
    assert model.patch_embed.grid_size == (2, 2)


HALF = [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("file", "stated", "mean", "std", "crop_pct"),
    [
        (
            "config",
            {"pretrained_cfg": {"mean": HALF, "std": [0.5], "crop_pct": 0.9}},
            0.5,
            0.5,
            0.9,
        ),
        ("config", {"mean": HALF, "std": [0.25, 0.25, 0.25]}, 0.5, 0.25, 1.0),
        (
            "preprocessor_config",
            {
                "image_mean": HALF,
                "image_std": HALF,
                "do_center_crop": True,
                "size": {"shortest_edge": 20},
                "crop_size": {"height": 15, "width": 15},
            },
            *(0.5, 0.5, 0.75),
        ),
        ("preprocessor_config", {"do_normalize": False, "image_mean": HALF}, 0.0, 1.0, 1.0),
        (
            "preprocessor_config",  # to -1 and 1, as it was before mean and std were stated
            {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]},
            *(0.5, 0.5, 1.0),
        ),
    ],
)
def test_images_of_another_mean_spread_and_crop_are_answered_as_stated(
    file: str, stated: dict[str, Any], mean: float, std: float, crop_pct: float, tmp_path: Path
) -> None:
    plain = deit_zoo.create(NAME, pretrained=True)
    save_file(plain.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / f"{file}.json").write_text(json.dumps(stated))
    model = deit_zoo.create(NAME, checkpoint=tmp_path)
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        expected = plain((pixels / 255 - mean) / std)
        torch.testing.assert_close(model(normalized(pixels)), expected, rtol=1e-5, atol=1e-5)
        # Nothing of it is lost in a file, nor done again.
        weights.save(model, tmp_path / "again.safetensors")
        again = deit_zoo.create(tmp_path / "again.safetensors")
        assert torch.equal(again(normalized(pixels)), model(normalized(pixels)))
    assert [deit_zoo.transform(one).crop_pct for one in (model, again)] == [crop_pct, crop_pct]
    assert "from images of mean" in model.adapted[0]


def test_images_of_imagenets_mean_leave_the_weights_as_they_are(tmp_path: Path) -> None:
    plain = deit_zoo.create(NAME, pretrained=True)
    save_file(plain.state_dict(), tmp_path / "model.safetensors")
    stated = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD, "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    model = deit_zoo.create(NAME, checkpoint=tmp_path)
    assert torch.equal(model.patch_embed.proj.weight, plain.patch_embed.proj.weight)
    assert model.adapted == (
        "images resized bicubically and cut from their centre, not by squash, resample=2",
    )


@pytest.mark.parametrize(
    ("name", "stated", "message"),
    [
        (NAME, {"mean": [0.5, 0.5], "std": HALF}, "both must be 3 numbers"),
        (NAME, {"mean": HALF, "std": [0.5, 0.5, 0]}, "those of std above 0"),
        (NAME, {"mean": "grey"}, "config.json is no configuration"),
        (NAME, {"crop_pct": 0}, "config.json is no configuration"),
        (
            "convnet_pico_digits",
            {"mean": HALF, "std": HALF},
            "those of convnet_pico_digits must be",
        ),
    ],
)
def test_images_that_no_model_can_be_made_for_are_refused(
    name: str, stated: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = deit_zoo.create(name, pretrained=True)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(stated))
    with pytest.raises(CheckpointError, match=message):
        deit_zoo.create(name, checkpoint=tmp_path)


def test_what_was_fitted_is_said() -> None:
    model = deit_zoo.create(NAME, pretrained=True, in_chans=4, patch_size=8, img_size=32)
    assert model.adapted == (
        "patch_embed.proj.weight from 3 channels to 4, by timm's rule",
        "patch_embed.proj.weight from patches of 4 pixels to 8, which is an approximation",
    )
    model = deit_zoo.create(NAME, pretrained=True, img_size=(16, 24))
    assert model.adapted == ("pos_embed from 4x4 to 4x6 patches, bicubic",)
    assert deit_zoo.create(NAME, pretrained=True).adapted == ()


def test_patches_twice_as_large_see_an_image_twice_as_large_alike() -> None:
    # What the pseudo-inverse is for (FlexiViT, section 3.4), on smooth images.
    smooth = torch.nn.functional.interpolate(torch.rand(8, 3, 4, 4), 16, mode="bicubic")
    twice = torch.nn.functional.interpolate(smooth, 32, mode="bicubic")
    own = deit_zoo.create(NAME, pretrained=True)
    larger = deit_zoo.create(NAME, pretrained=True, patch_size=8, img_size=32)
    with torch.inference_mode():
        assert (own(smooth) - larger(twice)).abs().max() < 0.5 * own(smooth).std()


def test_a_convnet_has_no_patches() -> None:
    for pretrained in (False, True):
        with pytest.raises(ZooError, match=r"patch_size is 8, but .* has none; leave it out"):
            deit_zoo.create("convnet_pico_digits", pretrained, patch_size=8)


def test_patches_that_do_not_tile_the_image_are_named() -> None:
    with pytest.raises(ImageSizeError, match=r"patches of 5x5; the nearest size that can is img"):
        deit_zoo.create(NAME, pretrained=True, patch_size=5)
