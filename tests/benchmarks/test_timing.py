"""The harness's measures: turns, ratios, the matrix peak; on literal numbers, never on a clock."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deit_zoo.inference.throughput import Case
from deit_zoo.registry.names import resolve
from harness import timing
from harness.timing import ChildError


def test_another_backend_begins_each_round() -> None:
    orders = ["".join(timing.rotated("ABC", number)) for number in range(4)]
    assert orders == ["ABC", "BCA", "CAB", "ABC"]


def test_a_ratio_is_the_median_of_the_ratios_of_each_round() -> None:
    # The machine was four times as slow in the second round, for both. The ratio of the medians
    # over all calls would be 8 / 3.
    ours = [[1.0, 1.0, 9.0], [4.0], [3.0]]
    theirs = [[2.0], [8.0, 8.0, 1.0], [9.0]]
    assert timing.ratio_of_medians(ours, theirs) == 2.0


def test_the_share_of_the_peak_counts_two_operations_for_each_multiplication() -> None:
    # DeiT-Ti: 1.26 GMACs in the registry; 100 images/s are 252 GFLOP/s.
    row = Case(model="deit_tiny", img_size=(224, 224)).row | {"images_per_second": 100.0}
    assert timing.share_of_peak(row, {"float32": 504e9}) == pytest.approx(0.5)
    assert timing.share_of_peak(row | {"train": True}, {"float32": 504e9}) == pytest.approx(1.5)
    assert timing.share_of_peak(row | {"precision": "int8"}, {"float32": 504e9}) is None


def test_multiplications_at_another_image_size_follow_the_tokens() -> None:
    # facts of the registry: DeiT-B has 17.58 GMACs at 224 pixels and 55.54 at 384.
    assert timing.gmacs(resolve("deit_base"), (224, 224)) == 17.58
    assert timing.gmacs(resolve("deit_base"), (384, 384)) == pytest.approx(55.54, rel=0.01)
    assert timing.gmacs(resolve("convnet_pico_digits"), (32, 16)) == pytest.approx(
        2 * resolve("convnet_pico_digits").gmacs
    )


def test_a_fresh_process_answers_and_says_why_it_cannot() -> None:
    assert timing.in_fresh_process("builtins:dict", {"a": 1}) == {"a": 1}
    with pytest.raises(ChildError, match=r"^TypeError: int"):
        timing.in_fresh_process("builtins:int", {"a": 1})


def test_measuring_a_runtime_imports_no_torch() -> None:
    # Its memory would be counted.
    code = "import sys, harness.backends; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=timing.BENCHMARKS, check=False).returncode
        == 0
    )
