"""Images with labels, by number, from whatever they lie in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from deit_zoo.data.archive_set import ArchiveSet
from deit_zoo.data.archive_source import means_archives, open_index
from deit_zoo.data.folder import FlatSet, FolderSet, empty_classes, part_folder, split_folder
from deit_zoo.data.heap import HeapSet, find_heap
from deit_zoo.data.hub import HubSet, is_hfds, is_saved
from deit_zoo.data.image_list import (
    ALL,
    ImageList,
    ListSet,
    MemberSet,
    is_list,
    is_split,
    read_split,
)
from deit_zoo.data.images import ImageSet as ImageSet
from deit_zoo.data.images import MissingSplitError, class_counts
from deit_zoo.data.label_file import read_labels
from deit_zoo.data.parquet import ParquetSet, is_parquet
from deit_zoo.data.remote import HFDS, is_remote
from deit_zoo.data.table import PartName, SplitName, TableSet, split_address
from deit_zoo.errors import DataError, FormatError
from deit_zoo.files import PLAN_FILE, read_json
from deit_zoo.manifest import Reading

Kind = Literal["table", "archives", "heap", "folder", "list"]
_FORMS = (
    "a folder with train/ and val/ of class folders, a .tar or .zip of one, WebDataset shards "
    "(their folder, or a pattern such as shards/{train,val}-{000..127}.tar), the folder of "
    "ImageNet's archives as downloaded, or of Parquet files, a CSV of files and labels, or "
    "hfds:NAME"
)


def open_set(
    data: str | Path,
    part: PartName,
    classes: Sequence[str] = (),
    *,
    reading: Reading | None = None,
    several: bool = False,
) -> ImageSet:
    """The images of a split, labelled in the order of `classes` where they are given.

    They are read as their classes say, unless told. "all" are those of a data set that is not
    parted. `several` is as in `read_list`. Raises MissingSplitError where there are none.
    """
    images = _open(data, part, classes, several=several)
    check_every_class(images)
    return _read_as(reading, images)


def check_every_class(images: ImageSet) -> None:
    """Raises DataError where a class has no image, though each must have one."""
    counts = class_counts(images) if images.where else {}
    if empty := [name for name, count in counts.items() if not count]:
        raise DataError(empty_classes(images.where, empty, len(counts)))


def open_unchecked(data: str | Path, part: PartName, reading: Reading | None = None) -> ImageSet:
    """Every image of a part, also where classes are empty, or where there are none."""
    if part == "all" and kind_of(data) == "folder" and FlatSet.fits(Path(data)):
        return _read_as(reading, FlatSet(Path(data)))
    return _read_as(reading, _open(data, part))


def kind_of(data: str | Path) -> Kind:
    """What the images of a data set lie in. Raises DataError, with every kind in it, for none.

    The images of a table are rows. A heap is Kaggle's, which holds the validation images.
    """
    if str(data).strip() in ("", HFDS):  # as of a variable that is not set; else this folder
        raise DataError(f"the data set is {str(data)!r}, which names none; give {_FORMS}")
    if is_table(data):
        return "table"
    if is_list(data):
        return "list"
    if find_heap(data):
        return "heap"
    if means_archives(str(data)):
        return "archives"
    if Path(data).is_dir():
        _check_no_run(Path(data))
        if is_saved(data):
            raise DataError(f"{data} was saved by Hugging Face datasets; type {HFDS}{data}")
        return "folder"
    there = Path(split_address(str(data))[0]).exists()
    raise DataError(f"{data} {'is no data set' if there else 'does not exist'}; give {_FORMS}")


def open_members(data: str) -> ArchiveSet | TableSet:
    """All images of archives or of a table in which nothing is kept apart."""
    kind, splits = kind_of(data), get_args(SplitName)
    for split in splits:
        with suppress(MissingSplitError):
            return _open_members(kind, data, split)
    return _open_members(kind, data, "all")


def has_split(data: str, split: SplitName) -> bool:
    """Whether archives or a table say which images are of a split."""
    try:
        open_unchecked(data, split)
    except MissingSplitError:
        return False
    return True


def open_list(images: ImageList, split: str, classes: Sequence[str] = ()) -> ListSet:
    """One split of a list of files, or of members and rows."""
    if not images.data:
        return ListSet(images, split, classes)
    return MemberSet(images, split, open_members(images.data), classes)


def is_table(data: str | Path) -> bool:
    """Whether the images of a data set are rows."""
    return is_hfds(data) or is_parquet(data)


def read_list(data: str | Path, *, several: bool = False) -> ImageList:
    """The images of a list: a run's, or a user's file of labels. Raises DataError for neither.

    For what takes `several` labels an image has any number, also where each happens to have one.
    """
    if not is_split(split_address(str(data))[0]):
        return read_labels(data, several=several)
    images = read_split(data)
    return replace(images, several=several or images.several)


def has_own_names(data: str | Path, classes: Collection[str]) -> bool:
    """Whether the classes of a data set are named otherwise than folders: by words or numbers."""
    return is_table(data) or (are_numbers(classes) and means_archives(str(data)))


def are_numbers(classes: Collection[str]) -> bool:
    """Whether classes are called by numbers from 0 on."""
    return set(classes) == {str(number) for number in range(len(classes))}


def absolute(data: str | Path) -> str:
    """A data set as it is named from any folder."""
    path = str(data).removeprefix(HFDS)
    if is_hfds(data) and Path(split_address(path)[0]).exists():
        return f"{HFDS}{Path(path).resolve()}"
    return str(data) if is_hfds(data) or is_remote(str(data)) else str(Path(data).resolve())


def open_table(
    data: str,
    split: PartName,
    classes: Sequence[str] = (),
    progress: Callable[[int], None] = lambda images: None,
) -> TableSet:
    """One split of a data set whose images are rows."""
    if is_parquet(data):  # also with hfds:, for the package would copy all of it to Arrow files
        return ParquetSet(data, split, classes, progress)
    return HubSet(data, split, classes)


def _check_no_run(folder: Path) -> None:
    """Raises DataError for the folder of a run, whose folders are no classes."""
    plan = folder / PLAN_FILE
    if not plan.is_file() or split_folder(folder, "val") is not None:
        return
    try:
        trained_on = read_json(plan)["data"]
    except (FormatError, KeyError, TypeError):  # a plan of something else
        return
    raise DataError(
        f"{folder} is the folder of a run, which holds no images to train or to measure on; give "
        f"the data set that it was trained on, {trained_on}, or another"
    )


def _read_as(reading: Reading | None, images: ImageSet) -> ImageSet:
    if reading is not None:
        images.reading = reading
    return images


def _open(
    data: str | Path, part: PartName, classes: Sequence[str] = (), *, several: bool = False
) -> ImageSet:
    kind = kind_of(data)
    if kind in ("table", "archives"):
        return _open_members(kind, str(data), part, classes)
    if kind == "list":
        images = read_list(data, several=several)
        if not images.of(part):
            words = "train and val" if part == ALL else f"no image of {part}"
            raise MissingSplitError(f"{data} lists {words}; give another split or list")
        return open_list(images, part, classes)
    heap = find_heap(data)
    if heap and part == "val":
        return HeapSet(heap, classes)
    root = part_folder(heap.root if heap else Path(data), part)
    return FolderSet(root, classes)


def _open_members(
    kind: Kind, data: str, part: PartName, classes: Sequence[str] = ()
) -> ArchiveSet | TableSet:
    if kind == "table":
        return open_table(data, part, classes)
    return ArchiveSet(data, part, open_index(data, part), classes)
