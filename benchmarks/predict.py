"""One call at a time in bfloat16: ours plain and optimized, timm's eager and compiled, in turn.

    python benchmarks/predict.py [ROUNDS] [--models NAME ...] [--batch-sizes N ...] [--json FILE]

On a GPU where there is one. Each call is waited for, as one who answers a request must. Weights are
random, as speed does not depend on them. Each side is a process; all get ready at once, then they
take turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from statistics import median, quantiles
from typing import Any

import timm
import torch
from measuring import arguments_of, device_options, write
from torch import Tensor

import deit_zoo
from deit_zoo.inference.throughput import OURS
from deit_zoo.registry.names import resolve
from harness.backends import timm_name
from harness.timing import ChildError, ratio_of_medians, rotated
from harness.workers import Worker, in_order_of_readiness, reason, wait_for_turn

MODELS = ("deit_small", "deit_base", "cait_s24_224")
KIND = torch.bfloat16
BEST = {True: "optimized", False: "optimized, eager"}  # of ours, compiled or not
Key = tuple[str, str, int]  # who, in which mode, the batch


def options(parser: argparse.ArgumentParser) -> None:
    """What this script has of its own."""
    device_options(parser)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=(1, 32, 256))
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--seconds", type=float, default=0.25, help="of each turn")


def networks(
    who: str, name: str, device: str, compiled: bool
) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """How one side is called, and what."""
    if who == OURS:
        model = deit_zoo.create(name, device=device).eval()
        yield "plain", deit_zoo.create(name, device=device, dtype=KIND).eval()
        yield BEST[False], deit_zoo.optimize(model, KIND, compile=False)
        if compiled:
            yield BEST[True], deit_zoo.optimize(model, KIND)
        return
    peer: Any = timm.create_model(timm_name(resolve(name))).to(device, KIND).eval()
    yield "eager", peer
    if compiled:
        yield "compiled", torch.compile(peer, dynamic=False)


def side(task: dict[str, Any]) -> tuple[Any, Callable[[str, int, float], list[float]]]:
    """One side of a model in each mode and at each batch size, warmed up; and its turns.

    What fails is left out with its reason.
    """
    device, size = task["device"], resolve(task["model"]).img_size
    torch.set_num_threads(task["threads"])
    calls: dict[str, Callable[[Tensor], Tensor]] = {}
    facts: list[dict[str, Any]] = []
    for mode, network in networks(task["who"], task["model"], device, task["compiled"]):
        calls[mode] = network
        for batch in task["batch_sizes"]:
            fact: dict[str, Any] = {"mode": mode, "batch_size": batch}
            facts.append(fact)
            try:
                turn_of(network, pixels(batch, size, device), 0.0)  # compiled here, where it is
            except Exception as error:  # whatever a compiler makes of a model
                fact["failed"] = reason(error)

    def turn(mode: str, batch: int, seconds: float) -> list[float]:
        return turn_of(calls[mode], pixels(batch, size, device), seconds)

    return facts, turn


def pixels(batch: int, size: int, device: str) -> Tensor:
    """Images as they come from a transform, on the device."""
    return torch.randn(batch, 3, size, size, device=device, dtype=KIND)


@torch.inference_mode()
def turn_of(network: Callable[[Tensor], Tensor], images: Tensor, seconds: float) -> list[float]:
    """The seconds of each call of a turn, after three that do not count."""
    synchronize: Callable[[], None] = torch.cuda.synchronize if images.is_cuda else lambda: None
    for _ in range(3):
        network(images)
    synchronize()
    calls: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(calls) < 2:
        started = time.perf_counter()
        network(images)
        synchronize()
        calls.append(time.perf_counter() - started)
    return calls


def measured(
    pair: dict[str, Worker], rounds: int, seconds: float
) -> tuple[dict[Key, list[list[float]]], dict[tuple[str, str], str]]:
    """The seconds of each call by round, and why some failed, by who and what."""
    failed = {(who, "all"): worker.error for who, worker in pair.items() if worker.error}
    times: dict[Key, list[list[float]]] = {}
    for who, worker in pair.items():
        for fact in worker.ready or []:
            key = (who, fact["mode"], fact["batch_size"])
            if "failed" in fact:
                failed[who, f"{key[1]}, batch {key[2]}"] = fact["failed"]
            else:
                times[key] = []
    for batch in sorted({batch for _, _, batch in times}):
        for number in range(rounds):
            alike = [key for key in times if key[2] == batch]
            for who, mode, _ in rotated(alike, number) if alike else ():
                try:
                    times[who, mode, batch].append(pair[who].ask(mode, batch, seconds))
                except ChildError as error:
                    failed[who, f"{mode}, batch {batch}"] = str(error)
                    del times[who, mode, batch]
    return times, failed


def main() -> None:
    """Measure, print, write after each model."""
    arguments = arguments_of(__doc__, rounds=5, more=options)
    compiled = not arguments.no_compile
    task = {
        "device": arguments.device,
        "threads": arguments.threads,
        "batch_sizes": list(arguments.batch_sizes),
        "compiled": compiled,
    }
    workers = {
        name: {
            who: Worker("predict:side", task | {"model": name, "who": who})
            for who in (OURS, "timm")
        }
        for name in arguments.models
    }
    if arguments.wait:
        wait_for_turn([one for pair in workers.values() for one in pair.values()])
    rows: list[dict[str, Any]] = []
    ratios: dict[str, dict[str, float]] = {}
    failed: list[dict[str, str]] = []
    for name in in_order_of_readiness(arguments.models, lambda name: list(workers[name].values())):
        times, reasons = measured(workers[name], arguments.rounds, arguments.seconds)
        failed += [
            {"model": name, "who": f"{who} {what}", "reason": text}
            for (who, what), text in reasons.items()
        ]
        for (who, mode, batch), rounds in times.items():
            row = row_of(name, who, mode, batch, rounds)
            rows.append(row)
            ours = times.get((OURS, BEST[compiled], batch))
            case = f"{name}, {row['img_size'][0]} px, batch {batch}, bfloat16"
            text = ""
            if ours is not None and (who, mode) != (OURS, BEST[compiled]):
                ratio = ratio_of_medians(ours, rounds)
                ratios.setdefault(f"{case}: optimized", {})[f"{who} {mode}"] = ratio
                text = f"{ratio:7.3f}"
            print(f"{case:44} {who} {mode:18} {row['p50_ms']:9.2f} ms {text}", flush=True)
        write(arguments, rows, ratios, device=arguments.device, failed=failed)
    for one in failed:
        print(f"{one['model']}, {one['who']}: {one['reason']}")


def row_of(name: str, who: str, mode: str, batch: int, rounds: list[list[float]]) -> dict[str, Any]:
    """What one entry of a case took."""
    size = resolve(name).img_size
    calls = sorted(second for turn in rounds for second in turn)
    return {
        "model": name,
        "img_size": [size, size],
        "batch_size": batch,
        "precision": "bfloat16",
        "who": who,
        "mode": mode,
        "p50_ms": 1000 * median(calls),
        "p95_ms": 1000 * quantiles(calls, n=20)[-1],
        "images_per_second": batch / median(calls),
        "share_of_peak": None,
    }


if __name__ == "__main__":
    main()
