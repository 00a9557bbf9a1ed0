"""ImageNet as it is downloaded, of a few images: archives, development kit, Kaggle's folders."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from scipy.io import savemat


def write_tar(file: Path, files: Mapping[str, bytes], mode: str = "w") -> Path:
    """An archive of files; a name with a slash at its end is a folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
            archive.addfile(member, BytesIO(content))
    return file


def meta_mat(synsets: Sequence[str]) -> bytes:
    """`meta.mat` of classes in the order of their IDs, and after them one that is no class.

    A column of structs with the fields and in the types of the real file.
    """
    fields = [
        ("ILSVRC2012_ID", "O"),
        ("WNID", "O"),
        ("words", "O"),
        ("gloss", "O"),
        ("num_children", "O"),
        ("children", "O"),
        ("wordnet_height", "O"),
        ("num_train_images", "O"),
    ]
    rows = [
        (float(number + 1), synset, "words", "gloss", 0.0, np.empty((0, 0)), 0.0, 1300.0)
        for number, synset in enumerate(synsets)
    ]
    above = np.arange(1.0, len(rows) + 1)
    rows.append((len(rows) + 1.0, "n00001740", "entity", "all", above.size + 0.0, above, 1.0, 0.0))
    file = BytesIO()
    column = np.array(rows, dtype=fields).reshape(-1, 1)
    savemat(file, {"synsets": column}, do_compression=True)
    return file.getvalue()


def kit_files(synsets: Sequence[str], labels: Sequence[str]) -> dict[str, bytes]:
    """The files of a development kit: IDs in the order of `synsets`, a label for each image."""
    ids = "".join(f"{synsets.index(label) + 1}\n" for label in labels)
    root = "ILSVRC2012_devkit_t12"
    return {
        f"{root}/": b"",
        f"{root}/readme.txt": b"hello",
        f"{root}/data/meta.mat": meta_mat(synsets),
        f"{root}/data/ILSVRC2012_validation_ground_truth.txt": ids.encode(),
    }


def solution_csv(labels: Sequence[str]) -> bytes:
    """Kaggle's table of labels, whose rows have no order; an image has a box or two."""
    rows = [
        f"ILSVRC2012_val_{number + 1:08},{label} 1 2 30 40 " + f"{label} 5 6 7 8 " * (number % 2)
        for number, label in enumerate(labels)
    ]
    return "\n".join(["ImageId,PredictionString", *rows[::-1], ""]).encode()
