"""Where a run is: when its states are saved, continued from and gone back to."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from signal import SIGTERM
from typing import Any

from torch import Tensor

from deit_zoo.data.survey import most_unreadable
from deit_zoo.errors import DataError, RecipeError, ZooError
from deit_zoo.files import LOG_FILE, writing
from deit_zoo.recipes.plan import Plan, epoch_images
from deit_zoo.runs.json_lines import first_lines
from deit_zoo.training.logger import full_disk_as_error
from deit_zoo.training.loop import TrainState
from deit_zoo.training.rollback import (
    MAX_ROLLBACKS,
    Failure,
    History,
    read_history,
    span,
    step_in_words,
    write_history,
)
from deit_zoo.training.signals import GracefulStop, Interrupted
from deit_zoo.training.state_files import (
    TrainPosition,
    load_state,
    newest,
    not_finite,
    position_of,
    remove_beyond,
    save_state,
    snapshot,
    state_tensors,
    usable_states,
)
from deit_zoo.training.steps import EpochStats, Requests, StepResult


@dataclass(eq=False)
class CheckpointManager:
    """Where a run is, and the states on disk that it can continue from.

    Every process has one; the first writes, on a thread of its own while training goes on.
    `epoch` epochs are finished, of which `log` has the lines; `stats` is the next one's.
    `earlier_recipes` are the digests of those that the run began with, where its recipe was changed
    on the way. `origin` says what this start is of: its `plan`, the weights from which it would
    `start`, its `teacher` and its `environment`. Every state keeps what trained it, `record`: the
    weights that it began with, whatever lies there now, the last plan and each environment, with
    the step since which it trained. A start that takes no step is not among them.
    """

    plan: Plan
    output: Path
    state: TrainState
    stop: GracefulStop
    tell: Callable[[str], None]
    name_of: Callable[[int], str]
    earlier_recipes: tuple[str, ...] = ()
    origin: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown: dict[str, Any] = dict.fromkeys(("plan", "start", "teacher"))
        self.origin = unknown | {"environment": {}} | self.origin
        self.record = {key: self.origin[key] for key in unknown}
        self.record |= {"environments": [], "finished": None}
        self.since: dict[str, Any] | None = {"epoch": 0, "step": 0, "seconds": 0.0}
        self.epoch = 0
        self.log: list[str] = []
        self.stats = EpochStats()
        self.history = History()
        self.rollbacks = 0  # since this start
        self.last_step: StepResult | None = None
        self.stopping = False
        self.saved_at = time.monotonic()
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="state")
        self._writing: Future[None] | None = None

    def load(self) -> bool:
        """Continue from the furthest state that is usable; False where there is none yet."""

        def find() -> tuple[History, Path | None]:
            history = read_history(self.output)
            steps = self.plan.steps_per_epoch
            return history, newest(self.output, history, steps, self.tell)

        self.history, file = self.state.group.run_on_main(find)
        if file is not None:
            self._put_back(file)
        return file is not None

    def left_out(self) -> frozenset[int]:
        """The steps of this epoch that are passed over since the run went back from them."""
        return self.history.left_out(self.epoch, self.plan.steps_per_epoch)

    def requests(self) -> Requests:
        """Whether the first process finds that a state is due, and whether this one shall stop."""
        due = time.monotonic() - self.saved_at > self.plan.state_minutes * 60
        return Requests(save=self.state.group.is_main and due, stop=bool(self.stop.number))

    def after_step(self, step: StepResult) -> None:
        """Report bad images, and remember a request to stop."""
        self.last_step = step
        self._note_environment()
        for number in step.bad:
            self.tell(f"{self.name_of(number)} cannot be read; another image takes its place")
        seen = epoch_images(self.plan.num_images)
        if self.stats.bad_images > (most := most_unreadable(seen)):
            raise DataError(
                f"{self.stats.bad_images} of {seen:,} images of epoch {self.epoch + 1} could not "
                f"be read, and a run can do without {most:,}; `deit-zoo data check DIR` lists them"
            )
        self.stopping |= step.stop

    def at_rest(self) -> None:
        """Save while no step is under way; raises Interrupted where the run shall stop."""
        # Not among steps that are skipped: to go back there would lead to the same loss.
        if self.stopping or not self.stats.in_a_row:
            self.save()
        if self.stopping:
            self.wait()
            raise Interrupted(self.stop.number or SIGTERM)

    def is_finite(self) -> bool:
        """Whether all weights and what goes with them are, as every process hears it."""
        tensors = state_tensors(self.state)
        return self.state.group.run_on_main(lambda: not_finite(tensors)) is None

    def finish_epoch(self, line: str) -> None:
        """The epoch is trained, measured and logged with this line: go on to the next."""
        self.epoch += 1
        self.log.append(line)
        self.record["finished"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        # An epoch may be shorter than the skipped steps in a row that end it.
        self.stats = EpochStats(in_a_row=self.stats.in_a_row)
        self.save()

    def save(self) -> None:
        """Begin to write a state, unless it holds a number that is not finite.

        A full disk is reported, costs nothing, and the last states stay; the first must be written.
        """
        self.saved_at = time.monotonic()
        if not self.state.group.is_main:
            return
        self.wait()
        facts = self.record | {
            "sums": asdict(self.stats),
            "rewinds": len(self.history.rollbacks),
            "scaler": self.state.scaler.state_dict(),
            "log": [*self.log],
        }
        position = TrainPosition(epoch=self.epoch, step=self.stats.step, facts=facts)
        name = not_finite(state_tensors(self.state))
        if name is not None:
            self.tell(
                f"the state after epoch {self.epoch}, step {self.stats.step} is not written, for "
                f"it holds numbers that are not finite ({name}); the states before it stay"
            )
            return
        self._writing = self._writer.submit(self._write, position, snapshot(self.state))

    def wait(self) -> None:
        """Until the state that was begun is written."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def close(self) -> None:
        """Until everything is written; nothing more is."""
        self._writer.shutdown()
        self.wait()

    def roll_back(self, step: StepResult | None = None) -> None:
        """Continue from an earlier state after `step`, or else the last, and leave steps out."""
        failed = step or self.last_step
        assert failed is not None, "no step was taken, and yet numbers changed"
        self.wait()
        self.history, file = self.state.group.run_on_main(lambda: self._decide(failed))
        self._put_back(file)

    def _decide(self, step: StepResult) -> tuple[History, Path]:
        """Where to go back to, and what is left out from now on; kept on disk."""
        steps, failed = self.plan.steps_per_epoch, self._position(self.epoch, step.number)
        odd = [
            f"the {name} is {value}"
            for name, value in (("loss", step.loss), ("gradient norm", step.grad_norm))
            if not math.isfinite(value)
        ]
        why = odd[0] if odd else "a weight is not finite"
        files = list(usable_states(self.output, self.history, steps, self.tell))[::-1]
        if self.rollbacks == MAX_ROLLBACKS or not files:
            message = f"{why} at {step_in_words(failed, steps)}, {self._what_to_type(bool(files))}"
            self._keep(replace(self.history, failure=Failure(step=failed, message=message)))
            raise ZooError(message)
        positions = [self._position(*position_of(file)) for file in files]
        rollback = self.history.next(
            positions,
            steps=steps,
            why=why,
            failed=failed,
            num_failed=max(1, self.stats.in_a_row),
            loss=step.loss,
            grad_norm=step.grad_norm,
        )
        self.rollbacks += 1
        self.tell(
            f"{why} at {step_in_words(failed, steps)}; going back to "
            f"{step_in_words(rollback.back_to, steps)} ({self.rollbacks} of {MAX_ROLLBACKS} times) "
            f"and leaving out {span(rollback.first, failed, steps)}"
        )
        self._keep(replace(self.history, rollbacks=(*self.history.rollbacks, rollback)))
        file = files[positions.index(rollback.back_to)]
        remove_beyond(self.output, file)
        return self.history, file

    def _keep(self, history: History) -> None:
        with full_disk_as_error(self.output):
            write_history(self.output, history)
        self.history = history

    def _put_back(self, file: Path) -> None:
        digest = self.plan.recipe.digest
        position = load_state(file, self.state, digest, *self.earlier_recipes)
        facts = position.facts or {}
        self._check_teacher(facts.get("teacher"))
        self.record |= {key: facts[key] for key in self.record if key in facts}
        self.epoch = position.epoch
        self.stats = EpochStats(**facts["sums"])
        # Beside a state written before it had the log, the file alone has it.
        self.log = facts.get("log") or first_lines(self.output / LOG_FILE, self.epoch)
        seconds = sum(json.loads(line).get("seconds") or 0.0 for line in self.log)
        seconds += self.stats.seconds
        self.since = {"epoch": self.epoch, "step": self.stats.step, "seconds": seconds}
        # Another precision may have been chosen meanwhile.
        if facts["scaler"] and self.state.scaler.is_enabled():
            self.state.scaler.load_state_dict(facts["scaler"])

    def _check_teacher(self, before: dict[str, Any] | None) -> None:
        """Raises RecipeError where another network would teach the rest of a run."""
        now = self.origin["teacher"]
        digests = {teacher["sha256"] for teacher in (before, now) if teacher}
        if before and now and None not in digests and len(digests) > 1:
            raise RecipeError(
                f"the teacher {self.plan.recipe.teacher} has the SHA-256 {now['sha256'][:12]}..., "
                f"and the run in {self.output} began with that of {before['sha256'][:12]}...; put "
                "that one back, or give a new --output"
            )

    def _note_environment(self) -> None:
        """With the first step of a start, or after a return, say what trains from there on."""
        if self.since is None:
            return
        known, own = self.record["environments"], self.origin["environment"]
        if not known or known[-1] != own | {"since": known[-1]["since"]}:
            known = [*known, own | {"since": self.since}]
        self.record |= {"plan": self.origin["plan"], "environments": known}
        self.since = None

    def _write(self, position: TrainPosition, tensors: dict[str, Tensor]) -> None:
        steps, hold = self.plan.steps_per_epoch, None
        trouble = self.history.trouble_at(self._position(position.epoch, position.step) - 1, steps)
        if trouble is not None:  # what it may go back to next
            epoch, step = divmod(trouble.back_to, steps)
            hold = TrainPosition(epoch=epoch, step=step)
        try:
            with nullcontext() if position.epoch or position.step else writing(self.output):
                save_state(self.output, position, tensors, self.plan.recipe.digest, hold)
        except OSError as error:
            self.tell(
                f"the state after epoch {position.epoch}, step {position.step} could not be "
                f"written ({error.strerror}); the run goes on and the states before it stay; make "
                f"room on the disk of {self.output}"
            )

    def _position(self, epoch: int, step: int) -> int:
        """Steps from the start of the run."""
        return epoch * self.plan.steps_per_epoch + step

    def _what_to_type(self, again: bool) -> str:
        """How a run that failed goes on, and what may be changed then."""
        recipe = self.plan.recipe
        clip = 1.0 if recipe.clip_grad is None else recipe.clip_grad / 2
        changes = [
            f"with a lower rate (--set lr={recipe.lr / 2:g})",
            f"bounded gradients (--set clip_grad={clip:g})",
        ]
        if self.state.dtype is not None:
            changes.append("in full precision (--set precision=fp32)")
        outcome = (
            f"after going back {MAX_ROLLBACKS} times; the same command continues from the last "
            "good state"
            if again
            else "before any state could be written; the same command begins again"
        )
        return f"{outcome}, also {' or '.join(changes)}"
