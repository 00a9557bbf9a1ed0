"""docs/performance.md: made of the results files alone, with a verdict on every goal."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def page() -> ModuleType:
    """The script, imported."""
    sys.path.insert(0, str(FOLDER))
    try:
        import page as script
    finally:
        sys.path.remove(str(FOLDER))
    return script


@pytest.fixture
def results(page: ModuleType) -> dict[str, dict[str, Any]]:
    """The committed results, to change as a test likes."""
    return copy.deepcopy(page.read(FOLDER / "results"))


def test_the_page_is_fresh() -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / "page.py", "--print"], capture_output=True, check=True
    )
    held = (ROOT / "docs" / "performance.md").read_bytes()
    assert done.stdout == held, "stale: python benchmarks/page.py"


def test_every_results_file_has_the_shape_that_they_share(page: ModuleType) -> None:
    for name, found in page.read(FOLDER / "results").items():
        assert {"benchmark", "command", "rounds", "rows", "ratios"} <= found.keys(), name
        assert found["benchmark"] == name


def test_make_benchmark_runs_every_benchmark_and_the_page(page: ModuleType) -> None:
    recipe = subprocess.run(
        ["make", "-n", "benchmark"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    scripts = {file.stem for file in FOLDER.glob("*.py")} - {"measuring", "page"}
    assert scripts == set(page.NAMES)
    assert [name for name in page.NAMES if name not in recipe] == []
    assert "benchmarks/page.py" in recipe


def goal(page: ModuleType, start: str) -> Any:
    return next(one for one in page.GOALS if one.text.startswith(start))


def verdict(page: ModuleType, results: dict[str, dict[str, Any]], start: str) -> str:
    rows = "\n".join(page.goals(results)).splitlines()
    return next(row for row in rows if row.startswith(f"| {start}"))


def test_a_goal_is_met_where_every_cell_holds(
    page: ModuleType, results: dict[str, dict[str, Any]]
) -> None:
    results["forward"]["ratios"] = {
        "deit_tiny, 224 px, batch 1, float32: eager": {"timm eager": 1.05, "best peer": "x"},
        "deit_base, 224 px, batch 8, float32: eager": {"timm eager": 1.3, "best peer": "x"},
    }
    assert verdict(page, results, "plain forward").endswith("| 1.050 to 1.300 | met |")


def test_what_falls_short_is_named_with_its_figure(
    page: ModuleType, results: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    results["optimized"]["ratios"] = {
        "a: optimized": {"openvino": 1.0949, "timm": 1.6, "best peer": "openvino"},
        "b: optimized": {"openvino": 1.9, "timm": 1.2, "best peer": "timm"},
    }
    text = goal(page, "optimized").text
    monkeypatch.setitem(page.REASONS, text, "Because.")
    told = "\n".join(page.goals(results))
    assert f"| {text} | 1.095 to 1.200 | not met in 1 of 2 |" in told
    assert f"- {text}. Not met: a: optimized (1.095). Because." in " ".join(told.split())


def test_cait_is_held_against_timm_in_the_same_mode_and_precision(
    page: ModuleType, results: dict[str, dict[str, Any]]
) -> None:
    results["cait"]["ratios"] = {
        "x, float32: eager": {"timm eager": 1.6, "timm compiled": 1.1, "best peer": "-"},
        "x, float32: compiled": {"timm eager": 1.9, "timm compiled": 1.4, "best peer": "-"},
        "x, bfloat16: eager": {"timm eager": 2.5, "timm compiled": 1.1, "best peer": "-"},
    }
    in_float32 = goal(page, "CaiT, float32").cells(results)
    assert in_float32 == {"x, float32: eager": 1.6, "x, float32: compiled": 1.4}
    assert goal(page, "CaiT, bfloat16").cells(results) == {"x, bfloat16: eager": 2.5}


def test_times_are_held_below_their_limit(
    page: ModuleType, results: dict[str, dict[str, Any]]
) -> None:
    results["cold_start"]["ratios"] = {
        "deit_small, to timm": {"seconds": 0.5, "load_seconds": 0.06, "peak_mb": 0.7},
        "deit_small, to transformers": {"seconds": 9.0, "load_seconds": 9.0, "peak_mb": 9.0},
    }
    assert verdict(page, results, "cold start of").endswith("| 0.500 | met |")
    assert verdict(page, results, "cold start, load").endswith("| 0.060 | not met |")
    assert verdict(page, results, "cold start, peak").endswith("| 0.700 | met |")


def test_a_reason_belongs_to_a_goal(page: ModuleType) -> None:
    assert page.REASONS.keys() <= {one.text for one in page.GOALS}


def test_results_of_two_machines_make_no_page(
    page: ModuleType, results: dict[str, dict[str, Any]]
) -> None:
    results["load"]["machine"]["cores"] = 64
    with pytest.raises(SystemExit, match=r"of several machines"):
        page.page(results)


def test_results_that_are_missing_are_named(page: ModuleType, tmp_path: Path) -> None:
    for name in page.NAMES:
        (tmp_path / f"{name}.json").write_text(json.dumps({}), encoding="utf-8")
    (tmp_path / "cait.json").unlink()
    with pytest.raises(SystemExit, match=r"has no cait; type: make benchmark$"):
        page.read(tmp_path)
