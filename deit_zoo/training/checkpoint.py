"""The states that a run continues from, and when they are saved, loaded and gone back to.

A state is safetensors and JSON, no pickle, whole or not there. Draws are functions of their
position, so weights, optimizer and position are all there is. A file's name ends in the first
digits of its SHA-256: a torn or flipped state is known before it is used.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from signal import SIGTERM
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from deit_zoo.errors import CheckpointError, DataError, ZooError
from deit_zoo.files import digest, write_whole
from deit_zoo.recipes.plan import Plan, epoch_images
from deit_zoo.training.loop import EpochStats, StepResult, TrainState
from deit_zoo.training.signals import GracefulStop, Interrupted
from deit_zoo.weights.load import METADATA_KEY, read_tensors

FOLDER = "state"
KEEP_LAST = 2
DIGITS = 16  # of the SHA-256, in a file's name
MAX_ROLLBACKS = 3  # times that a run goes back to its last state, before it ends
BAD_SHARE = 0.001  # of an epoch's images; more, and the run ends


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainPosition:
    """Where a run is: finished epochs, finished steps of the next, and what was counted so far."""

    epoch: int = 0
    step: int = 0
    facts: dict[str, Any] | None = None


class CheckpointManager:
    """Where a run is, and the states on disk that it can continue from.

    Every process has one; the first writes. `epoch` epochs are finished, `stats` is the next one's.
    """

    def __init__(
        self,
        plan: Plan,
        output: Path,
        state: TrainState,
        stop: GracefulStop,
        tell: Callable[[str], None],
        name_of: Callable[[int], str],
    ) -> None:
        self.plan = plan
        self.output = output
        self.state = state
        self.stop = stop
        self.tell = tell
        self.name_of = name_of
        self.epoch = 0
        self.stats = EpochStats()
        self.rollbacks = 0
        self.stopping = False
        self.saved_at = time.monotonic()

    def load(self) -> bool:
        """Continue from the furthest state that is whole; False where there is none yet."""
        file = self.state.group.run_on_main(lambda: newest(self.output, self.tell))
        if file is None:
            return False
        position = load_state(file, self.state, self.plan.recipe.digest)
        facts = position.facts or {}
        self.epoch = position.epoch
        self.stats = EpochStats(**facts["sums"])
        self.rollbacks = max(self.rollbacks, facts["rewinds"])
        if self.state.scaler.is_enabled() and facts["scaler"]:  # else it ran in another precision
            self.state.scaler.load_state_dict(facts["scaler"])
        return True

    def after_step(self, step: StepResult) -> bool:
        """Report bad images; whether it is time to save, or to stop."""
        for number in step.bad:
            self.tell(f"{self.name_of(number)} cannot be read; another image takes its place")
        self._check_bad_images()
        self.stopping |= step.stop
        return self.stopping or time.monotonic() - self.saved_at > self.plan.state_minutes * 60

    def at_rest(self) -> None:
        """Save while no step is under way; raises Interrupted where the run shall stop."""
        # Not among steps that are skipped: to go back there would lead to the same loss.
        if self.stopping or not self.stats.in_a_row:
            self.save()
        if self.stopping:
            raise Interrupted(self.stop.number or SIGTERM)

    def finish_epoch(self) -> None:
        """The epoch is trained, measured and logged: go on to the next."""
        self.epoch += 1
        # An epoch may be shorter than the skipped steps in a row that end it.
        self.stats = EpochStats(in_a_row=self.stats.in_a_row)
        self.save()

    def save(self) -> None:
        """Write a state. A full disk is reported, costs nothing, and the last states stay."""
        self.saved_at = time.monotonic()
        if not self.state.group.is_main:
            return
        facts = {
            "sums": asdict(self.stats),
            "rewinds": self.rollbacks,
            "scaler": self.state.scaler.state_dict(),
        }
        position = TrainPosition(epoch=self.epoch, step=self.stats.step, facts=facts)
        try:
            save_state(self.output, position, self.state, self.plan.recipe.digest)
        except OSError as error:
            self.tell(
                f"the state after epoch {self.epoch}, step {self.stats.step} could not be written "
                f"({error.strerror}); the run goes on and the states before it stay; make room on "
                f"the disk of {self.output}"
            )

    def roll_back(self, step: StepResult) -> None:
        """Continue from the last state after losses that were not finite.

        Raises ZooError that names the step where that has been tried often enough.
        """
        recipe = self.plan.recipe
        where = f"epoch {self.epoch + 1}, step {step.number + 1}"
        advice = (
            f"lower the rate with --set lr={recipe.lr / 2:g}, or bound the gradients with --set "
            "clip_grad=1"
        )
        if self.state.dtype is not None:
            advice += ", or compute with --set precision=fp32"
        self.rollbacks += 1
        if self.rollbacks > MAX_ROLLBACKS:
            raise ZooError(
                f"the loss is {step.loss} at {where}, after going back to the last state "
                f"{MAX_ROLLBACKS} times; {advice}"
            )
        if not self.load():
            raise ZooError(
                f"the loss is {step.loss} at {where}, before any state was kept; {advice}"
            )
        if self.state.group.is_main:
            self.tell(
                f"the loss is {step.loss} at {where}; going back to epoch {self.epoch + 1}, step "
                f"{self.stats.step + 1} ({self.rollbacks} of {MAX_ROLLBACKS} times)"
            )

    def _check_bad_images(self) -> None:
        seen = epoch_images(self.plan.num_images)
        if self.stats.bad_images > BAD_SHARE * seen:
            raise DataError(
                f"{self.stats.bad_images} of {seen:,} images of epoch {self.epoch + 1} could not "
                f"be read, which is more than {BAD_SHARE:.1%}; `deit-zoo data check DIR` lists them"
            )


def save_state(
    output: Path, position: TrainPosition, state: TrainState, recipe_sha256: str
) -> Path:
    """Write what continues a run from `position`; the KEEP_LAST last states are kept.

    Where the disk is full, the older ones are given up for it. Raises OSError, with the last state
    still there, where that is not enough.
    """
    try:
        return _write_state(output, position, state, recipe_sha256)
    except OSError:
        older = states(output)[:-1]
        if not older:
            raise
        for file in older:
            file.unlink()
        return _write_state(output, position, state, recipe_sha256)


def _write_state(
    output: Path, position: TrainPosition, state: TrainState, recipe_sha256: str
) -> Path:
    folder = output / FOLDER
    folder.mkdir(exist_ok=True)
    record = {
        "epoch": position.epoch,
        "step": position.step,
        "facts": position.facts,
        "recipe_sha256": recipe_sha256,
    }
    metadata = {METADATA_KEY: json.dumps(record, sort_keys=True)}
    data = to_bytes(_to_tensors(state), metadata=metadata)
    for torn in folder.glob(".epoch-*"):  # of a process that was killed while it wrote
        torn.unlink()
    name = f"epoch-{position.epoch:05d}-step-{position.step:06d}"
    file = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:DIGITS]}.safetensors"
    write_whole(file, data)
    # What lies beyond this position was left by a run that went back from there.
    earlier = [other for other in states(output) if other.name < name]
    for other in states(output):
        if other != file and other not in earlier[1 - KEEP_LAST :]:
            other.unlink(missing_ok=True)
    return file


def states(output: Path) -> list[Path]:
    """The states of a run, the one that is furthest last."""
    return sorted((output / FOLDER).glob("epoch-*.safetensors"))


def newest(output: Path, tell: Callable[[str], None]) -> Path | None:
    """The furthest state that is whole, None before the first; a broken one is reported.

    Raises CheckpointError where there are states and none is whole.
    """
    broken: list[Path] = []
    for file in reversed(states(output)):
        if digest(file)[:DIGITS] == file.stem.rpartition("-")[2]:
            for other in broken:  # or it would be kept in place of a whole one
                other.unlink()
            return file
        tell(f"{file} is torn or altered (its SHA-256 is not the one in its name); not used")
        broken.append(file)
    if broken:
        raise CheckpointError(
            f"no state in {output / FOLDER} is whole; remove {output} to begin again"
        )
    return None


def load_state(file: Path, state: TrainState, recipe_sha256: str) -> TrainPosition:
    """Put a state back. Raises CheckpointError where another recipe left it."""
    tensors = read_tensors(file)
    with safe_open(file, framework="pt") as stored:
        record: dict[str, Any] = json.loads(stored.metadata()[METADATA_KEY])
    if record["recipe_sha256"] != recipe_sha256:
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
    return TrainPosition(epoch=record["epoch"], step=record["step"], facts=record["facts"])


def _to_tensors(state: TrainState) -> dict[str, Tensor]:
    tensors = {f"model.{key}": value for key, value in state.model.state_dict().items()}
    for number, moments in state.optimizer.state_dict()["state"].items():
        for key, value in moments.items():
            tensors[f"optimizer.{number}.{key}"] = torch.as_tensor(value)
    if state.ema is not None:
        averages = state.ema.module.state_dict()
        tensors |= {f"ema.{key}": value for key, value in averages.items()}
    return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }
