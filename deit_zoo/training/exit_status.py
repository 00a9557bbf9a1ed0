"""How a run of many processes ended, left by the first for the one that started them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deit_zoo import errors
from deit_zoo.errors import ZooError
from deit_zoo.files import write_whole

OUTCOME_FILE = ".outcome.json"


def leave(output: Path, **facts: Any) -> None:
    """Say how it ended: `done=True`, `signal=NUMBER`, or `error=[kind, sentence]`."""
    write_whole(output / OUTCOME_FILE, json.dumps(facts).encode())


def left(output: Path) -> dict[str, Any]:
    """What was said; empty where nothing was."""
    file = output / OUTCOME_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def clear(output: Path) -> None:
    """Forget how an earlier run ended."""
    (output / OUTCOME_FILE).unlink(missing_ok=True)


def told_error(facts: dict[str, Any]) -> ZooError | None:
    """The error that ended the run, as it was raised there."""
    if "error" not in facts:
        return None
    kind, sentence = facts["error"]
    error: ZooError = getattr(errors, kind, ZooError)(sentence)
    return error
