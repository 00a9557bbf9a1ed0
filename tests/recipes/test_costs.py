"""Costs: the published figures and the arithmetic on them, by hand, and what is not known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.costs import COSTS, IMAGES_PER_SECOND, UNKNOWN, costs_of, estimate
from support.tables import each_row

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
# facts/costs.md, sections 1 and 2: GPU-hours, epochs, hardware, origin.
TOLD = {
    "deit_tiny": [(288, 300, "V100", "published"), (230, 300, "RTX 3090", "published")],
    "deit_small": [(288, 300, "V100", "published")],
    "deit_base": [(8 * 53, 300, "V100", "published"), (16 * 37, 300, "V100", "published")],
    "deit_base_384": [(8 * 20, 25, "V100", "published")],
    "deit_base_distilled_1000ep": [(1410, 1000, "V100", "derived")],
    "deit3_small_pretrain_21k": [(3304, 240, "V100", "derived")],
    "deit3_medium_pretrain_21k": [(3365, 240, "V100", "derived")],
    "deit3_base_pretrain_21k": [(4761, 240, "V100", "derived")],
    "deit3_large_pretrain_21k": [(12749, 240, "V100", "derived")],
}


@each_row(
    ("name", "rate", "epochs"),
    # facts/costs.md, section 3: images per second of one RTX 3090; the epochs are the recipe's.
    [
        ("deit_small", 1053.64, 300),
        ("deit_base_distilled_1000ep", 385.62, 1000),
        ("cait_m48_448", 4.76, 60),
        ("deit3_small_384", 227.76, 20),
        ("deit3_base", 374.05, 20),
        ("deit3_base_384", 93.5, 20),
        ("deit3_large", 113.17, 20),
        ("deit3_large_384", 28.26, 20),
        ("deit3_huge", 38.4, 20),
    ],
)
def test_a_cost_from_the_benchmark_is_its_arithmetic(name: str, rate: float, epochs: int) -> None:
    [cost] = [cost for cost in costs_of(name) if f"{rate:g} images/s" in cost.source]
    assert cost.gpu_hours == pytest.approx(1_281_167 * epochs / rate / 3600, abs=0.05)
    assert (cost.epochs, cost.hardware, cost.origin) == (epochs, "RTX 3090", "derived")


@pytest.mark.parametrize("name", list(TOLD))
def test_a_cost_that_was_told_is_held_as_told(name: str) -> None:
    sentences = [
        (cost.gpu_hours, cost.epochs, cost.hardware, cost.origin)
        for cost in costs_of(name)
        if "images/s" not in cost.source
    ]
    assert sentences == TOLD[name]


def test_every_cost_that_was_told_is_in_the_table_above() -> None:
    assert set(COSTS) == set(TOLD)


@each_row("name", sorted({*COSTS, *IMAGES_PER_SECOND}))
def test_the_table_of_the_documentation_has_every_cost(name: str) -> None:
    section = PAGE.read_text(encoding="utf-8").split("## What it costs")[1].split("\n## ")[0]
    rows = section.splitlines()
    [row] = [row for row in rows if row.startswith("|") and f"`{name}`" in row]
    assert [cost for cost in costs_of(name) if f" {cost.gpu_hours:.8g}" not in row] == []


def test_an_upper_bound_is_told_as_one() -> None:
    # "less than 3 days" on 4 GPUs.
    assert estimate(RECIPES["deit_small"], 4)[0] == (
        "at most 288 GPU-hours of V100, 72 h on 4 (published: less than 3 days on 4 GPUs, "
        "arXiv:2012.12877, section 6)"
    )


@each_row(
    ("gpus", "sentence"),
    [
        (8, "424 GPU-hours of V100, 53 h on 8 (published: 53 h on 8 GPUs"),
        (16, "592 GPU-hours of V100, 37 h on 16 (published: 37 h on 16 GPUs"),
        # Arithmetic on the nearer of the two.
        (4, "424 GPU-hours of V100, 106 h on 4 (derived: 53 h on 8 GPUs"),
        (32, "592 GPU-hours of V100, 18.5 h on 32 (derived: 37 h on 16 GPUs"),
    ],
)
def test_a_duration_is_published_for_as_many_gpus_as_it_was_on(gpus: int, sentence: str) -> None:
    papers, timms = estimate(RECIPES["deit_base"], gpus)
    assert papers.startswith(sentence)
    assert timms.startswith("273.1 GPU-hours of RTX 3090")


def test_other_epochs_scale_a_cost_which_is_then_derived() -> None:
    # 20 h on 8 for 25 epochs are 24 h for the recipe's 30; a tenth of 424 GPU-hours is 42.4.
    assert estimate(RECIPES["deit_base_384"], 8)[0].startswith(
        "192 GPU-hours of V100, 24 h on 8 (derived: "
    )
    assert estimate(replace(RECIPES["deit_base"], epochs=30), 8)[0].startswith(
        "42.4 GPU-hours of V100, 5.3 h on 8 (derived: "
    )


def test_on_the_cpu_no_hours_are_promised() -> None:
    assert estimate(RECIPES["deit_base"], 0)[0].startswith("424 GPU-hours of V100 (published: ")


def test_a_teacher_s_pass_is_said_not_to_be_counted() -> None:
    [sentence] = estimate(RECIPES["cait_m48_448"], 8)
    assert sentence.startswith(
        "4,486 GPU-hours of RTX 3090, 560.7 h on 8, the teacher's pass not counted (derived: "
    )


def test_a_cost_that_nobody_published_is_unknown() -> None:
    # As the page says: of these four, and of DeiT III what its table has not.
    unknown = {
        name
        for name, recipe in RECIPES.items()
        if recipe.variant_of is None and estimate(recipe, 8) == [UNKNOWN]
    }
    of_deit3 = {name for name in RECIPES if name.startswith("deit3_")} - {
        *COSTS,
        *IMAGES_PER_SECOND,
    }
    four = {"cait_xs24_224", "cait_s36_224", "cait_m36_224", "cait_m48_224"}
    assert unknown == four | of_deit3


@pytest.mark.parametrize(
    "change",
    [
        *({"img_size": 160}, {"model": "deit_small"}, {"data": "folder"}, {"name": "mine"}),
        # A deeper network, another stem, and each image through the network twice.
        *({"blocks": "18x2"}, {"stem": "hmlp"}, {"cosub": True}),
    ],
)
def test_a_cost_of_something_else_is_unknown(change: dict[str, object]) -> None:
    recipe = replace(RECIPES["deit3_small"], **change)  # type: ignore[arg-type]
    assert estimate(recipe, 8) == ["unknown: nobody published it"]


def test_a_new_recipe_of_the_digits_has_no_time_before_it_was_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    new = replace(RECIPES["deit_pico_digits"], name="new_digits")
    monkeypatch.setitem(RECIPES, "new_digits", new)
    assert estimate(new, 0) == ["unknown: nobody published it"]


def test_an_embedded_model_takes_what_its_log_says() -> None:
    # The epochs of an embedded log take minutes together, not hours.
    [sentence] = estimate(RECIPES["deit_pico_digits"], 0)
    seconds = int(sentence.split()[0])
    assert 30 < seconds < 1800
    assert sentence.endswith(" s on the machine that made the shipped weights (from their log)")
    [half] = estimate(replace(RECIPES["deit_pico_digits"], epochs=70), 0)
    assert int(half.split()[0]) == pytest.approx(seconds / 2, abs=1)
