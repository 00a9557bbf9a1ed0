"""Moved to `deit_zoo.distributed`; this name goes in 0.3."""

import warnings

from deit_zoo.distributed import init_distributed as joined

warnings.warn(
    "deit_zoo.training.group has moved; import from deit_zoo.distributed",
    DeprecationWarning,
    stacklevel=2,
)

__all__ = ["joined"]
