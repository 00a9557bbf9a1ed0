"""What happens once in a while in a run: states are kept, bad news is told, wishes are heard."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from signal import SIGTERM

from deit_zoo.errors import DataError, ZooError
from deit_zoo.recipes.plan import Plan, epoch_images
from deit_zoo.training.checkpoint import Place, Trained, load_state, newest, save_state
from deit_zoo.training.loop import EpochStats, Parts, StepResult
from deit_zoo.training.signals import GracefulStop, Interrupted

MAX_ROLLBACKS = 3  # times that a run goes back to its last state, before it ends
BAD_SHARE = 0.001  # of an epoch's images; more, and the run ends


class CheckpointManager:
    """Where a run is, and the states on disk that it can continue from.

    Every process has one; the first writes. `epoch` epochs are finished, `sums` is the next one's.
    """

    def __init__(
        self,
        plan: Plan,
        output: Path,
        parts: Parts,
        stop: GracefulStop,
        tell: Callable[[str], None],
        name_of: Callable[[int], str],
    ) -> None:
        self.plan = plan
        self.output = output
        self.parts = parts
        self.stop = stop
        self.tell = tell
        self.name_of = name_of
        self.trained = Trained(model=parts.model, optimizer=parts.optimizer, ema=parts.ema)
        self.epoch = 0
        self.sums = EpochStats()
        self.rewinds = 0
        self.kept = time.monotonic()

    def resume(self) -> bool:
        """Continue from the furthest state that is whole; False where none was left."""
        file = self.parts.group.run_on_main(lambda: newest(self.output, self.tell))
        if file is None:
            return False
        place = load_state(file, self.trained, self.plan.recipe.digest)
        facts = place.facts or {}
        self.epoch = place.epoch
        self.sums = EpochStats(**facts["sums"])
        self.rewinds = max(self.rewinds, facts["rewinds"])
        if self.parts.scaler is not None and facts["scaler"]:  # None: it ran in another precision
            self.parts.scaler.load_state_dict(facts["scaler"])
        return True

    def after_step(self, step: StepResult) -> None:
        """Tell of bad images, keep a state when it is time, and stop where that was asked."""
        for number in step.bad:
            self.tell(f"{self.name_of(number)} cannot be read; another image takes its place")
        self._check_bad_images()
        if step.stop:
            self.keep()
            raise Interrupted(self.stop.number or SIGTERM)
        # Not among steps that are skipped: to go back there would lead to the same loss.
        rested = time.monotonic() - self.kept > self.plan.state_minutes * 60
        if rested and not self.sums.in_a_row:
            self.keep()

    def finish_epoch(self) -> None:
        """The epoch is trained, measured and logged: go on to the next."""
        self.epoch += 1
        self.sums = EpochStats(in_a_row=self.sums.in_a_row)  # an epoch may be shorter than SKIPS
        self.keep()

    def keep(self) -> None:
        """Write a state. A full disk is told, costs nothing, and the last states stay."""
        self.kept = time.monotonic()
        if not self.parts.group.is_main:
            return
        scaler = self.parts.scaler
        facts = {
            "sums": asdict(self.sums),
            "rewinds": self.rewinds,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        place = Place(epoch=self.epoch, step=self.sums.step, facts=facts)
        try:
            save_state(self.output, place, self.trained, self.plan.recipe.digest)
        except OSError as error:
            self.tell(
                f"the state after epoch {self.epoch}, step {self.sums.step} could not be written "
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
        if self.parts.dtype is not None:
            advice += ", or compute with --set precision=fp32"
        self.rewinds += 1
        if self.rewinds > MAX_ROLLBACKS:
            raise ZooError(
                f"the loss is {step.loss} at {where}, after going back to the last state "
                f"{MAX_ROLLBACKS} times; {advice}"
            )
        if not self.resume():
            raise ZooError(
                f"the loss is {step.loss} at {where}, before any state was kept; {advice}"
            )
        if self.parts.group.is_main:
            self.tell(
                f"the loss is {step.loss} at {where}; going back to epoch {self.epoch + 1}, step "
                f"{self.sums.step + 1} ({self.rewinds} of {MAX_ROLLBACKS} times)"
            )

    def _check_bad_images(self) -> None:
        seen = epoch_images(self.plan.num_images)
        if self.sums.bad_images > BAD_SHARE * seen:
            raise DataError(
                f"{self.sums.bad_images} of {seen:,} images of epoch {self.epoch + 1} could not be "
                f"read, which is more than {BAD_SHARE:.1%}; `deit-zoo data check DIR` lists them"
            )
