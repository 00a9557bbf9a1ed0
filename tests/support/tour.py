"""docs/tour.ipynb, run anew. In tests/ `python -m support.tour` stores what it shows."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from unittest.mock import patch

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

TOUR = Path(__file__).parents[2] / "docs" / "tour.ipynb"
# What huggingface_hub makes tqdm say in a notebook without ipywidgets.
QUIET = {"PYTHONWARNINGS": "ignore:IProgress not found"}


def read() -> NotebookNode:
    """The notebook as it is stored."""
    return nbformat.read(TOUR, as_version=4)


def run(notebook: NotebookNode) -> None:
    """Put what its cells show now into a notebook, by a kernel of its own in an empty folder."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, QUIET):
        place = {"metadata": {"path": folder}}
        NotebookClient(notebook, record_timing=False, resources=place).execute()


if __name__ == "__main__":
    tour = read()
    about = dict(tour.metadata)
    run(tour)
    tour.metadata = about  # of any Python
    nbformat.write(tour, TOUR)
