"""Published curves against their sources, where a run stands, and what differs from a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deit_zoo.data.digits import NUM_IMAGES, NUM_VAL
from deit_zoo.errors import DataError
from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.plan import TRAIN_IMAGES, Plan
from deit_zoo.recipes.recipe import Recipe
from deit_zoo.runs.reference import (
    PUBLISHED,
    Curve,
    CurveStatus,
    compare_to_reference,
    plan_differences,
    published_curve,
    published_figure,
    read_log,
    recipe_differences,
)
from support.tables import each_row

STEEP = Curve(points={0: 10.0, 1: 30.0, 2: 60.0, 3: 80.0}, source="a test", final=80.0)


def log(*top1: float | None, first: int = 0) -> list[dict[str, Any]]:
    """A log of these top-1, one for each epoch."""
    return [{"epoch": n, "train_loss": 1.0, "val_top1": x} for n, x in enumerate(top1, first)]


def plan_of(recipe: Recipe, num_images: int = 1_281_167, precision: str = "auto") -> Plan:
    """A plan on one GPU."""
    return Plan(
        recipe=recipe,
        modified=False,
        device="cuda",
        processes=1,
        workers=1,
        num_images=num_images,
        precision=precision,
    )


# facts/curves.json, readme_revenge: points, the first, one between, where the run ended.
REVENGE = {
    "deit3_small": (161, 0.1, (400, None), 81.376),
    "deit3_base_192": (161, 0.1, (795, 82.866), 82.82),
    "deit3_large_192": (161, 0.092, (795, 84.049), 84.024),
    "deit3_huge_160": (161, 0.062, (785, 83.387), 83.484),
    "deit3_base": (5, 83.448, (15, 83.826), 83.802),
    "deit3_large": (5, 84.458, (10, 84.826), 84.862),
    "deit3_huge": (5, 84.328, (10, 85.128), 85.218),
    "deit3_small_384": (5, 82.134, (10, 83.452), 83.422),
    "deit3_base_384": (5, 84.296, (15, 84.986), 85.076),
    "deit3_large_384": (5, 84.691, (5, 85.458), 85.812),
    "deit3_small_pretrain_21k": (49, 0.0, (235, 54.143), 54.12),
    "deit3_base_pretrain_21k": (49, 0.0, (210, 56.678), 56.462),
    "deit3_large_pretrain_21k": (49, 0.0, (170, 57.623), 57.412),
    "deit3_huge_pretrain_21k": (19, 0.0, (85, 58.006), 57.952),
    "deit3_small_in21k": (11, 0.13, (45, 83.053), 83.074),
    "deit3_base_in21k": (11, 0.11, (45, 85.707), 85.698),
    "deit3_large_in21k": (11, 0.106, (35, 86.954), 86.98),
    "deit3_huge_in21k": (11, 0.126, (35, 87.056), 87.184),
}


@each_row("name", list(REVENGE))
def test_a_curve_of_deit_iii_is_the_authors_log(name: str) -> None:
    recipe, (points, first, (epoch, between), last) = RECIPES[name], REVENGE[name]
    curve = published_curve(recipe)
    assert curve is not None
    assert (len(curve.points), curve.points[0], curve.final) == (points, first, last)
    assert between is None or curve.points[epoch] == between
    # The last point is printed one epoch after the last there is: it is the end of the run.
    assert (max(curve.points), curve.points[recipe.epochs - 1]) == (recipe.epochs - 1, last)
    assert curve.source.startswith("README_revenge.md, log following line ")


def test_the_logs_of_deit_iii_have_884_points() -> None:
    curves = [published_curve(RECIPES[name]) for name in REVENGE]
    assert sum(len(curve.points) for curve in curves if curve) == 884


def test_a_stage_that_is_no_checkpoint_is_judged_by_where_its_log_ended() -> None:
    figure = published_figure(RECIPES["deit3_small_pretrain_21k"])
    assert figure is not None
    assert (figure.top1, figure.source) == (54.12, "README_revenge.md, log following line 1539")


def test_a_run_of_deit3_small_is_judged_at_each_published_epoch() -> None:
    recipe = RECIPES["deit3_small"]
    curve = published_curve(recipe)
    assert curve is not None
    rows = [
        {"epoch": epoch, "train_loss": 1.0, "val_top1": curve.points.get(epoch, 0.0) - 1.0}
        for epoch in range(11)
    ]
    told = [compare_to_reference(curve, rows[: end + 1], recipe.band) for end in range(11)]
    assert [n for n, status in enumerate(told) if status is not None] == [0, 5, 10]
    late = told[10]
    assert late is not None
    assert late.sentence() == (
        "1.0 points below the published curve since epoch 1; no setting differs from the recipe"
    )
    good = [*rows[:10], {"epoch": 10, "train_loss": 1.0, "val_top1": 9.2}]
    status = compare_to_reference(curve, good, recipe.band)
    assert status is not None
    assert status.sentence() == "within tolerance of the published curve"


def test_the_curve_of_deit_small_is_the_five_epochs_of_the_authors_log() -> None:
    # facts/curves.json, deit_small_official_partial, column acc1.
    assert published_curve(RECIPES["deit_small"]) == Curve(
        points={0: 0.346, 1: 0.608, 2: 2.782, 3: 5.822, 4: 7.616},
        source="public gist fmassa/0dbd0184a0adb904ef42277b487d8b53 (issue #16)",
        final=79.828,
    )


def test_the_curve_of_deit_base_is_the_five_epochs_of_the_authors_log() -> None:
    # facts/curves.json, deit_base_official_partial, column acc1.
    assert published_curve(RECIPES["deit_base"]) == Curve(
        points={0: 0.668, 1: 0.748, 2: 3.168, 3: 5.416, 4: 5.638},
        source="public gist fmassa/0497ed4e382d5de19b98bb7168815610; issue #40",
        final=81.66,
    )


@pytest.mark.parametrize(
    ("name", "epochs", "final"),
    [
        ("convnet_pico_digits", 40, 98.333),
        ("deit_pico_digits", 140, 98.333),
        ("deit_pico_distilled_digits", 140, 98.611),
    ],
)
def test_the_curve_of_an_embedded_model_is_its_shipped_log(
    name: str, epochs: int, final: float
) -> None:
    # Epochs by the recipe; the figure is the manifest's.
    curve = published_curve(RECIPES[name])
    assert curve is not None
    assert list(curve.points) == list(range(epochs))
    assert curve.source == f"{name}.log.jsonl, shipped with deit_zoo"
    assert curve.final == pytest.approx(final, abs=1e-3)
    assert curve.points[epochs - 1] == curve.final


@pytest.mark.parametrize("name", ["deit_tiny", "deit_small_distilled", "cait_s24_224", "mine"])
def test_where_no_log_is_public_there_is_no_curve(name: str) -> None:
    assert published_curve(replace(RECIPES["deit_small"], name=name)) is None


def test_a_manifest_may_name_a_log_that_is_not_here(
    manifest_of: Callable[[float | None], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEIT_ZOO_MANIFEST", str(manifest_of(97.0)))
    assert published_curve(RECIPES["deit_pico_digits"]) is None


def test_every_published_curve_belongs_to_a_recipe() -> None:
    assert set(json.loads(PUBLISHED.read_text(encoding="utf-8"))) <= set(RECIPES)


@each_row(
    ("name", "top1", "source"),
    [
        # README_deit.md, by the manifest.
        ("deit_small", 79.854, "README_deit.md"),
        ("deit_base", 81.846, "README_deit.md"),
        # DeiT, Table 5.
        ("deit_tiny_distilled_1000ep", 76.6, "arXiv:2012.12877, Table 5"),
        ("deit_small_distilled_1000ep", 82.6, "arXiv:2012.12877, Table 5"),
        ("deit_base_distilled_1000ep", 84.2, "arXiv:2012.12877, Table 5"),
        ("deit_base_distilled_384_300ep", 84.5, "arXiv:2012.12877, Table 5"),
    ],
)
def test_the_figure_to_reach_is_the_manifests_and_for_a_stage_the_papers(
    name: str, top1: float, source: str
) -> None:
    figure = published_figure(RECIPES[name])
    assert figure is not None
    assert (figure.top1, figure.source) == (top1, source)


def test_a_stage_without_a_figure_has_none() -> None:
    assert published_figure(replace(RECIPES["deit_small"], name="deit_small_7ep")) is None


@pytest.mark.parametrize(
    ("top1", "epoch", "within"),
    [
        # A tolerance of 1 below the lowest of 10, 30 and 60.
        (9.0, 1, True),
        (8.9, 1, False),
        # 30, 60 and 80.
        (29.0, 2, True),
        (28.9, 2, False),
        # Nothing is published after 3, nor before 0.
        (59.0, 3, True),
        (58.9, 3, False),
        (9.0, 0, True),
        (8.9, 0, False),
        (100.0, 0, True),
        (None, 0, False),
    ],
)
def test_an_epoch_is_below_when_it_is_a_tolerance_below_its_lowest_neighbour(
    top1: float | None, epoch: int, within: bool
) -> None:
    status = compare_to_reference(STEEP, log(top1, first=epoch), 1.0)
    assert status is not None
    assert (status.since is None) is within


@pytest.mark.parametrize(("top1", "within"), [(39.0, True), (38.9, False)])
def test_a_dip_that_comes_a_step_early_is_no_failure(top1: float, within: bool) -> None:
    dip = Curve(points={0: 50.0, 1: 40.0}, source="a test", final=None)
    status = compare_to_reference(dip, log(top1), 1.0)
    assert status is not None
    assert (status.since is None) is within


@pytest.mark.parametrize(
    ("top1", "since"),
    [
        ((0.0, 0.0, 0.0, 0.0), 0),
        ((0.0, 30.0, 0.0, 0.0), 2),
        ((0.0, 0.0, 60.0, 0.0), 3),
        ((0.0, 0.0, 0.0, 80.0), None),
    ],
)
def test_a_run_is_below_since_the_last_epoch_that_was_not(
    top1: tuple[float, ...], since: int | None
) -> None:
    status = compare_to_reference(STEEP, log(*top1), 1.0)
    assert status is not None
    assert status.since == since


def test_epochs_without_a_published_point_do_not_interrupt() -> None:
    sparse = Curve(points={0: 50.0, 4: 60.0, 9: 70.0}, source="a test", final=None)
    rows = [50.0, 0.0, 0.0, 0.0, 40.0, 99.0, 99.0, 99.0, 99.0, 40.0]
    assert compare_to_reference(sparse, log(*rows), 1.0) == CurveStatus(
        epoch=9, top1=40.0, published=70.0, since=4
    )


def test_an_epoch_without_a_published_point_has_no_status() -> None:
    assert compare_to_reference(STEEP, log(0.0, 0.0, 0.0, 0.0, 0.0), 1.0) is None


def test_a_run_without_epochs_has_no_status() -> None:
    assert compare_to_reference(STEEP, [], 1.0) is None


def test_the_shipped_run_is_nowhere_below_itself() -> None:
    curve = published_curve(RECIPES["deit_pico_digits"])
    assert curve is not None
    rows = log(*curve.points.values())
    statuses = [compare_to_reference(curve, rows[:count], 2.5) for count in range(1, 141)]
    assert [one.epoch for one in statuses if one is None or one.since is not None] == []


BELOW = CurveStatus(epoch=13, top1=60.0, published=62.1, since=11)


@pytest.mark.parametrize(
    ("status", "differs", "sentence"),
    [
        (replace(BELOW, since=None), ["lr 1, recipe 2"], "within tolerance of the published curve"),
        (
            BELOW,
            ["batch_size 512, recipe 1024", "seed 1, recipe 0"],
            "2.1 points below the published curve since epoch 12; first setting that differs: "
            "batch_size 512, recipe 1024",
        ),
        (
            BELOW,
            [],
            "2.1 points below the published curve since epoch 12; no setting differs from the "
            "recipe",
        ),
    ],
)
def test_a_status_is_one_sentence_that_counts_epochs_from_one(
    status: CurveStatus, differs: list[str], sentence: str
) -> None:
    assert status.sentence(differs) == sentence


def test_a_status_as_plain_data_counts_epochs_as_the_log_does() -> None:
    assert BELOW.to_dict() == {
        "epoch": 13,
        "top1": 60.0,
        "published": 62.1,
        "since": 11,
        "sentence": "2.1 points below the published curve since epoch 12; no setting differs from "
        "the recipe",
    }


@each_row(
    ("changes", "sentences"),
    [
        ({}, []),
        ({"batch_size": 512}, ["batch_size 512, recipe 1024"]),
        # 5e-4 x 1024 / 512 is the recipe's rate.
        ({"lr": 5e-4}, ["lr 0.0005, recipe 0.001"]),
        ({"clip_grad": 1.0}, ["clip_grad 1.0, recipe none"]),
        ({"train_mode": False}, ["train_mode false, recipe true"]),
        ({"crop_scale": (0.5, 1.0)}, ["crop_scale 0.5,1.0, recipe 0.08,1.0"]),
        # What explains nothing, and what only moves the goal, come last.
        (
            {"seed": 1, "band": 9.0, "weight_decay": 0.1},
            ["weight_decay 0.1, recipe 0.05", "seed 1, recipe 0", "band 9.0, recipe 0.15"],
        ),
        ({"source": "elsewhere", "band_source": "a guess"}, []),
    ],
)
def test_what_differs_is_told_with_the_recipes_value(
    changes: dict[str, Any], sentences: list[str]
) -> None:
    assert plan_differences(plan_of(replace(RECIPES["deit_small"], **changes))) == sentences


def test_the_data_and_the_precision_differ_after_the_recipe() -> None:
    recipe = replace(RECIPES["deit_small"], seed=3, epochs=10)
    plan = plan_of(recipe, num_images=2000, precision="fp16")
    assert plan_differences(plan) == [
        "epochs 10, recipe 300",
        "training images 2,000, recipe 1,281,167",
        "precision fp16, default auto",
        "seed 3, recipe 0",
    ]


def test_ones_own_images_may_be_as_many_as_they_are() -> None:
    recipe = replace(RECIPES["deit_small"], name="mine", data="folder")
    assert plan_differences(plan_of(recipe, num_images=2000)) == []


def test_a_recipe_that_is_not_shipped_differs_from_nothing() -> None:
    assert recipe_differences(replace(RECIPES["deit_small"], name="mine", epochs=3)) == []


def test_the_recipes_digits_are_the_embedded_ones() -> None:
    assert TRAIN_IMAGES == {"imagenet1k": 1_281_167, "digits": NUM_IMAGES - NUM_VAL}


def test_a_log_is_read_as_far_as_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    row = {"epoch": 0, "train_loss": 2.5, "val_top1": 10.0, "lr": 1e-6}
    file.write_text(json.dumps(row) + "\n" + '{"epoch": 1, "train_l', encoding="utf-8")
    assert read_log(file) == [row]


@pytest.mark.parametrize("word", ["null", "NaN", "Infinity", "-Infinity"])
def test_what_was_not_finite_is_none_whatever_the_version_wrote(tmp_path: Path, word: str) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text(f'{{"epoch": 0, "train_loss": {word}, "val_top1": 10.0}}\n', encoding="utf-8")
    assert read_log(file) == [{"epoch": 0, "train_loss": None, "val_top1": 10.0}]


def test_an_epoch_without_a_finite_top1_says_so_beside_the_curve() -> None:
    status = compare_to_reference(STEEP, log(None, first=0), 1.0)
    assert status is not None
    assert status.sentence() == (
        "not finite, below the published curve since epoch 1; no setting differs from the recipe"
    )


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        "null",
        '{"epoch": 1, "train_loss": 1.0}',
        '{"epoch": "1", "train_loss": 1.0, "val_top1": 1.0}',
        '{"epoch": 1, "train_loss": "1.0", "val_top1": 1.0}',
        '{"epoch": true, "train_loss": 1.0, "val_top1": 1.0}',
        '{"epoch": -1, "train_loss": 1.0, "val_top1": 1.0}',
        '{"epoch": 1, "train_loss": -1e308, "val_top1": 1.0}',
        '{"epoch": 1, "train_loss": 1.0, "val_top1": 100.1}',
        '{"epoch": 1, "train_loss": 1.0, "val_top1": 1.0, "val_mean_ap": "x"}',
        '{"epoch": 1, "train_loss": 1.0, "val_top1": 1.0, "val_loss": [1.0]}',
        '{"epoch": 1, "train_loss": 1.0, "val_top1": 1.0, "seconds": "5"}',
        '{"epoch": 1, "train_loss": 1.0, "val_top1": 1.0, "seconds": -5}',
    ],
)
def test_a_line_that_is_no_epoch_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "log.jsonl"
    first = json.dumps({"epoch": 0, "train_loss": 2.5, "val_top1": 10.0})
    file.write_text(f"{first}\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_log(file)
    assert str(caught.value) == (
        f"line 2 of {file} is no epoch of a run; each line must be a JSON object with epoch, "
        "train_loss and val_top1"
    )


def test_an_epoch_that_comes_again_is_named(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text('{"epoch": 0, "train_loss": 2.5, "val_top1": 10.0}\n' * 2)
    with pytest.raises(DataError, match=r"line 2 of .* has epoch 0 after 0; a log has each once"):
        read_log(file)


def test_a_log_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(b"\xff\xfe\n")
    with pytest.raises(DataError, match=r"log\.jsonl cannot be read \(.*\); give a run's log"):
        read_log(file)
