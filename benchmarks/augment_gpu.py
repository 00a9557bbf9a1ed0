"""What a device does to a batch of images for training, after a worker cut them out.

    PYTHONPATH=. python benchmarks/augment_gpu.py [ROUNDS] [--device cuda] [--images N]

Resizing, flipping, RandAugment, normalising and erasing, with the recipe of DeiT-S, of 128 images
of sizes as ImageNet's. A call is timed by the GPU's own events, behind other work, as it runs while
a model trains; a share of a training step is by the measured speed of one. Then come the pixels of
1,000 images, also of rare sizes, beside Pillow's, and each kernel by the profiler. What fails says
so and stops nothing else. On a CPU torch operations do the same to a few small images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measuring import arguments_of, device_options, write
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from deit_zoo.augment import record
from deit_zoo.augment.device import finish
from deit_zoo.recipes.deit import DEIT_SMALL
from deit_zoo.training.timm_bridge import TrainAugment, train_augment
from harness.slots import RARE_SIZES, SIZES, batches, by_pillow, drawn_slot
from harness.workers import wait_for_turn

STEP = Path(__file__).parent / "results" / "gpu_train_step.json"
BATCH = {"cuda": 128, "cpu": 4}
IMG_SIZE = {"cuda": 224, "cpu": 32}
NUM_BATCHES = 4  # of other draws

Row = dict[str, Any]


class Batch:
    """Images of one slot, on a device, and where they are finished."""

    def __init__(self, augment: TrainAugment, drawn: Any, device: str) -> None:
        slot, self.rows = drawn_slot(drawn, augment)
        self.slot = slot.to(device)
        shape = len(drawn), 3, *augment.img_size
        self.images = torch.full(shape, torch.nan, device=device)

    def finish(self) -> None:
        """As training calls it; returns before a GPU has done it."""
        finish(self.slot, self.rows, self.images)


class Busy:
    """Work that keeps a GPU busy for some milliseconds: what follows does not wait for us."""

    def __init__(self, device: str) -> None:
        self.work = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)

    def ms_of(self, call: Callable[[], None]) -> tuple[float, float]:
        """Of a call: the GPU's milliseconds, and the CPU's."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(6):
            self.work @ self.work
        start.record()
        began = time.perf_counter()
        call()
        taken = time.perf_counter() - began
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end), 1000 * taken


def ms_of(call: Callable[[], None]) -> tuple[float, float]:
    """On a CPU both are one."""
    began = time.perf_counter()
    call()
    taken = 1000 * (time.perf_counter() - began)
    return taken, taken


def whole(given: list[Batch], rounds: int, device: str) -> Iterator[Row]:
    """A batch, on the GPU and of the CPU that launches it."""
    began = time.perf_counter()
    given[0].finish()
    given[0].images.sum().item()
    print(f"first batch, kernels compiled: {time.perf_counter() - began:.1f} s", flush=True)
    for batch in given:
        batch.finish()
    measure = Busy(device).ms_of if device == "cuda" else ms_of
    times = [measure(batch.finish) for _ in range(rounds) for batch in given]
    of_gpu, of_cpu = (statistics.median(column) for column in zip(*times, strict=True))
    images = len(given[0].images)
    bytes_of_crops = statistics.mean(
        float((batch.rows[:, record.HEIGHT] * batch.rows[:, record.WIDTH] * 3).mean())
        for batch in given
    )
    print(f"crops of {bytes_of_crops / 1000:.0f} kB", flush=True)
    yield row_of(f"{images} images", of_gpu, images)
    yield {"what": f"launching {images} images, on the CPU", "ms": of_cpu}


def row_of(what: str, ms: float, images: int) -> Row:
    """What a batch takes, and its share of a compiled training step of DeiT-S."""
    step = next(
        row["images_per_second"]
        for row in json.loads(STEP.read_text(encoding="utf-8"))["rows"]
        if (row["model"], row["who"]) == ("deit_small", "deit_zoo, compiled")
    )
    speed = 1000 * images / ms
    share = step / speed if torch.cuda.is_available() else None
    return {"what": what, "ms": ms, "images_per_second": speed, "share_of_step": share}


def kernels(given: list[Batch]) -> Iterator[Row]:
    """The kernels of a batch by the profiler, the longest first."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for batch in given:
            batch.finish()
        torch.cuda.synchronize()
    times: dict[str, float] = defaultdict(float)
    for event in profiled.events():
        times[event.name] += event.device_time_total / 1000 / len(given)
    for name, ms in sorted(times.items(), key=lambda one: -one[1])[:12]:
        if ms == 0:  # the profiler also lists what took no time of the GPU
            continue
        yield row_of(name[:40], ms, len(given[0].images))


def pixels(augment: TrainAugment, images: int, device: str) -> str:
    """How many of the images are Pillow's in every bit; some that are not are printed."""
    equal = 0
    for drawn in batches(augment, images, min(images, 125), (*SIZES, *RARE_SIZES)):
        batch = Batch(augment, drawn, device)
        batch.finish()
        equal += num_equal(batch, by_pillow(drawn, augment))
    if equal < images:
        raise ValueError(f"{equal:,} of {images:,} images are Pillow's in every bit")
    return f"{equal:,} of {images:,} images are Pillow's in every bit."


def num_equal(batch: Batch, expected: Tensor) -> int:
    """How many images of a batch are as expected; of the others the first few are printed."""
    found = batch.images.cpu()
    differs = (found != expected).flatten(1).double().mean(1)
    for place in differs.nonzero().flatten()[:5].tolist():
        words = batch.rows[place]
        operations = words[record.FIRST_LAYER :: record.LAYER]
        worst = (found[place] - expected[place]).abs().max().item()
        print(
            f"differs in {differs[place]:.4%}, at most by {worst:.4f}: "
            f"{words[record.HEIGHT]}x{words[record.WIDTH]}, flip {words[record.FLIP]}, "
            f"{[record.OPERATIONS[number] for number in operations if number >= 0]}",
            flush=True,
        )
    return int((differs == 0).sum())


def options(parser: argparse.ArgumentParser) -> None:
    """What this script has of its own."""
    device_options(parser)
    parser.add_argument("--images", type=int, default=None, help="beside Pillow's")


def main() -> None:
    """Measure, print each figure at once, write after each part; 1 where one failed."""
    arguments = arguments_of(__doc__, rounds=20, more=options)
    if arguments.wait:
        wait_for_turn([])
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    augment = train_augment(replace(DEIT_SMALL, img_size=IMG_SIZE[device]))

    def batches_of(count: int) -> list[Batch]:
        return [
            Batch(augment, drawn, device) for drawn in batches(augment, NUM_BATCHES * count, count)
        ]

    given = batches_of(BATCH[device])
    rows: list[Row] = []
    failed: list[dict[str, str]] = []
    more: dict[str, Any] = {"failed": failed}

    def attempt(part: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # whatever a GPU makes of a kernel
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            failed.append({"model": part, "who": device, "reason": reason})
            print(f"{part}: {reason}", flush=True)
            traceback.print_exc()
        write(arguments, rows, {}, name="augment", device=device, **more)

    def keep(found: Iterator[Row]) -> None:
        for row in found:
            line = f"{row['what']:40}{row['ms']:>10.3f} ms"
            if speed := row.get("images_per_second"):
                line += f"{speed:>12,.0f} images/s"
            if share := row.get("share_of_step"):
                line += f"{share:>8.2%} of a step"
            print(line, flush=True)
            rows.append(row)

    def compare() -> None:
        images = arguments.images or (1000 if device == "cuda" else 26)
        more["note"] = pixels(augment, images, device)
        print(more["note"], flush=True)

    attempt("time", lambda: keep(whole(given, arguments.rounds, device)))
    if device == "cuda":  # as many as a worker fills a slot with
        attempt("slots", lambda: keep(whole(batches_of(64), arguments.rounds, device)))
    attempt("pixels", compare)
    if device == "cuda":
        attempt("kernels", lambda: keep(kernels(given)))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
