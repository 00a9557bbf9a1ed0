"""Somebody else's repository by its address: its weights, and the names in config.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import deit_zoo
from support.command import python
from support.hub_server import HubServer

REPO, PREPROCESSOR = "somebody/pets", "preprocessor_config.json"
CODE = """
import json, sys
import deit_zoo
model = deit_zoo.create(sys.argv[1] if len(sys.argv) > 1 else ADDRESS)
names = list(model.labels or ())
print(json.dumps([model.spec.name, names, model.num_classes, deit_zoo.transform(model).crop_pct]))
"""
CONFIG = {
    "architecture": "deit_tiny_patch16_224",
    "num_classes": 2,
    "label_names": ["cat", "dog"],
    "pretrained_cfg": {"input_size": [3, 224, 224]},
}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small repository of timm's: no metadata of ours, a pickle beside."""
    folder = tmp_path_factory.mktemp("files")
    tensors = deit_zoo.create("deit_tiny", num_classes=2).state_dict()
    save_file(tensors, folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / PREPROCESSOR).write_text('{"do_center_crop": true, "size": 256, "crop_size": 192}')
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


def created(hub: HubServer, folder: Path, address: str = f"hf://{REPO}") -> Any:
    """Name, classes and their number, as another process creates it."""
    code = CODE.replace("ADDRESS", repr(address))
    return json.loads(python(code, env=hub.environment(folder)))


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_the_weights_that_there_are_get_the_names_of_the_configuration(
    weights: str, hub: HubServer, state: dict[str, bytes], tmp_path: Path
) -> None:
    commit = hub.commit(
        REPO, {name: state[name] for name in (weights, "config.json", PREPROCESSOR)}
    )
    expected = ["deit_tiny", ["cat", "dog"], 2, 0.75]
    assert created(hub, tmp_path) == expected
    hub.requests.clear()  # a commit is not asked for again
    assert created(hub, tmp_path, f"hf://{REPO}@{commit}/{weights}") == expected
    assert hub.requests == []


@pytest.mark.parametrize(
    ("revision", "spelled"), [("refs/pr/1", "refs/pr/1"), ("feature/a", "feature%2Fa")]
)
@pytest.mark.parametrize("file", ["", "/model.safetensors"])
def test_a_revision_with_a_slash_is_spelled_as_huggingface_hub_does(
    file: str, revision: str, spelled: str, hub: HubServer, state: dict[str, bytes], tmp_path: Path
) -> None:
    files = {name: state[name] for name in ("model.safetensors", "config.json")}
    hub.commit(REPO, files, revision)
    expected = ["deit_tiny", ["cat", "dog"], 2, 0.875]
    assert created(hub, tmp_path, f"hf://{REPO}@{spelled}{file}") == expected
    offline = hub.environment(tmp_path) | {"HF_HUB_OFFLINE": "1"}
    code = CODE.replace("ADDRESS", repr(f"hf://{REPO}@{spelled}{file}"))
    assert json.loads(python(code, env=offline)) == expected


def test_a_repository_without_a_configuration_is_asked_for_it_once(
    hub: HubServer, state: dict[str, bytes], tmp_path: Path
) -> None:
    commit = hub.commit(REPO, {"model.safetensors": state["model.safetensors"]})
    code = (
        "import deit_zoo\n"
        f"model = deit_zoo.create('deit_tiny', checkpoint='hf://{REPO}@{commit}')\n"
        "print(model.num_classes, model.labels)\n"
    )
    for _ in range(2):
        assert python(code, env=hub.environment(tmp_path)) == "2 None\n"
        asked = [request for request in hub.requests if request.path.endswith("/config.json")]
        assert len(asked) <= 2  # HEAD, and no more the second time


def test_a_configuration_of_something_else_is_told_and_not_used(
    hub: HubServer, state: dict[str, bytes], tmp_path: Path
) -> None:
    files = {"model.safetensors": state["model.safetensors"], "config.json": b"\x00 no JSON"}
    hub.commit(REPO, files)
    code = (
        "import deit_zoo, warnings\n"
        "with warnings.catch_warnings(record=True) as told:\n"
        "    warnings.simplefilter('always')\n"
        f"    model = deit_zoo.create('deit_tiny', checkpoint='hf://{REPO}')\n"
        "print(model.num_classes, model.labels, [str(one.message) for one in told])\n"
    )
    said = python(code, env=hub.environment(tmp_path))
    assert said.startswith("2 None ")
    assert "beside the weights of hf://somebody/pets is no configuration" in said
