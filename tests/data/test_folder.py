"""Folders of class folders: which images they hold, in which order, with which labels."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

import deit_zoo
from deit_zoo.data.folder import FolderSet
from deit_zoo.data.image_set import open_set
from deit_zoo.data.survey import validate
from support.images import photo, refused, write


def names_of(images: FolderSet) -> list[str]:
    return [images.path_of(i).relative_to(images.root).as_posix() for i in range(len(images))]


def test_images_of_a_folder_come_by_class_and_then_by_path(tmp_path: Path) -> None:
    names = ("b/2.png", "b/10.JPEG", "a/z.webp", "a/x/y.png", "a/x.png", "a/notes.txt")
    images = FolderSet(write(tmp_path, dict.fromkeys(names, b"")))
    assert names_of(images) == ["a/x/y.png", "a/x.png", "a/z.webp", "b/10.JPEG", "b/2.png"]
    assert [images.label_of(i) for i in range(5)] == [0, 0, 0, 1, 1]
    assert images.classes == ["a", "b"]


def test_labels_follow_the_classes_that_are_given(folder: Path) -> None:
    images = open_set(folder, "train", ["red", "blue"])
    assert [Path(images.name_of(i)).name for i in range(3)] == ["10.png", "2.png", "1.png"]
    assert [images.label_of(i) for i in range(3)] == [0, 0, 1]
    assert images.classes == ["red", "blue"]


def test_an_image_is_opened_in_rgb_and_named_by_its_path(folder: Path) -> None:
    images = open_set(folder, "val")
    image = images.open(1)
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (255, 0, 0))
    assert images.name_of(1) == str(folder / "val" / "red" / "4.png")


def test_an_image_is_read_as_its_file_and_a_missing_one_is_named(folder: Path) -> None:
    images = open_set(folder, "val")
    file = folder / "val" / "red" / "4.png"
    assert images.read(1) == file.read_bytes()
    file.unlink()
    missing = f"{file} does not exist; give an image file, a folder or a URL"
    assert refused(lambda: images.read(1)) == refused(lambda: images.open(1)) == missing


def test_a_class_folder_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (folder / "train" / "red").rename(tmp_path / "elsewhere")
    (folder / "train" / "red").symlink_to(tmp_path / "elsewhere")
    assert len(open_set(folder, "train")) == 3
    assert validate(folder).train.classes == {"blue": 1, "red": 2}


@pytest.mark.skipif(os.name != "posix", reason="names are text here")
def test_a_name_may_be_any_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a/\xff.png")).write_bytes(photo("red"))
    images = FolderSet(tmp_path)
    assert os.fsencode(images.name_of(0)).endswith(b"/a/\xff.png")
    assert images.open(0).size == (6, 4)


def test_a_set_travels_to_another_process(folder: Path) -> None:
    images = pickle.loads(pickle.dumps(open_set(folder, "train")))
    assert images.open(2).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_in_an_evaluation_is_one_sentence(tmp_path: Path, workers: int) -> None:
    write(tmp_path, {f"val/{digit}/1.png": photo("red") for digit in range(10)})
    write(tmp_path, {"val/4/1.png": b"not found"})
    told = refused(lambda: deit_zoo.evaluate("deit_pico_digits", tmp_path, workers=workers))
    assert told == (
        f"{tmp_path}/val/4/1.png cannot be read as an image (its format is not known); give a "
        "whole JPEG, PNG, WebP, GIF, BMP or TIFF file"
    )
