"""The command line. `main` is all that is imported before a Ctrl-C is heeded."""

import signal


def main() -> None:
    """The `deit-zoo` command. Ctrl-C ends it at once until a command begins, and after its end."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from deit_zoo.cli.app import run

    run()
