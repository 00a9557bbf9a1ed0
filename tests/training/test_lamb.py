"""LAMB: timm's, with the values of the library that DeiT III was trained with."""

from __future__ import annotations

from dataclasses import replace

import torch
from timm.optim import Lamb
from torch import Tensor, nn
from torch.optim import Optimizer

from deit_zoo.models.model import ZooModel
from deit_zoo.recipes import RECIPES
from deit_zoo.training.optim import optimizer_for

RECIPE = replace(RECIPES["deit3_small"], lr=0.1)


class Line(ZooModel):
    """A matrix that decays and a bias that does not."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 4, generator=generator, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(4, generator=generator, dtype=torch.float64))

    def loss(self) -> Tensor:
        return (self.weight @ self.bias).square().sum() + self.weight.exp().sum()


def walk(model: Line, optimizer: Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step()


def weights(model: Line) -> list[Tensor]:
    return [value.detach().clone() for value in (model.bias, model.weight)]


def by_hand(steps: int) -> list[Tensor]:
    """As apex's FusedLAMB: a trust ratio where there is decay, which is part of the update."""
    model = Line()
    parameters = [model.bias, model.weight]
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    for step in range(1, steps + 1):
        gradients = torch.autograd.grad(model.loss(), parameters)
        with torch.no_grad():
            for p, g, m, v, decay in zip(
                parameters, gradients, first, second, (0.0, 0.05), strict=True
            ):
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                root = (v / (1 - 0.999**step)).sqrt() + 1e-8
                update = m / (1 - 0.9**step) / root + decay * p
                ratio = p.norm() / update.norm() if decay else 1.0
                p -= 0.1 * ratio * update
    return weights(model)


def test_lamb_takes_the_steps_of_the_published_rule() -> None:
    model = Line()
    optimizer = optimizer_for(model, RECIPE)
    assert isinstance(optimizer, Lamb)
    walk(model, optimizer, 6)
    for found, expected in zip(weights(model), by_hand(6), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_gradients_are_clipped_by_the_loop_alone() -> None:
    assert (RECIPE.clip_grad, RECIPE.eps) == (1.0, 1e-8)
    optimizer = optimizer_for(Line(), RECIPE)
    assert optimizer.defaults["max_grad_norm"] is None


def saved_and_loaded(optimizer: Optimizer) -> Optimizer:
    """Another optimizer with the moments alone, as a state file keeps them."""
    moments = {
        number: {name: torch.as_tensor(value).clone() for name, value in of_one.items()}
        for number, of_one in optimizer.state_dict()["state"].items()
    }
    other = optimizer_for(Line(), RECIPE)
    other.param_groups = optimizer.param_groups
    other.load_state_dict(other.state_dict() | {"state": moments})
    return other


def test_a_run_that_is_continued_walks_on_bit_for_bit() -> None:
    whole, parted = Line(), Line()
    walk(whole, optimizer_for(whole, RECIPE), 6)
    optimizer = optimizer_for(parted, RECIPE)
    walk(parted, optimizer, 3)
    for group in optimizer.param_groups:
        group.pop("step")  # what a state file does not hold
    walk(parted, saved_and_loaded(optimizer), 3)
    assert all(map(torch.equal, weights(parted), weights(whole)))


def test_steps_that_were_only_tried_leave_nothing() -> None:
    # As a measurement of throughput before the first step: moments are cleared after it.
    model, fresh = Line(), Line()
    optimizer = optimizer_for(model, RECIPE)
    walk(model, optimizer, 4)
    with torch.no_grad():
        model.weight.copy_(fresh.weight)
        model.bias.copy_(fresh.bias)
    optimizer.state.clear()
    walk(model, optimizer, 2)
    walk(fresh, optimizer_for(fresh, RECIPE), 2)
    assert all(map(torch.equal, weights(model), weights(fresh)))
