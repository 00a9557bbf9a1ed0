"""What the scripts of this folder share: their arguments, and results in one shape.

A results file holds {"benchmark", "command", "date", "machine", "rounds", "rows", "ratios"}, and
what else a script found. `page.py` makes docs/performance.md of these files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from deit_zoo.files import write_whole
from deit_zoo.inference.throughput import machine
from harness.compare import EVERY_PACKAGE, now


def arguments_of(
    text: str | None,
    *,
    rounds: int = 7,
    more: Callable[[argparse.ArgumentParser], None] | None = None,
) -> argparse.Namespace:
    """ROUNDS, `--json FILE` and `--threads N`, and what a script has beside them."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if more:
        more(parser)
    parser.add_argument("rounds", nargs="?", type=int, default=rounds)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def device_options(parser: argparse.ArgumentParser) -> None:
    """Of what runs on a GPU too, and may be a section of gpu.py."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cuda", "cpu"), default=device)
    parser.add_argument(
        "--wait", action="store_true", help="get ready, say so, and begin on a line of stdin"
    )


def write(
    arguments: argparse.Namespace,
    rows: Sequence[dict[str, Any]],
    ratios: dict[str, Any],
    *,
    name: str | None = None,
    device: str = "cpu",
    **more: Any,
) -> None:
    """The results file, where one was asked for; by the script's name unless another is given."""
    if arguments.json is None:
        return
    script = Path(sys.argv[0])
    left_out = ("--wait", "--json", str(arguments.json))
    words = [word for word in sys.argv[1:] if word not in left_out]
    command = " ".join(["python", f"benchmarks/{script.name}", *words])
    report = report_of(name or script.stem, command, device=device, threads=arguments.threads)
    report |= {"rounds": arguments.rounds, "rows": rows, "ratios": ratios}
    write_report(arguments.json, report | more)


def report_of(name: str, command: str, *, device: str, threads: int) -> dict[str, Any]:
    """What every results file holds, before anything is measured."""
    return {
        "benchmark": name,
        "command": command,
        "date": now(),
        "machine": machine(device, threads, EVERY_PACKAGE),
        "rounds": 1,
        "rows": [],
        "ratios": {},
    }


def write_report(file: Path, report: dict[str, Any]) -> None:
    """A results file, whole or as it was."""
    write_whole(file, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
