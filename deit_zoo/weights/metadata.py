"""What a file of safetensors says of its model, beside the tensors: in JSON, under one key."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta
from safetensors import SafetensorError, safe_open

from deit_zoo.errors import CheckpointError, FormatError
from deit_zoo.files import as_record, parse_json
from deit_zoo.labels import folders
from deit_zoo.manifest import Reading
from deit_zoo.models.model import ZooModel
from deit_zoo.weights import cache
from deit_zoo.weights.formats import is_index, is_pickle, not_whole

# The one metadata key: with two, safetensors writes them in random order and bytes differ.
METADATA_KEY = "deit_zoo"
# Far beyond any image that a model was made for; the sizes of what is built are made of it.
LARGEST_SIZE = 1 << 16
_Side = Annotated[int, Meta(ge=1, le=LARGEST_SIZE)]
_Size = _Side | Annotated[list[_Side], Meta(min_length=2, max_length=2)]
_PerChannel = Annotated[list[float], Meta(min_length=1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Facts:
    """What metadata may say, among other things."""

    name: str | None = None
    img_size: _Size = 1
    input_size: _Size = 1
    labels: list[str] | None = None
    reading: Reading | None = None
    problem_type: str | None = None
    network: dict[str, str | float] | None = None
    mean: _PerChannel | None = None
    std: _PerChannel | None = None
    crop_pct: Annotated[float, Meta(gt=0, le=1)] | None = None
    resizing: str | None = None


def read_metadata(file: Path, sha256: str | None = None) -> dict[str, Any]:
    """What a file of safetensors says of its model, in the very bytes that have this digest."""
    with cache.verified(file, sha256) as same:
        if is_index(same) or is_pickle(same):
            return {}
        try:
            with safe_open(same, framework="pt") as tensors:
                text = (tensors.metadata() or {}).get(METADATA_KEY, "{}")
        except (SafetensorError, OSError) as error:
            raise not_whole(same, error) from error
    try:
        return _parse(text)
    except FormatError as error:
        raise not_whole(same, error) from error


def as_metadata(facts: dict[str, Any]) -> dict[str, str]:
    """Facts as a file holds them. Raises CheckpointError for what could not be read again."""
    try:
        text = json.dumps(facts, sort_keys=True)
        _parse(text)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the metadata could not be read again ({error}); give texts and finite numbers"
        ) from error
    return {METADATA_KEY: text}


def facts_of(model: ZooModel) -> dict[str, Any]:
    """What a file says of its model; the classes only where they are not the published ones."""
    spec = model.spec
    facts: dict[str, Any] = {"name": spec and spec.name, "img_size": list(model.img_size)}
    if spec is not None and (spec.blocks, spec.stem) != (None, "linear"):
        facts |= {"blocks": spec.blocks, "stem": spec.stem}
    if (crop_pct := getattr(model, "crop_pct", None)) is not None:  # a RegNet from timm has none
        facts["crop_pct"] = crop_pct
    names = tuple(model.labels or ())
    if spec is not None and model.num_classes and names != folders(spec.labels):
        if len(names) == model.num_classes:
            facts["labels"] = list(names)
        elif model.num_classes == spec.num_classes:  # whose names they are not
            facts["labels"] = None
    return facts


def labels_of(facts: dict[str, Any], num_classes: int, file: Path) -> tuple[str, ...] | None:
    """The class folders that a checkpoint was trained on, as it states them."""
    if (names := facts["labels"]) is None:
        return None
    if len(names) != num_classes:
        raise CheckpointError(
            f"{file} states labels that are no {num_classes} names; export it again"
        )
    return tuple(names)


def check_facts(facts: dict[str, Any], where: str) -> None:
    """Raises FormatError for a fact of another type than it has."""
    as_record(facts, _Facts, where)


def _parse(text: str) -> dict[str, Any]:
    facts: dict[str, Any] = parse_json(text, "its metadata")
    check_facts(facts, "its metadata")
    return facts
