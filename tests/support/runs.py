"""Short runs of the embedded digits' recipe, what a run has left, and digits as folders for one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deit_zoo.data.digits import digits
from deit_zoo.runs.receipt import Verdict
from deit_zoo.training.launch import reproduce

FIRST_VAL = 1437  # from here on the digits are other writers'
# What lies in the folder of a run that has ended.
LEFT = [
    "best",
    "config.json",
    "curve.png",
    "log.jsonl",
    "model.safetensors",
    "plan.json",
    "receipt.json",
    "state",
    "steps.jsonl",
    "tensorboard",
]


def train(fixed: Sequence[str], output: Path, data: Path, *more: str, **options: Any) -> Verdict:
    """A run in this process, with the changes of a file of tests and `more` of its own."""
    options = {"workers": 0} | options
    changes = (*fixed, *more)
    return reproduce(
        "deit_pico_digits", gpus=0, output=output, data=data, changes=changes, **options
    )


def words_of(fixed: Sequence[str], output: Path, data: Path, *more: str) -> list[str]:
    """The same run, as typed."""
    settings = [part for change in (*fixed, *more) for part in ("--set", change)]
    paths = ["--data", str(data), "--output", str(output)]
    return ["reproduce", "deit_pico_digits", "--gpus", "0", "--workers", "0", *paths, *settings]


def strict_json(text: str) -> Any:
    """JSON as the standard has it, without NaN."""
    return json.loads(text, parse_constant=pytest.fail)


def log_of(output: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl."""
    return [strict_json(line) for line in (output / "log.jsonl").read_text().splitlines()]


def receipt_of(output: Path) -> dict[str, Any]:
    """What receipt.json says."""
    receipt: dict[str, Any] = strict_json((output / "receipt.json").read_text(encoding="utf-8"))
    return receipt


def sha256(file: Path) -> str:
    """The digest of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def sha256_of(output: Path) -> str:
    """The digest of a run's weights."""
    return sha256(output / "model.safetensors")


def digits_of(folder: Path, classes: str, train: int, val: int | None = None) -> Path:
    """So many digits of each class in `train` and in `val`; None are all there are."""
    counts: dict[tuple[str, str], int] = {}
    for number, (image, label) in enumerate(digits()):
        split, most = ("train", train) if number < FIRST_VAL else ("val", val)
        counts[split, label] = counts.get((split, label), 0) + 1
        if label in classes and (most is None or counts[split, label] <= most):
            place = folder / split / label
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{number:04d}.png")
    return folder
