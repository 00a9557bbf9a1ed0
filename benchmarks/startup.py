"""Start-up of the command beside `import torch`: medians of interleaved rounds, and their ratios.

python benchmarks/startup.py [ROUNDS] [--json FILE]
"""

import statistics
import subprocess
import sys
import time

from measuring import arguments_of, write

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
    arguments = arguments_of(__doc__, rounds=9)
    rounds = arguments.rounds
    every = {"import torch": BASELINE} | COMMANDS
    for command in every.values():
        seconds(command)
    times: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(rounds):
        for name, command in every.items():
            times[name].append(seconds(command))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{'':24}{'seconds':>9}{'ratio':>8}   (medians of {rounds} interleaved rounds)")
    ratios = {
        name: statistics.median(
            taken / base for taken, base in zip(values, times["import torch"], strict=True)
        )
        for name, values in times.items()
    }
    for name, median in medians.items():
        print(f"{name:24}{median:9.3f}{ratios[name]:8.3f}")
    rows = [{"what": name, "seconds": median} for name, median in medians.items()]
    write(arguments, rows, {"to import torch": ratios})


if __name__ == "__main__":
    main()
