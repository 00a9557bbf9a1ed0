"""A folder of class folders, parted into train/ and val/ by links to its images."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from deit_zoo.errors import DataError

HFDS = "hfds:"


def parted(data: str | Path, place: Path | None = None, share: float | None = None) -> str | Path:
    """The data; with a share it is `place`, with that share of each class in its `val/`.

    Raises DataError for a folder of class folders without a share.
    """
    if share is None or place is None:
        _check(str(data), Path(data))
        return data
    if not place.exists():
        _link(shares(Path(data), share), place)
    return place


def shares(data: Path, share: float) -> dict[str, dict[str, Path]]:
    """The images of `train` and `val` by their paths; which is where, their names decide."""
    from deit_zoo.data.folder import class_folders, is_image

    if not 0.0 < share < 1.0:
        raise DataError(f"--val-share is {share}; it must be between 0 and 1, such as 0.2")
    root = _unparted(data)
    found: dict[str, dict[str, Path]] = {"train": {}, "val": {}}
    for name in class_folders(root):
        files = [path for path in (root / name).rglob("*") if is_image(path.name)]
        if len(files) < 2:
            raise DataError(
                f"{root / name} holds {len(files)} image{'' if len(files) == 1 else 's'}; to keep "
                "some apart there must be 2 or more in each class"
            )
        paths = {path.relative_to(root).as_posix(): path.resolve() for path in files}
        order = sorted(paths, key=lambda path: hashlib.sha256(path.encode()).digest())
        apart = min(max(round(share * len(order)), 1), len(order) - 1)
        found["val"] |= {path: paths[path] for path in order[:apart]}
        found["train"] |= {path: paths[path] for path in order[apart:]}
    return found


def _check(data: str, root: Path) -> None:
    """Raises DataError for a folder of class folders, in which nothing is kept apart."""
    if data.startswith(HFDS) or not root.is_dir() or (root / "val").is_dir():
        return
    names = sorted(path.name for path in root.iterdir() if path.is_dir())
    if names and "train" not in names:
        raise DataError(
            f"{data} holds class folders ({', '.join(names[:3])}) and no train/ and val/; type "
            "--val-share 0.2 to keep a fifth of each class apart for validation"
        )


def _unparted(root: Path) -> Path:
    """The folder of class folders that `--val-share` parts."""
    if (root / "val").is_dir() or not root.is_dir():
        raise DataError(
            f"--val-share parts a folder of class folders, and {root} is none; leave it out"
        )
    return root / "train" if (root / "train").is_dir() else root


def _link(images: dict[str, dict[str, Path]], place: Path) -> None:
    """Leave a folder of links, whole or not at all."""
    # Beside the run's folder: in it, another process would take it for somebody's files.
    temporary = place.parent.with_name(f".{place.parent.name}.{place.name}.{os.getpid()}")
    for split, files in images.items():
        for path, target in files.items():
            link = temporary / split / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.replace(place)
    except OSError:
        if not place.exists():
            raise
        shutil.rmtree(temporary)  # another process was first, with the same links
