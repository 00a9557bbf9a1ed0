"""Logs of one JSON object a line, which can be cut back to where a run continues."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any


def append_line(file: Path, record: dict[str, Any]) -> None:
    """Add a line."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(to_line(record))


def to_line(record: dict[str, Any]) -> str:
    """A record as its line.

    JSON has no NaN: what is not finite is null, and `not_finite` says which it was.
    """
    row = finite(record)
    lost = [name for name in row if row[name] is None and record[name] is not None]
    if lost:
        row["not_finite"] = {name: str(record[name]) for name in lost}
    return json.dumps(row, allow_nan=False) + "\n"


def finite(record: dict[str, Any]) -> dict[str, Any]:
    """The record with None for each number that is not finite."""
    return {
        name: None if isinstance(value, float) and not isfinite(value) else value
        for name, value in record.items()
    }


def first_lines(file: Path, count: int) -> list[str]:
    """The first so many lines, as far as they are there and whole."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return [line for line in lines[:count] if line.endswith("\n")]


def cut_lines(file: Path, stays: Callable[[bytes], bool]) -> list[bytes]:
    """Keep the lines up to the first that does not stay or has no end, and return the others."""
    with file.open("ab+") as stream:
        stream.seek(0)
        end = 0
        for line in stream:
            if not line.endswith(b"\n") or not stays(line):
                break
            end += len(line)
        stream.seek(end)
        if cut := stream.readlines():
            stream.truncate(end)
            os.fsync(stream.fileno())
    return cut
