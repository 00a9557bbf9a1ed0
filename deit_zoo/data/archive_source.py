"""Which archives a person means, and the index of what they hold for a split.

A tar or zip archive, a folder of them, a pattern such as `shards/{train,val}-{000..127}.tar`, the
same with an address that fsspec knows (`s3://bucket/...`), or ImageNet's own archives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from deit_zoo.data.archive_index import (
    ArchiveIndex,
    build_index,
    listed_once,
    load_index,
    name_of,
    no_images,
    save_index,
    stamp,
)
from deit_zoo.data.archive_layout import (
    Progress,
    Rows,
    list_archives,
    list_imagenet_train,
    list_imagenet_val,
)
from deit_zoo.data.folder import SPLIT_OF, is_hidden, is_image, listing_errors, split_named
from deit_zoo.data.imagenet import LABEL_FILES, label_file_in
from deit_zoo.data.images import MissingSplitError
from deit_zoo.data.remote import fetch, files_at, is_remote
from deit_zoo.errors import DataError

SUFFIXES = (".tar", ".zip")
# What packs a whole archive into one stream, in which no member can be reached by itself.
STREAMS = (".tgz", ".gz", ".bz2", ".xz", ".zst")
IMAGENET_TRAIN, IMAGENET_VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def means_archives(data: str) -> bool:
    """Whether data are archives: by their name, or as a folder with archives and no images."""
    path = Path(data)
    if is_remote(data) or _is_pattern(data) or path.suffix.lower() in (*SUFFIXES, *STREAMS):
        return True
    holds_some = path.is_dir() and (_is_imagenet(path) or bool(_archives_in(path)))
    return holds_some and not _has_class_folders(path)


def open_index(data: str, split: str, progress: Progress = lambda files: None) -> ArchiveIndex:
    """Where each image of a split lies, listed unless that was done before."""
    source = _source(data, split)
    archives = [stamp(path) for path in source.archives]
    paths = [archive.path for archive in archives]
    key = json.dumps([split, paths, [stamp(path) for path in source.beside]])

    def build() -> ArchiveIndex:
        index = build_index(archives, source.list_rows(progress))
        save_index(key, index)
        return index

    index = listed_once(name_of(key), partial(load_index, key, archives), build)
    if not index.classes:
        raise MissingSplitError(no_images(data, split))
    return index


class _Source(NamedTuple):
    """The archives of a split, what else says what is in them, and what lists their images."""

    archives: list[Path]
    beside: list[Path]
    list_rows: Callable[[Progress], list[Rows]]


def _source(data: str, split: str) -> _Source:
    path = Path(data)
    if _is_imagenet(path):
        return _imagenet(path if path.is_dir() else path.parent, split)
    named, unnamed = _of_split(data, split)
    addresses = named + unnamed
    paths = fetch(addresses) if is_remote(data) else [Path(address) for address in addresses]
    for archive in paths:
        if archive.suffix.lower() in STREAMS:
            raise DataError(
                f"{archive} is packed as one stream, in which no image can be reached by itself; "
                "unpack it to a .tar, such as with gunzip"
            )
    return _Source(paths, [], partial(list_archives, paths, split, len(named)))


def _imagenet(root: Path, split: str) -> _Source:
    """ImageNet's own archive of a split."""
    if split == "train":
        return _Source(
            [root / IMAGENET_TRAIN], [], partial(list_imagenet_train, root / IMAGENET_TRAIN)
        )
    archive = root / IMAGENET_VAL
    labels = label_file_in(root)
    if labels is None:
        raise DataError(
            f"{root} holds no {LABEL_FILES[0]}, which sorts the images of {IMAGENET_VAL}; put it "
            f"there, or Kaggle's {LABEL_FILES[-1]}"
        )
    kit = [file for file in (labels, *sorted(labels.rglob("*"))) if file.is_file()]
    return _Source([archive], kit, partial(list_imagenet_val, archive, labels))


def _is_imagenet(path: Path) -> bool:
    names = (IMAGENET_TRAIN, IMAGENET_VAL)
    return path.name in names or any((path / name).is_file() for name in names)


def _of_split(data: str, split: str) -> tuple[list[str], list[str]]:
    """The archives whose names tell a split, and those that may hold several.

    Of "all", a set that is not parted, every one is named.
    """
    archives = _addresses(data)
    if split == "all":
        return archives, []
    words = [_word(archive, data) for archive in archives]
    of_word = {
        kind: [archive for archive, word in zip(archives, words, strict=True) if word == kind]
        for kind in ("train", "val", "test", None)
    }
    named = of_word[split] or (of_word["test"] if split == "val" else [])
    if named or of_word[None]:
        return named, of_word[None]
    raise MissingSplitError(
        f"{data} has no archive of {split} among its {len(archives):,} (such as {archives[0]}); "
        "give archives whose names tell train from val, as train-000.tar and val-000.tar do"
    )


def _word(archive: str, data: str) -> str | None:
    """The split that an archive's name tells, or the folder in which it lies in the data's."""
    folder, _, name = archive.rpartition("/")
    inside = folder.rpartition("/")[2] if folder != data.rstrip("/") and archive != data else ""
    split, _ = split_named(name) or split_named(inside) or (None, "")
    return split


def _addresses(data: str) -> list[str]:
    """The archives that data name, one by one."""
    if _is_pattern(data):
        return expand(data)
    if Path(data).suffix.lower() in (*SUFFIXES, *STREAMS):
        return [data]
    if not is_remote(data):
        return [str(path) for path in _archives_in(Path(data))]
    archives = [url for url in files_at(data) if url.lower().endswith(SUFFIXES)]
    if not archives:
        raise DataError(f"{data} holds no {' or '.join(SUFFIXES)}; give the folder of some")
    return archives


def _archives_in(root: Path) -> list[Path]:
    """The archives in a folder, and in its train/ and val/."""
    with listing_errors():
        inside = (path for path in root.iterdir() if path.name.lower() in SPLIT_OF)
        folders = [root, *(path for path in inside if path.is_dir())]
        files = [path for folder in folders for path in folder.iterdir()]
    names = (path for path in files if not is_hidden(path.name))
    return sorted(path for path in names if path.name.lower().endswith(SUFFIXES))


def _has_class_folders(root: Path) -> bool:
    """Whether folders in a folder, or in its train/ and val/, hold images."""
    with listing_errors():
        for folder in (path for path in root.iterdir() if path.is_dir()):
            entries = [] if is_hidden(folder.name) else list(folder.iterdir())
            if folder.name.lower() in SPLIT_OF and any(path.is_dir() for path in entries):
                return True
            if any(is_image(path.name) for path in entries):
                return True
    return False


def _is_pattern(data: str) -> bool:
    return ("{" in data or "*" in data) and not Path(data).exists()


def expand(pattern: str) -> list[str]:
    """The names of a pattern: `{a,b}` is each of these, `{00..63}` each number between."""
    start = pattern.find("{")
    if start < 0 and "*" not in pattern:
        return [pattern]
    depth, cuts = 0, [start]
    for position in range(start, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[position], 0)
        if depth == 0 or (depth == 1 and pattern[position] == ","):
            cuts.append(position)
        if depth == 0:
            break
    choices = [pattern[a + 1 : b] for a, b in pairwise(cuts)]
    if len(choices) == 1 and (numbers := _RANGE.fullmatch(choices[0])):
        first, last = numbers.groups()
        choices = [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    if depth or len(choices) < 2 or "*" in pattern:
        raise DataError(
            f"{pattern} is no pattern; its braces must hold names or a range, and no * stands for "
            "any, such as train-{000..127}.tar or {train,val}.zip"
        )
    head, tail = pattern[:start], pattern[cuts[-1] + 1 :]
    inner = [text for choice in choices for text in expand(choice)]
    return [f"{head}{text}{rest}" for text in inner for rest in expand(tail)]
