"""The files that a run continues from: what a state holds, and how it is written and read.

A state is safetensors and JSON, no pickle, whole or not there. Draws are functions of their
position, so weights, optimizer and position are all there is. A file's name ends in the first
digits of its SHA-256: a torn or flipped state is known before it is used.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from deit_zoo.errors import CheckpointError, FormatError
from deit_zoo.files import as_record, digest, parse_json, write_whole
from deit_zoo.training.loop import TrainState
from deit_zoo.training.rollback import FOLDER, History
from deit_zoo.weights.formats import read_safetensors
from deit_zoo.weights.metadata import METADATA_KEY

KEEP_LAST = 2
DIGITS = 16  # of the SHA-256, in a file's name
_NAME = re.compile(rf"epoch-(\d{{5,}})-step-(\d{{6,}})-[0-9a-f]{{{DIGITS}}}\.safetensors", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainPosition:
    """Where a run is: finished epochs, finished steps of the next, and what was counted so far."""

    epoch: int = 0
    step: int = 0
    facts: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """What the name of its file begins with; names sort as positions do."""
        return f"epoch-{self.epoch:05d}-step-{self.step:06d}"


def state_tensors(state: TrainState) -> dict[str, Tensor]:
    """All that training changes, by name, where it is."""
    tensors = {f"model.{key}": value for key, value in state.model.state_dict().items()}
    for number, moments in state.optimizer.state_dict()["state"].items():
        for key, value in moments.items():
            tensors[f"optimizer.{number}.{key}"] = torch.as_tensor(value)
    if state.ema is not None:
        averages = state.ema.module.state_dict()
        tensors |= {f"ema.{key}": value for key, value in averages.items()}
    return {key: value.detach() for key, value in tensors.items()}


def snapshot(state: TrainState) -> dict[str, Tensor]:
    """A copy in the CPU's memory, which the next step does not touch."""
    copies = {}
    for key, value in state_tensors(state).items():
        copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        copies[key] = copy.copy_(value, non_blocking=value.is_cuda)
    if state.group.device.type == "cuda":
        torch.cuda.current_stream().synchronize()
    return copies


def not_finite(tensors: dict[str, Tensor]) -> str | None:
    """The name of the first tensor that holds a number that is not finite."""
    floats = (key for key, value in tensors.items() if value.is_floating_point())
    return next((key for key in floats if not bool(tensors[key].isfinite().all())), None)


def save_state(
    output: Path,
    position: TrainPosition,
    tensors: dict[str, Tensor],
    recipe_sha256: str,
    hold: TrainPosition | None = None,
) -> Path:
    """Write what continues a run from `position`; the KEEP_LAST last states are kept.

    Those up to `hold` are kept too. Where the disk is full, the older ones are given up for it.
    Raises OSError, with the last state still there, where that is not enough.
    """
    record = {
        "epoch": position.epoch,
        "step": position.step,
        "facts": position.facts,
        "recipe_sha256": recipe_sha256,
    }
    data = to_bytes(tensors, metadata={METADATA_KEY: json.dumps(record, sort_keys=True)})
    try:
        file = _write_state(output, position, data)
    except OSError:
        older = states(output)[:-1]
        if not older:
            raise
        for other in older:
            other.unlink()
        file = _write_state(output, position, data)
    # What lies beyond this position was left by a run that went back from there.
    earlier = [other for other in states(output) if other.name < position.name]
    kept = [file, *earlier[1 - KEEP_LAST :]]
    if hold is not None:
        kept += [other for other in earlier if position_of(other) <= (hold.epoch, hold.step)]
    for other in states(output):
        if other not in kept:
            other.unlink(missing_ok=True)
    return file


def _write_state(output: Path, position: TrainPosition, data: bytes) -> Path:
    folder = output / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for torn in folder.glob(".epoch-*"):  # of a process that was killed while it wrote
        torn.unlink(missing_ok=True)
    sha256 = hashlib.sha256(data).hexdigest()
    file = folder / f"{position.name}-{sha256[:DIGITS]}.safetensors"
    write_whole(file, data)
    return file


def states(output: Path) -> list[Path]:
    """The states of a run, the one that is furthest last."""
    files = (output / FOLDER).glob("epoch-*.safetensors")
    return sorted(file for file in files if _NAME.fullmatch(file.name))


def position_of(file: Path) -> tuple[int, int]:
    """Finished epochs, and finished steps of the next, as a state's name says."""
    match = _NAME.fullmatch(file.name)
    assert match is not None, "states have such names alone"
    return int(match[1]), int(match[2])


def usable_states(
    output: Path, history: History, steps: int, tell: Callable[[str], None]
) -> Iterator[Path]:
    """The states that a run of `steps` an epoch can continue from, the one that is furthest first.

    A torn one, and one with numbers that are not finite, is told and passed over; in silence one
    that the run has gone back from.
    """
    for file in reversed(states(output)):
        if not _is_whole(file):
            tell(f"{file} is torn or altered (its SHA-256 is not the one in its name); not used")
        elif (name := not_finite(read_safetensors(file))) is not None:
            tell(f"{file} holds numbers that are not finite ({name}); not used")
        else:
            facts = _record_of(file).facts or {}
            epoch, step = position_of(file)
            if history.is_current(epoch * steps + step, facts.get("rewinds", 0)):
                yield file


def facts_kept(output: Path) -> dict[str, Any]:
    """What the furthest state that is whole says beside its tensors; nothing where none is."""
    whole = (file for file in reversed(states(output)) if _is_whole(file))
    return next((_record_of(file).facts or {} for file in whole), {})


def _is_whole(file: Path) -> bool:
    return digest(file)[:DIGITS] == file.stem.rpartition("-")[2]


def newest(output: Path, history: History, steps: int, tell: Callable[[str], None]) -> Path | None:
    """The furthest state that is usable, None before the first; those beyond it are removed."""
    file = next(usable_states(output, history, steps, tell), None)
    if file is None and states(output):
        raise CheckpointError(
            f"no state in {output / FOLDER} is whole and finite; remove {output} to begin again"
        )
    if file is not None:
        remove_beyond(output, file)  # or they would be kept in place of usable ones
    return file


def remove_beyond(output: Path, file: Path) -> None:
    """Remove the states that are further than this one."""
    for other in states(output):
        if other.name > file.name:
            other.unlink()


def load_state(
    file: Path, state: TrainState, recipe_sha256: str, *earlier_recipes: str
) -> TrainPosition:
    """Put a state back. Raises CheckpointError where another recipe left it."""
    tensors, record = read_safetensors(file), _record_of(file)
    if record.recipe_sha256 not in (recipe_sha256, *earlier_recipes):
        raise CheckpointError(
            f"{file} was left by another recipe; give a new --output, or the same recipe and --set"
        )
    state.model.load_state_dict(_with_prefix(tensors, "model."), strict=True)
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in _with_prefix(tensors, "optimizer.").items():
        number, name = key.split(".")
        moments.setdefault(int(number), {})[name] = value.clone()
    optimizer = state.optimizer
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    if state.ema is not None:
        state.ema.module.load_state_dict(_with_prefix(tensors, "ema."), strict=True)
    return TrainPosition(epoch=record.epoch, step=record.step, facts=record.facts)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    epoch: int
    step: int
    facts: dict[str, Any] | None
    recipe_sha256: str


def _record_of(file: Path) -> _Record:
    try:
        with safe_open(file, framework="pt") as stored:
            text = (stored.metadata() or {}).get(METADATA_KEY, "")
        # A loss may be no number: what was counted is told all the same.
        return as_record(parse_json(text, "its record", float), _Record, "its record")
    except (SafetensorError, FormatError) as error:
        raise CheckpointError(f"{file} is no state of a run ({error}); remove it") from error


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }
