"""Any data set as a folder tree: train/ and val/, with one folder of image files per class."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from io import BytesIO
from pathlib import Path, PurePath

from deit_zoo.data.archive_index import build_index, stamp
from deit_zoo.data.archive_layout import list_imagenet_train, list_imagenet_val
from deit_zoo.data.archive_set import ArchiveSet
from deit_zoo.data.decode import image_errors, open_header, open_image
from deit_zoo.data.folder import is_image
from deit_zoo.data.image_set import ImageSet
from deit_zoo.data.imagenet import LABEL_FILES, label_file_in
from deit_zoo.data.prefetch import prefetch
from deit_zoo.data.transforms import resize
from deit_zoo.errors import DataError
from deit_zoo.files import expand_user
from deit_zoo.labels import folders, in_words

CHUNK = 64
# Images of each split whose bytes stand for those of all.
SAMPLES = 256
# Of the bytes that images take: the files' last blocks and the folders come on top.
RESERVE = 1.05
QUALITY = 90


def imagenet_splits(
    train: Path,
    val: Path,
    labels: Path | None = None,
    progress: Callable[[int], None] = lambda files: None,
) -> dict[str, ImageSet]:
    """ImageNet's two archives; `labels` is the development kit or Kaggle's table.

    Without it, one that lies beside `val` is taken. `progress` gets how many files were listed
    since its last call.
    """
    labels = labels or label_file_in(val.parent)
    if labels is None:
        raise DataError(
            f"nothing beside {val} says what its images show; type --devkit "
            f"{LABEL_FILES[0]}, or Kaggle's {LABEL_FILES[-1]}"
        )
    rows_of = {
        "train": (train, list_imagenet_train(train, progress)),
        "val": (val, list_imagenet_val(val, labels, progress)),
    }
    return {
        split: ArchiveSet(str(archive), split, build_index([stamp(archive)], rows))
        for split, (archive, rows) in rows_of.items()
    }


def write_tree(
    splits: Mapping[str, ImageSet],
    output: Path,
    *,
    size: int | None = None,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write every image of the splits under `output`, whole or not at all.

    With `size`, images whose short side is longer are encoded again at that size. Files lie in a
    folder beside `output` until all are written; what lies there is not written again. `progress`
    gets (images done so far, all). Raises DataError where the output is taken or the disk too full.
    """
    if any(images.label_sets is not None for images in splits.values()):
        raise DataError(
            "a tree of class folders has one class for each image, and these may have several "
            "labels; leave the images where they lie, and give the CSV as --data"
        )
    output = expand_user(output).resolve()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output} exists and is not an empty folder; give a new --output")
    if output.is_mount():
        raise DataError(f"{output} is a disk of its own; give a new folder in it as --output")
    unfinished = output.with_name(f".{output.name}.{size or 'whole'}.unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    _check_space(splits, unfinished, size)
    total, done = sum(map(len, splits.values())), 0
    for split, images in splits.items():
        folders = [unfinished / split / name for name in class_folder_names(images.classes)]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        write = partial(_write, images, folders, _repeated_names(images), size)
        with prefetch(range(len(images)), write, batch_size=CHUNK, threads=workers) as batches:
            for batch in batches:
                done += len(batch)
                progress(done, total)
        written = sum(len(os.listdir(folder)) for folder in folders)
        if written != len(images):
            raise DataError(
                f"{unfinished / split} holds {written:,} files for {len(images):,} images: some "
                f"are of other data; remove {unfinished} and type the command again"
            )
    if hasattr(os, "sync"):
        os.sync()
    unfinished.replace(output)


def class_folder_names(classes: Sequence[str]) -> list[str]:
    """A folder's name for each class; for ImageNet's, which the Hub names in words, the synset."""
    if in_words(classes):
        return list(folders("imagenet1k"))
    names = [name.replace("/", "_").replace("\\", "_") for name in classes]
    wrong = [name for name in names if name.startswith(".") or not name or "\0" in name]
    if wrong or len(set(names)) < len(names):
        example = wrong[0] if wrong else next(name for name in names if names.count(name) > 1)
        raise DataError(
            f"class {example!r} cannot be the name of a folder of its own; give classes whose "
            "names differ in more than slashes and begin with no dot"
        )
    return names


def shrink(content: bytes, name: str, size: int) -> bytes:
    """An image's file with its short side at most `size`; the same bytes where it already is.

    It keeps its EXIF, and is encoded as it was: JPEG (quality 90), PNG or WebP. One with alpha or
    more than 8 bits keeps its bytes too: either way of reading it must stay possible.
    """
    with image_errors(name), open_header(content, name) as header:
        width, height, kind = *header.size, header.format
        exif = header.info.get("exif", b"")
        is_plain = not header.has_transparency_data and header.mode[0] not in "IF"
    if min(width, height) <= size or not is_plain:
        return content
    scale = size / min(width, height)
    image = open_image(content, name, reading="upstream")
    smaller = resize(image, (round(width * scale), round(height * scale)))
    file = BytesIO()
    kind = "JPEG" if kind == "MPO" else kind
    smaller.save(file, kind if kind in ("JPEG", "WEBP") else "PNG", quality=QUALITY, exif=exif)
    return file.getvalue()


def _check_space(splits: Mapping[str, ImageSet], folder: Path, size: int | None) -> None:
    expected = sum(_expected_bytes(images, size) for images in splits.values()) * RESERVE
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    free = shutil.disk_usage(folder).free
    if expected > there + free:
        raise DataError(
            f"the images take about {(expected - there) / 1e9:,.1f} GB more, and the disk of "
            f"{folder.parent} has {free / 1e9:,.1f} GB free; make room, or give an --output on "
            "another disk"
        )


def _expected_bytes(images: ImageSet, size: int | None) -> float:
    """What the images will take, from some of them evenly spread."""
    samples, total = range(0, len(images), max(1, len(images) // SAMPLES)), 0
    for index in samples:
        with image_errors(images.name_of(index)):
            if size is None:
                total += images.bytes_of(index)
            else:
                total += len(shrink(images.read(index), images.name_of(index), size))
    return total / max(1, len(samples)) * len(images)


def _repeated_names(images: ImageSet) -> set[int]:
    """The images before which another of their class has their name, as in two shards."""
    first: dict[tuple[int, str], int] = {}
    for index in range(len(images)):
        first.setdefault((images.label_of(index), _own_name(images, index)), index)
    return set(range(len(images))).difference(first.values())


def _own_name(images: ImageSet, index: int) -> str:
    """The name of an image's file, without folders; nothing where it has none, as in a table."""
    name = PurePath(images.name_of(index)).name
    return name if is_image(name) else ""


def _write(
    images: ImageSet, folders: Sequence[Path], repeated: Set[int], size: int | None, index: int
) -> None:
    folder, name = folders[images.label_of(index)], _own_name(images, index)
    if index in repeated:
        name = f"{index:08}_{name}" if name else ""
    if name and _is_whole(folder / name, images, index, size):
        return
    content = images.read(index)
    if size:
        content = shrink(content, images.name_of(index), size)
    file = folder / (name or f"{index:08}{_suffix(content, images.name_of(index))}")
    if file.exists() and file.stat().st_size == len(content):
        return
    temporary = folder / f".{file.name}.part"
    temporary.write_bytes(content)
    temporary.replace(file)


def _is_whole(file: Path, images: ImageSet, index: int, size: int | None) -> bool:
    """Whether an image's file was written before."""
    try:
        written = file.stat().st_size
    except FileNotFoundError:
        return False
    return written == images.bytes_of(index) if size is None else written > 0


def _suffix(content: bytes, name: str) -> str:
    """What the name of an image's file ends in; the file is read by what it holds."""
    with image_errors(name), open_header(content, name) as image:
        suffix = f".{image.format}".lower()
    return suffix if is_image(f"1{suffix}") else ".jpeg"
