"""Parameter groups, AdamW and gradient clipping against the original code."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim import AdamW

import deit_zoo
import golden
from deit_zoo.errors import RecipeError
from deit_zoo.models.model import ZooModel
from deit_zoo.recipes.deit import DEIT_BASE
from deit_zoo.registry import MODELS
from deit_zoo.training.loop import clip_gradients
from deit_zoo.training.optim import freeze, optimizer_for, parameter_groups

KNOWN = {alias for spec in MODELS.values() for alias in spec.aliases}
GROUPS = [
    pytest.param(entry, id=entry["factory"])
    for entry in json.loads((golden.HERE / "parameter_groups.json").read_text(encoding="utf-8"))
    if entry["factory"] in KNOWN
]
CLIPPED = [
    pytest.param(entry, id=str(entry["index"]))
    for entry in golden.case("gradient_clipping")["cases"]
]


class Line(ZooModel):
    """A weight of 3 x 5 that decays and a bias of 3 that does not, as in the AdamW cases."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(double(f"{name}/weight", (3, 5)))
        self.bias = nn.Parameter(double(f"{name}/bias", (3,)))


def double(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(golden.normals(name, shape)).double()


def names_by_group(model: ZooModel, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups with names in place of parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        {
            "names": [names[id(parameter)] for parameter in group["params"]],
            "weight_decay": group["weight_decay"],
        }
        for group in groups
    ]


@pytest.mark.parametrize("entry", GROUPS)
def test_parameters_are_grouped_as_in_the_original(entry: dict[str, Any]) -> None:
    model = deit_zoo.create(entry["factory"], device="meta")
    assert names_by_group(model, parameter_groups(model, 0.05)) == entry["groups"]


@pytest.mark.parametrize("entry", GROUPS)
def test_the_optimizer_of_the_recipe_has_the_settings_of_the_original(
    entry: dict[str, Any],
) -> None:
    model = deit_zoo.create(entry["factory"], device="meta")
    optimizer = optimizer_for(model, DEIT_BASE)
    assert type(optimizer) is AdamW
    assert [(list(group["betas"]), group["eps"]) for group in optimizer.param_groups] == [
        (entry["betas"], entry["eps"])
    ] * 2


def test_a_frozen_parameter_is_in_no_group() -> None:
    model = Line("adamw/default")
    model.weight.requires_grad_(False)
    assert names_by_group(model, parameter_groups(model, 0.05)) == [
        {"names": ["bias"], "weight_decay": 0.0},
        {"names": [], "weight_decay": 0.05},
    ]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("case", golden.cases("adamw"), ids=lambda case: case["name"])
def test_adamw_takes_the_steps_of_the_original(case: dict[str, Any], device: str) -> None:
    settings = case["optimizer"]
    recipe = replace(
        DEIT_BASE,
        weight_decay=settings["weight_decay"],
        betas=tuple(settings["betas"]),
        eps=settings["eps"],
    )
    stored = golden.arrays(case)
    model = Line(case["name"]).to(device)
    optimizer = optimizer_for(model, recipe)
    weights, biases = [], []
    for step, rate in enumerate(stored["lr"].tolist()):
        for group in optimizer.param_groups:
            group["lr"] = rate
        scale = 10.0 ** (step % 4 - 3)
        gradients = double(f"{case['name']}/weight_grad{step}", (3, 5))
        model.weight.grad = scale * gradients.to(device)
        model.bias.grad = scale * double(f"{case['name']}/bias_grad{step}", (3,)).to(device)
        optimizer.step()
        weights.append(model.weight.detach().cpu().clone())
        biases.append(model.bias.detach().cpu().clone())
    for found, name in ((weights, "weight"), (biases, "bias")):
        np.testing.assert_allclose(torch.stack(found), stored[name], rtol=1e-11, atol=1e-13)


def test_on_the_cpu_torch_chooses_the_kernel() -> None:
    # Its choice made the embedded checkpoints, bit for bit.
    assert optimizer_for(Line("adamw/default"), DEIT_BASE).defaults["fused"] is None


@pytest.mark.gpu
def test_on_a_gpu_the_kernel_is_fused() -> None:
    assert optimizer_for(Line("adamw/default").cuda(), DEIT_BASE).defaults["fused"] is True


@pytest.mark.parametrize("entry", CLIPPED)
def test_gradients_are_clipped_as_in_the_original(entry: dict[str, Any]) -> None:
    stored = golden.arrays(golden.case("gradient_clipping"))
    number = entry["index"]
    parameters = []
    for kind in ("weight", "bias"):
        gradient = torch.from_numpy(stored[f"{kind}_grad_{number}"])
        parameter = nn.Parameter(torch.zeros_like(gradient))
        parameter.grad = gradient
        parameters.append(parameter)
    total = clip_gradients(parameters, entry["max_norm"])
    np.testing.assert_allclose(total, stored[f"total_norm_{number}"], rtol=1e-12, atol=1e-15)
    for kind, parameter in zip(("weight", "bias"), parameters, strict=True):
        expected = stored[f"clipped_{kind}_grad_{number}"]
        np.testing.assert_allclose(parameter.grad, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["deit_pico_distilled_digits", "cait_xxs24_224"])
def test_layer_decay_groups_are_those_of_timm(name: str) -> None:
    model = deit_zoo.create(name, device="meta")
    theirs = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.65)

    def table(groups: list[dict[str, Any]]) -> dict[int, tuple[float, float]]:
        return {
            id(parameter): (group["weight_decay"], round(group["lr_scale"], 12))
            for group in groups
            for parameter in group["params"]
        }

    assert table(theirs.param_groups) == table(parameter_groups(model, 0.05, 0.65))


def test_attention_alone_learns_what_it_does_in_the_original() -> None:
    entries = json.loads((golden.HERE / "attn_only_trainable.json").read_text(encoding="utf-8"))
    factories = {"deit_tiny_patch16_224", "deit_small_patch16_LS"}
    ours = [entry for entry in entries if entry["factory"] in factories]
    assert len(ours) == 2
    for entry in ours:
        model = deit_zoo.create(entry["factory"], device="meta")
        freeze(model, "all-but-attention")
        found = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert found == entry["trainable"]


@pytest.mark.parametrize("own_classes", [False, True])
def test_where_attention_alone_learns_the_head_of_the_distillation_token_does_if_it_is_new(
    own_classes: bool,
) -> None:
    # Upstream's main.py lets `.attn.`, model.head and model.pos_embed learn, whatever the model.
    model = deit_zoo.create("deit_pico_distilled_digits", device="meta")
    freeze(model, "all-but-attention", own_classes=own_classes)
    found = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    new = {"head_dist.weight", "head_dist.bias"} if own_classes else set()
    assert {name for name in found if ".attn." not in name} == {
        *("pos_embed", "head.weight", "head.bias"),
        *new,
    }


def test_a_frozen_backbone_leaves_both_heads_to_learn() -> None:
    model = deit_zoo.create("deit_pico_distilled_digits", device="meta")
    freeze(model, "backbone")
    found = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


def test_a_network_without_attention_cannot_learn_it_alone() -> None:
    model = deit_zoo.create("convnet_pico_digits", device="meta")
    with pytest.raises(RecipeError, match="ConvNet has no attention; type --freeze backbone"):
        freeze(model, "all-but-attention")


def test_sgd_without_momentum_is_plain() -> None:
    recipe = replace(DEIT_BASE, optimizer="sgd", lr=0.5, weight_decay=0.0, momentum=0.0)
    model = Line("plain")
    before = model.weight.detach().clone()
    model.weight.sum().backward()
    optimizer_for(model, recipe).step()
    torch.testing.assert_close(before - model.weight, torch.full((3, 5), 0.5).double())
