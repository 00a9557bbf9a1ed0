"""From the start of a process to its first prediction: ours, timm's and transformers'.

python benchmarks/cold_start.py [ROUNDS] [--models NAME ...]
"""

from __future__ import annotations

import argparse

from measuring import arguments_of, write

from harness.cold import cold_starts


def models(parser: argparse.ArgumentParser) -> None:
    """What this script has of its own."""
    parser.add_argument("--models", nargs="+", default=["deit_small"])
    parser.add_argument("--peers", nargs="*", default=["timm", "transformers"])


def main() -> None:
    """Measure and print."""
    arguments = arguments_of(__doc__, more=models)
    report = cold_starts(
        arguments.models,
        peers=arguments.peers,
        rounds=arguments.rounds,
        threads=arguments.threads,
    )
    print(f"{'':32}{'seconds':>9}{'loading':>9}{'peak MB':>9}")
    for row in report["rows"]:
        name = f"{row['model']}, {row['who']}"
        print(f"{name:32}{row['seconds']:9.3f}{row['load_seconds']:9.4f}{row['peak_mb'] or 0:9.0f}")
    for name, ratio in report["ratios"].items():
        print(f"{name + ':':32}" + "".join(f"{value:9.3f}" for value in ratio.values()))
    write(arguments, report["rows"], report["ratios"], failed=report["failed"])


if __name__ == "__main__":
    main()
