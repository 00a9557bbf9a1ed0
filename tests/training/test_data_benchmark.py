"""`deit-zoo data benchmark`: every stage has a rate, and a model's need is a number of cores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deit_zoo.data.folder import FolderSet
from deit_zoo.errors import DataError, RecipeError
from deit_zoo.training.data_benchmark import (
    H200_RATES,
    Need,
    measure,
    measured_rate,
    rate_of_model,
    rates_of_files,
)
from support.tables import each_row

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "gpu_train_step.json"
WITHOUT_A_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is measured")


def test_rates_of_an_h200_are_those_that_were_measured() -> None:
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert report["machine"]["gpu"] == "NVIDIA H200"
    assert {
        row["model"]: round(row["images_per_second"])
        for row in report["rows"]
        if row["who"] == "deit_zoo, compiled"
    } == H200_RATES


@WITHOUT_A_GPU
def test_each_stage_has_a_rate_and_each_model_its_cores(digits_folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    stages, needs = measure(
        FolderSet(digits_folder / "train"),
        ["deit-s", "deit_base"],
        workers=2,
        num_images=64,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [(stage.name.split(",")[0].split(":")[0], stage.processes) for stage in stages] == [
        ("read", 1),
        ("decode", 1),
        ("read", 1),
        ("read", 1),
        ("read", 2),
    ]
    repeated = stages[3]
    assert repeated.name.endswith("3 crops of an image")
    assert [need.model for need in needs] == ["deit_small", "deit_base"]
    for need in needs:
        of_all = need.cores * repeated.images_per_second
        assert of_all - repeated.images_per_second < need.images_per_second <= of_all
    assert seen == [(done, 4) for done in range(5)]


@each_row(
    ("cores", "words"),
    [
        (6, "a trains at 8,336 img/s on one H200: 6 cores like these feed it"),
        (1, "a trains at 8,336 img/s on one H200: 1 core like these feeds it"),
    ],
)
def test_a_need_is_told_in_cores(cores: int, words: str) -> None:
    assert Need(model="a", gpu="H200", images_per_second=8336, cores=cores).sentence() == words


def test_bad_images_are_passed_over_unless_all_are(tmp_path: Path, digits_folder: Path) -> None:
    folder = tmp_path / "class"
    folder.mkdir()
    whole = next((digits_folder / "train").rglob("*.png"))
    (folder / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png cannot be read as an image"):
        rates_of_files(FolderSet(tmp_path), 8)
    (folder / "whole.png").write_bytes(whole.read_bytes())
    assert min(rates_of_files(FolderSet(tmp_path), 8)) > 0


@WITHOUT_A_GPU
def test_too_few_images_are_refused(digits_folder: Path) -> None:
    few = FolderSet(digits_folder / "train")
    few._labels = few._labels[:127]
    with pytest.raises(
        DataError, match=r"^127 images cannot keep a loader busy; give at least 128$"
    ):
        measure(few, ["deit_small"], workers=1, num_images=64)


@WITHOUT_A_GPU
def test_a_model_that_nobody_measured_is_refused_where_there_is_no_gpu() -> None:
    with pytest.raises(RecipeError, match="how fast cait_m48_448 trains is known of no GPU; give"):
        rate_of_model("cait_m48_448")


def test_a_model_is_measured_on_the_device_at_hand() -> None:
    assert measured_rate("deit_pico_digits", "cpu", "float32", "eager") > 0
