"""Accuracy against speed: what was published, and which models are sizes of one series."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deit_zoo.manifest import read_manifest
from deit_zoo.registry import ModelSpec

# Okabe and Ito's colours, which are told apart by the colour-blind too.
COLOURS = {"deit": "#0072B2", "cait": "#D55E00", "deit3": "#009E73", "convnet": "#CC79A7"}
OTHER = "#777777"
TITLES = {
    "deit": "DeiT",
    "cait": "CaiT",
    "deit3": "DeiT III",
    "convnet": "ConvNet",
    "regnet": "RegNetY (the teacher)",
}
# Images per second that others measured: (hardware, source) and the speed of each model.
PUBLISHED: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("V100, float32", "arXiv:2012.12877, Table 5"): {
        "deit_tiny": 2536.5,
        "deit_small": 940.4,
        "deit_base": 292.3,
        "deit_base_384": 85.9,
        "deit_tiny_distilled": 2529.5,
        "deit_small_distilled": 936.2,
        "deit_base_distilled": 290.9,
    },
    ("RTX 3090, AMP", "timm's inference benchmark, PyTorch 2.4"): {
        "deit_tiny": 10236.41,
        "deit_small": 4586.09,
        "deit_base": 1564.98,
        "deit_base_384": 508.8,
        "deit3_large": 466.0,
        "deit3_huge": 176.76,
        "cait_xxs24_224": 1694.07,
        "cait_s24_224": 906.1,
    },
    ("RTX 4090, AMP, compiled", "timm's inference benchmark, PyTorch 2.4"): {
        "deit_tiny": 24312.15,
        "deit_small": 9661.41,
        "deit_base": 3344.81,
        "deit_base_384": 1106.79,
        "deit3_large": 1040.35,
        "deit3_huge": 397.79,
        "cait_xxs24_224": 4502.7,
        "cait_s24_224": 2217.42,
    },
}


def top1_of_models() -> dict[str, float]:
    """The top-1 of each checkpoint of which it is known, in percent."""
    metrics = {name: record.metric for name, record in read_manifest().items()}
    return {n: m.top1 for n, m in metrics.items() if m is not None and m.top1 is not None}


def series_of(spec: ModelSpec) -> str:
    """What a model shares with other sizes of its kind, in words."""
    words = [TITLES.get(spec.family, spec.family), f"{spec.img_size} px"]
    if spec.arch.get("distilled"):
        words.insert(1, "distilled")
    if spec.name.endswith("_in21k"):
        words.append("after ImageNet-21k")
    return ", ".join(words)


def size_of(model: str) -> str:
    """The size in a name: S24 of cait_s24_384, tiny of deit_tiny_distilled."""
    return model.split("_")[1]


def where(machine: dict[str, Any]) -> str:
    """What computes, and by how many threads."""
    count = machine["threads"]
    name = machine.get("gpu", machine["cpu"])
    return f"{name}, {count} {'thread' if count == 1 else 'threads'}"
