"""Recipes: the published values as literals, what is refused, and changes typed from the fields."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from timm.data.auto_augment import rand_augment_transform

from deit_zoo import recipes
from deit_zoo.errors import RecipeError
from deit_zoo.recipes import RECIPES, variants
from deit_zoo.recipes.deit import DEIT_BASE
from deit_zoo.recipes.recipe import REMARKS, Recipe, changed, duration, from_dict, shown
from deit_zoo.registry import MODELS, TRANSFORMERS
from support.tables import each_row

# facts/recipes.json, records deit_{tiny,small,base}_patch16_224, stage "pretrain": the paper's
# Tables 8 and 9 and section 6, upstream's main.py and timm 0.3.2. One recipe for three sizes.
DEIT: dict[str, Any] = {
    "model": None,
    "data": "imagenet1k",
    "img_size": 224,
    "blocks": None,
    "stem": "linear",
    "init_from": None,
    "epochs": 300,
    "batch_size": 1024,
    "replicas": 8,  # "1 node x 8 GPUs x 128 per GPU"
    "seed": 0,
    "optimizer": "adamw",
    "lr": 0.001,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "momentum": 0.9,
    "layer_decay": None,
    "freeze": "none",
    "class_weights": "none",
    "sampling": "uniform",
    "weight_decay": 0.05,
    "clip_grad": None,
    "warmup_epochs": 5,
    "warmup_lr": 1e-6,
    "min_lr": 1e-5,
    "schedule": "cosine",
    "decay_epochs": 30,
    "decay_rate": 0.1,
    "train_mode": True,
    "ema_decay": None,
    "loss": "cross_entropy",
    "cosub": False,
    "drop_path_rate": 0.1,
    "label_smoothing": 0.1,
    "random_crop": "resized",
    "crop_scale": (0.08, 1.0),
    "crop_ratio": (0.75, 4 / 3),
    "hflip": 0.5,
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "three_augment": False,
    "color_jitter": 0.0,
    "random_erasing": 0.25,
    "repeated_aug": 3,
    "mixup": 0.8,
    "cutmix": 1.0,
    "mixup_prob": 1.0,
    "mixup_switch_prob": 0.5,
    "distillation": "none",
    "alpha": 0.5,
    "tau": 1.0,
    "kl_reduction": "numel",
    "teacher": None,
    "teacher_input": "student",
}

# The same records: "distillation" of the 224-pixel stages of the distilled models.
HARD: dict[str, Any] = {"distillation": "hard", "teacher": "regnety_160_deit"}
# deit_base_patch16_384, stage "finetune_384"; batch 2 x 8 x 32.
UP_TO_384: dict[str, Any] = {
    "img_size": 384,
    "epochs": 30,
    "batch_size": 512,
    "lr": 5e-6,
    "min_lr": 5e-6,
    "weight_decay": 1e-8,
    "train_mode": False,
}
# The records cait_*, stage "pretrain": DeiT's values but for these and drop-path.
CAIT = HARD | {"epochs": 400}
# cait_M48_448, stage "finetune_448" (issue #108).
CAIT_UP = HARD | {
    "epochs": 60,
    "batch_size": 256,
    "lr": 5e-6,
    "schedule": "step",
    "decay_epochs": 10,
    "decay_rate": 0.5,
}

# The records deit_3_*: stage "pretrain_*" on ImageNet-1k and what of it the others have not.
DEIT3: dict[str, Any] = {
    "epochs": 800,
    "batch_size": 2048,
    "optimizer": "lamb",
    "lr": 4e-3,
    "clip_grad": 1.0,
    "loss": "binary_cross_entropy",
    "drop_path_rate": 0.05,
    "label_smoothing": 0.0,
    "rand_augment": None,
    "three_augment": True,
    "color_jitter": 0.3,
    "random_erasing": 0.0,
}
DEIT3_192 = DEIT3 | {"img_size": 192, "lr": 3e-3}
# Stages "finetune_224" and "finetune_384".
DEIT3_UP: dict[str, Any] = {
    "epochs": 20,
    "batch_size": 512,
    "lr": 1e-5,
    "weight_decay": 0.1,
    "random_erasing": 0.0,
    "repeated_aug": 1,
}
# Stages "pretrain_21k_*" and "finetune_1k_224".
DEIT3_21K = DEIT3 | {
    "data": "folder",
    "epochs": 240,
    "lr": 1e-3,
    "weight_decay": 0.02,
    "loss": "cross_entropy",
    "label_smoothing": 0.1,
    "random_crop": "simple",
    "repeated_aug": 1,
    "mixup": 0.0,
}
DEIT3_IN21K = DEIT3_21K | {"data": "imagenet1k", "epochs": 50, "lr": 3e-4}

# What differs from DEIT, by recipe.
PUBLISHED: dict[str, dict[str, Any]] = {
    "deit_tiny": {},
    "deit_small": {},
    "deit_base": {},
    "deit_tiny_distilled": HARD,
    "deit_small_distilled": HARD,
    "deit_base_distilled": HARD,
    "deit_tiny_distilled_1000ep": HARD | {"model": "deit_tiny_distilled", "epochs": 1000},
    "deit_small_distilled_1000ep": HARD | {"model": "deit_small_distilled", "epochs": 1000},
    "deit_base_distilled_1000ep": HARD | {"model": "deit_base_distilled", "epochs": 1000},
    "deit_base_384": UP_TO_384 | {"init_from": "deit_base"},
    "deit_base_distilled_384": HARD
    | UP_TO_384
    | {"init_from": "deit_base_distilled_1000ep", "train_mode": True},
    "deit_base_distilled_384_300ep": HARD
    | UP_TO_384
    | {
        "model": "deit_base_distilled_384",
        "init_from": "deit_base_distilled",
        "train_mode": True,
    },
    "cait_xxs24_224": CAIT | {"drop_path_rate": 0.05},
    "cait_xxs36_224": CAIT | {"drop_path_rate": 0.1},
    "cait_xs24_224": CAIT | {"drop_path_rate": 0.05, "model": "cait_xs24_384"},
    "cait_s24_224": CAIT | {"drop_path_rate": 0.1},
    "cait_s36_224": CAIT | {"drop_path_rate": 0.2, "model": "cait_s36_384"},
    "cait_m36_224": CAIT | {"drop_path_rate": 0.3, "model": "cait_m36_384"},
    "cait_m48_224": CAIT | {"drop_path_rate": 0.4, "model": "cait_m48_448"},
    "cait_xxs24_384": CAIT_UP
    | {"img_size": 384, "drop_path_rate": 0.05, "init_from": "cait_xxs24_224"},
    "cait_xxs36_384": CAIT_UP
    | {"img_size": 384, "drop_path_rate": 0.1, "init_from": "cait_xxs36_224"},
    "cait_xs24_384": CAIT_UP
    | {"img_size": 384, "drop_path_rate": 0.05, "init_from": "cait_xs24_224"},
    "cait_s24_384": CAIT_UP | {"img_size": 384, "drop_path_rate": 0.1, "init_from": "cait_s24_224"},
    "cait_s36_384": CAIT_UP | {"img_size": 384, "drop_path_rate": 0.2, "init_from": "cait_s36_224"},
    "cait_m36_384": CAIT_UP | {"img_size": 384, "drop_path_rate": 0.3, "init_from": "cait_m36_224"},
    "cait_m48_448": CAIT_UP | {"img_size": 448, "drop_path_rate": 0.3, "init_from": "cait_m48_224"},
    "deit3_small": DEIT3,
    "deit3_medium": DEIT3,
    "deit3_base_192": DEIT3_192 | {"model": "deit3_base", "drop_path_rate": 0.2},
    "deit3_base": DEIT3_UP | {"init_from": "deit3_base_192", "drop_path_rate": 0.2},
    "deit3_large_192": DEIT3_192 | {"model": "deit3_large", "drop_path_rate": 0.45, "replicas": 32},
    "deit3_large": DEIT3_UP | {"init_from": "deit3_large_192", "drop_path_rate": 0.45},
    "deit3_huge_160": DEIT3_192
    | {"model": "deit3_huge", "img_size": 154, "drop_path_rate": 0.6, "replicas": 32},
    "deit3_huge": DEIT3_UP
    | {"init_from": "deit3_huge_160", "drop_path_rate": 0.55, "replicas": 16},
    "deit3_small_384": DEIT3_UP
    | {"img_size": 384, "init_from": "deit3_small", "drop_path_rate": 0.0},
    "deit3_base_384": DEIT3_UP
    | {
        "img_size": 384,
        "init_from": "deit3_base_192",
        "drop_path_rate": 0.15,
        "replicas": 16,
    },
    "deit3_large_384": DEIT3_UP
    | {
        "img_size": 384,
        "init_from": "deit3_large_192",
        "drop_path_rate": 0.4,
        "replicas": 32,
    },
    "deit3_small_pretrain_21k": DEIT3_21K | {"model": "deit3_small", "replicas": 16},
    "deit3_medium_pretrain_21k": DEIT3_21K | {"model": "deit3_medium", "replicas": 16},
    "deit3_base_pretrain_21k": DEIT3_21K
    | {"model": "deit3_base", "replicas": 32, "drop_path_rate": 0.1},
    "deit3_large_pretrain_21k": DEIT3_21K
    | {"model": "deit3_large", "replicas": 32, "drop_path_rate": 0.3},
    "deit3_huge_pretrain_21k": DEIT3_21K
    | {
        "model": "deit3_huge",
        "img_size": 126,
        "epochs": 90,
        "replicas": 32,
        "drop_path_rate": 0.5,
    },
    "deit3_small_in21k": DEIT3_IN21K | {"init_from": "deit3_small_pretrain_21k", "replicas": 16},
    "deit3_medium_in21k": DEIT3_IN21K | {"init_from": "deit3_medium_pretrain_21k", "replicas": 16},
    "deit3_base_in21k": DEIT3_IN21K
    | {"init_from": "deit3_base_pretrain_21k", "replicas": 32, "drop_path_rate": 0.15},
    "deit3_large_in21k": DEIT3_IN21K
    | {"init_from": "deit3_large_pretrain_21k", "replicas": 32, "drop_path_rate": 0.4},
    "deit3_huge_in21k": DEIT3_IN21K
    | {"init_from": "deit3_huge_pretrain_21k", "replicas": 32, "drop_path_rate": 0.45},
    # Nothing was published of these: as without ImageNet-21k.
    "deit3_small_384_in21k": DEIT3_UP
    | {"img_size": 384, "init_from": "deit3_small_in21k", "drop_path_rate": 0.0},
    "deit3_base_384_in21k": DEIT3_UP
    | {
        "img_size": 384,
        "init_from": "deit3_base_in21k",
        "drop_path_rate": 0.15,
        "replicas": 16,
    },
    "deit3_large_384_in21k": DEIT3_UP
    | {
        "img_size": 384,
        "init_from": "deit3_large_in21k",
        "drop_path_rate": 0.4,
        "replicas": 32,
    },
}

# facts/reproductions.md, section 3: the bands that the published spreads support.
BANDS = {
    "deit_tiny": (0.5, "no multi-seed figure is public; one user's two runs differ by 0.8"),
    "deit_small": (0.15, "spread of five seeds of a ViT-S/16 (AlgoPerf logs), rounded up"),
    "deit_base": (0.2, "81.8 ± 0.2 over the authors' runs (arXiv:2012.12877, Table 8)"),
    "deit_base_384": (0.1, "83.1 ± 0.1 over the authors' runs (arXiv:2012.12877, Table 8)"),
}
# Whose band a recipe borrows: the plain model that is nearest in parameters, of its image size
# where there is one.
LIKE = {
    "deit_tiny_distilled": "deit_tiny",
    "deit_small_distilled": "deit_small",
    "deit_base_distilled": "deit_base",
    "deit_tiny_distilled_1000ep": "deit_tiny",
    "deit_small_distilled_1000ep": "deit_small",
    "deit_base_distilled_1000ep": "deit_base",
    "deit_base_distilled_384": "deit_base_384",
    "deit_base_distilled_384_300ep": "deit_base_384",
    "cait_xxs24_224": "deit_tiny",
    "cait_xxs24_384": "deit_tiny",
    "cait_xxs36_224": "deit_small",
    "cait_xxs36_384": "deit_small",
    "cait_xs24_224": "deit_small",
    "cait_xs24_384": "deit_small",
    "cait_s24_224": "deit_small",
    "cait_s24_384": "deit_small",
    "cait_s36_224": "deit_base",
    "cait_s36_384": "deit_base",
    "cait_m36_224": "deit_base",
    "cait_m36_384": "deit_base",
    "cait_m48_224": "deit_base",
    "cait_m48_448": "deit_base",
    **{
        f"deit3_{size}{stage}": f"deit_{like}"
        for size, like in {
            "small": "small",
            "medium": "small",
            "base": "base",
            "large": "base",
            "huge": "base",
        }.items()
        for stage in ("", "_pretrain_21k", "_in21k")
    },
    "deit3_base_192": "deit_base",
    "deit3_large_192": "deit_base",
    "deit3_huge_160": "deit_base",
    "deit3_small_384": "deit_small",
    "deit3_small_384_in21k": "deit_small",
    "deit3_base_384": "deit_base_384",
    "deit3_base_384_in21k": "deit_base_384",
    "deit3_large_384": "deit_base",
    "deit3_large_384_in21k": "deit_base",
}

# What a file of recipes may hold: no `if`, no `for`, and of `def` only what all rows share.
ALLOWED = (
    ast.Module,
    ast.Import,
    ast.ImportFrom,
    ast.alias,
    ast.Assign,
    ast.Expr,
    ast.Name,
    ast.expr_context,
    ast.Constant,
    ast.Tuple,
    ast.Dict,
    ast.BinOp,
    ast.UnaryOp,
    ast.operator,
    ast.unaryop,
    ast.Call,
    ast.keyword,
    ast.Attribute,
    ast.Starred,
)
CALLED = {"Recipe", "replace", "_row", "dict", "dict.fromkeys"}
# What a recipe is made of has logic; the recipes themselves are values.
LOGIC = {"__init__", "recipe", "plan", "in_words", "first_stage", "schedule", "costs", "figures"}
LOGIC |= {"sources"}
FILES = sorted(
    file for file in Path(recipes.__file__).parent.glob("*.py") if file.stem not in LOGIC
)


@each_row("name", list(PUBLISHED))
def test_a_recipe_holds_the_published_values(name: str) -> None:
    values = {key: value for key, value in RECIPES[name].to_dict().items() if key not in REMARKS}
    assert values == {"name": name} | DEIT | PUBLISHED[name]


@each_row("name", list(PUBLISHED))
def test_a_cut_of_the_batch_that_nobody_published_is_assumed(name: str) -> None:
    recipe = RECIPES[name]
    assert (recipe.layout is None) == ("replicas" in recipe.assumed)


@each_row("name", list(PUBLISHED))
def test_every_assumption_has_its_reason(name: str) -> None:
    assert [key for key, why in RECIPES[name].assumed.items() if len(why.split()) < 4] == []


@pytest.mark.parametrize("name", list(BANDS))
def test_a_recipe_has_the_band_that_was_measured(name: str) -> None:
    assert (RECIPES[name].band, RECIPES[name].band_source) == BANDS[name]


@each_row("name", list(LIKE))
def test_a_recipe_without_a_measured_spread_says_whose_band_it_has(name: str) -> None:
    like = LIKE[name]
    assert RECIPES[name].band == BANDS[like][0]
    assert RECIPES[name].band_source == f"no spread is published; that of {like} is used"


def test_every_recipe_of_the_papers_is_in_the_tables_above() -> None:
    of_papers = {name for name, recipe in RECIPES.items() if recipe.data != "digits"}
    of_papers -= {recipe.name for recipe in variants.RECIPES}  # test_variants.py
    assert of_papers == set(PUBLISHED) == set(BANDS) | set(LIKE)


def test_every_transformer_of_the_registry_has_a_recipe() -> None:
    names = {spec.name for spec in MODELS.values() if spec.family in TRANSFORMERS}
    assert names - set(RECIPES) == set()
    assert len([name for name in names if "digits" not in name]) == 34


def test_every_recipe_trains_a_model_of_the_registry() -> None:
    assert [name for name, recipe in RECIPES.items() if recipe.architecture not in MODELS] == []


def test_every_teacher_and_first_stage_is_known() -> None:
    assert {recipe.teacher for recipe in RECIPES.values()} - set(MODELS) == {None}
    assert {recipe.init_from for recipe in RECIPES.values()} - set(RECIPES) == {None}


def test_a_recipe_named_as_its_model_has_its_image_size() -> None:
    sizes = {name: recipe.img_size for name, recipe in RECIPES.items() if name in MODELS}
    assert sizes == {name: MODELS[name].img_size for name in sizes}


def test_a_second_stage_continues_the_architecture_of_the_first() -> None:
    for recipe in RECIPES.values():
        if recipe.init_from is not None:
            first = MODELS[RECIPES[recipe.init_from].architecture].arch
            assert first == MODELS[recipe.architecture].arch, recipe.name


@pytest.mark.parametrize("file", [f for f in FILES if f.name != "digits.py"], ids=lambda f: f.name)
def test_every_value_of_a_paper_has_its_source_beside_it(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    remarks = {"name", "model", "data", "table", None, *REMARKS}  # None is **VALUES
    lines = text.splitlines()
    bare = [
        lines[keyword.value.lineno - 1].strip()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg not in remarks and "#" not in lines[keyword.value.lineno - 1]
    ]
    assert bare == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_of_recipes_holds_values_and_no_logic(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    rows = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    tree.body = [node for node in tree.body if node not in rows]
    nodes = list(ast.walk(tree))
    assert [ast.unparse(node) for node in nodes if not isinstance(node, ALLOWED)] == []
    assert {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)} <= CALLED
    assert [row.name for row in rows] == ["_row"][: len(rows)]
    assert not any(isinstance(node, ast.If | ast.For) for row in rows for node in ast.walk(row))


@each_row(
    ("change", "sentence"),
    [
        ({"data": "cifar"}, "data is 'cifar'; it must be one of imagenet1k, digits, folder"),
        ({"optimizer": "lars"}, "optimizer is 'lars'; it must be one of adamw, sgd, lamb"),
        ({"distillation": "warm"}, "distillation is 'warm'; it must be one of none, soft, hard"),
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"replicas": -1}, "replicas is -1; it must be at least 1"),
        ({"repeated_aug": 0}, "repeated_aug is 0; it must be at least 1"),
        ({"img_size": 0}, "img_size is 0; it must be from 1 to 13,377 pixels"),
        ({"img_size": 100_000}, "img_size is 100000; it must be from 1 to 13,377 pixels"),
        (
            {"repeated_aug": 99_999_999},
            "repeated_aug is 99,999,999; an image is shown at most as often as a step has places: "
            "1,024",
        ),
        (
            {"batch_size": 1023},
            "batch_size 1023 is not a multiple of replicas 8; the next that is, is 1024",
        ),
        (
            {"batch_size": 1000},
            "mixup pairs images, so the batch of a replica must be even, not 125; change "
            "batch_size or replicas",
        ),
        (
            {"distillation": "hard"},
            "distillation is 'hard' and teacher is None; give both, or distillation=none and "
            "teacher=none",
        ),
        (
            {"teacher": "regnety_160"},
            "distillation is 'none' and teacher is 'regnety_160'; give both, or distillation=none "
            "and teacher=none",
        ),
        ({"lr": float("nan")}, "lr is nan; it must be 0 or more"),
        ({"lr": float("inf")}, "lr is inf; it must be 0 or more"),
        ({"hflip": float("nan")}, "hflip is nan; it must be a share from 0 to 1"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0; it must be below 1, or nothing would be learned"),
        ({"ema_decay": 1.5}, "ema_decay is 1.5; it must be a share from 0 to 1"),
        (
            {"drop_path_rate": 1.0},
            "drop_path_rate is 1.0; it must be below 1, or nothing would be learned",
        ),
        ({"schedule": "linear"}, "schedule is 'linear'; it must be one of cosine, step"),
        ({"decay_epochs": 0}, "decay_epochs is 0; it must be at least 1"),
        ({"betas": (0.9, 1.0)}, "betas is 0.9,1; both must be from 0 to below 1"),
        (
            {"clip_grad": 0.0},
            "clip_grad is 0.0; it must be above 0, or none for no clipping",
        ),
        (
            {"crop_scale": (0.5, 1.5)},
            "crop_scale is 0.5,1.5; it must be two numbers above 0 and at most 1, the smaller "
            "first",
        ),
        (
            {"crop_ratio": (2.0, 0.5)},
            "crop_ratio is 2,0.5; it must be two numbers above 0, the smaller first",
        ),
        (
            {"rand_augment": "foo"},
            "rand_augment is 'foo'; it must be none, or rand and sections of m, n, mmax, inc, p, "
            "mstd and t such as rand-m9-mstd0.5-inc1, or original for AutoAugment's policy",
        ),
        (
            {"distillation": "soft", "teacher": "deit_base", "tau": 0.0},
            "tau is 0.0; soft distillation divides by it, so give 1 or 3",
        ),
        ({"assumed": {"speed": "why"}}, "assumed names 'speed', which is no field of a recipe"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        replace(DEIT_BASE, **change)
    assert str(caught.value) == sentence


@each_row(
    "text",
    [
        "rand",
        "rand-m9-mstd0.5-inc1",
        "rand-n3-p0.6-mmax20-m15",
        "rand-mstd101-inc0",
        "rand-mstd1-tweights",
        "rand-t3a",
    ],
)
def test_a_rand_augment_that_timm_reads_is_allowed(text: str) -> None:
    assert rand_augment_transform(text, {}) is not None
    assert replace(DEIT_BASE, rand_augment=text).rand_augment == text


@each_row(
    "text", ["", "rand-", "rand-m", "rand-m9.5", "rand-q3", "rand-m9-", "rand m9", "augmix", "3a"]
)
def test_a_rand_augment_that_timm_does_not_act_on_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"^rand_augment is "):
        replace(DEIT_BASE, rand_augment=text)


def test_an_odd_replica_batch_is_allowed_where_nothing_is_mixed() -> None:
    assert replace(DEIT_BASE, batch_size=1000, mixup=0.0, cutmix=0.0).batch_size == 1000


@each_row(
    ("text", "field", "value"),
    [
        ("epochs=30", "epochs", 30),
        ("seed=-1", "seed", -1),
        ("lr=5e-4", "lr", 0.0005),
        ("mixup=0", "mixup", 0.0),
        ("clip_grad=1", "clip_grad", 1.0),
        ("clip_grad=none", "clip_grad", None),
        ("clip_grad=null", "clip_grad", None),
        ("rand_augment=None", "rand_augment", None),
        ("rand_augment=rand-m7-mstd0.5", "rand_augment", "rand-m7-mstd0.5"),
        ("betas=0.9,0.95", "betas", (0.9, 0.95)),
        ("crop_scale=(0.5, 1)", "crop_scale", (0.5, 1.0)),
        (f"crop_scale={shown((1, 1))}", "crop_scale", (1.0, 1.0)),
        (f"betas={shown([0.9, 0.95])}", "betas", (0.9, 0.95)),  # as JSON has it
        (f"img_size={shown([192, 256])}", "img_size", (192, 256)),
        ("band_source=a=b", "band_source", "a=b"),
        ("train_mode=false", "train_mode", False),
        ("ema_decay=0.9999", "ema_decay", 0.9999),
        ("init_from=runs/deit_base", "init_from", "runs/deit_base"),
    ],
)
def test_a_change_is_read_by_the_type_of_its_field(text: str, field: str, value: Any) -> None:
    read = getattr(changed(DEIT_BASE, [text]), field)
    assert (type(read), read) == (type(value), value)


@each_row(
    ("seconds", "words"), [(14.6, "15 s"), (350.0, "6 min"), (5400.0, "90 min"), (9000.0, "2.5 h")]
)
def test_a_time_is_told_in_the_unit_that_fits(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_changes_are_made_together() -> None:
    # Alone, either of the two would be refused.
    recipe = changed(DEIT_BASE, ["distillation=soft", "teacher=deit_base"])
    assert (recipe.distillation, recipe.teacher) == ("soft", "deit_base")


def test_without_changes_a_recipe_stays_as_it_is() -> None:
    assert changed(DEIT_BASE, []) == DEIT_BASE


def test_what_was_set_is_no_longer_assumed() -> None:
    recipe = changed(RECIPES["deit_small_distilled"], ["replicas=16"])
    assert (recipe.replicas, recipe.assumed) == (16, {})


def test_what_was_not_set_stays_assumed() -> None:
    recipe = changed(RECIPES["deit_small_distilled"], ["epochs=3"])
    assert list(recipe.assumed) == ["replicas"]


@each_row("text", ["epoch=3", "name=deit_small", "model=deit_small", "=3", ""])
def test_a_change_of_no_field_is_refused_with_what_shows_them(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        changed(DEIT_BASE, [text])
    assert str(caught.value) == (
        f"no field of a recipe that can be set is called {text.partition('=')[0]!r}; "
        "`deit-zoo info NAME --recipe` shows a recipe's, docs/imagenet.md the machine's"
    )


def test_a_field_without_a_value_is_told_as_it_is_typed() -> None:
    with pytest.raises(RecipeError, match=r"^epochs has no value; type --set epochs=VALUE$"):
        changed(DEIT_BASE, ["epochs"])


@each_row(
    ("text", "sentence"),
    [
        ("epochs=3.5", "--set epochs=3.5: epochs must be a whole number"),
        ("epochs=none", "--set epochs=none: epochs must be a whole number"),
        ("lr=fast", "--set lr=fast: lr must be a number"),
        ("clip_grad=", "--set clip_grad=: clip_grad must be a number"),
        ("betas=0.9", "--set betas=0.9: betas must be two numbers such as 0.5,0.9"),
        ("betas=0.9,b", "--set betas=0.9,b: betas must be two numbers such as 0.5,0.9"),
    ],
)
def test_a_change_of_the_wrong_type_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        changed(DEIT_BASE, [text])
    assert str(caught.value) == sentence


def test_a_changed_recipe_is_checked_like_any_other() -> None:
    with pytest.raises(RecipeError, match=r"^epochs is 0; it must be at least 1$"):
        changed(DEIT_BASE, ["epochs=0"])


@each_row("name", list(RECIPES))
def test_a_recipe_survives_json(name: str) -> None:
    assert from_dict(json.loads(json.dumps(RECIPES[name].to_dict()))) == RECIPES[name]


def test_equal_recipes_have_equal_digests() -> None:
    twin = Recipe(**DEIT_BASE.to_dict())
    assert twin.digest == DEIT_BASE.digest


@each_row(
    "change",
    [
        {"name": "deit_small"},
        {"epochs": 301},
        {"lr": 0.0010000000000000002},  # the next float64
        {"betas": (0.999, 0.9)},
        {"clip_grad": 1.0},
        {"rand_augment": None},
        {"seed": 1},
        {"replicas": 16},
        {"model": "deit_small"},
        {"init_from": "deit_small"},
        {"train_mode": False},
        {"ema_decay": 0.9},
    ],
)
def test_a_recipe_that_differs_has_another_digest(change: dict[str, Any]) -> None:
    assert replace(DEIT_BASE, **change).digest != DEIT_BASE.digest


def test_remarks_about_a_recipe_do_not_change_its_digest() -> None:
    remarked = replace(
        DEIT_BASE, source="elsewhere", band=0.3, band_source="a guess", assumed={"lr": "a guess"}
    )
    assert remarked.digest == DEIT_BASE.digest


def test_a_digest_is_64_hexadecimal_digits() -> None:
    assert len(DEIT_BASE.digest) == 64
    assert set(DEIT_BASE.digest) <= set("0123456789abcdef")


def test_fields_that_came_later_leave_the_digests_of_runs_before_them() -> None:
    assert DEIT_BASE.class_weights == "none"
    assert DEIT_BASE.sampling == "uniform"
    for change in ("class_weights=balanced", "sampling=balanced"):
        assert changed(DEIT_BASE, [change]).digest != DEIT_BASE.digest
    with pytest.raises(RecipeError, match="class_weights is 'balanced' with the loss binary_cross"):
        changed(
            DEIT_BASE,
            ["class_weights=balanced", "loss=binary_cross_entropy", "label_smoothing=0"],
        )
