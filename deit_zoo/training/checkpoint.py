"""The state to continue a run from: safetensors and JSON, no pickle, whole or not there.

Draws are functions of their place, so weights, optimizer and epoch number are all there is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.optim import Optimizer

from deit_zoo.errors import CheckpointError
from deit_zoo.files import write_whole
from deit_zoo.models.layers import ZooModel
from deit_zoo.weights import METADATA_KEY, read

FOLDER = "state"
KEPT = 2


def save_state(
    output: Path, epoch: int, model: ZooModel, optimizer: Optimizer, recipe_sha256: str
) -> None:
    """Write what continues a run after `epoch` finished epochs; the two last states are kept."""
    folder = output / FOLDER
    folder.mkdir(exist_ok=True)
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer.{number}.{key}"] = torch.as_tensor(value)
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    facts = json.dumps({"epoch": epoch, "recipe_sha256": recipe_sha256}, sort_keys=True)
    write_whole(_file(output, epoch), to_bytes(tensors, metadata={METADATA_KEY: facts}))
    for old in states(output)[:-KEPT]:
        old.unlink()


def load_state(file: Path, model: ZooModel, optimizer: Optimizer, recipe_sha256: str) -> int:
    """Put a state back; returns the number of finished epochs.

    Raises CheckpointError where another recipe left it, or where it is not whole.
    """
    tensors = read(file)
    with safe_open(file, framework="pt") as stored:
        facts: dict[str, Any] = json.loads(stored.metadata()[METADATA_KEY])
    if facts["recipe_sha256"] != recipe_sha256:
        raise CheckpointError(
            f"{file} was left by another recipe; give a new --output, or the same recipe and --set"
        )
    model.load_state_dict(_part(tensors, "model."), strict=True)
    held: dict[int, dict[str, Tensor]] = {}
    for key, value in _part(tensors, "optimizer.").items():
        number, name = key.split(".")
        held.setdefault(int(number), {})[name] = value.clone()
    optimizer.load_state_dict(optimizer.state_dict() | {"state": held})
    return int(facts["epoch"])


def states(output: Path) -> list[Path]:
    """The states of a run, oldest first."""
    return sorted((output / FOLDER).glob("epoch-*.safetensors"))


def _file(output: Path, epoch: int) -> Path:
    return output / FOLDER / f"epoch-{epoch:05d}.safetensors"


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    size = len(prefix)
    return {key[size:]: value for key, value in tensors.items() if key.startswith(prefix)}
