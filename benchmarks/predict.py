"""One call at a time in bfloat16: ours plain and optimized, timm's eager and compiled, in turn.

    python benchmarks/predict.py [ROUNDS] [--models NAME ...] [--batch-sizes N ...] [--json FILE]

On a GPU where there is one. Each call is waited for, as one who answers a request must. Weights are
random, as speed does not depend on them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from statistics import median, quantiles
from typing import Any

import timm
import torch
from measuring import arguments_of, write
from torch import Tensor

import deit_zoo
from deit_zoo.registry import resolve
from harness.backends import timm_name

MODELS = ("deit_small", "deit_base", "cait_xxs24_224")
SECONDS = 0.25  # of each turn
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KIND = torch.bfloat16
OURS, BEST_PEER = ("deit_zoo", "optimized"), ("timm", "compiled")


def options(parser: argparse.ArgumentParser) -> None:
    """What this script has of its own."""
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=(1, 256))


def networks(name: str) -> Iterator[tuple[tuple[str, str], Callable[[Tensor], Tensor]]]:
    """Who and how, and what is called."""
    model = deit_zoo.create(name, device=DEVICE).eval()
    peer: Any = timm.create_model(timm_name(resolve(name))).to(DEVICE, KIND).eval()
    yield ("deit_zoo", "plain"), deit_zoo.create(name, device=DEVICE, dtype=KIND).eval()
    yield ("timm", "eager"), peer
    yield ("deit_zoo", "optimized, eager"), deit_zoo.optimize(model, KIND, compile=False)
    yield OURS, deit_zoo.optimize(model, KIND)
    yield BEST_PEER, torch.compile(peer, dynamic=False)


def seconds_of(network: Callable[[Tensor], Tensor], images: Tensor) -> list[float]:
    """The seconds of each call of a turn."""
    calls: list[float] = []
    until = time.perf_counter() + SECONDS
    while time.perf_counter() < until or len(calls) < 2:
        started = time.perf_counter()
        network(images)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        calls.append(time.perf_counter() - started)
    return calls


def measure(name: str, batch: int, rounds: int) -> dict[tuple[str, str], list[list[float]]]:
    """The seconds of each call, by who and how, and by round."""
    side = resolve(name).img_size
    images = torch.randn(batch, 3, side, side, device=DEVICE, dtype=KIND)
    with torch.inference_mode():
        calls = dict(networks(name))
        for network in calls.values():
            for _ in range(3):  # compiled here, where it is
                network(images)
        turns = [
            {key: seconds_of(network, images) for key, network in calls.items()}
            for _ in range(rounds)
        ]
    return {key: [turn[key] for turn in turns] for key in calls}


def main() -> None:
    """Measure, print, write."""
    arguments = arguments_of(__doc__, rounds=5, more=options)
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, dict[str, float]] = {}
    for name in arguments.models:
        side = resolve(name).img_size
        for batch in arguments.batch_sizes:
            rounds = measure(name, batch, arguments.rounds)
            case = f"{name}, {side} px, batch {batch}, bfloat16"
            ours = [median(calls) for calls in rounds[OURS]]
            ratios[f"{case}: optimized"] = {}
            for (who, mode), turns in rounds.items():
                calls = sorted(second for turn in turns for second in turn)
                facts = {"model": name, "img_size": [side, side], "batch_size": batch}
                row = facts | {
                    "precision": "bfloat16",
                    "who": who,
                    "mode": mode,
                    "p50_ms": 1000 * median(calls),
                    "p95_ms": 1000 * quantiles(calls, n=20)[-1],
                    "images_per_second": batch / median(calls),
                    "share_of_peak": None,
                }
                rows.append(row)
                ratio = median(median(turn) / our for turn, our in zip(turns, ours, strict=True))
                if (who, mode) != OURS:
                    ratios[f"{case}: optimized"][f"{who} {mode}"] = ratio
                print(f"{case:44} {who} {mode:18} {row['p50_ms']:9.2f} ms {ratio:7.3f}")
            torch.compiler.reset()
    write(arguments, rows, ratios, device=str(DEVICE))


if __name__ == "__main__":
    main()
