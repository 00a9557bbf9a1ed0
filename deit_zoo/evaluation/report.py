"""What a model knows of each class: a page with tables and pictures, and every image's answer.

`index.html` shows what the other files hold: `classes.csv`, `confusion.csv` and its picture,
`mistakes.png` and `predictions.csv`.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from deit_zoo.errors import DataError
from deit_zoo.evaluation.answers import Answers
from deit_zoo.evaluation.report_pictures import draw_confusion, draw_mistakes
from deit_zoo.files import write_whole

PAGE = "index.html"
NUM_MISTAKES = 24
NUM_PAIRS = 12
_STYLE = """body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; }
table { border-collapse: collapse; } td, th { padding: .2em .8em; text-align: right; }
td:first-child, th:first-child { text-align: left; } tr:nth-child(even) { background: #f4f4f4; }
img { max-width: 100%; } h2 { margin-top: 2em; } .wide { overflow-x: auto; }"""


def prepare_folder(folder: Path) -> None:
    """Make the folder of a report. Raises DataError, or MissingExtraError, where none can be."""
    from deit_zoo.machine import require_matplotlib

    require_matplotlib()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder} is no folder that a report can be written to ({error.strerror}); give "
            "another as --report"
        ) from error


def write_report(folder: Path, title: str, splits: Sequence[Answers]) -> None:
    """Write the page and what it shows; of several splits the first is the one that counts."""
    prepare_folder(folder)
    main = splits[0]
    tables = {
        "classes.csv": class_rows(splits),
        "confusion.csv": confusion_rows(main),
        "predictions.csv": prediction_rows(splits),
    }
    for name, rows in tables.items():
        write_whole(folder / name, _csv(rows))
    worst = main.mistakes[:NUM_MISTAKES]
    pictures: dict[str, Callable[[], bytes]] = {
        "confusion.png": lambda: draw_confusion(main.classes, main.confusion()),
        "mistakes.png": lambda: draw_mistakes(main, worst),
    }
    for name, draw in pictures.items():
        if worst or name != "mistakes.png":
            write_whole(folder / name, draw())
        else:
            (folder / name).unlink(missing_ok=True)
    write_whole(folder / PAGE, _page(title, splits, worst).encode("utf-8", "surrogateescape"))


def class_rows(splits: Sequence[Answers]) -> list[list[Any]]:
    """A row for each class, the one with the lowest accuracy first, with figures of each split."""
    heading = ["class"]
    for split in splits:
        heading += [f"{split.split}_{key}" for key in ("images", "right", "accuracy", "precision")]
    counts = [split.counts() for split in splits]
    order = sorted(
        range(len(splits[0].classes)),
        key=lambda n: 101.0 if (found := counts[0][n].accuracy) is None else found,
    )
    rows: list[list[Any]] = [heading]
    for number in order:
        row: list[Any] = [splits[0].classes[number]]
        for of in counts:
            found = of[number]
            row += [found.images, found.right, _figure(found.accuracy), _figure(found.precision)]
        rows.append(row)
    return rows


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
            file = of.images.name_of(number)
            rows.append([of.split, file, *names, f"{share:.6f}", f"{its:.6f}", int(right)])
    return rows


def _figure(percent: float | None) -> str:
    return "" if percent is None else f"{percent:.2f}"


def _csv(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _page(title: str, splits: Sequence[Answers], worst: Sequence[int]) -> str:
    main = splits[0]
    parts = [f"<h1>{escape(title)}</h1>", "<ul>"]
    for split in splits:
        right, images = sum(split.right), len(split.labels)
        share = f"{100 * right / images:.2f} %" if images else "nothing"
        of = "as they are, without augmentation" if split.split == "train" else ""
        note = f" ({of})" if of else ""
        parts.append(
            f"<li><b>{escape(split.split)}</b>: {share} right, {right:,} of {images:,} images"
            f"{note}</li>"
        )
    parts += ["</ul>", "<h2>Each class</h2>", _table(class_rows(splits))]
    pairs = [(count, pair) for pair, count in main.confusion().items() if pair[0] != pair[1]]
    if pairs:
        of_class = Counter(main.labels)
        rows: list[list[Any]] = [["class", "taken for", "images", "of"]]
        for count, (label, predicted) in sorted(pairs, key=lambda row: (-row[0], row[1])):
            rows.append([main.classes[label], main.classes[predicted], count, of_class[label]])
        parts += ["<h2>What is taken for what</h2>", _table(rows[: NUM_PAIRS + 1])]
    parts.append('<p><img src="confusion.png" alt="confusion matrix"></p>')
    parts.append("<h2>The surest mistakes</h2>")
    if worst:
        parts.append('<p><img src="mistakes.png" alt="the surest mistakes"></p>')
        rows = [["file", "class", "taken for", "probability"]]
        for number in worst:
            names = main.classes[main.labels[number]], main.classes[main.predicted[number]]
            share = f"{100 * main.probability[number]:.1f} %"
            rows.append([main.images.name_of(number), *names, share])
        parts.append(_table(rows))
    else:
        parts.append(f"<p>None in {escape(main.split)}.</p>")
    files = ("classes.csv", "confusion.csv", "predictions.csv")
    links = ", ".join(f'<a href="{name}">{name}</a>' for name in files)
    parts.append(f"<p>The figures as tables: {links}</p>")
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
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
    """A column's name for people: accuracy and precision are in percent."""
    unit = " (%)" if heading.endswith(("accuracy", "precision")) else ""
    return heading.replace("_", " ") + unit
