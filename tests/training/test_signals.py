"""A signal is noted, told and left to the run; the second Ctrl-C is not."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import threading

import pytest

from deit_zoo.training.signals import (
    SIGNALS,
    GracefulStop,
    Interrupted,
    handle_signals,
    signals_as_exceptions,
)


def ignored(_: str) -> None:
    """Hear a sentence and say nothing."""


def test_interrupt_terminate_and_slurms_warning_are_heard() -> None:
    assert set(SIGNALS) == {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (signal.SIGTERM, "SIGTERM: stopping after this step"),
        (signal.SIGUSR1, "SIGUSR1: stopping after this step"),
        (signal.SIGINT, "SIGINT: stopping after this step; Ctrl-C again stops at once"),
    ],
)
def test_a_signal_is_noted_and_told(number: int, sentence: str) -> None:
    told: list[str] = []
    with handle_signals(told.append) as stop:
        assert stop.number == 0
        os.kill(os.getpid(), number)
        assert stop.number == number
    assert told == [sentence]


def test_the_second_interrupt_stops_at_once() -> None:
    with handle_signals(ignored) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT


def test_an_interrupt_after_another_signal_stops_at_once() -> None:
    stop = GracefulStop(ignored)
    stop(signal.SIGTERM, None)
    with pytest.raises(KeyboardInterrupt):
        stop(signal.SIGINT, None)


def test_under_a_launcher_a_second_interrupt_comes_as_a_termination(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    stop = GracefulStop(ignored)
    stop(signal.SIGINT, None)
    stop(signal.SIGINT, None)  # the terminal's, passed on by the launcher as well
    with pytest.raises(KeyboardInterrupt):
        stop(signal.SIGTERM, None)


def test_what_all_have_heard_is_told_once() -> None:
    told: list[str] = []
    stop = GracefulStop(told.append)
    stop(signal.SIGTERM, None)
    stop(signal.SIGTERM, None)
    assert told == ["SIGTERM: stopping after this step"]


def test_slurms_warning_may_come_before_the_end_itself() -> None:
    # At the limit Slurm sends SIGTERM after SIGUSR1: it is no second interrupt.
    with handle_signals(ignored) as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGUSR1


def test_what_was_done_with_signals_before_is_done_again_afterwards() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with contextlib.suppress(Interrupted), handle_signals(ignored) as stop:
        assert [signal.getsignal(number) for number in SIGNALS] == [stop] * len(SIGNALS)
        raise Interrupted(signal.SIGTERM)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_outside_the_main_thread_nothing_is_heard_and_nothing_fails() -> None:
    found: list[int] = []

    def run() -> None:
        with handle_signals(ignored) as stop:
            found.append(stop.number)

    before = [signal.getsignal(number) for number in SIGNALS]
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [0]
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_the_first_step_stops_a_run_as_one_in_mid_run_does(number: int) -> None:
    before = signal.getsignal(number)
    with signals_as_exceptions():
        with handle_signals(ignored) as stop:  # while it trains it is noted
            signal.raise_signal(number)
        assert stop.number == number
        with pytest.raises(Interrupted) as caught:
            signal.raise_signal(number)
    assert caught.value.number == number
    assert signal.getsignal(number) is before


def test_a_stop_says_which_signal_it_was() -> None:
    assert str(Interrupted(signal.SIGUSR1)) == "stopped by SIGUSR1"


def test_a_hangup_is_heard_unless_nohup_had_it_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with handle_signals(ignored) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.number == signal.SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with handle_signals(ignored) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.number == 0
    finally:
        signal.signal(signal.SIGHUP, before)


CLOSED = """
import fcntl, os, sys, termios, time
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from deit_zoo.training.signals import handle_signals
with handle_signals(lambda sentence: print(sentence, file=sys.stderr, flush=True)) as stop:
    os.write(3, b"up")
    while not stop.number:
        time.sleep(0.01)
    print("said", flush=True)
    os.write(3, b"end")
"""


def test_a_run_whose_terminal_is_closed_may_say_what_it_likes() -> None:
    ours, theirs = pty.openpty()
    reading, writing = os.pipe()
    code = CLOSED.replace("os.write(3", f"os.write({writing}")
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, pass_fds=[writing]
    ) as process:
        os.close(theirs)
        os.close(writing)
        assert os.read(reading, 10) == b"up"
        os.close(ours)
        assert os.read(reading, 10) == b"end"
        assert process.wait(60) == 0
    os.close(reading)
