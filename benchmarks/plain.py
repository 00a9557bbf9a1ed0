"""The models as they are, their optimized copies, and timm's with the same weights, in turn.

    python benchmarks/plain.py [ROUNDS] [--json FILE] [--models NAME ...] [--no-compile]

A copy is measured in eager float32, and as `optimize` makes it here. Times are the processor's, of
one thread unless told otherwise, so that other work on the machine disturbs little. A processor
with AMX becomes one with AVX2 alone by

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import timm
import torch
from measuring import arguments_of, write
from torch import nn

import deit_zoo
from deit_zoo.inference.throughput import FREED
from deit_zoo.registry.names import resolve
from harness.backends import timm_name

MODELS = ("deit_tiny", "deit_small", "cait_xxs24_224")
SECONDS = 0.3  # of each turn, about
TIMM = "timm eager"


def options(parser: argparse.ArgumentParser) -> None:
    """What is measured."""
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=(1, 8))
    parser.add_argument("--no-compile", action="store_true", help="the copy as it comes, but eager")


def contestants(name: str, compile: bool | str) -> dict[str, Callable[..., Any]]:
    """Ours in each mode, and timm's, by who and how."""
    model = deit_zoo.create(name).eval()
    peer: nn.Module = timm.create_model(timm_name(resolve(name))).eval()
    peer.load_state_dict(model.state_dict())
    copy = deit_zoo.optimize(model, compile=compile)
    return {
        "deit_zoo eager": model,
        "deit_zoo optimize, float32, eager": deit_zoo.optimize(model, "float32", compile=False),
        f"deit_zoo optimize, {copy.choices()}": copy,
        TIMM: peer,
    }


def seconds_of(run: Callable[..., Any], images: torch.Tensor, calls: int) -> float:
    """The processor's seconds of a call."""
    started = time.process_time()
    for _ in range(calls):
        run(images)
    return (time.process_time() - started) / calls


def main() -> None:
    """Measure, print, write."""
    arguments = arguments_of(__doc__, rounds=9, more=options)
    torch.set_num_threads(arguments.threads)
    torch.empty(FREED, dtype=torch.uint8)  # the memory that is freed stays with all alike
    rows: list[dict[str, Any]] = []
    ratios: dict[str, dict[str, float]] = {}
    for name in arguments.models:
        runs = contestants(name, compile=False if arguments.no_compile else "auto")
        for batch in arguments.batch_sizes:
            side = resolve(name).img_size
            images = torch.randn(batch, 3, side, side)
            case = f"{name}, {side} px, batch {batch}, float32"
            times: dict[str, list[float]] = {label: [] for label in runs}
            with torch.inference_mode():
                for run in runs.values():
                    run(images)  # compiled here, where it is
                calls = max(1, round(SECONDS / seconds_of(runs[TIMM], images, 1)))
                for number in range(arguments.rounds):
                    order = [*runs][number % len(runs) :] + [*runs][: number % len(runs)]
                    for label in order:
                        times[label].append(seconds_of(runs[label], images, calls))
            for label, seconds in times.items():
                who, _, mode = label.partition(" ")
                ratio = median(b / a for a, b in zip(seconds, times[TIMM], strict=True))
                rows.append(
                    {
                        "model": name,
                        "img_size": [side, side],
                        "batch_size": batch,
                        "precision": "float32",
                        "who": who,
                        "mode": mode,
                        "p50_ms": 1000 * median(seconds),
                        "images_per_second": batch / median(seconds),
                    }
                )
                if who != "timm":
                    ratios[f"{case}: {mode}"] = {TIMM: ratio}
                print(f"{case:42} {label:70} {1000 * median(seconds):9.1f} ms {ratio:7.3f}")
    write(arguments, rows, ratios)


if __name__ == "__main__":
    main()
