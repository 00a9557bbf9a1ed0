"""A run that version 0.1.0 began goes on, and what it left is read.

`former_run/` holds the files of one as that version wrote them, of its state the names and shapes:
deit_pico_digits for three epochs with an average of the weights, stopped in the second.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from deit_zoo.distributed import DistributedContext
from deit_zoo.runs.diff import compare
from deit_zoo.runs.log import read_receipt, read_run
from deit_zoo.training.build import build_train_state
from deit_zoo.training.checkpoint import CheckpointManager
from deit_zoo.training.checks import check_output
from deit_zoo.training.job import read_job
from deit_zoo.training.launch import make_plan
from deit_zoo.training.signals import GracefulStop
from deit_zoo.training.steps import EpochStats
from deit_zoo.zoo import create

FORMER = Path(__file__).parent / "former_run"
CHANGES = ["epochs=3", "warmup_epochs=0", "ema_decay=0.9"]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The run's folder, with ones in place of the state's numbers."""
    for name in ("plan.json", "log.jsonl"):
        shutil.copy(FORMER / name, tmp_path)
    stored = json.loads((FORMER / "state.json").read_text(encoding="utf-8"))
    tensors = {key: torch.ones(shape) for key, shape in stored["shapes"].items()}
    data = save(tensors, metadata=stored["metadata"])
    digest = hashlib.sha256(data).hexdigest()[:16]
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / f"epoch-00001-step-000001-{digest}.safetensors").write_bytes(data)
    return tmp_path


def test_its_plan_is_the_plan_of_the_same_command(output: Path) -> None:
    plan = make_plan("deit_pico_digits", gpus=0, changes=CHANGES, workers=0)
    assert read_job(output).plan == plan
    check_output(output, plan.recipe, "auto")


def test_its_state_is_put_back_whole(output: Path) -> None:
    plan = read_job(output).plan
    group = DistributedContext(device=torch.device("cpu"))
    state = build_train_state(plan, create("deit_pico_digits"), None, group)
    messages: list[str] = []
    stop = GracefulStop(messages.append)
    manager = CheckpointManager(plan, output, state, stop, messages.append, str)
    assert manager.load()
    facts = json.loads(
        json.loads((FORMER / "state.json").read_text(encoding="utf-8"))["metadata"]["deit_zoo"]
    )["facts"]
    assert (manager.epoch, manager.stats) == (1, EpochStats(**facts["sums"]))
    assert (manager.stats.step, manager.rollbacks, messages) == (1, 0, [])
    moments = state.optimizer.state_dict()["state"]
    restored = [*state.model.state_dict().values(), *state.ema.module.state_dict().values()]
    restored += [value for of_parameter in moments.values() for value in of_parameter.values()]
    assert all((value == 1).all() for value in restored)
    assert len(moments) == len(list(state.model.parameters()))


def test_its_log_and_receipt_are_read() -> None:
    run = read_run(str(FORMER))
    assert [row["epoch"] for row in run.log] == [0, 1, 2]
    receipt = read_receipt(str(FORMER))
    assert receipt["plan"]["recipe_sha256"] == read_job(FORMER).plan.recipe.digest
    assert compare(receipt, receipt) == []
