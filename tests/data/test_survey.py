"""Surveys of folders: what is counted and told of them, and which images are bad."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from PIL import Image

from deit_zoo.data import image_list
from deit_zoo.data.image_set import open_set, open_unchecked, read_list
from deit_zoo.data.split import list_images
from deit_zoo.data.survey import bad_images, copies, inspect, scan, validate
from support.images import encoded, photo, refused, write


def test_a_survey_counts_classes_images_and_other_files(folder: Path) -> None:
    found = validate(folder)
    assert (found.train.classes, found.train.images) == ({"blue": 1, "red": 2}, 3)
    assert (found.val.classes, found.val.images) == ({"blue": 1, "red": 1}, 2)
    assert (found.train.others, found.val.others) == (1, 0)
    assert found.lines() == [
        ("train", "3 images in 2 classes (1 to 2 each); 1 other file (.txt) is ignored"),
        ("val", "2 images in 2 classes (1 each)"),
    ]


def test_a_survey_tells_bytes_and_a_digest_of_the_listing(tmp_path: Path) -> None:
    files = {"train/a/1.png": b"one", "train/b/2.png": b"two", "train/a.txt": b"!"}
    write(tmp_path, files | {"val/a/3.png": b"333"})
    # printf 'a/1.png 3\na.txt 1\nb/2.png 3\n' | sha256sum, and printf 'a/3.png 3\n' | sha256sum
    assert scan(tmp_path).fingerprint() == {
        "train": {
            "files": 3,
            "bytes": 7,
            "listing_sha256": "28a9b8524663d1cef4b013c790f71526fef07ea64903ff0648873a5322265711",
        },
        "val": {
            "files": 1,
            "bytes": 3,
            "listing_sha256": "fe580df4ec276038073fe13358281893c981b676cd6c3642f529f3c66945218f",
        },
    }


def test_a_survey_says_how_far_it_is(folder: Path) -> None:
    told: list[int] = []
    validate(folder, told.append)
    # Entries of train/, then of val/, in alphabetical order: 1 + 1 + 2 files, then 1 + 1.
    assert told == [1, 2, 4, 5, 6]


def test_a_link_to_nothing_is_an_image_of_no_bytes_for_the_set_and_the_survey(folder: Path) -> None:
    (folder / "val" / "red" / "gone.png").symlink_to(folder / "nowhere.png")
    assert len(open_set(folder, "val")) == 3
    survey = validate(folder).val
    assert (survey.images, survey.identity["files"]) == (3, 3)


def test_classes_that_differ_are_named(folder: Path) -> None:
    write(folder, {"train/cat/1.png": b"", "train/dog/1.png": b""})
    (folder / "val" / "red").rename(folder / "val" / "rot")
    assert refused(lambda: validate(folder)) == (
        f"the classes of {folder} differ: 3 in train/ only (such as 'cat') and 1 in val/ only "
        "(such as 'rot'); give train and val the same classes"
    )


def test_names_that_look_the_same_are_told_apart(tmp_path: Path) -> None:
    names = {"train": "bl\u00fcte", "val": "blu\u0308te"}  # as Windows and an old Mac write it
    files = {f"{split}/{name}/1.png": photo("red") for split, name in names.items()}
    said = refused(lambda: validate(write(tmp_path, files)))
    assert "(such as 'bl\\xfcte') and 1 in val/ only (such as 'blu\\u0308te')" in said


def test_a_class_without_images_is_named(folder: Path) -> None:
    (folder / "val" / "red" / "4.png").unlink()
    write(folder, {"val/red/4.txt": b""})
    assert refused(lambda: validate(folder)) == (
        f"1 of the 2 classes of {folder}/val has no image (such as 'red'); give images of "
        "every class"
    )


def test_folders_without_any_image_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"train/a/1.txt": b"", "val/a/1.txt": b""})
    assert refused(lambda: validate(tmp_path)).startswith(
        f"{tmp_path}/train holds no image; give image files such as x.jpg, x.png, "
    )


def test_one_class_is_refused_and_what_lies_in_it_is_named(tmp_path: Path) -> None:
    files = {f"{split}/photos/{n}.png": photo("red") for split in ("train", "val") for n in (1, 2)}
    folder = write(tmp_path / "one", files)
    assert refused(lambda: validate(folder)) == (
        f"{folder} has one class, 'photos', and a model tells classes apart; give 2 or more"
    )
    heap = write(tmp_path / "heap", {"images/1.png": b"", "images/2.png": b"", "labels.csv": b""})
    assert str(inspect(heap)[1]).endswith(f"files and labels: {heap}/labels.csv")
    wrapped = write(tmp_path / "wrapped", {f"photos/{name}/1.png": b"" for name in ("cat", "dog")})
    message = (
        f"{wrapped} holds one folder, photos, so one class; its own folders may be classes (such "
        f"as cat): give {wrapped}/photos"
    )
    assert refused(lambda: validate(wrapped, images=list_images(wrapped, 0.5))) == message
    assert inspect(wrapped)[1] == message


@pytest.mark.parametrize("names", [("train_images", "test_images"), ("seg_train", "seg_test", "x")])
def test_folders_that_are_named_as_splits_are_no_classes(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    files = {f"{name}/{number}.png": photo("red") for name in names for number in (1, 2)}
    heap = write(tmp_path / "heap", files | {"train.csv": b""})
    (tmp_path / "packed").mkdir()
    packed = shutil.make_archive(str(tmp_path / "packed" / "heap"), "zip", heap)
    advice = "give train/ and val/, each with one folder of images per class"
    for data, near in (
        (packed, ""),
        (str(heap), f"; or give the list of files and labels: {heap}/"),
    ):
        problem = str(inspect(data)[1])
        assert problem.startswith(f"the classes of {data} are named as splits ({min(names)}, ")
        assert f"); {advice}{near}" in problem
        assert refused(lambda data=data: validate(data, images=list_images(data, 0.5))) == problem  # type: ignore[misc]
    for things in (("train", "test tube", "bus"), ("Val d'Isère", "training shoes")):
        own = {f"{name}/1.png": b"" for name in things}
        assert inspect(write(tmp_path / things[0], own))[1] is None


@pytest.mark.parametrize("missing", ["train", "val"])
def test_a_folder_without_both_splits_is_refused(folder: Path, missing: str) -> None:
    (folder / missing).rename(folder / "other")
    assert refused(lambda: validate(folder)) == (
        f"{folder} has no folder {missing}/; it must hold train/ and val/, each with one folder of "
        "images per class"
    )


def test_bad_images_are_named_with_a_reason_in_the_order_of_the_images(tmp_path: Path) -> None:
    whole = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
    claim = bytearray(photo("red"))
    claim[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height in the header of a PNG
    claim[29:33] = crc32(claim[12:29]).to_bytes(4, "big")
    files = {
        "a/bomb.png": bytes(claim),
        "a/empty.jpg": b"",
        "a/half.jpg": whole[: len(whole) // 2],
        "a/text.png": b"not found",
        "a/whole.jpg": whole,
    }
    write(tmp_path / "val", files)
    (tmp_path / "val" / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    images = open_unchecked(tmp_path, "val")
    told: list[tuple[int, int]] = []
    found = list(bad_images(images, workers=2, progress=lambda *counts: told.append(counts)))
    assert [(Path(name).name, reason) for name, reason in found] == [
        ("bomb.png", "decompression bomb"),
        ("empty.jpg", "zero bytes"),
        ("gone.png", "unreadable: no such file or directory"),
        ("half.jpg", "truncated"),
        ("text.png", "not an image"),
    ]
    assert told == [(6, 6)]


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("CMYK", "JPEG", {}),
        ("L", "JPEG", {}),
        (
            "RGB",
            "JPEG",
            {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"},
        ),
        ("I;16", "PNG", {}),
        ("P", "PNG", {"transparency": 0}),
        ("RGBA", "PNG", {}),
        ("1", "PNG", {}),
    ],
)
def test_unusual_images_are_good(
    tmp_path: Path, mode: str, kind: str, options: dict[str, Any]
) -> None:
    write(tmp_path, {"val/a/1.png": encoded(Image.new(mode, (8, 4)), kind, **options)})
    assert list(bad_images(open_unchecked(tmp_path, "val"), workers=1)) == []


def test_a_data_set_that_lacks_a_split_is_looked_at_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {*inspect(folder)[0]} == {"train", "val"}
    monkeypatch.chdir(folder / "train")
    for train in (inspect(folder / "train"), inspect(".")):
        assert (train[0]["all"].name, train[0]["all"].images) == ("train", 3)
    (folder / "val").rename(folder / "kept")
    (folder / "kept").rename(folder.parent / "val")
    splits, problem = inspect(folder)
    assert (splits["train"].line(), problem) == (
        "3 images in 2 classes (1 to 2 each); 1 other file (.txt) is ignored",
        None,
    )
    (folder.parent / "alone").mkdir()
    (folder.parent / "val").rename(folder.parent / "alone" / "val")
    splits, problem = inspect(folder.parent / "alone")
    assert (splits["val"].images, problem) == (2, None)


def test_a_class_without_images_is_a_problem_of_a_split_alone_too(folder: Path) -> None:
    (folder / "train" / "grey").mkdir()
    _, problem = inspect(folder / "train")
    assert str(problem).startswith("1 of the 3 classes of ")


def test_a_folder_of_images_without_classes_is_looked_at(tmp_path: Path) -> None:
    files = {"1.png": photo("red"), "2.avif": b"", ".DS_Store": b"", "notes.txt": b""}
    splits, problem = inspect(write(tmp_path / "card", files))
    assert (splits["all"].line(), problem) == (
        "2 images in 1 class (2 each); 1 other file (.txt) and 1 hidden file or folder are ignored",
        None,
    )
    [(name, _)] = bad_images(open_unchecked(tmp_path / "card", "all"), workers=1)
    assert name == f"{tmp_path}/card/2.avif"


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_is_looked_at_as_the_folder_is(kind: str, folder: Path, tmp_path: Path) -> None:
    for place in (folder, folder / "train"):
        data = shutil.make_archive(str(tmp_path / "packed"), kind, place)
        splits, problem = inspect(data)
        ours = {part: (split.classes, split.bytes) for part, split in splits.items()}
        theirs = {part: split.classes for part, split in inspect(place)[0].items()}
        assert ({part: classes for part, (classes, _) in ours.items()}, problem) == (theirs, None)


def test_nothing_to_look_at_is_said(tmp_path: Path) -> None:
    def sentence() -> str:
        return refused(lambda: inspect(tmp_path)).partition(";")[0]

    assert sentence() == f"{tmp_path} is empty"
    (tmp_path / "1.txt").touch()
    assert sentence() == f"{tmp_path} holds no folder"
    (tmp_path / "plan.json").write_text("of something else")
    assert sentence() == f"{tmp_path} holds no folder"
    (tmp_path / "plan.json").write_text('{"data": "/photos"}')  # of a run
    assert sentence() == (
        f"{tmp_path} is the folder of a run, which holds no images to train or to measure on"
    )


def test_images_without_class_folders_are_told_of_the_list_near_them(tmp_path: Path) -> None:
    write(tmp_path, {"heap/train/1.png": b"", "heap/train/2.png": b""})
    table = tmp_path / "heap" / "train.csv"
    advice = f"; or give the list of files and labels: {table}"
    for folder in (tmp_path / "heap" / "train", tmp_path / "heap"):
        table.unlink(missing_ok=True)
        without = refused(lambda folder=folder: list_images(folder, 0.2))  # type: ignore[misc]
        assert "images in it: 2" in without
        table.touch()
        assert refused(lambda folder=folder: list_images(folder, 0.2)) == without + advice  # type: ignore[misc]


@pytest.mark.parametrize(
    "rows",
    [
        "id,breed\n{},pug\n0a1c,beagle\n",
        "image_id,label\n{}.png,pug\n0a1c.png,beagle\n",
        "name;breed\ntrain\\{};pug\ntrain\\0a1c;beagle\n",
        "lesion,image,label\n7,train/{}.png,pug\n8,train/0a1c.png,beagle\n",
        "lesion,image,label\n7,{},pug\n8,0a1c,beagle\n",
        "breed,id\npug,{}\nbeagle,0a1c\n",
    ],
)
def test_a_list_may_name_files_without_their_ending_or_their_folder(
    rows: str, tmp_path: Path
) -> None:
    # As Kaggle's do. A name that two files have is found of neither.
    (tmp_path / "pug").mkdir()  # no file that a list names
    both = ["photos/train/0a1b.png", "photos/train/0a1c.png"]
    write(tmp_path, dict.fromkeys([*both, "other/train/2.png"], b""))
    for name, found in (("0a1b", both), ("2", both[1:])):
        (file := tmp_path / "labels.csv").write_text(rows.format(name))
        write(tmp_path, {"photos/train/2.png": b""})
        images = read_list(f"{file},label=label" if "lesion" in rows else file)
        assert [image.path for image in images.images if image.path in both] == found
        assert images.classes == ["beagle", "pug"]
        assert f"{file} names files by less than their place: {found[0]} by " in images.ignored


def test_the_column_that_names_the_most_files_is_theirs(tmp_path: Path) -> None:
    write(tmp_path, {f"train/{number}.png": b"" for number in range(4)})
    (file := tmp_path / "labels.csv").write_text("label,id\n1,0\n0,1\n1,2\n0,3\n")
    images = read_list(file).images
    assert [(image.path, image.class_name) for image in images] == [
        (f"train/{number}.png", str(1 - number % 2)) for number in range(4)
    ]


def test_of_the_files_around_a_list_only_so_many_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = b"id,breed\n0a1b,pug\nmissing,beagle\n"
    write(tmp_path, {"train/0a1b.png": b"", "train/0a1b.jpg": b"", "labels.csv": table})
    listed = read_list(tmp_path / "labels.csv")
    for most, meant in ((image_list.LOOKED_AT, "train/0a1b."), (0, "photos/1.")):
        monkeypatch.setattr(image_list, "LOOKED_AT", most)
        assert refused(lambda: image_list.check_there(listed))[:-3].endswith(f"such as {meant}")


def test_what_cannot_be_listed_below_a_list_hides_not_that_its_files_are_missing(
    tmp_path: Path,
) -> None:
    write(tmp_path, {"labels.csv": b"id,breed\n0a1b,pug\n0a1c,beagle\n"})
    (tmp_path / "circle").symlink_to(tmp_path)
    listed = read_list(tmp_path / "labels.csv")
    assert refused(lambda: image_list.check_there(listed)).startswith("none of the 2 files that")


def test_a_saved_data_set_without_its_prefix_is_told_it(tmp_path: Path) -> None:
    write(tmp_path, {"dataset_dict.json": b"{}", "train/state.json": b"{}"})
    for look in (inspect, list_images):
        assert refused(lambda look=look: look(tmp_path)) == (  # type: ignore[misc]
            f"{tmp_path} was saved by Hugging Face datasets; type hfds:{tmp_path}"
        )
    # Another program may call a file of its own so, beside folders of classes.
    mine = tmp_path / "mine"
    write(mine, {"state.json": b"{}", "train/a/1.png": b"", "val/a/1.png": b""})
    parts, _ = inspect(mine)
    assert parts["train"].classes == {"a": 1}


def test_an_image_that_is_another_byte_for_byte_is_told_with_its_twin(tmp_path: Path) -> None:
    one, two, three = (photo("red", (number, 1)) for number in (1, 2, 3))
    files = {"train/a/1.png": one, "train/b/2.png": two, "train/b/2 (1).png": two}
    write(
        tmp_path, files | {"val/a/new.png": three, "val/b/IMG 1.png": one, "val/b/empty.png": b""}
    )
    train, val = (open_unchecked(tmp_path, split) for split in ("train", "val"))
    twins = f"{tmp_path}/val/b/IMG 1.png is {tmp_path}/train/a/1.png"
    assert copies(train, val) == (
        f"copies of other images, byte for byte: 1 (such as {twins}); what is "
        "measured on an image that was learned is too good: remove one of each"
    )
    # The one folder that --val-share would part has the pair of 2.png.
    assert copies(train).startswith("copies of other images, byte for byte: 1 (such as ")
    assert copies(val) == ""


def test_a_heap_in_one_folder_is_no_training_set(tmp_path: Path) -> None:
    folder = write(tmp_path / "plant", {f"images/{n}.png": photo("red") for n in range(2)})
    assert inspect(folder)[1] == (
        f"{folder} has one class, 'images', and a model tells classes apart; give 2 or more"
    )


def test_a_class_without_images_is_said_of_the_folder_that_was_typed(tmp_path: Path) -> None:
    folder = write(tmp_path / "photos", {"cat/1.png": photo("red"), "dog/notes.txt": b""})
    assert inspect(folder)[1] == (
        f"1 of the 2 classes of {folder} has no image (such as 'dog'); give images of every class"
    )
