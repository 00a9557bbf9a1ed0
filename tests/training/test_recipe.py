"""Recipes: the published values as literals, what is refused, and changes typed from the fields."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deit_zoo.errors import RecipeError
from deit_zoo.registry import MODELS
from deit_zoo.training import recipes
from deit_zoo.training.recipe import Recipe, changed
from deit_zoo.training.recipes import RECIPES
from deit_zoo.training.recipes.deit import DEIT_BASE

# facts/recipes.json, records deit_{tiny,small,base}_patch16_224, stage "pretrain": the paper's
# Tables 8 and 9 and section 6, upstream's main.py and timm 0.3.2. One recipe for three sizes.
DEIT: dict[str, Any] = {
    "source": "arXiv:2012.12877, Table 9",
    "data": "imagenet1k",
    "img_size": 224,
    "epochs": 300,
    "batch_size": 1024,
    "replicas": 8,  # "1 node x 8 GPUs x 128 per GPU"
    "seed": 0,
    "optimizer": "adamw",
    "lr": 0.001,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.05,
    "clip_grad": None,
    "warmup_epochs": 5,
    "warmup_lr": 1e-6,
    "min_lr": 1e-5,
    "drop_path_rate": 0.1,
    "label_smoothing": 0.1,
    "crop_scale": (0.08, 1.0),
    "crop_ratio": (0.75, 4 / 3),
    "hflip": 0.5,
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 0.25,
    "repeated_aug": 3,
    "mixup": 0.8,
    "cutmix": 1.0,
    "mixup_prob": 1.0,
    "mixup_switch_prob": 0.5,
    "distillation": "none",
    "alpha": 0.5,
    "tau": 1.0,
    "teacher": None,
}

# facts/reproductions.md, section 3: the bands that the published spreads support.
BANDS = {
    "deit_tiny": (0.5, "no multi-seed figure is public; one user's two runs differ by 0.8"),
    "deit_small": (0.15, "spread of five seeds of a ViT-S/16 (AlgoPerf logs), rounded up"),
    "deit_base": (0.2, "81.8 ± 0.2 over the authors' runs (arXiv:2012.12877, Table 8)"),
}

FIELDS = (
    "source, data, img_size, epochs, batch_size, replicas, seed, optimizer, lr, betas, eps, "
    "weight_decay, clip_grad, warmup_epochs, warmup_lr, min_lr, drop_path_rate, label_smoothing, "
    "crop_scale, crop_ratio, hflip, rand_augment, random_erasing, repeated_aug, mixup, cutmix, "
    "mixup_prob, mixup_switch_prob, distillation, alpha, tau, teacher, band, band_source"
)

# What a file of recipes may hold (house.md, section 8): no `if`, no `for`, no `def`.
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
    ast.BinOp,
    ast.UnaryOp,
    ast.operator,
    ast.unaryop,
    ast.Call,
    ast.keyword,
)
FILES = sorted(
    file for file in Path(recipes.__file__).parent.glob("*.py") if file.name != "__init__.py"
)


@pytest.mark.parametrize("name", list(BANDS))
def test_a_deit_recipe_holds_the_published_values(name: str) -> None:
    band, band_source = BANDS[name]
    assert RECIPES[name].to_dict() == {
        "name": name,
        **DEIT,
        "band": band,
        "band_source": band_source,
    }


def test_every_recipe_is_listed_under_the_name_of_its_model() -> None:
    assert [(key, recipe.name) for key, recipe in RECIPES.items() if key != recipe.name] == []


def test_every_recipe_trains_a_model_of_the_registry() -> None:
    assert [name for name in RECIPES if name not in MODELS] == []


def test_a_recipe_has_the_image_size_of_its_model() -> None:
    found = {name: recipe.img_size for name, recipe in RECIPES.items()}
    assert found == {name: MODELS[name].img_size for name in RECIPES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_of_recipes_holds_values_and_no_logic(file: Path) -> None:
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    assert [ast.unparse(node) for node in nodes if not isinstance(node, ALLOWED)] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_of_recipes_calls_only_recipe_and_replace(file: Path) -> None:
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    called = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
    assert called <= {"Recipe", "replace"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"data": "cifar"}, "data is 'cifar'; it must be one of imagenet1k, digits"),
        ({"optimizer": "lamb"}, "optimizer is 'lamb'; it must be one of adamw"),
        ({"distillation": "warm"}, "distillation is 'warm'; it must be one of none, soft, hard"),
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"replicas": -1}, "replicas is -1; it must be at least 1"),
        ({"repeated_aug": 0}, "repeated_aug is 0; it must be at least 1"),
        ({"img_size": 0}, "img_size is 0; it must be at least 1"),
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
    ],
)
def test_a_value_that_makes_no_sense_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        replace(DEIT_BASE, **change)
    assert str(caught.value) == sentence


def test_an_odd_replica_batch_is_allowed_where_nothing_is_mixed() -> None:
    assert replace(DEIT_BASE, batch_size=1000, mixup=0.0, cutmix=0.0).batch_size == 1000


@pytest.mark.parametrize(
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
        ("band_source=a=b", "band_source", "a=b"),
    ],
)
def test_a_change_is_read_by_the_type_of_its_field(text: str, field: str, value: Any) -> None:
    found = getattr(changed(DEIT_BASE, [text]), field)
    assert (type(found), found) == (type(value), value)


def test_changes_are_made_together() -> None:
    # Alone, either of the two would be refused.
    found = changed(DEIT_BASE, ["distillation=soft", "teacher=deit_base"])
    assert (found.distillation, found.teacher) == ("soft", "deit_base")


def test_without_changes_a_recipe_stays_as_it_is() -> None:
    assert changed(DEIT_BASE, []) == DEIT_BASE


@pytest.mark.parametrize("text", ["epoch=3", "epochs", "name=deit_small", "=3", ""])
def test_a_change_of_no_field_is_refused_with_the_fields(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        changed(DEIT_BASE, [text])
    assert str(caught.value) == (f"--set {text!r} is no FIELD=VALUE of a recipe; fields: {FIELDS}")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epochs=3.5", "--set epochs=3.5: epochs must be a whole number"),
        ("epochs=none", "--set epochs=none: epochs must be a whole number"),
        ("lr=fast", "--set lr=fast: lr must be a number"),
        ("clip_grad=", "--set clip_grad=: clip_grad must be a number"),
        ("betas=0.9", "--set betas=0.9: betas must be two numbers such as 0.5,1.0"),
        ("betas=0.9,b", "--set betas=0.9,b: betas must be two numbers such as 0.5,1.0"),
    ],
)
def test_a_change_of_the_wrong_type_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        changed(DEIT_BASE, [text])
    assert str(caught.value) == sentence


def test_a_changed_recipe_is_checked_like_any_other() -> None:
    with pytest.raises(RecipeError, match=r"^epochs is 0; it must be at least 1$"):
        changed(DEIT_BASE, ["epochs=0"])


def test_equal_recipes_have_equal_digests() -> None:
    twin = Recipe(**DEIT_BASE.to_dict())
    assert twin.digest == DEIT_BASE.digest


@pytest.mark.parametrize(
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
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_recipe_that_differs_has_another_digest(change: dict[str, Any]) -> None:
    assert replace(DEIT_BASE, **change).digest != DEIT_BASE.digest


def test_remarks_about_a_recipe_do_not_change_its_digest() -> None:
    remarked = replace(DEIT_BASE, source="elsewhere", band=0.3, band_source="a guess")
    assert remarked.digest == DEIT_BASE.digest


def test_a_digest_is_64_hexadecimal_digits() -> None:
    assert len(DEIT_BASE.digest) == 64
    assert set(DEIT_BASE.digest) <= set("0123456789abcdef")
