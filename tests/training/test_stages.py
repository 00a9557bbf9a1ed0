"""Recipes of two stages: the first, which nobody published, is trained before the second."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import deit_zoo
from deit_zoo.distributed import DistributedContext
from deit_zoo.errors import RecipeError
from deit_zoo.files import RECEIPT_FILE
from deit_zoo.labels import labels
from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.first_stage import trained_first
from deit_zoo.training.build import build_model
from deit_zoo.training.job import Job
from deit_zoo.training.launch import check_first_stage, make_plan, reproduce, with_reading
from support.images import photo, write
from support.tables import each_row

SHORT = (
    *("data=folder", "img_size=32", "epochs=1", "batch_size=16", "replicas=2", "warmup_epochs=0"),
)


@each_row(
    ("name", "stage"),
    [
        ("deit3_base", "deit3_base_192"),
        ("deit3_huge", "deit3_huge_160"),
        ("cait_s36_384", "cait_s36_224"),
        ("deit3_small", None),
        ("deit3_small_384", None),  # its first stage is published
        ("deit3_base_in21k", None),  # its first stage needs other images
    ],
)
def test_a_stage_is_trained_before_where_nobody_published_it(name: str, stage: str | None) -> None:
    first = trained_first(RECIPES[name])
    assert (first and first.name) == stage


def photos(folder: Path) -> Path:
    """Three classes of small images."""
    files = {
        f"{split}/{colour}/{number}.png": photo(colour, (40, 36))
        for split, count in (("train", 8), ("val", 2))
        for colour in ("red", "green", "blue")
        for number in range(count)
    }
    return write(folder, files)


@pytest.mark.slow
def test_submodels_of_parallel_blocks_teach_each_other_in_a_run(tmp_path: Path) -> None:
    data, output = photos(tmp_path / "photos"), tmp_path / "run"
    built = ("blocks=1x2", "stem=hmlp", "cosub=true", "drop_path_rate=0.2")
    reproduce("deit3_small", gpus=0, output=output, data=data, changes=(*SHORT, *built), workers=0)
    model = deit_zoo.create(checkpoint=output)
    assert model.spec is not None
    assert (model.spec.blocks, model.spec.stem) == ("1x2", "hmlp")
    assert json.loads((output / "log.jsonl").read_text())["train_loss"] > 0.0


@pytest.mark.slow
def test_a_run_passes_from_stage_one_to_stage_two_by_itself(tmp_path: Path) -> None:
    data, output = photos(tmp_path / "photos"), tmp_path / "runs" / "deit3_base"
    told: list[str] = []

    def run() -> None:
        reproduce(
            "deit3_base",
            gpus=0,
            output=output,
            data=data,
            changes=(*SHORT, "blocks=1"),  # of 12: states are a tenth as large
            workers=0,
            tell=told.append,
        )

    run()
    first = output.with_name("deit3_base_192")
    assert told[0] == (f"deit3_base begins from deit3_base_192, which is trained first, in {first}")
    receipts = [json.loads((run / RECEIPT_FILE).read_text()) for run in (first, output)]
    recipes = [receipt["plan"]["recipe"] for receipt in receipts]
    assert [recipe["optimizer"] for recipe in recipes] == ["lamb", "adamw"]
    assert [recipe["three_augment"] for recipe in recipes] == [True, False]
    assert recipes[1]["init_from"] == f".../{first.name}"
    one, two = (deit_zoo.create(checkpoint=run).state_dict() for run in (first, output))
    # At a rate of 1e-5 a step of AdamW moves no weight further than that.
    moved = max(float((two[key] - value).abs().max()) for key, value in one.items())
    assert 0.0 < moved < 1.1e-5 * (1 + max(float(v.abs().max()) for v in one.values()))
    assert torch.equal(one["norm.weight"].round(), two["norm.weight"].round())
    # Finished runs are taken as they are.
    digests = [receipt["sha256"] for receipt in receipts]
    run()
    again = [json.loads((run / RECEIPT_FILE).read_text())["sha256"] for run in (first, output)]
    assert again == digests


def test_a_first_stage_that_was_trained_otherwise_is_no_start(tmp_path: Path) -> None:
    planned = make_plan("deit3_base_192", gpus=0)
    other = make_plan("deit3_base_192", gpus=0, changes=["epochs=5", "seed=1"])
    Job(plan=planned, data="photos", fingerprint={}).write(tmp_path)
    check_first_stage(tmp_path, planned)
    Job(plan=other, data="photos", fingerprint={}).write(tmp_path)
    with pytest.raises(RecipeError, match=r"\(epochs 5, not 800, seed 1, not 0\)"):
        check_first_stage(tmp_path, planned)


@pytest.mark.parametrize("classes", ["folders", "words", "numbers", "others"])
def test_imagenets_head_is_kept_however_a_data_set_names_its_classes(
    tmp_path: Path, classes: str
) -> None:
    published = labels("imagenet1k")
    named = {
        "folders": [label.folder for label in published],
        "words": [label.name for label in published],
        "numbers": [str(number) for number in range(1000)],
        "others": [f"kind {number}" for number in range(1000)],
    }[classes]
    if classes == "words":
        named[517] = "construction crane"  # a data set of the Hub repeats no name
    first = deit_zoo.create("deit_pico_digits", num_classes=1000)
    weights = tmp_path / "first.safetensors"
    deit_zoo.save(first, weights, labels=[label.folder for label in published])
    changes = ("data=folder", f"init_from={weights}")
    plan = make_plan("deit_pico_digits", gpus=0, changes=changes)
    model = build_model(plan.recipe, named, DistributedContext(device=torch.device("cpu")))
    assert torch.equal(model.head.weight, first.head.weight) == (classes != "others")
    assert model.labels == tuple(named)
    expected = "upstream" if classes in ("folders", "words") else "upright"
    assert with_reading(plan, named).reading == expected
