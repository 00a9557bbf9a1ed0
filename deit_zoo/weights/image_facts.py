"""How the images were prepared that others' weights were trained on, as timm and transformers say.

`mean`, `std` and `crop_pct` in timm's sense, and as `resizing` what the zoo does otherwise.
"""

from __future__ import annotations

from typing import Any

from deit_zoo.weights.metadata import check_facts


def timm_images(stated: dict[str, Any]) -> dict[str, Any]:
    """Of the `pretrained_cfg` in timm's config.json."""
    ways = [stated.get(key) for key in ("interpolation", "crop_mode")]
    resizing = [str(way) for way in ways if way not in (None, "bicubic", "center")]
    return _checked({key: stated.get(key) for key in ("mean", "std", "crop_pct")}, resizing)


def transformers_images(stated: dict[str, Any]) -> dict[str, Any]:
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
    return _checked(images, resizing)


def _side(size: Any) -> float:
    return float(min(size.values()) if isinstance(size, dict) else size)


def _checked(images: dict[str, Any], resizing: list[str]) -> dict[str, Any]:
    facts = {key: value for key, value in images.items() if value is not None}
    facts |= {"resizing": ", ".join(resizing)} if resizing else {}
    check_facts(facts, "what it says of images")
    return facts
