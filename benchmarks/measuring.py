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
    typed = [word for word in sys.argv[1:] if word not in ("--json", str(arguments.json))]
    report = {
        "benchmark": name or script.stem,
        "command": " ".join(["python", f"benchmarks/{script.name}", *typed]),
        "date": now(),
        "machine": machine(device, arguments.threads, EVERY_PACKAGE),
        "rounds": arguments.rounds,
        "rows": rows,
        "ratios": ratios,
    }
    data = json.dumps(report | more, indent=1, ensure_ascii=False) + "\n"
    write_whole(arguments.json, data.encode())
