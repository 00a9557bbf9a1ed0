"""Folders of class folders: which images they hold, in which order, with which labels."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

import deit_zoo
from deit_zoo.data.folder import FolderSet, class_folders
from deit_zoo.data.formats import decodable
from deit_zoo.data.image_set import open_set
from deit_zoo.data.split import list_images
from deit_zoo.data.survey import scan, validate
from deit_zoo.evaluation.accuracy import validation_set
from support.images import HEIC, photo, refused, write
from support.tables import each_row


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
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"not found",
            "cannot be read as an image (its format is not known); give a whole JPEG, PNG, WebP, "
            "GIF, BMP or TIFF file",
        ),
        pytest.param(
            HEIC,
            "is a HEIC image, which nothing here decodes; type: pip install pillow-heif",
            marks=pytest.mark.skipif("HEIF" in decodable(), reason="pillow-heif is here"),
        ),
    ],
    ids=["no image", "HEIC"],
)
def test_a_bad_image_in_an_evaluation_is_one_sentence(
    tmp_path: Path, content: bytes, reason: str, workers: int
) -> None:
    write(tmp_path, {f"val/{digit}/1.png": photo("red") for digit in range(10)})
    write(tmp_path, {"val/4/1.png": content})
    told = refused(lambda: deit_zoo.evaluate("deit_pico_digits", tmp_path, workers=workers))
    assert told == f"{tmp_path}/val/4/1.png {reason}"


def test_a_class_folder_whose_name_ends_in_a_carriage_return_is_refused(folder: Path) -> None:
    (folder / "train" / "red").rename(folder / "train" / "red\r")
    assert refused(lambda: open_set(folder, "train")) == (
        f"the name of a class folder of {folder}/train holds a line's end ('red\\r'); rename it"
    )


LEFT_BY_PROGRAMS = (
    ".DS_Store",
    ".ipynb_checkpoints/1-checkpoint.png",
    "__MACOSX/._1.png",
    "Thumbs.db",
    "red/._2.png",
    "red/.ipynb_checkpoints/2-checkpoint.png",
    "red/@eaDir/2.png/SYNOPHOTO_THUMB_M.jpg",
    "red/desktop.ini",
)


def test_what_is_hidden_is_no_class_and_no_image_and_is_counted(folder: Path) -> None:
    before = validate(folder).fingerprint()
    for split in ("train", "val"):
        write(folder / split, dict.fromkeys(LEFT_BY_PROGRAMS, photo("green")))
    found = open_set(folder, "train")
    assert (len(found), found.classes) == (3, ["blue", "red"])
    assert found.note == (
        f"1 other file (.txt) and 8 hidden files or folders are ignored in {folder}/train"
    )
    survey = validate(folder)
    assert survey.fingerprint() == before  # a folder that was looked at is still the same data
    assert survey.val.line() == (
        "2 images in 2 classes (1 each); 8 hidden files or folders are ignored"
    )


def test_an_empty_hidden_folder_is_no_class_without_images(folder: Path) -> None:
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    assert class_folders(folder / "train") == ["blue", "red"]
    assert validate(folder).train.classes == {"blue": 1, "red": 2}


def test_other_files_are_told_by_what_they_end_in(tmp_path: Path) -> None:
    names = ("a/1.png", "a/1.xmp", "a/2.XMP", "b/1.png", "b/clip.mov", "b/README", "b/x.pdf")
    images = FolderSet(write(tmp_path, dict.fromkeys(names, b"")))
    assert images.note == f"5 other files (.mov, .pdf, .xmp ...) are ignored in {tmp_path}"


def test_links_to_folders_are_followed_as_torchvision_follows_them(
    folder: Path, tmp_path: Path
) -> None:
    write(tmp_path / "second card", {"8.png": photo("red"), "deeper/9.png": photo("red")})
    (folder / "train" / "red" / "batch").symlink_to(tmp_path / "second card")
    (folder / "train" / "green").symlink_to(tmp_path / "second card")
    images = open_set(folder, "train")
    theirs = ImageFolder(str(folder / "train"))
    ours = [(images.name_of(i), images.label_of(i)) for i in range(len(images))]
    assert sorted(ours) == sorted(theirs.samples)
    assert scan(folder).train.classes == {"blue": 1, "green": 2, "red": 4}


@pytest.mark.parametrize("place", ["red/up", "red/deep/up", "up"])
def test_a_link_to_a_folder_that_it_lies_in_is_refused(folder: Path, place: str) -> None:
    link = folder / "train" / place
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(folder / "train")
    for read in (lambda: open_set(folder, "train"), lambda: validate(folder)):
        told = refused(read)
        assert told.endswith(f" is a link to {folder}/train, in which it lies; remove it")


def test_two_links_that_lead_to_each_other_are_refused(folder: Path, tmp_path: Path) -> None:
    write(tmp_path, {"one/1.png": photo("red"), "two/2.png": photo("red")})
    (tmp_path / "one" / "on").symlink_to(tmp_path / "two")
    (tmp_path / "two" / "back").symlink_to(tmp_path / "one")
    (folder / "train" / "red" / "one").symlink_to(tmp_path / "one")
    assert refused(lambda: open_set(folder, "train")).endswith("in which it lies; remove it")


def test_the_same_folder_may_be_linked_twice(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "card", {"1.png": photo("red")})
    for name in ("a", "b"):
        (folder / "train" / "red" / name).symlink_to(tmp_path / "card")
    assert len(open_set(folder, "train")) == 5


@each_row("name", ["valid", "validation", "test"])
def test_the_validation_images_lie_under_any_usual_name(name: str, tmp_path: Path) -> None:
    files = {f"{split}/{label}/1.png": photo("red") for split in ("train", name) for label in "ab"}
    root = write(tmp_path / name, files)
    assert len(open_set(root, "val")) == len(validation_set(root)) == 2
    assert [label for label, _ in validate(root).lines()] == ["train", name]


def test_a_test_folder_is_not_taken_where_there_is_another(folder: Path) -> None:
    write(folder, {"test/red/1.png": photo("red")})
    assert open_set(folder, "val").name_of(0) == f"{folder}/val/blue/3.png"


def test_what_systems_and_disks_leave_is_no_class(tmp_path: Path) -> None:
    left = ("System Volume Information", "lost+found", "$RECYCLE.BIN")
    of_nas = ("#recycle", "#snapshot", "@Recycle", "@eaDir")
    files = {f"{name}/1.png": photo("red") for name in ("cat", *left, *of_nas)}
    images = FolderSet(write(tmp_path, files))
    assert images.classes == ["cat"]
    assert images.note.startswith("7 hidden files or folders are ignored in ")


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    root = write(tmp_path, {"control/1.png": photo("red"), "test/1.png": photo("blue")})
    assert validation_set(root).classes == ["control", "test"]


def test_splits_are_known_in_letters_of_any_case(tmp_path: Path) -> None:
    files = {f"{split}/{name}/1.png": photo("red") for split in ("a", "b") for name in ("x", "y")}
    folder = write(tmp_path / "photos", files)
    for train, val in (("Train", "VAL"), ("TRAIN", "Validation"), ("Training", "Testing")):
        (folder / "a").rename(folder / train)
        (folder / "b").rename(folder / val)
        assert [open_set(folder, split).classes for split in ("train", "val")] == [["x", "y"]] * 2
        assert refused(lambda: list_images(folder, 0.5)).endswith("for validation; leave it out")
        archive = shutil.make_archive(str(tmp_path / "photos"), "zip", folder)
        assert len(open_set(archive, "val")) == 2
        (folder / train).rename(folder / "a")
        (folder / val).rename(folder / "b")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    files = {f"{name}/{n}.png": photo("red") for name in ("Train", "Bus", "val") for n in (1, 2)}
    folder = write(tmp_path / "vehicles", files)
    assert open_set(folder, "all").classes == ["Bus", "Train", "val"]
    assert list_images(folder, 0.5).classes == ["Bus", "Train", "val"]


def test_what_was_trained_on_is_not_measured_on_unasked(folder: Path) -> None:
    shutil.rmtree(folder / "val")
    told = refused(lambda: validation_set(folder))
    assert told.startswith(f"{folder} has no folder val/; ")
    assert len(validation_set(folder / "train")) == 3
