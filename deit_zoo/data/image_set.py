"""Images with labels, by number: a folder with one folder per class, or a data set of the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from deit_zoo.data.folder import FolderSet
from deit_zoo.data.hub import HubSet, is_hfds
from deit_zoo.data.table import SplitName

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
    if is_hfds(data):
        return HubSet(str(data), split, classes)
    return FolderSet(Path(data) / split, classes)


def open_unchecked(data: str | Path, split: SplitName) -> ImageSet:
    """Every image of a split, also where classes are empty."""
    if is_hfds(data):
        return HubSet(str(data), split)
    return FolderSet(Path(data) / split, allow_empty=True)
