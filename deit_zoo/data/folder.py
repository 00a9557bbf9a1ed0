"""A folder with one folder of images per class: its images, and what is listed in it."""

from __future__ import annotations

import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from unicodedata import normalize

from deit_zoo.data.formats import IMAGE_SUFFIXES
from deit_zoo.data.image_file import missing_image, read_file
from deit_zoo.data.images import ImageSet, MissingSplitError, Strings
from deit_zoo.data.remote import files_under, is_address, is_remote, local_path
from deit_zoo.errors import DataError, reason_of

# What an operating system or a disk leaves; so does a name that begins with a dot.
SYSTEM_NAMES = frozenset(
    (
        *("$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "__MACOSX", "desktop.ini"),
        *("#recycle", "#snapshot", "@Recycle", "@eaDir", "lost+found"),
    )
)
# The folders of a split, the first that there is, in letters of any case.
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "test", "testing"),
}
# "test" validates only where nothing else does. In letters of any case.
SPLIT_OF = {
    name: "test" if name.startswith("test") else split
    for split, names in SPLIT_FOLDERS.items()
    for name in names
}
# Lists of what a contest wants predicted, in which no label is true.
_TO_PREDICT = re.compile(r".*submission.*|test\.[ct]sv", re.IGNORECASE)
_SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(SPLIT_OF)})(?![a-z])", re.IGNORECASE)


@dataclass(slots=True)
class Ignored:
    """What lies in a folder beside its images: other files by their suffixes, and what is hidden.

    `hidden` counts files and folders; what is in such a folder is not looked at.
    """

    others: Counter[str] = field(default_factory=Counter)
    hidden: int = 0

    def add(self, other: Ignored) -> None:
        """Count what lies in another folder too."""
        self.others += other.others
        self.hidden += other.hidden

    def sentence(self) -> str:
        """What is ignored, in words; empty where nothing is."""
        return ignored(self.others.total(), self.hidden, sorted(self.others))


class FolderSet(ImageSet):
    """Images in one folder per class, classes in alphabetical order, as torchvision reads them."""

    def __init__(self, root: Path, classes: Sequence[str] = ()) -> None:
        self.root, self.where = root, str(root)
        ignored_files = Ignored()
        folders = class_folders(root, ignored_files)
        self.classes = list(classes) or folders
        if sorted(self.classes) != folders:
            raise DataError(wrong_classes(f"class folders of {root}", folders, self.classes))
        of_class = [images_under(root, name, ignored_files) for name in self.classes]
        self._paths = Strings(path for paths in of_class for path in paths)
        self._labels = array("L")
        for label, paths in enumerate(of_class):
            self._labels.extend(array("L", [label]) * len(paths))
        sentence = ignored_files.sentence()
        self.note = sentence and f"{sentence} in {root}"

    def path_of(self, index: int) -> Path:
        """The file of an image."""
        return self.root / self._paths[index]

    def name_of(self, index: int) -> str:
        """The path of an image."""
        # Not by pathlib, which takes as long as the reading.
        return os.path.join(self._root, self._paths[index])

    @cached_property
    def _root(self) -> str:
        return "" if self.root == Path() else str(self.root)

    def bytes_of(self, index: int) -> int:
        """The length of an image's file; 0 of a link to nothing."""
        state = stat_of(self.path_of(index))
        return state.st_size if state else 0

    def read(self, index: int) -> bytes:
        from deit_zoo.data.decode import image_errors

        path = self.name_of(index)
        with image_errors(path):
            return read_file(path)


class FlatSet(FolderSet):
    """Images in a folder without class folders: to look at, for nobody says what is right."""

    def __init__(self, root: Path) -> None:
        ignored_files = Ignored()
        paths = images_under(root, ".", ignored_files)
        self.root, self.classes, self.note = root, [root.resolve().name], ignored_files.sentence()
        self._paths = Strings(paths)
        self._labels = array("L", [0]) * len(paths)

    @staticmethod
    def fits(root: Path) -> bool:
        """Whether a folder holds images, and no folder but hidden ones."""
        with listing_errors(), os.scandir(root) as entries:
            seen = [entry for entry in entries if not is_hidden(entry.name)]
        return any(is_image(entry.name) for entry in seen) and not any(e.is_dir() for e in seen)


def class_folders(root: Path, ignored_files: Ignored | None = None) -> list[str]:
    """The names of the folders in `root`, sorted. Raises DataError where there is none.

    What else lies there is added to `ignored_files`.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give one that holds a folder of images per class")
    names, ignored_files = [], Ignored() if ignored_files is None else ignored_files
    with listing_errors(), os.scandir(root) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                ignored_files.hidden += 1
            elif entry.is_dir():
                names.append(entry.name)
            else:
                ignored_files.others[suffix_of(entry.name)] += 1
    if not names:
        others = ignored_files.others
        images = sum(number for suffix, number in others.items() if suffix in IMAGE_SUFFIXES)
        what = "holds no folder" if others else "is empty"
        raise DataError(
            f"{root} {what}{f' (images in it: {images:,})' if images else ''}; it must hold one "
            f"folder of images per class, as in {root / 'cat' / '1.jpg'}"
            f"{lists_near(root) if images else ''}"
        )
    for name in names:
        check_utf8(name, f"the name of a class folder of {root}", "rename it")
    return sorted(names)


def lists_near(root: Path) -> str:
    """What to type where images have no class folders and a list lies in or beside their folder."""
    places = (root, root.parent) if root.is_dir() else ()
    tables = (sorted(place.glob("[!.]*.[ct]sv")) for place in places)
    lists = ([file for file in files if not _TO_PREDICT.fullmatch(file.name)] for files in tables)
    names = " or ".join(map(str, next(filter(None, lists), [])[:3]))
    return f"; or give the list of files and labels: {names}" if names else ""


def check_utf8(name: str, what: str, advice: str) -> None:
    """Raises DataError for the name of a class that is not UTF-8, as weights keep it."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{what} is not UTF-8 ({name!a}); {advice}") from error
    if "\r" in name:  # which ends a row where older Pythons read a CSV
        raise DataError(f"{what} holds a line's end ({name!a}); rename it")


def split_folder(root: Path, split: str) -> Path | None:
    """The folder of a split in a data set's, or None.

    `test/` validates where nothing else does, beside `train/` or alone: else it is a class. So is
    one with images in it, as other folders beside it have. Beside `train/` such a `test/` is none:
    Kaggle's holds what is to be predicted.
    """
    if not root.is_dir():
        return None
    with listing_errors(), os.scandir(root) as entries:
        names = [e.name for e in entries if not is_hidden(e.name) and e.is_dir()]
    folders = {name.lower(): root / name for name in sorted(names)}
    others = [folder for name, folder in folders.items() if name not in SPLIT_OF]
    for name in SPLIT_FOLDERS[split]:
        folder = folders.get(name)
        if folder is None or (
            _begins_with_images(folder) and any(map(_begins_with_images, others))
        ):
            continue
        if not name.startswith("test") or len(folders) == 1:
            return folder
        if split_folder(root, "train") is not None and not FlatSet.fits(folder):
            return folder
    return None


def split_named(name: str) -> tuple[str, str] | None:
    """The split that a word in a name tells (train, val or test), and the name's other letters."""
    word, others = _SPLIT_WORD.search(name), _SPLIT_WORD.sub("", name).lower()
    return word and (SPLIT_OF[word[1].lower()], "".join(filter(str.isalpha, others)))


def _begins_with_images(folder: Path) -> bool:
    """Whether an image lies in a folder itself, before any folder."""
    with listing_errors(), os.scandir(folder) as entries:
        for entry in (entry for entry in entries if not is_hidden(entry.name)):
            if entry.is_dir() or is_image(entry.name):
                return not entry.is_dir()
    return False


def part_folder(root: Path, part: str) -> Path:
    """The folder of class folders that is a split; "all" is one of a set that is not parted."""
    of_split = {split: split_folder(root, split) for split in SPLIT_FOLDERS}
    if part == "all" and not any(of_split.values()):
        return root
    folder = of_split.get(part)
    if folder is None:
        missing = "val" if part == "all" else part
        raise MissingSplitError(
            f"{root} has no folder {missing}/; it must hold train/ and val/, each with one folder "
            "of images per class"
        )
    return folder


def is_folder(image: object) -> bool:
    """Whether images are meant by their folder, or by an address that is no image's."""
    if is_address(image):
        return not is_image(str(image))
    if isinstance(image, str) and not image:  # which is no name of the working folder
        return False
    image = local_path(image)
    return isinstance(image, str | os.PathLike) and os.path.isdir(image)


def images_of(image: Any, say: Callable[[str], None] = lambda sentence: None) -> Iterator[Any]:
    """An image itself; in place of a folder, or of an address that fsspec knows, all images in it,
    sorted by their paths, or the DataError that there are none, as of a path that does not exist.
    `say` is told what else lies there.
    """
    ignored_files, image = Ignored(), local_path(image)
    if is_address(image):
        names = [url for url, path in files_under(image) if not _is_ignored(path, ignored_files)]
        yield from names
    elif is_folder(image):
        names = images_under(Path(image), ".", ignored_files)
        yield from (Path(image) / name for name in names)
    else:
        yield missing_image(image) if _is_missing(image) else image
        return
    if sentence := ignored_files.sentence():
        say(f"{sentence} in {image}")
    if not names:
        yield DataError(f"{image} holds no image; give a folder of JPEG, PNG, ... files")


def _is_missing(image: Any) -> bool:
    """Whether a path names nothing. What else may be wrong with it, reading it says."""
    if not isinstance(image, str | os.PathLike) or image == "" or is_remote(str(image)):
        return False
    with suppress(OSError, ValueError):
        return stat_of(Path(image)) is None
    return False


def _is_ignored(path: str, ignored_files: Ignored) -> bool:
    """Whether a file under an address is no image, which is counted."""
    if has_hidden_part(path):
        ignored_files.hidden += 1
    elif is_image(path):
        return False
    else:
        ignored_files.others[suffix_of(path)] += 1
    return True


def stat_of(file: Path | os.DirEntry[str]) -> os.stat_result | None:
    """Size and time of a file; None where there is none, as of a link to nothing."""
    try:
        return file.stat()
    except FileNotFoundError:
        return None


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_hidden(name: str) -> bool:
    """Whether a file or a folder is no data by its name: hidden, or a system's own."""
    return name[:1] == "." or name in SYSTEM_NAMES


def has_hidden_part(path: str) -> bool:
    """Whether a file, or a folder that it lies in, is none by its name."""
    return any(map(is_hidden, path.split("/")))


def ignored(others: int, hidden: int, suffixes: Sequence[str] = ()) -> str:
    """So many other files, and hidden files and folders, in words; empty where nothing is."""
    kinds = f" ({', '.join(suffixes[:3])}{' ...' if len(suffixes) > 3 else ''})" if suffixes else ""
    groups = []
    if others:
        groups.append(f"{others:,} other file{'' if others == 1 else 's'}{kinds}")
    if hidden:
        what = "hidden file or folder" if hidden == 1 else "hidden files or folders"
        groups.append(f"{hidden:,} {what}")
    verb = "is" if others + hidden == 1 else "are"
    return f"{' and '.join(groups)} {verb} ignored" if groups else ""


def walk(root: str, prefix: str, ignored_files: Ignored) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every file under a folder, with its path; links to folders are followed.

    What is hidden is left out and counted, and a folder that goes meanwhile holds nothing.
    Raises DataError for a link to a folder that it lies in.
    """
    # With each folder, those from which links led there.
    folders: list[tuple[str, str, tuple[str, ...]]] = [(root, prefix, ())]
    while folders:
        folder, path, inside = folders.pop()
        try:
            with os.scandir(folder) as listing:
                entries = list(listing)
        except (FileNotFoundError, NotADirectoryError):
            if folder == root:
                raise
            continue
        for entry in entries:
            if is_hidden(entry.name):
                ignored_files.hidden += 1
            elif entry.is_dir():
                chain = inside
                if entry.is_symlink():
                    chain = (*inside, os.path.realpath(folder))
                    _check_circle(entry.path, chain)
                folders.append((entry.path, f"{path}{entry.name}/", chain))
            else:
                yield f"{path}{entry.name}", entry


def images_under(root: Path, name: str, ignored_files: Ignored) -> list[str]:
    """The images of a class by their path under `root`, in the order of pathlib."""
    paths = []
    with listing_errors():
        for path, _ in walk(str(root / name), "" if name == "." else f"{name}/", ignored_files):
            if is_image(path):
                paths.append(path)
            else:
                ignored_files.others[suffix_of(path)] += 1
    return sorted(paths, key=path_parts)


def path_parts(path: str) -> list[str]:
    """The key that sorts paths as pathlib does."""
    return path.split("/")


@contextmanager
def listing_errors() -> Iterator[None]:
    """Within it, a folder that cannot be listed is a DataError that names it."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename} cannot be listed ({reason_of(error)}); give a folder that you may "
            "read"
        ) from error


def differences(names: Iterable[str], others: Iterable[str], words: tuple[str, str]) -> str:
    """What one collection has beyond the other, both ways, in words."""
    groups = (sorted(set(names) - set(others)), sorted(set(others) - set(names)))
    composed, other = ({normalize("NFC", name) for name in group} for group in groups)
    show = repr if composed.isdisjoint(other) else ascii  # letters that look the same are not
    return " and ".join(
        f"{len(group)} {word} (such as {show(group[0])})"
        for group, word in zip(groups, words, strict=True)
        if group
    )


def empty_classes(root: object, empty: Sequence[str], num_classes: int) -> str:
    """The sentence about classes without images."""
    has = "has" if len(empty) == 1 else "have"
    return (
        f"{len(empty)} of the {num_classes} classes of {root} {has} no image (such as "
        f"{empty[0]!r}); give images of every class"
    )


def wrong_classes(what: str, own: Sequence[str], classes: Sequence[str]) -> str:
    """The sentence about class folders, or labels, that are not a model's classes."""
    words = ("that are no class of the model", "missing")
    sentence = (
        f"the {what} are not the model's {len(classes)} classes: "
        f"{differences(own, classes, words)}; give images of each class, from {classes[0]!r} to "
        f"{classes[-1]!r}"
    )
    is_unnamed = list(classes) == [str(number) for number in range(len(classes))]
    if is_unnamed and len(own) == len(classes) and set(own).isdisjoint(classes):
        names = ", ".join([*map(repr, own[:3]), *["..."] * (len(own) > 3)])
        sentence += (
            f", or type model.labels = [{names}] if these are what the model learned, in this order"
        )
    return sentence


def suffix_of(name: str) -> str:
    """What a file's name ends in, in small letters; of one without a dot the whole name."""
    name = name.rpartition("/")[2]
    return os.path.splitext(name)[1].lower() or name


def _check_circle(link: str, chain: Sequence[str]) -> None:
    target = os.path.realpath(link)
    if any(place == target or place.startswith(os.path.join(target, "")) for place in chain):
        raise DataError(f"{link} is a link to {target}, in which it lies; remove it")
