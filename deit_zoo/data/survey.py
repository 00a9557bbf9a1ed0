"""What lies in a data set before training: images counted by class, and every image decoded."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple
from unicodedata import normalize

from deit_zoo.data.archive_source import open_index
from deit_zoo.data.folder import (
    FlatSet,
    Ignored,
    class_folders,
    differences,
    empty_classes,
    ignored,
    is_hidden,
    is_image,
    listing_errors,
    lists_near,
    part_folder,
    path_parts,
    split_folder,
    split_named,
    stat_of,
    suffix_of,
    walk,
)
from deit_zoo.data.heap import HeapSet, find_heap
from deit_zoo.data.image_file import BITS, UnreadableError
from deit_zoo.data.image_list import ImageList, ListedImage, listing_sha256
from deit_zoo.data.image_set import ImageSet, kind_of, open_table, open_unchecked, read_list
from deit_zoo.data.images import MissingSplitError, class_counts
from deit_zoo.data.prefetch import ordered_map, prefetch
from deit_zoo.data.table import PartName, SplitName
from deit_zoo.errors import DataError, first_of, words_of

# Listing a folder is waiting for a disk: threads wait at the same time.
LISTERS = 16
# Images that are decoded before their bad ones are reported.
CHUNK = 64
CONTENT = "content_sha256"  # of a fingerprint, where a set is small
# Images whose bytes are read before a run starts; an epoch takes longer.
SMALL, SMALL_BYTES = 5_000, 1 << 30
# Images that cannot be read may be so many, or this share of all: more, and no run goes on.
FEW_UNREADABLE, UNREADABLE_SHARE = 3, 0.001
DARK = 16  # a high byte below which 16 bits look nearly black: such as 12 of a scanner
SPLITS: tuple[SplitName, ...] = ("train", "val")
# In which a data set that lacks some is looked for.
PARTS: tuple[PartName, ...] = ("val", "train", "all")


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """What lies in one split: the images of each class, and what tells it from another.

    `several` is the number of images, where one may have several labels or none. There, and in
    what a list or a share validates with, a class may have no image.
    """

    name: str
    classes: dict[str, int]
    others: int = 0
    bytes: int
    identity: dict[str, Any]
    ignored: str = ""
    several: int | None = None
    may_lack_classes: bool = False
    newest: int = 0  # of files in folders: when the last was changed, in nanoseconds

    @property
    def images(self) -> int:
        """All images."""
        return sum(self.classes.values()) if self.several is None else self.several

    def line(self) -> str:
        """The split in words."""
        fewest, most = min(self.classes.values()), max(self.classes.values())
        each = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
        classes = "1 class" if len(self.classes) == 1 else f"{len(self.classes):,} classes"
        line = f"{self.images:,} images in {classes} ({each} each)"
        return f"{line}; {self.ignored}" if self.ignored else line


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


def validate(
    data: str | Path,
    progress: Callable[[int], None] = lambda files: None,
    images: ImageList | None = None,
) -> Survey:
    """What lies in a data set, or is on a list of it, that can be trained on.

    `progress` gets the files listed so far. Raises DataError where train and val have other
    classes, or a class has no image.
    """
    survey = scan(data, progress) if images is None else _scan_list(str(data), images)
    if survey.problem:
        raise DataError(survey.problem)
    return survey


def scan(data: str | Path, progress: Callable[[int], None] = lambda files: None) -> Survey:
    """What lies in a data set, whatever it is worth. Raises DataError where it is none."""
    kind = kind_of(data)
    if kind == "list":
        images = read_list(data)
        if not images.of("train") or not images.of("val"):
            raise MissingSplitError(f"{data} does not say which images are for validation")
        return _scan_list(str(data), images)
    if kind in ("table", "archives"):
        scan_split = _scan_table if kind == "table" else _scan_archives
        total, adding = 0, Lock()

        def add(files: int) -> None:
            nonlocal total
            with adding:
                total += files
                progress(total)

        train, val = (scan_split(str(data), split, add) for split in SPLITS)
    elif heap := find_heap(data):
        train = _scan_folder(part_folder(heap.root, "train"), progress, 0)
        val = _scan_heap(HeapSet(heap), progress, train.identity["files"])
    else:
        train_folder, val_folder = (part_folder(Path(data), split) for split in ("train", "val"))
        train = _scan_folder(train_folder, progress, 0)
        val = _scan_folder(val_folder, progress, train.identity["files"])
    return Survey(data=str(data), train=train, val=val, problem=_problem(str(data), train, val))


def most_unreadable(images: int) -> int:
    """Of so many images, how many a run can do without."""
    return max(FEW_UNREADABLE, int(UNREADABLE_SHARE * images))


def inspect(
    data: str | Path, progress: Callable[[int], None] = lambda files: None
) -> tuple[dict[PartName, Split], str | None]:
    """What lies in a data set to look at: both splits, one alone, or images that are not parted.

    With the sentence that makes them useless to train or to measure on. Raises DataError where
    there is nothing.
    """
    try:
        survey = scan(data, progress)
        return {"train": survey.train, "val": survey.val}, survey.problem
    except MissingSplitError as error:
        missing = error
    for part in PARTS:
        try:
            split = _scan_part(data, part, progress)
        except MissingSplitError:
            continue
        if part != "all":
            return {part: split}, _problem_within(f"{data}/{split.name}", split)
        is_heap = kind_of(data) == "folder" and FlatSet.fits(Path(data))
        problem = _problem_within(str(data), split)
        return {part: split}, problem if problem or is_heap else _no_classes(str(data), split)
    raise missing


def _scan_part(data: str | Path, part: PartName, progress: Callable[[int], None]) -> Split:
    """One part of a data set, which may lack others. Raises MissingSplitError where it has none."""
    kind = kind_of(data)
    if kind == "archives":
        return _scan_archives(str(data), part, progress)
    if kind == "folder" and not FlatSet.fits(Path(data)):
        return _scan_folder(part_folder(Path(data), part), progress, 0)
    images = open_unchecked(data, part)
    return Split(
        name=part,
        classes=class_counts(images),
        several=None if images.label_sets is None else len(images),
        may_lack_classes=images.label_sets is not None,
        ignored=images.note,
        bytes=sum(map(images.bytes_of, range(len(images)))),
        identity={},
    )


def bad_images(
    *image_sets: ImageSet,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    high_bytes: list[int] | None = None,
) -> Iterator[tuple[str, str]]:
    """Decode every image, in threads; the names of those that cannot be read, each with a reason.

    They come in the order of the images. `progress` gets (images done so far, all), `high_bytes`
    the highest byte of each image of 16 bits.
    """
    total, done = sum(map(len, image_sets)), 0
    for images in image_sets:
        decode = partial(decode_error, images, high_bytes=[] if high_bytes is None else high_bytes)
        numbers = range(len(images))
        with prefetch(numbers, decode, batch_size=CHUNK, threads=workers) as batches:
            for errors in batches:
                chunk, numbers = numbers[: len(errors)], numbers[len(errors) :]
                for index, error in zip(chunk, errors, strict=True):
                    if error:
                        yield images.name_of(index), error
                done += len(errors)
                progress(done, total)


def decode_error(images: ImageSet, index: int, high_bytes: list[int]) -> str | None:
    """Why an image cannot be read, in a few words; None where it can."""
    try:
        image = images.open(index)
        if BITS in image.info:
            reds = image.histogram()[:256]  # as green and blue: it is grey
            high_bytes.append(max(level for level, number in enumerate(reds) if number))
    except UnreadableError as error:
        return error.reason
    except DataError as error:
        from PIL import Image, UnidentifiedImageError

        why = error.__cause__ or error
        if isinstance(why, UnidentifiedImageError):
            return "not an image" if images.bytes_of(index) else "zero bytes"
        if isinstance(why, Image.DecompressionBombError):
            return "decompression bomb"
        if isinstance(why, OSError) and why.strerror:
            return f"unreadable: {why.strerror.lower()}"
        reason = words_of(why)
        return "truncated" if "truncated" in reason.lower() else f"broken: {reason}"
    return None


def dark_images(high_bytes: Sequence[int]) -> str:
    """The sentence on images of 16 bits that use few of them, by their highest bytes; or empty."""
    if not (dark := [high for high in high_bytes if high < DARK]):
        return ""
    return (
        f"images of 16 bits that use at most {256 * max(dark) + 255:,} of 65,535, and so look "
        f"nearly black: {len(dark):,}; scale them"
    )


def copies(*image_sets: ImageSet) -> str:
    """The sentence on images of the last of small sets that are others of the first; or empty."""
    numbered = [(images, index) for images in image_sets for index in range(len(images))]
    if len(numbered) > SMALL:
        return ""
    sizes = Counter(images.bytes_of(index) for images, index in numbered)
    first: dict[bytes, str] = {}
    again: list[str] = []
    for images, index in numbered:
        with suppress(DataError):  # one that cannot be read is told as such
            if sizes[images.bytes_of(index)] > 1 and (content := images.read(index)):
                name, digest = images.name_of(index), hashlib.sha256(content).digest()
                if images is image_sets[-1] and digest in first:
                    again.append(f"{name} is {first[digest]}")
                elif images is image_sets[0]:
                    first[digest] = name
    if not again:
        return ""
    return (
        f"copies of other images, byte for byte: {len(again):,} (such as {again[0]}); "
        "what is measured on an image that was learned is too good: remove one of each"
    )


def with_content(survey: Survey, open_split: Callable[[SplitName], ImageSet]) -> dict[str, Any]:
    """A fingerprint that also tells images from others of the same names and sizes.

    By their bytes, where a set is small and all of it can be read.
    """
    small = survey.train.images + survey.val.images <= SMALL
    small &= survey.train.bytes + survey.val.bytes <= SMALL_BYTES
    fingerprint = survey.fingerprint()
    for name in SPLITS if small else ():
        if (content := _content_sha256(open_split(name))) is not None:
            fingerprint[name] = fingerprint[name] | {CONTENT: content}
    return fingerprint


def _content_sha256(images: ImageSet) -> str | None:
    """The digest of all images' files, in their order; None where one cannot be read."""

    def digest(index: int) -> bytes:
        return hashlib.sha256(images.read(index)).digest()

    digests = ordered_map(range(len(images)), digest, threads=LISTERS, ahead=CHUNK)
    with suppress(DataError):
        return hashlib.sha256(b"".join(digests)).hexdigest()
    return None


def _problem(data: str, train: Split, val: Split) -> str | None:
    words = ("in train/ only", f"in {val.name}/ only")
    if other := differences(train.classes, val.classes, words):
        return f"the classes of {data} differ: {other}; give train and val the same classes"
    for split in (train, val):
        if problem := _problem_within(f"{data}/{split.name}", split):
            return problem
    return _no_classes(data, train)


def _no_classes(data: str, split: Split) -> str | None:
    """The sentence about folders that are no classes: called as splits, or one around all."""
    near = lists_near(Path(data))
    as_splits = {name: told for name in split.classes if (told := split_named(name))}
    others = [letters for _, letters in {*as_splits.values()}]  # train_images and test_images
    if len({*others}) < len(others) and 2 * len(as_splits) > len(split.classes):
        return (
            f"the classes of {data} are named as splits ({', '.join(as_splits)}); give train/ and "
            f"val/, each with one folder of images per class{near}"
        )
    if len(split.classes) > 1 or split.several is not None:
        return None
    [name] = split.classes
    inner = Path(data, name)
    folders = [path.name for path in inner.iterdir() if path.is_dir()] if inner.is_dir() else ()
    if folders:
        return (
            f"{data} holds one folder, {name}, so one class; its own folders may be classes "
            f"(such as {min(folders)}): give {inner}"
        )
    return f"{data} has one class, {name!r}, and a model tells classes apart; give 2 or more{near}"


def _problem_within(place: str, split: Split) -> str | None:
    empty = _without_images(split)
    if len(empty) == len(split.classes):
        return f"{place} holds no image; give image files such as x.jpg, x.png, x.tif or x.heic"
    if not empty or split.may_lack_classes:
        return None
    return empty_classes(place, empty, len(split.classes))


def _without_images(split: Split) -> list[str]:
    return [name for name, images in split.classes.items() if not images]


def class_remarks(*splits: Split) -> list[str]:
    """What is worth knowing of the classes of splits: which look alike, and which have no image."""
    classes = list(splits[0].classes)
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(" ".join(normalize("NFKC", name).casefold().split()), []).append(name)
    sentences = [f"{len(classes):,} classes: {first_of(classes)}"] * (len(classes) > 1)
    sentences += [
        f"classes that differ in case, blanks or the form of letters alone: "
        f"{', '.join(map(ascii, names))}"
        for names in alike.values()
        if len(names) > 1
    ]
    for split in splits:
        if empty := _without_images(split) if split.may_lack_classes else []:
            then = {"train": ", which are not learned", "val": ", which are not measured"}
            sentences.append(
                f"no image of {split.name} shows {len(empty):,} of the {len(split.classes):,} "
                f"classes (such as {empty[0]!r}){then.get(split.name, '')}"
            )
    return sentences


def _scan_list(data: str, images: ImageList) -> Survey:
    has_val = kind_of(data) == "folder" and split_folder(Path(data), "val") is not None
    train, val = (_scan_listed(images, split, has_val) for split in ("train", "val"))
    return Survey(data=data, train=train, val=val, problem=_problem(data, train, val))


def _scan_listed(images: ImageList, split: str, has_val: bool) -> Split:
    """What class folders with the same images would be told from others by."""
    files = images.of(split)
    counts = Counter(name for image in files for name in images.labels_of(image))
    return _of_files(
        split,
        {name: counts[name] for name in images.classes},
        files,
        several=len(files) if images.several else None,
        may_lack_classes=images.several or (split == "val" and not has_val),
        ignored=images.ignored if split == "train" else "",
    )


def _of_files(
    name: str, classes: dict[str, int], files: Sequence[ListedImage], **remarks: Any
) -> Split:
    num_bytes = sum(image.num_bytes for image in files)
    identity = _identity(len(files), num_bytes, listing_sha256(files))
    return Split(name=name, classes=classes, bytes=num_bytes, identity=identity, **remarks)


def _scan_table(data: str, split: SplitName, progress: Callable[[int], None]) -> Split:
    images = open_table(data, split, progress=progress)
    return Split(
        name=images.split,
        classes=class_counts(images),
        bytes=images.bytes,
        identity=images.identity(),
    )


def _scan_archives(data: str, split: PartName, progress: Callable[[int], None]) -> Split:
    """What class folders with the same images would be told from others by."""
    index = open_index(data, split, progress)
    return Split(
        name=split,
        classes=dict(zip(index.classes, index.counts, strict=True)),
        others=index.others,
        ignored=ignored(index.others, index.hidden),
        bytes=index.num_bytes,
        identity=_identity(sum(index.counts), index.num_bytes, index.listing_sha256),
    )


def _identity(files: int, num_bytes: int, listing: str) -> dict[str, Any]:
    return {"files": files, "bytes": num_bytes, "listing_sha256": listing}


def _scan_heap(images: HeapSet, progress: Callable[[int], None], before: int) -> Split:
    """What class folders with the same images would be told from others by."""
    files = []
    for index in range(len(images)):
        class_name, path = images.classes[images.label_of(index)], images.path_of(index)
        files.append(ListedImage("val", class_name, images.bytes_of(index), path.name))
    progress(before + len(images))
    return _of_files("val", class_counts(images), files)


def _scan_folder(root: Path, progress: Callable[[int], None], before: int) -> Split:
    """One walk over a split, in threads; files and digest are those of a sorted listing."""
    left = Ignored()
    folders = set(class_folders(root, left))
    with listing_errors():
        entries = sorted(entry.name for entry in os.scandir(root) if not is_hidden(entry.name))
    digest = hashlib.sha256()
    classes: dict[str, int] = {}
    files = num_bytes = newest = 0
    with ThreadPoolExecutor(LISTERS) as pool:
        listings = pool.map(lambda name: _list_entry(root, name, name in folders), entries)
        for name, listing in zip(entries, listings, strict=True):
            digest.update(listing.lines)
            files, num_bytes = files + listing.files, num_bytes + listing.bytes
            newest = max(newest, listing.newest)
            left.add(listing.left)
            if name in folders:
                classes[name] = listing.images
            progress(before + files)
    return Split(
        name=root.absolute().name,
        newest=newest,
        classes=classes,
        others=files - sum(classes.values()),
        ignored=left.sentence(),
        bytes=num_bytes,
        identity=_identity(files, num_bytes, digest.hexdigest()),
    )


class _Listing(NamedTuple):
    """The files of a class folder, or the one beside the class folders; a line for each."""

    lines: bytes
    files: int
    images: int
    bytes: int
    newest: int
    left: Ignored


def _list_entry(root: Path, name: str, is_class: bool) -> _Listing:
    left = Ignored()
    with listing_errors():
        if is_class:
            entries = walk(str(root / name), f"{name}/", left)
            states = {path: stat_of(entry) for path, entry in entries}
        else:
            states = {} if (root / name).is_dir() else {name: stat_of(root / name)}
    sizes = {path: state.st_size if state else 0 for path, state in states.items()}
    newest = max((state.st_mtime_ns for state in states.values() if state), default=0)
    paths = sorted(sizes, key=path_parts)
    lines = b"".join(b"%s %d\n" % (os.fsencode(path), sizes[path]) for path in paths)
    images = sum(map(is_image, paths)) if is_class else 0
    if is_class:  # class_folders counts those beside the classes
        left.others.update(suffix_of(path) for path in paths if not is_image(path))
    return _Listing(lines, len(paths), images, sum(sizes.values()), newest, left)
