"""The shipped checkpoints: made by the recipes in the tree, and what their receipts say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deit_zoo.files import ASSETS, digest
from deit_zoo.manifest import manifest_record
from deit_zoo.recipes import RECIPES

NAMES = ("convnet_pico_digits", "deit_pico_digits", "deit_pico_distilled_digits")


def receipt(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ASSETS / f"{name}.receipt.json").read_text())
    return content


def log(name: str) -> list[dict[str, Any]]:
    lines = (ASSETS / str(manifest_record(name).log)).read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_file_is_the_one_that_its_receipt_states(name: str) -> None:
    stated = receipt(name)["sha256"]
    assert stated["model.safetensors"] == digest(ASSETS / f"{name}.safetensors")
    assert stated["log.jsonl"] == digest(ASSETS / f"{name}.log.jsonl")


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_checkpoint_was_trained_by_the_recipe_in_the_tree_unmodified(name: str) -> None:
    assert receipt(name)["plan"]["recipe_sha256"] == RECIPES[name].digest
    assert receipt(name)["modified"] is False


@pytest.mark.parametrize("name", NAMES)
def test_the_recorded_figure_is_the_last_epoch_of_the_log(name: str) -> None:
    held = manifest_record(name).metric
    assert held is not None
    assert len(log(name)) == RECIPES[name].epochs
    assert log(name)[-1]["val_top1"] == pytest.approx(held.top1, abs=1e-3)
    assert receipt(name)["reached"]["top1"] == pytest.approx(held.top1, abs=1e-3)
