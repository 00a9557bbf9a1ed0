"""A folder with one folder of images per class: its images, and what is listed in it."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deit_zoo.data.images import LabelledImages, Strings
from deit_zoo.errors import DataError

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)


class FolderSet(LabelledImages):
    """Images in one folder per class, classes in alphabetical order, as torchvision reads them.

    A class without images is refused, unless `allow_empty`.
    """

    def __init__(
        self, root: Path, classes: Sequence[str] = (), *, allow_empty: bool = False
    ) -> None:
        self.root = root
        self.note = ""
        folders = class_folders(root)
        self.classes = list(classes) or folders
        if sorted(self.classes) != folders:
            raise DataError(wrong_classes(root, folders, self.classes))
        of_class = [_images(root, name) for name in self.classes]
        empty = [name for name, paths in zip(self.classes, of_class, strict=True) if not paths]
        if empty and not allow_empty:
            raise DataError(empty_classes(root, empty, len(self.classes)))
        self._paths = Strings(path for paths in of_class for path in paths)
        self._labels = array("L")
        for label, paths in enumerate(of_class):
            self._labels.extend(array("L", [label]) * len(paths))

    def path_of(self, index: int) -> Path:
        """The file of an image."""
        return self.root / self._paths[index]

    def name_of(self, index: int) -> str:
        """The path of an image."""
        return str(self.path_of(index))

    def bytes_of(self, index: int) -> int:
        """The length of an image's file."""
        return self.path_of(index).stat().st_size

    def read(self, index: int) -> bytes:
        """The bytes of an image's file. Raises DataError naming it."""
        from deit_zoo.data.transforms import image_errors

        path = os.path.join(self.root, self._paths[index])
        # Unbuffered, and no pathlib: either would cost as much as the reading.
        with image_errors(path), open(path, "rb", buffering=0) as file:
            return file.readall()


def class_folders(root: Path) -> list[str]:
    """The names of the folders in `root`, sorted. Raises DataError where there is none."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give one that holds a folder of images per class")
    with listing_errors():
        names = sorted(path.name for path in root.iterdir() if path.is_dir())
    if not names:
        raise DataError(f"{root} holds no folder; it must hold one folder of images per class")
    return names


def is_folder(image: object) -> bool:
    """Whether images are meant by their folder."""
    return isinstance(image, str | os.PathLike) and Path(image).is_dir()


def images_of(image: Any) -> Iterator[Any]:
    """An image itself; in place of a folder, all images in it, sorted by their paths, or the
    DataError that there are none.
    """
    if not is_folder(image):
        yield image
        return
    files = sorted(file for file in Path(image).rglob("*") if is_image(file.name))
    yield from files
    if not files:
        yield DataError(f"{image} holds no image; give a folder of JPEG, PNG, ... files")


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def walk(folder: str, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every file under a folder, with its path; links to folders are not followed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from walk(entry.path, f"{prefix}{entry.name}/")
            else:
                yield f"{prefix}{entry.name}", entry


def path_parts(path: str) -> list[str]:
    """The key that sorts paths as pathlib does."""
    return path.split("/")


@contextmanager
def listing_errors() -> Iterator[None]:
    """Within it, a folder that cannot be listed is a DataError that names it."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(
            f"{error.filename} cannot be listed ({reason}); give a folder that you may read"
        ) from error


def differences(names: Iterable[str], others: Iterable[str], words: tuple[str, str]) -> str:
    """What one collection has beyond the other, both ways, in words."""
    groups = (sorted(set(names) - set(others)), sorted(set(others) - set(names)))
    return " and ".join(
        f"{len(group)} {word} (such as {group[0]!r})"
        for group, word in zip(groups, words, strict=True)
        if group
    )


def empty_classes(root: object, empty: Sequence[str], num_classes: int) -> str:
    """The sentence about classes without images."""
    return (
        f"{len(empty)} of the {num_classes} class folders of {root} hold no image (such as "
        f"{empty[0]!r}); give a folder with images of every class"
    )


def wrong_classes(root: object, folders: Sequence[str], classes: Sequence[str]) -> str:
    """The sentence about class folders that are not a model's classes."""
    words = ("that are no class of the model", "missing")
    return (
        f"the class folders of {root} are not the model's {len(classes)} classes: "
        f"{differences(folders, classes, words)}; give a folder with one folder per class, from "
        f"{classes[0]!r} to {classes[-1]!r}"
    )


def _images(root: Path, name: str) -> list[str]:
    """The images of a class by their path under `root`, in the order of pathlib."""
    with listing_errors():
        paths = [path for path, _ in walk(str(root / name), f"{name}/") if is_image(path)]
    return sorted(paths, key=path_parts)
