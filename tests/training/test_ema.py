"""The moving average against the original code, in float64, and by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import deit_zoo
import golden
from deit_zoo.models.cait import CaiT
from deit_zoo.models.deit import VisionTransformer
from deit_zoo.models.model import ZooModel
from deit_zoo.recipes.deit import DEIT_BASE
from deit_zoo.training.losses import criterion_for
from deit_zoo.training.optim import Ema, optimizer_for
from support.tables import each_row

Array = NDArray[Any]

TRAJECTORIES = ["distilled_hard", "cait_soft_targets"]


class Normed(ZooModel):
    """One weight, and the running statistics of a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.norm = nn.BatchNorm1d(1)


@pytest.fixture(scope="module", autouse=True)
def float64() -> Iterator[None]:
    """The golden trajectories are of float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module", params=TRAJECTORIES)
def averaged(request: pytest.FixtureRequest, float64: None) -> tuple[dict[str, Array], Ema, Tensor]:
    """What a case stores, the average after its twenty steps, and its answer to a batch."""
    case = golden.case(f"trajectory/{request.param}")
    stored = golden.arrays(case)
    kind = case["distillation"]["type"]
    recipe = replace(
        DEIT_BASE,
        weight_decay=case["optimizer"]["weight_decay"],
        distillation=kind,
        teacher=None if kind == "none" else "the case's logits",
    )
    model = model_of(case)
    ema = Ema(model, case["ema_decay"])
    optimizer = optimizer_for(model, recipe)
    model.train()
    for step, rate in enumerate(stored["lr"].tolist()):
        number = step % case["steps_per_epoch"]
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        images = double(f"{case['name']}/x{number}", (8, 3, 32, 32))
        targets = torch.from_numpy(stored["targets"][number])
        taught = torch.from_numpy(stored["teacher_logits"][number]) if recipe.teacher else None
        labels = taught.argmax(dim=1) if kind == "hard" and taught is not None else taught
        torch.autograd.backward(criterion_for(recipe)(model(images), labels, targets))
        optimizer.step()
        ema.update()
    with torch.no_grad():
        logits = ema.module(double(f"{case['name']}/eval", (4, 3, 32, 32)))
    assert isinstance(logits, Tensor)
    return stored, ema, logits


def model_of(case: dict[str, Any]) -> ZooModel:
    """The case's network with the golden weights."""
    sizes = {key: value for key, value in case["model"].items() if key != "constructor"}
    if "depth_token_only" in sizes:
        return golden.filled(CaiT(**sizes))
    return golden.filled(VisionTransformer(**sizes, distilled="distilled" in case["name"]))


def double(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(golden.normals(name, shape)).double()


def assert_close(found: Any, expected: Array) -> None:
    """Within the tolerance of the golden index."""
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-9, atol=1e-10)


@each_row("statistic", ["sum", "norm", "probe"])
def test_twenty_steps_average_to_the_weights_of_the_original(
    averaged: tuple[dict[str, Array], Ema, Tensor], statistic: str
) -> None:
    stored, ema, _ = averaged
    measure = {
        "sum": lambda name, value: value.sum(),
        "norm": lambda name, value: value.norm(),
        "probe": lambda name, value: (value * double(f"probe/{name}", value.shape)).sum(),
    }[statistic]
    state = ema.module.state_dict()
    found = [float(measure(name, state[name])) for name in stored["names"].tolist()]
    assert_close(found, stored[f"ema_{statistic}"])


def test_the_averaged_model_answers_as_the_original(
    averaged: tuple[dict[str, Array], Ema, Tensor],
) -> None:
    stored, _, logits = averaged
    assert_close(logits.numpy(), stored["ema_logits"])


def test_the_first_update_mixes_with_the_initial_weights() -> None:
    # 0.75 x (0, 0) + 0.25 x (4, 8), then 0.75 x (1, 2) + 0.25 x (4, 8).
    model = Normed()
    ema = Ema(model, 0.75)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([4.0, 8.0]))
    seen = []
    for _ in range(2):
        ema.update()
        seen.append(ema.module.state_dict()["weight"].tolist())
    assert seen == [[1.0, 2.0], [1.75, 3.5]]


def test_running_statistics_are_averaged_as_the_weights_are() -> None:
    # timm 0.3.2 averages the whole state dict: mean 0 and 4 give 1; counts are cut to integers.
    model = Normed()
    ema = Ema(model, 0.75)
    model.norm.running_mean.fill_(4.0)
    model.norm.num_batches_tracked.fill_(6)
    ema.update()
    assert ema.module.state_dict()["norm.running_mean"].tolist() == [1.0]
    assert ema.module.state_dict()["norm.num_batches_tracked"].item() == 1


def test_the_averaged_model_is_one_of_the_zoo_in_eval_mode_without_gradients() -> None:
    model = deit_zoo.create("deit_pico_distilled_digits", img_size=20)
    module = Ema(model, 0.99).module
    assert module.spec is not None
    assert (module.spec.name, module.img_size) == ("deit_pico_distilled_digits", (20, 20))
    assert (model.training, module.training) == (True, False)
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert isinstance(module(torch.zeros(1, 3, 20, 20, dtype=torch.float32)), Tensor)


def test_training_goes_on_bit_for_bit_from_a_stored_average() -> None:
    torch.manual_seed(0)
    draws = torch.randn(6, 2)

    def updated(ema: Ema, model: Normed, values: Tensor) -> None:
        for value in values:
            with torch.no_grad():
                model.weight.copy_(value)
            ema.update()

    model = Normed()
    through = Ema(model, 0.9)
    updated(through, model, draws)

    model = Normed()
    first = Ema(model, 0.9)
    updated(first, model, draws[:3])
    left = {key: value.clone() for key, value in first.module.state_dict().items()}
    later = Ema(model, 0.9)
    later.module.load_state_dict(left)
    updated(later, model, draws[3:])
    assert torch.equal(later.module.state_dict()["weight"], through.module.state_dict()["weight"])


def test_a_stored_average_without_a_key_is_refused() -> None:
    model = Normed()
    ema = Ema(model, 0.9)
    state = ema.module.state_dict()
    del state["weight"]
    with pytest.raises(RuntimeError, match="Missing key"):
        ema.module.load_state_dict(state)
