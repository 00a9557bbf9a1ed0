"""The learning rate of each epoch."""

from __future__ import annotations

import math

from deit_zoo.recipes.recipe import Recipe


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """The rate of every step of an epoch (upstream's schedule, timm 0.3.2).

    Upstream steps its scheduler with the number of the epoch that just ended: epochs 0 and 1 both
    run at the warm-up rate, and the warm-up is not taken off the cosine's time axis.
    """
    time = max(epoch - 1, 0)
    if time < recipe.warmup_epochs:
        return recipe.warmup_lr + time * (recipe.lr - recipe.warmup_lr) / recipe.warmup_epochs
    if recipe.schedule == "step":
        return recipe.lr * recipe.decay_rate ** (time // recipe.decay_epochs)
    cosine = (1.0 + math.cos(math.pi * time / recipe.epochs)) / 2.0
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * cosine
