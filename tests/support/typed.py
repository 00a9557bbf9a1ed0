"""Commands in this process, as a user types them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from deit_zoo.errors import ZooError


class Done(NamedTuple):
    """How a command ended, and the error that it raised."""

    status: int
    out: str
    err: str
    error: str | None


@pytest.fixture
def typed(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Done]:
    """Run a command of the module's `app` in an empty folder, on a terminal of 80 columns."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words: str | Path, stdin: bytes = b"") -> Done:
        done = CliRunner().invoke(request.module.app, [str(word) for word in words], input=stdin)
        error = done.exception
        assert error is None or isinstance(error, ZooError | SystemExit), error
        said = str(error) if isinstance(error, ZooError) else None
        return Done(done.exit_code, done.stdout, done.stderr, said)

    return run
