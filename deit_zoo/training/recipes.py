"""Moved to `deit_zoo.recipes`; this name goes in 0.3."""

import warnings

from deit_zoo.recipes import RECIPES

warnings.warn(
    "deit_zoo.training.recipes has moved; import from deit_zoo.recipes",
    DeprecationWarning,
    stacklevel=2,
)

__all__ = ["RECIPES"]
