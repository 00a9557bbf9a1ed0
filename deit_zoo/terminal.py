"""What a person watches: sentences that fit the screen, and progress bars.

On a terminal sentences wrap between words, and in a pipe nowhere, so that a program reads whole
lines; a bar is shown on a terminal and in a notebook, and nowhere else.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape as html_escape
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import ProgressColumn, Task
from rich.text import Text

from deit_zoo.errors import redact

REDRAW_SECONDS = 0.5
WIDTH = 80  # where nobody says another
# What moves the cursor, rings, recolours, turns round the order of signs, or hides among them.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    """A text that only a reader acts on: names and labels of others may hold anything."""
    return _CONTROL.sub(lambda sign: sign[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """A name or a label as a part of a line."""
    return printable(text).replace("\n", r"\n").replace("\t", r"\t")


class Terminal(Console):
    """A word that is longer than a line, mostly a path, is left whole, for copying.

    Nothing of it is coloured, or taken for the name of a picture as `:x:`, unless markup says so.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, emoji=False, soft_wrap=True, **options)
        if self.width < 1:  # as COLUMNS=0 says, of which rich makes nothing at all
            self.width = WIDTH

    def print(self, *objects: Any, **options: Any) -> None:
        """As Console does, but of a text only what can be read; secrets do not go to stderr, and
        nobody dies of talk that a full disk or a closed pipe does not take."""
        hide = redact if self.stderr else str
        objects = tuple(printable(hide(one)) if isinstance(one, str) else one for one in objects)
        if self.is_terminal and "soft_wrap" not in options:
            objects = tuple(
                self._fitted(one, options.get("markup")) if isinstance(one, str) else one
                for one in objects
            )
        try:
            super().print(*objects, **options)
        except OSError:
            if not self.stderr:
                raise
            del self._buffer[:]  # rich would write it again before whatever comes next

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


class Cell:
    """A bar in a notebook's cell, redrawn some times a second and gone at the end.

    Elsewhere there is none. rich would need ipywidgets, which many notebooks have not.
    """

    def __init__(self) -> None:
        shell = (ipython := sys.modules.get("IPython")) and ipython.get_ipython()
        self.active = getattr(shell, "kernel", None) is not None  # whose cells show HTML
        self.handle: Any = None
        self.drawn = time.monotonic()  # what is done at once needs none

    def show(self, task: Task, *figures: str) -> None:
        """Draw it, unless it was drawn just now."""
        if not self.active or (now := time.monotonic()) - self.drawn < REDRAW_SECONDS:
            return
        from IPython.display import HTML, display

        self.drawn = now
        left = task.time_remaining
        words = [*figures, "" if left is None else f"{clock(left)} left"]
        most = "" if task.total is None else f'value="{task.completed}" max="{task.total}"'
        html = HTML(f"<progress {most}></progress> <small>{html_escape('  '.join(words))}</small>")
        if self.handle is None:
            self.handle = display(html, display_id=True)
        else:
            self.handle.update(html)

    def clear(self) -> None:
        """Take it away."""
        if self.handle is not None:
            from IPython.display import HTML

            self.handle.update(HTML(""))


class Bar:
    """A progress bar where a person watches; called with (done, total).

    With `size`, a number of bytes of which `done` are there, it is moved on by `advance`; so it is
    `in_bytes` where nobody knows how many come.
    """

    def __init__(
        self,
        what: str,
        *,
        size: int | None = None,
        done: int = 0,
        in_bytes: bool = False,
        console: Console | None = None,
    ) -> None:
        from rich import progress as rich

        self.what = what
        self.done, self.total = done, size
        columns: tuple[rich.ProgressColumn, ...] = (
            rich.MofNCompleteColumn(),
            TimeLeft(),
            rich.TextColumn("{task.fields[speed]}", markup=False),
        )
        if in_bytes or size is not None:
            columns = (rich.DownloadColumn(), rich.TransferSpeedColumn())
        console = console or Terminal(stderr=True)
        self.progress = rich.Progress(
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(),
            *columns,
            console=console,
            transient=True,
            disable=not console.is_terminal,
            # A bar would take what is printed to stdout to where it stands itself.
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        )
        self.task = self.progress.add_task(what, total=size, completed=done, speed="")
        self.cell = Cell()

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        self.cell.clear()

    def __call__(self, done: int, total: int | None = None) -> None:
        self.done, self.total = done, total
        self.progress.update(self.task, completed=done, total=total)
        task = self.progress.tasks[0]
        if task.speed:
            self.progress.update(self.task, speed=f"{task.speed:,.0f} {self.what}/s")
        self._show()

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Within it the bar is away, for what goes to stdout would end up on its line."""
        if self.progress.disable:
            yield
            return
        self.progress.stop()
        try:
            yield
        finally:
            self.progress.start()

    def advance(self, count: int) -> None:
        """So many more are done."""
        self.done += count
        self.progress.advance(self.task, count)
        self._show()

    def _show(self) -> None:
        of = "" if self.total is None else f" of {self.total:,}"
        task = self.progress.tasks[0]
        self.cell.show(task, f"{self.what} {self.done:,}{of}", task.fields["speed"])


@contextmanager
def watched(
    what: str, progress: Callable[[int, Any], None] | None, *, quiet: bool = False
) -> Iterator[Callable[[int, Any], None]]:
    """Within it, what to call with (done, total): the caller's own, or a bar unless `quiet`."""
    if progress is not None or quiet:
        yield progress or (lambda done, total: None)
        return
    with Bar(what) as bar:
        yield bar
