"""Measuring our own models: turns, figures, memory, agreement; never how fast anything is."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import deit_zoo
from deit_zoo.errors import DataError, ImageSizeError, UnknownModelError, ZooError
from deit_zoo.inference import throughput
from deit_zoo.inference.throughput import Case, cases_of, title
from deit_zoo.machine import peak_mb

TINY = Case(model="deit_tiny", img_size=(32, 32), batch_size=2)
DIGITS = Case(model="deit_pico_digits", img_size=(16, 16), pretrained=True)


def cases(*models: str, **options: Any) -> list[Case]:
    usual = {"batch_sizes": [1, 8], "precisions": ["float32"], "modes": ["eager"]}
    more = {"img_size": None, "threads": 1, "train": False, "pretrained": False}
    return cases_of(models or ["deit_tiny"], **(usual | more | options))


def test_cases_are_every_model_precision_and_batch_once() -> None:
    asked = cases(
        "deit_s",
        "deit_small",
        "deit_pico_digits",
        precisions=["float32", "bfloat16", "float32"],
        batch_sizes=[1, 8, 1],
    )
    assert [title(case.row) for case in asked] == [
        "deit_small, 224 px, batch 1, float32",
        "deit_small, 224 px, batch 8, float32",
        "deit_small, 224 px, batch 1, bfloat16",
        "deit_small, 224 px, batch 8, bfloat16",
        "deit_pico_digits, 16 px, batch 1, float32",
        "deit_pico_digits, 16 px, batch 8, float32",
        "deit_pico_digits, 16 px, batch 1, bfloat16",
        "deit_pico_digits, 16 px, batch 8, bfloat16",
    ]
    # What is inside the package needs no download.
    assert [case.pretrained for case in asked] == [False] * 4 + [True] * 4


def test_the_title_of_a_case_says_what_differs() -> None:
    assert title(replace(TINY, batch_size=8).row) == "deit_tiny, 32 px, batch 8, float32"
    wide = Case(model="deit_tiny", img_size=(32, 64), precision="bfloat16", train=True)
    assert title(wide.row) == "deit_tiny, 32x64 px, batch 1, bfloat16, training"


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        (
            {"precisions": ["fp8"]},
            ZooError,
            "--precision is 'fp8'; give float32, bfloat16, float16, int8",
        ),
        ({"modes": ["fast"]}, ZooError, "--mode is 'fast'; give eager, compiled, optimized"),
        ({"precisions": ["int8"]}, ZooError, "int8 is what optimize makes; add --mode optimized"),
        (
            {"train": True, "modes": ["optimized"]},
            ZooError,
            "an optimized or int8 model cannot be trained; give --mode eager or compiled, and "
            "--precision float32 or bfloat16",
        ),
        (
            {"img_size": 33},
            ImageSizeError,
            "images of 33x33 pixels cannot be cut into patches of 16x16; the nearest size that can "
            "is img_size=32",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(
    options: dict[str, Any], kind: type[ZooError], sentence: str
) -> None:
    with pytest.raises(kind) as refused:
        cases(**options)
    assert str(refused.value) == sentence


def test_a_file_is_measured_as_the_network_that_it_holds(tmp_path: Path) -> None:
    # One block instead of 12, patches of 8 instead of 16: 24 pixels are three of them.
    own, again = tmp_path / "own.safetensors", tmp_path / "again.safetensors"
    built = deit_zoo.create("deit3_small", blocks="1", patch_size=8, img_size=24)
    deit_zoo.save(built, own)
    [case] = cases(str(own), batch_sizes=[1])
    assert case.img_size == (24, 24)
    # As a cold start does, which loads a copy.
    deit_zoo.save(throughput.plain_model(case), again)
    for model in (throughput.plain_model(case), throughput.plain_model(case, again)):
        assert torch.equal(model.patch_embed.proj.weight, built.patch_embed.proj.weight)
        assert len(model.blocks) == 1
    with pytest.raises(ImageSizeError, match="into patches of 8x8"):
        cases(str(own), img_size=20)


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(UnknownModelError):
        cases("deit_huge")


def logging(*names: str) -> tuple[dict[str, throughput.Run], list[str]]:
    """Runs that note their names."""
    log: list[str] = []

    def run(name: str) -> throughput.Run:
        return lambda: log.append(name)

    return {name: run(name) for name in names}, log


def test_modes_take_turns_and_a_turn_begins_with_a_call_that_does_not_count() -> None:
    runs, log = logging("A", "B", "C")
    # A turn of no time is still one call.
    times = throughput.measure(runs, rounds=2, seconds=0.0, device="cpu")
    assert "".join(log) == "AABBCC" + "BBCCAA"
    assert {name: [len(calls) for calls in rounds] for name, rounds in times.items()} == {
        "A": [1, 1],
        "B": [1, 1],
        "C": [1, 1],
    }


def test_a_turn_is_as_many_calls_as_fill_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: float(next(ticks)))
    steps: list[None] = []
    runs, _ = logging("A")
    times = throughput.measure(
        runs, rounds=1, seconds=2.5, device="cpu", step=lambda: steps.append(None)
    )
    assert times == {"A": [[1.0, 1.0, 1.0]]}
    assert len(steps) == 1


def test_every_call_is_waited_for_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, log = logging("run")
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: log.append("sync"))
    throughput.measure(runs, rounds=1, seconds=0.0, device="cuda")
    assert log == ["run", "sync", "run", "sync"]


def test_figures_of_rounds() -> None:
    figures = throughput.figures([[0.1, 0.2, 0.3], [0.4]], batch_size=8)
    assert figures == {
        "p50_ms": pytest.approx(250.0),
        "p95_ms": pytest.approx(385.0),
        "images_per_second": pytest.approx(8 / 0.3),
        "calls": 4,
        "round_ms": [pytest.approx(200.0), pytest.approx(400.0)],
    }
    assert throughput.figures([[0.5]], batch_size=1)["p95_ms"] == 500.0


def test_a_ratio_is_the_median_of_the_ratios_of_each_round() -> None:
    # The machine was four times as slow in the second round, for both. The ratio of the medians
    # over all rounds would be 8 / 3.
    ours, eager = {"round_ms": [1.0, 4.0, 3.0]}, {"round_ms": [2.0, 8.0, 9.0]}
    assert throughput.ratio(ours, eager) == 2.0


def test_a_row_for_each_mode_says_how_near_it_is_to_the_plain_model() -> None:
    case = replace(DIGITS, precision="bfloat16", batch_size=2)
    rows, failed = throughput.measure_case(case, ["eager"], rounds=2, seconds=1e-3)
    [row] = rows
    assert failed == []
    assert (row["who"], row["mode"], row["of_eager"]) == ("deit_zoo", "eager", 1.0)
    assert len(row["round_ms"]) == 2
    assert 0 < row["p50_ms"] <= row["p95_ms"]
    assert 0 < row["distance"] < 0.1
    assert (row["peak_mb"], row["grown_mb"]) == (None, None)


@pytest.mark.slow
def test_an_optimized_model_is_measured_beside_the_plain_one() -> None:
    case = replace(DIGITS, precision="bfloat16")
    modes = ["eager", "compiled", "optimized"]
    rows, failed = throughput.measure_case(case, modes, rounds=1, seconds=1e-3)
    assert failed == []
    assert [row["mode"] for row in rows] == modes


def test_random_weights_are_the_same_each_time_and_leave_the_random_state() -> None:
    before = torch.get_rng_state()
    state, again = (throughput.plain_model(TINY).state_dict() for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, again[key]) for key, value in state.items())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_leaves_fresh_gradients(precision: str) -> None:
    case = replace(TINY, train=True, model="deit_tiny_distilled", precision=precision)
    model = throughput.plain_model(case)
    run = throughput.run_of(model, "eager", case, throughput.random_images(case))
    first = run()
    gradient = model.head_dist.weight.grad
    assert first.requires_grad
    assert gradient is not None
    assert gradient.dtype == torch.float32
    assert torch.equal(first, run())
    assert torch.equal(gradient, model.head_dist.weight.grad)


def test_the_peak_is_the_most_that_a_process_ever_held() -> None:
    if peak_mb() is None:
        pytest.skip("this system does not say how much memory a process held")
    code = (
        "from deit_zoo.machine import peak_mb; before = peak_mb(); "
        "held = b'x' * (200 << 20); del held; print(peak_mb() - before)"
    )
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert 150 < float(grown) < 300


def test_agreement_is_of_the_embedded_digits_or_of_the_users_images(tmp_path: Path) -> None:
    case = replace(DIGITS, precision="bfloat16")
    row = throughput.agreement_row(case, None)
    assert row is not None
    assert (row["model"], row["precision"]) == ("deit_pico_digits", "bfloat16")
    assert row["num_images"] == 128
    assert row["top1"] >= 0.95
    assert 0 < row["largest"] < 1
    # Random weights agree by chance.
    assert throughput.agreement_row(replace(TINY, precision="bfloat16"), None) is None
    with pytest.raises(DataError, match=r"holds no image; give a folder of JPEG, PNG, ... files$"):
        throughput.agreement_row(case, tmp_path)
    Image.new("RGB", (20, 30), "red").save(tmp_path / "a.png")
    own = throughput.agreement_row(case, tmp_path)
    assert own is not None
    assert own["num_images"] == 1
