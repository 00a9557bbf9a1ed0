"""benchmarks/gpu.py: each section costs at most its own limit, and none stops the next."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu
import pytest
from gpu import Kit, Section

ROOT = Path(__file__).parents[2]
GOOD = "import sys; report(1)"
FAILS = "report(1); raise ValueError('as it should')"
# What it started outlives it unless the whole group is ended.
HANGS = """
report(1)
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
print('child', child.pid, flush=True)
time.sleep(600)
"""
WAITS = """
print('ready', flush=True)
print('told', sys.stdin.readline().strip(), flush=True)
report(1)
"""
# A script as those of the folder: it writes its rows into the file after --json.
PROGRAM = """
import json, subprocess, sys, time
file = sys.argv[sys.argv.index('--json') + 1]
def report(rows):
    facts = {'benchmark': 'digits', 'command': '', 'rounds': 1, 'ratios': {}, 'rows': [1] * rows}
    open(file, 'w').write(json.dumps(facts))
"""


def section(folder: Path, name: str, program: str, **others: Any) -> Section:
    """A section that runs a program from a file."""
    file = folder / f"{name}.py"
    file.write_text(PROGRAM + program, encoding="utf-8")
    return Section(**({"name": name, "seconds": 30, "command": str(file)} | others))


def reports_of(folder: Path) -> dict[str, dict[str, Any]]:
    """What each section left, by its name."""
    files = folder.glob("gpu_*.json")
    return {file.stem[4:]: json.loads(file.read_text(encoding="utf-8")) for file in files}


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2]
    except FileNotFoundError:
        return False


def test_a_section_that_fails_or_hangs_keeps_its_rows_and_stops_no_other(tmp_path: Path) -> None:
    kit = Kit(tmp_path, 60)
    kit.run(
        [
            section(tmp_path, "fails", FAILS),
            section(tmp_path, "hangs", HANGS, seconds=2),
            section(tmp_path, "good", GOOD),
        ]
    )
    reports = reports_of(tmp_path)
    assert {name: len(report["rows"]) for name, report in reports.items()} == {
        "fails": 1,
        "hangs": 1,
        "good": 1,
    }
    assert reports["fails"]["ended"].startswith("failed with exit code 1 after")
    assert reports["hangs"]["ended"] == "stopped at its limit of 2 s"
    assert reports["good"]["ended"].startswith("finished in")
    assert kit.troubles["fails"][-1] == "ValueError: as it should"
    log = (tmp_path / "gpu.log").read_text(encoding="utf-8")
    child = next(line for line in log.splitlines() if line.startswith("child"))
    assert not is_alive(int(child.split()[1]))


def test_what_gets_ready_early_begins_when_it_is_told(tmp_path: Path) -> None:
    Kit(tmp_path, 60).run(
        [
            section(tmp_path, "early", WAITS, early=True),
            section(tmp_path, "first", "print('first')", timed=False),
        ]
    )
    assert "told go" in (tmp_path / "gpu.log").read_text(encoding="utf-8")
    assert reports_of(tmp_path)["early"]["ended"].startswith("finished")


def test_what_is_not_ready_in_time_stands_still_until_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "PREPARE", 1.0)
    ticks = "while True: print(time.monotonic(), flush=True); time.sleep(0.05)"
    watch = "time.sleep(1); print('from', time.monotonic()); time.sleep(2); report(1)"
    watch += "; print('to', time.monotonic())"
    Kit(tmp_path, 60).run(
        [
            section(tmp_path, "watch", watch),
            section(tmp_path, "late", ticks, early=True, seconds=2),
        ]
    )
    lines = (tmp_path / "gpu.log").read_text(encoding="utf-8").split()
    begin, end = (float(lines[lines.index(word) + 1]) for word in ("from", "to"))
    times = [float(line) for line in lines[lines.index("late:") :] if line[0].isdigit()]
    assert not [moment for moment in times if begin < moment < end]
    assert [moment for moment in times if moment > end]


def test_no_section_begins_when_the_time_of_all_is_up(tmp_path: Path) -> None:
    began = time.monotonic()
    Kit(tmp_path, 2).run([section(tmp_path, "a", HANGS), section(tmp_path, "b", GOOD)])
    assert time.monotonic() - began < 20
    reports = reports_of(tmp_path)
    assert reports["a"]["ended"] == "stopped at its limit of 2 s"
    assert reports["b"]["ended"] == "not begun: the time of all was up"
    assert reports["b"]["rows"] == []


def test_the_sections_of_a_gpu_fit_into_nine_minutes_and_have_tables() -> None:
    *others, _last = gpu.SECTIONS["cuda"]
    assert sum(one.seconds for one in others) <= 8 * 60
    assert [one.name for one in gpu.SECTIONS["cuda"]] == [one.name for one in gpu.SECTIONS["cpu"]]
    from page import ON_A_GPU

    assert [*ON_A_GPU] == [one.name for one in gpu.SECTIONS["cuda"]]


@pytest.mark.slow
def test_the_kit_runs_whole_on_a_cpu(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--output", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    reports = reports_of(tmp_path)
    assert {name: report["ended"][:8] for name, report in reports.items()} == {
        one.name: "finished" for one in gpu.SECTIONS["cpu"]
    }, done.stdout
    assert [
        report for report in reports.values() if report.get("failed") or not report["rows"]
    ] == []
    assert done.returncode == 0, done.stderr
    assert max(file.stat().st_size for file in tmp_path.glob("*.json")) < 100_000
