"""Classifying a folder: reading alone, the model alone, one after the other, and both together.

    python benchmarks/classify.py [ROUNDS] [--threads N] [--model deit_tiny] [--images N]

Reading is decoding and preparing; with as many threads as classify starts, one for each core. The
model takes --threads of torch. "One after the other" reads a batch, image by image, and then shows
it to the model. Where both work on the same cores, the two times add up, so the whole is also
compared with that sum. Rounds are interleaved, medians are printed. The weights are random: what a
model costs does not depend on them.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sklearn.datasets
import torch
from measuring import arguments_of, write
from PIL import Image

import deit_zoo
from deit_zoo.data.prefetch import default_threads, prefetch
from deit_zoo.data.transforms import EvalTransform, as_tensor
from deit_zoo.inference.classify import predictions
from deit_zoo.inference.throughput import FREED
from deit_zoo.models.model import ZooModel
from harness.timing import rotated

BATCH_SIZE = 32  # as classify takes it
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZE = (500, 375)
READING, MODEL = "reading alone", "model alone"
IN_TURN, TOGETHER = "one after the other", "together"


def write_photographs(folder: Path, count: int, quality: int = 90) -> list[Path]:
    """JPEG files cut from the two photographs that scikit-learn ships."""
    shipped = Path(sklearn.datasets.__file__).parent / "images"
    whole = [Image.open(shipped / name).convert("RGB") for name in ("china.jpg", "flower.jpg")]
    draw = random.Random(0)
    files = [folder / f"{number:06d}.jpg" for number in range(count)]
    for number, file in enumerate(files):
        width = draw.randint(500, 560)
        height = width * SIZE[1] // SIZE[0]
        image = whole[number % 2]
        left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
        cut = image.crop((left, top, left + width, top + height))
        cut.resize(SIZE, Image.Resampling.BICUBIC).save(file, quality=quality)
    return files


def ways(
    files: list[Path], model: ZooModel, prepare: EvalTransform, threads: int
) -> dict[str, Callable[[], None]]:
    """What is measured, each over all files."""

    def read(file: Path) -> torch.Tensor:
        return as_tensor(file, prepare.pixels)

    pixels = [read(file) for file in files]
    starts = range(0, len(files), BATCH_SIZE)

    def reading() -> None:
        with prefetch(files, read, batch_size=BATCH_SIZE, threads=threads) as batches:
            for _ in batches:
                pass

    def looking() -> None:
        for start in starts:
            predictions(model, pixels[start : start + BATCH_SIZE], 5)

    def in_turn() -> None:
        for start in starts:
            predictions(model, [read(file) for file in files[start : start + BATCH_SIZE]], 5)

    def together() -> None:
        deit_zoo.classify(files, model, workers=threads)

    return {READING: reading, MODEL: looking, IN_TURN: in_turn, TOGETHER: together}


def seconds_of(act: Callable[[], None]) -> float:
    """Wall time of one pass over all files."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def main() -> None:
    """Measure, print a table, and write it where asked."""
    arguments = arguments_of(__doc__, more=_more)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = deit_zoo.create(arguments.model, device=DEVICE)
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = write_photographs(Path(folder), arguments.images)
        acts = ways(files, model, deit_zoo.transform(model), arguments.workers)
        torch.empty(FREED, dtype=torch.uint8)  # the memory that is freed stays with all alike
        for act in acts.values():
            act()
        for number in range(arguments.rounds):
            for what in rotated(list(acts), number):
                times.setdefault(what, []).append(seconds_of(acts[what]))
    rates = {what: len(files) / statistics.median(times[what]) for what in acts}
    ratios = compared(times)
    where = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    print(
        f"{arguments.model} on {where}, {os.cpu_count()} cores, {torch.get_num_threads()} threads "
        f"of torch, {arguments.workers} that read; {len(files)} JPEGs of {SIZE[0]}x{SIZE[1]}"
    )
    for what, rate in rates.items():
        print(f"{what:24}{rate:8.1f} images/s")
    for what, ratio in ratios.items():
        print(f"{what:48}{ratio:8.3f}")
    rows = [{"what": what, "images_per_second": rate} for what, rate in rates.items()]
    read = {"model": arguments.model, "workers": arguments.workers, "num_images": len(files)}
    write(arguments, rows, ratios, **read)


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="deit_tiny")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--workers", type=int, default=default_threads())


def compared(times: dict[str, list[float]]) -> dict[str, float]:
    """Medians, over the rounds, of the speed of both together beside each measure of a round."""
    rounds = [dict(zip(times, spent, strict=True)) for spent in zip(*times.values(), strict=True)]

    def ratio(of: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(of(one) / one[TOGETHER] for one in rounds)

    return {
        "together / slower of the two alone": ratio(lambda one: max(one[READING], one[MODEL])),
        "together / both on the same cores": ratio(lambda one: one[READING] + one[MODEL]),
        "together / one after the other": ratio(lambda one: one[IN_TURN]),
    }


if __name__ == "__main__":
    main()
