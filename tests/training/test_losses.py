"""Losses and their gradients against the original code, in float64."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import golden
from deit_zoo.errors import RecipeError
from deit_zoo.models.cait import CaiT
from deit_zoo.recipes.deit import DEIT_BASE
from deit_zoo.recipes.recipe import Recipe
from deit_zoo.training.cosub import Cosub
from deit_zoo.training.losses import Criterion, Outputs, balanced_weights, criterion_for
from deit_zoo.training.optim import optimizer_for
from support.tables import each_row

STORED = golden.arrays(golden.case("losses/small"))
VALUES = dict(zip(STORED["loss_names"].tolist(), STORED["loss_values"].tolist(), strict=True))
# All but co-training of submodels, which is below, and soft binary targets, which upstream's option
# never leaves.
NAMES = [name for name in VALUES if not name.startswith(("cosub/", "bce_targets_as_given"))]
DISTILLED = [name for name in NAMES if "/soft" in name or "/hard" in name]
UNTAUGHT = [name for name in NAMES if "/none_alpha" in name]
CROSS_ENTROPY = replace(DEIT_BASE, label_smoothing=0.0)
BINARY = replace(CROSS_ENTROPY, loss="binary_cross_entropy")


def stored(name: str) -> Tensor:
    return torch.from_numpy(STORED[name])


def taught(name: str) -> Tensor:
    """What the teacher of a golden case says: logits, or labels where distillation is hard."""
    logits = stored("teacher_logits")
    return logits.argmax(dim=1) if "hard" in name else logits


def targets_of(name: str) -> Tensor:
    """The soft targets that upstream's base losses mean: mixed, smoothed or one-hot."""
    if name.startswith("soft_target_ce/"):
        return stored("soft_targets")
    if name.startswith("bce_targets_gt_0/"):
        smoothed = name.endswith("/smoothed_targets")
        return stored("soft_targets" if smoothed else "soft_targets_no_smoothing")
    smoothing = 0.1 if name.startswith("label_smoothing") else 0.0
    one_hot = torch.eye(10, dtype=torch.float64)[stored("labels")]
    return one_hot * (1.0 - smoothing) + smoothing / 10


def criterion_of(name: str, **changes: Any) -> Criterion:
    """Our criterion for a golden case, from its name."""
    recipe = replace(BINARY if name.startswith("bce") else CROSS_ENTROPY, **changes)
    found = re.fullmatch(r".*/(soft|hard)_alpha([\d.]+)(?:_tau([\d.]+))?", name)
    if found is None:
        return criterion_for(recipe)
    kind, alpha, tau = found.groups()
    taught_by = replace(
        recipe, distillation=kind, teacher="taught", alpha=float(alpha), tau=float(tau or 1.0)
    )
    return criterion_for(taught_by)


def measured(name: str, **changes: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient of the class logits and gradient of the distillation logits."""
    logits = stored("cls_logits").requires_grad_()
    logits_dist = stored("dist_logits").requires_grad_()
    plain = name.endswith("none_plain_tensor_output")
    outputs: Outputs = logits if plain else (logits, logits_dist)
    loss = criterion_of(name, **changes)(outputs, taught(name), targets_of(name))
    gradients = torch.autograd.grad(
        loss, (logits, logits_dist), allow_unused=True, materialize_grads=True
    )
    return loss.detach(), *gradients


def assert_equal(found: Tensor, expected: Any) -> None:
    """Within the tolerance that the golden index advises."""
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-14)


@each_row("name", ["cosub/soft_targets", "cosub/targets_gt_0"])
def test_two_submodels_teach_each_other_as_in_the_original(name: str) -> None:
    # There the second half of the batch is the second submodel; here they stand side by side.
    both = torch.stack((stored("cls_logits"), stored("dist_logits")), dim=1).flatten(0, 1)
    binary = name.endswith("gt_0")
    targets = stored("soft_targets_no_smoothing" if binary else "soft_targets")
    targets = targets.repeat_interleave(2, dim=0)
    loss = Cosub(binary=binary)(both.requires_grad_(), None, targets)
    [gradient] = torch.autograd.grad(loss, both)
    assert_equal(loss.detach(), VALUES[name])
    assert_equal(torch.cat((gradient[::2], gradient[1::2])), STORED[f"grad_both/{name}"])


def test_every_loss_of_the_original_but_these_is_ours() -> None:
    assert sorted(set(VALUES) - set(NAMES)) == [
        "bce_targets_as_given",
        "cosub/soft_targets",
        "cosub/targets_gt_0",
    ]
    assert len(NAMES) == 21


@each_row("name", NAMES)
def test_a_loss_is_that_of_the_original(name: str) -> None:
    assert_equal(measured(name)[0], VALUES[name])


@each_row("name", NAMES)
def test_the_class_logits_have_the_gradient_of_the_original(name: str) -> None:
    assert_equal(measured(name)[1], STORED[f"grad_cls/{name}"])


@each_row("name", DISTILLED)
def test_the_distillation_logits_have_the_gradient_of_the_original(name: str) -> None:
    assert_equal(measured(name)[2], STORED[f"grad_dist/{name}"])


@pytest.mark.parametrize("name", UNTAUGHT)
def test_without_a_teacher_the_distillation_head_learns_nothing(name: str) -> None:
    assert not measured(name)[2].any()


@pytest.mark.parametrize("tau", ["1.0", "3.0"])
def test_batchmean_sums_over_the_classes_that_numel_averages(tau: str) -> None:
    # From the original's values: 2 x loss - base is the distillation term, of 10 classes.
    name = f"cross_entropy/soft_alpha0.5_tau{tau}"
    base = VALUES["cross_entropy/none_alpha0.5_tau1.0"]
    distilled = 2 * VALUES[name] - base
    found = measured(name, kl_reduction="batchmean")
    assert float(found[0]) == pytest.approx(0.5 * base + 0.5 * 10 * distilled, rel=1e-12)
    assert_equal(found[2], 10 * STORED[f"grad_dist/{name}"])


@each_row("name", DISTILLED)
def test_a_single_head_learns_from_the_labels_and_from_the_teacher(name: str) -> None:
    # The same logits twice is the same loss, and the gradient is the sum of both.
    criterion, targets = criterion_of(name), targets_of(name)
    one, two, single = (stored("cls_logits").requires_grad_() for _ in range(3))
    twice = criterion((one, two), taught(name), targets)
    once = criterion(single, taught(name), targets)
    assert once.item() == twice.item()
    of_one, of_two = torch.autograd.grad(twice, (one, two))
    assert of_one.any()
    assert of_two.any()
    assert_equal(torch.autograd.grad(once, single)[0], (of_one + of_two).numpy())


def test_smoothed_labels_with_binary_cross_entropy_are_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        replace(BINARY, label_smoothing=0.1)
    assert str(caught.value) == (
        "label_smoothing is 0.1 with the loss binary_cross_entropy, for which every class above 0 "
        "is right, so all would be; type --set label_smoothing=0"
    )


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("recipe", [CROSS_ENTROPY, BINARY], ids=["cross_entropy", "binary"])
def test_logits_of_bfloat16_give_a_loss_in_float32(recipe: Recipe, kind: str) -> None:
    # What a step under autocast hands over; the float64 loss is right to bfloat16's 8 bits.
    recipe = replace(recipe, distillation=kind, teacher="taught")
    targets = stored("soft_targets_no_smoothing")
    outputs = (stored("cls_logits"), stored("dist_logits"))
    criterion = criterion_for(recipe)
    exact = criterion(outputs, taught(kind), targets)
    short = (stored("cls_logits").bfloat16(), stored("dist_logits").bfloat16())
    said = taught(kind)
    with torch.autocast("cpu", torch.bfloat16):
        found = criterion(short, said.bfloat16() if kind == "soft" else said, targets.float())
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(exact), rel=0.02)


def test_cait_learns_from_a_teacher_through_its_class_head() -> None:
    # Two steps: the loss falls, and every parameter that is read has a gradient.
    sizes = dict(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=10)
    model = CaiT(**sizes, depth_token_only=1)
    images = torch.randn(6, 3, 16, 16)
    recipe = replace(CROSS_ENTROPY, distillation="hard", teacher="taught", lr=1e-2)
    criterion, optimizer = criterion_for(recipe), optimizer_for(model, recipe)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = criterion(model(images), taught("hard"), stored("soft_targets"))
        torch.autograd.backward(loss)
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]


def test_balanced_weights_are_in_inverse_proportion_to_the_images_of_a_class() -> None:
    weights = balanced_weights([1, 3, 8])
    assert weights.tolist() == pytest.approx([12 / 3, 12 / 9, 12 / 24])
    # The average image has weight 1.
    assert (weights * torch.tensor([1.0, 3.0, 8.0])).sum() == pytest.approx(12.0)


def test_class_weights_are_those_of_torchs_cross_entropy() -> None:
    recipe = replace(DEIT_BASE, class_weights="balanced", label_smoothing=0.0)
    weights = balanced_weights([1, 3, 8])
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 2, 1])
    loss = criterion_for(recipe, weights)(logits, None, F.one_hot(labels, 3).float())
    expected = F.cross_entropy(logits, labels, weight=weights, reduction="none").mean()
    assert loss.item() == pytest.approx(expected.item())
