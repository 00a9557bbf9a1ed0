"""Sentences on a screen of few columns, and in a pipe."""

from __future__ import annotations

import errno
import os
import sys
from io import StringIO

import pytest

from deit_zoo.cli.console import print_rows, print_table
from deit_zoo.terminal import Bar, Terminal, clock

SENTENCE = "the quick brown fox jumps over /a/path/that/is/longer/than/the/screen and sleeps"


def console(*, terminal: bool, width: int = 20) -> tuple[Terminal, StringIO]:
    stream = StringIO()
    return Terminal(file=stream, force_terminal=terminal, width=width, color_system=None), stream


def test_a_terminal_breaks_between_words_and_leaves_a_long_path_whole() -> None:
    screen, stream = console(terminal=True)
    screen.print(SENTENCE)
    assert stream.getvalue().splitlines() == [
        "the quick brown fox",
        "jumps over",
        "/a/path/that/is/longer/than/the/screen",
        "and sleeps",
    ]


def test_talk_that_nobody_takes_ends_nothing_and_data_does() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for place, error in ((writer, BrokenPipeError), ("/dev/full", OSError)):
        stream = open(place, "w")  # noqa: SIM115
        Terminal(stderr=True, file=stream).print(SENTENCE)
        with pytest.raises(error):
            Terminal(file=stream).print(SENTENCE)
        with pytest.raises(error):
            stream.close()


def test_what_was_not_taken_is_not_said_again_before_each_sentence_that_follows() -> None:
    class Full(StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    stream = Full()
    talk = Terminal(stderr=True, file=stream)
    for sentence in ("one", "two", "three"):
        talk.print(sentence)
    assert stream.getvalue().split() == ["one", "two", "three"]


def test_a_program_without_streams_has_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    # As under pythonw, or in a service.
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with Bar("images") as bar:
        bar(1, 2)
    assert (bar.done, bar.total) == (1, 2)


def test_a_bar_counts_on_a_terminal_and_is_silent_in_a_pipe() -> None:
    shown = {}
    for terminal in (True, False):
        screen, stream = console(terminal=terminal, width=60)
        with Bar("images", console=screen) as bar:
            bar(1, 2)
            bar(2, 2)
        shown[terminal] = stream.getvalue()
    assert "2/2" in shown[True]
    assert shown[False] == ""


def test_a_pipe_gets_whole_lines() -> None:
    pipe, stream = console(terminal=False)
    pipe.print(SENTENCE)
    print_rows(pipe, [("label", SENTENCE)])
    assert stream.getvalue() == f"{SENTENCE}\nlabel  {SENTENCE}\n"


def test_a_name_is_told_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    # rich draws a picture for `:fire:`, and doubles a backslash at the end.
    print_table([("run", "of"), ("a:fire:", "[b]\\"), ("猫\\", "x")])
    assert capsys.readouterr().out == "run      of\na:fire:  [b]\\\n猫\\      x\n"


def test_a_screen_of_no_columns_shows_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    stream = StringIO()
    Terminal(file=stream).print("hello")
    assert stream.getvalue() == "hello\n"


def test_wide_letters_count_double_and_ends_of_lines_stay() -> None:
    screen, stream = console(terminal=True, width=10)
    screen.print("猫猫 猫猫 猫猫\n\n  [bold]end[/]")
    assert stream.getvalue() == "猫猫 猫猫\n猫猫\n\n  end\n"


def test_a_value_wraps_within_its_column() -> None:
    screen, stream = console(terminal=True, width=30)
    print_rows(screen, [("data", "a b"), ("length", "ten words that are too long for it [x]")])
    assert stream.getvalue().splitlines() == [
        "data    a b",
        "length  ten words that are too",
        "        long for it [x]",
    ]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(6.2, "0:06"), (515, "8:35"), (7715, "2:08:35"), (3599.6, "1:00:00"), (273_600, "3 d 4 h")],
)
def test_a_time_is_read_as_on_a_watch(seconds: float, told: str) -> None:
    assert clock(seconds) == told
