"""What a data set of images is: folders with one folder per class, or a data set of the Hub.

A folder DIR holds DIR/train and DIR/val; for `hfds:NAME` see hfds.py. What lies in either is
counted by `survey`, and decoded by `bad_images`.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from deit_zoo.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

HFDS = "hfds:"
IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
SplitName = Literal["train", "val"]
# Listing a folder is waiting for a disk: threads wait at the same time.
LISTERS = 16
# Images that a thread decodes before it tells.
CHUNK = 64


class ImageSet(Protocol):
    """Images with labels, by number. `note` is a sentence about the classes, mostly empty."""

    classes: list[str]
    note: str

    def __len__(self) -> int: ...

    def label_of(self, index: int) -> int:
        """The number of an image's class."""

    def open(self, index: int) -> Image.Image:
        """An image as upstream reads it: in RGB, EXIF ignored. Raises DataError naming it."""

    def name_of(self, index: int) -> str:
        """Where an image lies, for people."""

    def bytes_of(self, index: int) -> int:
        """The length of an image's file."""


def open_set(data: str | Path, split: SplitName, classes: Sequence[str] = ()) -> ImageSet:
    """The images of one split, labelled in the order of `classes` where they are given."""
    if is_hfds(data):
        from deit_zoo.data.hub import HubSet

        return HubSet(str(data), split, classes)
    return FolderSet(Path(data) / split, classes)


def is_hfds(data: str | Path) -> bool:
    """Whether a data set is one of the Hub."""
    return str(data).startswith(HFDS)


class FolderSet:
    """Images in one folder per class, classes in alphabetical order, as torchvision reads them.

    A class without images is refused, unless `complete` is False.
    """

    def __init__(self, root: Path, classes: Sequence[str] = (), *, complete: bool = True) -> None:
        self.root = root
        self.note = ""
        found = class_folders(root)
        self.classes = list(classes) or found
        if sorted(self.classes) != found:
            raise DataError(_wrong_classes(root, found, self.classes))
        of_class = [_images(root, name) for name in self.classes]
        empty = [name for name, held in zip(self.classes, of_class, strict=True) if not held]
        if empty and complete:
            raise DataError(_empty_classes(root, empty, len(self.classes)))
        self._names = _Names(name for held in of_class for name in held)
        self._labels = array("L")
        for label, held in enumerate(of_class):
            self._labels.extend(array("L", [label]) * len(held))

    def __len__(self) -> int:
        return len(self._labels)

    def label_of(self, index: int) -> int:
        """The number of an image's class."""
        return self._labels[index]

    def path_of(self, index: int) -> Path:
        """The file of an image."""
        return self.root / self._names[index]

    def name_of(self, index: int) -> str:
        """The path of an image."""
        return str(self.path_of(index))

    def bytes_of(self, index: int) -> int:
        """The length of an image's file."""
        return self.path_of(index).stat().st_size

    def open(self, index: int) -> Image.Image:
        """An image in RGB. Raises DataError naming its file."""
        from deit_zoo.data.transforms import open_rgb

        return open_rgb(self.path_of(index))


class _Names:
    """Many strings in one block: loader workers share it, where a million objects are copied."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._ends = array("Q", accumulate(map(len, encoded)))
        self._block = b"".join(encoded)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._block[start : self._ends[index]])


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """What lies in one split: the images of each class, and what tells it from another."""

    name: str
    classes: dict[str, int]
    others: int
    bytes: int
    identity: dict[str, Any]

    @property
    def images(self) -> int:
        """All images."""
        return sum(self.classes.values())

    def line(self) -> str:
        """The split in words."""
        fewest, most = min(self.classes.values()), max(self.classes.values())
        each = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
        line = f"{self.images:,} images in {len(self.classes):,} classes ({each} each)"
        if self.others:
            line += f"; {self.others:,} other file{'s are' if self.others > 1 else ' is'} ignored"
        return line


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What lies in a data set. `problem` is the sentence that makes it useless for training."""

    data: str
    train: Split
    val: Split
    problem: str | None

    def lines(self) -> list[tuple[str, str]]:
        """Both splits, for people."""
        return [("train", self.train.line()), (self.val.name, self.val.line())]

    def fingerprint(self) -> dict[str, Any]:
        """What a receipt says of the data: enough to see that others are not the same."""
        return {"train": self.train.identity, "val": self.val.identity}


def survey(data: str | Path, progress: Callable[[int], None] = lambda files: None) -> Survey:
    """What lies in a data set that can be trained on. `progress` gets the files listed so far.

    Raises DataError where train and val have other classes, or a class has no image.
    """
    found = scan(data, progress)
    if found.problem:
        raise DataError(found.problem)
    return found


def scan(data: str | Path, progress: Callable[[int], None] = lambda files: None) -> Survey:
    """What lies in a data set, whatever it is worth. Raises DataError where it is none."""
    if is_hfds(data):
        train, val = _hub_scan(str(data), "train"), _hub_scan(str(data), "val")
    else:
        for split in ("train", "val"):
            if not (Path(data) / split).is_dir():
                raise DataError(
                    f"{data} has no folder {split}/; it must hold train/ and val/, each with one "
                    "folder of images per class"
                )
        train = _folder_scan(Path(data) / "train", progress, 0)
        val = _folder_scan(Path(data) / "val", progress, train.identity["files"])
    return Survey(data=str(data), train=train, val=val, problem=_problem(str(data), train, val))


def open_unchecked(data: str | Path, split: SplitName) -> ImageSet:
    """Every image of a split, whatever its classes are worth."""
    if is_hfds(data):
        return open_set(data, split)
    return FolderSet(Path(data) / split, complete=False)


def bad_images(
    images: ImageSet, *, workers: int, progress: Callable[[int], None] = lambda done: None
) -> Iterator[tuple[str, str]]:
    """Decode every image, in threads; the names of those that cannot be read, each with a reason.

    They come in the order of the images. `progress` gets the images done so far.
    """

    def bad_in(first: int) -> list[tuple[str, str]]:
        numbers = range(first, min(first + CHUNK, len(images)))
        named = ((images.name_of(index), decode_error(images, index)) for index in numbers)
        return [(name, fault) for name, fault in named if fault]

    pool = ThreadPoolExecutor(workers)
    # Filters of warnings belong to the process, so each thread's own would undo another's.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            firsts = range(0, len(images), CHUNK)
            for first, found in zip(firsts, pool.map(bad_in, firsts), strict=True):
                yield from found
                progress(min(first + CHUNK, len(images)))
        finally:
            pool.shutdown(cancel_futures=True)


def decode_error(images: ImageSet, index: int) -> str | None:
    """Why an image cannot be read, in a few words; None where it can."""
    try:
        images.open(index)
    except DataError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.strerror:
            return f"unreadable: {cause.strerror.lower()}"
        return _reason(cause or error) if images.bytes_of(index) else "zero bytes"
    return None


def class_folders(root: Path) -> list[str]:
    """The names of the folders in `root`, sorted. Raises DataError where there is none."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give one that holds a folder of images per class")
    with _listing():
        names = sorted(path.name for path in root.iterdir() if path.is_dir())
    if not names:
        raise DataError(f"{root} holds no folder; it must hold one folder of images per class")
    return names


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _problem(data: str, train: Split, val: Split) -> str | None:
    words = ("in train/ only", f"in {val.name}/ only")
    if told := _differences(train.classes, val.classes, words):
        return f"the classes of {data} differ: {told}; give train and val the same classes"
    for split in (train, val):
        empty = [name for name, images in split.classes.items() if not images]
        if len(empty) == len(split.classes):
            return (
                f"{data} holds no image in {split.name}/; give image files "
                f"({', '.join(sorted(IMAGE_SUFFIXES))})"
            )
        if empty:
            return _empty_classes(f"{data}/{split.name}", empty, len(split.classes))
    return None


def _folder_scan(root: Path, progress: Callable[[int], None], before: int) -> Split:
    """One walk over a split, in threads; files and digest are those of a sorted listing."""
    classes = set(class_folders(root))
    with _listing():
        entries = sorted(entry.name for entry in os.scandir(root))
    digest = hashlib.sha256()
    held: dict[str, int] = {}
    files = size = 0
    with ThreadPoolExecutor(LISTERS) as pool:
        found = pool.map(lambda name: _listed(root, name, name in classes), entries)
        for name, part in zip(entries, found, strict=True):
            digest.update(part.listing)
            files, size = files + part.files, size + part.bytes
            if name in classes:
                held[name] = part.images
            progress(before + files)
    return Split(
        name=root.name,
        classes=held,
        others=files - sum(held.values()),
        bytes=size,
        identity={"files": files, "bytes": size, "listing_sha256": digest.hexdigest()},
    )


class _Part(NamedTuple):
    """A class folder, or a file beside the class folders."""

    listing: bytes
    files: int
    images: int
    bytes: int


def _listed(root: Path, name: str, folder: bool) -> _Part:
    with _listing():
        if folder:
            sizes = dict(_sizes(_walk(str(root / name), f"{name}/")))
        else:
            file = root / name
            sizes = {name: file.stat().st_size} if file.is_file() else {}
    order = sorted(sizes, key=_parts)
    listing = b"".join(b"%s %d\n" % (os.fsencode(path), sizes[path]) for path in order)
    images = sum(map(is_image, order)) if folder else 0
    return _Part(listing, len(order), images, sum(sizes.values()))


def _sizes(found: Iterable[tuple[str, os.DirEntry[str]]]) -> Iterator[tuple[str, int]]:
    for path, entry in found:
        if entry.is_file():
            yield path, entry.stat().st_size


def _images(root: Path, name: str) -> list[str]:
    """The images of a class by their path under `root`, in the order of pathlib."""
    with _listing():
        found = [path for path, _ in _walk(str(root / name), f"{name}/") if is_image(path)]
    return sorted(found, key=_parts)


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every file under a folder, with its path; links to folders are not followed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, f"{prefix}{entry.name}/")
            else:
                yield f"{prefix}{entry.name}", entry


def _parts(path: str) -> list[str]:
    return path.split("/")


@contextmanager
def _listing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(
            f"{error.filename} cannot be listed ({reason}); give a folder that you may read"
        ) from error


def _wrong_classes(root: Path, found: Sequence[str], wanted: Sequence[str]) -> str:
    told = _differences(found, wanted, ("that are no class of the model", "missing"))
    return (
        f"the class folders of {root} are not the model's {len(wanted)} classes: {told}; give a "
        f"folder with one folder per class, from {wanted[0]!r} to {wanted[-1]!r}"
    )


def _differences(found: Iterable[str], wanted: Iterable[str], words: tuple[str, str]) -> str:
    """What one collection has beyond the other, both ways, in words."""
    groups = (sorted(set(found) - set(wanted)), sorted(set(wanted) - set(found)))
    return " and ".join(
        f"{len(group)} {word} (such as {group[0]!r})"
        for group, word in zip(groups, words, strict=True)
        if group
    )


def _empty_classes(where: object, empty: Sequence[str], num_classes: int) -> str:
    return (
        f"{len(empty)} of the {num_classes} class folders of {where} hold no image (such as "
        f"{empty[0]!r}); give a folder with images of every class"
    )


def _reason(error: BaseException) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, Image.DecompressionBombError):
        return "decompression bomb"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return "truncated" if "truncated" in said.lower() else f"broken: {said}"


def _hub_scan(data: str, split: SplitName) -> Split:
    from deit_zoo.data.hub import HubSet

    found = HubSet(data, split)
    counts = Counter(found.label_of(index) for index in range(len(found)))
    return Split(
        name=found.split,
        classes={name: counts[label] for label, name in enumerate(found.classes)},
        others=0,
        bytes=found.bytes,
        identity=found.identity(),
    )
