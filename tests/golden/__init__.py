"""Outputs of the original code, and the rule that fills weights and inputs by their names.

`index.json` lists the cases. A case stores results only; every array it was made from is rebuilt:
the SHA-256 of a name keys a Philox generator of standard normals.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import deit_zoo
from deit_zoo.models.model import ZooModel
from deit_zoo.registry.names import resolve

HERE = Path(__file__).parent

Network = TypeVar("Network", bound=nn.Module)


@cache
def cases(kind: str) -> list[dict[str, Any]]:
    """The cases of one kind (`forward`, `gradient`, `init`, ...)."""
    index = json.loads((HERE / "index.json").read_text(encoding="utf-8"))
    return [case for case in index["cases"] if case["kind"] == kind]


def case(name: str) -> dict[str, Any]:
    """One case by its name."""
    index = json.loads((HERE / "index.json").read_text(encoding="utf-8"))
    return next(case for case in index["cases"] if case["name"] == name)


def arrays(case: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """What a case stores."""
    with np.load(HERE / case["file"]) as stored:
        return dict(stored)


def normals(name: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """Standard normals that depend on the name alone."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    generator = np.random.Generator(np.random.Philox(key=key))
    return generator.standard_normal(tuple(shape), dtype=np.float32)


def fill(name: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """A weight by its state-dict key: mean and spread by the last part of the key."""
    parts = name.split(".")
    last = parts[-1]
    if last in ("cls_token", "dist_token"):
        mean, spread = 0.0, 0.02
    elif last == "pos_embed":
        mean, spread = 0.0, 0.05
    elif last.startswith("gamma_"):
        mean, spread = 0.1, 0.02
    elif last in ("alpha", "running_var") or (last == "weight" and len(shape) == 1):
        mean, spread = 1.0, 0.1
    elif last in ("bias", "beta", "running_mean"):
        mean, spread = 0.0, 0.02
    else:
        gain = 1.5 if parts[-2] in ("qkv", "q", "k") else 1.0
        mean, spread = 0.0, gain * math.prod(shape[1:]) ** -0.5
    return (mean + spread * normals(name, shape).astype(np.float64)).astype(np.float32)


def filled(model: Network) -> Network:
    """The model, on the CPU and with every entry of its state dict filled by the rule."""
    state = {
        name: torch.from_numpy(fill(name, value.shape)).to(value.dtype)
        if value.is_floating_point()
        else torch.zeros(value.shape, dtype=value.dtype)
        for name, value in model.state_dict().items()
    }
    # Assigned, so that a model built on the meta device costs no random weights.
    model.load_state_dict(state, strict=True, assign=True)
    return model


def network(case: dict[str, Any]) -> ZooModel:
    """The model that a case was made with, in float32 and in train mode."""
    model = case["model"]
    if ("layer_scale_init" in model and "LS" in case["name"]) or "hmlp" in case["name"]:
        # DeiT III, also in sizes and kinds that were never published.
        sizes = ("img_size", "patch_size", "embed_dim", "depth", "num_heads")
        options = {size: model[size] for size in sizes}
        options["parallel"] = "parallel" in model.get("block", "")
        options["hmlp_stem"] = "hmlp" in case["name"]
        with torch.device("meta"):
            return filled(resolve("deit3_small").build(**options))
    return filled(deit_zoo.create(model["factory"], **model["given_kwargs"], device="meta"))


def batch(case: dict[str, Any]) -> Tensor:
    """The images that a case was made with, in float32."""
    images = case["inputs"]["x"]
    assert images["rule"] == "normals", f"{case['name']} has images by another rule"
    return torch.from_numpy(normals(images["name"], images["shape"]))
