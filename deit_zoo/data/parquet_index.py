"""Where each image of Parquet files lies: found once, and kept in the zoo's cache.

A row for each image (`Place`) in a file that is mapped into memory, so all processes share it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from deit_zoo.data.archive_index import Stamp, listed_once
from deit_zoo.data.parquet_pages import Place, UnknownPageError, inflate_piece, places
from deit_zoo.errors import FormatError
from deit_zoo.weights import cache

FORMAT = 2
# Each has a row group in memory.
LISTERS = 4


def open_index(files: Sequence[Stamp], column: str, progress: Callable[[int], None]) -> Any:
    """The place of each image of a column, an array (images, 5); no rows where not all have one."""
    key = hashlib.sha256(json.dumps([FORMAT, column, files]).encode()).hexdigest()[:32]
    file = cache.folder() / "indexes" / f"{key}.npy"
    return listed_once(
        key, partial(map_index, file), lambda: _keep(file, _build(files, column, progress))
    )


def map_index(file: Path) -> Any:
    """The index that a file holds; None where there is none."""
    import numpy as np

    try:
        return np.load(file, mmap_mode="r") if file.is_file() else None
    except (OSError, ValueError, EOFError):
        return None


def _keep(file: Path, index: Any) -> Any:
    """Leave an index under its name where that is possible; returns it as it is read there."""
    import numpy as np

    content = BytesIO()
    np.save(content, index)
    with suppress(OSError, FormatError):
        cache.write_shared(file, content.getvalue())
        index = map_index(file)
    return index


def _build(files: Sequence[Stamp], column: str, progress: Callable[[int], None]) -> Any:
    import numpy as np
    from pyarrow import ArrowException

    try:
        with ThreadPoolExecutor(LISTERS) as pool:
            find = partial(_images_of, column=column, progress=progress)
            paths = (file.path for file in files)
            rows = [np.empty((0, 5), np.uint64), *pool.map(find, paths)]
    except (UnknownPageError, ArrowException, LookupError, OSError, struct.error):
        # Of another kind, or broken: reading will tell which image.
        return np.empty((0, 5), np.uint64)
    return np.concatenate(rows)


def _images_of(path: str, *, column: str, progress: Callable[[int], None]) -> Any:
    """The images of a file; its first row group is compared with what pyarrow reads.

    Raises UnknownPageError where rows cannot be read one by one.
    """
    import numpy as np
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file, open(path, "rb") as stream:
        names = [file.schema.column(n).path for n in range(file.metadata.num_columns)]
        leaf = next(n for n, name in enumerate(names) if name in (column, f"{column}.bytes"))
        levels = file.schema.column(leaf)
        if levels.max_repetition_level:
            raise UnknownPageError("rows have many images")
        rows: list[Place] = []
        for group in range(file.num_row_groups):
            chunk = file.metadata.row_group(group).column(leaf)
            start = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
            stream.seek(start)
            pages = memoryview(stream.read(chunk.total_compressed_size))
            of_group = list(places(pages, start, chunk.compression, levels.max_definition_level))
            if len(of_group) != file.metadata.row_group(group).num_rows:
                raise UnknownPageError("rows are missing")
            if group == 0:
                table = file.read_row_group(0, [names[leaf]], use_threads=False)
                _compare(of_group, pages, start, table)
            rows += of_group
            progress(len(of_group))
    return np.array(rows, np.uint64).reshape(-1, 5)


def _compare(rows: list[Place], pages: memoryview, start: int, table: Any) -> None:
    """Raise UnknownPageError unless each row's place holds what pyarrow reads there."""
    images = table.column(0).combine_chunks()
    images = images.field(0) if hasattr(images, "field") else images
    for place, image in zip(rows, images, strict=True):
        piece = bytes(pages[place.offset - start :][: place.length]) if place.length else b""
        if value(piece, place) != (image.as_py() or b""):
            raise UnknownPageError("a row is not where its pages are")


def value(piece: bytes, place: Place) -> bytes:
    """The value of a place whose bytes were read."""
    if not place.inflated:
        return piece
    return bytes(inflate_piece(piece, place.inflated)[place.skip : place.skip + place.size])
