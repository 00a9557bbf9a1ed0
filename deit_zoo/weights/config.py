"""`config.json` beside weights, as timm and transformers write it: which model, and its classes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from deit_zoo.errors import CheckpointError
from deit_zoo.files import MODEL_FILE, read_json
from deit_zoo.labels import folders, labels
from deit_zoo.registry import MODELS, ModelSpec, lookup

CONFIG_FILE = "config.json"
WEIGHT_FILES = (MODEL_FILE, "pytorch_model.bin")  # of a folder, the first that there is


def read_config(folder: Path) -> dict[str, Any]:
    """`name`, `labels` and `reading`, as far as a folder's configuration says them."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        return {}
    try:
        config = read_json(file)
        if not isinstance(config, dict):
            raise ValueError("it is no object")
        spec, names = _model(config), _class_names(config)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(
            f"{file} is no configuration of timm's or transformers' ({error}); remove it to load "
            "the weights without their names"
        ) from error
    facts: dict[str, Any] = {"name": spec.name} if spec else {}
    if names:
        facts["labels"] = _as_folders(names, spec)
        own = spec is None or tuple(facts["labels"]) != folders(spec.labels)
        facts["reading"] = "upright" if own else "upstream"
    return facts


def _model(config: dict[str, Any]) -> ModelSpec | None:
    if "architecture" in config:  # timm's, which is the zoo's where no size is changed
        changed = set(config.get("model_args") or {}) - {"img_size", "num_classes", "in_chans"}
        return None if changed else lookup(str(config["architecture"]))
    kind = config.get("model_type")
    if kind not in ("deit", "vit"):
        return None
    sizes = {
        "embed_dim": config.get("hidden_size", 768),
        "depth": config.get("num_hidden_layers", 12),
        "num_heads": config.get("num_attention_heads", 12),
        "distilled": kind == "deit",
    }
    alike = [
        spec
        for spec in MODELS.values()
        if spec.family == "deit" and sizes == {key: spec.arch.get(key, False) for key in sizes}
    ]
    size = config.get("image_size", 224)
    return next((spec for spec in alike if spec.img_size == size), alike[0] if alike else None)


def _class_names(config: dict[str, Any]) -> list[str]:
    """The names in class order; none where a configuration has only numbers for them."""
    if names := config.get("label_names"):
        return [str(name) for name in names]
    by_number: dict[str, str] = config.get("id2label") or {}
    names = [str(by_number[key]) for key in sorted(by_number, key=int)]
    return [] if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def _as_folders(names: list[str], spec: ModelSpec | None) -> list[str]:
    """The folders of the published classes, where these are their names."""
    published = labels(spec.labels) if spec else ()
    if names == [label.name for label in published]:
        return [label.folder for label in published]
    return names
