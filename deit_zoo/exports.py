"""Moved to `deit_zoo.export`; this name goes in 0.3."""

import warnings

from deit_zoo.api import export

warnings.warn("deit_zoo.exports has moved; use deit_zoo.export", DeprecationWarning, stacklevel=2)

__all__ = ["export"]
