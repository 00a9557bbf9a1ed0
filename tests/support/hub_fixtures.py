"""A Hub on loopback, a small real checkpoint on it, and a machine that fetches it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import deit_zoo
import golden
from support.hub_server import HubServer
from support.machine import FILE, NAME, PTH, REPO, Machine, hub_source, sha256, url_source


@pytest.fixture(scope="session")
def weights() -> bytes:
    """A real checkpoint of 1.2 MB, filled by the golden files' rule."""
    state = golden.filled(deit_zoo.create(NAME, device="meta")).state_dict()
    return save(state)


@pytest.fixture(scope="session")
def pth(weights: bytes, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The same as upstream writes it: under `model`."""
    state = golden.filled(deit_zoo.create(NAME, device="meta")).state_dict()
    file = tmp_path_factory.mktemp("pth") / "pico.pth"
    torch.save({"model": state}, file)
    return file.read_bytes()


@pytest.fixture
def hub(weights: bytes, pth: bytes) -> Iterator[HubServer]:
    """The Hub with `org/pico`, and the original file at `/deit/pico.pth`."""
    with HubServer() as server:
        server.commit(REPO, {FILE: weights})
        server.files[PTH] = pth
        yield server


@pytest.fixture
def machine(hub: HubServer, tmp_path: Path) -> Machine:
    """A machine whose record has an unpinned source on the Hub."""
    new = Machine(hub=hub, folder=tmp_path)
    new.publish(hub_source())
    return new


@pytest.fixture
def pinned(machine: Machine, weights: bytes) -> Machine:
    """A machine whose record is pinned: commit and digest."""
    commit = machine.hub.repositories[REPO].refs["main"]
    machine.publish(hub_source(revision=commit, sha256=sha256(weights)))
    return machine


@pytest.fixture
def by_url(machine: Machine, pth: bytes) -> Machine:
    """A machine whose record has the original file alone, with the prefix of its digest."""
    machine.publish(url_source(machine.hub.endpoint + PTH, sha256(pth)[:8]))
    return machine
