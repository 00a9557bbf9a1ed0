"""Images as they lie in tar and zip archives, in any order, read without unpacking."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deit_zoo.data.archive_index import ArchiveIndex, Stamp, no_images
from deit_zoo.data.archives import inflate, read_at
from deit_zoo.data.folder import differences, ignored, wrong_classes
from deit_zoo.data.image_file import check_length, open_regular
from deit_zoo.data.images import ImageSet, MissingSplitError
from deit_zoo.errors import DataError, reason_of

# Archives that a set keeps open: a quarter of the files that a process may have, as a run has two
# sets; beyond them one is opened anew for each image.
MOST_OPEN = max(64, os.sysconf("SC_OPEN_MAX") // 4) if hasattr(os, "sysconf") else 2048


class ArchiveSet(ImageSet):
    """The images of an index, labelled in the order of `classes` where they are given.

    `root` is the archive, or the folder of all. Each process opens the archives for itself, when it
    first reads from one.
    """

    def __init__(
        self, data: str, split: str, index: ArchiveIndex, classes: Sequence[str] = ()
    ) -> None:
        if not index.classes:
            raise MissingSplitError(no_images(data, split))
        order, self.note = _class_order(data, index, classes)
        # A shard's other files say more of its images.
        remark = ignored(0 if index.from_shards else index.others, index.hidden)
        self.note = "; ".join(filter(None, (self.note, remark and f"{remark} in {data}")))
        self.split, self.where = split, data
        self.classes = list(classes) or index.classes
        index = index.in_order(order)
        self._columns, self._names = index.columns, index.names
        self._from_shards = index.from_shards
        self._labels = index.columns.labels
        self._archives = OpenFiles(index.archives)
        self.root = Path(os.path.commonpath([archive.path for archive in index.archives]))

    def path_in_root(self, index: int) -> str:
        """The path of an image from the archive on, or from the folder of all."""
        return self.name_of(index).removeprefix(os.path.join(self.root, ""))

    def name_of(self, index: int) -> str:
        """The path of an image in its archive, as if the archive were a folder."""
        archive = self._archives.path_of(self._columns.archives[index])
        name = self._names[index]
        if not self._from_shards:
            name = f"{self.classes[self._labels[index]]}/{name}"
            name = name if self.split == "all" else f"{self.split}/{name}"
        return f"{archive}/{name}"

    def bytes_of(self, index: int) -> int:
        return (self._columns.sizes or self._columns.lengths)[index]

    def read(self, index: int) -> bytes:
        _, archives, offsets, lengths, sizes, deflated = self._columns
        name, length, size = self.name_of(index), lengths[index], (sizes or lengths)[index]
        check_length(name, max(length, size))
        try:
            content = self._archives.read(archives[index], length, offsets[index])
            if deflated and deflated[index]:
                content = inflate(content, size)
        except (OSError, zlib.error) as error:
            raise DataError(
                f"{name} cannot be read ({reason_of(error)}); get its archive again"
            ) from error
        if len(content) != size:
            has = "more than" if len(content) > size else f"{len(content):,} of"
            raise DataError(f"{name} has {has} its {size:,} bytes; get its archive again")
        return content


class OpenFiles:
    """Files that are read at any place, by any thread of any process."""

    def __init__(self, stamps: Sequence[Stamp]) -> None:
        self._stamps = stamps
        self._descriptors: dict[int, int] = {}

    def path_of(self, number: int) -> str:
        """The path of a file."""
        return self._stamps[number].path

    def read(self, number: int, length: int, offset: int) -> bytes:
        """So many bytes of a file."""
        descriptor = self._descriptors.get(number)
        if descriptor is not None:
            return read_at(descriptor, length, offset)
        descriptor = self._open(number)
        # Another thread may have opened it too. No lock, which a forked process could find taken.
        is_kept = len(self._descriptors) < MOST_OPEN and (
            self._descriptors.setdefault(number, descriptor) == descriptor
        )
        try:
            return read_at(descriptor, length, offset)
        finally:
            if not is_kept:
                os.close(descriptor)

    def _open(self, number: int) -> int:
        """A file's descriptor. Raises DataError where it is another than was listed."""
        stamp = self._stamps[number]
        descriptor = open_regular(stamp.path, "an archive")
        status = os.fstat(descriptor)
        if (status.st_size, status.st_mtime_ns) != stamp[1:]:
            os.close(descriptor)
            raise DataError(
                f"{stamp.path} has changed since its images were listed; leave it as it is while "
                "it is read, and start again"
            )
        return descriptor

    def __getstate__(self) -> dict[str, Any]:
        """Without the descriptors, which are numbers of this process."""
        return {"_stamps": self._stamps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_stamps"])  # type: ignore[misc]

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)


def _class_order(data: str, index: ArchiveIndex, classes: Sequence[str]) -> tuple[list[int], str]:
    """The place in the index of each of the classes, and a sentence where they go by number."""
    own = index.classes
    if not classes or sorted(own) == sorted(classes):
        number_of = {name: number for number, name in enumerate(own)}
        return [number_of[name] for name in classes or own], ""
    if not index.from_shards:
        raise DataError(wrong_classes(f"class folders of {data}", own, classes))
    if index.numbered and len(own) == len(classes):
        return list(range(len(own))), (
            f"the {len(own):,} classes of {data} are numbers, which are taken in their order for "
            f"the model's, from {classes[0]!r} to {classes[-1]!r}"
        )
    other = differences(own, classes, ("that are no class of the model", "missing"))
    raise DataError(
        f"the labels of {data} are not the model's {len(classes):,} classes: {other}; give labels "
        f"that are these names, or their numbers from 0 to {len(classes) - 1}"
    )
