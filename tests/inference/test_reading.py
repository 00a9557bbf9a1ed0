"""One reading of an image of one's own: in training, in measuring and in predicting."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import deit_zoo
from deit_zoo import weights
from deit_zoo.data.decode import open_image, read_pixels
from deit_zoo.data.folder import FolderSet
from deit_zoo.data.image_set import open_set, open_unchecked
from deit_zoo.data.transforms import as_tensor
from deit_zoo.errors import CheckpointError, DataError
from deit_zoo.evaluation.accuracy import EvalDataset
from deit_zoo.inference.classify import reading_for
from deit_zoo.labels import labels
from deit_zoo.recipes.plan import plan_from
from deit_zoo.training.finetune import make_plan
from deit_zoo.training.launch import make_plan as make_recipe_plan
from deit_zoo.training.launch import with_reading
from support.images import encoded
from support.tables import each_row


def scene() -> Image.Image:
    """A picture without symmetry: bright at the top left, dark at the bottom right."""
    ramp = np.add.outer(np.arange(24, 0, -1) * 8, np.arange(32, 0, -1))
    return Image.fromarray(np.stack([ramp, ramp // 2, 255 - ramp], -1).astype(np.uint8), "RGB")


def turned(kind: str, orientation: int = 6) -> bytes:
    """As a phone stores it: on its side, with a note."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(scene().transpose(Image.Transpose.ROTATE_90), kind, exif=exif)


def half_clear() -> Image.Image:
    image = scene().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 16, 24))
    return image


def clear_palette() -> bytes:
    return encoded(scene().quantize(16), "PNG", transparency=3)


def deep() -> Image.Image:
    values = np.add.outer(np.arange(24) * 900, np.arange(32) * 40) + 30_000
    return Image.fromarray(values.astype(np.uint16))


FILES: dict[str, Callable[[], bytes]] = {
    "a phone's JPEG": lambda: turned("JPEG"),
    "a turned PNG": lambda: turned("PNG"),
    "a turned WebP": lambda: turned("WEBP"),
    "a mirrored JPEG": lambda: turned("JPEG", 5),
    "alpha": lambda: encoded(half_clear()),
    "alpha in WebP": lambda: encoded(half_clear(), "WEBP", lossless=True),
    "a clear colour of a palette": clear_palette,
    "a clear colour of RGB": lambda: encoded(scene(), "PNG", transparency=(200, 100, 55)),
    "grey and alpha": lambda: encoded(half_clear().convert("LA")),
    "16 bits in PNG": lambda: encoded(deep()),
    "16 bits in TIFF": lambda: encoded(deep(), "TIFF"),
    "16 bits in PGM": lambda: encoded(deep(), "PPM"),
    "CMYK": lambda: encoded(scene().convert("CMYK"), "JPEG"),
    "a bitmap": lambda: encoded(scene().convert("1"), "PNG"),
}


@each_row("kind", FILES)
def test_an_image_of_ones_own_is_read_alike_everywhere(kind: str, tmp_path: Path) -> None:
    content = FILES[kind]()
    file = tmp_path / "val" / "class" / "photo.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    transform = deit_zoo.transform("deit_pico_digits", img_size=16)
    measured, _ = EvalDataset(open_set(tmp_path, "val"), transform)[0]
    opened = Image.open(file)
    given = [file, content, opened, Image.open(file)]
    for number, image in enumerate(given):
        assert torch.equal(as_tensor(image, transform), measured), number
    assert torch.equal(transform(Image.open(file)), measured)
    # What training crops from is the whole picture.
    whole = Image.fromarray(read_pixels(content, "photo", "upright"))
    assert torch.equal(transform(whole), measured)


def test_a_set_that_is_told_nothing_is_read_as_its_classes_say(tmp_path: Path) -> None:
    own, published = tmp_path / "own" / "train", tmp_path / "imagenet" / "train"
    synsets = [label.folder for label in labels("imagenet1k")]
    for root, names in ((own, ["cat"]), (published, synsets)):
        for name in names:
            (root / name).mkdir(parents=True)
            (root / name / "1.jpg").write_bytes(turned("JPEG") if name == names[0] else b"")
    assert open_set(tmp_path / "own", "train").open(0).size == (32, 24)
    assert FolderSet(own).reading == open_unchecked(own, "all").reading == "upright"
    assert open_set(tmp_path / "imagenet", "train").open(0).size == (24, 32)
    assert open_set(tmp_path / "own", "train", reading="upstream").open(0).size == (24, 32)


@each_row("kind", [kind for kind in FILES if "turned" in kind or "phone" in kind])
def test_a_turned_image_lies_only_in_upstreams_reading(kind: str) -> None:
    content = FILES[kind]()
    assert read_pixels(content, "photo", "upright").shape == (24, 32, 3)
    assert read_pixels(content, "photo", "upstream").shape == (32, 24, 3)


@each_row("kind", FILES)
def test_an_image_read_as_upstream_is_turned_by_nothing_that_follows(kind: str) -> None:
    # The evaluation transform turns what says it lies, and upstream's images must not say it.
    image = open_image(FILES[kind](), reading="upstream")
    transform = deit_zoo.transform("deit_pico_digits", img_size=16)
    plain = Image.fromarray(np.asarray(image))
    assert torch.equal(transform(image), transform(plain))


@pytest.mark.parametrize("value", [-1, 200, 70_000])
def test_integers_beyond_16_bits_are_refused(value: int) -> None:
    # Whatever they are: a scan of 8 bits that is kept in 32 would be black.
    image = Image.fromarray(np.full((8, 8), value, np.int32))
    for given in (image, encoded(image, "TIFF")):
        with pytest.raises(DataError, match="no defined range; save the image with 8 or 16 bits"):
            as_tensor(given, deit_zoo.transform("deit_pico_digits"))


def test_floats_are_refused_and_named(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "depth.tiff")
    with pytest.raises(DataError, match=r"depth\.tiff: 32-bit float pixels"):
        deit_zoo.classify(tmp_path / "depth.tiff", "deit_pico_digits")


def test_ones_own_folder_is_trained_upright_and_a_published_recipe_as_upstream() -> None:
    own, digits = make_plan("deit_pico_digits"), make_recipe_plan("deit_pico_digits", gpus=0)
    assert (own.reading, digits.reading) == ("upright", "upstream")
    assert dict(own.lines())["reading"].startswith("upright: ")
    assert plan_from(json.loads(json.dumps(own.to_dict()))) == own


def test_a_plan_that_says_no_reading_read_as_upstream() -> None:
    record = make_plan("deit_pico_digits").to_dict()
    del record["reading"]
    assert plan_from(record).reading == "upstream"


def test_whoever_fine_tunes_on_imagenet_reads_it_as_upstream() -> None:
    folders = [label.folder for label in labels("imagenet1k")]
    plan = make_plan("deit_pico_digits")
    assert with_reading(plan, folders).reading == "upstream"
    assert with_reading(plan, folders[:999]).reading == "upright"


def test_a_model_with_classes_of_its_own_is_measured_upright(tmp_path: Path) -> None:
    model = deit_zoo.create("deit_pico_digits", pretrained=True)
    assert reading_for(model) == "upstream"
    model.reset_classifier(3)
    assert reading_for(model) == "upright"
    file = tmp_path / "own.safetensors"
    weights.save(model, file, labels=["a", "b", "c"])
    again = deit_zoo.create("deit_pico_digits", checkpoint=file)
    assert (again.reading, reading_for(again)) == ("upright", "upright")
    weights.save(again, file)  # and saved once more
    assert deit_zoo.create("deit_pico_digits", checkpoint=file).reading == "upright"


def test_an_older_file_with_labels_keeps_its_reading(tmp_path: Path) -> None:
    # As runs wrote them that trained on images as upstream reads them.
    file = tmp_path / "older.safetensors"
    model = deit_zoo.create("deit_pico_digits", num_classes=2)
    weights.load.save_model(model, file, labels=["a", "b"])
    again = deit_zoo.create("deit_pico_digits", checkpoint=file)
    assert reading_for(again) == "upstream"
    assert reading_for(deit_zoo.optimize(again, "float32", compile=False)) == "upstream"


def test_a_reading_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Invalid enum value 'sideways' - at `\$\.reading`"):
        weights.save(deit_zoo.create("deit_pico_digits"), tmp_path / "a", reading="sideways")


def test_photographs_on_their_side_are_measured_as_they_are_classified(
    digits_folder: Path, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for label in range(10):
        place = tmp_path / "val" / str(label)
        place.mkdir(parents=True)
        for file in sorted((digits_folder / "val" / str(label)).iterdir())[:4]:
            image = Image.open(file).convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
            lying = image.transpose(Image.Transpose.ROTATE_90)
            lying.save(place / f"{file.stem}.jpg", exif=exif, quality=97)
    weights.save(
        deit_zoo.create("deit_pico_digits", pretrained=True),
        tmp_path / "own.safetensors",
        labels=[str(digit) for digit in range(10)],
    )
    model = deit_zoo.create("deit_pico_digits", checkpoint=tmp_path / "own.safetensors")
    files = sorted((tmp_path / "val").rglob("*.jpg"))
    classified = deit_zoo.classify(files, model, topk=1)
    right = sum(
        best.folder == file.parent.name for file, [best] in zip(files, classified, strict=True)
    )
    assert deit_zoo.evaluate(model, tmp_path).top1 == 100 * right / len(files) > 90
