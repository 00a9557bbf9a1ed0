"""docs/tour.ipynb runs as it stands, offline, and what is stored in it is what it shows."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from support.once import made_once
from support.tour import TOUR, read, run

# One cell more, which notes every frame of the bar that a person sees.
NOTING = """
import json
from deit_zoo import terminal

frames = []
publish = get_ipython().display_pub.publish

def noted(data, **options):
    frames.append(data["text/html"])
    publish(data, **options)

get_ipython().display_pub.publish = noted
terminal.REDRAW_SECONDS = 0
evaluation = deit_zoo.evaluate("deit_pico_digits", "digits")
print(json.dumps(frames))
"""


def execute(file: Path) -> None:
    """Write the tour as it runs anew, with one cell more."""
    notebook = read()
    notebook.cells.append(new_code_cell(NOTING))
    run(notebook)
    nbformat.write(notebook, file)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> NotebookNode:
    """The tour as it runs anew, with one cell more."""
    return nbformat.read(made_once(tmp_path_factory, "tour.ipynb", execute), as_version=4)


def kinds(cells: list[NotebookNode]) -> list[tuple[str, list[str]]]:
    """The code of each cell and the kinds of what it shows, without bars that are gone."""
    shown = []
    for cell in (cell for cell in cells if cell.cell_type == "code"):
        data = [output.get("data", {output.output_type: ""}) for output in cell.outputs]
        shown.append((cell.source, [sorted(one) for one in data if one.get("text/html") != ""]))
    return shown


@pytest.mark.slow
def test_the_tour_runs_and_shows_what_is_stored_in_it(executed: NotebookNode) -> None:
    stale = "stale: cd tests && python -m support.tour"
    assert kinds(executed.cells[:-1]) == kinds(read().cells), stale


@pytest.mark.slow
def test_a_bar_moves_in_a_cell_and_is_gone_at_the_end(executed: NotebookNode) -> None:
    bar, printed = executed.cells[-1].outputs
    frames = json.loads(printed.text)
    assert '<progress value="64" max="360">' in frames[0]
    assert "images 360 of 360" in frames[-2]
    assert frames[-1] == bar.data["text/html"] == ""


def test_the_tour_is_stored_with_pictures_and_names_no_machine() -> None:
    outputs = [output for cell in read().cells for output in cell.get("outputs", [])]
    assert {"stream"} >= {one.output_type for one in outputs if "data" not in one}
    assert "image/png" in {kind for output in outputs for kind in output.get("data", {})}
    text = TOUR.read_text(encoding="utf-8")
    assert len(text) < 400_000
    assert not [place for place in ("/home/", "/root/", str(TOUR.parents[1])) if place in text]
