"""`list --recipes`, `info RECIPE` and `diff RECIPE RECIPE` as they are typed."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.recipe import REMARKS, Recipe
from deit_zoo.recipes.sources import DEFAULT, UNUSED, sources_of
from support.command import deit_zoo, sentence
from support.tables import each_row

# Stages and longer runs that made no checkpoint.
WITHOUT_CHECKPOINT = (
    "deit_tiny_distilled_1000ep",
    "deit_small_distilled_1000ep",
    "deit_base_distilled_1000ep",
    "deit_base_distilled_384_300ep",
    "cait_xs24_224",
    "cait_s36_224",
    "cait_m36_224",
    "cait_m48_224",
)


def test_list_shows_recipes_with_their_figures_and_stages() -> None:
    done = deit_zoo("list", "--recipes")
    rows = [line.split() for line in done.out.splitlines()]
    assert [row[0] for row in rows[1:]] == list(RECIPES)
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["deit_base_no_cutmix"][:5] == ["224", "300", "1024", "80.00", "–"]
    assert by_name["cait_m48_448"][-1] == "cait_m48_224"


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (("--recipes", "--family", "cait"), "--recipes goes with a pattern and --json; leave out"),
        (("--recipes", "--no-pretrained"), "--recipes goes with a pattern and --json; leave out"),
        (("--recipes", "--sort", "top1"), "--recipes goes with a pattern and --json; leave out"),
        (("--json", "--markdown"), "--json and --markdown are two answers; give one"),
    ],
)
def test_list_refuses_an_option_that_it_would_not_heed(typed: tuple[str, ...], told: str) -> None:
    assert sentence(deit_zoo("list", *typed)).startswith(told)


def test_list_takes_a_pattern_for_recipes_too() -> None:
    rows = json.loads(deit_zoo("list", "deit_base_384_no*", "--recipes", "--json").out)
    assert {row["recipe"]["variant_of"] for row in rows} == {"deit_base_384"}
    assert rows[0]["stages"] == ["deit_base_no_rand_augment", "deit_base_384_no_rand_augment"]
    assert rows[0]["published"] == {"top1": 80.4, "source": "arXiv:2012.12877, Table 8"}


def test_info_shows_a_recipe_that_has_no_checkpoint() -> None:
    done = deit_zoo("info", "CaiT-XS24-224")
    assert done.status == 0
    rows = {line.split("  ")[0]: line for line in done.out.splitlines()}
    assert rows["trains"].endswith("cait_xs24_384 on imagenet1k")
    assert rows["figure"].endswith("none is published")
    assert rows["epochs"].split(maxsplit=2)[1:] == ["400", "README_cait.md of 2021-04-12"]
    assert rows["drop_path_rate"].endswith(
        "assumed: read in two second-hand copies of the paper's table, not in the paper"
    )


@each_row("name", WITHOUT_CHECKPOINT)
def test_every_value_of_a_recipe_without_a_checkpoint_has_a_source_or_a_reason(name: str) -> None:
    sources = sources_of(RECIPES[name])
    values = RECIPES[name].to_dict()
    assert set(sources) == set(values) - {*REMARKS, "name", "model", "data"}
    assert {sources[field] for field in RECIPES[name].assumed if field in sources} == {
        f"assumed: {why}" for field, why in RECIPES[name].assumed.items() if field in sources
    }


# What the authors' code decides where a command says nothing, whatever our default is.
OF_THE_CODE = {"seed", "optimizer", "betas", "eps", "schedule", "train_mode", "loss"}
OF_THE_CODE |= {"crop_scale", "crop_ratio", "mixup_prob", "mixup_switch_prob"}


@each_row("name", [name for name, recipe in RECIPES.items() if recipe.data == "imagenet1k"])
def test_a_value_of_a_published_training_says_where_it_is_from(name: str) -> None:
    defaults = {field.name: field.default for field in fields(Recipe)}
    recipe, sources = RECIPES[name], sources_of(RECIPES[name])
    chosen = {field for field in sources if getattr(recipe, field) != defaults[field]}
    chosen |= OF_THE_CODE
    assert {field for field in chosen if sources[field] in (DEFAULT, UNUSED)} == set()


def test_a_source_is_the_comment_beside_the_value_in_the_nearest_recipe() -> None:
    # deit_base says Table 9; deit_base_384, which is made from it, README; the row itself Table 8.
    sources = sources_of(RECIPES["deit_base_384_sgd_finetuning"])
    assert (sources["random_erasing"], sources["batch_size"]) == ("Table 9", "README")
    assert sources["optimizer"] == "Table 8"
    assert sources["lr"] == "assumed: not published for SGD; as for AdamW"


def test_info_shows_the_recipe_of_a_model_where_it_is_asked_for() -> None:
    assert "deit-zoo info deit_small --recipe shows every value" in deit_zoo("info", "deit_s").out
    facts = json.loads(deit_zoo("info", "deit_s", "--recipe", "--json").out)
    assert facts["recipe"]["name"] == "deit_small"
    assert facts["sources"]["warmup_epochs"] == "Table 9"
    assert [point[0] for point in facts["curve"]] == [0, 1, 2, 3, 4]
    assert sentence(deit_zoo("info", "regnety_160", "--recipe")) == (
        "regnety_160 has no recipe; `deit-zoo list --recipes` shows all"
    )


def test_diff_compares_two_recipes() -> None:
    done = deit_zoo("diff", "deit_s", "deit_base_no_cutmix")
    assert done.status == 1
    rows = [line.split()[:3] for line in done.out.splitlines()]
    assert rows[:3] == [
        ["field", "a", "b"],
        ["name", "deit_small", "deit_base_no_cutmix"],
        ["cutmix", "1", "0"],
    ]
    same = deit_zoo("diff", "deit_b", "deit_base")
    assert (same.status, same.out) == (0, "same\n")


def test_diff_compares_the_recipe_of_a_run_with_one_by_name(tmp_path: Path) -> None:
    receipt = tmp_path / "receipt.json"
    recipe = replace(RECIPES["deit_base"], lr=5e-4).to_dict()
    content = {"plan": {"recipe": recipe}, "reached": {}, "sha256": {}}
    receipt.write_text(json.dumps(content), encoding="utf-8")
    done = deit_zoo("diff", receipt, "deit_base", "--json")
    assert json.loads(done.out)["groups"] == {
        "recipe": [{"field": "lr", "left": 0.0005, "right": 0.001}]
    }
