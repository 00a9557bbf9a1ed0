"""What is minimised: cross-entropy or its binary form, alone or with a teacher (DeiT, section 4).

A criterion takes the model's outputs, what a teacher says of the images, and their soft targets,
and gives the mean over the batch. The outputs of a distilled model are (class logits, distillation
logits). A teacher says labels where distillation is hard, else logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from deit_zoo.recipes.recipe import Recipe

Outputs = Tensor | tuple[Tensor, Tensor]
Teach = Callable[[Tensor], Tensor]
Criterion = Callable[[Outputs, Tensor | None, Tensor], Tensor]


def criterion_for(recipe: Recipe, class_weights: Tensor | None = None) -> Criterion:
    """The loss that a recipe asks for, with `balanced_weights` where it wants them."""
    if recipe.distillation == "none":
        return partial(supervised, base=_base_for(recipe, class_weights))
    return Distilled(recipe, class_weights)


def balanced_weights(class_counts: Sequence[int]) -> Tensor:
    """The weight of each class, in inverse proportion to its images; 1 for the average image."""
    counts = torch.tensor(class_counts, dtype=torch.float64)
    return (counts.sum() / (len(counts) * counts)).float()


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy against a distribution over the classes, mean over the batch."""
    return -(targets * F.log_softmax(logits, dim=-1)).sum(dim=-1).mean()


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Each class by itself, mean over batch and classes.

    Every class of a mixed image counts in full (upstream's code): lambda mixes the pixels alone.
    """
    present = targets.gt(0.0).to(targets.dtype)
    return F.binary_cross_entropy_with_logits(logits, present)


_BASES = {"cross_entropy": soft_cross_entropy, "binary_cross_entropy": binary_cross_entropy}


def _base_for(recipe: Recipe, weights: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    if recipe.class_weights == "none":
        return _BASES[recipe.loss]
    assert weights is not None, "balanced class weights, and nobody counted the images"
    return lambda logits, targets: soft_cross_entropy(logits, targets * weights)


def supervised(
    outputs: Outputs,
    _taught: Tensor | None,
    targets: Tensor,
    base: Callable[[Tensor, Tensor], Tensor] = soft_cross_entropy,
) -> Tensor:
    """The class head against the labels; a distillation head learns nothing."""
    return base(outputs if isinstance(outputs, Tensor) else outputs[0], targets)


class Distilled:
    """Labels for the class head, a teacher for the distillation head (equations 2 and 3).

    A model with one head learns from both through it: the usual distillation (Table 3).
    """

    def __init__(self, recipe: Recipe, class_weights: Tensor | None = None) -> None:
        self.base = _base_for(recipe, class_weights)
        self.alpha = recipe.alpha
        self.tau = recipe.tau
        self.hard = recipe.distillation == "hard"
        self.per_image = recipe.kl_reduction == "batchmean"

    def __call__(self, outputs: Outputs, taught: Tensor | None, targets: Tensor) -> Tensor:
        assert taught is not None, "distillation without a teacher"
        logits, logits_dist = (outputs, outputs) if isinstance(outputs, Tensor) else outputs
        base = self.base(logits, targets)
        if self.hard:
            distilled = F.cross_entropy(logits_dist, taught)
        else:
            # Upstream's code divides by batch x classes; the paper does not say.
            terms = len(logits_dist) if self.per_image else logits_dist.numel()
            distilled = F.kl_div(
                F.log_softmax(logits_dist / self.tau, dim=1),
                F.log_softmax(taught / self.tau, dim=1),
                reduction="sum",
                log_target=True,
            ) * (self.tau**2 / terms)
        return base * (1.0 - self.alpha) + distilled * self.alpha
