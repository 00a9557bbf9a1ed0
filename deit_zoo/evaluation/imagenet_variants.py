"""ImageNet's other validation sets: which folder or file says what is right, and which classes
compete.

  ReaL    arXiv:2006.07159  the same 50,000 images; several classes are right, or none is
  V2      arXiv:1902.10811  new images; the folders are class numbers
  A       arXiv:1907.07174  200 classes that a ResNet-50 got wrong
  R       arXiv:2006.16241  200 classes, painted, sewn or drawn
  Sketch  arXiv:1905.13549  all classes, drawn
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import Image

from deit_zoo.data.folder import FolderSet, class_folders
from deit_zoo.data.image_set import ImageSet, check_every_class, kind_of
from deit_zoo.errors import DataError, FormatError
from deit_zoo.evaluation.accuracy import (
    EvalDataset,
    folder_classes,
    validation_folder,
    validation_set,
)
from deit_zoo.files import parse_json
from deit_zoo.labels import folders as published_folders
from deit_zoo.manifest import Reading

TITLES = {
    "real": "ImageNet-ReaL",
    "v2": "ImageNet-V2",
    "a": "ImageNet-A",
    "r": "ImageNet-R",
    "sketch": "ImageNet-Sketch",
}
WITH_FILE = ("real", "a", "r")
REAL_IMAGES = 50_000
SUBSET_CLASSES = 200  # of A and of R
REAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


def open_eval_set(
    data: str | Path,
    folders: Sequence[str],
    transform: Callable[[Image.Image], Any],
    kind: str | None = None,
    file: Path | None = None,
    *,
    reading: Reading | None = None,
    by_class: bool = False,
) -> EvalDataset:
    """The images of a data set for a model with these class folders, each transformed.

    ImageNet's sets are read as upstream reads them, its own classes' as the model does.
    `by_class` is of a model that judges each class by itself.

    Raises DataError where the folders, the files' names or the label file are not what the set
    needs.
    """
    check_eval_set(data, kind, file)
    if kind is None:
        images, subset = _own_classes(data, folders, reading, by_class)
        return EvalDataset(images, transform, class_subset=subset, by_class=by_class)
    if tuple(folders) != published_folders("imagenet1k"):
        raise DataError(
            f"the labels {kind!r} are of ImageNet-1k's 1,000 classes, and this model has "
            f"{len(folders):,} of its own; give a model of ImageNet-1k"
        )
    if kind == "real":
        assert file is not None, "it was asked for before"
        images, multi_labels = _real(data, folders, file)
        return EvalDataset(images, transform, multi_labels=multi_labels)
    root = validation_folder(Path(data))
    subset = _subset(root, folders, kind, file) if kind in ("a", "r") else None
    names = folders if subset is None else [folders[number] for number in subset]
    if kind == "v2":
        # By number: sorted as text, "10" comes before "2".
        names = [str(number) for number in range(len(folders))]
    images = FolderSet(root, names)
    check_every_class(images)
    images.reading = "upstream"
    return EvalDataset(images, transform, class_subset=subset)


def check_eval_set(data: str | Path, kind: str | None, file: str | PathLike[str] | None) -> None:
    """What can be said before there is a model: DataError where there is no such data set, no such
    label file, or none of them goes with these labels."""
    if kind is not None and kind not in TITLES:
        raise DataError(f"labels is {kind!r}; give one of {', '.join(TITLES)}")
    if file is not None and kind not in WITH_FILE:
        raise DataError(
            f"a label file ({file}) is for the labels {', '.join(WITH_FILE)}; leave it out, or "
            "give one of these"
        )
    if kind == "real" and file is None:
        raise DataError(
            "the labels 'real' are in a file of their own; give its real.json as the label file"
        )
    if file is not None and not Path(file).exists():
        raise DataError(f"the label file {file} cannot be read (no such file or directory)")
    data_kind = kind_of(data)
    if kind is not None and data_kind != "folder" and (kind != "real" or data_kind == "table"):
        raise DataError(f"the labels {kind!r} go by folders; give a folder, not {data}")
    if data_kind == "folder":
        validation_folder(Path(data))


def _own_classes(
    data: str | Path, folders: Sequence[str], reading: Reading | None, by_class: bool
) -> tuple[ImageSet, tuple[int, ...] | None]:
    """Images of the model's own classes, or of some, and which compete: all of one's own, of
    published classes those that have images."""
    present = set(folder_classes(data, folders))
    some = [folder for folder in folders if folder in present]
    subset = None
    is_published = tuple(folders) in map(published_folders, ("imagenet1k", "digits"))
    if is_published < len(some) == len(present) < len(folders):
        images = validation_set(data, some, reading=reading, several=by_class)
        if is_published:
            subset = tuple(number for number, folder in enumerate(folders) if folder in present)
        else:
            images.renumber(folders)
        rest = "no other competes" if is_published else "no image of another"
        sentence = f"{data} has {len(some):,} of the model's {len(folders):,} classes, and {rest}"
        images.note = "; ".join(filter(None, (sentence, images.note)))
    else:
        images = validation_set(data, folders, reading=reading, several=by_class)
    return images, subset


def _real(
    data: str | Path, folders: Sequence[str], file: Path
) -> tuple[ImageSet, list[tuple[int, ...]]]:
    """The validation images, and the classes that are right for each."""
    lists = read_real(file, len(folders))
    images = validation_set(data, folders, reading="upstream")
    multi_labels: list[tuple[int, ...]] = []
    path_of: dict[int, Path] = {}
    for index in range(len(images)):
        path = Path(images.name_of(index))
        number = _number(path)
        if number in path_of:
            raise DataError(
                f"{path} and {path_of[number]} are the same image of the validation set; remove one"
            )
        path_of[number] = path
        multi_labels.append(lists[number - 1])
    if not any(multi_labels):
        raise DataError(f"{file} has no label for any of the {len(images):,} images of {data}")
    return images, multi_labels


def _number(path: Path) -> int:
    """The place of an image in the validation set, from 1."""
    match = REAL_NAME.fullmatch(path.name)
    number = int(match[1]) if match else 0
    if not 1 <= number <= REAL_IMAGES:
        raise DataError(
            f"{path} has not the name of a validation image, by which ReaL finds its labels; give "
            f"the images as they were published, ILSVRC2012_val_{1:08}.JPEG to "
            f"ILSVRC2012_val_{REAL_IMAGES:08}.JPEG"
        )
    return number


def read_real(file: Path, num_classes: int) -> list[tuple[int, ...]]:
    """The classes that are right for each image, in the order of the validation set."""
    advice = f"give real.json: {REAL_IMAGES:,} lists of class numbers from 0 to {num_classes - 1}"
    try:
        lists: Any = parse_json(_text(file), str(file))
    except FormatError as error:
        raise DataError(f"{error}; {advice}") from error
    if not isinstance(lists, list) or len(lists) != REAL_IMAGES:
        content = f"{len(lists):,} entries" if isinstance(lists, list) else "no list"
        raise DataError(f"{file} holds {content}; {advice}")
    for number, entry in enumerate(lists, start=1):
        if not isinstance(entry, list) or not all(
            type(label) is int and 0 <= label < num_classes for label in entry
        ):
            raise DataError(f"entry {number:,} of {file} is {entry!r}; {advice}")
    return [tuple(entry) for entry in lists]


def _subset(root: Path, folders: Sequence[str], kind: str, file: Path | None) -> tuple[int, ...]:
    """Some of the classes; no other competes, as in the benchmarks' own evaluation."""
    synsets = class_folders(root) if file is None else read_synsets(file)
    source = f"class folders of {root}" if file is None else f"lines of {file}"
    number_of = {folder: number for number, folder in enumerate(folders)}
    unknown = [name for name in synsets if name not in number_of]
    if unknown:
        raise DataError(
            f"{len(unknown):,} of the {source} are no class of ImageNet-1k (such as "
            f"{unknown[0]!r}); give the {SUBSET_CLASSES} synsets of {TITLES[kind]}, such as "
            f"{folders[0]!r}"
        )
    if len(synsets) != SUBSET_CLASSES:
        raise DataError(
            f"there are {len(synsets):,} {source}, and {TITLES[kind]} has {SUBSET_CLASSES} "
            "classes; give all of them and no other"
        )
    return tuple(sorted(number_of[name] for name in synsets))


def read_synsets(file: Path) -> list[str]:
    """The first word of every line that has one. Raises DataError where one comes twice."""
    words = [line.split()[0] for line in _text(file).splitlines() if line.strip()]
    for word in words:
        if words.count(word) > 1:
            raise DataError(f"{file} names {word!r} more than once; give each synset on one line")
    return words


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataError(f"the label file {file} cannot be read ({reason.lower()})") from error
