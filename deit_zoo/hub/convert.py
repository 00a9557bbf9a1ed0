"""A checkpoint file as others wrote it, made ours by hand: same tensors, same bytes every time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from deit_zoo.errors import CheckpointError, UnknownModelError
from deit_zoo.files import MODEL_FILE, digest, writing
from deit_zoo.registry import MODELS, ModelSpec
from deit_zoo.registry.names import resolve
from deit_zoo.weights.config import read_config
from deit_zoo.weights.formats import is_pickle, to_file_keys, write_tensors
from deit_zoo.weights.load import load_checkpoint, read_tensors


def convert(file: Path, output: Path, name: str | None = None) -> dict[str, Any]:
    """Write a checkpoint as safetensors. Returns its manifest record, null where not known.

    Raises CheckpointError, and writes nothing, where the tensors are not exactly the model's, or
    where what lies beside them states images of another mean and spread.
    """
    check_paths(file, output)
    tensors = read_tensors(file)
    spec = model_of(file, name, sum(math.prod(value.shape) for value in tensors.values()))
    stated = read_config(file.parent)
    unseen = ("network", "mean", "std")  # in the tensors
    facts = {key: value for key, value in stated.items() if key in unseen}
    model = load_checkpoint(spec, file, facts)
    if model.adapted:
        raise CheckpointError(
            f"{file.parent} states images of mean {stated['mean']} and std {stated['std']}, which "
            f"the tensors of {file.name} alone would not say; keep the model of it with "
            f"deit_zoo.save(deit_zoo.create({spec.name!r}, checkpoint=FOLDER), FILE)"
        )
    with writing(output, kind=CheckpointError):
        sha256 = write_tensors(to_file_keys(tensors, spec), output)
    sources: list[dict[str, Any]] = [
        {
            "kind": "hub",
            "repo_id": None,
            "filename": MODEL_FILE,
            "revision": None,
            "sha256": sha256,
            "bytes": output.stat().st_size,
        }
    ]
    if is_pickle(file):
        about = {"url": None, "sha256_prefix": digest(file), "format": "upstream_pth"}
        sources.append({"kind": "url"} | about)
    record = {
        "sources": sources,
        "num_params": sum(parameter.numel() for parameter in model.parameters()),
        "num_classes": model.num_classes,
        "labels": spec.labels if model.num_classes == spec.num_classes else None,
        "crop_pct": None,
        "interpolation": None,
        "metrics": {},
        "origin": None,
        "license": None,
        "paper": None,
    }
    return {spec.name: record}


def check_paths(file: Path, output: Path) -> None:
    """Raises CheckpointError where there is nothing to read, or no place to write."""
    if not file.is_file():
        raise CheckpointError(f"{file} is no file; give a .pth or .safetensors file")
    if output.exists() and output.samefile(file):
        raise CheckpointError(f"{output} is the file to convert; give another --output")
    if output.suffix != ".safetensors" or not output.parent.is_dir():
        raise CheckpointError(
            f"--output is {str(output)!r}; give a .safetensors file in a folder that exists"
        )


def model_of(file: Path, name: str | None, num_params: int) -> ModelSpec:
    """The model that a name means, or else the name of the file; the nearest are suggested."""
    if name is not None:
        return resolve(name)
    try:
        return resolve(file.stem)
    except UnknownModelError as error:
        near = sorted(MODELS.values(), key=lambda spec: abs(spec.num_params - num_params))[:3]
        raise CheckpointError(
            f"the name of {file} is no model's; type --name NAME, with {num_params:,} parameters "
            f"perhaps {near[0].name}, {near[1].name} or {near[2].name}"
        ) from error
