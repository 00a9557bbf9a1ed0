"""One thread, a small image folder of real digits, manifests, and a warm process for commands."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import deit_zoo
from deit_zoo.data.digits import digits

ROOT = Path(deit_zoo.__file__).parents[1]
# 320 training images are one sampler unit of 256 and a rest; 60 of other writers validate.
NUM_TRAIN, FIRST_VAL, NUM_VAL = 320, 1437, 60
# Imports everything once and becomes `deit-zoo` again and again: every command is a process of its
# own, which a signal can end, and none pays for the imports.
WARM = """
import json, os, signal, sys
from pathlib import Path
import matplotlib.figure
import torch.utils.tensorboard
from deit_zoo.cli.main import main
from deit_zoo.training import checkpoint_manager, loop
from deit_zoo.training import trainer as run

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def at_call(owner, name, number, act=die):
    "Let `act` come before the call of this number."
    real, calls = getattr(owner, name), iter(range(10**6))
    def called(*values, **options):
        if next(calls) == number:
            act()
        return real(*values, **options)
    setattr(owner, name, called)

for line in sys.stdin:
    asked = json.loads(line)
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
        continue
    for number in (1, 2):
        os.dup2(os.open(asked["files"][number - 1], os.O_CREAT | os.O_WRONLY), number)
    os.environ.update(asked["env"])
    exec(asked["before"])
    sys.argv = ["deit-zoo", *asked["words"]]
    main()
    sys.exit(0)
"""


@dataclass(frozen=True)
class Done:
    """How a command ended: its exit status, negative for a signal, and what it said."""

    status: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """Run `deit-zoo` with these words in a process; `before` is Python that runs in it first."""
    folder = tmp_path_factory.mktemp("commands")
    warm = subprocess.Popen(
        [sys.executable, "-c", WARM],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert warm.stdin
    assert warm.stdout

    def run(*words: str | Path, before: str = "", **env: str | Path) -> Done:
        files = [folder / "out", folder / "err"]
        for file in files:
            file.write_text("")
        asked = {
            "words": [str(word) for word in words],
            "before": before,
            "env": {name: str(value) for name, value in env.items()},
            "files": [str(file) for file in files],
        }
        print(json.dumps(asked), file=warm.stdin, flush=True)
        status = int(warm.stdout.readline())
        return Done(status, *(file.read_text(encoding="utf-8") for file in files))

    yield run
    warm.stdin.close()
    assert warm.wait(timeout=60) == 0
    warm.stdout.close()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from more threads; a run that sets their number is undone."""
    held = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(held)


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train/` with 320 digits and `val/` with 60, every class in both."""
    folder = tmp_path_factory.mktemp("digits")
    for number, (image, label) in enumerate(digits()):
        split = "train" if number < NUM_TRAIN else "val"
        if number < NUM_TRAIN or FIRST_VAL <= number < FIRST_VAL + NUM_VAL:
            place = folder / split / label
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{number:04d}.png")
    return folder


@pytest.fixture(scope="session")
def manifest_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float | None], Path]:
    """Write a manifest of `deit_pico_digits` alone, published with a top-1 or without."""

    def written(top1: float | None) -> Path:
        metric: dict[str, Any] = {"top1": top1, "top5": None, "loss": None, "source": "a test"}
        record = {
            "sources": [{"kind": "builtin", "filename": "none.safetensors", "sha256": "0" * 64}],
            "num_params": 1,
            "num_classes": 10,
            "labels": "digits",
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "metrics": {"digits_val": metric},
            "origin": "reproduced",
            "license": "apache-2.0",
            "paper": None,
            "log": "none.jsonl",
        }
        file = tmp_path_factory.mktemp("manifest") / "manifest.json"
        held = {"schema_version": 1, "checkpoints": {"deit_pico_digits": record}}
        file.write_text(json.dumps(held), encoding="utf-8")
        return file

    return written
