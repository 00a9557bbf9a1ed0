"""One thread, a small image folder of real digits, manifests, and training commands."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from deit_zoo.data.digits import digits
from support.command import ROOT, Done, run_python

# 320 training images are one sampler unit of 256 and a rest; 60 of other writers validate.
NUM_TRAIN, FIRST_VAL, NUM_VAL = 320, 1437, 60
# Runs some Python and then `deit-zoo`.
HOOKED = """
import json, os, signal, sys
from pathlib import Path
from deit_zoo.cli import main
from deit_zoo.training import checkpoint, loop
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

def wait_for_states():
    "Let each state be written before the run goes on, so that a process dies at the same place."
    save = checkpoint.CheckpointManager.save
    checkpoint.CheckpointManager.save = lambda manager: (save(manager), manager.wait())

"""
Command = Callable[..., Done]


@pytest.fixture(scope="session")
def command() -> Command:
    """Run `deit-zoo` with these words in a process; `before` is Python that runs in it first."""

    def typed(*words: str | Path, before: str = "", **env: str | Path) -> Done:
        code = f"{HOOKED}{before}\nsys.argv[0] = 'deit-zoo'\nmain()"
        more = {name: str(value) for name, value in env.items()}
        done = run_python(["-c", code, *words], server="training", cwd=ROOT, env=os.environ | more)
        return Done(done.returncode, done.stdout, done.stderr)

    return typed


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
