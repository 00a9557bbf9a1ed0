"""`benchmark` as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from deit_zoo.cli.benchmark import benchmark_
from deit_zoo.errors import ZooError
from deit_zoo.inference import fresh_process, optimize, throughput
from support.typed import Done

QUICK = ("--rounds", "1", "--seconds", "0.001", "--no-memory", "--no-cold-start", "--threads", "1")
DIGITS = ("deit_pico_digits", "--mode", "eager", *QUICK)
CURVE = (
    "--curve is one speed for each model; give one --mode, --precision and --batch-size, and leave "
    "out --train, --memory, --cold-start and --images"
)
PNG = b"\x89PNG\r\n\x1a\n"

app = typer.Typer()
app.command("benchmark")(benchmark_)


def test_benchmark_as_json_holds_the_machine_and_every_case(typed: Callable[..., Done]) -> None:
    done = typed(*DIGITS, "--json")
    assert (done.status, done.err) == (0, "")
    report = json.loads(done.out)
    assert report.keys() == {
        "benchmark",
        "command",
        "machine",
        "date",
        "rounds",
        "seconds",
        "weights",
        "rows",
        "failed",
        "agreement",
    }
    assert (report["rounds"], report["seconds"]) == (1, 0.001)
    assert report["machine"].keys() == {
        "cpu",
        "cores",
        "threads",
        "capability",
        "amx",
        "system",
        "python",
        "device",
        "packages",
    }
    assert (report["machine"]["threads"], report["machine"]["device"]) == (1, "cpu")
    assert {"deit_zoo", "torch"} <= report["machine"]["packages"].keys()
    measured = [(row["precision"], row["batch_size"]) for row in report["rows"]]
    assert measured == [("float32", 1), ("float32", 8), ("bfloat16", 1), ("bfloat16", 8)]
    assert {row["who"] for row in report["rows"]} == {"deit_zoo"}
    assert report["rows"][0].keys() == {
        "model",
        "img_size",
        "batch_size",
        "precision",
        "train",
        "who",
        "mode",
        "p50_ms",
        "p95_ms",
        "images_per_second",
        "calls",
        "round_ms",
        "distance",
        "peak_mb",
        "grown_mb",
        "of_eager",
    }


def test_benchmark_prints_a_table_and_writes_what_it_measured(typed: Callable[..., Done]) -> None:
    done = typed(
        *DIGITS, "-b", "3", "--precision", "float32", "--output", "a.json", "--plot", "a.png"
    )
    assert (done.status, done.err) == (0, "the picture is a.png\n")
    lines = done.out.splitlines()
    assert "deit_pico_digits, 16 px, batch 3, float32" in lines
    [row] = [line for line in lines if line.startswith("eager")]
    [measured] = json.loads(Path("a.json").read_text(encoding="utf-8"))["rows"]
    assert f"{measured['p50_ms']:,.4g}" in row
    assert f"{measured['images_per_second']:,.4g}" in row
    assert Path("a.png").read_bytes().startswith(PNG)
    assert max(map(len, lines)) <= 88


def test_each_mode_says_how_many_times_as_fast_as_eager_it_is(
    typed: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimize.OptimizedModel, "compile_frozen", lambda self: None)
    options = ("--mode", "eager", "--mode", "optimized", "-b", "1", "--precision", "fp32", *QUICK)
    report = json.loads(typed("deit_pico_digits", *options, "--json").out)
    eager, optimized = report["rows"]
    assert eager["of_eager"] == 1.0
    assert optimized["of_eager"] == pytest.approx(eager["round_ms"][0] / optimized["round_ms"][0])
    assert report["agreement"] == []


def test_an_optimized_model_of_lower_precision_is_compared_on_digits(
    typed: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimize.OptimizedModel, "compile_frozen", lambda self: None)
    options = ("--mode", "optimized", "-b", "1", "--precision", "bf16", *QUICK)
    done = typed("deit_pico_digits", *options)
    assert "deit_pico_digits, optimized bfloat16: the plain model's top-1 answer on" in done.out
    assert "of 128 images; logits differ by at most" in done.out


def test_random_weights_are_said(typed: Callable[..., Done]) -> None:
    options = ("--img-size", "32", "-b", "1", "--precision", "float32", "--mode", "eager", *QUICK)
    assert "random weights: speed does not depend on them" in typed("deit_tiny", *options).out


def test_benchmark_in_training(typed: Callable[..., Done]) -> None:
    done = typed("deit_pico_digits", *QUICK, "--train", "--json")
    rows = json.loads(done.out)["rows"]
    assert [(row["train"], row["mode"], row["precision"]) for row in rows] == [
        (True, "eager", "float32")
    ] * 2


def test_benchmark_ends_with_1_where_one_of_ours_fails(
    typed: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*anything: object, **options: object) -> None:
        raise RuntimeError("no compiler\nwas found")

    monkeypatch.setattr(optimize, "optimize", broken)
    done = typed("deit_pico_digits", "--precision", "float32", *QUICK)
    assert done.status == 1
    assert "eager" in done.out
    # Once, though at two batch sizes.
    assert done.err == (
        "left out: optimized: RuntimeError: no compiler was found (deit_pico_digits)\n"
    )


def test_what_was_measured_is_not_lost_with_a_fresh_process(
    typed: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*anything: object) -> None:
        raise ZooError("it ended")

    monkeypatch.setattr(fresh_process, "fresh_process", broken)
    options = ("-b", "1", "--precision", "float32", "--memory", "--cold-start", "--json")
    done = typed(*DIGITS, *options)
    assert done.status == 1
    [row] = json.loads(done.out)["rows"]
    assert (row["mode"], row["peak_mb"]) == ("eager", None)
    assert done.err == (
        "left out: eager: it ended (deit_pico_digits)\n"
        "left out: cold start: it ended (deit_pico_digits)\n"
    )


def test_benchmark_quick_is_one_short_round_of_eager_models(typed: Callable[..., Done]) -> None:
    report = json.loads(typed("deit_pico_digits", "--quick", "--json").out)
    assert (report["rounds"], report["seconds"]) == (1, 0.05)
    assert {row["mode"] for row in report["rows"]} == {"eager"}
    assert {row["peak_mb"] for row in report["rows"]} == {None}
    assert "cold_start" not in report


def test_what_is_typed_wins_over_quick(typed: Callable[..., Done]) -> None:
    done = typed("deit_pico_digits", "--quick", "--rounds", "2", "-b", "1", "--json")
    assert json.loads(done.out)["rounds"] == 2


def test_benchmark_says_what_optimize_refuses(
    typed: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(model: object, dtype: str, compile: bool) -> None:
        raise ZooError(f"{dtype} would lose on this processor; give bfloat16")

    monkeypatch.setattr(optimize, "optimize", refusing)
    options = ("--precision", "float32", "--precision", "int8", "--mode", "optimized")
    monkeypatch.setattr(throughput, "measure_case", lambda *anything: pytest.fail("too late"))
    done = typed("deit_pico_digits", *QUICK, *options)
    assert (done.out, done.error) == ("", "int8 would lose on this processor; give bfloat16")


def test_memory_and_cold_start_are_those_of_fresh_processes(
    typed: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[str] = []

    def answer(case: throughput.Case, mode: str, weights: Path | None = None) -> dict[str, float]:
        modes.append(mode)
        return {"seconds": 1.25, "load_seconds": 0.5, "peak_mb": 300.0, "grown_mb": 40.0}

    monkeypatch.setattr(fresh_process, "fresh_process", answer)
    options = ("-b", "1", "--precision", "float32", "--memory", "--cold-start")
    done = typed(*DIGITS, *options)
    assert "cold start, from the start of a process to its first prediction" in done.out
    assert done.out.splitlines()[-1].split() == ["deit_pico_digits", "1.25", "0.5", "300"]
    assert modes == ["eager"] * 3  # memory; a process that warms the disk's cache; the round
    report = json.loads(typed(*DIGITS, *options, "--json").out)
    assert (report["rows"][0]["peak_mb"], report["rows"][0]["grown_mb"]) == (300.0, 40.0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--mode", "fast"], "--mode is 'fast'; give eager, compiled, optimized"),
        (["--seconds", "0"], "--seconds is 0; give a time above 0, and no more than an hour"),
        (["--img-size", "big"], "--img-size is 'big'; give pixels as 224, or 192x256 (HxW)"),
        (["--plot", "a.svg"], "a.svg does not end in .png; type --plot FILE.png"),
        (["--output", "a.txt"], "a.txt does not end in .json; type --output FILE.json"),
        (
            ["--output", "no/a.json"],
            "there is no folder no; make it, or give another --output",
        ),
        (
            ["--images", "."],
            "random weights agree by chance on --images; add --pretrained",
        ),
        (
            ["--images", "no", "--pretrained"],
            "--images is 'no', which is no folder; give a folder of images",
        ),
        (["--curve", "--train"], CURVE),
        (["--curve", "--memory"], CURVE),
        (["--curve", "--mode", "eager", "--mode", "compiled"], CURVE),
    ],
)
def test_benchmark_refuses_in_one_sentence_before_it_measures(
    typed: Callable[..., Done], arguments: list[str], sentence: str
) -> None:
    done = typed(*arguments)
    assert (done.out, done.error) == ("", sentence)


@pytest.mark.parametrize("option", ["--batch-size", "--threads", "--rounds"])
def test_benchmark_refuses_less_than_one(typed: Callable[..., Done], option: str) -> None:
    done = typed(option, "0")
    assert (done.status, done.out) == (2, "")
    assert option in done.err


def test_benchmark_refuses_a_device_that_is_not_here(typed: Callable[..., Done]) -> None:
    done = typed("--device", "warp")
    assert done.error is not None
    assert done.error.startswith("device 'warp' cannot be used here")


def test_benchmark_never_overwrites_what_is_no_picture(typed: Callable[..., Done]) -> None:
    Path("a.png").write_text("a letter", encoding="utf-8")
    assert typed(*DIGITS, "--plot", "a.png").error == (
        "a.png is there and no PNG; give another --plot"
    )


def test_a_picture_that_the_disk_refuses_is_that_of_plot(typed: Callable[..., Done]) -> None:
    file = f"{'a' * 240}.png"  # what it is called while it is written is longer than a name may be
    done = typed(*DIGITS, "-b", "1", "--precision", "float32", "--plot", file)
    assert done.error == f"{file} cannot be written (File name too long); give another --plot"
