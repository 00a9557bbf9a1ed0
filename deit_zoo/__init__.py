"""Data-efficient image Transformers, exact and verified. Importing deit_zoo imports no torch."""

from deit_zoo.api import (
    ModelInfo,
    attention_map,
    classify,
    create,
    evaluate,
    info,
    list_models,
    optimize,
    transform,
)
from deit_zoo.results import Evaluation, Prediction

__version__ = "0.1.0"

__all__ = [
    "Evaluation",
    "ModelInfo",
    "Prediction",
    "__version__",
    "attention_map",
    "classify",
    "create",
    "evaluate",
    "info",
    "list_models",
    "optimize",
    "transform",
]
