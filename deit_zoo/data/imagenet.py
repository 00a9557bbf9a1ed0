"""ImageNet as it is published: which class each of the validation images shows.

The images come in one heap, numbered from 1. The development kit has a line for each with an
`ILSVRC2012_ID`, and in `meta.mat` the synset of each ID, which is not the order of the synsets.
Kaggle has a table of image and synset instead.
"""

from __future__ import annotations

import csv
import tarfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from deit_zoo.errors import DataError, reason_of
from deit_zoo.machine import require_extra

VAL_NAME = "ILSVRC2012_val_{:08}"
GROUND_TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
SOLUTION = "LOC_val_solution.csv"
KIT_BYTES = 1 << 24  # of a file of the kit, which is packed: the largest has 0.4 MB
# What sorts the validation images, the first that lies beside them.
LABEL_FILES = ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12", SOLUTION)


def label_file_in(folder: Path) -> Path | None:
    """What sorts the validation images, where it lies in a folder."""
    files = (folder / name for name in LABEL_FILES)
    return next((file for file in files if file.exists()), None)


def validation_labels(source: Path) -> list[str]:
    """The synset of each validation image, by its number from 1.

    From the development kit (`ILSVRC2012_devkit_t12.tar.gz`, or the folder that was in it), or from
    Kaggle's `LOC_val_solution.csv`. Raises DataError where it is neither.
    """
    if source.suffix == ".csv":
        return read_solution(source, source.read_bytes)
    return _read_kit(source)


def read_solution(file: Path, read: Callable[[], bytes]) -> list[str]:
    """The same from Kaggle's table, wherever it is read from."""
    try:
        lines = read().decode("utf-8-sig").splitlines()
        rows = {row["ImageId"]: row["PredictionString"] for row in csv.DictReader(lines)}
        # Each box of an image begins with the synset: "n01751748 111 108 231 330 ...".
        return [rows[VAL_NAME.format(number + 1)].split()[0] for number in range(len(rows))]
    except (OSError, UnicodeError, csv.Error, zlib.error, LookupError, AttributeError) as error:
        raise DataError(
            f"{file} cannot be read as labels ({_reason(error)}); give Kaggle's {SOLUTION}, a line "
            f"ImageId,PredictionString and one for each image from {VAL_NAME.format(1)}"
        ) from error


def _read_kit(kit: Path) -> list[str]:
    require_extra("train", f"{META} of the development kit", "scipy")
    from scipy.io import loadmat

    try:
        synsets = loadmat(BytesIO(_kit_file(kit, META)), squeeze_me=True)["synsets"].ravel()
        synset_of = {
            int(synset["ILSVRC2012_ID"]): str(synset["WNID"])
            for synset in synsets
            if synset["num_children"] == 0  # the others are kinds of kinds, and no classes
        }
        return [synset_of[int(line)] for line in _kit_file(kit, GROUND_TRUTH).split()]
    except Exception as error:  # scipy raises nearly anything on broken bytes
        raise DataError(
            f"{kit} cannot be read as the development kit ({_reason(error)}); give "
            f"ILSVRC2012_devkit_t12.tar.gz as it was downloaded, or Kaggle's {SOLUTION}"
        ) from error


def _kit_file(kit: Path, name: str) -> bytes:
    """A file of the kit, wherever it lies in it."""
    if kit.is_dir():
        for path in filter(Path.is_file, sorted(kit.rglob(name))):
            return path.read_bytes()
    else:
        with tarfile.open(kit) as archive:
            for member in archive:
                if member.isfile() and Path(member.name).name == name:
                    stream = archive.extractfile(member)
                    assert stream is not None, "a file has content"
                    return stream.read(KIT_BYTES)
    raise FileNotFoundError(f"no {name} in it")


def _reason(error: Exception) -> str:
    return f"it has no {error.args[0]!r}" if isinstance(error, KeyError) else reason_of(error)
