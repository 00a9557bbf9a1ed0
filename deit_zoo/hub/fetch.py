"""Moved to `deit_zoo.weights.fetch`; this name goes in 0.3."""

import warnings

from deit_zoo.weights.fetch import *  # noqa: F403

warnings.warn(
    "deit_zoo.hub.fetch has moved; use deit_zoo.weights.fetch", DeprecationWarning, stacklevel=2
)
