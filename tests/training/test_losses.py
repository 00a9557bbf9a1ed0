"""Losses and their gradients against the original code, in float64."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import golden
from deit_zoo.errors import RecipeError
from deit_zoo.training.losses import Criterion, Distilled, Outputs, supervised
from deit_zoo.training.recipes.deit import DEIT_BASE

STORED = golden.arrays(golden.case("losses/small"))
NAMES = [
    str(name)
    for name in STORED["loss_names"]
    if name.startswith(("soft_target_ce/", "label_smoothing_0.1/", "cross_entropy/"))
]
DISTILLED = [name for name in NAMES if "/none" not in name]
TEACHER = replace(DEIT_BASE, distillation="hard", teacher="regnety_160")


def stored(name: str) -> Tensor:
    return torch.from_numpy(STORED[name])


def targets_of(name: str) -> Tensor:
    """The soft targets that upstream's base losses mean: mixed, smoothed or one-hot."""
    if name.startswith("soft_target_ce/"):
        return stored("soft_targets")
    smoothing = 0.1 if name.startswith("label_smoothing") else 0.0
    one_hot = torch.eye(10, dtype=torch.float64)[stored("labels")]
    return one_hot * (1.0 - smoothing) + smoothing / 10


def criterion_of(name: str, teacher: Callable[[Tensor], Tensor]) -> Criterion:
    """Our criterion for a golden case, from its name."""
    if "/none" in name:
        return supervised
    found = re.fullmatch(r".*/(soft|hard)_alpha([\d.]+)_tau([\d.]+)", name)
    assert found, name
    kind, alpha, tau = found.groups()
    recipe = replace(TEACHER, distillation=kind, alpha=float(alpha), tau=float(tau))
    return Distilled(recipe, teacher)


def measured(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient of the class logits and gradient of the distillation logits."""
    logits = stored("cls_logits").requires_grad_()
    logits_dist = stored("dist_logits").requires_grad_()
    plain = name.endswith("none_plain_tensor_output")
    outputs: Outputs = logits if plain else (logits, logits_dist)
    criterion = criterion_of(name, lambda _: stored("teacher_logits"))
    loss = criterion(outputs, torch.zeros(6, 3, 4, 4), targets_of(name))
    gradients = torch.autograd.grad(
        loss, (logits, logits_dist), allow_unused=True, materialize_grads=True
    )
    return loss.detach(), *gradients


def assert_equal(found: Tensor, expected: Any) -> None:
    """Within the tolerance that the golden index advises."""
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_that_of_the_original(name: str) -> None:
    values = dict(zip(STORED["loss_names"].tolist(), STORED["loss_values"], strict=True))
    assert_equal(measured(name)[0], values[name])


@pytest.mark.parametrize("name", NAMES)
def test_the_class_logits_have_the_gradient_of_the_original(name: str) -> None:
    assert_equal(measured(name)[1], STORED[f"grad_cls/{name}"])


@pytest.mark.parametrize("name", DISTILLED)
def test_the_distillation_logits_have_the_gradient_of_the_original(name: str) -> None:
    assert_equal(measured(name)[2], STORED[f"grad_dist/{name}"])


@pytest.mark.parametrize("name", [name for name in NAMES if "/none_alpha" in name])
def test_without_a_teacher_the_distillation_head_learns_nothing(name: str) -> None:
    assert not measured(name)[2].any()


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_student_with_one_head_is_refused(kind: str) -> None:
    criterion = Distilled(replace(TEACHER, distillation=kind), lambda _: stored("teacher_logits"))
    with pytest.raises(RecipeError) as caught:
        criterion(stored("cls_logits"), torch.zeros(6, 3, 4, 4), stored("soft_targets"))
    assert str(caught.value) == (
        "the student has no distillation token; choose a distilled model, whose name ends in "
        "_distilled"
    )


def test_the_teacher_sees_the_very_images_of_the_student() -> None:
    seen: list[Tensor] = []

    def teacher(images: Tensor) -> Tensor:
        seen.append(images)
        return stored("teacher_logits")

    images = torch.zeros(6, 3, 4, 4)
    outputs = (stored("cls_logits"), stored("dist_logits"))
    Distilled(TEACHER, teacher)(outputs, images, stored("soft_targets"))
    assert len(seen) == 1
    assert seen[0] is images


def test_the_teacher_computes_no_gradient() -> None:
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    criterion = Distilled(
        replace(TEACHER, distillation="soft"), lambda _: weight * stored("teacher_logits")
    )
    outputs = (stored("cls_logits").requires_grad_(), stored("dist_logits"))
    loss = criterion(outputs, torch.zeros(6, 3, 4, 4), stored("soft_targets"))
    torch.autograd.backward(loss)
    assert weight.grad is None
