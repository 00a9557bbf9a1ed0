"""Peak memory of CaiT-XXS24 at large images beside timm's, each measurement a fresh process.

python benchmarks/cait_memory.py [ROUNDS] [--img-sizes N ...]
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from statistics import median
from typing import Any

from measuring import arguments_of, write

from deit_zoo.bench import Case, as_row, in_fresh_process
from deit_zoo.peers import OURS

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
            found: dict[str, list[dict[str, Any]]] = {OURS: [], "timm": []}
            for _ in range(arguments.rounds):
                for who, measured in found.items():
                    task = {"case": asdict(case), "who": who, "mode": "eager", "graphs": None}
                    measured.append(in_fresh_process("deit_zoo.peers:memory_of", task))
            held = {
                who: {key: median(one[key] for one in measured) for key in KEYS}
                for who, measured in found.items()
            }
            rows += [
                as_row(case) | {"who": who, "mode": "eager"} | peaks for who, peaks in held.items()
            ]
            ratios[case.title] = {key: held[OURS][key] / held["timm"][key] for key in KEYS}
            for who, peaks in held.items():
                told = f"{peaks['peak_mb']:,.0f} MB, {peaks['grown_mb']:,.0f} of them after imports"
                print(f"{case.title}: {who} {told}")
    write(arguments, rows, ratios)


if __name__ == "__main__":
    main()
