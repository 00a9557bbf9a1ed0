"""Data sets written as folder trees: the same files, whole or not at all, gone on with."""

from __future__ import annotations

import shutil
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from deit_zoo.data.folder import FolderSet
from deit_zoo.data.prepare import class_folder_names, shrink, write_tree
from deit_zoo.labels import labels
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
