"""Tests as a section of gpu.py: pytest with the arguments that are given, a row for each test.

python benchmarks/gpu_tests.py [-m gpu] [PATH ...] --json FILE
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from measuring import report_of, write_report

# A warning of this machine's packages is no failure here; their plugins have no part in it.
QUIET = ["-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", "-p", "no:benchmark"]
QUIET += ["-W", "default"]
PARALLEL = ["-n", "4", "--dist", "worksteal"]


class Recorder:
    """Writes the results after each test."""

    def __init__(self, file: Path, command: str, device: str) -> None:
        self.file = file
        self.report = report_of("tests", command, device=device, threads=1)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A row for a test that ran, or that could not begin or end."""
        if report.when != "call" and report.passed:
            return
        row: dict[str, Any] = {
            "test": report.nodeid,
            "outcome": report.outcome,
            "seconds": report.duration,
        }
        self.report["rows"].append(row)
        if report.failed:
            lines = report.longreprtext.strip().splitlines()
            told = [line[1:].strip() for line in lines if line.startswith("E ")]
            reason = (told or lines or ["nothing was said"])[0][:200]
            failure = {"model": report.nodeid, "who": report.when, "reason": reason}
            self.report.setdefault("failed", []).append(failure)
        write_report(self.file, self.report)


def gpu_files() -> list[str]:
    """Where such tests are: to collect all would take longer than to run them."""
    files = (Path(__file__).parents[1] / "tests").rglob("test_*.py")
    return sorted(str(file) for file in files if "mark.gpu" in file.read_text(encoding="utf-8"))


def main() -> None:
    """Run, and end as pytest does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--gpu", action="store_true")
    arguments, words = parser.parse_known_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    command = " ".join(["python benchmarks/gpu_tests.py", *(["--gpu"] if arguments.gpu else words)])
    if arguments.gpu:
        words += ["-m", "gpu", *gpu_files()]
    recorder = Recorder(arguments.json, command, device)
    write_report(recorder.file, recorder.report)
    parallel = PARALLEL if device == "cuda" and find_spec("xdist") else []
    sys.exit(pytest.main([*QUIET, *parallel, *words], plugins=[recorder]))


if __name__ == "__main__":
    main()
