"""Loading DeiT-B from one safetensors file, here and by timm: time and peak memory, one process
per measurement, interleaved.

    python benchmarks/load.py [ROUNDS] [--json FILE]

The time is that of the call; imports are done before it. The peak is that of the whole process
after every parameter was read once (a mapped file counts only where it was read). Linux only.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import arguments_of, write

OURS = """
import deit_zoo, deit_zoo.weights.load
from deit_zoo.models import deit
def load(file):
    return deit_zoo.create("deit_b", checkpoint=file)
"""
TIMM = """
import timm
def load(file):
    return timm.create_model("deit_base_patch16_224", checkpoint_path=file).eval()
"""
MEASURE = r"""
import json, re, sys, time
import torch
torch.set_num_threads(int(sys.argv[2]))
{load}
started = time.perf_counter()
model = load(sys.argv[1])
seconds = time.perf_counter() - started
total = sum(float(parameter.detach().sum()) for parameter in model.parameters())
status = open("/proc/self/status").read()
peak = int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 1024
print(json.dumps({{"seconds": seconds, "peak_mb": peak, "sum": total}}))
"""


def measure(load: str, file: Path, threads: int) -> dict[str, float]:
    """One process: load, touch every parameter, report."""
    command = [sys.executable, "-c", MEASURE.format(load=load), str(file), str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main() -> None:
    """Measure and print."""
    import timm
    from safetensors.torch import save_file

    arguments = arguments_of(__doc__)
    rounds = arguments.rounds
    results: dict[str, list[dict[str, float]]] = {"deit_zoo": [], "timm": []}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "deit_base.safetensors"
        save_file(timm.create_model("deit_base_patch16_224").state_dict(), file)
        for number in range(rounds + 1):
            for name, load in (("deit_zoo", OURS), ("timm", TIMM)):
                result = measure(load, file, arguments.threads)
                if number:  # the first round warms the disk cache
                    results[name].append(result)
    assert results["deit_zoo"][0]["sum"] == results["timm"][0]["sum"], "the models differ"
    print(f"{'':12}{'seconds':>9}{'peak MB':>9}   (medians of {rounds} interleaved rounds)")
    medians = {
        name: {key: statistics.median(row[key] for row in rows) for key in ("seconds", "peak_mb")}
        for name, rows in results.items()
    }
    for name, row in medians.items():
        print(f"{name:12}{row['seconds']:9.4f}{row['peak_mb']:9.0f}")
    pairs = list(zip(results["deit_zoo"], results["timm"], strict=True))
    ratios = {
        key: statistics.median(ours[key] / theirs[key] for ours, theirs in pairs)
        for key in ("seconds", "peak_mb")
    }
    print(f"{'ratio':12}{ratios['seconds']:9.3f}{ratios['peak_mb']:9.3f}")
    rows = [{"model": "deit_base", "who": name} | row for name, row in medians.items()]
    write(arguments, rows, {"deit_base, to timm": ratios})


if __name__ == "__main__":
    main()
