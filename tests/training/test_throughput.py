"""What a step costs, which of loader and model limits a run, and that asking changes no bit."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deit_zoo.data.image_set import open_set
from deit_zoo.distributed import DistributedContext
from deit_zoo.errors import RecipeError
from deit_zoo.recipes.plan import Plan
from deit_zoo.training import throughput as speed
from deit_zoo.training import trainer
from deit_zoo.training.build import build_model, build_train_state
from deit_zoo.training.data import TrainLoader
from deit_zoo.training.launch import make_plan, reproduce
from deit_zoo.training.loop import TrainState
from deit_zoo.training.signals import Interrupted
from deit_zoo.training.throughput import (
    Rates,
    outlook,
    profile,
    rate,
    sentence,
)
from deit_zoo.training.timm_bridge import train_augment
from support.tables import each_row

HERE = DistributedContext(device=torch.device("cpu"))
TEN = [str(digit) for digit in range(10)]


MODEL = "the model limits, as it should"
NEVER = 10**9


@each_row(
    ("reading", "workers", "receiving", "number", "cores", "advice"),
    [
        (NEVER, 2500, NEVER, 4, 16, MODEL),
        (NEVER, 1001, NEVER, 4, 16, MODEL),
        (NEVER, 2500, 9000, 4, 16, MODEL),  # a tenth of the time for images
        (NEVER, 2500, 4000, 4, 16, "the training process limits, 20% of whose time goes to images"),
        # Together 800 img/s, though the model alone would take 1,000.
        (NEVER, 900, 4000, 4, 16, "the training process limits, 20% of whose time goes to images"),
        (NEVER, 500, NEVER, 4, 16, "decoding limits; try --workers 8"),
        (NEVER, 400, 4000, 4, 16, "decoding limits; try --workers 8"),
        (NEVER, 300, NEVER, 4, 16, "decoding limits; try --workers 14"),
        (NEVER, 500, NEVER, 0, 16, "decoding limits; try --workers 2"),
        (NEVER, 100, NEVER, 4, 16, "decoding limits; try --workers 16 and 24 more cores"),
        (NEVER, 100, NEVER, 16, 16, "decoding limits; 144 more cores"),
        (NEVER, 950, NEVER, 16, 16, "decoding limits; 1 more core"),
        (NEVER, 100, NEVER, 1, 0, "decoding limits; 10 more cores"),
        (1001, 500, NEVER, 4, 16, "decoding limits; try --workers 8"),
        (900, 500, NEVER, 4, 16, "the disk limits with 900 img/s; put the images on a faster one"),
        (900, 1001, NEVER, 4, 16, MODEL),  # what was read before is not read again
    ],
)
def test_what_limits_and_what_to_do(
    reading: int, workers: int, receiving: int, number: int, cores: int, advice: str
) -> None:
    rates = Rates(reading=reading, workers=workers, receiving=receiving, model=1000)
    assert sentence(rates, number, cores) == (
        f"workers {workers:,} img/s, copy and augmentation {receiving:,} img/s, model 1,000 img/s "
        f"in each process: {advice}"
    )


@each_row(
    ("gpus", "words"),
    [
        (
            1,
            "1024 images a step in each process: 21.0 GiB, 4,000 img/s; the 300 epochs' steps take "
            "26.7 h on 1 GPU, 3.3 h on 8, if the loaders keep up",
        ),
        (
            8,
            "128 images a step in each process: 21.0 GiB, 4,000 img/s; the 300 epochs' steps take "
            "3.3 h on 8 GPUs, if the loaders keep up",
        ),
    ],
)
def test_memory_and_time_of_a_run_are_told_before_it(gpus: int, words: str) -> None:
    # 300 epochs of 1,251 steps of 1,024 images, at 4,000 images per second and GPU.
    plan = make_plan("deit_base", gpus=gpus)
    assert outlook(plan, 4000.0, 21.0 * 1024) == f"deit_base at {words}"


def test_memory_that_nobody_counts_is_left_out() -> None:
    assert "process: 4,000 img/s" in outlook(make_plan("deit_base", gpus=1), 4000.0, None)


def test_a_run_that_is_not_finite_is_not_estimated_and_left_as_it_was(
    digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "MIN_STEPS", 1)
    parts, plan, supply = begun(digits_folder)
    parts = replace(parts, criterion=lambda outputs, images, targets: outputs.sum() * torch.nan)
    before = [parameter.detach().clone() for parameter in parts.model.parameters()]
    assert profile(parts, plan, supply) == []
    assert all(map(torch.equal, before, parts.model.parameters()))


@each_row(
    ("name", "micro_batch", "replicas"),
    [
        ("deit_pico_digits", None, 1),
        ("deit_pico_digits", 64, 2),
        ("convnet_pico_digits", None, 1),
        ("convnet_pico_digits", 32, 1),
    ],
)
def test_on_the_cpu_replicas_go_through_as_the_plan_says(
    name: str, micro_batch: int | None, replicas: int
) -> None:
    changes = ["batch_size=64", "replicas=2", f"micro_batch={micro_batch or 'auto'}"]
    plan = make_plan(name, gpus=0, changes=changes)
    state = build_train_state(plan, build_model(plan.recipe, TEN, HERE), None, HERE)
    assert state.per_pass == replicas


def test_batch_normalisation_sees_one_replica_at_a_time() -> None:
    changes = ["batch_size=64", "replicas=2", "micro_batch=64"]
    plan = make_plan("deit_pico_digits", gpus=0, changes=changes)
    model = build_model(plan.recipe, TEN, HERE)
    model.norm = torch.nn.BatchNorm1d(65)
    with pytest.raises(RecipeError, match="another function; type --set micro_batch=32, or auto"):
        build_train_state(plan, model, None, HERE)


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
    return parts, plan, TrainLoader(images, train_augment(plan.recipe), plan, parts.replicas)


def test_a_run_of_few_steps_is_not_asked(digits_folder: Path) -> None:
    parts, plan, supply = begun(digits_folder)
    assert plan.steps_per_epoch == 4
    assert profile(parts, plan, supply) == []


def test_a_process_that_may_have_nothing_to_decode_is_not_asked_how_fast_it_does(
    digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "MIN_STEPS", 1)
    parts, plan, supply = begun(digits_folder, "repeated_aug=64")
    assert profile(parts, replace(plan, processes=2), supply) == []


@pytest.mark.parametrize("train_mode", [True, False])
def test_asking_leaves_weights_moments_and_averages_as_they_were(
    digits_folder: Path, monkeypatch: pytest.MonkeyPatch, train_mode: bool
) -> None:
    monkeypatch.setattr(speed, "MIN_STEPS", 1)
    monkeypatch.setattr(speed, "STEPS", 2)
    parts, plan, supply = begun(digits_folder, f"train_mode={train_mode}", "ema_decay=0.5")
    parts.model.eval()  # as weights of a first stage come
    before = {key: value.clone() for key, value in parts.model.state_dict().items()}
    cost, limit = profile(parts, plan, supply)
    assert re.match(r"deit_pico_digits at 64 images a step in each process: ", cost)
    assert re.fullmatch(
        r"workers [\d,]+ img/s, copy and augmentation [\d,]+ img/s, model [\d,]+ img/s in each "
        r"process: .* limits.*",
        limit,
    )
    assert parts.ema
    for model in (parts.model, parts.ema.module):
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in parts.model.parameters())
    assert parts.optimizer.state_dict()["state"] == {}
    assert parts.model.training is train_mode  # what is measured is what will be trained


def test_a_run_that_continues_is_not_asked(
    tmp_path: Path, digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its moments would be lost.
    monkeypatch.setattr(trainer, "profile", lambda *_: asked.append(1) or [])
    asked: list[int] = []

    def run() -> None:
        reproduce(
            "deit_pico_digits",
            gpus=0,
            output=tmp_path / "run",
            data=digits_folder,
            changes=["epochs=1"],
            workers=0,
        )

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "run_epoch", stop_at_once)
        with pytest.raises(Interrupted):
            run()
    assert asked == [1]
    run()
    assert asked == [1]


def stop_at_once(*_: object) -> None:
    raise Interrupted(15)


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
            monkeypatch.setattr(speed, "STEPS", 2)
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
