"""Which of loader and model limits a run: the sentence, and that asking changes no bit."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch

from deit_zoo.data.image_set import open_set
from deit_zoo.distributed import DistributedContext
from deit_zoo.recipes.plan import Plan
from deit_zoo.training import throughput as speed
from deit_zoo.training.data import TrainLoader
from deit_zoo.training.launch import make_plan, reproduce
from deit_zoo.training.loop import TrainState
from deit_zoo.training.throughput import profile_loader_and_step, rate, sentence
from deit_zoo.training.timm_bridge import train_transform
from deit_zoo.training.trainer import build_model, build_train_state
from support.tables import each_row

EVERY_CORE = "loader-bound with every core in use; more cores or smaller files would help"
HERE = DistributedContext(device=torch.device("cpu"))
TEN = [str(digit) for digit in range(10)]


@each_row(
    ("loader", "workers", "cores", "advice"),
    [
        (2500, 4, 16, "the model limits, as it should"),
        (1001, 4, 16, "the model limits, as it should"),
        (500, 4, 16, "loader-bound; try --workers 8"),
        (300, 4, 16, "loader-bound; try --workers 14"),
        (100, 4, 16, "loader-bound; try --workers 16"),
        (500, 0, 16, "loader-bound; try --workers 2"),
        (100, 16, 16, EVERY_CORE),
        (100, 1, 0, EVERY_CORE),
    ],
)
def test_the_two_rates_and_what_to_try(loader: int, workers: int, cores: int, advice: str) -> None:
    assert sentence(float(loader), 1000.0, workers, cores) == (
        f"loader {loader:,} img/s, model 1,000 img/s in each process: {advice}"
    )


def test_a_rate_leaves_out_the_first_two_calls() -> None:
    calls = iter((0.5, 0.5, 0.0, 0.0, 0.0))

    def act() -> int:
        time.sleep(next(calls))
        return 10

    assert rate(act, 3) > 30 / 0.5


def begun(folder: Path, *changes: str) -> tuple[TrainState, Plan, TrainLoader]:
    plan = make_plan(
        "deit_pico_digits",
        gpus=0,
        changes=["batch_size=64", "drop_path_rate=0.3", *changes],
        workers=0,
        num_images=320,
    )
    model = build_model(plan.recipe, TEN, HERE)
    parts = build_train_state(plan, model, None, HERE)
    images = open_set(folder, "train")
    return parts, plan, TrainLoader(images, train_transform(plan.recipe), plan, parts.replicas)


def test_a_run_of_few_steps_is_not_asked(digits_folder: Path) -> None:
    parts, plan, supply = begun(digits_folder)
    assert plan.steps_per_epoch == 4
    assert profile_loader_and_step(parts, plan, supply) is None


@pytest.mark.parametrize("train_mode", [True, False])
def test_asking_takes_no_step_and_leaves_no_gradient(
    digits_folder: Path, monkeypatch: pytest.MonkeyPatch, train_mode: bool
) -> None:
    monkeypatch.setattr(speed, "MIN_STEPS", 1)
    monkeypatch.setattr(speed, "BATCHES", 2)
    parts, plan, supply = begun(digits_folder, f"train_mode={train_mode}")
    parts.model.eval()  # as weights of a first stage come
    before = {key: value.clone() for key, value in parts.model.state_dict().items()}
    told = profile_loader_and_step(parts, plan, supply)
    assert told is not None
    assert re.match(r"loader [\d,]+ img/s, model [\d,]+ img/s in each process: ", told)
    assert all(torch.equal(value, before[key]) for key, value in parts.model.state_dict().items())
    assert all(parameter.grad is None for parameter in parts.model.parameters())
    assert parts.optimizer.state_dict()["state"] == {}
    assert parts.model.training is train_mode  # what is measured is what will be trained


def test_asking_changes_no_bit_of_a_run(
    tmp_path: Path,
    digits_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    digests = []
    for asked in (False, True):
        if asked:
            monkeypatch.setattr(speed, "MIN_STEPS", 1)
            monkeypatch.setattr(speed, "BATCHES", 2)
        output = tmp_path / str(asked)
        reproduce(
            "deit_pico_digits",
            gpus=0,
            output=output,
            data=digits_folder,
            changes=["epochs=1", "drop_path_rate=0.3"],
            workers=0,
        )
        assert ("img/s in each process: " in capsys.readouterr().err) is asked
        digests.append((output / "model.safetensors").read_bytes())
    assert digests[0] == digests[1]
