"""One small network of each kind: three blocks, 48 channels, 2x3 patches or pixels, 10 classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import golden
from deit_zoo.models.model import ZooModel
from deit_zoo.registry.names import resolve

_TRANSFORMER = {"img_size": (32, 48), "embed_dim": 48, "depth": 3, "num_classes": 10}
SMALL: dict[str, dict[str, Any]] = {
    "deit_tiny": _TRANSFORMER | {"num_heads": 3},
    "deit_tiny_distilled": _TRANSFORMER | {"num_heads": 3},
    "cait_xxs24_224": _TRANSFORMER | {"num_heads": 4},
    "deit3_small": _TRANSFORMER | {"num_heads": 3},
    "convnet_pico_digits": {"img_size": (8, 12), "dims": (16, 32, 48), "num_classes": 10},
}


@pytest.fixture(params=list(SMALL))
def build(request: pytest.FixtureRequest) -> Callable[..., ZooModel]:
    """Build the small network in train mode; its weights come from the golden files' rule."""

    def built(**options: Any) -> ZooModel:
        with torch.device("meta"):
            model = resolve(request.param).build(**SMALL[request.param] | options)
        return golden.filled(model)

    return built


@pytest.fixture
def network(build: Callable[..., ZooModel]) -> ZooModel:
    """The small network in eval mode."""
    return build().eval()


@pytest.fixture
def images(build: Callable[..., ZooModel]) -> Tensor:
    """Two images for the small network."""
    shape = (2, 3, *build().img_size)
    return torch.from_numpy(golden.normals("small/images", shape))
