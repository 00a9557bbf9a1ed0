"""The classes of many images in one file, CSV or Parquet, by a run that may be killed and go on.

While it runs, each answer is a line of JSON in FILE.partial, in the words of `classify --json`;
what a kill tore off is cut when it goes on. At the end the lines become FILE, whole. FILE.json says
what made the answers, so that none of another model or another question are added to them.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from deit_zoo.data.remote import is_remote
from deit_zoo.errors import DataError, FormatError, redact
from deit_zoo.files import (
    as_record,
    check_new_file,
    digest,
    parse_json,
    read_json,
    write_whole,
    writing_whole,
)
from deit_zoo.machine import require_extra
from deit_zoo.manifest import LocalCheckpoint, manifest_record
from deit_zoo.models.model import ZooModel, num_classes_of, spec_of
from deit_zoo.registry.names import resolve
from deit_zoo.results import Prediction
from deit_zoo.version import __version__

SUFFIXES = (".csv", ".parquet")
SECONDS = 1.0  # after which answers are put on the disk: what a kill costs
ROWS = 10_000  # that become Parquet, or are held, at the same time


def check_answer_file(file: Path, resume: bool) -> None:
    """Raises DataError where answers cannot be put there, or would be put over others."""
    check_new_file(file, SUFFIXES)
    if not resume and (present := _present(file)):
        raise DataError(
            f"{present[0]} is there already; type --resume to go on, or give another --output"
        )
    lock = _beside(file, "lock")
    if lock.exists() and (not resume or lock.stat().st_size):  # ours is empty
        raise DataError(
            f"{lock} is there already, and the lock of {file} would take its place; move it away, "
            "or give another --output"
        )
    if file.suffix.lower() == ".parquet":
        require_extra("hfds", "a Parquet file", "pyarrow.parquet")


def name_in_table(image: str) -> str:
    """What a table calls an image: an address without what gives access, and a digest instead."""
    shown = redact(image) if is_remote(image) else image
    if shown == image:
        return image
    return f"{shown}#{hashlib.sha256(_text(image).encode()).hexdigest()[:12]}"


def settings_of(images: Sequence[str], names: Collection[str]) -> dict[str, Any]:
    """What answers depend on in their images: what was typed, and the names of all of them."""
    is_relative = any(not is_remote(image) and not os.path.isabs(image) for image in images)
    return {
        "images": list(map(name_in_table, images)),
        "working_folder": os.getcwd() if is_relative else None,
        "num_images": len(names),
        "names": hashlib.sha256("\0".join(map(_text, sorted(names))).encode()).hexdigest(),
    }


def settings_of_name(name: str, topk: int) -> dict[str, Any]:
    """What answers depend on in a model that is known by its name, without loading it."""
    spec = resolve(name)
    sha256 = manifest_record(spec.name).sha256
    topk = min(topk, spec.num_classes)
    return {"model": spec.name, "weights": sha256, "optimized": None, "topk": topk}


def settings_of_network(network: ZooModel, topk: int) -> dict[str, Any]:
    """What answers depend on in a model: its weights, and how it computes."""
    checkpoint: Any = network.checkpoint
    sha256 = checkpoint.sha256 if checkpoint else None
    if sha256 is None and isinstance(checkpoint, LocalCheckpoint):
        sha256 = digest(checkpoint.path)
    return {
        "model": spec_of(network).name,
        "weights": sha256,
        "optimized": getattr(network, "precision", None),
        "topk": min(topk, num_classes_of(network)),
    }


class AnswerFile:
    """Answers as they come, each image once: `done` are those that are there, as the table calls
    them."""

    def __init__(self, file: Path, settings: Mapping[str, Any], stream: IO[bytes]) -> None:
        self.file, self.settings, self._stream = file, settings, stream
        self.done: set[str] = set()
        self.num_unreadable = 0
        self._written = time.monotonic()
        end = 0
        for line in stream:
            if not line.endswith(b"\n") or (row := _row_of(line, settings["topk"])) is None:
                break  # torn off by a kill, or by a power cut; what follows is done again
            self.done.add(row.image)
            self.num_unreadable += row.error is not None
            end += len(line)
        stream.seek(end)
        stream.truncate()

    def add(self, name: str, answer: list[Prediction] | DataError) -> None:
        """Put down the classes of an image, or why it could not be read."""
        row: dict[str, Any] = {"image": name_in_table(name)}
        if isinstance(answer, DataError):
            row["error"] = redact(str(answer))
            self.num_unreadable += 1
        else:
            row["predictions"] = [asdict(prediction) for prediction in answer]
        self._stream.write(json.dumps(row).encode() + b"\n")
        self.done.add(row["image"])

    def keep(self) -> None:
        """Have the disk keep what was put down, unless it did so a moment ago."""
        if time.monotonic() - self._written > SECONDS:
            self.flush()

    def flush(self) -> None:
        """Have the disk keep what was put down."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._written = time.monotonic()

    def finish(self) -> None:
        """Make the file of all that was put down."""
        self.flush()
        self._stream.seek(0)
        rows = (json.loads(line) for line in self._stream)
        write = _write_csv if self.file.suffix.lower() == ".csv" else _write_parquet
        with writing_whole(self.file) as stream:
            write(stream, rows, self.settings)
        _write_settings(self.file, {**self.settings, "num_unreadable": self.num_unreadable})
        _beside(self.file, "partial").unlink()


@contextmanager
def open_answers(file: Path, settings: Mapping[str, Any], resume: bool) -> Iterator[AnswerFile]:
    """Within it answers are added to those that are there; no other process does so meanwhile.

    Raises DataError where those are of other settings.
    """
    from filelock import FileLock, Timeout

    check_answer_file(file, resume)
    lock = FileLock(_beside(file, "lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DataError(
            f"{file} is being written by another process; wait for it, or give another --output"
        ) from error
    try:
        if _present(file):
            _check_settings(file, settings)
        else:
            _write_settings(file, settings)
        with _beside(file, "partial").open("a+b") as stream:
            stream.seek(0)
            yield AnswerFile(file, settings, stream)
    finally:
        with suppress(PermissionError):  # on Windows it is open, and goes when it is released
            os.unlink(lock.lock_file)
        lock.release()


def num_unreadable_of(file: Path, settings: Mapping[str, Any]) -> int | None:
    """How many images of a file that is whole could not be read; None where it is not.

    Raises DataError where its answers are of other settings.
    """
    if not _present(file):
        return None
    record = _check_settings(file, settings)
    if not file.exists() or _beside(file, "partial").exists():
        return None
    return as_record(record.get("num_unreadable"), int, str(_beside(file, "json")))


def _check_settings(file: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    beside = _beside(file, "json")
    if not beside.is_file():
        raise DataError(
            f"{file} has no {beside.name} beside it, which would say what its answers are of; give "
            "another --output"
        )
    record = read_json(beside)
    former = record if isinstance(record, dict) else {}
    for key, value in settings.items():
        if former.get(key) != value and key in ("num_images", "names"):
            raise DataError(
                f"{file} was begun with {former.get('num_images')} images, which are not the "
                f"{settings['num_images']} that are there now; give another --output"
            )
        if former.get(key) != value:
            raise DataError(
                f"{file} was begun with {key} {former.get(key)!r:.200}, and this has "
                f"{value!r:.200}; type it as then, or give another --output"
            )
    return former


def _write_settings(file: Path, settings: Mapping[str, Any]) -> None:
    text = json.dumps({**settings, "deit_zoo": __version__}, indent=2)
    write_whole(_beside(file, "json"), f"{text}\n".encode())


def _present(file: Path) -> list[Path]:
    """Of a table and what is written beside it, the files that are there."""
    files = (file, _beside(file, "partial"), _beside(file, "json"))
    return [path for path in files if path.exists()]


def _beside(file: Path, suffix: str) -> Path:
    return file.with_name(f"{file.name}.{suffix}")


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of FILE.partial: the classes of an image, or why it could not be read."""

    image: str
    predictions: list[Prediction] = field(default_factory=list)
    error: str | None = None


def _row_of(line: bytes, topk: int) -> _Row | None:
    """What a line says; None where it is no whole answer."""
    try:
        row = as_record(parse_json(line, "a line", float), _Row, "a line")
    except FormatError:
        return None
    return row if len(row.predictions) == (topk if row.error is None else 0) else None


def _columns(topk: int) -> dict[str, str]:
    """The columns of a table and their types, by Arrow's names."""
    kinds = {"label": "string", "probability": "float64", "index": "int32", "folder": "string"}
    ranked = {f"{key}_{rank + 1}": kinds[key] for rank in range(topk) for key in kinds}
    return {"image": "string", **ranked, "error": "string"}


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """An answer as the cells of its row; those that it has not are left out."""
    cells = {key: _text(row[key]) for key in ("image", "error") if key in row}
    for rank, prediction in enumerate(row.get("predictions", ())):
        cells |= {
            f"{key}_{rank + 1}": _text(value) if isinstance(value, str) else value
            for key, value in prediction.items()
        }
    return cells


def _text(name: str) -> str:
    """A name that may hold bytes of no encoding, as text."""
    return name.encode("utf-8", "backslashreplace").decode()


def _write_csv(
    stream: IO[bytes], rows: Iterator[dict[str, Any]], settings: Mapping[str, Any]
) -> None:
    with open(stream.fileno(), "w", newline="", encoding="utf-8", closefd=False) as text:
        table = csv.DictWriter(text, list(_columns(settings["topk"])), lineterminator="\n")
        table.writeheader()
        table.writerows(map(_cells, rows))


def _write_parquet(
    stream: IO[bytes], rows: Iterator[dict[str, Any]], settings: Mapping[str, Any]
) -> None:
    import pyarrow
    from pyarrow import parquet

    kinds = _columns(settings["topk"])
    fields = [(name, getattr(pyarrow, kind)()) for name, kind in kinds.items()]
    schema = pyarrow.schema(fields, metadata={"deit_zoo": json.dumps(dict(settings))})
    with parquet.ParquetWriter(stream, schema) as table:
        while group := [_cells(row) for row in islice(rows, ROWS)]:
            table.write_table(pyarrow.Table.from_pylist(group, schema=schema))
