"""Data sets written as folder trees: the same files, whole or not at all, gone on with."""

from __future__ import annotations

import shutil
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from deit_zoo.data.decode import open_image
from deit_zoo.data.folder import FolderSet
from deit_zoo.data.image_set import open_set
from deit_zoo.data.prepare import class_folder_names, imagenet_splits, shrink, write_tree
from deit_zoo.labels import labels
from support.imagenet import kit_files, solution_csv, write_tar
from support.images import encoded, photo, refused, write


def splits(root: Path) -> dict[str, FolderSet]:
    return {split: FolderSet(root / split) for split in ("train", "val")}


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_tree_holds_the_same_files_and_nothing_else_is_left(folder: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    write_tree(
        splits(folder), tmp_path / "tree", workers=2, progress=lambda *count: told.append(count)
    )
    expected = {name: file for name, file in files(folder).items() if name.endswith(".png")}
    assert files(tmp_path / "tree") == expected
    assert told == [(3, 5), (5, 5)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "tree"]


def test_a_writing_that_was_stopped_goes_on(folder: Path, tmp_path: Path) -> None:
    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tree(splits(folder), tmp_path / "tree", workers=1, progress=stop)
    assert not (tmp_path / "tree").exists()
    kept = tmp_path / ".tree.whole.unfinished" / "train" / "red" / "2.png"
    before = kept.stat().st_mtime_ns
    # What a loss of power leaves of a file.
    kept.with_name("10.png").write_bytes(b"")
    write_tree(splits(folder), tmp_path / "tree", workers=1)
    assert (tmp_path / "tree" / "train" / "red" / "2.png").stat().st_mtime_ns == before
    assert (tmp_path / "tree" / "train" / "red" / "10.png").read_bytes() == photo("red")


def test_an_image_that_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "val" / "red" / "9.png").symlink_to(tmp_path / "nowhere.png")
    told = refused(lambda: write_tree(splits(folder), tmp_path / "tree", workers=1))
    assert told.startswith(f"{folder}/val/red/9.png does not exist; ")


def test_files_of_other_data_are_not_taken_over(folder: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / ".tree.whole.unfinished"
    write(unfinished, {"train/red/other.png": photo("red")})
    assert refused(lambda: write_tree(splits(folder), tmp_path / "tree", workers=1)) == (
        f"{unfinished}/train holds 4 files for 3 images: some are of other data; remove "
        f"{unfinished} and type the command again"
    )


def test_a_folder_that_holds_something_is_not_written_to(folder: Path) -> None:
    assert refused(lambda: write_tree(splits(folder), folder, workers=1)) == (
        f"{folder} exists and is not an empty folder; give a new --output"
    )


def test_a_full_disk_is_said_before_anything_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    told = refused(lambda: write_tree(splits(folder), tmp_path / "tree", workers=1))
    assert told.endswith(
        f"GB more, and the disk of {tmp_path} has 0.0 GB free; make room, or give an --output on "
        "another disk"
    )
    assert files(tmp_path / ".tree.whole.unfinished") == {}


def test_two_images_of_a_class_with_one_name_get_two(folder: Path, tmp_path: Path) -> None:
    write(folder, {"train/red/a/2.png": photo("red", (1, 1))})
    write_tree(splits(folder), tmp_path / "tree", workers=1)
    found = files(tmp_path / "tree" / "train" / "red")
    assert found == {
        "10.png": photo("red"),
        "2.png": photo("red"),
        "00000003_2.png": photo("red", (1, 1)),
    }


def test_with_a_size_only_larger_images_change(tmp_path: Path) -> None:
    noise = Image.effect_noise((40, 90), 50).convert("RGB")
    large, small = encoded(noise, "JPEG", quality=95), encoded(noise.resize((20, 60)), "JPEG")
    named = {"large.JPEG": large, "small.JPEG": small, "other.png": encoded(noise)}
    write(tmp_path / "data" / "train" / "a", named)
    write_tree(
        {"train": FolderSet(tmp_path / "data" / "train")}, tmp_path / "tree", size=20, workers=2
    )
    found = files(tmp_path / "tree" / "train" / "a")
    assert found["small.JPEG"] == small
    for name, kind in (("large.JPEG", "JPEG"), ("other.png", "PNG")):
        with Image.open(BytesIO(found[name])) as image:
            assert (image.size, image.format, image.mode) == ((20, 45), kind, "RGB")


def test_a_smaller_image_is_turned_as_the_larger_was() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = encoded(Image.effect_noise((90, 40), 50), "JPEG", exif=exif)
    smaller = shrink(lying, "phone.jpg", 20)
    assert open_image(smaller, reading="upstream").size == (45, 20)
    assert open_image(smaller, reading="upright").size == (20, 45)


@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_an_image_that_two_ways_of_reading_see_differently_keeps_its_bytes(mode: str) -> None:
    content = encoded(Image.new(mode, (40, 40)))
    assert shrink(content, "cut-out.png", 20) == content


def test_an_image_that_cannot_be_made_smaller_is_named() -> None:
    assert refused(lambda: shrink(b"not found", "here.jpg", 20)).startswith(
        "here.jpg cannot be read as an image (its format is not known); "
    )


def test_classes_become_folders_of_the_output() -> None:
    assert class_folder_names(["apple/rot", "a b"]) == ["apple_rot", "a b"]
    words = [label.name for label in labels("imagenet1k")]
    words[517] = "construction crane"
    assert class_folder_names(words) == [label.folder for label in labels("imagenet1k")]


@pytest.mark.parametrize(
    ("classes", "example"), [(["..", "a"], ".."), (["a/b", "a_b"], "a_b"), (["a", ""], "")]
)
def test_classes_that_cannot_become_folders_are_refused(classes: list[str], example: str) -> None:
    assert refused(lambda: class_folder_names(classes)).startswith(
        f"class {example!r} cannot be the name of a folder of its own; "
    )


SYNSETS = ["n02119789", "n01440764"]
LABELS = ["n01440764", "n02119789", "n01440764"]


@pytest.fixture
def archives(tmp_path: Path) -> tuple[Path, Path]:
    """ImageNet's archives, of two classes and three images to validate with."""
    inner = {
        f"{name}.tar": write_tar(
            tmp_path / f"{name}.tar", {f"{name}_{number}.JPEG": photo("red") for number in (1, 2)}
        ).read_bytes()
        for name in SYNSETS
    }
    train = write_tar(tmp_path / "downloads" / "ILSVRC2012_img_train.tar", inner)
    images = {f"ILSVRC2012_val_{n:08}.JPEG": photo("blue", (n, 1)) for n in (1, 2, 3)}
    return train, write_tar(tmp_path / "downloads" / "ILSVRC2012_img_val.tar", images)


EXPECTED = {f"train/{name}/{name}_{number}.JPEG" for name in SYNSETS for number in (1, 2)} | {
    f"val/{label}/ILSVRC2012_val_{n:08}.JPEG" for n, label in enumerate(LABELS, start=1)
}


def test_imagenets_archives_become_its_tree(archives: tuple[Path, Path], tmp_path: Path) -> None:
    kit = write_tar(tmp_path / "kit.tar.gz", kit_files(SYNSETS, LABELS), "w:gz")
    listed: list[int] = []
    write_tree(imagenet_splits(*archives, kit, listed.append), tmp_path / "tree", workers=1)
    found = files(tmp_path / "tree")
    assert found.keys() == EXPECTED
    assert found["val/n02119789/ILSVRC2012_val_00000002.JPEG"] == photo("blue", (2, 1))
    assert sum(listed) == len(EXPECTED)


def test_labels_beside_the_archives_are_found(archives: tuple[Path, Path], tmp_path: Path) -> None:
    assert refused(lambda: imagenet_splits(*archives)) == (
        f"nothing beside {archives[1]} says what its images show; type --devkit "
        "ILSVRC2012_devkit_t12.tar.gz, or Kaggle's LOC_val_solution.csv"
    )
    write(archives[1].parent, {"LOC_val_solution.csv": solution_csv(LABELS)})
    write_tree(imagenet_splits(*archives), tmp_path / "tree", workers=2)
    assert files(tmp_path / "tree").keys() == EXPECTED


def test_a_row_of_a_table_becomes_a_file_of_its_kind(tmp_path: Path) -> None:
    noise = Image.effect_noise((4, 4), 50)
    rows = [(encoded(noise), 0), (encoded(noise, "JPEG"), 1), (encoded(noise, "BMP"), 1)]
    for split in ("train", "val"):
        table = pa.table({"image": [file for file, _ in rows], "label": [n for _, n in rows]})
        parquet.write_table(table, tmp_path / f"{split}.parquet")
    images = {"train": open_set(tmp_path, "train"), "val": open_set(tmp_path, "val")}
    write_tree(images, tmp_path / "tree", workers=1)
    assert files(tmp_path / "tree" / "val") == {
        "0/00000000.png": rows[0][0],
        "1/00000001.jpeg": rows[1][0],
        "1/00000002.bmp": rows[2][0],
    }
