"""Kaggle's ImageNet: class folders to train on, and the validation images in one heap.

`ILSVRC/Data/CLS-LOC/train/n01440764/*.JPEG`, `ILSVRC/Data/CLS-LOC/val/*.JPEG`; what the heap shows,
`LOC_val_solution.csv` says, or ImageNet's development kit where that lies there instead.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from deit_zoo.data.folder import (
    FlatSet,
    FolderSet,
    Ignored,
    images_under,
    split_folder,
    wrong_classes,
)
from deit_zoo.data.imagenet import LABEL_FILES, SOLUTION, VAL_NAME, label_file_in, validation_labels
from deit_zoo.data.images import Strings
from deit_zoo.errors import DataError

KAGGLE_FOLDER = Path("ILSVRC", "Data", "CLS-LOC")
_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG", re.IGNORECASE)


class Heap(NamedTuple):
    """A heap of validation images, the file of its labels, and the folder that may hold train/."""

    root: Path
    images: Path
    labels: Path | None


def find_heap(data: str | Path) -> Heap | None:
    """ImageNet's validation images in one heap: in `val/`, in Kaggle's folders, or the data itself.

    A heap of other names is one where a file of labels lies beside it.
    """
    for root, images in _places(Path(data)):
        if not (images.is_dir() and FlatSet.fits(images)):
            continue
        around = (images, *images.absolute().parents[: len(KAGGLE_FOLDER.parts) + 1])
        labels = next(filter(None, map(label_file_in, around)), None)
        if labels is not None or any(map(_NAME.fullmatch, os.listdir(images))):
            return Heap(root, images, labels)
    return None


class HeapSet(FolderSet):
    """Validation images in one heap, in the order in which class folders would hold them."""

    def __init__(self, heap: Heap, classes: Sequence[str] = ()) -> None:
        self.root, self.where = heap.images, str(heap.images)
        if heap.labels is None:
            raise DataError(
                f"{heap.images} holds ImageNet's validation images in one heap; put what sorts "
                f"them there, {LABEL_FILES[0]} (the development kit) or Kaggle's {SOLUTION}"
            )
        synsets = validation_labels(heap.labels)
        own = sorted(set(synsets))
        self.classes = list(classes) or own
        if sorted(self.classes) != own:
            raise DataError(wrong_classes(f"labels of {heap.labels}", own, self.classes))
        number_of = {name: number for number, name in enumerate(self.classes)}
        ignored_files = Ignored()
        names = images_under(self.root, ".", ignored_files)
        self.note = ignored_files.sentence()
        images = sorted((number_of[self._synset(synsets, name, heap)], name) for name in names)
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


def _places(data: Path) -> Iterator[tuple[Path, Path]]:
    """Where a heap may lie, each with the folder that may hold train/ too."""
    *_, outer, inner = KAGGLE_FOLDER.parts
    for root in (data, data / inner, data / outer / inner, data / KAGGLE_FOLDER):
        if (images := split_folder(root, "val")) is not None:
            yield root, images
    yield data, data
