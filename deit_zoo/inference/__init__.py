"""Prediction: classify, the optimized copy, export, attention, and how fast all that is."""

from __future__ import annotations

import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    """`agreement`, which has moved; this name goes in 0.3."""
    if name != "agreement":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from deit_zoo.inference.throughput import agreement

    text = "deit_zoo.inference.agreement has moved; use deit_zoo.inference.throughput"
    warnings.warn(text, DeprecationWarning, stacklevel=2)
    return agreement
