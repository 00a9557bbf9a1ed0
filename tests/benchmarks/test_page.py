"""docs/performance.md: made of the results files alone, with a verdict on every goal."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import compare
import goals
import page
import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"


def tracked(folder: Path) -> Path:
    """The results of the repository alone, copied there; all of them where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "benchmarks/results"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    names = [Path(line).name for line in listed.stdout.splitlines()]
    for file in (FOLDER / "results").glob("*.json"):
        if file.name in names or not names:
            shutil.copy(file, folder)
    return folder


@pytest.fixture
def results() -> dict[str, dict[str, Any]]:
    """The committed results, to change as a test likes."""
    return copy.deepcopy(page.read(FOLDER / "results"))


def test_the_page_is_fresh(tmp_path: Path) -> None:
    fresh = page.page(page.read(tracked(tmp_path)))
    # What was measured and not added to git is not on the page of the repository.
    stale = "docs/performance.md is not that of its results; type: python benchmarks/page.py"
    assert fresh == (ROOT / "docs" / "performance.md").read_text(encoding="utf-8"), stale


def test_every_results_file_has_the_shape_that_they_share(
    results: dict[str, dict[str, Any]],
) -> None:
    for name, report in results.items():
        assert {"benchmark", "command", "rounds", "rows", "ratios"} <= report.keys(), name
        # One of another machine has a longer name.
        assert report["benchmark"] in name


def test_make_benchmark_runs_every_benchmark_and_the_page() -> None:
    recipe = subprocess.run(
        ["make", "-n", "benchmark"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    scripts = {file.stem for file in FOLDER.glob("*.py")} - {
        "measuring",
        "goals",
        "page",
        "compare",
    }
    of_a_gpu = {"gpu", "gpu_tests", "predict", "augment_gpu", "reproduce"}
    assert scripts - {"plain", "input", "listing", "serve"} - of_a_gpu == set(page.REQUIRED) - set(
        compare.SUITES
    )
    words = recipe.replace(";", " ").split()
    assert [name for name in (*page.REQUIRED, "input", "serve") if name not in words] == []
    assert recipe.index("compare.py") < recipe.index("benchmarks/results") < recipe.index("page.py")


def on_a_gpu(report: dict[str, Any]) -> dict[str, Any]:
    """The same, as if measured there."""
    packages = report["machine"]["packages"] | {"torch": "9.9"}
    machine = report["machine"] | {"device": "cuda", "gpu": "A GPU", "packages": packages}
    return report | {"machine": machine, "date": "2030-01-02T03:04:05+00:00"}


def test_a_gpu_has_a_section_where_one_was_at_hand(results: dict[str, dict[str, Any]]) -> None:
    bare = {name: results[name] for name in page.REQUIRED}
    assert "## On a GPU" not in page.page(bare)
    text = page.page(
        bare
        | {
            "gpu_predict": on_a_gpu(results["optimized"]) | {"benchmark": "predict"},
            "gpu_train_step": on_a_gpu(results["train_step"]) | {"ended": "stopped at its limit"},
        }
    )
    section = " ".join(text[text.index("## On a GPU") :].split())
    assert "Train step on A GPU, torch 9.9, timm " in section
    assert ", float32, 2030-01-02." in section
    assert "It stopped at its limit." in section
    assert "Predict on A GPU, torch 9.9, timm " in section
    row, ratio = results["train_step"]["rows"][0], results["train_step"]["ratios"]["deit_tiny"]
    figures = f"{row['images_per_second']:.1f} | {row['share_of_peak']:.1%}"
    own = f"| deit_tiny, 64 px, batch 8, deit_zoo | {figures} | {ratio['deit_zoo']:.3f} | – |"
    assert own in section
    timms = next(row for row in results["optimized"]["rows"] if row["who"] == "timm")
    assert f"bfloat16, timm eager | {timms['p50_ms']:.1f}" in section


def test_a_run_on_a_gpu_says_its_verdict_and_what_imagenet_would_take(
    results: dict[str, dict[str, Any]],
) -> None:
    report = on_a_gpu(results["train_step"]) | {"benchmark": "digits"}
    report["rows"] = [
        {"model": "a", "verdict": "reproduced: top-1 98 %", "epochs": 300, "seconds": 21.4}
    ]
    assert "| a: reproduced: top-1 98 % | 300 | 21 |" in page.table(report)
    report |= {"benchmark": "epoch"}
    report["rows"] = [
        {
            "model": "b",
            "num_images": 20_000,
            "epoch": 1,
            "images_per_second": 3000.4,
            "data_share": 0.25,
            "hours_on_1_gpu": 35.6,
            "hours_on_8_gpus": 4.45,
        }
    ]
    assert "| b, 20,000 images, epoch 2 | 3,000 | 25.0% | 35.6 | 4.5 |" in page.table(report)


def test_goals_of_a_gpu_are_held_against_compiled_peers(
    results: dict[str, dict[str, Any]],
) -> None:
    names = ("deit_small", "deit_base", "cait_xxs24_224")
    step = {
        "ratios": {name: {"deit_zoo, compiled": 1.2, "deit_zoo": 9.0} for name in names},
        "rows": [
            {"model": name, "who": who, "share_of_peak": 0.46}
            for name in names
            for who in ("deit_zoo, compiled", "timm")
        ],
    }
    one, many = ("a, 224 px, batch 1, bf16: optimized", "a, 224 px, batch 32, bf16: optimized")
    predict = {"ratios": {one: {"timm compiled": 1.3}, many: {"timm compiled": 0.9}}}
    measured = {"gpu_train_step": step, "gpu_predict": predict}
    told = [*goals.verdicts(measured, goals.GPU_GOALS)]
    assert [line.rpartition(" | ")[2] for line in told[1:5]] == [
        "met |",
        "not met |",
        "met |",
        "met |",
    ]
    assert "1.300 | met" in told[4]
    assert [line.rpartition(" | ")[2] for line in told[5:7]] == ["not measured |"] * 2
    loader = {"workers": {"images_per_second": 6}, "model": {"model": "a", "images_per_second": 5}}
    rows = [{"model": "a", "data_share": share} for share in (0.9, 0.03)]
    measured["gpu_epoch"] = {"rows": rows, "loader": loader}
    told = [*goals.verdicts(measured, goals.GPU_GOALS)]
    assert [line.rpartition("time")[2] for line in told[5:7]] == [
        "s what DeiT-S trains with | 1.200 | met |",
        " | 0.030 | not met |",
    ]
    step["rows"].clear()
    assert "| – | not measured |" in [*goals.verdicts(measured, goals.GPU_GOALS)][1]


def test_tests_on_a_gpu_are_counted_and_failures_are_named(
    results: dict[str, dict[str, Any]],
) -> None:
    report = on_a_gpu(results["train_step"]) | {"benchmark": "tests", "rows": []}
    for outcome, seconds in (("passed", 2.0), ("passed", 3.0), ("failed", 1.0)):
        report["rows"].append({"test": "t", "outcome": outcome, "seconds": seconds})
    report["failed"] = [{"model": "t", "who": "call", "reason": "it is 1"}]
    text = page.page(results | {"gpu_tests": report})
    section = text[text.index("Tests on A GPU") :]
    assert "| passed | 2 | 5 |" in section
    assert "| failed | 1 | 1 |" in section
    assert "Without a figure: t, call (it is 1)." in " ".join(section.split())


def test_augmenting_on_a_gpu_is_given_as_a_share_of_a_training_step(
    results: dict[str, dict[str, Any]],
) -> None:
    whole = {"what": "128 images", "ms": 0.25, "images_per_second": 512e3, "share_of_step": 0.0163}
    rows = [whole, {"what": "on the CPU", "ms": 0.5}]
    report = on_a_gpu(results["train_step"]) | {"benchmark": "augment", "rows": rows}
    note = {"note": "All 10 are Pillow's."}
    text = page.page(results | {"gpu_augment": report | note})
    section = text[text.index("Augment on A GPU") :]
    assert "| 128 images | 0.250 | 512,000 | 1.6% |" in section
    assert "| on the CPU | 0.500 | – | – |" in section
    assert "All 10 are Pillow's." in section


def test_plain_models_have_a_section_with_its_own_machine(
    results: dict[str, dict[str, Any]],
) -> None:
    bare = {name: results[name] for name in page.REQUIRED}
    assert "## Plain models" not in page.page(bare)
    report = copy.deepcopy(results["forward"]) | {"benchmark": "plain"}
    report["machine"] |= {"cpu": "Another", "amx": False, "capability": "AVX2"}
    text = page.page(bare | {"plain": report})
    section = " ".join(text[text.index("## Plain models and optimize") :].split())
    assert "Another with 2 cores, AVX2. Python" in section
    row = report["rows"][0]
    ratio = report["ratios"]["deit_tiny, 224 px, batch 1, float32: eager"]["timm eager"]
    figures = f"{row['p50_ms']:.1f} | {row['images_per_second']:.1f} | {ratio:.3f}"
    assert f"| deit_tiny, 224 px, batch 1, float32, deit_zoo eager | {figures} |" in section


def test_images_for_training_have_a_section_with_its_own_machine(
    results: dict[str, dict[str, Any]],
) -> None:
    bare = {name: results[name] for name in page.REQUIRED}
    assert "## Images for training" not in page.page(bare)
    report = results["input"]
    report["machine"] |= {"cpu": "Another"}
    row = {"what": "timm", "worker_ms": 4.5, "images_per_second": 222.2, "process_ms": 0.03}
    report["rows"] = [row]
    ratio = {"worker, to timm": 1.0, "training process, to before": 0.311}
    report["ratios"] |= {"timm": ratio}
    report["ratios"]["deit_zoo, no repeats"] |= {"worker, to timm": 2.79}
    report["decodes_per_sample"] = 0.334
    text = page.page(bare | {"input": report})
    section = " ".join(text[text.index("## Images for training") :].split())
    assert "Another with 2 cores" in section
    assert "| timm | 4.50 | 222 | 1.00 | 0.030 | 0.31 |" in section
    assert (
        "| images of a worker, no repeats: at least 2.8 times timm's | 2.790 | not met" in section
    )
    assert "8 x 128: at most 0.34 | 0.334 | met |" in section


def test_what_comes_before_the_first_step_is_beside_the_images(
    results: dict[str, dict[str, Any]],
) -> None:
    bare = {name: results[name] for name in page.REQUIRED}
    assert "Before the first step" not in page.page(bare)
    row = {"survey_seconds": 1.234, "open_seconds": 2, "batch_seconds": 3, "set_mb": 71.6}
    report = results["input"] | {"benchmark": "listing", "num_images": 1_281_167}
    report["rows"] = [row | {"what": "folder", "grown_mb": 200.0}]
    text = " ".join(page.page(bare | {"listing": report}).split())
    assert "Before the first step, with 1,281,167 small images" in text
    assert "| folder | 1.23 | 2.00 | 3.00 | 72 | 200 |" in text


def goal(start: str) -> Any:
    return next(one for one in goals.GOALS if one.text.startswith(start))


def verdict(results: dict[str, dict[str, Any]], start: str) -> str:
    rows = "\n".join(goals.verdicts(results, goals.GOALS)).splitlines()
    return next(row for row in rows if row.startswith(f"| {start}"))


def test_a_goal_is_met_where_every_cell_holds(results: dict[str, dict[str, Any]]) -> None:
    results["forward"]["ratios"] = {
        "deit_tiny, 224 px, batch 1, float32: eager": {"timm eager": 1.05, "best peer": "x"},
        "deit_base, 224 px, batch 8, float32: eager": {"timm eager": 1.3, "best peer": "x"},
    }
    assert verdict(results, "plain forward").endswith("| 1.050 to 1.300 | met |")


def test_what_falls_short_is_named_with_its_figure(
    results: dict[str, dict[str, Any]],
) -> None:
    results["optimized"]["ratios"] = {
        "a: optimized": {"openvino": 1.0949, "timm": 1.6, "best peer": "openvino"},
        "b: optimized": {"openvino": 1.9, "timm": 1.2, "best peer": "timm"},
    }
    one = replace(goal("optimized"), reason="Because.")
    told = "\n".join(goals.verdicts(results, [one]))
    assert f"| {one.text} | 1.095 to 1.200 | not met in 1 of 2 |" in told
    assert f"- {one.text}. Not met: a: optimized (1.095). Because." in " ".join(told.split())


def test_cait_is_held_against_timm_in_the_same_mode_and_precision(
    results: dict[str, dict[str, Any]],
) -> None:
    results["cait"]["ratios"] = {
        "x, float32: eager": {"timm eager": 1.6, "timm compiled": 1.1, "best peer": "-"},
        "x, float32: compiled": {"timm eager": 1.9, "timm compiled": 1.4, "best peer": "-"},
        "x, bfloat16: eager": {"timm eager": 2.5, "timm compiled": 1.1, "best peer": "-"},
    }
    in_float32 = goal("CaiT, float32").cells(results)
    assert in_float32 == {"x, float32: eager": 1.6, "x, float32: compiled": 1.4}
    assert goal("CaiT, bfloat16").cells(results) == {"x, bfloat16: eager": 2.5}


def test_times_are_held_below_their_limit(results: dict[str, dict[str, Any]]) -> None:
    results["cold_start"]["ratios"] = {
        "deit_small, to timm": {"seconds": 0.5, "load_seconds": 0.06, "peak_mb": 0.7},
        "deit_small, to transformers": {"seconds": 9.0, "load_seconds": 9.0, "peak_mb": 9.0},
    }
    assert verdict(results, "cold start of").endswith("| 0.500 | met |")
    assert verdict(results, "cold start, load").endswith("| 0.060 | not met |")
    assert verdict(results, "cold start, peak").endswith("| 0.700 | met |")


def test_results_of_two_machines_make_no_page(results: dict[str, dict[str, Any]]) -> None:
    results["load"]["machine"]["cores"] = 64
    with pytest.raises(SystemExit, match=r"of several machines"):
        page.page(results)


def test_results_that_are_missing_are_named(tmp_path: Path) -> None:
    for name in page.REQUIRED:
        (tmp_path / f"{name}.json").write_text(json.dumps({}), encoding="utf-8")
    (tmp_path / "cait.json").unlink()
    with pytest.raises(SystemExit, match=r"has no cait; type: make benchmark$"):
        page.read(tmp_path)
