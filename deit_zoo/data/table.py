"""Images in the rows of a table: which columns hold them, and what their labels stand for.

Columns are found by their types. Where there are several, the address of the data set says which:
`hfds:NAME,label=fine_label,image=photo`.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unicodedata import normalize
from urllib.parse import unquote

from deit_zoo.data.folder import SPLIT_OF
from deit_zoo.data.images import ImageSet
from deit_zoo.errors import DataError
from deit_zoo.labels import labels

SplitName = Literal["train", "val"]
# "all" is a data set that is not parted.
PartName = Literal["train", "val", "all"]
# What a split may be called in a data set of the Hub; the first that there is. "all" is one split
# that is called otherwise.
SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("validation", "val", "valid", "test"),
}
# Images whose bytes tell a split from another.
SAMPLES = 64
# Of columns that may hold labels; the first that there is.
_LABEL_KINDS = ("classes", "integers", "strings")
_LABEL = "label"
_ADDRESS = re.compile(r"(.*?)((?:,(?:image|label)=[^,]+)*)", re.DOTALL)


class Column(NamedTuple):
    """What a column holds; `names` are those of its classes, where it has any."""

    kind: Literal["image", "classes", "integers", "strings", "other"]
    names: tuple[str, ...] = ()


class TableSet(ImageSet):
    """One split of a data set whose images are rows. `bytes` is the size of all that it holds."""

    data: str
    split: str
    bytes: int

    @property
    def root(self) -> Path:
        """The data set."""
        return Path(self.data)

    def path_in_root(self, index: int) -> str:
        """Split and row."""
        return f"{self.split}[{index}]"

    def name_of(self, index: int) -> str:
        """Data set, split and row."""
        return f"{self.data}[{self.split}][{index}]"

    def identity(self) -> dict[str, Any]:
        """What tells the split from another: its size, every label, and some images evenly spread.

        It changes neither with the place of a file nor with the packages that read it.
        """
        digest = hashlib.sha256(" ".join(map(str, self._labels)).encode())
        for index in range(0, len(self), max(1, len(self) // SAMPLES)):
            try:
                content = self.read(index)
            except DataError:
                content = b""
            digest.update(hashlib.sha256(content).digest())
        return {"split": self.split, "images": len(self), "sample_sha256": digest.hexdigest()}

    def _set_labels(
        self, values: Sequence[Any], names: Sequence[str], model: Sequence[str]
    ) -> None:
        """Number the images' classes as the model does, where one is given."""
        numbers: Sequence[int | None] = values
        if any(isinstance(value, str) for value in values):
            values = [value and normalize("NFC", value.strip()) for value in values]
            names = sorted({value for value in values if value})
            number_of = {name: number for number, name in enumerate(names)}
            numbers = [number_of.get(value) for value in values]
        there = [number for number in numbers if number is not None]
        most = max(there, default=-1) + 1
        from_one = min(there, default=0) == 1 and "0" not in model and len(model) in (0, most - 1)
        counted = [str(number) for number in range(1, len(model) + 1)]
        is_counted = set(model) == set(counted) and most <= len(model) + 1 and 0 not in there
        if not names and (from_one or is_counted):
            names = counted or [str(number) for number in range(1, most)]
            numbers = [None if number is None else number - 1 for number in numbers]
        if not names and most > max(len(numbers), len(model)):
            raise DataError(
                f"{self.data}[{self.split}] has the label {most - 1:,} and {len(numbers):,} "
                "images; give labels that number classes from 0"
            )
        own = list(names) or [str(number) for number in range(max(most, len(model)))]
        unlabelled = sum(number is None or not 0 <= number < len(own) for number in numbers)
        if unlabelled:
            raise DataError(
                f"{unlabelled:,} of the {len(numbers):,} images of {self.data}[{self.split}] have "
                "no label; give a data set whose every image has one"
            )
        order, self.note = class_order(self.data, own, model)
        self.classes = list(model) or own
        self._labels = array("L", (order[number] for number in numbers if number is not None))


def split_address(data: str) -> tuple[str, dict[str, str]]:
    """Where a data set lies, and the columns that its address chooses, by their kind."""
    match = _ADDRESS.fullmatch(data)
    assert match is not None, "anything is a place"
    chosen = (part.split("=", 1) for part in match[2].split(",")[1:])
    return match[1], {kind: unquote(column) for kind, column in chosen}


def with_label(data: str, column: str) -> str:
    """The address of a data set whose labels are in this column."""
    return f"{data},label={column.replace('%', '%25').replace(',', '%2C')}"


def check_split_column(data: str, words: Collection[Any]) -> None:
    """Raises DataError for rows of which each says its split, which is not read."""
    if not SPLIT_OF.keys().isdisjoint(map(str, words)):
        raise DataError(
            f"{data} has a column split, which is read of a CSV alone; write the rows of each to a "
            "file of their own, train.parquet and validation.parquet"
        )


def choose_columns(data: str, columns: Mapping[str, Column]) -> tuple[str, str]:
    """The columns of the images and of their labels. Raises DataError where they are not clear."""
    there = {column.kind for column in columns.values()}
    kind = next((kind for kind in _LABEL_KINDS if kind in there), "classes")
    own = None if "label" in split_address(data)[1] else columns.get(_LABEL)
    if (
        kind != "classes" and own is not None and own.kind == "strings"
    ):  # beside other texts and IDs
        columns = {name: c for name, c in columns.items() if c.kind == "image"} | {_LABEL: own}
        kind = own.kind
    return _choose(data, columns, "image", "image"), _choose(data, columns, "label", kind)


def _choose(data: str, columns: Mapping[str, Column], what: str, kind: str) -> str:
    chosen = split_address(data)[1].get(what)
    usable = ("image",) if what == "image" else _LABEL_KINDS
    fitting = [name for name, column in columns.items() if column.kind in usable]
    if chosen is not None and chosen not in fitting:
        raise DataError(
            f"{data} has no {what} column {chosen!r}; give one of "
            f"{', '.join(fitting) or 'a data set that has one'}"
        )
    candidates = [name for name, column in columns.items() if column.kind == kind]
    if chosen is not None or len(candidates) == 1:
        return chosen or candidates[0]
    if candidates:
        raise DataError(
            f"{data} has {len(candidates)} {what} columns ({', '.join(candidates)}); say which by "
            f"typing {data},{what}={candidates[0]}"
        )
    raise DataError(
        f"{data} has no {what} column among {', '.join(columns)}; it must have one of images, and "
        "one of classes, of whole numbers from 0, or of names"
    )


def class_order(data: str, own: list[str], model: Sequence[str]) -> tuple[list[int], str]:
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
