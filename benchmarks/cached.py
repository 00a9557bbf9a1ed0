"""DeiT-S, pretrained, from a Hub on loopback: the first call, the cached call, and timm's load.

    python benchmarks/cached.py [ROUNDS] [--json FILE]

Every measurement is a process of its own; imports are done before the clock starts. timm gets the
cached file's path, so it makes no request either. The first call also fetches and hashes.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import arguments_of, write

from harness.published import published

MEASURE = """
import json, sys, time
import torch
import deit_zoo, deit_zoo.weights.load, deit_zoo.weights.fetch, deit_zoo.models.deit, timm
started = time.perf_counter()
{call}
print(json.dumps({{"seconds": time.perf_counter() - started}}))
"""
OURS = 'deit_zoo.create("deit_s", pretrained=True)'
TIMM = 'timm.create_model("deit_small_patch16_224", checkpoint_path={file!r}).eval()'


def measure(call: str, environment: dict[str, str]) -> float:
    """Seconds of one call in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(call=call)],
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def main() -> None:
    """Measure and print."""
    import timm
    from safetensors.torch import save

    arguments = arguments_of(__doc__)
    rounds = arguments.rounds
    data = save(timm.create_model("deit_small_patch16_224").state_dict())
    with (
        tempfile.TemporaryDirectory() as name,
        published("deit_small", data, folder := Path(name)) as (hub, environment),
    ):
        environment["OMP_NUM_THREADS"] = str(arguments.threads)
        first = measure(OURS, environment)
        requests = len(hub.requests)
        [file] = folder.rglob("snapshots/*/model.safetensors")
        times: dict[str, list[float]] = {"deit_zoo, cached": [], "timm, same file": []}
        for _ in range(rounds):
            times["deit_zoo, cached"].append(measure(OURS, environment))
            times["timm, same file"].append(measure(TIMM.format(file=str(file)), environment))
        assert len(hub.requests) == requests, "the cached call made a request"
    print(f"first call, {requests} requests: {first:.3f} s; cached: 0 requests")
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name:18}{median:8.4f} s   (median of {rounds} interleaved rounds)")
    ours, theirs = times.values()
    ratio = statistics.median(our / their for our, their in zip(ours, theirs, strict=True))
    print(f"{'ratio':18}{ratio:8.3f}")
    rows = [{"what": "deit_zoo, first call", "seconds": first, "requests": requests}]
    rows += [{"what": name, "seconds": value, "requests": 0} for name, value in medians.items()]
    write(arguments, rows, {"cached to timm": {"seconds": ratio}})


if __name__ == "__main__":
    main()
