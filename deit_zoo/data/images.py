"""What every set of labelled images has, whatever its files lie in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


class LabelledImages(ABC):
    """Images that are read as bytes, each with a label. `note` is a sentence about the classes."""

    classes: list[str]
    note: str
    _labels: array[int]

    def __len__(self) -> int:
        return len(self._labels)

    def label_of(self, index: int) -> int:
        """The number of an image's class."""
        return self._labels[index]

    @abstractmethod
    def name_of(self, index: int) -> str:
        """Where an image lies, for people."""

    @abstractmethod
    def bytes_of(self, index: int) -> int:
        """The length of an image's file."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """An image's file. Raises DataError naming it."""

    def open(self, index: int) -> Image.Image:
        """An image as upstream reads it: in RGB, EXIF ignored. Raises DataError naming it."""
        from deit_zoo.data.transforms import open_image

        return open_image(self.read(index), self.name_of(index), reading="upstream")
