"""Kaggle's ImageNet: class folders to train on, and the validation images in one heap.

`ILSVRC/Data/CLS-LOC/train/n01440764/*.JPEG`, `ILSVRC/Data/CLS-LOC/val/*.JPEG`; what the heap shows,
`LOC_val_solution.csv` says, or ImageNet's development kit where that lies there instead.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from deit_zoo.data.folder import (
    FolderSet,
    empty_classes,
    is_image,
    listing_errors,
    wrong_classes,
)
from deit_zoo.data.imagenet import SOLUTION, VAL_NAME, validation_labels
from deit_zoo.data.images import Strings
from deit_zoo.errors import DataError

KAGGLE_FOLDER = Path("ILSVRC", "Data", "CLS-LOC")
KIT = "ILSVRC2012_devkit_t12.tar.gz"
_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG", re.IGNORECASE)


class Heap(NamedTuple):
    """A folder with class folders in train/ and a heap in val/, and the file of its labels."""

    root: Path
    labels: Path


def find_heap(data: str | Path) -> Heap | None:
    """Where the folders of a data set lie if its validation images are in one heap, with labels."""
    for root in (Path(data), Path(data) / KAGGLE_FOLDER):
        if not (root / "train").is_dir() or not _is_heap(root / "val"):
            continue
        for folder in (root, *root.absolute().parents[: len(KAGGLE_FOLDER.parts)]):
            for name in (SOLUTION, KIT):
                if (folder / name).is_file():
                    return Heap(root, folder / name)
    return None


class HeapSet(FolderSet):
    """Validation images in one heap, in the order in which class folders would hold them."""

    def __init__(
        self, heap: Heap, classes: Sequence[str] = (), *, allow_empty: bool = False
    ) -> None:
        self.root = heap.root / "val"
        self.note = ""
        synsets = validation_labels(heap.labels)
        own = sorted(set(synsets))
        self.classes = list(classes) or own
        if sorted(self.classes) != own:
            raise DataError(wrong_classes(heap.labels, own, self.classes))
        number_of = {name: number for number, name in enumerate(self.classes)}
        with listing_errors():
            names = [name for name in sorted(os.listdir(self.root)) if is_image(name)]
        images = sorted((number_of[self._synset(synsets, name, heap)], name) for name in names)
        empty = sorted(set(self.classes) - {self.classes[label] for label, _ in images})
        if empty and not allow_empty:
            raise DataError(empty_classes(self.root, empty, len(self.classes)))
        self._paths = Strings(name for _, name in images)
        self._labels = array("L", (label for label, _ in images))

    def _synset(self, synsets: Sequence[str], name: str, heap: Heap) -> str:
        match = _NAME.fullmatch(name)
        if match is None or not 1 <= int(match[1]) <= len(synsets):
            raise DataError(
                f"{self.root / name} is not among the {len(synsets):,} images of {heap.labels}; "
                f"keep images there from {VAL_NAME.format(1)}.JPEG on, and no others"
            )
        return synsets[int(match[1]) - 1]


def _is_heap(folder: Path) -> bool:
    """Whether a folder holds images and no folder."""
    if not folder.is_dir():
        return False
    any_image = False
    with listing_errors(), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                return False
            any_image = any_image or is_image(entry.name)
    return any_image
