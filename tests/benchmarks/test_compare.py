"""Cases one after another: rows, ratios, and who was left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deit_zoo.errors import ZooError
from deit_zoo.inference.throughput import Case
from harness import backends
from harness.backends import SharedInputs
from harness.compare import BenchmarkConfig, compare, ratios_of
from harness.timing import Backend


def config(**options: Any) -> BenchmarkConfig:
    small = {
        "models": ["deit_tiny"],
        "img_size": 32,
        "batch_sizes": [2],
        "precisions": ["float32"],
        "modes": ["eager"],
        "rounds": 2,
        "seconds": 1e-3,
        "memory": False,
    }
    return BenchmarkConfig(**(small | options))


def test_every_mode_of_ours_has_a_ratio_to_every_peer_and_the_best_is_nobody_with_our_file() -> (
    None
):
    times = {
        "deit_zoo eager": [[2.0], [2.0]],
        "deit_zoo optimized": [[1.0], [1.0]],
        "timm eager": [[4.0], [2.0]],
        "openvino timm's graph": [[1.5], [1.5]],
        "openvino our file": [[0.5], [0.5]],
    }
    entries = [
        ("deit_zoo", "eager"),
        ("deit_zoo", "optimized"),
        ("timm", "eager"),
        ("openvino", "timm's graph"),
        ("openvino", "our file"),
    ]
    assert ratios_of(entries, times) == {
        "eager": {
            "timm eager": 1.5,
            "openvino timm's graph": 0.75,
            "openvino our file": 0.25,
            "best peer": "openvino timm's graph",
        },
        "optimized": {
            "timm eager": 3.0,
            "openvino timm's graph": 1.5,
            "openvino our file": 0.5,
            "best peer": "openvino timm's graph",
        },
    }


def test_ours_alone_has_no_ratios() -> None:
    assert ratios_of([("deit_zoo", "eager")], {"deit_zoo eager": [[1.0]]}) == {}


def test_a_report_beside_timm() -> None:
    counts: list[tuple[int, int]] = []
    report = compare(
        config(peers=["timm"]), progress=lambda done, total: counts.append((done, total))
    )
    # Two builds, two rounds with the matrix product, two results.
    assert counts == [(done, 10) for done in range(11)]
    assert [(row["who"], row["mode"]) for row in report["rows"]] == [
        ("deit_zoo", "eager"),
        ("timm", "eager"),
    ]
    for row in report["rows"]:
        assert len(row["round_ms"]) == 2
        assert row["p50_ms"] > 0
        assert row["p95_ms"] >= row["p50_ms"]
        assert 0 < row["share_of_peak"] < 1
        assert row["distance"] < 1e-5
        assert (row["peak_mb"], row["grown_mb"]) == (None, None)
    [(case, ratios)] = report["ratios"].items()
    assert case == "deit_tiny, 32 px, batch 2, float32: eager"
    assert set(ratios) == {"timm eager", "best peer"}
    assert ratios["best peer"] == "timm eager"
    assert report["failed"] == []
    assert report["peaks_gflops"].keys() == {"float32"}
    assert report["weights"] == "random"


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own() -> None:
    asked = config(models=["deit_pico_digits"], img_size=16, rounds=1, memory=True)
    [row] = compare(asked)["rows"]
    if row["peak_mb"] is None:
        pytest.skip("this system does not say how much memory a process held")
    assert 0 < row["grown_mb"] < row["peak_mb"]


def test_who_fails_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(mode: str, case: Case, shared: SharedInputs) -> backends.Run:
        raise RuntimeError("no compiler\nwas found")

    def other(mode: str, case: Case, shared: SharedInputs) -> backends.Run:
        return lambda: torch.ones(2, 1000)

    monkeypatch.setitem(backends._BUILDERS, "timm", broken)
    monkeypatch.setitem(backends._BUILDERS, "transformers", other)
    report = compare(config(peers=["timm", "transformers"], rounds=1))
    assert [row["who"] for row in report["rows"]] == ["deit_zoo"]
    assert report["ratios"] == {}
    case = {"model": "deit_tiny", "img_size": [32, 32], "batch_size": 2, "precision": "float32"}
    first, second = report["failed"]
    assert first == case | {
        "train": False,
        "who": "timm",
        "mode": "eager",
        "reason": "RuntimeError: no compiler was found",
    }
    assert second["who"] == "transformers"
    assert second["reason"].endswith("it is not the same model")


def test_what_ours_refuses_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(who: str, mode: str, case: Case, shared: SharedInputs) -> Backend:
        raise ZooError("this processor would lose")

    monkeypatch.setattr(backends, "built", refusing)
    with pytest.raises(ZooError, match=r"^this processor would lose$"):
        compare(config())
