"""A list of images as a data set: which are in `train` and which in `val`, by their paths.

A run on one's own images keeps one in its folder. Nothing is copied or linked, so it works on any
disk, and messages name the images as they lie: as files, as members of archives or as rows.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from deit_zoo.data.archive_set import ArchiveSet
from deit_zoo.data.folder import FolderSet, check_utf8, wrong_classes
from deit_zoo.data.images import Strings
from deit_zoo.data.table import TableSet, split_address
from deit_zoo.errors import DataError

SPLIT_FILE = "split.csv"
SUFFIXES = (".csv", ".tsv")
UNREADABLE = "unreadable"
ALL = "all"  # the split of images that are not parted
SEPARATOR = "|"  # between the labels of an image that has several
LOOKED_AT = 10_000  # files near a list, for one that it may mean: a home folder holds many more
_COLUMNS = ["split", "class", "bytes", "file"]
_OF_SEVERAL = ["split", "labels", "bytes", "file"]
_OF_MEMBERS = ["split", "class", "bytes", "data", "member"]
_UNSEEN = "unseen"  # in place of the split: a class that no image has
_HEADINGS = (_COLUMNS, _OF_SEVERAL, _OF_MEMBERS)


class ListedImage(NamedTuple):
    """A file with its class, in `train`, in `val` or, being unreadable, in neither.

    Several labels are one word, with `|` between them.
    """

    split: str
    class_name: str
    num_bytes: int
    path: str  # from the data's root on, with "/"

    @property
    def path_in_split(self) -> str:
        """The path from the class on, as it is in a folder that is parted already."""
        parts = self.path.split("/")
        if self.class_name not in parts:
            return f"{self.class_name}/{self.path}"
        return "/".join(parts[parts.index(self.class_name) :])


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageList:
    """Images in the order in which a run numbers them.

    An image has one class, or where `several` any number; `unseen` are classes that none has.
    `data` is the archive or the table of which they are members or rows; of files it is empty.
    `file` is what the list was read from. `ignored` says, of one that was just made, what else lies
    there, or is left out.
    """

    root: Path
    images: tuple[ListedImage, ...]
    several: bool = False
    unseen: tuple[str, ...] = ()
    data: str = ""
    file: str = field(default="", compare=False)
    ignored: str = field(default="", compare=False)

    @property
    def classes(self) -> list[str]:
        """The names of all classes, sorted."""
        return sorted(
            {*self.unseen, *(name for image in self.images for name in self.labels_of(image))}
        )

    def labels_of(self, image: ListedImage) -> list[str]:
        """The classes of an image."""
        if not self.several:
            return [image.class_name]
        return image.class_name.split(SEPARATOR) if image.class_name else []

    def of(self, split: str) -> list[ListedImage]:
        """The images of one split."""
        return [image for image in self.images if image.split == split]

    def without(self, unreadable: Iterable[str]) -> ImageList:
        """The list on which these files, given as they lie, are in no split."""
        files = {os.fspath(file) for file in unreadable}
        images = (
            image._replace(split=UNREADABLE) if str(self.root / image.path) in files else image
            for image in self.images
        )
        return replace(self, images=tuple(images))

    def to_bytes(self) -> bytes:
        """The list as a CSV file, with the whole path of every file, or what it is a member of."""
        text, place = io.StringIO(), [self.data] if self.data else []
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_OF_MEMBERS if place else _OF_SEVERAL if self.several else _COLUMNS)
        for image in self.images:
            writer.writerow((*image[:3], *place, image.path if place else self.root / image.path))
        writer.writerows((_UNSEEN, name, 0, "") for name in self.unseen)
        return text.getvalue().encode("utf-8", "surrogateescape")


class ListSet(FolderSet):
    """The images of one split of a list.

    A class may be of none where an image has any number, and in `val`, which need not measure all.
    """

    def __init__(self, of: ImageList, split: str, classes: Sequence[str] = ()) -> None:
        images = of.of(split)
        self.root = of.root
        self.note = of.ignored
        self.classes = list(classes) or of.classes
        counts = Counter(name for image in images for name in of.labels_of(image))
        place = of.file or of.data or of.root
        self.where = "" if of.several or split == "val" else f"{place} ({split})"
        if classes and not counts.keys() <= set(classes):
            raise DataError(wrong_classes(f"labels of {place}", sorted(counts), classes))
        if of.several and images and not counts:
            raise DataError(f"no image of {place} ({split}) has a label; give some that have")
        number_of = {name: number for number, name in enumerate(self.classes)}
        if of.several:
            self.label_sets = tuple(
                tuple(number_of[name] for name in of.labels_of(image)) for image in images
            )
            first = [labels[0] if labels else 0 for labels in self.label_sets]
        else:
            images.sort(key=lambda image: number_of[image.class_name])
            first = [number_of[image.class_name] for image in images]
        self._paths = Strings(image.path for image in images)
        self._labels = array("L", first)


class MemberSet(ListSet):
    """The images of one split of a list whose images are members of an archive, or rows."""

    def __init__(
        self, of: ImageList, split: str, members: ArchiveSet | TableSet, classes: Sequence[str] = ()
    ) -> None:
        super().__init__(replace(of, root=members.root), split, classes)
        self._members = members
        number_of = {members.path_in_root(index): index for index in range(len(members))}
        self._numbers = array("Q")
        images = {image.path: image for image in of.of(split)}
        for path in (self._paths[index] for index in range(len(self))):
            number, image = number_of.get(path, -1), images[path]
            if number < 0 or image[1:3] != (
                members.classes[members.label_of(number)],
                members.bytes_of(number),
            ):
                raise DataError(
                    f"{members.root / path} is not what it was when the run began; give the run "
                    f"the {of.data} that it began with"
                )
            self._numbers.append(number)

    def bytes_of(self, index: int) -> int:
        return self._members.bytes_of(self._numbers[index])

    def read(self, index: int) -> bytes:
        return self._members.read(self._numbers[index])


def is_list(data: str | Path) -> bool:
    """Whether a data set is a list of files."""
    place = Path(split_address(str(data))[0])
    return place.suffix.lower() in SUFFIXES and place.is_file()


def root_of(data: str | Path) -> Path:
    """The folder from which on files are named: the data, or the folder of a list."""
    place = Path(split_address(str(data))[0])
    return place.parent if place.suffix.lower() in SUFFIXES else Path(data)


def read_split(file: str | Path, root: str | Path | None = None) -> ImageList:
    """A list as `to_bytes` wrote it, with files from `root` on; from none, with whole paths."""
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            heading, *rows = csv.reader(stream)
            if heading not in _HEADINGS:
                raise ValueError(f"its first line is {','.join(heading)!r}")
            for number, row in enumerate(rows, 2):
                if len(row) != len(heading):
                    raise ValueError(f"row {number} has {len(row)} cells")
            data = rows[0][3] if heading == _OF_MEMBERS and rows else ""
            images = tuple(
                ListedImage(
                    split, name, int(num_bytes), place[-1] if data else path_from(root, *place)
                )
                for split, name, num_bytes, *place in rows
                if split != _UNSEEN
            )
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"{file} is no list of a run's images ({error}); its first line must be "
            f"{','.join(_COLUMNS)}, as in a run's {SPLIT_FILE}"
        ) from error
    return ImageList(
        root=Path(data or root or Path(file).absolute().anchor),
        file=str(file),
        data=data,
        several=heading == _OF_SEVERAL,
        unseen=tuple(row[1] for row in rows if row[0] == _UNSEEN),
        images=images,
    )


def check_there(images: ImageList) -> None:
    """Raises DataError where none of the files that a list names is there, with one it may mean."""
    paths, root = [image.path for image in images.images], images.root
    if images.data or not paths or any(os.path.exists(root / path) for path in paths):
        return
    check_utf8(paths[0], f"the name of a file in {images.file}", "save it as CSV UTF-8")
    near = islice(root.rglob("*"), LOOKED_AT)
    alike = (str(file) for file in near if file.suffix and file.stem == Path(paths[0]).stem)
    meant = next((path_from(root, file) for file in alike), "photos/1.jpg")
    raise DataError(
        f"none of the {len(paths):,} files that {images.file} names is there, from {paths[0]} on; "
        f"write each as it lies from {root} on, with its ending, such as {meant}"
    )


def is_split(file: str | Path) -> bool:
    """Whether a CSV file is a run's list, by its first line."""
    with open(file, "rb") as stream:
        heading = stream.readline(100).decode("utf-8-sig", "replace").strip().split(",")
    return heading in _HEADINGS


def listing_sha256(images: Iterable[ListedImage]) -> str:
    """What tells the images of a split from others: that of class folders with the same."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(b"%s %d\n" % (os.fsencode(image.path_in_split), image.num_bytes))
    return digest.hexdigest()


def path_from(root: str | Path | None, file: str) -> str:
    """A whole path, or where it lies under a root; always with "/"."""
    path = Path(file)
    return (path.relative_to(root) if root and path.is_relative_to(root) else path).as_posix()
