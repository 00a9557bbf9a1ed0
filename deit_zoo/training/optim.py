"""The optimizer, what it does not decay, slows down or leaves alone, and the average of weights."""

from __future__ import annotations

import re
from typing import Any, cast

from torch.nn import Parameter
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from deit_zoo.errors import RecipeError
from deit_zoo.models.model import ZooModel
from deit_zoo.recipes.recipe import Recipe
from deit_zoo.training.timm_bridge import depths_of, lamb

# What learns when the backbone is frozen, and when only attention learns (upstream's main.py).
HEADS = r"^head(_dist)?\."
ATTENTION = r"\.attn\.|^pos_embed$|^head\."


def freeze(model: ZooModel, what: str, *, own_classes: bool = False) -> None:
    """Leave to learn: everything, the heads, or attention with positions and the class head.

    That head is the class token's alone, as upstream's main.py has it: of a distilled model
    `head_dist` stays as it is. On `own_classes`, where both heads are new, both learn.
    """
    attention = f"{ATTENTION}|{HEADS}" if own_classes else ATTENTION
    patterns = {"none": "", "backbone": HEADS, "all-but-attention": attention}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.search(patterns[what], name) is not None)
    if what == "all-but-attention" and not any(".attn." in name for name in model.state_dict()):
        raise RecipeError(
            f"freeze is {what!r}, but {type(model).__name__} has no attention; type --freeze "
            "backbone to train its head alone"
        )


def parameter_groups(
    model: ZooModel, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Groups in upstream's order: without decay (biases, norms, positions), with decay.

    With `layer_decay` each group is parted by depth; `lr_scale` is the share of the rate, 1 for the
    head and `layer_decay` times less for each layer below it.
    """
    depths = depths_of(model) if layer_decay is not None else {}
    exempt: set[str] = getattr(model, "no_weight_decay", set)()  # timm's RegNet names none
    groups: dict[tuple[bool, int], list[Parameter]] = {(False, 0): [], (True, 0): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            free = parameter.ndim == 1 or name.endswith(".bias") or name in exempt
            groups.setdefault((not free, depths.get(name, 0)), []).append(parameter)
    top = max(depths.values(), default=0)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decayed else 0.0,
            "lr_scale": 1.0 if layer_decay is None else layer_decay ** (top - depth),
        }
        for (decayed, depth), parameters in sorted(groups.items(), key=lambda item: item[0])
        if parameters or layer_decay is None
    ]


def optimizer_for(model: ZooModel, recipe: Recipe) -> Optimizer:
    """The optimizer as the recipe says; on a GPU in one fused kernel."""
    groups = parameter_groups(model, recipe.weight_decay, recipe.layer_decay)
    # None is torch's own choice, which made the embedded checkpoints on the CPU.
    fused = True if all(p.is_cuda for group in groups for p in group["params"]) else None
    if recipe.optimizer == "sgd":
        # Upstream's "sgd" is Nesterov's (timm 0.3.2).
        rule: dict[str, Any] = {"momentum": recipe.momentum, "nesterov": recipe.momentum > 0.0}
        return SGD(groups, lr=recipe.lr, fused=fused, **rule)
    if recipe.optimizer == "lamb":
        return lamb(groups, recipe)
    return AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=fused)


class Ema:
    """The moving average of the weights, as timm's ModelEma kept it for DeiT (Table 8: +0.1).

    average = decay x average + (1 - decay) x weights, after each step of the optimizer. Running
    statistics are averaged as weights are. Make it of a model that is where it trains, before the
    first step.
    """

    def __init__(self, model: ZooModel, decay: float) -> None:
        self._model = model
        averaging = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._average = AveragedModel(model, multi_avg_fn=averaging, use_buffers=True)
        # At 0 the first update would copy the weights; the average starts from the initial ones.
        self._average.n_averaged.fill_(1)
        self.module.requires_grad_(False).eval()

    @property
    def module(self) -> ZooModel:
        """The averaged model, in eval mode."""
        return cast(ZooModel, self._average.module)

    def update(self) -> None:
        """Take in the weights as they are now."""
        self._average.update_parameters(self._model)
