"""`config.json` in timm's keys, which timm and transformers build a model from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deit_zoo.data.transforms import eval_transform
from deit_zoo.files import CONFIG_FILE, RECEIPT_FILE, expand_user, read_json, write_whole
from deit_zoo.labels import Label
from deit_zoo.manifest import Checkpoint, read_manifest, timm_images
from deit_zoo.registry import TRANSFORMERS, ModelSpec
from deit_zoo.registry.names import is_path, lookup

# Sizes that timm has no name for are built from the nearest name and these of our arguments.
_RESIZED = ("patch_size", "embed_dim", "depth", "num_heads")
# timm's names of the first convolution and of the head, by family.
_LAYERS = {
    **dict.fromkeys(TRANSFORMERS, ("patch_embed.proj", "head")),
    "regnet": ("stem.conv", "head.fc"),
}
_REGNET_FEATURES = 3024  # RegNetY-16GF's last stage (arXiv:2003.13678)


def timm_name(spec: ModelSpec) -> str | None:
    """The architecture by which timm builds this model; None where it has none."""
    if (spec.blocks, spec.stem) != (None, "linear"):
        return None
    for alias in spec.aliases:
        if "." in alias:
            return alias.split(".")[0]
    if spec.family == "deit":
        return f"deit_tiny{'_distilled' if spec.arch.get('distilled') else ''}_patch16_224"
    return None


def timm_config(
    spec: ModelSpec,
    classes: Sequence[Label],
    *,
    num_classes: int,
    crop_pct: float,
    license: str | None,
    img_size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """The configuration of a model with these classes; its own image size unless given."""
    architecture = timm_name(spec)
    widths = spec.arch.get("dims", [spec.arch.get("embed_dim", _REGNET_FEATURES)])
    size = (spec.img_size, spec.img_size) if img_size is None else img_size
    facts: dict[str, Any] = {
        "architecture": architecture or spec.name,
        "num_classes": num_classes,
        "num_features": widths[-1],
        "label_names": [label.folder for label in classes],
        "label_descriptions": {label.folder: label.name for label in classes},
    }
    fixed = spec.family in TRANSFORMERS
    changed = size != (spec.img_size, spec.img_size)
    if architecture and fixed and (changed or not spec.aliases):
        facts["model_args"] = {"img_size": size[0] if size[0] == size[1] else list(size)}
        if not spec.aliases:
            facts["model_args"] |= {key: spec.arch[key] for key in _RESIZED}
    first_conv, head = _LAYERS.get(spec.family, (None, "head"))
    facts["pretrained_cfg"] = timm_images((3, *size), crop_pct) | {
        "fixed_input_size": fixed,
        "num_classes": num_classes,
        "first_conv": first_conv,
        "classifier": [head, "head_dist"] if spec.arch.get("distilled") else head,
        "license": license,
    }
    return facts


def config_bytes(config: dict[str, Any]) -> bytes:
    """The bytes of a configuration's file."""
    return f"{json.dumps(config, indent=2, ensure_ascii=False)}\n".encode()


def write_run_config(
    run: Path,
    spec: ModelSpec,
    classes: Sequence[Label],
    img_size: tuple[int, int],
    license: str | None,
    crop_pct: float | None,
) -> None:
    """Leave `config.json` in the folder of a run."""
    config = timm_config(
        spec,
        classes,
        num_classes=len(classes),
        crop_pct=eval_transform(spec, img_size, crop_pct).crop_pct,
        license=license,
        img_size=img_size,
    )
    write_whole(run / CONFIG_FILE, config_bytes(config))


def start_record(init_from: str | None) -> Checkpoint | None:
    """The published checkpoint that training began from, over however many runs between."""
    for _ in range(20):  # a run that begins from itself is no run, but may be typed
        if init_from is None:
            return None
        if not is_path(init_from) and (spec := lookup(init_from)) is not None:
            return read_manifest().get(spec.name)
        receipt = expand_user(init_from) / RECEIPT_FILE
        try:
            facts = read_json(receipt)
            init_from = start_of(facts)
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return None


def start_of(receipt: dict[str, Any]) -> str | None:
    """What a run began with: the published weights, or those of a run that is named by its path.

    That path is in the receipts of version 0.2 and earlier alone.
    """
    start = receipt.get("start")
    return start["published"] if start else receipt["plan"]["recipe"].get("init_from")
