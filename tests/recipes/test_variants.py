"""Rows of DeiT's tables as recipes: what each changes, and the figure that is printed there."""

from __future__ import annotations

from typing import Any

import pytest

from deit_zoo.errors import RecipeError, UnknownModelError
from deit_zoo.recipes import RECIPES, find_recipe, variant_name, variants, variants_of
from deit_zoo.recipes.costs import estimate
from deit_zoo.recipes.recipe import changed, differences
from deit_zoo.results import Evaluation
from deit_zoo.runs.receipt import judge
from deit_zoo.training.launch import make_plan, recipe_for
from support.command import deit_zoo
from support.tables import each_row

SGD, EMA = {"optimizer": "sgd"}, {"ema_decay": 0.99996}
TEACHER = "regnety_160_deit"
SOFT = {"distillation": "soft", "alpha": 0.1, "tau": 3.0, "teacher": TEACHER}
HARD = {"distillation": "hard", "teacher": TEACHER}

# DeiT (arXiv:2012.12877): the row, its figure and what it changes. Table 8 at 224 and at 384
# pixels, Table 10, Table 3, Figure 3 (82.2 at 400 epochs: upstream's issue #66), Table 2.
ROWS: dict[tuple[str, str], tuple[float, dict[str, Any]]] = {
    ("deit_base", "sgd"): (74.5, SGD),
    ("deit_base", "no-rand-augment"): (79.6, {"rand_augment": None}),
    ("deit_base", "auto-augment"): (81.2, {"rand_augment": "original"}),
    ("deit_base", "no-mixup"): (78.7, {"mixup": 0.0}),
    ("deit_base", "no-cutmix"): (80.0, {"cutmix": 0.0}),
    ("deit_base", "no-mixup-no-cutmix"): (75.8, {"mixup": 0.0, "cutmix": 0.0}),
    ("deit_base", "no-erasing"): (4.3, {"random_erasing": 0.0}),
    ("deit_base", "no-stochastic-depth"): (3.4, {"drop_path_rate": 0.0}),
    ("deit_base", "no-repeated-aug"): (76.5, {"repeated_aug": 1}),
    ("deit_base", "ema"): (81.9, EMA),
    ("deit_base_384", "sgd"): (77.3, {}),
    ("deit_base_384", "sgd-finetuning"): (83.1, SGD),
    ("deit_base_384", "no-rand-augment"): (80.4, {"rand_augment": None}),
    ("deit_base_384", "auto-augment"): (81.9, {"rand_augment": "original"}),
    ("deit_base_384", "no-mixup"): (79.8, {"mixup": 0.0}),
    ("deit_base_384", "no-cutmix"): (80.6, {"cutmix": 0.0}),
    ("deit_base_384", "no-mixup-no-cutmix"): (76.7, {"mixup": 0.0, "cutmix": 0.0}),
    ("deit_base_384", "no-erasing"): (0.1, {"random_erasing": 0.0}),
    # Fine-tuning is in eval mode: it has no drop-path as it is.
    ("deit_base_384", "no-stochastic-depth"): (0.1, {}),
    ("deit_base_384", "no-repeated-aug"): (77.4, {"repeated_aug": 1}),
    ("deit_base_384", "ema"): (83.1, EMA),
    ("deit_base_384", "160px"): (79.9, {"img_size": 160}),
    ("deit_base_384", "320px"): (82.7, {"img_size": 320}),
    ("deit_tiny", "soft-distillation"): (72.2, SOFT),
    ("deit_tiny", "hard-distillation"): (74.3, HARD),
    ("deit_small", "soft-distillation"): (79.8, SOFT),
    ("deit_small", "hard-distillation"): (80.9, HARD),
    ("deit_base", "soft-distillation"): (81.8, SOFT),
    ("deit_base", "hard-distillation"): (83.0, HARD),
    ("deit_base_384", "soft-distillation"): (83.2, SOFT),
    ("deit_base_384", "hard-distillation"): (84.0, HARD),
    ("deit_base", "400ep"): (82.2, {"epochs": 400}),
    ("deit_base_distilled", "teacher-deit-base"): (81.9, {"teacher": "deit_base"}),
    ("deit_base_distilled", "teacher-regnety-160"): (83.1, {}),
    ("deit_base_distilled_384", "teacher-deit-base"): (83.1, {"teacher": "deit_base"}),
    ("deit_base_distilled_384", "teacher-regnety-160"): (84.2, {}),
}
# Those that were recipes before: Table 5.
LONGER = {
    ("deit_tiny_distilled", "1000ep"): 76.6,
    ("deit_small_distilled", "1000ep"): 82.6,
    ("deit_base_distilled", "1000ep"): 84.2,
    ("deit_base_distilled_384", "300ep"): 84.5,
}
STAGED = ("deit_base_384", "deit_base_distilled_384")


@each_row("row", list(ROWS))
def test_a_row_changes_what_its_table_says_and_has_its_figure(row: tuple[str, str]) -> None:
    base, variant = row
    top1, changes = ROWS[row]
    recipe = RECIPES[variant_name(base, variant)]
    differing = {name: value for name, value, _ in differences(recipe, RECIPES[base])}
    expected = {"name": recipe.name} | changes
    if base in STAGED and "model" in differing:
        expected["model"] = base
    stage = differing.get("init_from")
    if stage is not None:  # the first stage is the same row at 224 pixels
        own = base.replace("_384", "")
        assert stage == variant_name(own, variant)
        expected["init_from"] = stage
    assert differing == expected
    assert recipe.top1 == top1
    assert recipe.architecture == base


def test_every_variant_is_in_the_tables_above() -> None:
    listed = {variant_name(*row) for row in (*ROWS, *LONGER)}
    assert listed == {name for name, recipe in RECIPES.items() if recipe.variant_of}
    assert listed > {recipe.name for recipe in variants.RECIPES}


@each_row("row", [*ROWS, *LONGER])
def test_a_row_is_judged_by_its_own_figure_and_not_called_modified(row: tuple[str, str]) -> None:
    top1 = LONGER[row] if row in LONGER else ROWS[row][0]
    recipe = RECIPES[variant_name(*row)]
    plan = make_plan(recipe.name, gpus=8)
    assert plan.modified is False
    target = dict(plan.lines())["target"]
    assert target.startswith(f"top-1 {top1:.2f} % is published; from {top1 - recipe.band:.2f} % on")
    reached = Evaluation(top1=top1 - recipe.band - 0.1, top5=90.0, loss=1.0, num_images=50_000)
    verdict = judge(recipe, reached)
    assert (verdict.reproduced, verdict.modified) == (False, ())
    assert verdict.published is not None
    assert (verdict.published.top1, verdict.published.source) == (top1, recipe.top1_source)


def test_a_row_that_is_changed_is_modified_and_on_other_data_not_judged() -> None:
    recipe = changed(RECIPES["deit_base_no_cutmix"], ["mixup=0"])
    reached = Evaluation(top1=80.0, top5=95.0, loss=0.9, num_images=50_000)
    assert judge(recipe, reached).modified == ("mixup",)
    own = changed(recipe, ["data=folder"])
    assert judge(own, reached).reproduced is None


@each_row("recipe", variants.RECIPES)
def test_a_row_without_a_spread_takes_that_of_its_recipe(recipe: Any) -> None:
    base = RECIPES[recipe.variant_of]
    assert recipe.band == base.band
    like = {"deit_base_distilled": "deit_base", "deit_base_distilled_384": "deit_base_384"}
    name = like.get(base.name, base.name)
    assert recipe.band_source == f"no spread is published; that of {name} is used"


@pytest.mark.parametrize("spelling", ["no-cutmix", "no_cutmix", "No-CutMix"])
def test_a_variant_is_found_by_its_name_beside_any_spelling_of_its_model(spelling: str) -> None:
    assert variant_name("DeiT-B", spelling) == "deit_base_no_cutmix"
    assert recipe_for("deit-base-no-cutmix").name == "deit_base_no_cutmix"


def test_a_variant_that_is_none_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(RecipeError) as caught:
        variant_name("deit_ti", "no-mixup")
    assert str(caught.value) == (
        "deit_tiny has no variant 'no-mixup'; there are soft-distillation, hard-distillation"
    )
    with pytest.raises(RecipeError, match="cait_s24_224 has no variant '1000ep'; it has none"):
        variant_name("cait_s24_224", "1000ep")
    with pytest.raises(UnknownModelError):
        variant_name("deit_tinny", "1000ep")


def test_a_name_finds_its_recipe_whether_it_has_a_checkpoint_or_not() -> None:
    assert find_recipe("CaiT-XS24-224") is RECIPES["cait_xs24_224"]
    assert find_recipe("deit_s") is RECIPES["deit_small"]
    assert find_recipe("regnety_160") is None
    assert list(variants_of("deit_small_distilled")) == ["1000ep"]


def test_a_variant_costs_what_its_recipe_does_by_the_epoch() -> None:
    assert estimate(RECIPES["deit_base_no_cutmix"], 8) == estimate(RECIPES["deit_base"], 8)
    assert estimate(RECIPES["deit_base_400ep"], 8)[0].startswith(
        "565.3 GPU-hours of V100, 70.7 h on 8 (derived: 53 h on 8 GPUs"
    )
    assert estimate(RECIPES["deit_base_384_160px"], 8) == ["unknown: nobody published it"]


def test_a_variant_is_planned_as_it_is_typed() -> None:
    done = deit_zoo("reproduce", "deit_base", "--variant", "no-cutmix", "--gpus=8", "--dry-run")
    assert done.status == 0
    rows = dict(line.split("  ", 1) for line in done.out.splitlines())
    assert rows["target"].split()[:3] == ["top-1", "80.00", "%"]
    assert rows["recipe"].strip().startswith("deit_base_no_cutmix, arXiv:2012.12877, Table 8")
    assert rows["output"].strip() == "runs/deit_base_no_cutmix"
