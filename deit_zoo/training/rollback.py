"""Numbers that are not finite: which state a run goes back to, and which steps it leaves out.

Draws are functions of their place: a run that meets the same steps again meets the same numbers. So
it leaves out the failing steps and those just before them, ten times as many each time that it
fails at the same place, and goes back further. Which steps depends on the failures alone, not on
when states were written: with or without a kill on the way, a run ends in the same bits. What was
decided is kept beside the states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deit_zoo.errors import DataError
from deit_zoo.files import as_record, read_json, write_json

FOLDER, FILE = "state", "rollbacks.json"
MAX_ROLLBACKS = 3  # from one start to the next, before a run ends
# Steps that are left out before the failing ones: at first the last that moved the weights.
BEFORE = (1, 10, 100)
MOST = 4  # at most this part of an epoch of them, or a short run would leave out all it has
NEAR = 100  # steps; a failure so soon after another, or in its epoch, is one at the same place


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollback:
    """A return to the state after `back_to` steps; from `first` to `failed` all are left out.

    Steps are counted from the start of the run, from 0. `attempt` counts the returns at one place.
    `loss` and `grad_norm` are None where they were not finite: `why` says what they were.
    """

    why: str
    failed: int
    first: int
    back_to: int
    attempt: int
    loss: float | None
    grad_norm: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """The step in which a run ended that had gone back often enough, and what it said."""

    step: int
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """All returns of a run, over all of its starts, and the failure that ended it last."""

    rollbacks: tuple[Rollback, ...] = ()
    failure: Failure | None = None

    def left_out(self, epoch: int, steps: int) -> frozenset[int]:
        """The steps of an epoch, of `steps` each, that are passed over."""
        spans = (range(rollback.first, rollback.failed + 1) for rollback in self.rollbacks)
        return frozenset(step % steps for span in spans for step in span if step // steps == epoch)

    def is_current(self, position: int, rollbacks: int) -> bool:
        """Whether a state was not given up by a return after the first `rollbacks` of them."""
        return all(position <= later.back_to for later in self.rollbacks[rollbacks:])

    def trouble_at(self, step: int, steps: int) -> Rollback | None:
        """The last return, where a step is not yet well beyond the one that failed then."""
        last = self.rollbacks[-1] if self.rollbacks else None
        if last is None or step > max(last.failed + NEAR, (last.failed // steps + 1) * steps - 1):
            return None
        return last

    def next(
        self,
        states: Sequence[int],
        *,
        steps: int,
        why: str,
        failed: int,
        num_failed: int,
        loss: float,
        grad_norm: float,
    ) -> Rollback:
        """The return from a failure: where to, of the positions of states, and what is left out.

        `failed` is the last of `num_failed` steps; an epoch has `steps`. A first failure goes back
        to the newest state that holds none of the steps left out, a second at the same place to one
        before that, and so on as far as there are any.
        """
        last = self.trouble_at(failed, steps)
        attempt = 0 if last is None else last.attempt + 1
        before = min(BEFORE[min(attempt, len(BEFORE) - 1)], max(1, steps // MOST))
        first = failed + 1 - num_failed - before
        latest = first if last is None else min(first, last.back_to - 1)
        back_to = max((state for state in states if state <= latest), default=min(states))
        return Rollback(
            why=why,
            failed=failed,
            first=max(first, back_to),
            back_to=back_to,
            attempt=attempt,
            loss=loss if math.isfinite(loss) else None,
            grad_norm=grad_norm if math.isfinite(grad_norm) else None,
        )


def read_history(output: Path) -> History:
    """What a run has gone through; empty for one without trouble."""
    file = output / FOLDER / FILE
    if not file.is_file():
        return History()
    try:
        record = read_json(file)
        both = {key: record[key] for key in ("rollbacks", "failure")}
        return as_record(both, History, str(file))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} is not what a run wrote; put it back as it was, or remove it to continue "
            "without its rollbacks"
        ) from error


def write_history(output: Path, history: History) -> None:
    """Leave it beside the states, whole or not at all."""
    (output / FOLDER).mkdir(parents=True, exist_ok=True)
    write_json(output / FOLDER / FILE, asdict(history))


def step_in_words(step: int, steps: int) -> str:
    """A step of a run of `steps` an epoch in words, counted from 1."""
    return f"epoch {step // steps + 1}, step {step % steps + 1}"


def span(first: int, last: int, steps: int) -> str:
    """Steps of a run in words."""
    if first == last:
        return step_in_words(first, steps)
    if first // steps == last // steps:
        return f"steps {first % steps + 1} to {last % steps + 1} of epoch {first // steps + 1}"
    return f"{step_in_words(first, steps)} to {step_in_words(last, steps)}"


def to_receipt(history: History, steps: int) -> list[dict[str, Any]]:
    """The returns as a receipt tells them: epochs and steps counted from 0, as in the log."""

    def position(step: int) -> dict[str, int]:
        return {"epoch": step // steps, "step": step % steps}

    return [
        {
            "why": rollback.why,
            "loss": rollback.loss,
            "grad_norm": rollback.grad_norm,
            "at": position(rollback.failed),
            "back_to": position(rollback.back_to),
            "left_out": [position(rollback.first), position(rollback.failed)],
        }
        for rollback in history.rollbacks
    ]
