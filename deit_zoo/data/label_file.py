"""A user's CSV file of labels as a list of images: one class of each, or several.

What it must have, `FORM` says, and docs/data.md what it may. A file may stand in several rows,
which say more of it. What is left out is told.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from unicodedata import normalize

from deit_zoo.data.folder import (
    SPLIT_FOLDERS,
    SPLIT_OF,
    Ignored,
    check_utf8,
    images_under,
    is_image,
)
from deit_zoo.data.image_list import ALL, SEPARATOR, ImageList, ListedImage, path_from
from deit_zoo.data.table import split_address, with_label
from deit_zoo.errors import DataError, first_of

_FIRST_DELIMITER = re.compile(r'[\r\n ]*(?:"(?:[^"]|"")*"|[^"\t,;\r\n]*)([\t,;])')
_LABELS = ("label", "labels", "class", "target")  # what a column of labels is called
_SEP = re.compile(r"sep=([\t,;])[\r\n]+")
_MARKS = {"": False, "0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
# As written in any country; where there is none, pandas, R and SQL write a word.
_NUMBER = re.compile(r"[+-]?(\d+|\d{1,3}([ ,'\xa0\u202f]\d{3})+)([.,]\d*)?([eE][+-]?\d+)?\s?%?")
_WHOLE = re.compile(r"([+-]?\d+)(\.0*)?")
_NO_NUMBER = ("", "na", "n/a", "nan", "none", "null")
FORM = (
    "a file's name first, then one column of labels (with | between several) or a column of 0 and "
    "1 for each class, and split where the file says which are for validation"
)
Columns = dict[str, Sequence[str]]


def read_labels(data: str | Path, *, several: bool = False) -> ImageList:
    """The images that a CSV names; `data,label=COLUMN` says which column holds the labels.

    An image has any number of labels where one has two, where each class has a column of its own
    and one has none, or for what takes `several`. Elsewhere rows without a label are left out.
    Raises DataError for what is no such file.
    """
    place, chosen = split_address(str(data))
    file = Path(place)
    numbers, columns = _columns(file)
    root, real_folder = file.resolve().parent, cache(os.path.realpath)
    column, place_of = _files(root, columns, chosen.get("image"))
    if (files := columns.pop(column, None)) is None:
        raise DataError(f"{file} has no column {column!r}; give one of {', '.join(columns)}")
    words, label = columns.pop(_called("split", columns), None), chosen.get("label")
    labels, classes = _labels(file, columns, label)
    splits, notes = _splits(file, numbers, words) if words else ([ALL] * len(files), [])
    if label and (others := [name for name in columns if name != label]):
        notes.append(f"columns of {file} not read: {', '.join(others)}")
    if less := next(filter(place_of.get, files), None):
        notes.append(f"{file} names files by less than their place: {place_of[less]} by {less!r}")
    first_name: dict[tuple[str, str], str] = {}  # of a file in its folder, without links
    of_file: dict[str, tuple[str, set[str], int]] = {}  # with its first row
    for number, name, split, its in zip(numbers, files, splits, labels, strict=True):
        if not name:
            raise DataError(f"row {number} of {file} names no file; give its name, or leave it out")
        path = place_of.get(name) or _path(root, name)
        folder, last = os.path.split(os.path.join(root, path))
        path = first_name.setdefault((real_folder(folder), last), path)
        other, known, _ = of_file.setdefault(path, (split, set(), number))
        if other != split:
            raise DataError(f"{file} puts {path} in {other} and in {split}; leave one")
        for name in its:
            check_utf8(name, f"the label in row {number} of {file}", "save it as CSV UTF-8")
        known |= its
    # Of columns of marks a row without one says that none is shown.
    fewest = 1 if classes else 0
    kept = {path: its for path, its in of_file.items() if its[0] in (*SPLIT_FOLDERS, ALL)}
    several |= any(not fewest <= len(own) <= 1 for _, own, _ in kept.values())
    images = [
        ListedImage(split, SEPARATOR.join(sorted(own)), _size(root / path), path)
        for path, (split, own, _) in kept.items()
        if own or several
    ]
    if without := [number for _, own, number in kept.values() if not (own or several)]:
        notes.append(f"rows of {file} left out, which have no label: {first_of(without)}")
    if several and (others := [image.path for image in images if len(of_file[image.path][1]) != 1]):
        notes.append(
            f"images of {file} with no label or several: {len(others):,} of {len(images):,}, "
            f"first {others[0]}"
        )
    seen = {name for _, own, _ in kept.values() for name in own}
    if joined := _joined(seen):
        notes.append(f"labels of {file} may be several in one ({joined!r}): put | between such")
    unseen = tuple(name for name in classes if name not in seen)
    if unseen and not several:
        notes.append(f"classes of {file} that no image has: {first_of(unseen)}")
    return ImageList(
        root=root,
        file=str(file),
        several=several,
        unseen=unseen if several else (),
        images=tuple(images),
        ignored="; ".join(notes),
    )


def _columns(file: Path) -> tuple[list[int], Columns]:
    """The numbers of the rows that say something, and what they say, by the columns' names."""
    try:
        (_, heading), *rows = _rows(file) or [(1, [])]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"{file} cannot be read as a list of images ({error}); it must have {FORM}"
        ) from error
    if image := next(filter(is_image, heading), None):
        raise DataError(
            f"the first row of {file} is an image, {image}, and should name the columns; put "
            "file,label before it"
        )
    if wrong := next((number for number, row in rows if len(row) != len(heading)), None):
        raise DataError(f"row {wrong} of {file} has not the {len(heading)} columns of the first")
    columns = list(zip(heading, zip(*(row for _, row in rows), strict=True), strict=bool(rows)))
    columns = [(name, cells) for name, cells in columns if any(cells)]
    if len(columns) > 2 and not columns[0][0] and all(map(str.isdecimal, columns[0][1])):
        del columns[0]  # the index of pandas
    names = [name for name, _ in columns]
    known = {name.casefold() for name in names}
    if len(known - {"split"}) < 2:
        raise DataError(f"{file} names no images with labels; it must have {FORM}")
    if len(known) < len(names):
        raise DataError(f"two columns of {file} have one name; its first row is {heading}")
    if "" in (names if "file" in known else names[1:]):
        raise DataError(f"a column of {file} has no name; its first row is {heading}")
    return [number for number, _ in rows], dict(columns)


def _rows(file: Path) -> list[tuple[int, list[str]]]:
    """The rows that are not empty, with their numbers; what ends the first cell parts all.

    A line `sep=;` before them is Excel's, which says what does.
    """
    content = file.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if wide else "utf-8-sig", "surrogateescape")
    if "\0" in text:
        raise ValueError("it is no text: it holds a zero byte")
    first = _FIRST_DELIMITER.match(text)
    if by_excel := _SEP.match(text):
        first, text = by_excel, text[by_excel.end() :]
    rows = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=first[1] if first else ",",
        skipinitialspace=True,
        strict=True,
    )
    stripped = ([cell.strip() for cell in row] for row in rows)
    start = 2 if by_excel else 1
    return [(number, row) for number, row in enumerate(stripped, start) if any(row)]


def _called(word: str, columns: Columns) -> str:
    """The column of this name, in letters of any case; empty where there is none."""
    return next((name for name in columns if name.casefold() == word), "")


def _files(root: Path, columns: Columns, chosen: str | None) -> tuple[str, dict[str, str]]:
    """The column that names files, and where those lie that it names by less than their place.

    Many lists leave out endings, or the folder below theirs. What several files may be is left.
    """
    named = (name for name, cells in columns.items() if all(map(is_image, filter(None, cells))))
    column = chosen or _called("file", columns) or next(named, None)
    candidates = [column] if column else list(columns)
    cells_of = {candidate: columns.get(candidate, ()) for candidate in candidates}
    if any(os.path.isfile(root / _path(root, cell)) for cell in cells_of[candidates[0]] if cell):
        return candidates[0], {}
    cells = chain.from_iterable(cells_of.values())
    cell_of_form = {_one_form(cell): cell for cell in cells if not os.path.isabs(cell)}
    places: dict[str, list[str]] = {}
    try:
        paths = images_under(root, ".", Ignored()) if cell_of_form else []
    except DataError:  # of what cannot be listed below; that no file is there will be told
        paths = []
    for path in paths:
        parts = _one_form(path).split("/")
        ends = ["/".join(parts[start:]) for start in range(len(parts))]
        for less in {*ends, *(os.path.splitext(end)[0] for end in ends)} & cell_of_form.keys():
            places.setdefault(cell_of_form[less], []).append(path)
    place_of = {cell: paths[0] for cell, paths in places.items() if len(paths) == 1}
    most = max(candidates, key=lambda candidate: len(place_of.keys() & cells_of[candidate]))
    return most, place_of


def _one_form(name: str) -> str:
    """A file's name as any system may have written it."""
    return normalize("NFC", name.replace("\\", "/"))


def _path(root: Path, name: str) -> str:
    """Where a file lies, from the root on; Windows or a Mac may have written its name otherwise."""
    if ("\\" in name or not name.isascii()) and not (root / name).exists():
        name = name.replace("\\", "/")
        forms = (normalize(form, name) for form in ("NFC", "NFD"))
        name = next((form for form in forms if (root / form).exists()), name)
    return path_from(root, name) if os.path.isabs(name) else Path(name).as_posix()


def _labels(
    file: Path, columns: Columns, chosen: str | None
) -> tuple[Iterable[set[str]], Sequence[str]]:
    """The labels of each row, and the classes where each has a column of its own."""
    if chosen is not None and chosen not in columns:
        raise DataError(f"{file} has no column {chosen!r}; give one of {', '.join(columns)}")
    marks = [[_MARKS.get(cell.lower()) for cell in cells] for cells in columns.values()]
    own = next(filter(None, (_called(word, columns) for word in _LABELS)), None)
    several_columns = chosen is None and own is None and len(columns) > 1
    if several_columns and not any(None in column for column in marks):
        if joined := [name for name in columns if SEPARATOR in name]:
            raise DataError(f"{file} has a class {joined[0]!r}; call it by a name without a |")
        return [
            {normalize("NFC", name) for name, mark in zip(columns, row, strict=True) if mark}
            for row in zip(*marks, strict=True)
        ], [normalize("NFC", name) for name in columns]
    name = chosen or own or next(iter(columns))
    read = {
        name: [cell for cell in columns[name] if cell.lower() not in _NO_NUMBER]
        for name in (columns if several_columns else (name,))
    }
    kinds = {name: _kind_of_numbers(cells, chosen is not None) for name, cells in read.items()}
    if all(kinds.values()):
        advice = f", or type {_option(file, name)} if these are" * (kinds[name] == "whole")
        raise DataError(
            f"column {name!r} of {file} holds numbers such as {read[name][0]}, "
            "and regression is not learned here: a model says which classes an image shows; "
            f"give classes, such as ranges of the number{advice}"
        )
    if chosen is None and len(columns) > 1:
        meant = next(name for name, kind in kinds.items() if not kind)
        raise DataError(
            f"{file} has the columns {', '.join(columns)} beside the files; say which holds the "
            f"labels by typing {_option(file, meant)}"
        )
    return [
        {label.strip() for label in re.split(r"[|;]", cell) if label.strip()}
        for cell in _names(columns[name])
    ], ()


def _option(file: Path, column: str) -> str:
    return f"--label-column {column} (in Python as {with_label(str(file), column)})"


def _kind_of_numbers(cells: Sequence[str], chosen: bool) -> str:
    """Of what kind a column's numbers are, where they are no classes: broken, or whole.

    Whole ones are classes where they are chosen, or number them from 0 or 1.
    """
    if not cells or not all(map(_NUMBER.fullmatch, cells)):
        return ""
    if not all(map(_WHOLE.fullmatch, cells)):
        return "broken"
    numbers = sorted({int(float(cell)) for cell in cells})
    first, last = numbers[0], numbers[-1]
    return "" if chosen or (first in (0, 1) and len(numbers) == last + 1 - first) else "whole"


def _names(cells: Sequence[str]) -> Iterable[str]:
    """Labels by which equal ones are known: 1 and 1.0, and letters with accents in either form."""
    whole = [_WHOLE.fullmatch(cell) for cell in cells if cell]
    return (_WHOLE.sub(r"\1", cell) if all(whole) else normalize("NFC", cell) for cell in cells)


def _joined(labels: Iterable[str]) -> str | None:
    """The longest label, where all are made of fewer words than there are labels, as in a list, and
    another is a part of it: `red fox` and `grey wolf` are kinds, and no lists."""
    words = {label: set(re.findall(r"[^][{}\s,'\"]+", label)) for label in sorted(labels)}
    longest = max(words, key=lambda label: len(words[label]), default="")
    parts = [own for own in words.values() if own and own < words[longest]]
    return longest if parts and len(set().union(*words.values())) < len(words) else None


def _splits(
    file: Path, numbers: Sequence[int], words: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The split of each row, called as folders are, and what is to be told of rows in neither.

    Those of `test` are for validation where no others are.
    """
    words = [word.lower() for word in words]
    splits = [SPLIT_OF.get(word, word) for word in words]
    if "val" not in splits:
        splits = ["val" if split == "test" else split for split in splits]
    if SPLIT_FOLDERS.keys().isdisjoint(splits):
        said = ", ".join(sorted(set(words)))
        raise DataError(f"the column split of {file} says {said}; it must say train and val")
    left: dict[str, list[int]] = {}
    for number, word, split in zip(numbers, words, splits, strict=True):
        if split not in SPLIT_FOLDERS:
            left.setdefault(word, []).append(number)
    return splits, [
        f"rows of {file} left out, whose split is {word!r}: {first_of(rows)}"
        for word, rows in left.items()
    ]


def _size(file: Path) -> int:
    """The bytes of a file; none of one that is not there, which cannot be read."""
    try:
        return file.stat().st_size
    except OSError:
        return 0
