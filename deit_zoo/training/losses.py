"""What is minimised: soft-target cross-entropy, alone or with a teacher (DeiT, section 4).

A criterion takes the model's outputs, the images that it saw and their soft targets, and gives the
mean over the batch. The outputs of a distilled model are (class logits, distillation logits).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from deit_zoo.errors import RecipeError
from deit_zoo.training.recipe import Recipe

Outputs = Tensor | tuple[Tensor, Tensor]
Criterion = Callable[[Outputs, Tensor, Tensor], Tensor]


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy against a distribution over the classes, mean over the batch."""
    return -(targets * F.log_softmax(logits, dim=-1)).sum(dim=-1).mean()


def supervised(outputs: Outputs, _images: Tensor, targets: Tensor) -> Tensor:
    """The class head against the labels; a distillation head learns nothing."""
    return soft_cross_entropy(outputs if isinstance(outputs, Tensor) else outputs[0], targets)


class Distilled:
    """Labels for the class head, a teacher for the distillation head (equations 2 and 3)."""

    def __init__(self, recipe: Recipe, teacher: Callable[[Tensor], Tensor]) -> None:
        self.alpha = recipe.alpha
        self.tau = recipe.tau
        self.hard = recipe.distillation == "hard"
        self.teacher = teacher

    def __call__(self, outputs: Outputs, images: Tensor, targets: Tensor) -> Tensor:
        if isinstance(outputs, Tensor):
            raise RecipeError(
                "the student has no distillation token; choose a distilled model, whose name "
                "ends in _distilled"
            )
        logits, logits_dist = outputs
        with torch.no_grad():
            taught = self.teacher(images)
        base = soft_cross_entropy(logits, targets)
        if self.hard:
            distilled = F.cross_entropy(logits_dist, taught.argmax(dim=1))
        else:
            # Divided by batch x classes, as upstream's code does; the paper does not say.
            distilled = F.kl_div(
                F.log_softmax(logits_dist / self.tau, dim=1),
                F.log_softmax(taught / self.tau, dim=1),
                reduction="sum",
                log_target=True,
            ) * (self.tau**2 / logits_dist.numel())
        return base * (1.0 - self.alpha) + distilled * self.alpha
