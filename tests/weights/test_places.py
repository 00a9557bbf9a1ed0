"""Whether a model's weights are on this machine, as `deit-zoo list` says: told by names alone."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

import deit_zoo
from deit_zoo.weights.places import hub_folder
from support.command import deit_zoo as command
from support.command import python
from support.machine import NAME, PTH, REPO, Machine, hub_source, sha256, url_source


def here(machine: Machine, **more: str) -> str | None:
    """Where the weights are, by the table's own process."""
    done = command("list", NAME, "--json", env=machine.environment | more)
    assert done.status == 0, done.err
    place: str | None = json.loads(done.out)[0]["here"]
    return place


@pytest.mark.parametrize("source", ["machine", "pinned", "by_url"])
def test_what_was_fetched_is_cached_and_what_was_not_is_nowhere(
    source: str, request: pytest.FixtureRequest
) -> None:
    machine: Machine = request.getfixturevalue(source)
    assert here(machine) is None
    assert "file" in machine.fetch()
    assert here(machine) == "cached"


def test_another_commit_than_the_pinned_one_is_not_the_models(machine: Machine) -> None:
    assert "file" in machine.fetch()
    machine.publish(hub_source(revision=40 * "0"))
    assert here(machine) is None


@pytest.mark.parametrize("own_folder", [True, False])
def test_carried_weights_count_before_embedded_ones(
    own_folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert deit_zoo.info(NAME).place == "embedded"
    deit_zoo.fetch(NAME, tmp_path / NAME)
    base = tmp_path if own_folder else tmp_path / NAME
    monkeypatch.setenv("DEIT_ZOO_WEIGHTS", f"{tmp_path / 'absent'}{os.pathsep}{base}")
    assert deit_zoo.info(NAME).place == "carried"
    assert deit_zoo.info("convnet_pico_digits").place == "embedded"


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"XDG_CACHE_HOME": "/caches"},
        {"HF_HOME": "~/hf", "XDG_CACHE_HOME": "/caches"},
        {"HF_HUB_CACHE": "$HF_HOME/here", "HF_HOME": "/hf"},
        {"HUGGINGFACE_HUB_CACHE": "/old"},
    ],
)
def test_the_hubs_cache_is_where_huggingface_hub_has_it(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    assert str(hub_folder()) == python(code, env={}).strip()


@pytest.mark.parametrize(("blocked", "proof"), [(False, "pinned"), (True, "prefix")])
def test_a_model_states_the_digest_and_proof_of_the_source_that_gave_it(
    blocked: bool, proof: str, pinned: Machine, weights: bytes, pth: bytes
) -> None:
    commit = pinned.hub.repositories[REPO].refs["main"]
    hub = hub_source(revision=commit, sha256=sha256(weights))
    pinned.publish(hub, url_source(pinned.hub.endpoint + PTH, sha256(pth)[:8]))
    if blocked:
        pinned.hub.fail("HEAD", REPO, status=403, times=math.inf)
    code = f"import deit_zoo; c = deit_zoo.create({NAME!r}, pretrained=True).checkpoint"
    process = pinned.start(f"{code}; print(c.proof, c.sha256)", server="torch")
    assert process.communicate(timeout=100)[0] == f"{proof} {None if blocked else hub['sha256']}\n"
