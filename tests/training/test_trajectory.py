"""Twenty steps of training against the original code, in float64, through our own loop.

The images, the mixed targets and the teacher's logits are the cases' inputs; everything else
(labels to smoothed targets, losses, clipping, AdamW, groups, rates, models) is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import golden
from deit_zoo.distributed import DistributedContext
from deit_zoo.models.cait import CaiT
from deit_zoo.models.deit import VisionTransformer
from deit_zoo.models.deit3 import LayerScaleTransformer
from deit_zoo.models.model import ZooModel
from deit_zoo.recipes.deit import DEIT_BASE
from deit_zoo.recipes.plan import Plan
from deit_zoo.recipes.recipe import Recipe
from deit_zoo.training.cosub import Cosub, twice
from deit_zoo.training.loop import TrainState, train_one_epoch
from deit_zoo.training.losses import Criterion, Distilled, supervised
from deit_zoo.training.micro_batches import Batch
from deit_zoo.training.optim import optimizer_for
from deit_zoo.training.steps import StepResult
from deit_zoo.training.timm_bridge import mixer
from support.tables import each_row

Array = NDArray[Any]

CASES = [
    "vit_label_smoothing",
    "distilled_hard",
    "distilled_hard_clip1",
    "cait_soft_targets",
    "layerscale_cosub",
]
LIMIT = 1e-9


@dataclass(frozen=True)
class Trajectory:
    """A case, what it stores, and what our loop did."""

    stored: dict[str, Array]
    losses: list[float]
    rates: list[float]
    mean_losses: list[float]
    norms: list[float]
    clip_grad: float | None
    model: ZooModel
    logits: Array


@pytest.fixture(scope="module", autouse=True)
def float64() -> Iterator[None]:
    """timm and our mixer make targets in torch's default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module", params=CASES)
def trajectory(request: pytest.FixtureRequest, float64: None) -> Trajectory:
    case = golden.case(f"trajectory/{request.param}")
    stored = golden.arrays(case)
    recipe = recipe_of(case)
    plan = Plan(
        recipe=recipe,
        modified=True,
        device="cpu",
        processes=1,
        workers=0,
        num_images=case["steps_per_epoch"] * recipe.batch_size,
    )
    model = model_of(case)
    parts = parts_of(case, stored, recipe, model)
    norms: list[float] = []
    steps: list[StepResult] = []
    parts.optimizer.register_step_pre_hook(
        lambda *_: norms.append(
            float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm())
        )
    )
    batches = [
        Batch(images, labels, bad=[])
        for images, labels in zip(images_of(case), torch.from_numpy(stored["labels"]), strict=True)
    ]
    epochs = [
        train_one_epoch(parts, plan, epoch, batches, steps.append)
        for epoch in range(case["epochs"])
    ]
    model.eval()
    with torch.no_grad():
        logits = model(double(f"{case['name']}/eval", (4, 3, 32, 32)))
    return Trajectory(
        stored=stored,
        losses=[step.loss for step in steps],
        rates=[step.lr for step in steps],
        mean_losses=[sums.loss / sums.losses for sums in epochs],
        norms=norms,
        clip_grad=recipe.clip_grad,
        model=model,
        logits=logits.numpy(),
    )


def recipe_of(case: dict[str, Any]) -> Recipe:
    """The case's options; one replica, whose batches the case brings."""
    optimizer, schedule = case["optimizer"], case["schedule"]
    distilled = case["distillation"]["type"] != "none"
    return replace(
        DEIT_BASE,
        epochs=schedule["epochs"],
        batch_size=256,  # with 256 images a step there are as many steps as the case has
        replicas=1,
        lr=optimizer["lr"],
        betas=tuple(optimizer["betas"]),
        eps=optimizer["eps"],
        weight_decay=optimizer["weight_decay"],
        clip_grad=optimizer["clip_grad"],
        warmup_epochs=schedule["warmup_epochs"],
        warmup_lr=schedule["warmup_lr"],
        min_lr=schedule["min_lr"],
        drop_path_rate=0.0,
        label_smoothing=0.1,
        mixup=0.0,
        cutmix=0.0,
        distillation=case["distillation"]["type"],
        alpha=case["distillation"]["alpha"],
        tau=case["distillation"]["tau"],
        teacher="the case's logits" if distilled else None,
    )


def model_of(case: dict[str, Any]) -> ZooModel:
    """The case's network with the golden weights."""
    sizes = {key: value for key, value in case["model"].items() if key != "constructor"}
    model: ZooModel
    if "depth_token_only" in sizes:
        model = CaiT(**sizes)
    elif "layerscale" in case["name"]:
        model = LayerScaleTransformer(**sizes)
    else:
        model = VisionTransformer(**sizes, distilled="distilled_hard" in case["name"])
    return golden.filled(model)


def parts_of(
    case: dict[str, Any], stored: dict[str, Array], recipe: Recipe, model: ZooModel
) -> TrainState:
    """What run.py builds, with the case's own targets and teacher."""
    images = images_of(case)

    def number_of(batch: Tensor) -> int:
        return next(number for number, known in enumerate(images) if torch.equal(known, batch))

    def stored_targets(batch: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        return batch, torch.from_numpy(stored["targets"][number_of(batch)])

    def teacher(batch: Tensor) -> Tensor:
        return torch.from_numpy(stored["teacher_logits"][number_of(batch)]).argmax(dim=1)

    smooths = case["criterion"].startswith("label-smoothing")
    criterion: Criterion = Distilled(recipe) if recipe.teacher else supervised
    mix = mixer(recipe, 10) if smooths else stored_targets
    if case.get("cosub"):
        criterion, mix = Cosub(binary=case["bce_loss"]), twice(mix)
    return TrainState(
        model=model,
        optimizer=optimizer_for(model, recipe),
        criterion=criterion,
        teacher=teacher if recipe.teacher else None,
        mix=mix,
        replicas=range(1),
        group=DistributedContext(device=torch.device("cpu")),
        network=model,
    )


def images_of(case: dict[str, Any]) -> list[Tensor]:
    return [
        double(f"{case['name']}/x{number}", (8, 3, 32, 32))
        for number in range(case["steps_per_epoch"])
    ]


def double(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(golden.normals(name, shape)).double()


def assert_close(found: Any, expected: Array) -> None:
    """Within the relative error of the golden index, and 1e-10 where values are about zero."""
    np.testing.assert_allclose(np.asarray(found), expected, rtol=LIMIT, atol=LIMIT / 10)


def test_the_loss_of_every_step_is_that_of_the_original(trajectory: Trajectory) -> None:
    assert_close(trajectory.losses, trajectory.stored["loss"])


def test_the_rate_of_every_step_is_that_of_the_original(trajectory: Trajectory) -> None:
    assert_close(trajectory.rates, trajectory.stored["lr"])


def test_an_epoch_reports_the_mean_of_its_losses(trajectory: Trajectory) -> None:
    expected = trajectory.stored["loss"].reshape(4, 5).mean(axis=1)
    assert_close(trajectory.mean_losses, expected)


def test_the_optimizer_sees_gradients_of_the_norm_of_the_original(trajectory: Trajectory) -> None:
    # The index's note: gradients times min(1, max_norm / (total_norm + 1e-6)).
    before = trajectory.stored["total_grad_norm_before_clip"]
    bound = np.inf if trajectory.clip_grad is None else trajectory.clip_grad
    assert_close(trajectory.norms, before * np.minimum(1.0, bound / (before + 1e-6)))


@each_row("statistic", ["sum", "norm", "probe"])
def test_the_final_weights_are_those_of_the_original(
    trajectory: Trajectory, statistic: str
) -> None:
    measure = {
        "sum": lambda name, value: value.sum(),
        "norm": lambda name, value: value.norm(),
        "probe": lambda name, value: (value * double(f"probe/{name}", value.shape)).sum(),
    }[statistic]
    state = trajectory.model.state_dict()
    found = [float(measure(name, state[name])) for name in trajectory.stored["names"].tolist()]
    assert_close(found, trajectory.stored[f"final_{statistic}"])


def test_the_trained_model_answers_as_the_original(trajectory: Trajectory) -> None:
    assert_close(trajectory.logits, trajectory.stored["final_logits"])
