"""Which image stands where: upstream's repeated augmentation, and shares that make up the whole."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import golden
from deit_zoo.recipes.deit import DEIT_BASE
from deit_zoo.recipes.plan import Plan
from deit_zoo.training.data import Key, ReplicaBatches, replica_indices
from support.tables import each_row

CASES = [case for index in golden.cases("sampler") for case in index["cases"]]
STORED = golden.arrays(golden.case("ra_sampler"))
# The golden cases of 1000 images, 4 replicas and 3 repeats: 192 images a replica, 6 steps of 32.
PLAN = Plan(
    recipe=replace(DEIT_BASE, replicas=4, batch_size=128, repeated_aug=3),
    modified=True,
    device="cpu",
    processes=1,
    workers=0,
    num_images=1000,
)


def indices_of(case: dict[str, Any]) -> list[int]:
    """Our order for a golden case."""
    return replica_indices(
        case["dataset_length"],
        epoch=case["epoch"],
        replica=case["rank"],
        replicas=case["num_replicas"],
        repeats=case["num_repeats"],
        shuffle=case["shuffle"],
    )


def batches_of(replicas: range, *, epoch: int = 1) -> list[list[Key]]:
    """The batches of one process, in order."""
    sampler = ReplicaBatches(PLAN, replicas)
    sampler.epoch = epoch
    return list(sampler)


@each_row("case", CASES)
def test_a_replica_sees_the_images_of_the_original_in_its_order(case: dict[str, Any]) -> None:
    found = np.asarray(indices_of(case), dtype="<i4")
    assert (len(found), hashlib.sha256(found.tobytes()).hexdigest()) == (
        case["count"],
        case["sha256_of_int32_le"],
    )


@each_row("case", [c for c in CASES if c["stored"] == "all"])
def test_an_order_that_is_stored_whole_is_matched_image_by_image(case: dict[str, Any]) -> None:
    assert indices_of(case) == STORED[case["key"]].tolist()


@pytest.mark.parametrize("case", [c for c in CASES if c["stored"] != "all"])
def test_an_order_of_imagenet_begins_and_ends_as_the_original(case: dict[str, Any]) -> None:
    found = indices_of(case)
    assert found[:64] == STORED[f"{case['key']}/head"].tolist()
    assert found[-64:] == STORED[f"{case['key']}/tail"].tolist()


def test_the_batches_of_a_replica_hold_its_images_in_order() -> None:
    found = [key.image for batch in batches_of(range(2, 3)) for key in batch]
    assert found == STORED["len1000_replicas4_rank2_epoch1_shuffle_repeats3"].tolist()


def test_a_step_goes_through_the_replicas_one_after_another() -> None:
    replicas = [{key.replica for key in batch} for batch in batches_of(range(4))]
    assert replicas == [{0}, {1}, {2}, {3}] * 6


def test_a_key_says_epoch_replica_and_position() -> None:
    second_step_of_replica_3 = batches_of(range(4), epoch=1)[7]
    places = [(key.epoch, key.replica, key.position) for key in second_step_of_replica_3]
    assert places == [(1, 3, position) for position in range(32, 64)]


def test_every_key_of_an_epoch_is_another() -> None:
    keys = [key for batch in batches_of(range(4)) for key in batch]
    assert len({(key.epoch, key.replica, key.position) for key in keys}) == len(keys) == 768


def test_another_epoch_has_another_order() -> None:
    first, second = (
        [key.image for batch in batches_of(range(4), epoch=epoch) for key in batch]
        for epoch in (0, 1)
    )
    assert first != second


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_shares_of_the_processes_are_together_the_whole(processes: int) -> None:
    share = 4 // processes
    shares = [
        batches_of(range(process * share, (process + 1) * share)) for process in range(processes)
    ]
    together = [
        batch
        for step in range(6)
        for batches in shares
        for batch in batches[step * share : (step + 1) * share]
    ]
    assert together == batches_of(range(4))


@pytest.mark.parametrize("share", [1, 2, 4])
def test_a_sampler_says_how_many_batches_it_has(share: int) -> None:
    assert len(ReplicaBatches(PLAN, range(share))) == 6 * share
