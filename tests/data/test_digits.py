"""The embedded digits: real, whole, the same as scikit-learn's, and an image folder when asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from deit_zoo.data import digits
from deit_zoo.errors import DataError, IntegrityError


def test_every_pixel_and_label_is_scikit_learns() -> None:
    images, labels = load_digits(return_X_y=True)
    ours = list(digits.digits())
    ink = np.stack([np.asarray(image, dtype=float) for image, _ in ours]) * 16 / 255
    assert np.array_equal(ink.round(), images.reshape(-1, 8, 8))
    assert [label for _, label in ours] == [str(label) for label in labels]


def test_the_sheet_is_small_and_says_its_licence_and_source() -> None:
    assert digits.SHEET.stat().st_size < 100_000
    with Image.open(digits.SHEET) as sheet:
        assert sheet.info["Copyright"].startswith("CC BY 4.0")
        assert "UCI Machine Learning Repository" in sheet.info["Source"]


def test_the_last_360_images_are_for_validation(tmp_path: Path) -> None:
    digits.write_folder(tmp_path / "digits")
    digits.check_folder(tmp_path / "digits")
    train = sorted(path.stem for path in (tmp_path / "digits/train").rglob("*.png"))
    val = sorted(path.stem for path in (tmp_path / "digits/val").rglob("*.png"))
    assert (len(train), len(val), train[-1], val[0], val[-1]) == (1437, 360, "1436", "1437", "1796")


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="is not an empty folder; give a new --output"):
        digits.write_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_changed_sheet_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = bytearray(digits.SHEET.read_bytes())
    changed[-20] ^= 1
    (tmp_path / "digits.png").write_bytes(changed)
    monkeypatch.setattr(digits, "SHEET", tmp_path / "digits.png")
    with pytest.raises(IntegrityError, match=digits.SHEET_SHA256):
        next(digits.digits())
