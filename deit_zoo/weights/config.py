"""`config.json` beside weights, as timm and transformers write it: which model, and its classes.

How its images are prepared timm says there too, transformers in `preprocessor_config.json`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deit_zoo.errors import CheckpointError
from deit_zoo.files import CONFIG_FILE, PREPROCESSOR_FILE, read_json
from deit_zoo.labels import SEVERAL_LABELS, folders, labels
from deit_zoo.models.layers import LAYER_NORM_EPS
from deit_zoo.registry import MODELS, TRANSFORMERS, ModelSpec
from deit_zoo.registry.names import lookup
from deit_zoo.weights.cache import verified
from deit_zoo.weights.metadata import check_facts
from deit_zoo.weights.proof import known_file

# What all transformers here are built with, in the words of either library.
_BUILT = {
    "activation": "gelu",
    "pooling": "token",
    "layer_norm_eps": LAYER_NORM_EPS,
    "problem_type": "single_label_classification",
}


def read_config(folder: Path) -> dict[str, Any]:
    """What a folder's configuration says: `name`, `labels`, `reading` and `problem_type`.

    `input_size` is the image size that it states, which its weights may have outgrown.
    `network` is what it says of the network that no tensor shows, where `name` does not imply it.
    Of the images that it was trained on: `mean`, `std` and `crop_pct` in timm's sense, and as
    `resizing` what the zoo does otherwise.
    """
    images = _read(folder / PREPROCESSOR_FILE, _transformers_images)
    return _read(folder / CONFIG_FILE, _facts) | images


def _read(file: Path, facts_of: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        with verified(file, known_file(file).sha256) as same:
            config = read_json(same)
        if not isinstance(config, dict):
            raise ValueError("it is no object")
        return facts_of(config)
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise CheckpointError(
            f"{file} is no configuration of timm's or transformers' ({error}); remove it to load "
            "the weights without what it says"
        ) from error


def _facts(config: dict[str, Any]) -> dict[str, Any]:
    spec, names = _model(config), _class_names(config)
    network = _network(config, spec)
    facts: dict[str, Any] = {"name": spec.name} if spec else {}
    if names:
        facts["labels"] = _as_folders(names, spec)
        own = spec is None or tuple(facts["labels"]) != folders(spec.labels)
        facts["reading"] = "upright" if own else "upstream"
    if config.get("problem_type") == SEVERAL_LABELS:
        facts["problem_type"] = SEVERAL_LABELS
    if network:
        facts["network"] = network
    # transformers states 1e-12 of DeiT's weights too, which were made with 1e-6.
    if 0 < (eps := config.get("layer_norm_eps") or 0) < LAYER_NORM_EPS:
        facts["layer_norm_eps"] = eps
    published = config.get("pretrained_cfg") or config
    arguments = config.get("model_args") or {}
    size = config.get("image_size") or arguments.get("img_size")
    if size := size or (published.get("input_size") or [])[1:]:  # after the channels
        facts["input_size"] = size
    check_facts(facts, "what it says of the model")
    return facts | _timm_images(published)


def _model(config: dict[str, Any]) -> ModelSpec | None:
    if "architecture" in config:  # timm's, which is the zoo's where no size is changed
        spec = lookup(str(config["architecture"]))
        changed = dict(config.get("model_args") or {})
        for key in ("img_size", "num_classes", "in_chans"):
            changed.pop(key, None)
        # Which timm writes of every model.
        return spec if changed in ({}, {"global_pool": _BUILT["pooling"]}) else None
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


def check_stated_network(spec: ModelSpec, network: dict[str, Any], where: Path) -> None:
    """Raises CheckpointError where a configuration is of a network that a model is not."""
    own = _BUILT | {"num_heads": spec.arch.get("num_heads")}
    for key, value in network.items():
        if spec.family in TRANSFORMERS and value != own.get(key):
            raise CheckpointError(
                f"{where / CONFIG_FILE} states {key}={value!r:.80}, but {spec.name} has "
                f"{own.get(key)!r}: the weights are another network's; give some of {spec.name}"
            )


def _network(config: dict[str, Any], spec: ModelSpec | None) -> dict[str, Any]:
    arguments = config.get("model_args") or {}
    stated = {
        "activation": config.get("hidden_act") or arguments.get("act_layer"),
        "pooling": config.get("global_pool") or arguments.get("global_pool"),
        "problem_type": config.get("problem_type"),
    }
    built = {*_BUILT.values(), SEVERAL_LABELS}
    differing = {key: value for key, value in stated.items() if value and value not in built}
    if (eps := config.get("layer_norm_eps") or 0) > LAYER_NORM_EPS:
        differing["layer_norm_eps"] = eps
    num_heads = config.get("num_attention_heads") or arguments.get("num_heads")
    return differing | ({"num_heads": num_heads} if num_heads and spec is None else {})


def _class_names(config: dict[str, Any]) -> list[str]:
    """The names in class order; none where a configuration has only numbers for them."""
    by_number = config.get("id2label") or {}
    names = config.get("label_names") or by_number
    if isinstance(names, dict):
        if names.keys() != {str(number) for number in range(len(names))}:
            raise ValueError(f"its labels have the keys {[*names]!r:.80}, not 0, 1, 2 and so on")
        names = [names[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or names is by_number:
        raise ValueError(f"its labels are {names!r:.80}, no list of names")
    names = [str(name) for name in names]
    return [] if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def _as_folders(names: list[str], spec: ModelSpec | None) -> list[str]:
    """The folders of the published classes, where these are their names."""
    published = labels(spec.labels) if spec else ()
    if names == [label.name for label in published]:
        return [label.folder for label in published]
    return names


def _timm_images(stated: dict[str, Any]) -> dict[str, Any]:
    """Of the `pretrained_cfg` in timm's config.json."""
    ways = [stated.get(key) for key in ("interpolation", "crop_mode")]
    resizing = [str(way) for way in ways if way not in (None, "bicubic", "center")]
    return _image_facts({key: stated.get(key) for key in ("mean", "std", "crop_pct")}, resizing)


def _transformers_images(stated: dict[str, Any]) -> dict[str, Any]:
    """Of transformers' preprocessor_config.json; its mean and std are of pixels up to `largest`."""
    largest = 255 * stated.get("rescale_factor", 1 / 255) if stated.get("do_rescale", True) else 255
    normalizes, crops = stated.get("do_normalize", True), stated.get("do_center_crop", False)
    mean = stated.get("image_mean") if normalizes else [0.0]
    std = stated.get("image_std") if normalizes else [1.0]
    images = {
        "mean": mean and [value / largest for value in mean],
        "std": std and [value / largest for value in std],
        "crop_pct": _side(stated["crop_size"]) / _side(stated["size"]) if crops else 1.0,
    }
    resizing = [] if crops else ["squash"]
    if (resample := stated.get("resample", 3)) != 3:  # Pillow's number of bicubic
        resizing.append(f"resample={resample}")
    return _image_facts(images, resizing)


def _side(size: Any) -> float:
    return float(min(size.values()) if isinstance(size, dict) else size)


def _image_facts(images: dict[str, Any], resizing: list[str]) -> dict[str, Any]:
    facts = {key: value for key, value in images.items() if value is not None}
    facts |= {"resizing": ", ".join(resizing)} if resizing else {}
    check_facts(facts, "what it says of images")
    return facts
