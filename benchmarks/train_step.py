"""A training step of ours beside a plain timm loop: images per second, share of the device's peak.

    python benchmarks/train_step.py [ROUNDS] [--models deit_small] [--batch N] [--json FILE]

Both sides take the same batch through mixup, forward, backward and AdamW, in the same precision
(bf16 on a GPU, float32 on the CPU), with and without torch.compile; the loop of ours is the one
that trains, with its skipped-step check and its draws. Rounds are interleaved, medians are printed.
The peak is that of a large matrix product in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import repeat
from typing import Any

import timm
import torch
from measuring import arguments_of, write
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from torch import Tensor

import deit_zoo
from deit_zoo.distributed import DistributedContext
from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.plan import Plan
from deit_zoo.registry import resolve
from deit_zoo.training.loop import StepResult, train_one_epoch
from deit_zoo.training.trainer import build_train_state
from harness.backends import timm_name

SECONDS = 3.0
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MODELS = ("deit_tiny", "deit_small", "deit_base", "cait_xxs24_224", "cait_s24_224")


def ours(name: str, batch: int, img_size: int, compiled: bool) -> Callable[[int], int]:
    """Steps of the loop that trains, on one batch."""
    recipe = replace(
        RECIPES[name],
        batch_size=batch,
        replicas=1,
        img_size=img_size,
        distillation="none",  # a teacher would be measured too
        teacher=None,
    )
    plan = Plan(
        recipe=recipe,
        modified=True,
        device=DEVICE.type,
        processes=1,
        workers=0,
        num_images=batch,
        compile=compiled,
    )
    model = deit_zoo.create(
        name, img_size=img_size, drop_path_rate=recipe.drop_path_rate, device=DEVICE
    )
    parts = build_train_state(plan, model, None, DistributedContext(device=DEVICE))
    images, labels = data(batch, img_size)
    none_bad = torch.zeros(batch, dtype=torch.long)

    def run(steps: int) -> int:
        epoch = replace(plan, num_images=steps * batch)
        train_one_epoch(parts, epoch, 0, repeat((images, labels, none_bad)), shown)
        return epoch.steps_per_epoch

    return run


def shown(_step: StepResult) -> None:
    """What follows a step; nothing here."""


def timms(name: str, batch: int, img_size: int, compiled: bool) -> Callable[[int], int]:
    """A plain loop with timm's model, mixup, loss and optimizer."""
    rate = RECIPES[name].drop_path_rate
    model: Any = timm.create_model(timm_name(resolve(name)), img_size=img_size, drop_path_rate=rate)
    model.to(DEVICE)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    mix = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=1000)
    criterion = SoftTargetCrossEntropy()
    network = torch.compile(model) if compiled else model
    images, labels = data(batch, img_size)

    def run(steps: int) -> int:
        model.train()
        for _ in range(steps):
            x, y = images.to(DEVICE, non_blocking=True), labels.to(DEVICE, non_blocking=True)
            x, y = mix(x, y)
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
                loss = criterion(network(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return steps

    return run


def data(batch: int, img_size: int) -> tuple[Tensor, Tensor]:
    """One batch in memory, pinned where that helps."""
    images, labels = torch.randn(batch, 3, img_size, img_size), torch.randint(1000, (batch,))
    return (images.pin_memory(), labels.pin_memory()) if DEVICE.type == "cuda" else (images, labels)


def seconds_of(act: Callable[[int], int], steps: int) -> float:
    """Seconds per step, of about so many."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    steps = act(steps)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / steps


def peak() -> float:
    """Operations per second of a large matrix product in the precision of training."""
    side = 8192 if DEVICE.type == "cuda" else 2048
    kind = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    a, b = (torch.randn(side, side, device=DEVICE, dtype=kind) for _ in range(2))

    def multiply(times: int) -> int:
        for _ in range(times):
            a @ b
        return times

    multiply(3)
    return 2 * side**3 / min(seconds_of(multiply, 10) for _ in range(3))


def sides(name: str, batch: int, img_size: int, compiles: list[bool]) -> Iterator[tuple[str, Any]]:
    """Each side in each mode, warmed up."""
    for compiled in compiles:
        for whose, make in (("deit_zoo", ours), ("timm", timms)):
            act = make(name, batch, img_size, compiled)
            act(3)
            yield f"{whose}{', compiled' if compiled else ''}", act


def options(parser: argparse.ArgumentParser) -> None:
    """What this script has of its own."""
    parser.add_argument("--models", nargs="+", default=None, choices=MODELS)
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--img-size", type=int, default=None)
    parser.add_argument("--no-compile", action="store_true")


def main() -> None:
    """Measure, and print a table for each model."""
    arguments = arguments_of(__doc__, more=options)
    torch.set_num_threads(arguments.threads)
    gpu = DEVICE.type == "cuda"
    models = arguments.models or (["deit_small", "deit_base"] if gpu else ["deit_tiny"])
    img_size = arguments.img_size or (224 if gpu else 64)
    batch = arguments.batch or (128 if gpu else 8)
    if gpu:
        torch.set_float32_matmul_precision("high")
    highest = peak()
    where = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}; batch {batch}, {img_size} px; matrix product {highest / 1e12:.2f} TFLOP/s")
    rows: list[dict[str, Any]] = []
    ratios: dict[str, dict[str, float]] = {}
    for name in models:
        acts = dict(
            sides(name, batch, img_size, [False] if arguments.no_compile else [False, True])
        )
        pace = {key: max(1, int(SECONDS / seconds_of(act, 2))) for key, act in acts.items()}
        times: dict[str, list[float]] = {key: [] for key in acts}
        for _ in range(arguments.rounds):
            for key, act in acts.items():
                times[key].append(seconds_of(act, pace[key]))
        ratios[name] = {}
        for row in report(name, batch, img_size, times, highest):
            ratios[name][row["who"]] = row.pop("ratio")
            rows.append(row)
    precision = "bfloat16" if gpu else "float32"
    write(arguments, rows, ratios, device=str(DEVICE), precision=precision)


def report(
    name: str, batch: int, img_size: int, times: dict[str, list[float]], highest: float
) -> Iterator[dict[str, Any]]:
    """The table of one model, printed, and its rows."""
    macs = deit_zoo.info(name).gmacs * 1e9 * (img_size / 224) ** 2
    print(f"\n{name}\n{'':24}{'img/s':>10}{'of peak':>10}{'of timm':>10}")
    for key, seconds in times.items():
        speed = batch / statistics.median(seconds)
        share = 3 * 2 * macs * speed / highest
        theirs = times[key.replace("deit_zoo", "timm")]
        ratio = statistics.median(their / our for our, their in zip(seconds, theirs, strict=True))
        print(f"{key:24}{speed:>10.1f}{share:>10.1%}{ratio:>10.3f}")
        facts = {"model": name, "img_size": [img_size, img_size], "batch_size": batch, "who": key}
        yield facts | {"images_per_second": speed, "share_of_peak": share, "ratio": ratio}


if __name__ == "__main__":
    main()
