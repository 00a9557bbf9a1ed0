"""The loop alone: replicas sum up to one step, draws have a place, bad losses change nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD, AdamW

import deit_zoo
from deit_zoo.distributed import DistributedContext
from deit_zoo.recipes.digits import DEIT_PICO
from deit_zoo.recipes.plan import Plan
from deit_zoo.recipes.recipe import Recipe
from deit_zoo.training.loop import TrainState, train_one_epoch
from deit_zoo.training.losses import Outputs, supervised
from deit_zoo.training.micro_batches import Batch, MicroBatches, active_drop_paths
from deit_zoo.training.optim import Ema, optimizer_for
from deit_zoo.training.steps import EpochStats, NotFinite, Requests, StepResult
from support.tables import each_row

# Two replicas of 128 images, and four steps in an epoch of 1024.
RECIPE = replace(DEIT_PICO, batch_size=256, replicas=2, warmup_epochs=0, lr=1e-3)
CALM = replace(RECIPE, drop_path_rate=0.0)

Criterion = Callable[[Outputs, Tensor, Tensor], Tensor]


def parts_of(recipe: Recipe, criterion: Criterion = supervised, **others: Any) -> TrainState:
    """A model of fixed weights that takes soft targets as they are."""
    torch.manual_seed(0)
    model = deit_zoo.create("deit_pico_digits", drop_path_rate=recipe.drop_path_rate)
    return TrainState(
        model=model,
        optimizer=optimizer_for(model, recipe),
        criterion=criterion,
        mix=lambda images, targets: (images, targets),
        replicas=range(recipe.replicas),
        group=DistributedContext(device=torch.device("cpu")),
        network=model,
        **others,
    )


def plan_of(recipe: Recipe) -> Plan:
    return Plan(recipe=recipe, modified=True, device="cpu", processes=1, workers=0, num_images=1024)


def batches_of(count: int, size: int = 4) -> list[Batch]:
    """Small batches with soft targets."""
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(
            torch.randn(size, 3, 16, 16, generator=generator),
            torch.rand(size, 10, generator=generator).softmax(dim=1),
            bad=[],
        )
        for _ in range(count)
    ]


def doubled(batches: list[Batch]) -> list[Batch]:
    """The same in float64."""
    return [
        batch._replace(images=batch.images.double(), labels=batch.labels.double())
        for batch in batches
    ]


def train(
    parts: TrainState,
    recipe: Recipe,
    batches: list[Batch],
    epoch: int = 0,
    sums: EpochStats | None = None,
    left_out: Collection[int] = (),
) -> tuple[EpochStats, list[StepResult]]:
    steps: list[StepResult] = []
    sums = train_one_epoch(
        parts, plan_of(recipe), epoch, batches, steps.append, sums, left_out=left_out
    )
    return sums, steps


def weights_of(parts: TrainState) -> Tensor:
    return torch.cat([value.detach().flatten() for value in parts.model.parameters()])


def trained(recipe: Recipe, **others: Any) -> Tensor:
    """The weights after an epoch of four steps."""
    parts = parts_of(recipe, **others)
    train(parts, recipe, batches_of(8))
    return weights_of(parts)


def broken_at(*steps: int, value: float = float("nan")) -> Criterion:
    """The usual loss, but for the second replica of some steps."""
    calls = iter(range(1000))

    def criterion(outputs: Outputs, images: Tensor, targets: Tensor) -> Tensor:
        loss = supervised(outputs, images, targets)
        step, replica = divmod(next(calls), 2)
        return loss * value if replica and step in steps else loss

    return criterion


def test_masks_lie_where_the_model_does_on_any_kind_of_device() -> None:
    # One without memory stands for a Mac's GPU, where images and masks of two devices do not meet.
    device = torch.device("meta")
    model = deit_zoo.create("deit_pico_digits", drop_path_rate=0.1, device=device).train()
    passes = MicroBatches(
        model=model,
        mix=lambda images, targets: (images, targets),
        batches=iter(batches_of(1)),
        replicas=range(1),
        per_pass=1,
        key=(0, 0),
        device=device,
    )
    [part] = passes.of_step(0)
    paths = active_drop_paths(model)
    assert paths
    assert {path.masks.device for path in paths if path.masks is not None} == {device}
    assert model(part.images).device == device


def test_two_replicas_are_one_step_over_both_batches() -> None:
    # In float64 and without drop-path, whose masks belong to the replica.
    halves = doubled(batches_of(8))
    wholes = [
        Batch(
            torch.cat((halves[n].images, halves[n + 1].images)),
            torch.cat((halves[n].labels, halves[n + 1].labels)),
            bad=[],
        )
        for n in range(0, 8, 2)
    ]
    split, joined = parts_of(CALM), parts_of(replace(CALM, replicas=1))
    for parts in (split, joined):
        parts.model.double()
    train(split, CALM, halves)
    train(joined, replace(CALM, replicas=1), wholes)
    torch.testing.assert_close(weights_of(split), weights_of(joined), rtol=1e-9, atol=1e-12)


def test_every_step_is_reported_with_its_number_and_rate() -> None:
    _, steps = train(parts_of(RECIPE), RECIPE, batches_of(8))
    assert [(step.number, step.lr, step.bad, step.stop) for step in steps] == [
        (number, 1e-3, [], False) for number in range(4)
    ]


def test_the_loss_of_a_step_is_the_mean_over_its_replicas() -> None:
    constant = iter([1.0, 3.0] * 4)

    def criterion(outputs: Outputs, images: Tensor, targets: Tensor) -> Tensor:
        return supervised(outputs, images, targets) * 0.0 + next(constant)

    sums, steps = train(parts_of(RECIPE, criterion), RECIPE, batches_of(8))
    assert [step.loss for step in steps] == [2.0] * 4
    assert (sums.loss, sums.losses) == (8.0, 4)


def test_the_rate_is_that_of_the_epoch() -> None:
    recipe = replace(RECIPE, warmup_epochs=4, warmup_lr=0.0)
    _, steps = train(parts_of(recipe), recipe, batches_of(8), epoch=3)
    assert {step.lr for step in steps} == {5e-4}  # the warm-up of the epoch before: 2 of 4


def test_an_epoch_reports_where_its_time_went() -> None:
    sums, _ = train(parts_of(RECIPE), RECIPE, batches_of(8))
    assert 0.0 <= sums.data_seconds < sums.seconds


def test_a_model_that_was_evaluated_is_trained_in_train_mode() -> None:
    parts = parts_of(RECIPE)
    parts.model.eval()
    train(parts, RECIPE, batches_of(8))
    assert parts.model.training


def test_the_loss_falls_on_images_seen_again() -> None:
    parts, batches = parts_of(CALM), batches_of(2) * 4
    results = [train(parts, CALM, batches, epoch)[0].loss for epoch in range(3)]
    assert results == sorted(results, reverse=True)


@pytest.mark.parametrize("done", [1, 3, 4])
def test_an_epoch_that_was_left_goes_on_at_its_step(done: int) -> None:
    recipe = replace(RECIPE, drop_path_rate=0.5)
    whole, halves = parts_of(recipe), parts_of(recipe)
    expected, _ = train(whole, recipe, batches_of(8))

    class Left(Exception):
        """Raised where the first half ends."""

    def leave(step: StepResult) -> None:
        if step.number == done - 1:
            raise Left

    sums = EpochStats()
    with pytest.raises(Left):
        train_one_epoch(halves, plan_of(recipe), 0, batches_of(8), leave, sums)
    found, steps = train(halves, recipe, batches_of(8)[2 * done :], sums=sums)
    assert [step.number for step in steps] == list(range(done, 4))
    assert (found.step, found.loss, found.losses) == (expected.step, expected.loss, 4)
    assert torch.equal(weights_of(halves), weights_of(whole))


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


def test_drop_path_masks_do_not_depend_on_what_mixing_drew() -> None:
    recipe = replace(RECIPE, drop_path_rate=0.5)

    def drawing_mix(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        torch.rand(3)
        return images, targets

    drawing, still = replace(parts_of(recipe), mix=drawing_mix), parts_of(recipe)
    for parts in (drawing, still):
        train(parts, recipe, batches_of(8))
    assert torch.equal(weights_of(drawing), weights_of(still))


def test_out_of_train_mode_no_path_is_dropped() -> None:
    dropping = replace(RECIPE, drop_path_rate=0.5)
    assert not torch.equal(trained(dropping), trained(CALM))
    assert torch.equal(trained(replace(dropping, train_mode=False)), trained(CALM))


@each_row("value", [float("nan"), float("inf")])
@each_row("broken", [(1,), (0, 1), (1, 3)])
def test_a_step_whose_loss_is_not_finite_is_skipped_and_counted(
    broken: tuple[int, ...], value: float
) -> None:
    parts = parts_of(CALM, broken_at(*broken, value=value))
    seen: list[Tensor] = []

    def note(step: StepResult) -> None:
        seen.append(weights_of(parts))

    before = weights_of(parts)
    sums = train_one_epoch(parts, plan_of(CALM), 0, batches_of(8), note)
    changed = [not torch.equal(*pair) for pair in zip([before, *seen], seen, strict=False)]
    assert changed == [number not in broken for number in range(4)]
    assert (sums.skipped, sums.losses, sums.step) == (len(broken), 4 - len(broken), 4)


def test_the_mean_loss_of_an_epoch_leaves_skipped_steps_out() -> None:
    whole, _ = train(parts_of(CALM), CALM, batches_of(8))
    sums, steps = train(parts_of(CALM, broken_at(3)), CALM, batches_of(8))
    assert sums.loss == pytest.approx(sum(step.loss for step in steps[:3]))
    assert sums.loss < whole.loss


def test_the_third_loss_in_a_row_that_is_not_finite_is_raised_with_its_step() -> None:
    parts = parts_of(CALM, broken_at(1, 2, 3))
    sums = EpochStats()
    with pytest.raises(NotFinite) as caught:
        train(parts, CALM, batches_of(8), sums=sums)
    assert (caught.value.step.number, str(caught.value)) == (
        3,
        "loss nan and gradient norm nan at step 3",
    )
    assert (sums.step, sums.skipped) == (4, 3)


def test_losses_that_are_not_finite_are_counted_in_a_row_over_the_end_of_an_epoch() -> None:
    parts = parts_of(CALM, broken_at(0))
    with pytest.raises(NotFinite):
        train(parts, CALM, batches_of(8), sums=EpochStats(in_a_row=2))


def test_a_finite_loss_ends_the_row() -> None:
    sums, _ = train(parts_of(CALM, broken_at(0, 1, 3)), CALM, batches_of(8))
    assert (sums.skipped, sums.in_a_row) == (3, 1)


def test_images_that_were_bad_are_counted_and_named_in_their_step() -> None:
    batches = batches_of(8)
    batches[2].bad.append(0)
    batches[3].bad.extend((42, 7))
    sums, steps = train(parts_of(RECIPE), RECIPE, batches)
    assert [step.bad for step in steps] == [[], [0, 42, 7], [], []]
    assert sums.bad_images == 3


def test_an_image_that_is_shown_again_in_an_epoch_is_bad_once() -> None:
    batches = batches_of(8)
    batches[0].bad.extend((42, 42))
    batches[5].bad.extend((7, 42))
    sums, steps = train(parts_of(RECIPE), RECIPE, batches)
    assert [(step.bad, step.replaced) for step in steps] == [([42], 2), ([], 0), ([7], 2), ([], 0)]
    assert sums.bad_images == 2


def test_requests_are_told_with_the_step_during_which_they_came() -> None:
    requests = iter([Requests(), Requests(save=True), Requests(stop=True), Requests()])
    steps: list[StepResult] = []
    train_one_epoch(
        parts_of(RECIPE),
        plan_of(RECIPE),
        0,
        batches_of(8),
        steps.append,
        requests=lambda: next(requests),
    )
    assert [(step.save, step.stop) for step in steps] == [
        (False, False),
        (True, False),
        (False, True),
        (False, False),
    ]


def test_gradients_are_clipped_where_the_recipe_says_so() -> None:
    recipe = replace(CALM, clip_grad=0.01)
    parts = parts_of(recipe)
    norms: list[float] = []
    parts.optimizer.register_step_pre_hook(
        lambda *_: norms.append(
            float(torch.cat([p.grad.flatten() for p in parts.model.parameters()]).norm())
        )
    )
    train(parts, recipe, batches_of(8))
    assert norms == pytest.approx([0.01] * 4, rel=1e-3)


def test_autocast_in_bfloat16_trains_close_to_full_precision_and_not_the_same() -> None:
    full, half = parts_of(CALM), parts_of(CALM, dtype=torch.bfloat16)
    expected, _ = train(full, CALM, batches_of(8))
    found, _ = train(half, CALM, batches_of(8))
    assert weights_of(half).dtype == torch.float32
    assert not torch.equal(weights_of(half), weights_of(full))
    assert found.loss == pytest.approx(expected.loss, rel=1e-3)


@pytest.mark.parametrize("clip_grad", [None, 0.01])
def test_a_scaled_loss_trains_as_one_that_is_not(clip_grad: float | None) -> None:
    # A power of two is exact in float32, and so is its inverse.
    recipe = replace(CALM, clip_grad=clip_grad)
    assert torch.equal(trained(recipe, scaler=GradScaler("cpu")), trained(recipe))


def test_the_average_takes_in_every_step_that_was_made() -> None:
    parts = parts_of(CALM, broken_at(1))
    parts = replace(parts, ema=Ema(parts.model, 0.5))
    expected = weights_of(parts)
    seen: list[Tensor] = []

    def note(step: StepResult) -> None:
        seen.append(weights_of(parts))

    train_one_epoch(parts, plan_of(CALM), 0, batches_of(8), note)
    for number in (0, 2, 3):
        expected = 0.5 * expected + 0.5 * seen[number]
    assert parts.ema
    found = torch.cat([value.flatten() for value in parts.ema.module.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def fused(parts: TrainState) -> TrainState:
    """The same, with an optimizer that leaves a step undone by itself, as on a GPU."""
    groups = [dict(group) for group in parts.optimizer.param_groups]
    for group in groups:
        del group["fused"], group["foreach"]
    return replace(parts, optimizer=AdamW(groups, fused=True))


def poisoned_at(parts: TrainState, *steps: int, value: float = float("nan")) -> TrainState:
    """The same, whose gradient, not its loss, is not finite in some steps."""
    calls = iter(range(1000))

    def spoil(gradient: Tensor) -> Tensor:
        step = next(calls) // 2  # of two replicas
        return torch.full_like(gradient, value) if step in steps else gradient

    parts.model.head.weight.register_hook(spoil)
    return parts


@each_row("make", [lambda parts: parts, fused])
@each_row("value", [float("nan"), float("inf")])
def test_a_step_whose_gradient_is_not_finite_moves_nothing(
    make: Callable[[TrainState], TrainState], value: float
) -> None:
    parts = poisoned_at(make(parts_of(CALM)), 1, 3, value=value)
    sums, steps = train(parts, CALM, batches_of(8))
    assert [(step.finite, math.isfinite(step.grad_norm)) for step in steps] == [
        (True, True),
        (False, False),
        (True, True),
        (False, False),
    ]
    assert all(math.isfinite(step.loss) for step in steps)
    assert (sums.skipped, sums.losses, sums.step) == (2, 2, 4)

    kept = make(parts_of(CALM))
    batches = batches_of(8)
    train(kept, CALM, batches, left_out={1, 3})
    assert torch.equal(weights_of(parts), weights_of(kept))
    moments, expected = (p.optimizer.state_dict()["state"] for p in (parts, kept))
    for number, values in expected.items():
        assert all(torch.equal(value, moments[number][key]) for key, value in values.items())


def test_a_fused_optimizer_trains_as_the_plain_one() -> None:
    plain, other = parts_of(CALM), fused(parts_of(CALM))
    (expected, told), (found, steps) = (train(p, CALM, batches_of(8)) for p in (plain, other))
    torch.testing.assert_close(weights_of(other), weights_of(plain), rtol=1e-4, atol=1e-5)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert [step.number for step in steps] == [step.number for step in told]


def test_steps_that_are_left_out_are_passed_over_with_their_images() -> None:
    recipe = replace(RECIPE, drop_path_rate=0.5)
    parts, other = parts_of(recipe), parts_of(recipe)
    sums, steps = train(parts, recipe, batches_of(8), left_out={0, 2})
    assert [step.number for step in steps] == [1, 3]
    assert (sums.step, sums.skipped, sums.losses, sums.in_a_row) == (4, 2, 2, 0)
    # The same draws at the same places, by one who never had the others' images.
    train(other, recipe, batches_of(8)[2:], sums=EpochStats(step=1), left_out={2})
    assert torch.equal(weights_of(parts), weights_of(other))


@each_row("make", [lambda parts: parts, fused])
def test_the_loop_comes_to_rest_with_every_step_counted(
    make: Callable[[TrainState], TrainState],
) -> None:
    # On a GPU a step is read while the next is under way; no state may be written between.
    parts = make(parts_of(CALM))
    seen: list[tuple[int, Tensor]] = []
    sums = EpochStats()
    train_one_epoch(
        parts,
        plan_of(CALM),
        0,
        batches_of(8),
        lambda step: None,
        sums,
        requests=lambda: Requests(save=sums.step == 1),
        at_rest=lambda: seen.append((sums.step, weights_of(parts))),
    )
    assert seen
    for steps, weights in seen:
        again = make(parts_of(CALM))
        train(again, CALM, batches_of(8), left_out=range(steps, 4))
        assert torch.equal(weights_of(again), weights)


def test_masks_stay_where_they_are_in_memory() -> None:
    # A CUDA graph is recorded anew where a tensor of a module has moved.
    recipe = replace(RECIPE, drop_path_rate=0.5)
    parts = parts_of(recipe)
    seen: list[dict[int, Tensor]] = []

    def note(_: StepResult) -> None:
        paths = active_drop_paths(parts.model)
        masks = [path.masks for path in paths if path.masks is not None]
        seen.append({mask.data_ptr(): mask.clone() for mask in masks})

    for epoch in range(2):
        train_one_epoch(parts, plan_of(recipe), epoch, batches_of(8), note)
    assert len(seen[0]) == len(active_drop_paths(parts.model)) > 0
    assert all(places.keys() == seen[0].keys() for places in seen)
    first, second = (torch.cat([*masks.values()]) for masks in seen[:2])
    assert not torch.equal(first, second)


@each_row("train_mode", [True, False])
def test_replicas_go_through_together_as_one_by_one(train_mode: bool) -> None:
    # In float64: only the order of sums differs.
    recipe = replace(RECIPE, drop_path_rate=0.5, train_mode=train_mode)
    batches = doubled(batches_of(8))
    single, joined = parts_of(recipe), replace(parts_of(recipe), per_pass=2)
    for parts in (single, joined):
        parts.model.double()
    (expected, _), (found, _) = (train(p, recipe, batches) for p in (single, joined))
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    torch.testing.assert_close(weights_of(joined), weights_of(single), rtol=1e-9, atol=1e-12)


def test_the_norm_of_the_gradient_is_told_before_it_is_clipped() -> None:
    _, free = train(parts_of(CALM), CALM, batches_of(8))
    clipped = replace(CALM, clip_grad=1e-3)
    _, bound = train(parts_of(clipped), clipped, batches_of(8))
    assert bound[0].grad_norm == free[0].grad_norm > 1e-3


def test_a_scaler_may_halve_its_scale_for_longer_than_a_run_may_fail() -> None:
    parts = parts_of(CALM, scaler=GradScaler("cpu", init_scale=2.0**16))
    sums, _ = train(poisoned_at(parts, 0, 1, 2, 3), CALM, batches_of(8))
    assert (sums.skipped, sums.in_a_row) == (4, 4)
    assert parts.scaler.get_scale() == 2.0**12


def test_running_statistics_that_are_not_finite_make_a_step_not_finite() -> None:
    # A forward pass moves them before anything can be skipped: the run must go back at once.
    parts = parts_of(CALM)
    parts.model.register_buffer("running_mean", torch.full((3,), math.inf))
    before = weights_of(parts)
    with pytest.raises(NotFinite):
        train(parts, CALM, batches_of(8))
    assert torch.equal(weights_of(parts), before)


def test_a_fused_sgd_is_asked_by_the_cpu_whether_to_step() -> None:
    # Its kernel leaves the momentum unset where the first step is left undone.
    recipe = replace(CALM, optimizer="sgd")
    parts = parts_of(recipe)
    groups = [dict(group) for group in parts.optimizer.param_groups]
    for group in groups:
        del group["fused"], group["foreach"]
    parts = poisoned_at(replace(parts, optimizer=SGD(groups, fused=True)), 0)
    _, steps = train(parts, recipe, batches_of(8))
    assert [step.finite for step in steps] == [False, True, True, True]
    assert bool(torch.isfinite(weights_of(parts)).all())
    assert float(weights_of(parts).abs().max()) < 10.0
