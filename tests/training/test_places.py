"""Which image stands where: upstream's repeated augmentation; who decodes what for whom."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import golden
from deit_zoo.recipes.deit import DEIT_BASE
from deit_zoo.recipes.plan import EPOCH_UNIT, Plan
from deit_zoo.training.places import (
    PLACES_PER_CHUNK,
    EpochPlaces,
    Key,
    Share,
    balanced_images,
    epoch_order,
)
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
    num_images, replicas = case["dataset_length"], case["num_replicas"]
    order = epoch_order(
        num_images,
        epoch=case["epoch"],
        replicas=replicas,
        repeats=case["num_repeats"],
        count=num_images // EPOCH_UNIT * EPOCH_UNIT // replicas,
        shuffle=case["shuffle"],
    )
    indices: list[int] = order[case["rank"]].tolist()
    return indices


def shares_of(peers: int = 1, *, epoch: int = 1, plan: Plan = PLAN) -> list[list[Share]]:
    """What each of so many processes has in each step."""
    replicas = range(plan.recipe.replicas)
    return [
        [
            places.share(step)
            for places in (EpochPlaces(plan, epoch, replicas, peer=peer, peers=peers),)
            for step in range(plan.steps_per_epoch)
        ]
        for peer in range(peers)
    ]


def keys_by_row(share: Share) -> list[Key]:
    """What a process decodes, in the order of its rows."""
    keys = {
        place.row: Key(image, share.epoch, place.replica, place.position)
        for image, places in share.images
        for place in places
    }
    assert sorted(keys) == list(range(share.num_rows))
    return [keys[row] for row in range(share.num_rows)]


def received(shares: list[Share]) -> list[list[Key]]:
    """What each process of a step has after all have sent their rows."""
    found = []
    for peer, share in enumerate(shares):
        arrived: list[Key] = []
        for other in shares:
            begin = sum(other.sends[:peer])
            arrived += keys_by_row(other)[begin : begin + other.sends[peer]]
        assert [other.sends[peer] for other in shares] == share.receives
        found.append([arrived[number] for number in share.order])
    return found


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


def test_the_rows_of_a_step_are_its_replicas_one_after_another() -> None:
    (steps,) = shares_of()
    keys = keys_by_row(steps[1])
    assert [key.replica for key in keys] == [number for number in range(4) for _ in range(32)]
    assert [key.position for key in keys] == [*range(32, 64)] * 4
    assert {key.epoch for key in keys} == {1}


def test_the_rows_of_a_replica_hold_its_images_in_order() -> None:
    (steps,) = shares_of()
    found = [key.image for share in steps for key in keys_by_row(share)[64:96]]
    assert found == STORED["len1000_replicas4_rank2_epoch1_shuffle_repeats3"].tolist()


def test_every_key_of_an_epoch_is_another() -> None:
    (steps,) = shares_of()
    keys = [key for share in steps for key in keys_by_row(share)]
    assert len({(key.epoch, key.replica, key.position) for key in keys}) == len(keys) == 768


def test_another_epoch_has_another_order() -> None:
    first, second = (keys_by_row(shares_of(epoch=epoch)[0][0]) for epoch in (0, 1))
    assert [key.image for key in first] != [key.image for key in second]


def test_an_image_of_a_step_is_decoded_once_for_all_its_places() -> None:
    (steps,) = shares_of()
    for share in steps:
        images = [image for image, _ in share.images]
        assert len(set(images)) == len(images)
    # 128 places of each image three times, but for the two that reach into the next step.
    assert [len(share.images) for share in steps] == [43, 44, 43, 43, 44, 43]


@pytest.mark.parametrize("peers", [2, 4])
def test_processes_decode_for_each_other_and_end_with_their_own(peers: int) -> None:
    alone = [keys_by_row(share) for share in shares_of()[0]]
    for step, shares in enumerate(zip(*shares_of(peers), strict=True)):
        found = received(list(shares))
        assert [len(keys) for keys in found] == [128 // peers] * peers
        assert [key for keys in found for key in keys] == alone[step]


@pytest.mark.parametrize("peers", [1, 2, 4])
def test_no_image_is_decoded_by_two_processes(peers: int) -> None:
    for shares in zip(*shares_of(peers), strict=True):
        images = [image for share in shares for image, _ in share.images]
        assert len(set(images)) == len(images)
        assert max(len(share.images) for share in shares) <= -(-len(images) // peers)


def test_a_third_of_the_images_of_imagenet_are_decoded_on_a_node_of_eight() -> None:
    # DeiT, section 5.2: three repeats; a step of 1,024 has 341 different images and a third.
    plan = replace(PLAN, recipe=DEIT_BASE, processes=8, num_images=1_281_167)
    places = EpochPlaces(plan, 0, range(DEIT_BASE.replicas), peer=0, peers=1)
    decoded = [len(places.share(step).images) for step in range(30)]
    assert sum(decoded) / (30 * 1024) == pytest.approx(0.334, abs=5e-4)


@pytest.mark.parametrize("peers", [1, 4])
def test_chunks_hold_every_place_once_and_are_of_about_one_size(peers: int) -> None:
    plan = replace(PLAN, recipe=DEIT_BASE, num_images=20_000)
    for steps in shares_of(peers, plan=plan):
        share = steps[2]
        chunks = list(share.chunks())
        assert [image for chunk in chunks for image in chunk.images] == share.images
        sizes = [chunk.num_places for chunk in chunks]
        assert max(sizes) <= PLACES_PER_CHUNK + DEIT_BASE.repeated_aug - 1
        assert min(sizes) > PLACES_PER_CHUNK / 2


def test_a_process_may_have_nothing_to_decode() -> None:
    plan = replace(PLAN, recipe=replace(PLAN.recipe, batch_size=8), num_images=256)
    shares = [steps[0] for steps in shares_of(4, plan=plan)]
    assert [len(share.images) for share in shares] == [1, 1, 1, 0]
    assert list(shares[3].chunks()) == []
    assert [len(keys) for keys in received(shares)] == [2, 2, 2, 2]


def test_with_balanced_sampling_each_class_comes_as_often() -> None:
    labels = np.array([0] * 90 + [1] * 7 + [2] * 3)
    for epoch in range(2):
        images = balanced_images(labels, epoch)
        assert len(images) == 100
        assert sorted(np.bincount(labels[images]).tolist()) == [33, 33, 34]
        # No image of a rare class comes once more before all of them have.
        for name in (1, 2):
            times = np.bincount(images)[labels == name]
            assert times.max() - times.min() <= 1
    assert balanced_images(labels, 0).tolist() != balanced_images(labels, 1).tolist()
    assert balanced_images(labels, 1).tolist() == balanced_images(labels, 1).tolist()
