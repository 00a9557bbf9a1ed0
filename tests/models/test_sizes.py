"""Other image sizes and channels than a model was published for, and those it must refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import deit_zoo
import golden
from deit_zoo.errors import ImageSizeError
from deit_zoo.models.layers import resize_pos_embed
from deit_zoo.models.model import ZooModel
from deit_zoo.registry.names import resolve
from deit_zoo.weights import load
from support.tables import each_row

PREFIX = {
    "deit_tiny": 1,
    "deit_tiny_distilled": 2,
    "cait_xxs24_224": 0,
    "deit3_small": 0,
}  # rows of pos_embed
NAMES = list(PREFIX)
SIZES = [384, (192, 256), 160]
GRIDS = {384: (24, 24), (192, 256): (12, 16), 160: (10, 10)}

Size = int | tuple[int, int]

transformers = pytest.mark.parametrize("build", NAMES, indirect=True)


def blank(img_size: Size, in_chans: int = 3) -> torch.Tensor:
    sides = (img_size, img_size) if isinstance(img_size, int) else img_size
    return torch.zeros(1, in_chans, *sides)


@each_row("img_size", SIZES)
@each_row("name", NAMES)
def test_a_model_runs_at_the_image_size_it_was_made_for(name: str, img_size: Size) -> None:
    model = resolve(name).build(img_size=img_size, depth=2, num_classes=7).eval()
    with torch.inference_mode():
        assert model(blank(img_size)).shape == (1, 7)


@each_row("img_size", SIZES)
@each_row("name", NAMES)
def test_a_model_has_one_position_per_patch(name: str, img_size: Size) -> None:
    height, width = GRIDS[img_size]
    model = deit_zoo.create(name, img_size=img_size, device="meta")
    assert model.pos_embed.shape == (1, PREFIX[name] + height * width, model.embed_dim)


@each_row("in_chans", [1, 4])
@each_row("name", NAMES)
def test_a_model_runs_on_images_of_other_channels(name: str, in_chans: int) -> None:
    model = resolve(name).build(img_size=32, in_chans=in_chans, depth=2, num_classes=7).eval()
    with torch.inference_mode():
        assert model(blank(32, in_chans)).shape == (1, 7)


@pytest.fixture(scope="module", params=NAMES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 224x224 pixels in a file called after its model."""
    file = tmp_path_factory.mktemp("saved") / f"{request.param}.safetensors"
    load.save_model(golden.filled(deit_zoo.create(request.param, device="meta")), file)
    return file


@each_row("img_size", SIZES)
def test_positions_of_a_checkpoint_are_resampled_to_the_size_asked_for(
    saved: Path, img_size: Size
) -> None:
    model = deit_zoo.create(saved.stem, checkpoint=saved, img_size=img_size)
    stored = load.read_tensors(saved)["pos_embed"]
    expected = resize_pos_embed(stored, (14, 14), GRIDS[img_size], PREFIX[saved.stem])
    assert torch.equal(model.pos_embed, expected)


def test_a_checkpoint_at_its_own_size_keeps_its_positions(saved: Path) -> None:
    model = deit_zoo.create(saved.stem, checkpoint=saved, img_size=224)
    assert torch.equal(model.pos_embed, load.read_tensors(saved)["pos_embed"])


def test_another_image_size_changes_positions_and_nothing_else(saved: Path) -> None:
    state = deit_zoo.create(saved.stem, checkpoint=saved, img_size=160).state_dict()
    stored = load.read_tensors(saved)
    changed = [name for name, value in stored.items() if not torch.equal(value, state[name])]
    assert changed == ["pos_embed"]


def test_a_resampled_checkpoint_runs_at_the_size_asked_for(saved: Path) -> None:
    model = deit_zoo.create(saved.stem, checkpoint=saved, img_size=(64, 96))
    with torch.inference_mode():
        assert model(blank((64, 96))).shape == (1, 1000)


def test_a_checkpoint_of_oblong_images_comes_back_at_its_size(tmp_path: Path) -> None:
    oblong = golden.filled(deit_zoo.create("deit_tiny", img_size=(64, 96), device="meta"))
    load.save_model(oblong, tmp_path / "oblong.safetensors")
    model = deit_zoo.create("deit_tiny", checkpoint=tmp_path / "oblong.safetensors")
    assert model.img_size == (64, 96)


def test_positions_of_oblong_images_are_resampled_from_their_own_grid(tmp_path: Path) -> None:
    oblong = golden.filled(deit_zoo.create("deit_tiny", img_size=(64, 96), device="meta"))
    file = tmp_path / "oblong.safetensors"
    load.save_model(oblong, file)
    model = deit_zoo.create("deit_tiny", checkpoint=file, img_size=(96, 64))
    expected = resize_pos_embed(oblong.pos_embed, (4, 6), (6, 4), 1)
    assert torch.equal(model.pos_embed, expected)


def test_rows_of_positions_stay_rows_when_resampled() -> None:
    # A table that tells rows apart and not columns: so does the resampled one.
    table = torch.arange(4.0).repeat_interleave(6).reshape(1, 24, 1)
    grid = resize_pos_embed(table, (4, 6), (8, 5), 0).reshape(8, 5)
    assert grid.std(dim=1).max() < 1e-6
    assert bool((grid[:, 0].diff() > 0).all())


@pytest.mark.parametrize("img_size", [(160, 160), 160], ids=str)
def test_a_square_image_size_may_be_one_number_or_two(img_size: Size) -> None:
    assert deit_zoo.create("deit_tiny", img_size=img_size, device="meta").img_size == (160, 160)


@each_row(
    ("img_size", "nearest"),
    [(225, "224"), ((190, 250), "(192, 256), typed as 192x256"), (250, "256"), (5, "16")],
)
@each_row("name", NAMES)
def test_a_size_that_patches_do_not_tile_is_refused_with_the_nearest_that_they_do(
    name: str, img_size: Size, nearest: str
) -> None:
    with pytest.raises(ImageSizeError) as refused:
        deit_zoo.create(name, img_size=img_size)
    assert str(refused.value).endswith(f"img_size={nearest}")


def test_a_checkpoint_is_not_resampled_to_a_size_that_patches_do_not_tile(saved: Path) -> None:
    with pytest.raises(ImageSizeError, match=r"img_size=224$"):
        deit_zoo.create(saved.stem, checkpoint=saved, img_size=225)


@pytest.mark.parametrize("img_size", [0, -16, (224,), (224, 224, 3), (224.0, 224.0)], ids=str)
def test_an_image_size_that_is_none_is_refused(img_size: Size) -> None:
    with pytest.raises(ImageSizeError, match="give one number of pixels or"):
        deit_zoo.create("deit_tiny", img_size=img_size)


@transformers
def test_images_of_another_size_are_refused(network: ZooModel) -> None:
    with pytest.raises(ImageSizeError, match=r"images of 32x48 pixels, not 48x32"):
        network(torch.zeros(2, 3, 48, 32))


@transformers
def test_images_of_other_channels_are_refused(network: ZooModel) -> None:
    with pytest.raises(ImageSizeError, match=r"\(B, 3, 32, 48\), not \(2, 1, 32, 48\)"):
        network(torch.zeros(2, 1, 32, 48))


@transformers
def test_an_image_without_a_batch_is_refused(network: ZooModel) -> None:
    with pytest.raises(ImageSizeError, match=r"x\[None\]"):
        network(torch.zeros(3, 32, 48))
