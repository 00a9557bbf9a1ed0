"""From a record to verified bytes to a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from deit_zoo.manifest import LocalCheckpoint
    from deit_zoo.models.model import ZooModel


def save(model: nn.Module, file: str | os.PathLike[str], **metadata: Any) -> str:
    """Write a model as safetensors that `create(checkpoint=FILE)` loads. Returns SHA-256.

    A compiled, parallel or averaged model stands for the one inside. The names in `model.labels`
    go with the weights; so does other metadata.
    Raises CheckpointError for a model that could not be loaded again, or a file that cannot be
    written.
    """
    from deit_zoo.errors import CheckpointError
    from deit_zoo.files import PICKLE_SUFFIXES, writing
    from deit_zoo.labels import folders
    from deit_zoo.models.model import spec_of, unwrapped
    from deit_zoo.weights.load import save_model

    own: ZooModel = unwrapped(model)
    if not hasattr(own, "spec"):
        spec_of(own)  # raises: it is none of the zoo's
    reading, names = getattr(own, "reading", None), getattr(own, "labels", None)  # no RegNet's
    if reading is not None:
        metadata = {"reading": reading} | metadata
    elif "labels" in metadata or (own.spec and names != folders(own.spec.labels)):
        metadata = {"reading": "upright"} | metadata  # somebody's own classes
    if (problem_type := getattr(own, "problem_type", None)) is not None:
        metadata = {"problem_type": problem_type} | metadata
    if Path(file).suffix.lower() in PICKLE_SUFFIXES:
        raise CheckpointError(
            f"{os.fspath(file)} would be taken for a pickle, and safetensors are written; give "
            "FILE.safetensors, or torch.save(model.state_dict(), FILE)"
        )
    with writing(Path(file), "file", CheckpointError):
        return save_model(own, Path(file), **metadata)


def local(path: str | os.PathLike[str]) -> LocalCheckpoint:
    """The file that a path, a folder or an address stands for, and what it says of itself."""
    from deit_zoo.weights.load import open_local

    return open_local(path)
