"""A request to stop: noted when the signal comes, acted on after the step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

# SIGUSR1 is what Slurm sends ahead of a time limit.
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
# What a closed terminal sends, unless nohup had it ignored.
HANGUP = tuple(getattr(signal, name) for name in ("SIGHUP",) if hasattr(signal, name))
# What a scheduler sends; Ctrl-C raises by itself.
OF_SCHEDULERS = tuple(number for number in SIGNALS if number != signal.SIGINT)


class Interrupted(BaseException):
    """A run ended before its end because it was asked to; its state is on disk.

    No Exception: who waits for a server, or tries something else, must not take it for a failure.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@dataclass
class GracefulStop:
    """The number of the signal that asked to stop, 0 while none has."""

    say: Callable[[str], None]
    number: int = 0

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self._is_last(number):
            raise KeyboardInterrupt
        if number in HANGUP:
            leave_terminal()
        first, self.number = not self.number, self.number or number
        if first:  # what a scheduler sends to all, a launcher passes on as well
            again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            self.say(f"{signal.Signals(number).name}: stopping after this step{again}")

    def _is_last(self, number: int) -> bool:
        """Whether a Ctrl-C follows another signal; torchrun's launcher passes it on as SIGTERM."""
        if "TORCHELASTIC_RUN_ID" in os.environ:
            return self.number == signal.SIGINT and number == signal.SIGTERM
        return self.number != 0 and number == signal.SIGINT


@contextmanager
def handle_signals(say: Callable[[str], None]) -> Iterator[GracefulStop]:
    """Note SIGINT, SIGTERM, SIGUSR1 and SIGHUP instead of dying of them.

    Only the main thread can.
    """
    stop = GracefulStop(say)
    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        heard = [number for number in HANGUP if signal.getsignal(number) is not signal.SIG_IGN]
        previous = {number: signal.signal(number, stop) for number in (*SIGNALS, *heard)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def signals_as_exceptions(
    error_of: Callable[[int], BaseException] = Interrupted,
    numbers: Iterable[int] = OF_SCHEDULERS,
    restored: Iterable[int] = (),
) -> Iterator[None]:
    """Within it each of these signals raises an error, as long as nobody else handles it; where it
    comes again, it does what it does by itself.

    Afterwards all is as before, also of those that are only `restored`. Only the main thread can.
    """

    def raise_signal(number: int, _frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        raise error_of(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in (*numbers, *restored)}
    for number in numbers:
        signal.signal(number, raise_signal)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def leave_terminal() -> None:
    """Where the terminal is gone, what is still said goes nowhere: nobody dies of saying it."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
