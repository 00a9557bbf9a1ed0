"""States: back bit for bit, two kept, refused where they are another's, passed over where torn."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.optim import Optimizer

import deit_zoo
from deit_zoo.distributed import DistributedContext
from deit_zoo.errors import CheckpointError
from deit_zoo.recipes.digits import DEIT_PICO
from deit_zoo.training.loop import TrainState
from deit_zoo.training.losses import supervised
from deit_zoo.training.optim import Ema, optimizer_for
from deit_zoo.training.rollback import History, Rollback
from deit_zoo.training.state_files import (
    TrainPosition,
    load_state,
    newest,
    not_finite,
    save_state,
    snapshot,
    state_tensors,
    states,
)
from deit_zoo.weights.metadata import METADATA_KEY

DIGEST, OTHER = "a" * 64, "b" * 64
FACTS = {"rewinds": 1, "sums": {"step": 3, "loss": 0.1}}
STEPS = 200  # of an epoch
PLACE = TrainPosition(epoch=7, step=3, facts=FACTS)


def learner(seed: int, *, averaged: bool = False, device: str = "cpu") -> TrainState:
    """A fresh model, its optimizer and maybe an average."""
    torch.manual_seed(seed)
    model = deit_zoo.create("deit_pico_digits").to(device)
    ema = Ema(model, 0.9) if averaged else None
    return TrainState(
        model=model,
        optimizer=optimizer_for(model, DEIT_PICO),
        criterion=supervised,
        mix=lambda images, targets: (images, targets),
        replicas=range(1),
        group=DistributedContext(device=torch.device(device)),
        network=model,
        ema=ema,
    )


def take_steps(trained: TrainState, count: int) -> None:
    """Train on a batch that depends on the step alone."""
    for step in range(count):
        torch.manual_seed(step)
        device = trained.group.device
        logits = trained.model(torch.randn(4, 3, 16, 16).to(device))
        assert isinstance(logits, Tensor)
        trained.optimizer.zero_grad()
        labels = torch.tensor([1, 2, 3, 4], device=device)
        torch.autograd.backward(F.cross_entropy(logits, labels))
        trained.optimizer.step()
        if isinstance(trained.ema, Ema):
            trained.ema.update()


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


@pytest.fixture(scope="module")
def trained() -> TrainState:
    """A model after three steps; no test changes it."""
    learned = learner(0, averaged=True)
    take_steps(learned, 3)
    return learned


@pytest.fixture
def state(tmp_path: Path, trained: TrainState) -> Path:
    """The state of the trained model after epoch 7 and three steps."""
    return save_state(tmp_path, PLACE, snapshot(trained), DIGEST)


@pytest.fixture
def loaded(state: Path) -> TrainState:
    """Another model, into which that was put."""
    found = learner(1, averaged=True)
    load_state(state, found, DIGEST)
    return found


Keep = Callable[..., Path]


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    """Write the state of a fresh model at an epoch and a step."""
    fresh = learner(0)

    def kept(
        epoch: int,
        step: int = 0,
        loss: float = 0.0,
        hold: TrainPosition | None = None,
        **facts: int,
    ) -> Path:
        place = TrainPosition(epoch=epoch, step=step, facts={"loss": loss} | facts)
        return save_state(tmp_path, place, snapshot(fresh), DIGEST, hold)

    return kept


def places(output: Path) -> list[str]:
    """The names in the state folder, without digest and suffix."""
    return sorted(path.name.rpartition("-")[0] for path in (output / "state").iterdir())


def test_a_state_says_where_the_run_is_and_what_it_counted(state: Path) -> None:
    assert load_state(state, learner(1, averaged=True), DIGEST) == PLACE


def test_the_name_of_a_state_says_where_it_is_and_ends_in_its_digest(state: Path) -> None:
    sha256 = hashlib.sha256(state.read_bytes()).hexdigest()
    assert state.name == f"epoch-00007-step-000003-{sha256[:16]}.safetensors"


def test_weights_optimizer_and_average_come_back_bit_for_bit(
    loaded: TrainState, trained: TrainState
) -> None:
    assert_same_bits(loaded.model.state_dict(), trained.model.state_dict())
    assert_same_bits(moments(loaded.optimizer), moments(trained.optimizer))
    assert loaded.ema
    assert trained.ema
    assert_same_bits(loaded.ema.module.state_dict(), trained.ema.module.state_dict())


def test_training_goes_on_as_if_nothing_had_happened_and_leaves_the_file_as_it_was(
    loaded: TrainState, state: Path
) -> None:
    before = state.read_bytes()
    undisturbed = learner(0, averaged=True)
    take_steps(undisturbed, 3)
    for each in (undisturbed, loaded):
        take_steps(each, 2)
    assert_same_bits(state_tensors(loaded), state_tensors(undisturbed))
    assert state.read_bytes() == before


def test_the_optimizer_keeps_the_settings_that_it_was_made_with(
    loaded: TrainState, state: Path
) -> None:
    optimizer = optimizer_for(loaded.model, replace(DEIT_PICO, lr=0.123))
    load_state(state, replace(loaded, optimizer=optimizer), DIGEST)
    assert {group["lr"] for group in optimizer.param_groups} == {0.123}


def test_the_two_last_states_are_kept(tmp_path: Path, keep: Keep) -> None:
    for epoch, step in ((1, 0), (2, 0), (9, 100), (9, 101)):
        keep(epoch, step)
    assert places(tmp_path) == ["epoch-00009-step-000100", "epoch-00009-step-000101"]


def test_states_are_listed_oldest_first(tmp_path: Path, keep: Keep) -> None:
    keep(99, 20)
    keep(100, 3)
    names = [path.name[:23] for path in states(tmp_path)]
    assert names == ["epoch-00099-step-000020", "epoch-00100-step-000003"]


def test_a_state_takes_the_place_of_those_beyond_it_and_keeps_the_one_before(
    tmp_path: Path, keep: Keep
) -> None:
    # A run that went back from epoch 4 to epoch 2 is now at step 5 of the next.
    keep(2)
    keep(4)
    keep(2, 5)
    assert places(tmp_path) == ["epoch-00002-step-000000", "epoch-00002-step-000005"]


def test_a_state_takes_the_place_of_another_at_the_same_step(tmp_path: Path, keep: Keep) -> None:
    keep(1)
    keep(2, loss=1.0)
    last = keep(2, loss=2.0)
    assert places(tmp_path) == ["epoch-00001-step-000000", "epoch-00002-step-000000"]
    assert states(tmp_path)[-1] == last


def test_what_a_killed_process_left_of_a_state_is_removed(tmp_path: Path, keep: Keep) -> None:
    keep(1)
    (tmp_path / "state" / ".epoch-00002-step-000000-0123456789abcdef.safetensors.77").touch()
    keep(3)
    assert places(tmp_path) == ["epoch-00001-step-000000", "epoch-00003-step-000000"]


def test_a_run_that_has_not_begun_has_no_state(tmp_path: Path) -> None:
    assert states(tmp_path) == []
    assert newest(tmp_path, History(), STEPS, pytest.fail) is None


def test_the_state_that_is_furthest_is_the_newest(tmp_path: Path, keep: Keep) -> None:
    keep(1)
    last = keep(1, 7)
    assert newest(tmp_path, History(), STEPS, pytest.fail) == last


def truncated(data: bytes) -> bytes:
    return data[:-1]


def flipped(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


def emptied(_: bytes) -> bytes:
    return b""


def headless(data: bytes) -> bytes:
    return b"\0" * 8 + data[8:]


HARM = [truncated, flipped, emptied, headless]


@pytest.mark.parametrize("harm", HARM)
def test_a_state_that_is_not_whole_is_told_removed_and_the_one_before_is_used(
    tmp_path: Path, keep: Keep, harm: Callable[[bytes], bytes]
) -> None:
    before, last = keep(1), keep(2)
    last.write_bytes(harm(last.read_bytes()))
    told: list[str] = []
    assert newest(tmp_path, History(), STEPS, told.append) == before
    assert told == [f"{last} is torn or altered (its SHA-256 is not the one in its name); not used"]
    assert states(tmp_path) == [before]


def test_two_whole_states_are_there_again_after_a_torn_one(tmp_path: Path, keep: Keep) -> None:
    # The torn one must not be counted as one of the two.
    keep(1)
    torn = keep(2)
    torn.write_bytes(b"")
    newest(tmp_path, History(), STEPS, lambda sentence: None)
    keep(3)
    assert places(tmp_path) == ["epoch-00001-step-000000", "epoch-00003-step-000000"]


def test_a_run_whose_states_are_all_broken_is_not_begun_again_in_silence(
    tmp_path: Path, keep: Keep
) -> None:
    for file in (keep(1), keep(2)):
        file.write_bytes(b"")
    told: list[str] = []
    for _ in range(2):  # a second try is refused as the first was
        with pytest.raises(CheckpointError) as caught:
            newest(tmp_path, History(), STEPS, told.append)
        assert str(caught.value) == (
            f"no state in {tmp_path / 'state'} is whole and finite; remove {tmp_path} to begin "
            "again"
        )
    assert len(told) == 4


def test_a_state_with_numbers_that_are_not_finite_is_told_and_the_one_before_is_used(
    tmp_path: Path, keep: Keep
) -> None:
    # As version 0.1.0 could leave it.
    before, poisoned = keep(1), learner(0)
    with torch.no_grad():
        poisoned.model.head.weight[3, 0] = math.inf
    last = save_state(tmp_path, PLACE, snapshot(poisoned), DIGEST)
    told: list[str] = []
    assert newest(tmp_path, History(), STEPS, told.append) == before
    assert told == [f"{last} holds numbers that are not finite (model.head.weight); not used"]
    assert states(tmp_path) == [before]


@pytest.mark.parametrize("part", ["model", "optimizer", "ema"])
def test_a_number_that_is_not_finite_is_found_in_every_part(trained: TrainState, part: str) -> None:
    tensors = snapshot(trained)
    assert not_finite(tensors) is None
    name = [key for key in tensors if key.startswith(f"{part}.")][-1]
    tensors[name].view(-1)[-1] = math.nan
    assert not_finite(tensors) == name


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_snapshot_is_not_touched_by_the_next_step_and_comes_back(
    tmp_path: Path, device: str
) -> None:
    learned = learner(0, averaged=True, device=device)
    take_steps(learned, 1)
    taken = snapshot(learned)
    before = {key: value.cpu().clone() for key, value in state_tensors(learned).items()}
    take_steps(learned, 1)
    assert not_finite(state_tensors(learned)) is None
    assert_same_bits(taken, before)
    assert not torch.equal(taken["ema.head.weight"], snapshot(learned)["ema.head.weight"])
    load_state(save_state(tmp_path, PLACE, taken, DIGEST), learned, DIGEST)
    assert_same_bits(snapshot(learned), before)


def test_a_state_of_before_the_first_step_continues_as_a_fresh_run(tmp_path: Path) -> None:
    # It has no moments yet; those of the run that goes back there must be forgotten.
    file = save_state(tmp_path, PLACE, snapshot(learner(0)), DIGEST)
    fresh, back = learner(0), learner(1)
    take_steps(back, 3)
    load_state(file, back, DIGEST)
    for each in (fresh, back):
        take_steps(each, 2)
    assert_same_bits(back.model.state_dict(), fresh.model.state_dict())


def test_states_that_are_held_are_kept_beside_the_last_two(tmp_path: Path, keep: Keep) -> None:
    keep(1)
    keep(2)
    for step in (5, 6, 7):
        keep(2, step, hold=TrainPosition(epoch=2))
    assert places(tmp_path) == [
        "epoch-00001-step-000000",
        "epoch-00002-step-000000",
        "epoch-00002-step-000006",
        "epoch-00002-step-000007",
    ]


def test_a_state_from_which_the_run_has_gone_back_is_not_used(tmp_path: Path, keep: Keep) -> None:
    back = Rollback(
        why="", failed=450, first=450, back_to=200, attempt=0, loss=None, grad_norm=None
    )
    history = History(rollbacks=(back,))
    keep(1, rewinds=0)
    keep(2, 50, rewinds=1)  # trained since
    assert newest(tmp_path, history, STEPS, pytest.fail) == states(tmp_path)[1]
    keep(2, 40, rewinds=0)  # trained before
    assert newest(tmp_path, history, STEPS, pytest.fail) == states(tmp_path)[0]
    assert places(tmp_path) == ["epoch-00001-step-000000"]


def test_a_state_of_an_earlier_recipe_of_the_run_is_put_back(state: Path) -> None:
    assert load_state(state, learner(1, averaged=True), OTHER, DIGEST) == PLACE


def test_a_state_of_another_recipe_is_refused(state: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_state(state, learner(1), OTHER)
    assert str(caught.value) == (
        f"{state} was left by another recipe; give a new --output, or the same recipe and --set"
    )


@pytest.mark.parametrize("name", ["epoch-x", "epoch-a-b-c-d", "epoch-99999-step-000000-abc"])
def test_what_has_not_the_name_of_a_state_is_none(name: str, state: Path) -> None:
    (state.parent / f"{name}.safetensors").touch()
    assert states(state.parents[1]) == [state]


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", '{"epoch": "x"}'])
def test_a_forged_state_is_one_sentence(text: str, state: Path, trained: TrainState) -> None:
    data = to_bytes(state_tensors(trained), metadata={METADATA_KEY: text})
    digits = hashlib.sha256(data).hexdigest()[:16]
    forged = state.with_name(f"epoch-00009-step-000000-{digits}.safetensors")
    forged.write_bytes(data)
    with pytest.raises(CheckpointError, match="is no state of a run"):
        load_state(forged, learner(1), DIGEST)


def test_a_state_is_a_safetensors_file_and_no_pickle(state: Path) -> None:
    # The format: 8 bytes of length, that much JSON, then tensors to the last byte.
    data = state.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    facts = json.loads(header.pop("__metadata__")["deit_zoo"])
    assert facts == {"epoch": 7, "step": 3, "facts": FACTS, "recipe_sha256": DIGEST}
    assert max(tensor["data_offsets"][1] for tensor in header.values()) == len(data) - 8 - length
    assert {key.partition(".")[0] for key in header} == {"model", "optimizer", "ema"}


def test_the_same_state_gives_the_same_file(state: Path, trained: TrainState) -> None:
    before = state.read_bytes()
    assert save_state(state.parent.parent, PLACE, snapshot(trained), DIGEST) == state
    assert state.read_bytes() == before
