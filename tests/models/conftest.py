"""One small network of each kind: three blocks, images of 32x48 pixels (2x3 patches), 10 classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import golden
import pytest
import torch
from torch import Tensor

from deit_zoo.models.layers import ZooModel
from deit_zoo.registry import resolve

SMALL: dict[str, dict[str, Any]] = {
    "deit_tiny": {"num_heads": 3},
    "deit_tiny_distilled": {"num_heads": 3},
    "cait_xxs24_224": {"num_heads": 4},
}


@pytest.fixture(params=list(SMALL))
def build(request: pytest.FixtureRequest) -> Callable[..., ZooModel]:
    """Build the small network in train mode; its weights come from the golden files' rule."""

    def built(**options: Any) -> ZooModel:
        small = {"img_size": (32, 48), "num_classes": 10, "embed_dim": 48, "depth": 3}
        with torch.device("meta"):
            model = resolve(request.param).build(**small | SMALL[request.param] | options)
        return golden.filled(model)

    return built


@pytest.fixture
def network(build: Callable[..., ZooModel]) -> ZooModel:
    """The small network in eval mode."""
    return build().eval()


@pytest.fixture
def images() -> Tensor:
    """Two images for the small networks."""
    return torch.from_numpy(golden.normals("small/32x48", (2, 3, 32, 48)))
