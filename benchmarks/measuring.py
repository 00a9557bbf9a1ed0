"""What the scripts of this folder share: their arguments, and results in one shape.

A results file holds {"benchmark", "command", "date", "machine", "rounds", "rows", "ratios"}, and
what else a script found. `page.py` makes docs/performance.md of these files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from deit_zoo.bench import machine, now
from deit_zoo.bench_compare import Request, compare
from deit_zoo.cli.benchmark import failures, print_report
from deit_zoo.files import write_whole


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
    parser.add_argument("rounds", nargs="?", type=int, default=rounds)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    if more:
        more(parser)
    return parser.parse_args()


def write(
    arguments: argparse.Namespace,
    rows: Sequence[dict[str, Any]],
    ratios: dict[str, Any],
    **more: Any,
) -> None:
    """The results file, where one was asked for."""
    if arguments.json is None:
        return
    script = Path(sys.argv[0])
    told = [one for one in sys.argv[1:] if one not in ("--json", str(arguments.json))]
    report = {
        "benchmark": script.stem,
        "command": " ".join(["python", f"benchmarks/{script.name}", *told]),
        "date": now(),
        "machine": machine("cpu", arguments.threads),
        "rounds": arguments.rounds,
        "rows": rows,
        "ratios": ratios,
    }
    data = json.dumps(report | more, indent=1, ensure_ascii=False) + "\n"
    write_whole(arguments.json, data.encode())


def run_cases(text: str | None, requests: Sequence[Request]) -> None:
    """A script that is a table of cases: measure them beside the peers, print, write."""
    arguments = arguments_of(text, more=_filters)
    chosen = [_narrowed(request, arguments) for request in requests]
    report = compare([request for request in chosen if request.models])
    told = {key: report[key] for key in ("peaks_gflops", "failed", "seconds")}
    write(arguments, report["rows"], report["ratios"], **told)
    print_report(report | {"agreement": []})
    for sentence in failures(report):
        print("left out:", sentence)


def _filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", help="only these of the table")
    parser.add_argument("--batch-sizes", nargs="+", type=int)
    parser.add_argument("--precisions", nargs="+")
    parser.add_argument("--img-size", type=int, help="of every model")
    parser.add_argument("--seconds", type=float, help="of each turn")


def _narrowed(request: Request, arguments: argparse.Namespace) -> Request:
    given = {
        "batch_sizes": arguments.batch_sizes,
        "precisions": arguments.precisions,
        "img_size": arguments.img_size,
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "threads": arguments.threads,
    }
    if arguments.models:
        given["models"] = [name for name in request.models if name in arguments.models]
    return replace(request, **{key: value for key, value in given.items() if value is not None})
