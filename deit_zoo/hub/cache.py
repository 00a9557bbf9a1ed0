"""Moved to `deit_zoo.weights.cache`; this name goes in 0.3."""

import warnings

from deit_zoo.weights.cache import *  # noqa: F403

warnings.warn(
    "deit_zoo.hub.cache has moved; use deit_zoo.weights.cache", DeprecationWarning, stacklevel=2
)
