"""Where each image of a split lies in archives: listed once, and kept in the zoo's cache.

An index is in the order of the folder with the same images, by class and then by path, so that a
run from archives draws the images that a run from the folder draws. It is compact, as each process
has it whole: numbers in the fewest bytes, and names in one block.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields, replace
from io import BytesIO
from itertools import accumulate, chain, repeat
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from zipfile import BadZipFile

from deit_zoo.data.archive_layout import Rows
from deit_zoo.data.archives import open_descriptor
from deit_zoo.data.folder import path_parts
from deit_zoo.data.images import Strings, narrow
from deit_zoo.errors import DataError, DownloadError, FormatError
from deit_zoo.files import as_record, open_regular, parse_json
from deit_zoo.weights import cache
from deit_zoo.weights.cache import Sha256

FORMAT = 3
Index = TypeVar("Index")


class Stamp(NamedTuple):
    """What tells a file from what it was."""

    path: str
    size: int
    mtime_ns: int


def stamp(path: Path) -> Stamp:
    """A file as it is now. Raises DataError where it cannot be read."""
    with open_descriptor(path) as descriptor:
        status = os.fstat(descriptor)
    return Stamp(os.path.abspath(path), status.st_size, status.st_mtime_ns)


def listed_once(name: str, load: Callable[[], Index | None], build: Callable[[], Index]) -> Index:
    """An index that was kept, or is built now: by one process, while the others wait for it."""
    if (index := load()) is not None:
        return index
    with ExitStack() as stack:
        # Without a cache that can be written to, each process lists for itself.
        with suppress(DownloadError):
            stack.enter_context(cache.one_at_a_time(f"index-{name}"))
        index = load()
        return build() if index is None else index


class Columns(NamedTuple):
    """A number for each image; `sizes` and `deflated` are empty where no image is deflated."""

    labels: array[int]
    archives: array[int]
    offsets: array[int]
    lengths: array[int]
    sizes: array[int]
    deflated: array[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    """What an index says beside its columns and names.

    `from_shards`: the classes are what labels say, not folders.
    """

    archives: list[Stamp]
    classes: list[str]
    counts: list[int]
    from_shards: bool
    others: int
    hidden: int
    num_bytes: int
    listing_sha256: Sha256


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchiveIndex(_Header):
    """The images of a split: the archive of each, where its bytes begin and how many they are."""

    columns: Columns
    names: Strings

    @property
    def numbered(self) -> bool:
        """Whether the classes are numbers, which go for a model's in their order."""
        return self.from_shards and self.classes == _numbers(len(self.classes))

    def in_order(self, order: Sequence[int]) -> ArchiveIndex:
        """The same images with the classes in another order: its first is now `order[0]`."""
        if list(order) == list(range(len(self.classes))):
            return self
        ends = [*accumulate(self.counts)]
        rows = [*chain.from_iterable(range(ends[n] - self.counts[n], ends[n]) for n in order)]
        columns = [
            array(column.typecode, (column[row] for row in rows if column))
            for column in self.columns
        ]
        counts = [self.counts[number] for number in order]
        return replace(
            self,
            classes=[self.classes[number] for number in order],
            counts=counts,
            columns=Columns(*columns)._replace(labels=_labels(counts)),
            names=Strings(self.names[row] for row in rows),
        )


def build_index(archives: Sequence[Stamp], listed: Sequence[Rows]) -> ArchiveIndex:
    """The index of what was listed in archives."""
    from_shards = any(rows.in_shard for rows in listed)
    names = {name for rows in listed for name in rows.classes}
    paths = [path for rows in listed for path in rows.images.names]
    files = [rows.archive for rows in listed for _ in rows.classes]
    classes = _shard_classes(archives, names, len(paths)) if from_shards else sorted(names)
    # Where the images of each class stand in what was listed, by and by in their order.
    of_class = {name: array("Q") for name in classes}
    for place, name in enumerate(chain.from_iterable(rows.classes for rows in listed)):
        of_class[name].append(place)
    for name, places in of_class.items():
        of_class[name] = array("Q", sorted(places, key=lambda place: path_parts(paths[place])))
    counts = [len(places) for places in of_class.values()]
    order = array("Q", chain.from_iterable(of_class.values()))

    def column(name: str) -> array[int]:
        values = array("Q", chain.from_iterable(getattr(rows.images, name) for rows in listed))
        return narrow((values[place] for place in order), max(values, default=0))

    labels, sizes, deflated = _labels(counts), column("sizes"), column("deflated")
    digest = hashlib.sha256()
    previous: tuple[int, str, int] | None = None
    for label, place, size in zip(labels, order, sizes, strict=True):
        path = f"{classes[label]}/{paths[place]}"
        digest.update(b"%s %d\n" % (os.fsencode(path), size))
        # The same key in two shards is two images: many writers count anew in each.
        this = (label, path, files[place] if from_shards else 0)
        if this == previous:
            raise DataError(
                f"{archives[files[place]].path} holds a second {path}; give archives that hold "
                "each image once"
            )
        previous = this
    return ArchiveIndex(
        archives=list(archives),
        classes=classes,
        counts=counts,
        from_shards=from_shards,
        others=sum(rows.others for rows in listed),
        hidden=sum(rows.hidden for rows in listed),
        num_bytes=sum(sizes),
        listing_sha256=digest.hexdigest(),
        columns=Columns(
            labels=labels,
            archives=narrow((files[place] for place in order), len(archives)),
            offsets=column("offsets"),
            lengths=column("lengths"),
            sizes=sizes if any(deflated) else sizes[:0],
            deflated=deflated if any(deflated) else deflated[:0],
        ),
        names=Strings(paths[place] for place in order),
    )


def no_images(data: str, split: str) -> str:
    """The sentence about archives without images."""
    if split == "all":
        return f"{data} holds no class folder with an image; give archives with CLASS/x.jpg in them"
    return (
        f"{data} holds no image of {split}; give archives with CLASS/x.jpg in them, or with "
        f"{split}/CLASS/x.jpg where they are parted, or WebDataset shards (KEY.jpg and KEY.cls) "
        f"with {split} in their names"
    )


def _shard_classes(archives: Sequence[Stamp], names: set[str], num_images: int) -> list[str]:
    """The classes that the labels of shards mean: from 0 to the largest where they are numbers."""
    numbers = [int(name) for name in names if name.isdecimal()]
    if not numbers:
        return sorted(names)
    if len(numbers) < len(names):
        other = next(name for name in sorted(names) if not name.isdecimal())
        problem = f"{other!r}, and others that are numbers"
    elif max(numbers) >= num_images:
        problem = f"{max(numbers):,}, of {num_images:,} images"
    else:
        return _numbers(max(numbers) + 1)
    raise DataError(
        f"{archives[0].path}, or a shard beside it, has the label {problem}; give labels that are "
        "all names, or all the numbers of classes from 0"
    )


def _numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def _labels(counts: Sequence[int]) -> array[int]:
    labels = (repeat(label, count) for label, count in enumerate(counts))
    return narrow(chain.from_iterable(labels), len(counts))


def save_index(key: str, index: ArchiveIndex) -> None:
    """Keep an index, where the cache can be written to."""
    import numpy as np

    header = {field.name: getattr(index, field.name) for field in fields(_Header)}
    content = BytesIO()
    np.savez(
        content,
        header=np.frombuffer(json.dumps(header).encode(), np.uint8),
        names=np.frombuffer(index.names.block, np.uint8),
        ends=index.names.ends,
        **index.columns._asdict(),
    )
    with suppress(OSError, FormatError):
        cache.write_shared(_file(key), content.getvalue())


def load_index(key: str, archives: Sequence[Stamp]) -> ArchiveIndex | None:
    """The index under a key; None where none is whole, or the archives are others by now."""
    import numpy as np

    try:
        with open_regular(_file(key)) as stream, np.load(stream) as file:
            text = file["header"].tobytes()
            header = as_record(parse_json(text, "an index"), _Header, "an index")
            if header.archives != list(archives):
                return None
            columns = Columns(*(_numbers_of(file[name]) for name in Columns._fields))
            names = Strings.of(file["names"].tobytes(), _numbers_of(file["ends"]))
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, BadZipFile, FormatError):
        return None
    facts = {field.name: getattr(header, field.name) for field in fields(header)}
    return ArchiveIndex(**facts, columns=columns, names=names)


def _numbers_of(values: Any) -> array[int]:
    return array(values.dtype.char, values.tobytes())


def name_of(key: str) -> str:
    """The name under which an index is kept."""
    # Numbers are kept as this machine holds them.
    text = f"{FORMAT} {sys.byteorder} {key}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _file(key: str) -> Path:
    return cache.folder() / "indexes" / name_of(key)
