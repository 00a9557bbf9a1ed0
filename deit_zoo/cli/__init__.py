"""The command line. `main` is all that is imported before a Ctrl-C is heeded."""

# Python has loaded it; importing `signal` around it takes fifteen milliseconds.
import _signal  # type: ignore[import-not-found]


def main() -> None:
    """The `deit-zoo` command. Ctrl-C ends it at once until a command begins, and after its end."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    from deit_zoo.cli.app import run

    run()
