"""A folder of photographs is parted by links: the same every time, a share of every class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deit_zoo.data.split import link_split, train_val_split
from deit_zoo.errors import DataError

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


def refused(*arguments: object) -> str:
    """The sentence with which a folder is refused."""
    with pytest.raises(DataError) as caught:
        link_split(*arguments)  # type: ignore[arg-type]
    return str(caught.value)


def listed(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def test_a_fifth_of_each_class_is_kept_apart(photos: Path, tmp_path: Path) -> None:
    place = tmp_path / "split"
    assert link_split(photos, place, 0.2) == place
    assert listed(place / "val") == VAL
    assert len(listed(place / "train")) == 11
    images = set(listed(photos)) - {"dog/notes.txt"}
    assert {*listed(place / "val"), *listed(place / "train")} == images


def test_the_images_are_links_and_stay_where_they_are(photos: Path, tmp_path: Path) -> None:
    link_split(photos, tmp_path / "split", 0.5)
    links = list((tmp_path / "split").rglob("*.*"))
    assert [link for link in links if not link.is_symlink()] == []
    assert {link.read_bytes() for link in links} == {
        path.read_bytes() for path in photos.rglob("*.*") if path.suffix != ".txt"
    }
    assert len(listed(photos)) == 15


def test_what_is_kept_apart_does_not_depend_on_where_the_folder_lies(
    photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    moved = photos.rename(tmp_path / "deep" / "er" / "pictures")
    assert sorted(train_val_split(moved, 0.2)["val"]) == VAL


def test_a_folder_that_was_parted_before_is_left_as_it_is(photos: Path, tmp_path: Path) -> None:
    place = tmp_path / "split"
    link_split(photos, place, 0.2)
    before = listed(place)
    (photos / "cat" / "new.jpg").write_bytes(b"new")
    link_split(photos, place, 0.2)
    assert listed(place) == before


def test_of_two_images_one_is_kept_apart_whatever_the_share(photos: Path) -> None:
    for number in (2, 3):
        (photos / "dog" / f"{number}.jpg").unlink()
    for share in (0.01, 0.99):
        found = train_val_split(photos, share)
        assert [sum(path.startswith("dog") for path in part) for part in found.values()] == [1, 1]


def test_a_training_folder_without_its_validation_can_be_parted(photos: Path) -> None:
    (photos / "train").mkdir()
    for name in ("cat", "dog"):
        (photos / name).rename(photos / "train" / name)
    assert sorted(train_val_split(photos, 0.2)["val"]) == VAL


def test_what_is_parted_already_is_used_as_it_is(photos: Path) -> None:
    (photos / "val").mkdir()
    assert link_split(photos) == photos
    assert link_split("hfds:beans") == "hfds:beans"


def test_a_folder_of_class_folders_is_refused_with_what_to_type(photos: Path) -> None:
    assert refused(photos) == (
        f"{photos} holds class folders (cat, dog) and no train/ and val/; type --val-share 0.2 to "
        "keep a fifth of each class apart for validation"
    )


def test_a_folder_that_is_parted_already_is_not_parted_again(photos: Path, tmp_path: Path) -> None:
    (photos / "val").mkdir()
    assert refused(photos, tmp_path / "split", 0.2) == (
        f"--val-share parts a folder of class folders, and {photos} is none; leave it out"
    )


def test_a_class_of_one_image_cannot_be_parted(photos: Path, tmp_path: Path) -> None:
    (photos / "fox").mkdir()
    (photos / "fox" / "0.jpg").write_bytes(b"fox")
    assert refused(photos, tmp_path / "split", 0.2) == (
        f"{photos / 'fox'} holds 1 image; to keep some apart there must be 2 or more in each class"
    )
    assert not (tmp_path / "split").exists()


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_a_share_must_be_a_share(photos: Path, tmp_path: Path, share: float) -> None:
    assert refused(photos, tmp_path / "split", share) == (
        f"--val-share is {json.dumps(share)}; it must be between 0 and 1, such as 0.2"
    )
