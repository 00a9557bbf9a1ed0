"""Images with labels, by number, from whatever they lie in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from deit_zoo.data.archive_set import ArchiveSet
from deit_zoo.data.archive_source import means_archives, open_index
from deit_zoo.data.folder import FolderSet
from deit_zoo.data.heap import HeapSet, find_heap
from deit_zoo.data.hub import HubSet, is_hfds
from deit_zoo.data.parquet import ParquetSet, is_parquet
from deit_zoo.data.table import SplitName, TableSet

if TYPE_CHECKING:
    from PIL import Image


class ImageSet(Protocol):
    """Images with labels. `note` is a sentence about the classes, mostly empty."""

    classes: list[str]
    note: str

    def __len__(self) -> int: ...

    def label_of(self, index: int) -> int:
        """The number of an image's class."""

    def open(self, index: int) -> Image.Image:
        """An image as upstream reads it: in RGB, EXIF ignored. Raises DataError naming it."""

    def read(self, index: int) -> bytes:
        """The bytes of an image's file. Raises DataError naming it, as `open` does."""

    def name_of(self, index: int) -> str:
        """Where an image lies, for people."""

    def bytes_of(self, index: int) -> int:
        """The length of an image's file."""


def open_set(data: str | Path, split: SplitName, classes: Sequence[str] = ()) -> ImageSet:
    """The images of one split, labelled in the order of `classes` where they are given."""
    return _open(data, split, classes, allow_empty=False)


def open_unchecked(data: str | Path, split: SplitName) -> ImageSet:
    """Every image of a split, also where classes are empty."""
    return _open(data, split, (), allow_empty=True)


def open_table(data: str, split: SplitName, classes: Sequence[str] = ()) -> TableSet:
    """One split of a data set whose images are rows."""
    return (HubSet if is_hfds(data) else ParquetSet)(data, split, classes)


def is_table(data: str | Path) -> bool:
    """Whether the images of a data set are rows, and its classes may have words for names."""
    return is_hfds(data) or is_parquet(data)


def _open(
    data: str | Path, split: SplitName, classes: Sequence[str], *, allow_empty: bool
) -> ImageSet:
    if is_table(data):
        return open_table(str(data), split, classes)
    if means_archives(str(data)):
        index = open_index(str(data), split)
        return ArchiveSet(str(data), split, index, classes, allow_empty=allow_empty)
    heap = find_heap(data)
    if heap and split == "val":
        return HeapSet(heap, classes, allow_empty=allow_empty)
    root = heap.root if heap else Path(data)
    return FolderSet(root / split, classes, allow_empty=allow_empty)
