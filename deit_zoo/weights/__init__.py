"""From a record to verified bytes to a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deit_zoo.models.layers import ZooModel


def save(model: ZooModel, file: Path, **metadata: Any) -> str:
    """Write a model as safetensors that `create(NAME, checkpoint=FILE)` loads. Returns SHA-256.

    `labels`, a list of class names, goes with the weights; so does other metadata.
    """
    from deit_zoo.weights.load import save_model

    if "labels" in metadata:  # somebody's own classes, whose images are seen upright
        metadata = {"reading": model.reading or "upright"} | metadata
    elif model.reading is not None:
        metadata = {"reading": model.reading} | metadata
    return save_model(model, file, **metadata)
