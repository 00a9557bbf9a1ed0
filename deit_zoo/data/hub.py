"""Data sets of the Hub as sets of images: `hfds:NAME`, or `hfds:DIR` for one saved to a folder.

Read with the package `datasets` from the extra `hfds`; the columns are found by their types.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from deit_zoo.data.images import LabelledImages
from deit_zoo.errors import DataError
from deit_zoo.labels import labels
from deit_zoo.machine import require_extra

HFDS = "hfds:"
SplitName = Literal["train", "val"]
# What a split may be called in a data set of the Hub; the first that there is.
SPLITS: dict[str, tuple[str, ...]] = {"train": ("train",), "val": ("validation", "val", "test")}
# Images whose bytes tell a split from another.
SAMPLES = 64


def is_hfds(data: str | Path) -> bool:
    """Whether a data set is one of the Hub."""
    return str(data).startswith(HFDS)


class HubSet(LabelledImages):
    """One split of a data set of the Hub, read as a folder of the same files would be."""

    def __init__(self, data: str, split: SplitName, classes: Sequence[str] = ()) -> None:
        rows, self.split = _load_split(data, split)
        import datasets

        self.data = data
        self._column = _column_of_type(rows, "image", datasets.Image, data)
        label = _column_of_type(rows, "label", datasets.ClassLabel, data)
        own = list(rows.features[label].names)
        order, self.note = _class_order(data, own, classes)
        self.classes = list(classes) or own
        numbers = rows.with_format(None)[label][:]
        unlabelled = sum(number is None or not 0 <= number < len(own) for number in numbers)
        if unlabelled:
            raise DataError(
                f"{unlabelled:,} of the {len(numbers):,} images of {data}[{self.split}] have no "
                "label; give a data set whose every image has one"
            )
        self._labels = array("L", (order[number] for number in numbers))
        # Undecoded: the package would turn images by their EXIF, which upstream does not.
        self._rows = rows.select_columns([self._column]).cast_column(
            self._column, datasets.Image(decode=False)
        )
        self.bytes = int(rows.data.nbytes)

    def name_of(self, index: int) -> str:
        """Data set, split and row."""
        return f"{self.data}[{self.split}][{index}]"

    def bytes_of(self, index: int) -> int:
        """The length of an image's file."""
        source = self._source(index)
        return len(source) if isinstance(source, bytes) else source.stat().st_size

    def read(self, index: int) -> bytes:
        """The bytes of an image's file. Raises DataError naming its row."""
        from deit_zoo.data.transforms import image_errors

        source = self._source(index)
        if isinstance(source, bytes):
            return source
        with image_errors(self.name_of(index)):
            return source.read_bytes()

    def identity(self) -> dict[str, Any]:
        """What tells the split from another: its size, every label, and some images evenly spread.

        The package's own fingerprint changes with its version and with the place of a folder.
        """
        digest = hashlib.sha256(" ".join(map(str, self._labels)).encode())
        for index in range(0, len(self), max(1, len(self) // SAMPLES)):
            source = self._source(index)
            if not isinstance(source, bytes):
                source = source.read_bytes() if source.is_file() else b""
            digest.update(hashlib.sha256(source).digest())
        return {"split": self.split, "images": len(self), "sample_sha256": digest.hexdigest()}

    def _source(self, index: int) -> Path | bytes:
        """The bytes of an image, or the file that holds them; no bytes where there is no image."""
        starts, chunks = self._chunks
        number = bisect_right(starts, index) - 1
        files, paths = chunks[number]
        row = index - starts[number]
        if (file := files[row].as_py()) is not None:
            return bytes(file)
        path = paths[row].as_py()
        return b"" if path is None else Path(path)

    @cached_property
    def _chunks(self) -> tuple[list[int], list[tuple[Any, Any]]]:
        """The first row of each piece of the table, and its columns of bytes and of paths.

        Read as they lie there: the package takes three times as long for a row.
        """
        rows = self._rows if self._rows._indices is None else self._rows.flatten_indices()
        pieces = [piece for piece in rows.data.column(self._column).chunks if len(piece)]
        starts = [0, *accumulate(map(len, pieces))][:-1]
        # Flattened, a row without an image is one without bytes and path.
        return starts, [tuple(piece.flatten()[:2]) for piece in pieces]

    def __getstate__(self) -> dict[str, Any]:
        """Without the pieces, whose bytes would travel; the rows open their files again."""
        return {name: value for name, value in vars(self).items() if name != "_chunks"}


def _load_split(data: str, split: SplitName) -> tuple[Any, str]:
    """The rows of a split, and what it is called there."""
    require_extra("hfds", data, "datasets")
    import datasets

    name = data.removeprefix(HFDS)
    saved = any((Path(name) / mark).is_file() for mark in ("dataset_dict.json", "state.json"))
    load = datasets.load_from_disk if saved else datasets.load_dataset
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        loaded = load(name)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{data} cannot be read ({reason}); give hfds: and a data set of the Hub, or the "
            "folder of a saved one"
        ) from error
    splits = list(loaded) if isinstance(loaded, datasets.DatasetDict) else []
    for spelling in SPLITS[split]:
        if spelling in splits:
            return loaded[spelling], spelling
    raise DataError(
        f"{data} has no split {' or '.join(SPLITS[split])} (it has {', '.join(splits) or 'none'}); "
        "give a data set with one to train on and one to validate with"
    )


def _column_of_type(rows: Any, kind: str, feature: Any, data: str) -> str:
    """The one column of a feature."""
    columns = [name for name, own in rows.features.items() if isinstance(own, feature)]
    if len(columns) == 1:
        return columns[0]
    among = ", ".join(columns or rows.features)
    raise DataError(
        f"{data} has {len(columns) or 'no'} {kind} columns among {among}; it must have one of type "
        "Image and one of type ClassLabel: keep or cast columns with the package datasets"
    )


def _class_order(data: str, own: list[str], model: Sequence[str]) -> tuple[list[int], str]:
    """The model's number of each class: by name where the names are the same, else by order."""
    numbers = list(range(len(own)))
    if not model:
        return numbers, ""
    if sorted(own) == sorted(model):
        return [list(model).index(name) for name in own], ""
    if len(own) != len(model):
        raise DataError(
            f"{data} has {len(own):,} classes and the model {len(model):,}; give a data set of "
            f"the model's classes, from {model[0]!r} to {model[-1]!r}"
        )
    # The Hub's ImageNet names its classes in words, not by their folders.
    word_of = {label.folder: label.name for label in labels("imagenet1k")}
    words = [word_of.get(folder, folder) for folder in model]
    same = [name == word for name, word in zip(own, words, strict=True)]
    moved = [name for name, here in zip(own, same, strict=True) if not here and name in words]
    if moved:
        raise DataError(
            f"{len(moved):,} classes of {data} stand at other places than the model's (such as "
            f"{moved[0]!r}); give a data set whose classes are in the model's order"
        )
    if all(same):
        return numbers, ""
    return numbers, (
        f"the {len(own):,} classes of {data} are taken in their order for the model's: their "
        f"number is the same, and {sum(same):,} of their names"
    )
