"""A user's CSV file of labels as a list of images: one class of each, or several.

The first column names the files, from the CSV's folder on. Then comes one column of labels, with
`|` or `;` between several, or a column of 0 and 1 for each class; and `split`, where the file says
what is for validation. A file may stand in several rows, which say more of it. Between columns are
commas, semicolons or tabs.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from deit_zoo.data.folder import is_image
from deit_zoo.data.image_list import ALL, SEPARATOR, ImageList, ListedImage
from deit_zoo.data.table import SPLITS, split_address
from deit_zoo.errors import DataError

_SPLIT = "split"
_MARKS = {"": False, "0": False, "0.0": False, "1": True, "1.0": True}
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
FORM = (
    "a file's name first, then one column of labels (with | between several) or a column of 0 and "
    "1 for each class, and split where the file says which are for validation"
)


def read_labels(data: str | Path) -> ImageList:
    """The images that a CSV names; `data,label=COLUMN` says which column holds the labels.

    Raises DataError for what is none.
    """
    place, chosen = split_address(str(data))
    file = Path(place)
    try:
        heading, *rows = _rows(file) or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"{file} cannot be read as a list of images ({error}); it must have {FORM}"
        ) from error
    if heading and is_image(heading[0]):
        raise DataError(
            f"the first row of {file} is an image, {heading[0]}, and should name the columns; put "
            "file,label before it"
        )
    if len(set(heading)) < len(heading):
        raise DataError(f"two columns of {file} have one name; its first row is {heading}")
    if wrong := next((n for n, row in enumerate(rows, 2) if len(row) != len(heading)), None):
        raise DataError(f"row {wrong} of {file} has not the {len(heading)} columns of the first")
    columns = {name: [row[n].strip() for row in rows] for n, name in enumerate(heading)}
    if len(heading) < 2 or not rows:
        raise DataError(f"{file} names no images with labels; it must have {FORM}")
    files = columns.pop(heading[0])
    splits = [word.lower() for word in columns.pop(_SPLIT, [])]
    labels = _labels(file, columns, chosen.get("label"))
    root = file.resolve().parent
    files = [_as_it_lies(root, name) for name in files]
    of_file: dict[str, tuple[str, set[str]]] = {}
    for number, (name, own) in enumerate(zip(files, labels, strict=True)):
        split, known = of_file.setdefault(name, (splits[number] if splits else ALL, set()))
        if splits and split != splits[number]:
            raise DataError(f"{file} puts {name} in {split} and in {splits[number]}; leave one")
        known |= own
    return ImageList(
        root=root,
        several=any(len(own) != 1 for _, own in of_file.values()),
        images=tuple(
            ListedImage(split, SEPARATOR.join(sorted(own)), _size(root / name), name)
            for name, (split, own) in _in_splits(file, of_file)
        ),
    )


def _rows(file: Path) -> list[list[str]]:
    """The rows of a file of commas, semicolons or tabs, as its first line says.

    The numbers that pandas puts before each row, under no name, are no column.
    """
    content = file.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if wide else "utf-8-sig", "surrogateescape")
    first = text.partition("\n")[0]
    delimiter = next((mark for mark in "\t,;" if mark in first), ",")
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    return [row[1:] for row in rows] if rows and len(rows[0]) > 2 and not rows[0][0] else rows


def _as_it_lies(root: Path, name: str) -> str:
    """A file's name, which Windows may have written with backslashes."""
    by_windows = "\\" in name and not (root / name).exists()
    return Path(name.replace("\\", "/") if by_windows else name).as_posix()


def _labels(file: Path, columns: dict[str, list[str]], chosen: str | None) -> Iterable[set[str]]:
    """The labels of each row."""
    if chosen is not None and chosen not in columns:
        raise DataError(f"{file} has no column {chosen!r}; give one of {', '.join(columns)}")
    marks = [_MARKS.keys() >= set(column) for column in columns.values()]
    if chosen is None and len(columns) > 1 and all(marks):
        if joined := [name for name in columns if SEPARATOR in name]:
            raise DataError(f"{file} has a class {joined[0]!r}; call it by a name without a |")
        return [
            {name for name, mark in zip(columns, row, strict=True) if _MARKS[mark]}
            for row in zip(*columns.values(), strict=True)
        ]
    name = chosen or next(iter(columns))
    label_columns = {name: columns[name]} if chosen else columns
    for measure, cells in label_columns.items():
        if kind := _kind_of_numbers(cells, chosen is not None):
            advice = f", or type --label-column {measure} if these are" * (kind == "whole")
            raise DataError(
                f"column {measure!r} of {file} holds numbers such as {cells[0]}, and regression is "
                "not learned here: a model says which classes an image shows; give classes, such "
                f"as ranges of the number{advice}"
            )
    if chosen is None and len(columns) > 1:
        raise DataError(
            f"{file} has the columns {', '.join(columns)} beside the files; say which holds the "
            f"labels by typing --label-column {name}"
        )
    return [
        {label.strip() for label in re.split(r"[|;]", cell) if label.strip()}
        for cell in columns[name]
    ]


def _kind_of_numbers(cells: Sequence[str], chosen: bool) -> str:
    """Of what kind a column's numbers are, where they are no classes: broken, or whole.

    Whole ones are classes where they are chosen, or number them from 0 or 1.
    """
    if not all(map(_NUMBER.fullmatch, cells)):
        return ""
    numbers = sorted({float(cell) for cell in cells})
    if not all(map(float.is_integer, numbers)):
        return "broken"
    first, last = int(numbers[0]), int(numbers[-1])
    return "" if chosen or (first in (0, 1) and len(numbers) == last + 1 - first) else "whole"


def _in_splits(
    file: Path, of_file: dict[str, tuple[str, set[str]]]
) -> list[tuple[str, tuple[str, set[str]]]]:
    """The files of train and of the first that is called as validation is, under these names."""
    there = {split for split, _ in of_file.values()}
    if there == {ALL}:
        return list(of_file.items())
    names = {
        spelling: split
        for split, spellings in SPLITS.items()
        for spelling in [next((word for word in spellings if word in there), "")]
    }
    if "train" not in names or len(names) != 2 or "" in names:
        raise DataError(
            f"the column split of {file} says {', '.join(sorted(there))}; it must say train and val"
        )
    return [(name, (names[split], own)) for name, (split, own) in of_file.items() if split in names]


def _size(file: Path) -> int:
    """The bytes of a file; none of one that is not there, which cannot be read."""
    try:
        return file.stat().st_size
    except OSError:
        return 0
