"""How every command talks: data to stdout, talk to stderr; one table, one bar, one JSON."""

from __future__ import annotations

import codecs
import json
import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from textwrap import wrap
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from deit_zoo import terminal
from deit_zoo.errors import DataError, ZooError
from deit_zoo.files import check_new_file, writing
from deit_zoo.registry.names import is_path, resolve
from deit_zoo.terminal import Terminal, one_line

out = Terminal()
talk = Terminal(stderr=True)
NARROWEST = 20  # that a column of text gets
LINE = 100  # columns, where no terminal says how many there are
ALIKE = str.maketrans(
    {"–": "-", "—": "-", "…": "...", "·": ".", "×": "x", "°": "deg", "’": "'", "µ": "u", "→": "->"}
)
PNG = b"\x89PNG\r\n\x1a\n"


def chosen_device(device: str) -> str:
    """The device that was typed, by its full name, which is said unless it is the CPU.

    On the CPU torch takes no more threads than there are cores for this process.
    """
    import torch

    from deit_zoo.machine import usable_cores, usable_device

    place = usable_device(device)
    if place.type != "cpu":
        talk.print(f"on {place}")
    elif torch.get_num_threads() > usable_cores():  # torch knows of no cgroup
        torch.set_num_threads(usable_cores())
    return str(place)


def say_model(name: str) -> None:
    """Say which model a name means, unless it is the model's own."""
    if not is_path(name) and (implied := resolve(name).name) != name.lower():
        talk.print(f"model: {implied}")


def survive_any_console() -> None:
    """What a console or a pipe has no character for is written in those that it has.

    Raises ZooError where stdout is closed.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        raise ZooError("stdout is closed, where the answer goes; type > FILE, or > /dev/null")
    codecs.register_error("spelled", _spelled)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="spelled")


def _spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    """A character in ASCII: one that is alike, else its number."""
    assert isinstance(error, UnicodeEncodeError), error
    letters = error.object[error.start : error.end].translate(ALIKE)
    return letters.encode("ascii", "backslashreplace").decode("ascii"), error.end


def print_json(value: Any) -> None:
    """Data, for programs."""
    text = json.dumps(value, indent=2, ensure_ascii=not is_unicode())
    sys.stdout.write(re.sub("[\x7f-\x9f]", lambda sign: f"\\u{ord(sign[0]):04x}", text) + "\n")


def is_unicode() -> bool:
    """Whether stdout has every character."""
    return (sys.stdout.encoding or "ascii").lower().replace("-", "") == "utf8"


def print_error(error: object, label: str = "error") -> None:
    """A sentence on what went wrong."""
    talk.print(f"[bold red]{label}:[/] {escape(one_line(str(error)))}")


def line_width() -> int:
    """The columns of the terminal, or as many as a page has."""
    return out.width if out.is_terminal else LINE


def print_rows(
    console: Console, rows: Sequence[tuple[str, str]], *, width: int | None = None
) -> None:
    """Labels and values in two columns; on a terminal, and where a width is given, a long value
    wraps within its own."""
    if width is None and console.is_terminal:
        width = console.width
    indent = max(len(label) for label, _ in rows) + 2
    for label, value in rows:
        lines = [value := one_line(value)]
        if width is not None:
            room = max(NARROWEST, width - indent)
            lines = wrap(value, room, break_long_words=False, break_on_hyphens=False) or [""]
        text = f"\n{' ' * indent}".join(map(escape, lines))
        console.print(f"[bold]{escape(f'{one_line(label):<{indent}}')}[/]{text}", soft_wrap=True)


def print_table(
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[int] = (),
    styles: Mapping[str, str] | None = None,
) -> None:
    """Rows under a bold heading; columns `right` are flush right, cells in `styles` coloured.

    The last column, mostly paths, is left whole however long it is.
    """
    cells = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    for number, row in enumerate(cells):
        line = Text()
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            padding = " " * (width - cell_len(cell))
            line.append(padding if column in right else "")
            line.append(cell, (styles or {}).get(cell, "") if number else "bold")
            line.append("  " if column in right else f"{padding}  ")
        line.rstrip()
        out.print(line, soft_wrap=True)


class Bar(terminal.Bar):
    """A progress bar above which the talk of a command goes on."""

    def __init__(self, what: str, *, size: int | None = None) -> None:
        super().__init__(what, size=size, console=talk)


def ignore(*_: object) -> None:
    """The talk of a process that is not the first: none."""


def check_output(
    file: Path, option: str = "--output", *, suffix: str = ".png", begins: bytes = PNG
) -> None:
    """Raises DataError where a picture, or what else begins so, must not or cannot be put."""
    check_new_file(file, (suffix,), option)
    if not file.exists():
        return
    with writing(file, option), file.open("rb") as stream:
        beginning = stream.read(len(begins))
    if beginning != begins:
        kind = "PNG" if begins == PNG else "file of this command"
        raise DataError(f"{file} is there and no {kind}; give another {option}")
