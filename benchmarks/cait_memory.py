"""Peak memory of CaiT-XXS24 at large images beside timm's, each measurement a fresh process.

python benchmarks/cait_memory.py [ROUNDS] [--img-sizes N ...]
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from statistics import median
from typing import Any

from measuring import arguments_of, write

from deit_zoo.inference.throughput import OURS, Case, title
from harness.timing import in_fresh_process

KEYS = ("peak_mb", "grown_mb")


def sizes(parser: argparse.ArgumentParser) -> None:
    """What this script has of its own."""
    parser.add_argument("--img-sizes", nargs="+", type=int, default=[384, 448])
    parser.add_argument("--batch-size", type=int, default=8)


def main() -> None:
    """Measure and print."""
    arguments = arguments_of(__doc__, rounds=3, more=sizes)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, dict[str, float]] = {}
    for size in arguments.img_sizes:
        for precision in ("float32", "bfloat16"):
            case = Case(
                model="cait_xxs24_384",
                img_size=(size, size),
                batch_size=arguments.batch_size,
                precision=precision,
                threads=arguments.threads,
            )
            answers: dict[str, list[dict[str, Any]]] = {OURS: [], "timm": []}
            for _ in range(arguments.rounds):
                for who, measured in answers.items():
                    task = {"case": asdict(case), "who": who, "mode": "eager", "graphs": None}
                    measured.append(in_fresh_process("harness.backends:memory_of", task))
            peaks = {
                who: {key: median(one[key] for one in measured) for key in KEYS}
                for who, measured in answers.items()
            }
            rows += [
                case.row | {"who": who, "mode": "eager"} | figures for who, figures in peaks.items()
            ]
            ratios[title(case.row)] = {key: peaks[OURS][key] / peaks["timm"][key] for key in KEYS}
            for who, figures in peaks.items():
                memory = f"{figures['peak_mb']:,.0f} MB, {figures['grown_mb']:,.0f} after imports"
                print(f"{title(case.row)}: {who} {memory}")
    write(arguments, rows, ratios)


if __name__ == "__main__":
    main()
