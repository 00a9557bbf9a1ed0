"""A console whose sentences fit the screen: on a terminal they wrap between words, and in a pipe
nowhere, so that a program reads whole lines."""

from __future__ import annotations

import re
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import ProgressColumn, Task
from rich.text import Text

from deit_zoo.errors import redact

# What moves the cursor, rings, recolours, or turns round the order of signs.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """A text that only a reader acts on: names and labels of others may hold anything."""
    return _CONTROL.sub(lambda sign: sign[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """A name or a label as a part of a line."""
    return printable(text).replace("\n", r"\n").replace("\t", r"\t")


class Terminal(Console):
    """A word that is longer than a line, mostly a path, is left whole, for copying."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As Console does, but of a text only what can be read; secrets do not go to stderr."""
        hide = redact if self.stderr else str
        objects = tuple(printable(hide(one)) if isinstance(one, str) else one for one in objects)
        if self.is_terminal and "soft_wrap" not in options:
            objects = tuple(
                self._fitted(one, options.get("markup")) if isinstance(one, str) else one
                for one in objects
            )
        super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Whoever reads has read enough: the command says what that means, not rich."""
        raise BrokenPipeError

    def _fitted(self, text: str, markup: bool | None) -> Text:
        """A text with an end of line wherever the screen would break a word."""
        lines: list[Text] = []
        for line in self.render_str(text, markup=markup).split("\n", allow_blank=True):
            for piece in line.divide(_breaks(line.plain, self.width)):
                piece.rstrip()
                lines.append(piece)
        return Text("\n").join(lines)


def _breaks(line: str, width: int) -> list[int]:
    """Where a line is to be broken so that it fits, each before a word."""
    breaks, start = [], 0
    for word in re.finditer(r"\S+", line):
        if line[start : word.start()].strip() and cell_len(line[start : word.end()]) > width:
            start = word.start()
            breaks.append(start)
    return breaks


class TimeLeft(ProgressColumn):
    """How long a bar still takes: `8:35 left`."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """Nothing while nobody knows."""
        left = task.time_remaining
        return Text("" if left is None else f"{clock(left)} left", style="progress.remaining")


def clock(seconds: float) -> str:
    """A time as it is read off a watch: 8:35, 2:08:35; of days, 3 d 4 h."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
