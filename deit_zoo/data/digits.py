"""The embedded data set: 1,797 real handwritten digits, 8x8 pixels, as an ordinary image folder.

Optical Recognition of Handwritten Digits (E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository, CC BY 4.0), the part that scikit-learn ships. The last 360 images, by other writers,
are for validation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from deit_zoo.errors import DataError
from deit_zoo.files import ASSETS, expand_user, new_folder, verify

SHEET = ASSETS / "digits.png"
SHEET_SHA256 = "fa472e6d0fe9fff456b182b3deba5fd691036f6ff7e880b9895527fceda9edb5"
NUM_IMAGES, NUM_VAL = 1797, 360
SIDE = 8


def digits() -> Iterator[tuple[Image.Image, str]]:
    """Every image with its label, in the data's own order."""
    verify(SHEET, SHEET_SHA256)
    with Image.open(SHEET) as sheet:
        labels = str(sheet.info["Labels"])
        columns = sheet.width // SIDE
        for number in range(NUM_IMAGES):
            row, column = divmod(number, columns)
            left, top = column * SIDE, row * SIDE
            yield sheet.crop((left, top, left + SIDE, top + SIDE)), labels[number]


def write_folder(output: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Write `train/` and `val/` with one folder per digit under `output`, whole or not at all.

    Raises DataError where the folder holds something already.
    """
    output = expand_user(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output} exists and is not an empty folder; give a new --output")
    with new_folder(output) as temporary:
        for number, (image, label) in enumerate(digits()):
            split = "val" if number >= NUM_IMAGES - NUM_VAL else "train"
            folder = temporary / split / label
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{number:04d}.png")
            if progress:
                progress(number + 1, NUM_IMAGES)
