"""Measuring: turns, medians, ratios, memory; on literal numbers, never on a clock."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

from deit_zoo import bench
from deit_zoo.bench import Case, ChildError, Contestant
from deit_zoo.registry import resolve


def case(model: str = "deit_tiny", side: int = 32, **options: object) -> Case:
    return Case(model=model, img_size=(side, side), **options)  # type: ignore[arg-type]


def contestants(log: list[str]) -> list[Contestant]:
    def one(who: str) -> Contestant:
        return Contestant(who=who, mode="", run=lambda: log.append(who))

    return [one(who) for who in "ABC"]


def test_another_contestant_begins_each_round() -> None:
    orders = ["".join(bench.rotated("ABC", number)) for number in range(4)]
    assert orders == ["ABC", "BCA", "CAB", "ABC"]


def test_contestants_take_turns_and_a_turn_begins_with_a_call_that_does_not_count() -> None:
    log: list[str] = []
    # A turn of no time is still one call.
    times = bench.measure(contestants(log), rounds=2, seconds=0.0)
    assert "".join(log) == "AABBCC" + "BBCCAA"
    assert {who: [len(turn) for turn in turns] for who, turns in times.items()} == {
        "A": [1, 1],
        "B": [1, 1],
        "C": [1, 1],
    }


def test_a_turn_is_as_many_calls_as_fill_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(bench.time, "perf_counter", lambda: float(next(ticks)))
    [turns] = bench.measure(contestants([])[:1], rounds=1, seconds=2.5).values()
    assert turns == [[1.0, 1.0, 1.0]]


def test_every_call_is_waited_for_before_and_after() -> None:
    log: list[str] = []
    act = Contestant(who="A", mode="", run=lambda: log.append("run"))
    bench.measure([act], rounds=1, seconds=0.0, sync=lambda: log.append("sync"))
    assert log == ["run", "sync", "run", "sync"]


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([1.0, 2.0], 0.5, 1.5),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 0.95, 4.8),
        ([7.0], 0.95, 7.0),
        ([1.0, 2.0], 1.0, 2.0),
    ],
)
def test_percentiles_lie_between_values(values: list[float], share: float, expected: float) -> None:
    assert bench.percentile(values, share) == pytest.approx(expected)


def test_a_ratio_is_the_median_of_the_ratios_of_each_round() -> None:
    # The machine was four times as slow in the second round, for both. The ratio of the medians
    # over all calls would be 8 / 3.
    ours = [[1.0, 1.0, 9.0], [4.0], [3.0]]
    theirs = [[2.0], [8.0, 8.0, 1.0], [9.0]]
    assert bench.ratio_of_medians(ours, theirs) == 2.0


def test_figures_of_rounds() -> None:
    found = bench.figures([[0.1, 0.2, 0.3], [0.4]], batch_size=8)
    assert found == {
        "p50_ms": pytest.approx(250.0),
        "p95_ms": pytest.approx(385.0),
        "images_per_second": pytest.approx(8 / 0.3),
        "calls": 4,
        "round_ms": [pytest.approx(200.0), pytest.approx(400.0)],
    }


def test_the_share_of_the_peak_counts_two_operations_for_each_multiplication() -> None:
    # DeiT-Ti: 1.26 GMACs in the registry; 100 images/s are 252 GFLOP/s.
    row = bench.as_row(case(side=224)) | {"images_per_second": 100.0}
    assert bench.share_of_peak(row, {"float32": 504e9}) == pytest.approx(0.5)
    assert bench.share_of_peak(row | {"train": True}, {"float32": 504e9}) == pytest.approx(1.5)
    assert bench.share_of_peak(row | {"precision": "int8"}, {"float32": 504e9}) is None


def test_multiplications_at_another_image_size_follow_the_tokens() -> None:
    # facts of the registry: DeiT-B has 17.58 GMACs at 224 pixels and 55.54 at 384.
    assert bench.gmacs(resolve("deit_base"), (224, 224)) == 17.58
    assert bench.gmacs(resolve("deit_base"), (384, 384)) == pytest.approx(55.54, rel=0.01)
    assert bench.gmacs(resolve("convnet_pico_digits"), (32, 16)) == pytest.approx(
        2 * resolve("convnet_pico_digits").gmacs
    )


def test_the_title_of_a_case_says_what_differs() -> None:
    assert case(batch_size=8).title == "deit_tiny, 32 px, batch 8, float32"
    wide = Case(model="deit_tiny", img_size=(32, 64), precision="bfloat16", train=True)
    assert wide.title == "deit_tiny, 32x64 px, batch 1, bfloat16, training"


def test_a_fresh_process_answers_and_says_why_it_cannot() -> None:
    assert bench.in_fresh_process("builtins:dict", {"a": 1}) == {"a": 1}
    with pytest.raises(ChildError, match=r"^TypeError: int"):
        bench.in_fresh_process("builtins:int", {"a": 1})


def test_the_peak_is_the_most_that_a_process_ever_held() -> None:
    if bench.peak_mb() is None:
        pytest.skip("this system does not say how much memory a process held")
    code = (
        "from deit_zoo.bench import peak_mb; before = peak_mb(); held = b'x' * (200 << 20); "
        "del held; print(peak_mb() - before)"
    )
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert 150 < float(grown) < 300


def test_measuring_a_runtime_imports_no_torch() -> None:
    # Its memory would be counted.
    code = "import sys, deit_zoo.peers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
