"""Former paths that docs taught, or that scripts use: they give the same, and say where it is."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest

SHIMS = {
    "deit_zoo.datasets:open_set": "deit_zoo.data.image_set:open_set",
    "deit_zoo.preprocess:EvalTransform": "deit_zoo.data.transforms:EvalTransform",
    "deit_zoo.digits:digits": "deit_zoo.data.digits:digits",
    "deit_zoo.exports:export": "deit_zoo:export",
    "deit_zoo.hub.cache:check": "deit_zoo.weights.cache:check",
    "deit_zoo.hub.fetch:download": "deit_zoo.weights.fetch:download",
    "deit_zoo.training.run:set_machine": "deit_zoo.training.build:set_machine",
    "deit_zoo.training.group:joined": "deit_zoo.distributed:init_distributed",
    "deit_zoo.training.recipes:RECIPES": "deit_zoo.recipes:RECIPES",
}


@pytest.mark.parametrize("former", SHIMS)
def test_a_former_path_gives_what_the_new_one_gives(former: str) -> None:
    module, name = former.split(":")
    sys.modules.pop(module, None)
    with pytest.warns(DeprecationWarning, match=rf"^{module} has moved; "):
        shim = import_module(module)
    home, new_name = SHIMS[former].split(":")
    assert getattr(shim, name) is getattr(import_module(home), new_name)


def test_what_the_module_of_optimize_gave_is_still_given_by_its_folder() -> None:
    import deit_zoo.inference
    from deit_zoo.inference.throughput import agreement

    with pytest.warns(DeprecationWarning, match=r"^deit_zoo\.inference\.agreement has moved; "):
        assert deit_zoo.inference.agreement is agreement
