"""What the machine or a library refuses becomes a sentence here, whichever command is run."""

from __future__ import annotations

import errno
import inspect
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from deit_zoo.cli.console import print_error
from deit_zoo.errors import ZooError

# What other programs call what is done here.
OTHER_WORDS = {
    "train": "finetune or deit-zoo reproduce",
    "predict": "classify",
    "infer": "classify",
    "val": "evaluate",
    "test": "evaluate",
    "download": "weights fetch",
    "upload": "weights publish",
    "models": "list",
    "help": "--help",
    "version": "--version",
}


class Commands(TyperGroup):
    """Commands whose help is broken into lines by the terminal alone."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command; rich would end its lines where those of the source end."""
        if (command := super().get_command(ctx, cmd_name)) and command.help:
            paragraphs = inspect.cleandoc(command.help).split("\n\n")
            command.help = "\n\n".join(
                text if text.startswith("\b") else " ".join(text.split()) for text in paragraphs
            )
        return command


class Program(Commands):
    """The commands. Of what they raise, only ZooError and our own mistakes leave it."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the program and end it. Raises ZooError for what typer refuses of what was typed."""
        try:
            sys.exit(super().main(*args, **options | {"standalone_mode": False}))
        except typer.TyperException as error:
            if not (text := error.format_message().replace("Value error, ", "")):  # no word at all
                sys.exit(error.exit_code)
            context = getattr(error, "ctx", None) or typer.Context(self, info_name="deit-zoo")
            cure = f"{context.command_path} -h says what can be typed"
            if words := (context.command.epilog or "").partition("Example: ")[2]:
                cure = f"type as in {words}; {cure}"
            raise ZooError(f"{text[0].lower()}{text[1:].rstrip('.?')}; {cure}") from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that was typed. Raises ZooError for another program's word for it."""
        if args and args[0] in OTHER_WORDS:
            raise ZooError(f"no command is {args[0]!r}; type deit-zoo {OTHER_WORDS[args[0]]}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was typed."""
        try:
            with _interrupts():
                return super().invoke(ctx)
        except BrokenPipeError:  # `| head` has read enough
            raise typer.Exit(0) from None
        except (OSError, ValueError, OverflowError, MemoryError, RuntimeError) as error:
            if (text := sentence(error)) is None:
                raise
            raise ZooError(text) from error


def sentence(error: Exception) -> str | None:
    """What a person can do about an error; None where it is a mistake of ours."""
    if isinstance(error, OSError):
        if isinstance(error, FileNotFoundError) and _is_folder_gone():
            return "the folder that this was typed in is gone; type it in another"
        reason = error.strerror or str(error) or type(error).__name__
        where = error.filename if error.filename2 is None else error.filename2
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            cure = "make room, or write elsewhere"
        else:
            cure = "give another path, or mend this one" if where else "mend this and try again"
        subject = os.fsdecode(where) if isinstance(where, bytes) else where
        return f"{'the system' if subject is None else subject} says {reason!r}; {cure}"
    if isinstance(error, MemoryError):
        return f"there is not enough memory ({error}); give smaller numbers"
    if isinstance(error, OverflowError):
        return f"a number is too large ({error}); give a smaller one"
    if isinstance(error, UnicodeError):
        return f"a text or a name is not in the encoding that it should have ({error}); rename it"
    if isinstance(error, RuntimeError):  # as Path.resolve has it, before Python 3.13
        is_circle = str(error).startswith("Symlink loop")
        return f"{error}; give another path, or mend this one" if is_circle else None
    # What a library has a class of its own for is what it was given; a bare ValueError is ours.
    return f"{error}; give another value" if type(error) is not ValueError else None


def _is_folder_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def end_output(status: str | int | None) -> str | int | None:
    """The exit status once stdout and stderr have all that was written to them."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            # Python would try again at its end, and show a traceback.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if stream is sys.stdout and not isinstance(error, BrokenPipeError):
                print_error(f"{stream.name} cannot be written ({error.strerror})")
                status = status or 2
    return status


@contextmanager
def _interrupts() -> Iterator[None]:
    """Within it Ctrl-C is a KeyboardInterrupt, so that a command can tidy up."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_DFL:
        yield
        return
    sys.unraisablehook = _die_of_interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _die_of_interrupt(unraisable: sys.UnraisableHookArgs) -> None:
    """A Ctrl-C that comes in a destructor, from where nothing can be raised, would not be heard.

    The import system has such places. What is half written has no name yet.
    """
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    sys.__unraisablehook__(unraisable)
