"""Moved to `deit_zoo.data.digits`; this name goes in 0.3."""

import warnings

from deit_zoo.data.digits import digits

warnings.warn(
    "deit_zoo.digits has moved; import from deit_zoo.data.digits", DeprecationWarning, stacklevel=2
)

__all__ = ["digits"]
