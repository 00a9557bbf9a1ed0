"""Everything that a GPU has to show, in nine minutes: `make gpu`, or without an install

    PYTHONPATH=. python benchmarks/gpu.py [--device cpu] [--minutes 9] [--output DIR] [--only NAME]

The sections are processes, in order of worth, each with a limit of its own. What needs compilers
gets ready while the tests run, and stands still while another section is measured. Each writes
DIR/gpu_NAME.json as soon as it has a row; what fails, or runs over its limit, says so there and
stops nothing else. What they print is in DIR/gpu.log. `page.py` makes the page's section of copies
in benchmarks/results. With `--device cpu` the same code runs tiny sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import report_of, write_report
from page import table

from harness.workers import READY, kill, send, tree

FOLDER = Path(__file__).parent
PREPARE = 140.0  # seconds in which the tests run and the others get ready
LAST_LINES = 12  # of a failed section's output, shown at the end


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A script of this folder with its arguments, and the seconds that it has at most.

    `timed` ones run alone; `early` ones get ready beside those that are not timed.
    """

    name: str
    seconds: float
    command: str
    timed: bool = True
    early: bool = False


# In order of worth.
SECTIONS = {
    "cuda": (
        Section(name="tests", seconds=PREPARE, timed=False, command="gpu_tests.py --gpu"),
        Section(
            name="train_step",
            seconds=150,
            early=True,
            command="train_step.py 3 --seconds 0.5 --threads 1 --device cuda",
        ),
        Section(
            name="predict",
            seconds=50,
            early=True,
            command="predict.py 3 --seconds 0.15 --threads 1 --device cuda",
        ),
        Section(name="augment", seconds=60, command="augment_gpu.py 20 --threads 1 --device cuda"),
        Section(name="digits", seconds=70, command="reproduce.py digits --device cuda"),
        # The last one has what the others leave.
        Section(name="epoch", seconds=200, command="reproduce.py epoch --device cuda"),
    ),
    "cpu": (
        Section(
            name="tests",
            seconds=60,
            timed=False,
            command="gpu_tests.py tests/training/test_optim.py",
        ),
        Section(
            name="train_step",
            seconds=60,
            early=True,
            command="train_step.py 1 --seconds 0.1 --threads 1 --device cpu --no-compile "
            "--models deit_tiny deit_small_distilled --img-size 32 --batch 4",
        ),
        Section(
            name="predict",
            seconds=60,
            early=True,
            command="predict.py 1 --seconds 0.1 --threads 1 --device cpu --no-compile "
            "--models deit_tiny --batch-sizes 1 2",
        ),
        Section(name="augment", seconds=60, command="augment_gpu.py 2 --threads 1 --device cpu"),
        Section(name="digits", seconds=90, command="reproduce.py digits --device cpu --tiny"),
        Section(name="epoch", seconds=150, command="reproduce.py epoch --device cpu --tiny"),
    ),
}


@dataclass(slots=True)
class Running:
    """A section's process, and the file that all it says goes to."""

    section: Section
    process: subprocess.Popen[str]
    log: Path

    @property
    def is_ready(self) -> bool:
        """Whether nothing but measuring is left of it, or it has ended."""
        said = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return self.process.poll() is not None or READY in said


class Kit:
    """Sections run one after another, with what gets ready early."""

    def __init__(self, output: Path, seconds: float) -> None:
        self.output = output
        self.started = time.monotonic()
        self.deadline = self.started + seconds
        self.early: dict[str, Running] = {}
        self.troubles: dict[str, list[str]] = {}  # the last lines of what failed
        self.logs = tempfile.TemporaryDirectory(prefix="deit_zoo_gpu_", ignore_cleanup_errors=True)

    def run(self, sections: Sequence[Section]) -> None:
        """Each section to its end or its limit; what is left after an interruption is ended too."""
        self.output.mkdir(parents=True, exist_ok=True)
        (self.output / "gpu.log").unlink(missing_ok=True)
        try:
            for section in sections:
                if section.early:
                    self.early[section.name] = self.start(section, waits=True)
            for section in sections:
                if not section.timed:
                    self.finish(section)
            self.prepare()
            for section in sections:
                if section.timed:
                    self.finish(section)
        finally:
            for running in self.early.values():
                end(running)
            self.logs.cleanup()

    def start(self, section: Section, waits: bool = False) -> Running:
        """Its process, at the head of a group of its own."""
        script, *words = section.command.split()
        file = self.output / f"gpu_{section.name}.json"
        file.unlink(missing_ok=True)
        command = [sys.executable, str(FOLDER / script), *words, "--json", str(file)]
        log = Path(self.logs.name) / section.name
        path = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
        # A cache of its own: its locks stand still with it. Who gets ready beside others takes few
        # cores, and the tests go first.
        more = {"PYTHONPATH": path, "TORCHINDUCTOR_CACHE_DIR": f"{log}_compiled"}
        if waits:
            more["TORCHINDUCTOR_COMPILE_THREADS"] = "4"
        with log.open("w") as stream:
            process = subprocess.Popen(
                ["nice", "-n", "5", *command, "--wait"] if waits else command,
                cwd=FOLDER.parent,
                env=os.environ | more,
                stdin=subprocess.PIPE if waits else subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        return Running(section, process, log)

    def prepare(self) -> None:
        """Wait for what gets ready early, as long as that may take; then it stands still."""
        until = min(self.started + PREPARE, self.deadline)
        while time.monotonic() < until and not all(one.is_ready for one in self.early.values()):
            time.sleep(0.1)
        for running in self.early.values():
            send(signal.SIGSTOP, tree(running.process.pid))

    def finish(self, section: Section) -> None:
        """Run a section, or let it go on, to its end or its limit."""
        limit = min(section.seconds, self.deadline - time.monotonic())
        if limit <= 0:
            self.conclude(section, "not begun: the time of all was up", None)
            return
        say(f"{section.name}: begins, at most {limit:.0f} s")
        began = time.monotonic()
        running = self.early.pop(section.name, None)
        if running is None:
            running = self.start(section)
        else:
            send(signal.SIGCONT, tree(running.process.pid))
            tell(running.process, "go")
        try:
            code = running.process.wait(limit)
            seconds = time.monotonic() - began
            ended = f"finished in {seconds:.0f} s"
            if code:
                ended = f"failed with exit code {code} after {seconds:.0f} s"
        except subprocess.TimeoutExpired:
            ended = f"stopped at its limit of {limit:.0f} s"
        finally:
            end(running)
        self.conclude(section, ended, running.log)

    def conclude(self, section: Section, ended: str, log: Path | None) -> None:
        """Write into its results how it ended, and keep what it said."""
        file = self.output / f"gpu_{section.name}.json"
        if file.is_file():
            report = json.loads(file.read_text(encoding="utf-8"))
        else:
            command = f"python benchmarks/{section.command}"
            report = report_of(section.name, command, device=device_of(section), threads=1)
        report["ended"] = ended
        write_report(file, report)
        text = log.read_text(encoding="utf-8", errors="replace") if log else ""
        with (self.output / "gpu.log").open("a", encoding="utf-8") as stream:
            stream.write(f"== {section.name}: {ended}\n{text}\n")
        if not ended.startswith("finished"):
            self.troubles[section.name] = text.splitlines()[-LAST_LINES:]
        say(f"{section.name}: {ended}, {len(report['rows'])} rows")


def end(running: Running) -> None:
    """End a section's process, all that it started, and what that left behind in its group."""
    kill(running.process)
    with suppress(ProcessLookupError):
        os.killpg(running.process.pid, signal.SIGKILL)


def device_of(section: Section) -> str:
    """The device that a section's command names."""
    return "cpu" if "--device cpu" in section.command or not torch.cuda.is_available() else "cuda"


def tell(process: subprocess.Popen[str], line: str) -> None:
    """A line to a process that may have ended."""
    assert process.stdin is not None
    try:
        print(line, file=process.stdin, flush=True)
    except BrokenPipeError:
        return


def say(sentence: str) -> None:
    """One line, at once."""
    print(sentence, flush=True)


def summary(reports: dict[str, dict[str, Any]], troubles: dict[str, list[str]]) -> Iterator[str]:
    """Every figure, what was left out, and the last lines of what failed."""
    for name, report in reports.items():
        yield f"\n== {name}: {report['ended']}"
        yield table(report)
        for one in report.get("failed", []):
            yield f"left out: {one['model']}, {one['who']}: {one['reason']}"
        for line in troubles.get(name, []):
            yield f"  | {line[:160]}"


def main() -> None:
    """Run what was asked for, and print the table; 1 where anything failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=[*SECTIONS], default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--output", type=Path, default=Path("build/gpu"))
    parser.add_argument("--only", nargs="+", choices=[one.name for one in SECTIONS["cuda"]])
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; type --device cpu for tiny sizes on the CPU")
    sections = [
        one
        for one in SECTIONS[arguments.device]
        if arguments.only is None or one.name in arguments.only
    ]
    output = arguments.output.resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # sections are ended then too
    kit = Kit(output, 60 * arguments.minutes)
    kit.run(sections)
    files = {one.name: output / f"gpu_{one.name}.json" for one in sections}
    reports = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()}
    for line in summary(reports, kit.troubles):
        say(line)
    sys.exit(1 if kit.troubles or any(one.get("failed") for one in reports.values()) else 0)


if __name__ == "__main__":
    main()
