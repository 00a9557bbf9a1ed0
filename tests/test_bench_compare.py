"""Cases one after another: rows, ratios, and who was left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from deit_zoo import bench_compare, peers
from deit_zoo.bench import Case, Contestant
from deit_zoo.bench_compare import Request, compare, ratios_of
from deit_zoo.errors import DataError, ImageSizeError, UnknownModelError, ZooError

DIGITS = Case(model="deit_pico_digits", img_size=(16, 16), pretrained=True)


def request(**options: Any) -> Request:
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
    return Request(**(small | options))


def test_cases_are_every_model_precision_and_batch_once() -> None:
    asked = request(
        models=["deit_s", "deit_small", "deit_pico_digits"],
        img_size=None,
        precisions=["float32", "bfloat16", "float32"],
        batch_sizes=[1, 8, 1],
    )
    assert [case.title for case in asked.cases()] == [
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
    assert [case.pretrained for case in asked.cases()] == [False] * 4 + [True] * 4


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        (
            {"precisions": ["fp8"]},
            ZooError,
            "--precision is 'fp8'; give float32, bfloat16, float16, int8",
        ),
        ({"modes": ["fast"]}, ZooError, "--mode is 'fast'; give eager, compiled, optimized"),
        (
            {"precisions": ["int8"]},
            ZooError,
            "int8 is what optimize makes; add --mode optimized",
        ),
        (
            {"train": True, "modes": ["optimized"]},
            ZooError,
            "an optimized or int8 model cannot be trained; give --mode eager or compiled, and "
            "--precision float32 or bfloat16",
        ),
        ({"batch_sizes": [8, 0]}, ZooError, "--batch-size is 0; give 1 or more"),
        ({"rounds": 0}, ZooError, "--rounds is 0; give 1 or more"),
        ({"threads": -1}, ZooError, "--threads is -1; give 1 or more"),
        ({"seconds": 0.0}, ZooError, "--seconds is 0; give a time above 0"),
        (
            {"img_size": 33},
            ImageSizeError,
            "images of 33x33 pixels cannot be cut into patches of 16x16; the nearest size that can "
            "is img_size=(32, 32)",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(
    options: dict[str, Any], kind: type[ZooError], sentence: str
) -> None:
    with pytest.raises(kind) as refused:
        request(**options)
    assert str(refused.value) == sentence


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(UnknownModelError):
        request(models=["deit_huge"])


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
    facts = [
        ("deit_zoo", "eager"),
        ("deit_zoo", "optimized"),
        ("timm", "eager"),
        ("openvino", "timm's graph"),
        ("openvino", "our file"),
    ]
    assert ratios_of(facts, times) == {
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
        [request(peers=["timm"])], progress=lambda done, total: counts.append((done, total))
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


def test_memory_is_that_of_a_process_of_its_own() -> None:
    asked = request(models=["deit_pico_digits"], img_size=16, rounds=1, memory=True)
    [row] = compare([asked])["rows"]
    if row["peak_mb"] is None:
        pytest.skip("this system does not say how much memory a process held")
    assert 0 < row["grown_mb"] < row["peak_mb"]


def test_who_fails_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(mode: str, case: Case, given: peers.Given) -> peers.Run:
        raise RuntimeError("no compiler\nwas found")

    def other(mode: str, case: Case, given: peers.Given) -> peers.Run:
        return lambda: torch.ones(2, 1000)

    monkeypatch.setitem(peers._BUILDERS, "timm", broken)
    monkeypatch.setitem(peers._BUILDERS, "transformers", other)
    report = compare([request(peers=["timm", "transformers"], rounds=1)])
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
    def refusing(who: str, mode: str, case: Case, given: peers.Given) -> Contestant:
        raise ZooError("this processor would lose")

    monkeypatch.setattr(peers, "built", refusing)
    with pytest.raises(ZooError, match=r"^this processor would lose$"):
        compare([request()])


def test_the_images_of_agreement_are_digits_or_the_users(tmp_path: Path) -> None:
    digits = bench_compare.real_images(DIGITS, None)
    assert digits is not None
    assert digits.shape == (128, 3, 16, 16)
    assert bench_compare.real_images(Case(model="deit_tiny", img_size=(32, 32)), None) is None
    with pytest.raises(DataError, match=r"holds no image; give a folder of images to --images$"):
        bench_compare.real_images(DIGITS, tmp_path)
    Image.new("RGB", (20, 30), "red").save(tmp_path / "a.png")
    own = bench_compare.real_images(DIGITS, tmp_path)
    assert own is not None
    assert own.shape == (1, 3, 16, 16)


def test_agreement_is_told_of_each_lower_precision_on_the_embedded_digits() -> None:
    asked = request(
        models=["deit_pico_digits"],
        img_size=None,
        modes=["optimized"],
        precisions=["float32", "bfloat16"],
    )
    [row] = bench_compare.agreement_rows(asked, None)
    assert (row["model"], row["precision"]) == ("deit_pico_digits", "bfloat16")
    assert row["num_images"] == 128
    assert row["top1"] >= 0.95
    assert 0 < row["largest"] < 1


@pytest.mark.slow
def test_an_optimized_model_is_measured_beside_the_plain_one() -> None:
    asked = request(
        models=["deit_pico_digits"],
        img_size=None,
        modes=["eager", "optimized"],
        precisions=["bfloat16"],
    )
    report = compare([asked])
    assert report["failed"] == []
    assert [row["mode"] for row in report["rows"]] == ["eager", "optimized"]


@pytest.mark.parametrize(
    "options",
    [
        {"modes": ["eager"], "precisions": ["bfloat16"]},
        {"modes": ["optimized"], "precisions": ["float32"]},
        # Random weights agree by chance.
        {"modes": ["optimized"], "precisions": ["bfloat16"], "models": ["deit_tiny"]},
    ],
)
def test_no_agreement_is_told_where_there_is_none(options: dict[str, Any]) -> None:
    asked = request(**({"models": ["deit_pico_digits"], "img_size": 16} | options))
    if asked.models == ["deit_tiny"]:
        asked = request(**(options | {"img_size": 32}))
    assert bench_compare.agreement_rows(asked, None) == []
