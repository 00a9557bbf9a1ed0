"""The pictures of a report: a confusion matrix, and a sheet of mistakes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deit_zoo.runs.picture import drawable, new_figure, png_of

if TYPE_CHECKING:
    from deit_zoo.evaluation.answers import SplitAnswers

# More classes than these, and their counts or names would be too small to read.
WITH_COUNTS, WITH_NAMES = 25, 60
COLUMNS = 6
CELL, SIDE = (2.0, 2.5), 1.8  # inches: an image with its lines, and its longer side
LONGEST = 22  # characters of a name in a picture


def draw_confusion(classes: Sequence[str], counts: Mapping[tuple[int, int], int]) -> bytes:
    """A confusion matrix as PNG: each row is a class, by the share of what it was taken for."""
    import numpy as np

    size = len(classes)
    matrix = np.zeros((size, size))
    for (label, predicted), count in counts.items():
        matrix[label, predicted] = count
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros_like(matrix), where=totals > 0)
    inches = min(12.0, max(4.0, 0.42 * size + 2.0))
    figure = new_figure(inches, inches)
    panel = figure.subplots()
    panel.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    if size <= WITH_NAMES:
        names = [short(name) for name in classes]
        panel.set_xticks(range(size), names, rotation=90, fontsize=8)
        panel.set_yticks(range(size), names, fontsize=8)
    if size <= WITH_COUNTS:
        for label in range(size):
            for predicted in range(size):
                if count := int(matrix[label, predicted]):
                    colour = "white" if shares[label, predicted] > 0.5 else "black"
                    middle: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8}
                    panel.text(predicted, label, str(count), color=colour, **middle)
    panel.set_xlabel("taken for")
    panel.set_ylabel("class")
    return png_of(figure)


def draw_mistakes(images: SplitAnswers, captions: Sequence[tuple[int, Sequence[str]]]) -> bytes:
    """Images by their numbers, as PNG, each below its lines and above the name of its file."""
    columns = min(COLUMNS, len(captions))
    rows = -(-len(captions) // columns)
    width, height = max(columns * CELL[0], 4.0), rows * CELL[1]
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    # All on one panel, in inches from the upper left: one for each takes thrice as long.
    panel = figure.add_axes((0, 0, 1, 1))
    panel.axis("off")
    for place, (number, lines) in enumerate(captions):
        row, column = divmod(place, columns)
        middle, bottom = (column + 0.5) * width / columns, (row + 1) * CELL[1] - 0.1
        image = images.open(number)
        image.thumbnail((320, 320))
        wide, high = (SIDE * side / max(image.size) for side in image.size)
        extent = (middle - wide / 2, middle + wide / 2, bottom, bottom - high)
        panel.imshow(image, extent=extent, aspect="auto")
        name = short(os.path.basename(images.name_of(number)))
        text = "\n".join([*lines, name])
        panel.text(middle, bottom - high - 0.05, text, ha="center", va="bottom", fontsize=8)
    panel.set(xlim=(0, width), ylim=(height, 0))
    return png_of(figure)


def short(name: str) -> str:
    """A name that fits above a picture."""
    name = drawable(name)
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
