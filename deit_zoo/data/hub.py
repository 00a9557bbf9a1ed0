"""Data sets of the Hub as sets of images: `hfds:NAME`, or `hfds:DIR` for one saved to a folder.

`hfds:NAME:CONFIG@REVISION` is one of its configurations, as it was in a revision.

Read with the package `datasets` from the extra `hfds`.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from deit_zoo.data.image_file import read_file
from deit_zoo.data.images import MissingSplitError
from deit_zoo.data.remote import HFDS
from deit_zoo.data.table import SPLITS, Column, PartName, TableSet, choose_columns, split_address
from deit_zoo.errors import DataError, words_of
from deit_zoo.machine import require_extra
from deit_zoo.manifest import is_repo_id

CHUNK = 1000  # rows


def is_hfds(data: str | Path) -> bool:
    """Whether a data set is one of the Hub."""
    return str(data).startswith(HFDS)


def is_saved(folder: str | Path) -> bool:
    """Whether the package has saved a data set to a folder."""
    several, one = ("dataset_dict.json",), ("dataset_info.json", "state.json")
    return any(all((Path(folder) / mark).is_file() for mark in marks) for marks in (several, one))


class HubSet(TableSet):
    """One split of a data set of the Hub, read as a folder of the same files would be."""

    def __init__(self, data: str, split: PartName, classes: Sequence[str] = ()) -> None:
        rows, self.split = _load_split(data, split)
        import datasets

        self.data = data
        columns = {name: _column(feature) for name, feature in rows.features.items()}
        self._column, label = choose_columns(data, columns)
        self._set_labels(rows.with_format(None)[label][:], columns[label].names, classes)
        # Undecoded: the package would turn images by their EXIF, which upstream does not.
        self._rows = rows.select_columns([self._column]).cast_column(
            self._column, datasets.Image(decode=False)
        )
        self.bytes = int(rows.data.nbytes)

    def bytes_of(self, index: int) -> int:
        length = self._lengths[index]
        return len(self.read(index)) if length < 0 else length

    def read(self, index: int) -> bytes:
        """The bytes of an image's file; none where the row has no image."""
        from deit_zoo.data.decode import image_errors

        image = self._rows[index][self._column] or {}
        if image.get("bytes") is None and image.get("path"):
            with image_errors(self.name_of(index)):
                return read_file(Path(image["path"]))
        return image.get("bytes") or b""

    @cached_property
    def _lengths(self) -> array[int]:
        """The length of each row's bytes, which are not read for it; -1 where it has none."""
        from pyarrow import compute

        columns = (rows.column(0) for rows in self._rows.with_format("arrow").iter(CHUNK))
        lengths = (compute.binary_length(compute.struct_field(rows, "bytes")) for rows in columns)
        return array("q", (length for one in lengths for length in one.fill_null(-1).to_pylist()))


def _load_split(data: str, split: PartName) -> tuple[Any, str]:
    """The rows of a split, and what it is called there."""
    require_extra("hfds", data, "datasets")
    import datasets
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    name, config, revision = _named(split_address(data.removeprefix(HFDS))[0])
    if Path(name).is_dir():  # whole: a folder that is called `parquet` is else taken for a format
        name = str(Path(name).resolve())
    elif name in _PACKAGED_DATASETS_MODULES:
        raise DataError(
            f"{data} is a file format and no data set, and there is no folder of that name; give "
            "hfds: and a data set of the Hub, or the folder of a saved one"
        )
    elif not is_repo_id(name):
        raise DataError(
            f"no data set is named {data}, and there is no folder {name!r}; give hfds: and a data "
            "set of the Hub, or the folder of a saved one"
        )
    if is_saved(name) and (config or revision):
        raise DataError(f"{data} is a saved data set, which has no configuration; type hfds:{name}")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        loaded = (
            datasets.load_from_disk(name)
            if is_saved(name)
            else datasets.load_dataset(name, config, revision=revision)
        )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{data} cannot be read ({words_of(error)}); give hfds: and a data set of the Hub, or "
            "the folder of a saved one"
        ) from error
    if not isinstance(loaded, datasets.DatasetDict):  # saved without one
        loaded = {"all": loaded}
    splits = list(loaded)
    if split == "all" and len(splits) == 1:
        return loaded[splits[0]], splits[0]
    for spelling in SPLITS.get(split, ()):
        if spelling in splits:
            return loaded[spelling], spelling
    if split == "all":
        raise MissingSplitError(f"{data} has splits ({', '.join(splits)}); give one of them")
    raise MissingSplitError(
        f"{data} has no split {' or '.join(SPLITS[split])} (it has {', '.join(splits) or 'none'}); "
        "give a data set with one to train on and one to validate with"
    )


def _named(address: str) -> tuple[str, str | None, str | None]:
    """The name of a data set, or its folder; its configuration and revision, where given."""
    if Path(address).is_dir():
        return address, None, None
    address, _, revision = address.partition("@")
    name, _, config = address.rpartition(":")
    return name or address, config if name else None, revision or None


def _column(feature: Any) -> Column:
    """What a column of these values holds."""
    import datasets

    if isinstance(feature, datasets.Image):
        return Column("image")
    if isinstance(feature, datasets.ClassLabel):
        return Column("classes", tuple(feature.names))
    kind = feature.dtype if isinstance(feature, datasets.Value) else ""
    if kind.startswith(("int", "uint")):
        return Column("integers")
    return Column("strings" if kind in ("string", "large_string") else "other")
