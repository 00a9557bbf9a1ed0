"""Plans: steps and shares by hand, the learning rate of every epoch against upstream's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import golden
from deit_zoo.errors import DataError, RecipeError
from deit_zoo.training.plan import Plan, learning_rate
from deit_zoo.training.recipe import Recipe
from deit_zoo.training.recipes.deit import DEIT_BASE

IMAGENET = 1_281_167
RATES = [
    pytest.param(case, id=case["key"])
    for index in golden.cases("learning_rate")
    for case in index["cases"]
    if "resume" not in case["key"]
]


def plan_of(recipe: Recipe = DEIT_BASE, *, processes: int = 8, num_images: int = IMAGENET) -> Plan:
    """A plan on GPUs, one replica each unless said otherwise."""
    return Plan(
        recipe=recipe,
        modified=False,
        device="cuda",
        processes=processes,
        workers=10,
        num_images=num_images,
    )


def test_an_epoch_of_imagenet_has_1251_steps() -> None:
    # facts/recipes.json: floor(1281167 // 256 * 256 / replicas) images per rank, then drop_last.
    assert plan_of().steps_per_epoch == 1251


def test_an_epoch_of_imagenet_shows_a_third_of_its_images() -> None:
    # 1281167 // 256 * 256 = 1281024, each shown three times.
    assert plan_of().unique_images == 427_008


def test_without_repeats_an_epoch_shows_all_but_the_rounding() -> None:
    assert plan_of(replace(DEIT_BASE, repeated_aug=1)).unique_images == 1_281_024


def test_a_replica_sees_160128_images_of_imagenet() -> None:
    # The golden sampler cases of 1281167 images and 8 replicas have this count.
    assert plan_of().images_per_replica == 160_128


@pytest.mark.parametrize(("processes", "share"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_processes_share_the_replicas_evenly(processes: int, share: int) -> None:
    assert plan_of(processes=processes).replicas_per_process == share


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_the_batch_of_a_replica_does_not_depend_on_the_processes(processes: int) -> None:
    assert plan_of(processes=processes).replica_batch == 128


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_the_steps_do_not_depend_on_the_processes(processes: int) -> None:
    assert plan_of(processes=processes).steps_per_epoch == 1251


@pytest.mark.parametrize("replicas", [1, 2, 16])
def test_another_number_of_replicas_leaves_imagenet_its_steps(replicas: int) -> None:
    # The authors' logs: 16 x 64, and 1251 steps there too.
    assert plan_of(replace(DEIT_BASE, replicas=replicas), processes=1).steps_per_epoch == 1251


def test_a_last_partial_batch_is_dropped() -> None:
    # 2047 // 256 * 256 = 1792 images, 224 per replica, and 128 of them make a batch.
    assert plan_of(num_images=2047).steps_per_epoch == 1


@pytest.mark.parametrize(("processes", "nearest"), [(3, 2), (5, 4), (6, 4), (7, 8), (16, 8)])
def test_processes_that_do_not_divide_the_replicas_are_refused(
    processes: int, nearest: int
) -> None:
    with pytest.raises(RecipeError) as caught:
        plan_of(processes=processes)
    assert str(caught.value) == (
        f"{processes} processes cannot share 8 replicas evenly; the nearest number that can is "
        f"--gpus {nearest}, or change --set replicas="
    )


def test_the_fewest_images_that_make_a_step_are_enough() -> None:
    assert plan_of(num_images=1024).steps_per_epoch == 1


def test_too_few_images_for_a_step_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        plan_of(num_images=1023)
    assert str(caught.value) == (
        "1023 training images give no whole step of 1024; give more images or a smaller "
        "--set batch_size="
    )


def test_a_plan_as_plain_data_says_what_follows_from_it() -> None:
    derived = {
        "replica_batch": 128,
        "replicas_per_process": 4,
        "steps_per_epoch": 1251,
        "unique_images_per_epoch": 427_008,
        "recipe_sha256": DEIT_BASE.digest,
    }
    assert derived.items() <= plan_of(processes=2).to_dict().items()


def test_a_plan_as_plain_data_holds_recipe_and_machine() -> None:
    found = plan_of(processes=2).to_dict()
    machine = {key: found[key] for key in ("device", "processes", "workers", "num_images")}
    assert found["recipe"] == DEIT_BASE.to_dict()
    assert machine == {"device": "cuda", "processes": 2, "workers": 10, "num_images": IMAGENET}


def test_the_plan_of_deit_base_reads_as_the_paper_does() -> None:
    assert plan_of().lines() == [
        ("recipe", "deit_base, arXiv:2012.12877, Table 9"),
        ("data", "imagenet1k, 1,281,167 training images of 224 px"),
        ("length", "300 epochs of 1251 steps, 427,008 different images, each shown 3 times"),
        ("batch", "1024 = 8 replicas x 128"),
        ("machine", "8 processes on cuda, 10 workers"),
        ("rate", "peak 0.001, 5 warm-up epochs, cosine"),
        ("distillation", "none"),
    ]


def test_a_modified_distilled_plan_says_so() -> None:
    recipe = replace(DEIT_BASE, distillation="hard", teacher="regnety_160", repeated_aug=1)
    lines = dict(replace(plan_of(recipe, processes=1), modified=True).lines())
    assert lines["recipe"] == "deit_base (modified), arXiv:2012.12877, Table 9"
    assert lines["length"] == "300 epochs of 1251 steps, 1,281,024 different images"
    assert lines["machine"] == "1 process on cuda, 10 workers"
    assert lines["distillation"] == "hard from regnety_160"


@pytest.mark.parametrize("case", RATES)
def test_every_epoch_has_the_rate_of_the_original(case: dict[str, Any]) -> None:
    recipe = replace(
        DEIT_BASE,
        epochs=case["epochs"],
        lr=case["peak_lr"],
        warmup_epochs=case["warmup_epochs"],
        warmup_lr=case["warmup_lr"],
        min_lr=case["min_lr"],
    )
    found = [learning_rate(recipe, epoch) for epoch in range(case["epochs"])]
    expected = golden.arrays(golden.case("learning_rate"))[case["key"]]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=0.0)


def test_warmup_holds_the_first_rate_for_two_epochs() -> None:
    # Upstream steps its scheduler with the number of the epoch that just ended.
    rates = [learning_rate(DEIT_BASE, epoch) for epoch in range(3)]
    assert rates == pytest.approx([1e-6, 1e-6, 2.008e-4], rel=1e-12)


def test_the_peak_is_never_reached_because_the_warmup_ends_inside_the_cosine() -> None:
    # facts/recipes.json, peak_lr: "the largest value ever applied is 0.00099932 (epoch 6)".
    rates = [learning_rate(DEIT_BASE, epoch) for epoch in range(300)]
    assert rates.index(max(rates)) == 6
    assert max(rates) == pytest.approx(0.00099932, abs=5e-9)


def test_without_warmup_the_first_epochs_run_at_the_peak() -> None:
    recipe = replace(DEIT_BASE, warmup_epochs=0)
    assert [learning_rate(recipe, epoch) for epoch in range(2)] == [0.001, 0.001]
