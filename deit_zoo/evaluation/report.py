"""What a model knows of each class: a page with tables and pictures, and every image's answer.

`index.html` shows what the other files hold: `classes.csv`, `confusion.csv` and its picture, sheets
of mistakes and `predictions.csv`. Where images have several labels, nothing is confused.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from deit_zoo.data.folder import is_hidden
from deit_zoo.errors import DataError
from deit_zoo.evaluation.answers import Answers, LabelAnswers
from deit_zoo.evaluation.report_pictures import draw_confusion, draw_mistakes, short
from deit_zoo.files import write_whole, writing

PAGE, PREDICTIONS = "index.html", "predictions.parquet"
SHEETS = {"val": "mistakes.png", "train": "mistakes-train.png"}
PICTURES = ("confusion.png", *SHEETS.values())
_SHEETS = "<h2>The surest mistakes</h2>"
MARK = '<meta name="generator" content="deit_zoo">'  # of a page of ours
NUM_MISTAKES = 24
NUM_PAIRS = 12
_STYLE = """body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; }
table { border-collapse: collapse; } td, th { padding: .2em .8em; text-align: right; }
td:first-child, th:first-child { text-align: left; } tr:nth-child(even) { background: #f4f4f4; }
img { max-width: 100%; } h2 { margin-top: 2em; } .wide { overflow-x: auto; }"""


def prepare_folder(folder: Path, *, parquet: bool = False) -> None:
    """Make the folder of a report. Raises DataError, or MissingExtraError, where none can be."""
    from deit_zoo.machine import require_extra, require_matplotlib

    require_matplotlib()
    if parquet:
        require_extra("hfds", PREDICTIONS, "pyarrow")
    with writing(folder, "--report"):
        folder.mkdir(parents=True, exist_ok=True)


def check_report_folder(folder: Path) -> None:
    """Raises DataError for a folder that holds others' files: those of a report are replaced."""
    page = folder / PAGE
    own = page.is_file() and MARK in page.read_text(encoding="utf-8", errors="replace")
    names = os.listdir(folder) if folder.is_dir() else []
    present = sorted(name for name in names if not is_hidden(name))
    if present and not own:
        raise DataError(
            f"{folder} holds other files ({', '.join(present[:3])}), which are left alone; give a "
            "new or empty folder, or one of an earlier report, as --report"
        )


class Contents(NamedTuple):
    """What a report shows: tables by their files, pictures by theirs, and the parts of the page."""

    tables: dict[str, list[list[Any]]]
    pictures: dict[str, Callable[[], bytes]]
    parts: list[str]


def write_report(
    folder: Path, title: str, splits: Sequence[Answers | LabelAnswers], *, parquet: bool = False
) -> None:
    """Write the page and what it shows; of several splits the first is the one that counts.

    With `parquet` the predictions are also in a file of that kind.
    """
    prepare_folder(folder, parquet=parquet)
    of_labels = [split for split in splits if isinstance(split, LabelAnswers)]
    of_classes = [split for split in splits if isinstance(split, Answers)]
    shown = labels_contents(of_labels) if of_labels else classes_contents(of_classes)
    # The page first: it says that the folder is a report's.
    write_whole(folder / PAGE, _page(title, shown).encode("utf-8", "surrogateescape"))
    for name, rows in shown.tables.items():
        write_whole(folder / name, _csv(rows))
    if parquet:
        write_whole(folder / PREDICTIONS, _parquet(shown.tables["predictions.csv"]))
    else:  # of an earlier report
        (folder / PREDICTIONS).unlink(missing_ok=True)
    for name in PICTURES:
        if draw := shown.pictures.get(name):
            write_whole(folder / name, draw())
        else:
            (folder / name).unlink(missing_ok=True)


def classes_contents(splits: Sequence[Answers]) -> Contents:
    """The report of images with one class each."""
    main = splits[0]
    parts = ["<ul>"]
    for split in splits:
        right, images = sum(split.right), len(split.labels)
        share = f"{100 * right / images:.2f} %" if images else "nothing"
        parts.append(_item(split.split, f"{share} right, {right:,} of {images:,} images"))
    parts += ["</ul>", "<h2>Each class</h2>", _table(class_rows(splits))]
    pairs = [(count, pair) for pair, count in main.confusion().items() if pair[0] != pair[1]]
    if pairs:
        of_class = Counter(main.labels)
        rows: list[list[Any]] = [["class", "taken for", "images", "of"]]
        for count, (label, predicted) in sorted(pairs, key=lambda row: (-row[0], row[1])):
            rows.append([main.classes[label], main.classes[predicted], count, of_class[label]])
        parts += ["<h2>What is taken for what</h2>", _table(rows[: NUM_PAIRS + 1])]
    parts.append('<p><img src="confusion.png" alt="confusion matrix"></p>')
    parts.append(_SHEETS)
    pictures = {"confusion.png": lambda: draw_confusion(main.classes, main.confusion())}
    for split in splits:
        rows = [["file", "class", "taken for", "probability"]]
        captions = []
        for number in split.mistakes[:NUM_MISTAKES]:
            its, answer = (split.classes[of[number]] for of in (split.labels, split.predicted))
            share = 100 * split.probability[number]
            rows.append([split.name_of(number), its, answer, f"{share:.1f} %"])
            captions.append((number, (f"said {short(answer)} ({share:.0f} %)", f"is {short(its)}")))
        _add_sheet(split, captions, rows, pictures, parts)
    tables = {
        "classes.csv": class_rows(splits),
        "confusion.csv": confusion_rows(main),
        "predictions.csv": prediction_rows(splits),
    }
    return Contents(tables, pictures, parts)


def labels_contents(splits: Sequence[LabelAnswers]) -> Contents:
    """The report of images with several labels each, or none."""
    parts = ["<ul>"]
    for split in splits:
        precisions = [value for value in split.precisions() if value is not None]
        mean = f"{sum(precisions) / len(precisions):.2f} %" if precisions else "nothing"
        images = f"{len(split.present):,} images"
        parts.append(_item(split.split, f"mean average precision {mean}, {images}"))
    parts += ["</ul>", "<h2>Each class</h2>", _table(class_rows(splits))]
    parts.append("<p>A class is taken to be shown where its probability is above 50 %.</p>")
    parts.append(_SHEETS)
    pictures: dict[str, Callable[[], bytes]] = {}
    for split in splits:
        rows: list[list[Any]] = [["file", "labels", "class", "probability"]]
        captions = []
        for number, label in split.mistakes[:NUM_MISTAKES]:
            name, share = split.classes[label], 100 * split.probability[number, label]
            labels = split.names_of(split.present[number]) or "nothing"
            rows.append([split.name_of(number), labels, name, f"{share:.1f} %"])
            captions.append((number, (f"{short(name)} {share:.0f} %", f"is {short(labels)}")))
        _add_sheet(split, captions, rows, pictures, parts)
    tables = {"classes.csv": class_rows(splits), "predictions.csv": probability_rows(splits)}
    return Contents(tables, pictures, parts)


def probability_rows(splits: Sequence[LabelAnswers]) -> list[list[Any]]:
    """A row for each image, with the probability of each class."""
    rows: list[list[Any]] = [["split", "file", "labels", "predicted", *splits[0].classes]]
    for of in splits:
        columns = zip(of.present, of.taken, of.probability, strict=True)
        for number, (present, taken, shares) in enumerate(columns):
            words = [of.names_of(present), of.names_of(taken)]
            numbers = [f"{share:.6f}" for share in shares]
            rows.append([of.split, of.name_of(number), *words, *numbers])
    return rows


def class_rows(splits: Sequence[Answers] | Sequence[LabelAnswers]) -> list[list[Any]]:
    """A row for each class with its figures in each split, the worst of the first split first."""
    main, figures = splits[0], [split.figures() for split in splits]
    heading = ["class", *(f"{split.split}_{key}" for split in splits for key in split.keys)]
    worst = main.keys.index(main.worst_by)
    shares = [101.0 if (share := row[worst]) is None else share for row in figures[0]]
    order = sorted(range(len(shares)), key=shares.__getitem__)  # without a figure behind all others
    rows = [
        [main.classes[n], *(_figure(value) for of in figures for value in of[n])] for n in order
    ]
    return [heading, *rows]


def confusion_rows(answers: Answers) -> list[list[Any]]:
    """A row for each class, a column for what its images were taken for."""
    counts, numbers = answers.confusion(), range(len(answers.classes))
    rows: list[list[Any]] = [["class", *answers.classes]]
    return rows + [[answers.classes[n], *(counts[n, m] for m in numbers)] for n in numbers]


def prediction_rows(splits: Sequence[Answers]) -> list[list[Any]]:
    """A row for each image."""
    rows: list[list[Any]] = [
        ["split", "file", "class", "predicted", "probability", "probability_of_class", "right"]
    ]
    for of in splits:
        columns = (of.labels, of.predicted, of.probability, of.of_label, of.right)
        for number, (label, predicted, share, its, right) in enumerate(zip(*columns, strict=True)):
            names = [of.classes[label], of.classes[predicted]]
            file = of.name_of(number)
            rows.append([of.split, file, *names, f"{share:.6f}", f"{its:.6f}", int(right)])
    return rows


def _item(split: str, words: str) -> str:
    note = " (as they are, without augmentation)" if split == "train" else ""
    return f"<li><b>{escape(split)}</b>: {words}{note}</li>"


def _add_sheet(
    of: Answers | LabelAnswers,
    captions: Sequence[tuple[int, Sequence[str]]],
    rows: Sequence[Sequence[Any]],
    pictures: dict[str, Callable[[], bytes]],
    parts: list[str],
) -> None:
    """The surest mistakes of a split, as a picture and a table."""
    parts.append(f"<h3>{escape(of.split)}</h3>")
    if not captions:
        parts.append(f"<p>None in {escape(of.split)}.</p>")
        return
    name = SHEETS[of.split]
    pictures[name] = lambda: draw_mistakes(of, captions)
    parts += [f'<p><img src="{name}" alt="the surest mistakes"></p>', _table(rows)]


def _figure(value: float | None) -> int | str:
    """A count as it is, a percentage with two decimals."""
    return value if isinstance(value, int) else "" if value is None else f"{value:.2f}"


def _csv(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _parquet(rows: Sequence[Sequence[Any]]) -> bytes:
    """A table of images: the split, the file, its class or labels and the prediction, as texts, and
    then numbers."""
    import pyarrow as pa
    from pyarrow import parquet

    heading, *body = rows
    kinds = [_texts] * 4 + [_numbers] * (len(heading) - 4)
    columns = [pa.array(kind(cells)) for kind, *cells in zip(kinds, *body, strict=True)]
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_arrays(columns, names=heading), sink)
    return sink.getvalue()


def _numbers(cells: Sequence[Any]) -> Sequence[Any]:
    return [cell if isinstance(cell, int) else float(cell) for cell in cells]


def _texts(cells: Sequence[str]) -> Sequence[str]:
    """Texts in UTF-8; of a file's name another byte is as `\\xe9`."""
    return [os.fsencode(cell).decode("utf-8", "backslashreplace") for cell in cells]


def _page(title: str, shown: Contents) -> str:
    links = ", ".join(f'<a href="{name}">{name}</a>' for name in shown.tables)
    parts = [f"<h1>{escape(title)}</h1>", *shown.parts, f"<p>The figures as tables: {links}</p>"]
    head = f'<meta charset="utf-8">{MARK}<title>{escape(title)}</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    return f"<!DOCTYPE html>\n<html><head>{head}</head><body>\n{body}\n</body></html>\n"


def _table(rows: Sequence[Sequence[Any]]) -> str:
    heading, *body = rows
    lines = ["<tr>" + "".join(f"<th>{escape(_words(cell))}</th>" for cell in heading) + "</tr>"]
    lines += [
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in body
    ]
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _words(heading: str) -> str:
    """A column's name for people: accuracy, recall and precision are in percent."""
    unit = " (%)" if heading.endswith(("accuracy", "recall", "precision")) else ""
    return heading.replace("_", " ") + unit
