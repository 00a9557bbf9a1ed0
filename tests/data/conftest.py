"""What several files of these tests begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.images import photo, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images to train on, two to validate with, and a file that is none."""
    files = {
        "train/blue/1.png": photo("blue"),
        "train/red/2.png": photo("red"),
        "train/red/10.png": photo("red"),
        "train/notes.txt": b"hello",
        "val/blue/3.png": photo("blue"),
        "val/red/4.png": photo("red"),
    }
    return write(tmp_path / "data", files)
