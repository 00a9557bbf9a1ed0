"""Kaggle's ImageNet, read as the folder tree with the same images would be."""

from __future__ import annotations

from pathlib import Path

import pytest

from deit_zoo.data.image_set import open_set, open_unchecked
from deit_zoo.data.split import check_split
from deit_zoo.data.survey import scan, validate
from deit_zoo.evaluation.accuracy import validation_set
from support.imagenet import kit_files, solution_csv, write_tar
from support.images import photo, refused, write

SYNSETS = ["n02119789", "n01440764", "n02100735"]
LABELS = ["n02119789", "n02100735", "n01440764", "n02100735"]
INSIDE = "ILSVRC/Data/CLS-LOC"


def train_files(root: str) -> dict[str, bytes]:
    return {f"{root}/train/{name}/{name}_1.JPEG": photo("red") for name in SYNSETS}


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    """A folder as Kaggle's archive leaves it."""
    files = train_files(INSIDE) | {"LOC_val_solution.csv": solution_csv(LABELS)}
    for number in range(1, 5):
        image = photo("blue", (number, 1))
        files[f"{INSIDE}/val/ILSVRC2012_val_{number:08}.JPEG"] = image
        files[f"{INSIDE}/test/ILSVRC2012_test_{number:08}.JPEG"] = image
    return write(tmp_path / "kaggle", files)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The same images in class folders."""
    files = train_files("tree")
    for number, label in enumerate(LABELS, start=1):
        files[f"tree/val/{label}/ILSVRC2012_val_{number:08}.JPEG"] = photo("blue", (number, 1))
    return write(tmp_path, files) / "tree"


def test_kaggles_folders_are_the_tree_with_the_same_images(kaggle: Path, tree: Path) -> None:
    assert validate(kaggle).fingerprint() == validate(tree).fingerprint()
    assert validate(kaggle).lines() == validate(tree).lines()
    for split in ("train", "val"):
        ours, theirs = open_set(kaggle, split), open_set(tree, split)
        assert ours.classes == theirs.classes == sorted(SYNSETS)
        assert [(ours.label_of(i), ours.read(i)) for i in range(len(ours))] == [
            (theirs.label_of(i), theirs.read(i)) for i in range(len(theirs))
        ]


def test_a_models_order_of_classes_is_kept(kaggle: Path) -> None:
    images = validation_set(kaggle, SYNSETS)
    assert [SYNSETS[images.label_of(i)] for i in range(4)] == [
        "n02119789",
        "n01440764",
        "n02100735",
        "n02100735",
    ]
    assert images.name_of(1) == f"{kaggle}/{INSIDE}/val/ILSVRC2012_val_00000003.JPEG"


def test_any_inner_folder_may_be_given_and_needs_no_share_to_validate(kaggle: Path) -> None:
    for inner in ("ILSVRC", "ILSVRC/Data", INSIDE):
        assert validate(kaggle / inner).fingerprint() == validate(kaggle).fingerprint()
    check_split(kaggle)


def test_the_development_kit_may_lie_there_instead_of_kaggles_table(kaggle: Path) -> None:
    (kaggle / "LOC_val_solution.csv").unlink()
    assert refused(lambda: scan(kaggle)) == (
        f"{kaggle}/{INSIDE}/val holds ImageNet's validation images in one heap; put what sorts "
        "them there, ILSVRC2012_devkit_t12.tar.gz (the development kit) or Kaggle's "
        "LOC_val_solution.csv"
    )
    files = kit_files(SYNSETS, LABELS)
    write_tar(kaggle / INSIDE / "ILSVRC2012_devkit_t12.tar.gz", files, "w:gz")
    assert validate(kaggle).val.classes == {"n01440764": 1, "n02100735": 2, "n02119789": 1}


def test_an_image_that_the_table_does_not_know_is_named(kaggle: Path) -> None:
    other = kaggle / INSIDE / "val" / "ILSVRC2012_val_00000005.JPEG"
    other.write_bytes(photo("red"))
    assert refused(lambda: open_unchecked(kaggle, "val")) == (
        f"{other} is not among the 4 images of {kaggle}/LOC_val_solution.csv; keep images there "
        "from ILSVRC2012_val_00000001.JPEG on, and no others"
    )


def test_classes_that_are_not_the_models_are_refused(kaggle: Path) -> None:
    told = refused(lambda: open_set(kaggle, "val", [*SYNSETS[:2], "n00000000"]))
    assert "1 that are no class of the model (such as 'n02100735')" in told


def test_a_class_without_images_is_refused_and_counted(kaggle: Path) -> None:
    (kaggle / INSIDE / "val" / "ILSVRC2012_val_00000001.JPEG").unlink()
    assert refused(lambda: open_set(kaggle, "val")).startswith("1 of the 3 classes of ")
    assert scan(kaggle).val.classes["n02119789"] == 0


def test_a_heap_alone_is_measured_on_wherever_it_lies(kaggle: Path) -> None:
    heap = kaggle / INSIDE / "val"
    heap.parent.joinpath("train").rename(kaggle / "elsewhere")
    write(heap, {".DS_Store": b"", "._ILSVRC2012_val_00000001.JPEG": b""})
    for data in (heap, heap.parent, kaggle):
        images = validation_set(data, SYNSETS)
        assert [SYNSETS[images.label_of(i)] for i in range(len(images))].count("n02100735") == 2
        assert len(images) == 4
        assert images.note == "2 hidden files or folders are ignored"
    assert refused(lambda: validate(heap)).startswith(f"{heap} has no folder train/; ")
