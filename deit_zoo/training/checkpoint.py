"""The state to continue a run from: safetensors and JSON, no pickle, whole or not there.

Draws are functions of their place, so weights, optimizer and the place are all there is. A file's
name ends in the first digits of its SHA-256: a torn or flipped state is known before it is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.optim import Optimizer

from deit_zoo.errors import CheckpointError
from deit_zoo.files import digest, write_whole
from deit_zoo.models.layers import ZooModel
from deit_zoo.weights.load import METADATA_KEY, read_tensors

FOLDER = "state"
KEPT = 2
DIGITS = 16  # of the SHA-256, in a file's name


class Average(Protocol):
    """An average of the weights that a run keeps beside them."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What training changes, and a state therefore holds."""

    model: ZooModel
    optimizer: Optimizer
    ema: Average | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a run is: finished epochs, finished steps of the next, and what was counted so far."""

    epoch: int = 0
    step: int = 0
    facts: dict[str, Any] | None = None


def save_state(output: Path, place: Place, trained: Trained, recipe_sha256: str) -> Path:
    """Write what continues a run from `place`; the two last states are kept.

    Where the disk is full, the older of them is given up for it. Raises OSError, with the last
    state still there, where that is not enough.
    """
    try:
        return _write_state(output, place, trained, recipe_sha256)
    except OSError:
        older = states(output)[:-1]
        if not older:
            raise
        for state in older:
            state.unlink()
        return _write_state(output, place, trained, recipe_sha256)


def _write_state(output: Path, place: Place, trained: Trained, recipe_sha256: str) -> Path:
    folder = output / FOLDER
    folder.mkdir(exist_ok=True)
    facts = {
        "epoch": place.epoch,
        "step": place.step,
        "facts": place.facts,
        "recipe_sha256": recipe_sha256,
    }
    text = json.dumps(facts, sort_keys=True)
    data = to_bytes(_tensors(trained), metadata={METADATA_KEY: text})
    for torn in folder.glob(".epoch-*"):  # of a process that was killed while it wrote
        torn.unlink()
    where = f"epoch-{place.epoch:05d}-step-{place.step:06d}"
    file = folder / f"{where}-{hashlib.sha256(data).hexdigest()[:DIGITS]}.safetensors"
    write_whole(file, data)
    others = [state for state in states(output) if state != file]
    # What lies beyond this place was left by a run that went back from there.
    stale = [state for state in others if state.name >= where]
    for old in stale + [state for state in others if state not in stale][: 1 - KEPT]:
        old.unlink(missing_ok=True)
    return file


def states(output: Path) -> list[Path]:
    """The states of a run, the one that is furthest last."""
    return sorted((output / FOLDER).glob("epoch-*.safetensors"))


def newest(output: Path, say: Callable[[str], None]) -> Path | None:
    """The furthest state that is whole, None before the first; a broken one is spoken of.

    Raises CheckpointError where states were left and none is whole.
    """
    broken: list[Path] = []
    for file in reversed(states(output)):
        if digest(file)[:DIGITS] == file.stem.rpartition("-")[2]:
            for other in broken:  # or it would be kept in place of a whole one
                other.unlink()
            return file
        say(f"{file} is torn or altered (its SHA-256 is not the one in its name); not used")
        broken.append(file)
    if broken:
        raise CheckpointError(
            f"no state in {output / FOLDER} is whole; remove {output} to begin again"
        )
    return None


def load_state(file: Path, trained: Trained, recipe_sha256: str) -> Place:
    """Put a state back. Raises CheckpointError where another recipe left it."""
    tensors = read_tensors(file)
    with safe_open(file, framework="pt") as stored:
        facts: dict[str, Any] = json.loads(stored.metadata()[METADATA_KEY])
    if facts["recipe_sha256"] != recipe_sha256:
        raise CheckpointError(
            f"{file} was left by another recipe; give a new --output, or the same recipe and --set"
        )
    trained.model.load_state_dict(_part(tensors, "model."), strict=True)
    held: dict[int, dict[str, Tensor]] = {}
    for key, value in _part(tensors, "optimizer.").items():
        number, name = key.split(".")
        held.setdefault(int(number), {})[name] = value.clone()
    optimizer = trained.optimizer
    optimizer.load_state_dict(optimizer.state_dict() | {"state": held})
    if trained.ema is not None:
        trained.ema.load_state_dict(_part(tensors, "ema."))
    return Place(epoch=facts["epoch"], step=facts["step"], facts=facts["facts"])


def _tensors(trained: Trained) -> dict[str, Tensor]:
    tensors = {f"model.{key}": value for key, value in trained.model.state_dict().items()}
    for number, state in trained.optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer.{number}.{key}"] = torch.as_tensor(value)
    if trained.ema is not None:
        tensors |= {f"ema.{key}": value for key, value in trained.ema.state_dict().items()}
    return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    size = len(prefix)
    return {key[size:]: value for key, value in tensors.items() if key.startswith(prefix)}
