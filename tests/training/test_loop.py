"""The loop alone: replicas sum up to one step, and a loss that is not finite stops at its step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import deit_zoo
from deit_zoo.errors import ZooError
from deit_zoo.training.loop import EpochResult, Parts, train_one_epoch
from deit_zoo.training.losses import Outputs, supervised
from deit_zoo.training.optim import optimizer_for
from deit_zoo.training.plan import Plan
from deit_zoo.training.recipe import Recipe
from deit_zoo.training.recipes.digits import DEIT_PICO

# Two replicas of 128 images, and four steps in an epoch of 1024.
RECIPE = replace(DEIT_PICO, batch_size=256, replicas=2, warmup_epochs=0, lr=1e-3)


def parts_of(
    recipe: Recipe, criterion: Callable[[Outputs, Tensor, Tensor], Tensor] = supervised
) -> Parts:
    """A model of fixed weights that takes soft targets as they are."""
    torch.manual_seed(0)
    model = deit_zoo.create("deit_pico_digits", drop_path_rate=recipe.drop_path_rate)
    return Parts(
        model=model,
        optimizer=optimizer_for(model, recipe),
        criterion=criterion,
        mix=lambda images, targets: (images, targets),
        replicas=range(recipe.replicas),
        device=torch.device("cpu"),
    )


def plan_of(recipe: Recipe) -> Plan:
    return Plan(recipe=recipe, modified=True, device="cpu", processes=1, workers=0, num_images=1024)


def batches_of(count: int, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Small batches with soft targets."""
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(size, 3, 16, 16, generator=generator),
            torch.rand(size, 10, generator=generator).softmax(dim=1),
        )
        for _ in range(count)
    ]


def train(
    parts: Parts, recipe: Recipe, batches: list[tuple[Tensor, Tensor]], epoch: int = 0
) -> tuple[EpochResult, list[float]]:
    losses: list[float] = []
    return train_one_epoch(parts, plan_of(recipe), epoch, batches, losses.append), losses


def weights_of(parts: Parts) -> Tensor:
    return torch.cat([value.detach().flatten() for value in parts.model.parameters()])


def test_two_replicas_are_one_step_over_both_batches() -> None:
    # In float64 and without drop-path, whose masks belong to the replica.
    recipe = replace(RECIPE, drop_path_rate=0.0)
    halves = [(images.double(), targets.double()) for images, targets in batches_of(8)]
    wholes = [
        tuple(torch.cat(pair) for pair in zip(halves[n], halves[n + 1], strict=True))
        for n in range(0, 8, 2)
    ]
    split, joined = parts_of(recipe), parts_of(replace(recipe, replicas=1))
    for parts in (split, joined):
        parts.model.double()
    train(split, recipe, halves)
    train(joined, replace(recipe, replicas=1), wholes)
    torch.testing.assert_close(weights_of(split), weights_of(joined), rtol=1e-9, atol=1e-12)


def test_every_step_is_reported_with_its_loss() -> None:
    _, losses = train(parts_of(RECIPE), RECIPE, batches_of(8))
    assert [type(loss) for loss in losses] == [float] * 4


def test_an_epoch_reports_its_mean_loss_its_rate_and_its_images() -> None:
    result, losses = train(parts_of(RECIPE), RECIPE, batches_of(8))
    assert result.loss == pytest.approx(sum(losses) / 4)
    assert (result.lr, result.images) == (1e-3, 1024)


def test_an_epoch_reports_where_its_time_went() -> None:
    result, _ = train(parts_of(RECIPE), RECIPE, batches_of(8))
    assert 0.0 <= result.data_seconds < result.seconds


def test_a_model_that_was_evaluated_is_trained_in_train_mode() -> None:
    parts = parts_of(RECIPE)
    parts.model.eval()
    train(parts, RECIPE, batches_of(8))
    assert parts.model.training


def test_the_loss_falls_on_images_seen_again() -> None:
    recipe = replace(RECIPE, drop_path_rate=0.0)
    parts, batches = parts_of(recipe), batches_of(2) * 4
    results = [train(parts, recipe, batches, epoch)[0].loss for epoch in range(3)]
    assert results == sorted(results, reverse=True)


def test_drop_path_masks_depend_on_the_place_alone() -> None:
    recipe = replace(RECIPE, drop_path_rate=0.5)
    runs = []
    for noise in (1, 2):
        parts = parts_of(recipe)
        torch.manual_seed(noise)
        train(parts, recipe, batches_of(8), epoch=3)
        runs.append(weights_of(parts))
    assert torch.equal(*runs)


@pytest.mark.parametrize("change", [{"seed": 1}, {}], ids=["seed", "epoch"])
def test_drop_path_masks_differ_elsewhere(change: dict[str, Any]) -> None:
    recipe = replace(RECIPE, drop_path_rate=0.5, epochs=10**6)  # the same rate in both epochs
    other = replace(recipe, **change)
    first, second = parts_of(recipe), parts_of(other)
    train(first, recipe, batches_of(8), epoch=0)
    train(second, other, batches_of(8), epoch=0 if change else 1)
    assert not torch.equal(weights_of(first), weights_of(second))


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_names_epoch_and_step(value: str) -> None:
    with pytest.raises(ZooError) as caught:
        train(parts_of(RECIPE, broken_at(2, float(value))), RECIPE, batches_of(8), epoch=5)
    assert str(caught.value) == (
        f"the loss is {value} at epoch 5, step 2; lower the rate with --set lr=0.0005, or bound "
        "the gradients with --set clip_grad=1"
    )


def test_a_loss_that_is_not_finite_changes_no_weight() -> None:
    parts = parts_of(RECIPE, broken_at(0, float("nan")))
    before = weights_of(parts)
    with pytest.raises(ZooError, match=r"^the loss is nan at epoch 0, step 0; "):
        train(parts, RECIPE, batches_of(8))
    assert torch.equal(weights_of(parts), before)


def broken_at(step: int, value: float) -> Callable[[Outputs, Tensor, Tensor], Tensor]:
    """The usual loss, but for the second replica of one step."""
    calls = iter(range(1000))

    def criterion(outputs: Outputs, images: Tensor, targets: Tensor) -> Tensor:
        loss = supervised(outputs, images, targets)
        return loss * value if next(calls) == 2 * step + 1 else loss

    return criterion
