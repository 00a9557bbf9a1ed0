"""Moved to `deit_zoo.inference.export`; this name goes in 0.3."""

import warnings

from deit_zoo.inference.export import export

warnings.warn(
    "deit_zoo.exports has moved; import from deit_zoo.inference.export",
    DeprecationWarning,
    stacklevel=2,
)

__all__ = ["export"]
