"""Start-up of the command beside `import torch`: medians of interleaved rounds, and their ratios.

python benchmarks/startup.py [ROUNDS]
"""

import statistics
import subprocess
import sys
import time

BASELINE = [sys.executable, "-c", "import torch"]
COMMANDS = {
    "deit-zoo --help": [sys.executable, "-m", "deit_zoo", "--help"],
    "deit-zoo list": [sys.executable, "-m", "deit_zoo", "list"],
    "deit-zoo info deit_s": [sys.executable, "-m", "deit_zoo", "info", "deit_s"],
    "import deit_zoo": [sys.executable, "-c", "import deit_zoo"],
}


def seconds(command: list[str]) -> float:
    """Wall time of one process."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    every = {"import torch": BASELINE} | COMMANDS
    for command in every.values():
        seconds(command)
    times: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(rounds):
        for name, command in every.items():
            times[name].append(seconds(command))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{'':24}{'seconds':>9}{'ratio':>8}   (medians of {rounds} interleaved rounds)")
    for name, median in medians.items():
        print(f"{name:24}{median:9.3f}{median / medians['import torch']:8.3f}")


if __name__ == "__main__":
    main()
