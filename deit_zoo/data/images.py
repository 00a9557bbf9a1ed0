"""What every set of labelled images has, whatever its files lie in."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from deit_zoo.errors import DataError
from deit_zoo.labels import folders, in_words
from deit_zoo.manifest import Reading

if TYPE_CHECKING:
    from PIL import Image


class MissingSplitError(DataError):
    """A data set has no split of that name; it may have another."""


def reading_of(classes: Collection[str]) -> Reading:
    """How images of these classes are decoded: ImageNet's as upstream does, one's own upright.

    Its classes are called by their synsets or, on the Hub, in words.
    """
    is_imagenet = set(classes) == set(folders("imagenet1k")) or in_words(classes)
    return "upstream" if is_imagenet else "upright"


class ImageSet(ABC):
    """Images with labels, by number. `note` is a sentence about the set, mostly empty.

    `reading` is how they are decoded: as upstream does, or upright, as a person sees them. Their
    classes decide, unless it is set. `label_sets` are the classes of each image where an image may
    have several or none; elsewhere it is None, and each has one. A class without images is said
    to be of `where`, which is empty where there may be such.
    """

    classes: list[str]
    note: str
    where: str = ""
    label_sets: tuple[tuple[int, ...], ...] | None = None
    _reading: Reading | None = None
    _labels: array[int]

    @property
    def reading(self) -> Reading:
        """How images are decoded."""
        if self._reading is None:
            self._reading = reading_of(self.classes)
        return self._reading

    @reading.setter
    def reading(self, reading: Reading) -> None:
        self._reading = reading

    def renumber(self, classes: Sequence[str]) -> None:
        """Number the classes as a model does, of whose they are some."""
        number_of = [classes.index(name) for name in self.classes]
        self._labels = array("L", (number_of[label] for label in self._labels))
        if self.label_sets is not None:
            self.label_sets = tuple(
                tuple(number_of[label] for label in labels) for labels in self.label_sets
            )
        self.classes = list(classes)

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
        """An image in RGB. Raises DataError naming it."""
        from deit_zoo.data.decode import open_image

        return open_image(self.read(index), self.name_of(index), reading=self.reading)


def class_counts(images: ImageSet) -> dict[str, int]:
    """How many images each class of a set has, in the order of the classes."""
    numbers: Iterable[int] = map(images.label_of, range(len(images)))
    if images.label_sets is not None:
        numbers = chain.from_iterable(images.label_sets)
    counts = Counter(numbers)
    return {name: counts[number] for number, name in enumerate(images.classes)}


class Strings:
    """Many strings in one block: loader workers share it, where a million objects are copied."""

    def __init__(self, strings: Iterable[str]) -> None:
        block, ends = bytearray(), array("Q")
        for string in strings:
            block += os.fsencode(string)
            ends.append(len(block))
        self.block, self.ends = bytes(block), narrow(ends, len(block))

    @classmethod
    def of(cls, block: bytes, ends: array[int]) -> Strings:
        """Strings from their block and the end of each in it."""
        strings = cls(())
        strings.block, strings.ends = block, ends
        return strings

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.block[start : self.ends[index]])

    def __len__(self) -> int:
        return len(self.ends)


def narrow(numbers: Iterable[int], most: int) -> array[int]:
    """Numbers from 0 to `most`, in the fewest bytes."""
    kind = next(kind for kind in "BHILQ" if most < 1 << 8 * array(kind).itemsize)
    return array(kind, numbers)
