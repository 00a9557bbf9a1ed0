"""States: back bit for bit, two kept, refused where they are another's or not whole."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

import deit_zoo
from deit_zoo.errors import CheckpointError
from deit_zoo.models.layers import ZooModel
from deit_zoo.training.checkpoint import load_state, save_state, states
from deit_zoo.training.optim import optimizer_for
from deit_zoo.training.recipes.digits import DEIT_PICO

DIGEST, OTHER = "a" * 64, "b" * 64


def learner(seed: int) -> tuple[ZooModel, Optimizer]:
    """A fresh model and its optimizer."""
    torch.manual_seed(seed)
    model = deit_zoo.create("deit_pico_digits")
    return model, optimizer_for(model, DEIT_PICO)


def take_steps(model: ZooModel, optimizer: Optimizer, count: int) -> None:
    """Train on a batch that depends on the step alone."""
    for step in range(count):
        torch.manual_seed(step)
        logits = model(torch.randn(4, 3, 16, 16))
        assert isinstance(logits, Tensor)
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(logits, torch.tensor([1, 2, 3, 4])))
        optimizer.step()


def moments(optimizer: Optimizer) -> dict[str, Tensor]:
    """Everything that the optimizer remembers, by parameter and name."""
    held = optimizer.state_dict()["state"]
    return {f"{number}.{key}": value for number in held for key, value in held[number].items()}


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    different = [
        key
        for key, value in expected.items()
        if found[key].dtype != value.dtype or not torch.equal(found[key], value)
    ]
    assert different == []


@pytest.fixture
def trained() -> tuple[ZooModel, Optimizer]:
    model, optimizer = learner(0)
    take_steps(model, optimizer, 3)
    return model, optimizer


@pytest.fixture
def state(tmp_path: Path, trained: tuple[ZooModel, Optimizer]) -> Path:
    """The state of the trained model after epoch 7."""
    save_state(tmp_path, 7, *trained, DIGEST)
    return states(tmp_path)[0]


def test_a_state_says_how_many_epochs_are_done(state: Path) -> None:
    assert load_state(state, *learner(1), DIGEST) == 7


def test_the_weights_come_back_bit_for_bit(
    state: Path, trained: tuple[ZooModel, Optimizer]
) -> None:
    model, optimizer = learner(1)
    load_state(state, model, optimizer, DIGEST)
    assert_same_bits(model.state_dict(), trained[0].state_dict())


def test_the_optimizer_comes_back_bit_for_bit(
    state: Path, trained: tuple[ZooModel, Optimizer]
) -> None:
    model, optimizer = learner(1)
    load_state(state, model, optimizer, DIGEST)
    assert_same_bits(moments(optimizer), moments(trained[1]))


def test_training_goes_on_as_if_nothing_had_happened(
    state: Path, trained: tuple[ZooModel, Optimizer]
) -> None:
    model, optimizer = learner(1)
    load_state(state, model, optimizer, DIGEST)
    take_steps(model, optimizer, 2)
    take_steps(*trained, 2)
    assert_same_bits(model.state_dict(), trained[0].state_dict())


def test_going_on_leaves_the_file_as_it_was(state: Path) -> None:
    before = state.read_bytes()
    model, optimizer = learner(1)
    load_state(state, model, optimizer, DIGEST)
    take_steps(model, optimizer, 1)
    assert state.read_bytes() == before


def test_the_two_last_states_are_kept(tmp_path: Path) -> None:
    for epoch in (1, 2, 9, 10):
        save_state(tmp_path, epoch, *learner(0), DIGEST)
    names = sorted(path.name for path in (tmp_path / "state").iterdir())
    assert names == ["epoch-00009.safetensors", "epoch-00010.safetensors"]


def test_states_are_listed_oldest_first(tmp_path: Path) -> None:
    for epoch in (100, 99):
        save_state(tmp_path, epoch, *learner(0), DIGEST)
    names = [path.name for path in states(tmp_path)]
    assert names == ["epoch-00099.safetensors", "epoch-00100.safetensors"]


def test_a_run_that_has_not_begun_has_no_state(tmp_path: Path) -> None:
    assert states(tmp_path) == []


def test_a_state_of_another_recipe_is_refused(state: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_state(state, *learner(1), OTHER)
    assert str(caught.value) == (
        f"{state} was left by another recipe; give a new --output, or the same recipe and --set"
    )


@pytest.mark.parametrize("left", [0, 7, 500, -1], ids=["nothing", "length", "header", "last byte"])
def test_a_truncated_state_gives_one_sentence(state: Path, left: int) -> None:
    state.write_bytes(state.read_bytes()[:left])
    with pytest.raises(
        CheckpointError, match=r"^\S+ is not a whole safetensors file \(.+\); "
    ) as e:
        load_state(state, *learner(1), DIGEST)
    assert "\n" not in str(e.value)


def test_a_state_is_a_safetensors_file_and_no_pickle(state: Path) -> None:
    # The format: 8 bytes of length, that much JSON, then tensors to the last byte.
    data = state.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    facts = json.loads(header.pop("__metadata__")["deit_zoo"])
    assert facts == {"epoch": 7, "recipe_sha256": DIGEST}
    assert max(tensor["data_offsets"][1] for tensor in header.values()) == len(data) - 8 - length


def test_the_same_state_gives_the_same_bytes(
    state: Path, trained: tuple[ZooModel, Optimizer]
) -> None:
    before = state.read_bytes()
    save_state(state.parent.parent, 7, *trained, DIGEST)
    assert state.read_bytes() == before
