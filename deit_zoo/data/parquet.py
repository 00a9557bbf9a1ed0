"""Parquet files as sets of images: `data/train-00000-of-00294.parquet`, as they lie in the Hub.

Read where they are, with pyarrow (from the extra `hfds`): each image by itself, by an index that is
made once. Where pages are of another kind than the Hub's, whole row groups are read: image after
image that is fast, in random order each image costs its group.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

from deit_zoo.data.archive_index import stamp
from deit_zoo.data.archive_set import OpenFiles
from deit_zoo.data.images import MissingSplitError
from deit_zoo.data.parquet_index import map_index, open_index, value
from deit_zoo.data.parquet_pages import Place
from deit_zoo.data.remote import HFDS
from deit_zoo.data.table import (
    SPLITS,
    Column,
    PartName,
    TableSet,
    check_split_column,
    choose_columns,
    split_address,
)
from deit_zoo.errors import DataError, words_of
from deit_zoo.files import as_record, parse_json
from deit_zoo.machine import require_extra

_NAMES = tuple(name for names in SPLITS.values() for name in names)
_SUFFIX = ".parquet"
# Row groups that are kept: threads that read one after the other are in two at a time.
GROUPS = 2


class ParquetSet(TableSet):
    """One split of a folder of Parquet files, in the order of their names; or one file."""

    def __init__(
        self,
        data: str,
        split: PartName,
        classes: Sequence[str] = (),
        progress: Callable[[int], None] = lambda images: None,
    ) -> None:
        require_extra("hfds", data, "pyarrow")
        from pyarrow import ArrowException, parquet

        self.data = data
        self.split, self._paths = split_files(data, split)
        self.bytes = sum(path.stat().st_size for path in self._paths)
        numbers: list[int | str | None] = []
        # Of each row group: its file, its number there, and its first row.
        self._groups: list[tuple[int, int]] = []
        lengths: list[int] = []
        sizes: list[int] = []
        for number, path in enumerate(self._paths):
            try:
                with parquet.ParquetFile(path) as file:
                    columns = _columns(file.schema_arrow)
                    self._column, label = choose_columns(data, columns)
                    if split == "all" and "split" in columns:
                        words = file.read(["split"], use_threads=False).column(0).to_pylist()
                        check_split_column(data, set(words))
                    numbers += file.read([label], use_threads=False).column(0).to_pylist()
                    groups = range(file.num_row_groups)
                    lengths += [file.metadata.row_group(group).num_rows for group in groups]
                    sizes += [file.metadata.row_group(group).total_byte_size for group in groups]
                    self._groups += [(number, group) for group in groups]
            except (ArrowException, OSError, ValueError) as error:
                raise _unreadable(path, error) from error
        self._starts = array("Q", [0, *accumulate(lengths)])
        self._set_labels(numbers, columns[label].names, classes)
        stamps = [stamp(path) for path in self._paths]
        self._files = OpenFiles(stamps)
        self._places = open_index(stamps, self._column, progress)
        if split == "train" and numbers and not len(self._places):  # read in random order
            self.note = f"{self.note}; " * bool(self.note) + (
                f"an image of {data} in random order costs reading its row group, of up to "
                f"{max(sizes, default=0) / 1e6:.1f} MB; where that is slow, type: deit-zoo data "
                f"prepare {data} --output DIR"
            )
        self._recent: list[tuple[int, Any]] = []
        self._lock = Lock()

    def bytes_of(self, index: int) -> int:
        return int(self._places[index][4]) if len(self._places) else len(self.read(index))

    def read(self, index: int) -> bytes:
        """The bytes of an image's file; none where the row has no image."""
        group = bisect_right(self._starts, index) - 1
        if len(self._places):
            return self._read_place(self._groups[group][0], Place(*self._places[index].tolist()))
        images, row = self._images_of(group), index - self._starts[group]
        if row >= len(images):
            raise DataError(f"{self.name_of(index)} is not in its file; get the file again")
        return images[row].as_py() or b""

    def _read_place(self, file: int, place: Place) -> bytes:
        from pyarrow import ArrowException

        try:
            image = value(self._files.read(file, place.length, place.offset), place)
        except (OSError, ArrowException) as error:
            raise _unreadable(self._paths[file], error) from error
        if len(image) != place.size:
            raise DataError(f"{self._paths[file]} is not whole any more; get it again")
        return image

    def _images_of(self, group: int) -> Any:
        """The column of images' bytes of a row group."""
        from pyarrow import ArrowException, parquet

        with self._lock:
            for number, images in self._recent:
                if number == group:
                    return images
            file, own_number = self._groups[group]
            try:
                with parquet.ParquetFile(self._paths[file]) as opened:
                    rows = opened.read_row_group(own_number, [self._column], use_threads=False)
            except (ArrowException, OSError) as error:
                raise _unreadable(self._paths[file], error) from error
            images = rows.column(0).combine_chunks()
            images = images.field("bytes") if hasattr(images, "field") else images
            self._recent = [(group, images), *self._recent][:GROUPS]
            return images

    def __getstate__(self) -> dict[str, Any]:
        """Without what was read, which each process reads itself; the index is mapped again."""
        places = getattr(self._places, "filename", None) or self._places
        return vars(self) | {"_recent": [], "_lock": None, "_places": places}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"_lock": Lock()})
        if isinstance(self._places, str | Path):
            self._places = map_index(Path(self._places))


def is_parquet(data: str | Path) -> bool:
    """Whether a data set is Parquet files, or a folder of them, with `hfds:` before it or not."""
    path = _path_of(str(data))
    return bool(_not_parted(path)) or any(map(partial(_files_of, path), _NAMES))


def split_files(data: str, split: PartName) -> tuple[str, list[Path]]:
    """What a split is called, and its files. Raises DataError where there is none."""
    path = _path_of(data)
    named = [name for name in _NAMES if _files_of(path, name)]
    if split == "all" and not named and (files := _not_parted(path)):
        return split, files
    for name in SPLITS.get(split, ()):
        if name in named:
            return name, _files_of(path, name)
    raise MissingSplitError(
        f"{data} has no Parquet file of {' or '.join(SPLITS[split])}; give a folder with "
        "train-*.parquet and validation-*.parquet in it, or in its data/"
    )


def _path_of(data: str) -> Path:
    return Path(split_address(data.removeprefix(HFDS))[0])


def _files_of(path: Path, split: str) -> list[Path]:
    """`train-00000-of-00294.parquet`, `train.parquet` or `train/0000.parquet`, also in `data/`."""
    for folder in (path, path / "data"):
        for pattern in (f"{split}.parquet", f"{split}-*.parquet", f"{split}/*.parquet"):
            if files := sorted(folder.glob(pattern)):
                return files
    return []


def _not_parted(path: Path) -> list[Path]:
    """A file, or those of a folder whose names tell no split."""
    if path.suffix.lower() == _SUFFIX and path.is_file():
        return [path]
    return [] if any(map(partial(_files_of, path), _NAMES)) else sorted(path.glob(f"*{_SUFFIX}"))


def _columns(schema: Any) -> dict[str, Column]:
    """What the columns of a file hold: by what the Hub says of them, else by their types."""
    from pyarrow import types

    text, where = (schema.metadata or {}).get(b"huggingface", b"{}"), "what the Hub says of it"
    metadata = as_record(parse_json(text, where), dict[str, Any], where)
    info = as_record(metadata.get("info", {}), dict[str, Any], where)
    features = as_record(info.get("features") or {}, dict[str, Any], where)
    columns = {}
    for field in schema:
        feature = features.get(field.name)
        value = field.type.value_type if types.is_dictionary(field.type) else field.type
        is_struct = types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            names = as_record(feature.get("names") or [], list[str], where)
            columns[field.name] = Column("classes", tuple(names))
        elif is_struct or types.is_binary(field.type) or types.is_large_binary(field.type):
            columns[field.name] = Column("image")
        elif types.is_integer(field.type):
            columns[field.name] = Column("integers")
        elif any(is_text(value) for is_text in (types.is_string, types.is_large_string)):
            columns[field.name] = Column("strings")
        else:
            columns[field.name] = Column("other")
    return columns


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read as Parquet ({words_of(error)}); get it again")
