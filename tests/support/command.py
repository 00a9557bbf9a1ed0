"""`deit-zoo` as a process beside a loopback Hub, and manifests for it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from deit_zoo.manifest import manifest_path


class Done(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


def deit_zoo(*arguments: str | Path, env: dict[str, str], cwd: Path | None = None) -> Done:
    """Run `deit-zoo` with some variables more and return how it ended."""
    done = subprocess.run(
        [sys.executable, "-m", "deit_zoo", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def python(code: str, *, env: dict[str, str], cwd: Path | None = None) -> str:
    """Run a program that must succeed; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def sentence(done: Done) -> str:
    """The one sentence of a refusal."""
    assert done.status == 2, done
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1, done.err
    return done.err.removeprefix("error: ").strip()


def sha256(data: bytes) -> str:
    """The SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def hub_source(repo_id: str, **facts: Any) -> dict[str, Any]:
    """A source of a manifest record; what is not given is null."""
    known = {"repo_id": repo_id, "filename": "model.safetensors"}
    unknown = dict.fromkeys(("revision", "sha256", "bytes"))
    return {"kind": "hub"} | known | unknown | facts


def write_manifest(file: Path, sources: dict[str, list[dict[str, Any]]]) -> Path:
    """The bundled records of these names, with other sources."""
    bundled = json.loads(manifest_path().read_text(encoding="utf-8"))["checkpoints"]
    records = {name: bundled[name] | {"sources": these} for name, these in sources.items()}
    text = json.dumps({"schema_version": 1, "checkpoints": records}, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
    return file
