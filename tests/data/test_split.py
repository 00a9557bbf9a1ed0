"""Photographs are parted by a list: the same every time, a share of every class."""

from __future__ import annotations

import shutil
from pathlib import Path

import datasets
import pytest

from deit_zoo.data.folder import class_folders
from deit_zoo.data.image_list import ListSet, read_split
from deit_zoo.data.image_set import open_set
from deit_zoo.data.split import check_split, difference, list_images
from deit_zoo.data.survey import class_remarks, inspect, scan, validate
from deit_zoo.errors import DataError
from deit_zoo.evaluation.accuracy import validation_folder
from support.imagenet import write_tar

# Of 10 and 4 paths a fifth, rounded, that comes first by its SHA-256 (sha256sum of `cat/3.jpg`:
# 13dc..., of `cat/8.jpg`: 3ae3..., of `dog/2.jpg`: 3658...).
VAL = ["cat/3.jpg", "cat/8.jpg", "dog/2.jpg"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten cats, one of them in a folder of its own, four dogs, and a file that is no image."""
    folder = tmp_path / "photos"
    for name, count in (("cat", 9), ("dog", 4)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.jpg").write_bytes(f"{name} {number}".encode())
    (folder / "cat" / "old").mkdir()
    (folder / "cat" / "old" / "0.PNG").write_bytes(b"old cat")
    (folder / "dog" / "notes.txt").write_bytes(b"")
    return folder


def refused(folder: Path, share: float = 0.2) -> str:
    """The sentence with which a folder is refused."""
    with pytest.raises(DataError) as caught:
        list_images(folder, share)
    return str(caught.value)


def paths(folder: Path, split: str, share: float = 0.2) -> list[str]:
    """The images of one split, sorted."""
    return sorted(image.path for image in list_images(folder, share).of(split))


def test_a_fifth_of_each_class_is_kept_apart(photos: Path) -> None:
    assert paths(photos, "val") == VAL
    everything = {path.relative_to(photos).as_posix() for path in photos.rglob("*.*")}
    assert {*paths(photos, "train"), *VAL} == everything - {"dog/notes.txt"}


def test_a_list_is_written_and_read_with_the_paths_of_the_images(
    photos: Path, tmp_path: Path
) -> None:
    images = list_images(photos, 0.2)
    (tmp_path / "split.csv").write_bytes(images.to_bytes())
    assert read_split(tmp_path / "split.csv", photos) == images
    val = open_set(tmp_path / "split.csv", "val")
    assert [val.name_of(index) for index in range(len(val))] == [str(photos / p) for p in VAL]
    assert [val.label_of(index) for index in range(len(val))] == [0, 0, 1]
    assert val.read(2) == b"dog 2"
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_a_list_tells_images_from_others_as_class_folders_with_the_same_do(
    photos: Path, tmp_path: Path
) -> None:
    # So a run that parted its folder by links goes on with a list.
    images = list_images(photos, 0.2)
    (tmp_path / "split.csv").write_bytes(images.to_bytes())
    for image in images.images:
        link = tmp_path / "links" / image.split / image.path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(photos / image.path)
    assert scan(tmp_path / "split.csv").fingerprint() == scan(tmp_path / "links").fingerprint()


def test_images_of_a_list_are_numbered_as_those_of_a_folder(photos: Path) -> None:
    (photos / "train").mkdir()
    for name in ("cat", "dog"):
        (photos / name).rename(photos / "train" / name)
        (photos / "val" / name).mkdir(parents=True)
        (photos / "val" / name / "0.jpg").write_bytes(b"kept apart")
    images = list_images(photos)
    for split in ("train", "val"):
        folder, listed = open_set(photos, split), ListSet(images, split)  # type: ignore[arg-type]
        numbers = range(len(folder))
        assert [listed.name_of(n) for n in numbers] == [folder.name_of(n) for n in numbers]
        assert [listed.label_of(n) for n in numbers] == [folder.label_of(n) for n in numbers]
        assert len(listed) == len(folder)


def test_what_is_kept_apart_does_not_depend_on_where_the_folder_lies(
    photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    moved = photos.rename(tmp_path / "deep" / "er" / "pictures")
    assert paths(moved, "val") == VAL


def test_of_two_images_one_is_kept_apart_whatever_the_share(photos: Path) -> None:
    for number in (2, 3):
        (photos / "dog" / f"{number}.jpg").unlink()
    for share in (0.01, 0.99):
        for split in ("train", "val"):
            assert [path[:3] for path in paths(photos, split, share)].count("dog") == 1


def test_a_training_folder_without_its_validation_can_be_parted(photos: Path) -> None:
    (photos / "train").mkdir()
    for name in ("cat", "dog"):
        (photos / name).rename(photos / "train" / name)
    assert paths(photos, "val") == [f"train/{path}" for path in VAL]


def test_folders_beside_the_training_images_are_named_where_these_are_parted(photos: Path) -> None:
    (photos / "train").mkdir()
    (photos / "cat").rename(photos / "train" / "cat")
    (photos / "dog").rename(photos / "train" / "dog")
    (photos / "dev" / "cat").mkdir(parents=True)
    left_out = f"folders beside {photos / 'train'} left out: dev; "
    assert list_images(photos, 0.2).ignored.startswith(left_out)


def test_what_is_parted_already_is_used_as_it_is(photos: Path) -> None:
    (photos / "val").mkdir()
    check_split(photos)


def test_a_folder_of_class_folders_is_refused_with_what_to_type(photos: Path) -> None:
    with pytest.raises(DataError) as caught:
        check_split(photos)
    assert str(caught.value) == (
        f"{photos} holds class folders (cat, dog) and no train/ and val/; type --val-share 0.2 to "
        "keep a fifth of each class apart for validation"
    )


def test_a_folder_that_is_parted_already_is_not_parted_again(photos: Path) -> None:
    (photos / "val").mkdir()
    assert refused(photos) == (
        f"--val-share parts images that are not parted, and {photos} says which are for "
        "validation; leave it out"
    )


def test_a_class_of_one_image_is_learned_and_not_measured(photos: Path, tmp_path: Path) -> None:
    (photos / "fox").mkdir()
    (photos / "fox" / "0.jpg").write_bytes(b"fox")
    images = list_images(photos, 0.2)
    assert [image.path for image in images.of("val")] == VAL
    found = validate(photos, images=images)
    assert (found.train.classes["fox"], found.val.classes["fox"]) == (1, 0)
    assert class_remarks(found.train, found.val)[-1] == (
        "no image of val shows 1 of the 3 classes (such as 'fox'), which are not measured"
    )
    (tmp_path / "split.csv").write_bytes(images.to_bytes())
    for split in ("train", "val"):
        assert open_set(tmp_path / "split.csv", split).classes == ["cat", "dog", "fox"]  # type: ignore[arg-type]


def test_where_no_class_has_two_images_nothing_can_be_parted(photos: Path) -> None:
    shutil.rmtree(photos / "cat")
    for number in range(1, 4):
        (photos / "dog" / f"{number}.jpg").unlink()
    assert refused(photos) == (
        f"{photos / 'dog'} holds 1 image; to keep some apart there must be 2 or more in each class"
    )


def test_a_class_that_a_list_does_not_validate_with_is_not_measured(tmp_path: Path) -> None:
    rows = ("a.png,cat,train", "b.png,cat,val", "c.png,dog,train")
    file = tmp_path / "labels.csv"
    file.write_text("\n".join(("file,label,split", *rows)))
    found = validate(file)
    assert (found.train.classes, found.val.classes) == ({"cat": 1, "dog": 1}, {"cat": 1, "dog": 0})
    (tmp_path / "train" / "dog").mkdir(parents=True)
    (tmp_path / "train" / "dog" / "1.png").touch()
    (tmp_path / "val" / "cat").mkdir(parents=True)
    (tmp_path / "val" / "cat" / "1.png").touch()
    with pytest.raises(DataError, match="no image"):  # folders say by theirs what is measured
        validate(tmp_path, images=list_images(tmp_path))
    file.write_text("\n".join(("file,label,split", *rows, "d.png,fox,val")))
    with pytest.raises(DataError, match=r"1 of the 3 classes of \S+/train has no image \("):
        validate(file)


def test_what_kaggle_wants_predicted_is_no_split(photos: Path) -> None:
    (photos / "train").mkdir()
    for name in ("cat", "dog"):
        (photos / name).rename(photos / "train" / name)
    (photos / "test").mkdir()
    (photos / "test" / "1.jpg").write_bytes(b"1")
    for name in ("sample_submission.csv", "test.csv"):
        (photos / name).write_text("file,label\n1.jpg,cat\n")
    with pytest.raises(DataError) as caught:
        check_split(photos)
    assert str(caught.value) == (
        f"{photos / 'train'} holds class folders (cat, dog) and no val/ lies beside them; type "
        "--val-share 0.2 to keep a fifth of each class apart for validation"
    )
    images = list_images(photos, 0.2)
    assert [image.path for image in images.of("val")] == [f"train/{path}" for path in VAL]
    assert images.ignored.startswith(f"folders beside {photos / 'train'} left out: test; ")
    splits, problem = inspect(photos)
    assert ([*splits], problem) == (["train"], None)
    with pytest.raises(DataError, match=" has no folder val/; it must hold train/ and val/, each "):
        validation_folder(photos)
    with pytest.raises(DataError, match=r" folder of images per class, as in \S+/test/cat/1\.jpg$"):
        class_folders(photos / "test")


def test_every_class_that_is_too_small_to_be_parted_is_named(photos: Path) -> None:
    for name in ("ant", "fox"):
        (photos / name).mkdir()
    (photos / "fox" / "0.jpg").write_bytes(b"fox")
    named = f"{photos / 'ant'} holds 0 images, {photos / 'fox'} holds 1 image; to keep some apart "
    assert refused(photos).startswith(named)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, "0.2"])
def test_a_share_must_be_a_share(photos: Path, share: object) -> None:
    for data in (photos, photos / "none"):  # the number is looked at first
        assert refused(data, share) == (
            f"--val-share is {share!r}; it must be between 0 and 1, such as 0.2"
        )


def test_a_table_that_is_no_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ages.csv").write_text("file,age\nann.jpg,31\n")
    with pytest.raises(DataError, match="regression is not learned here"):
        scan(tmp_path / "ages.csv")


@pytest.mark.parametrize("cells", [3, 5])
def test_a_row_of_a_list_with_other_cells_is_named(cells: int, tmp_path: Path) -> None:
    row = ",".join(["train", "a/1.png", "70", "/photos/a/1.png", "more"][:cells])
    (tmp_path / "split.csv").write_text(f"split,class,bytes,file\n{row}\n")
    with pytest.raises(DataError, match=rf"is no list of a run's images \(row 2 has {cells} cells"):
        read_split(tmp_path / "split.csv")


def test_what_differs_from_a_list_is_said_by_an_example(photos: Path) -> None:
    kept = list_images(photos, 0.2)
    assert difference(kept, kept, 0) is None
    train = photos / kept.of("train")[0].path
    data = train.read_bytes()
    train.unlink()
    assert difference(kept, list_images(photos, 0.2), 0) == f"{train} is gone"
    assert difference(kept, list_images(photos, 0.2), 1) is None
    assert difference(kept.without([str(train)]), list_images(photos, 0.2), 0) is None
    train.write_bytes(data + b"!")
    assert difference(kept, list_images(photos, 0.2), 9) == f"{train} has 6 bytes, not 5"
    train.write_bytes(data)
    (photos / "cat" / "new.jpg").write_bytes(b"new")
    assert difference(kept, list_images(photos, 0.2), 9) == f"{photos / 'cat/new.jpg'} is new"
    (photos / "cat" / "new.jpg").unlink()
    (photos / VAL[0]).unlink()
    assert difference(kept, list_images(photos, 0.2), 9) == f"{photos / VAL[0]} is gone"


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("outer", [False, True])
def test_an_archive_is_parted_as_the_folder_that_was_packed(
    photos: Path, tmp_path: Path, kind: str, outer: bool
) -> None:
    place = (photos.parent, photos.name) if outer else (photos, None)
    file = Path(shutil.make_archive(str(tmp_path / "my photos"), kind, *place))
    images, unpacked = list_images(file, 0.2), list_images(photos, 0.2)
    assert images.images == unpacked.images
    assert images.ignored == f"1 other file is ignored in {file}"
    (tmp_path / "split.csv").write_bytes(images.to_bytes())
    assert read_split(tmp_path / "split.csv") == images
    (tmp_path / "folder.csv").write_bytes(unpacked.to_bytes())
    assert scan(tmp_path / "split.csv").fingerprint() == scan(tmp_path / "folder.csv").fingerprint()
    val = open_set(tmp_path / "split.csv", "val")
    assert [val.name_of(number) for number in range(3)] == [str(file / path) for path in VAL]
    assert (val.label_of(2), val.bytes_of(2), val.read(2)) == (1, 5, b"dog 2")


def test_shards_are_parted_class_by_class_and_tell_keys_apart(tmp_path: Path) -> None:
    for number in range(2):
        members = {f"{key}.png": f"{number} {key}".encode() for key in range(6)}
        labels = {f"{key}.cls": str(key % 3).encode() for key in range(6)}
        write_tar(tmp_path / "shards" / f"{number}.tar", members | labels)
    images = list_images(tmp_path / "shards", 0.25)
    counts = [[image.class_name for image in images.of(split)] for split in ("train", "val")]
    assert counts == [["0"] * 3 + ["1"] * 3 + ["2"] * 3, ["0", "1", "2"]]
    (tmp_path / "split.csv").write_bytes(images.to_bytes())
    sets = [open_set(tmp_path / "split.csv", part) for part in ("train", "val")]
    assert len({images.read(n) for images in sets for n in range(len(images))}) == 12


@pytest.mark.parametrize("form", ["file", "folder", "saved", "train", "test", "names"])
def test_a_table_of_one_split_is_parted_by_its_rows(tmp_path: Path, form: str) -> None:
    names = ["dog", "cat"]
    rows = {
        "image": [{"bytes": bytes([n]) * (n + 1), "path": None} for n in range(8)],
        "label": [names[n % 2] if form == "names" else n % 2 for n in range(8)],
    }
    label = datasets.Value("string") if form == "names" else datasets.ClassLabel(names=names)
    features = datasets.Features({"image": datasets.Image(), "label": label})
    table = datasets.Dataset.from_dict(rows, features=features)
    data = tmp_path / "photos.parquet"
    if form in ("saved", "train", "test"):
        saved = table if form == "saved" else datasets.DatasetDict({form: table})
        saved.save_to_disk(data := tmp_path / "saved")
    else:
        table.to_parquet(data)
    source = f"hfds:{data}" if data.is_dir() else str(tmp_path if form == "folder" else data)
    images = list_images(source, 0.25)
    assert [image.class_name for image in images.of("val")].count("cat") == 1
    (tmp_path / "split.csv").write_bytes(images.to_bytes())
    for part, count in (("train", 6), ("val", 2)):
        rows_of = open_set(tmp_path / "split.csv", part)  # type: ignore[arg-type]
        assert (len(rows_of), rows_of.classes) == (count, ["cat", "dog"])
        for number in range(count):
            content = rows_of.read(number)
            assert len(content) == rows_of.bytes_of(number) == content[0] + 1
            assert rows_of.classes[rows_of.label_of(number)] == names[content[0] % 2]


def test_what_says_its_validation_images_is_not_parted_again(photos: Path, tmp_path: Path) -> None:
    (photos / "val").mkdir()
    shutil.copytree(photos / "cat", photos / "val" / "cat")
    file = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", photos))
    assert refused(file) == (
        f"--val-share parts images that are not parted, and {file} says which are for validation; "
        "leave it out"
    )


def test_an_archive_of_which_nothing_is_kept_apart_says_what_to_type(
    photos: Path, tmp_path: Path
) -> None:
    file = shutil.make_archive(str(tmp_path / "photos"), "zip", photos)
    with pytest.raises(
        DataError, match=r"type --val-share 0\.2 to keep a fifth of each class apart"
    ):
        check_split(file)


def test_a_list_of_members_is_not_read_from_another_archive(photos: Path, tmp_path: Path) -> None:
    file = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", photos))
    (tmp_path / "split.csv").write_bytes(list_images(file, 0.2).to_bytes())
    (photos / VAL[0]).write_bytes(b"another cat")
    shutil.make_archive(str(tmp_path / "photos"), "zip", photos)
    with pytest.raises(DataError) as caught:
        open_set(tmp_path / "split.csv", "val")
    assert str(caught.value) == (
        f"{file / VAL[0]} is not what it was when the run began; give the run the {file} that it "
        "began with"
    )


def test_what_is_not_there_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for name, words in (("absent", "does not exist"), ("notes.txt", "is no data set")):
        with pytest.raises(DataError, match=f"{name} {words}; give a folder with train/ and val/"):
            list_images(tmp_path / name, 0.2)
