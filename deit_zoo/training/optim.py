"""The optimizer, and which parameters it does not decay."""

from __future__ import annotations

from typing import Any

from torch.nn import Parameter
from torch.optim import AdamW

from deit_zoo.models.layers import ZooModel
from deit_zoo.training.recipe import Recipe


def parameter_groups(model: ZooModel, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, in upstream's order: without decay (biases, norms, positions), with decay."""
    exempt = model.no_weight_decay()
    plain: list[Parameter] = []
    decayed: list[Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            free = parameter.ndim == 1 or name.endswith(".bias") or name in exempt
            (plain if free else decayed).append(parameter)
    return [
        {"params": plain, "weight_decay": 0.0},
        {"params": decayed, "weight_decay": weight_decay},
    ]


def optimizer_for(model: ZooModel, recipe: Recipe) -> AdamW:
    """AdamW as the recipe says."""
    groups = parameter_groups(model, recipe.weight_decay)
    return AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps)
