"""Moved to `deit_zoo.training.build` and `trainer`; this name goes in 0.3."""

import warnings

from deit_zoo.training.build import set_machine
from deit_zoo.training.trainer import train

warnings.warn(
    "deit_zoo.training.run has moved; use deit_zoo.training.build", DeprecationWarning, stacklevel=2
)

__all__ = ["set_machine", "train"]
