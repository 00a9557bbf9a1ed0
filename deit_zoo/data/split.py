"""A folder of class folders as train/ and val/, by links to its images."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from deit_zoo.data.folder import class_folders, is_image
from deit_zoo.data.image_set import kind_of
from deit_zoo.errors import DataError


def link_split(
    data: str | Path, output: Path | None = None, val_share: float | None = None
) -> str | Path:
    """The data; with a share it is `output`, with that share of each class in its `val/`.

    Raises DataError for a folder of class folders without a share.
    """
    if val_share is None or output is None:
        _check_split(data)
        return data
    if not output.exists():
        _link(train_val_split(Path(data), val_share), output)
    return output


def train_val_split(data: Path, val_share: float) -> dict[str, dict[str, Path]]:
    """The images of `train` and `val` by their paths; which is where, their names decide."""
    if not 0.0 < val_share < 1.0:
        raise DataError(f"--val-share is {val_share}; it must be between 0 and 1, such as 0.2")
    root = _unsplit(data)
    splits: dict[str, dict[str, Path]] = {"train": {}, "val": {}}
    for name in class_folders(root):
        files = [path for path in (root / name).rglob("*") if is_image(path.name)]
        if len(files) < 2:
            raise DataError(
                f"{root / name} holds {len(files)} image{'' if len(files) == 1 else 's'}; to keep "
                "some apart there must be 2 or more in each class"
            )
        paths = {path.relative_to(root).as_posix(): path.resolve() for path in files}
        order = sorted(paths, key=lambda path: hashlib.sha256(path.encode()).digest())
        num_val = min(max(round(val_share * len(order)), 1), len(order) - 1)
        splits["val"] |= {path: paths[path] for path in order[:num_val]}
        splits["train"] |= {path: paths[path] for path in order[num_val:]}
    return splits


def _check_split(data: str | Path) -> None:
    """Raises DataError for a folder of class folders, in which nothing is kept apart."""
    root = Path(data)
    if kind_of(data) != "folder" or (root / "val").is_dir():
        return
    names = sorted(path.name for path in root.iterdir() if path.is_dir())
    if names and "train" not in names:
        raise DataError(
            f"{data} holds class folders ({', '.join(names[:3])}) and no train/ and val/; type "
            "--val-share 0.2 to keep a fifth of each class apart for validation"
        )


def _unsplit(root: Path) -> Path:
    """The folder of class folders that `--val-share` parts."""
    if (root / "val").is_dir() or not root.is_dir():
        raise DataError(
            f"--val-share parts a folder of class folders, and {root} is none; leave it out"
        )
    return root / "train" if (root / "train").is_dir() else root


def _link(images: dict[str, dict[str, Path]], output: Path) -> None:
    """Leave a folder of links, whole or not at all."""
    # Beside the run's folder: in it, another process would take it for somebody's files.
    temporary = output.parent.with_name(f".{output.parent.name}.{output.name}.{os.getpid()}")
    for split, files in images.items():
        for path, target in files.items():
            link = temporary / split / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.replace(output)
    except OSError:
        if not output.exists():
            raise
        shutil.rmtree(temporary)  # another process was first, with the same links
