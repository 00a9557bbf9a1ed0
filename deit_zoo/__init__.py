"""Data-efficient image Transformers, exact and verified. Importing deit_zoo imports no torch."""

from deit_zoo.api import (
    attention_map,
    classify,
    evaluate,
    export,
    fetch,
    finetune,
    optimize,
    reproduce,
    save,
    verify,
)
from deit_zoo.results import Evaluation, Prediction
from deit_zoo.version import __version__
from deit_zoo.zoo import ModelInfo, create, info, list_models, transform

__all__ = [
    "Evaluation",
    "ModelInfo",
    "Prediction",
    "__version__",
    "attention_map",
    "classify",
    "create",
    "evaluate",
    "export",
    "fetch",
    "finetune",
    "info",
    "list_models",
    "optimize",
    "reproduce",
    "save",
    "transform",
    "verify",
]
