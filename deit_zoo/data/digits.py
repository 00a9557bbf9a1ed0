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


def place_of(number: int, label: str) -> str:
    """Where an image lies in a folder of them all."""
    split = "val" if number >= NUM_IMAGES - NUM_VAL else "train"
    return f"{split}/{label}/{number:04d}.png"


def check_folder(folder: Path) -> None:
    """Raises DataError where a folder of a run is not that of the embedded digits."""
    places = {place_of(number, label) for number, (_, label) in enumerate(digits())}
    files = (file for file in folder.glob("*/*/*") if not file.name.startswith("."))
    present = {file.relative_to(folder).as_posix() for file in files}
    if present != places:
        example = min(present - places, default=None)
        what = f"it has {example}" if example else f"it lacks {len(places - present):,} of them"
        raise DataError(
            f"{folder} is not the embedded digits as a run writes them ({what}); remove it, and "
            f"they are written again, or give --data {folder} to train on what it holds"
        )


def write_folder(output: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Write `train/` and `val/` with one folder per digit under `output`, whole or not at all."""
    output = expand_user(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output} exists and is not an empty folder; give a new --output")
    with new_folder(output) as temporary:
        for number, (image, label) in enumerate(digits()):
            file = temporary / place_of(number, label)
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
            if progress:
                progress(number + 1, NUM_IMAGES)
