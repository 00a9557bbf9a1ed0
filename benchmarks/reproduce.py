"""Whole runs of `deit-zoo reproduce`: the digits to their verdict, or some epochs of DeiT-S.

    python benchmarks/reproduce.py digits|epoch [--device cuda] [--tiny] [--json FILE]

The epochs are of JPEG files made on the spot, 500x375 pixels with as many bytes as ImageNet's
have. What the last of them took is projected to 300 epochs of ImageNet, on one GPU and, by
arithmetic, on 8 with as many cores each. Then `deit-zoo data benchmark` says what the workers have
ready by themselves, and what the model takes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from measuring import arguments_of, device_options, write
from PIL import Image

from deit_zoo.files import LOG_FILE, RECEIPT_FILE
from deit_zoo.labels import labels
from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.recipe import IMAGENET_TRAIN

SIZE, SMALL = (500, 375), (64, 48)
SCENES, FALL, QUALITY = 8, 1.3, 92  # with which a file has about 80 kB
PER_CLASS = {"train": 20, "val": 1}
# For a CPU: an image of each class, as small as a model can be.
TINY = (
    "--set epochs=1",
    "--set img_size=32",
    "--set batch_size=64",
    "--set replicas=2",
    "--workers 1",
)
NOTES = {
    "epoch": "On JPEG files of 500x375 pixels and about 80 kB, made for this. The hours on 8 GPUs "
    "are an eighth of those on one: what they take if each has as many cores as this one."
}
Report = Callable[..., None]  # of the rows so far, and what else the file holds


def digits(arguments: argparse.Namespace, report: Report) -> None:
    """The embedded digits, by the shipped recipe, to the verdict."""
    options = ["--set epochs=1"] if arguments.tiny else []
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        output = Path(folder) / "run"
        run("deit_pico_digits", arguments, output, options, lambda log: None)
        receipt = json.loads((output / RECEIPT_FILE).read_text(encoding="utf-8"))
        report(
            [
                {
                    "model": "deit_pico_digits",
                    "verdict": receipt["verdict"],
                    "top1": receipt["reached"]["top1"],
                    "epochs": receipt["plan"]["recipe"]["epochs"],
                    "seconds": time.perf_counter() - started,
                }
            ]
        )


def epoch(arguments: argparse.Namespace, report: Report) -> None:
    """Some epochs of DeiT-S on files, what the last means for ImageNet, and the loader alone."""
    model = "deit_tiny" if arguments.tiny else "deit_small"
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        started = time.perf_counter()
        few = ({"train": 1, "val": 1}, SMALL)
        size = photographs(data, *(few if arguments.tiny else (PER_CLASS, SIZE)))
        made = {"file_bytes": size, "making_seconds": time.perf_counter() - started}
        options = [f"--data {data}", *(TINY if arguments.tiny else ("--set epochs=4",))]
        images = len(list((data / "train").glob("*/*")))
        rows: list[dict[str, Any]] = []

        def on_log(log: list[dict[str, Any]]) -> None:
            rows[:] = [row_of(model, images, line) | made for line in log]
            report(rows)

        run(model, arguments, Path(folder) / "run", options, on_log)
        report(rows, loader=loader_alone(data, model, "64" if arguments.tiny else "4096"))


def loader_alone(data: Path, model: str, images: str) -> dict[str, Any]:
    """Images per second that all workers have ready, and that the model trains with."""
    command = ["data", "benchmark", str(data), "--model", model, "--images", images, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "deit_zoo", *command], capture_output=True, text=True, check=True
    )
    measured = json.loads(done.stdout)
    *_, workers = (stage for stage in measured["stages"] if stage["processes"] is not None)
    [need] = measured["models"]
    return {"workers": workers, "model": need}


def row_of(model: str, images: int, line: dict[str, Any]) -> dict[str, Any]:
    """What a line of the log says of an epoch, and the hours that a training at its pace takes."""
    hours = RECIPES[model].epochs * IMAGENET_TRAIN / line["images_per_second"] / 3600
    return {
        "model": model,
        "epoch": line["epoch"],
        "num_images": images,
        "images_per_second": line["images_per_second"],
        "data_share": line["data_seconds"] / line["seconds"],
        "seconds": line["seconds"],
        "train_loss": line["train_loss"],
        "hours_on_1_gpu": hours,
        "hours_on_8_gpus": hours / 8,
    }


def run(
    model: str,
    arguments: argparse.Namespace,
    output: Path,
    options: list[str],
    on_log: Callable[[list[dict[str, Any]]], None],
) -> None:
    """`deit-zoo reproduce`; `on_log` is called with the log whenever an epoch is done."""
    gpus = 1 if arguments.device == "cuda" else 0
    words = [word for option in options for word in option.split(" ", 1)]
    command = ["reproduce", model, "--gpus", str(gpus), "--output", str(output), *words]
    process = subprocess.Popen([sys.executable, "-m", "deit_zoo", *command])
    lines = 0
    while True:
        code = process.poll()
        log = log_of(output)
        if len(log) > lines:
            lines = len(log)
            on_log(log)
        if code is not None:
            break
        time.sleep(0.2)
    # 1 says that the figure was not reached, which so few epochs cannot.
    if code not in (0, 1) or not (output / RECEIPT_FILE).is_file():
        sys.exit(f"deit-zoo {' '.join(command)} ended with exit code {code}")


def log_of(output: Path) -> list[dict[str, Any]]:
    """The lines of the log that are whole."""
    file = output / LOG_FILE
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def photographs(data: Path, per_class: dict[str, int], size: tuple[int, int]) -> int:
    """ImageNet's folders with so many files each, made in all cores; the mean size of a file."""
    folders = [label.folder for label in labels("imagenet1k")]
    tasks = [
        (number, size, [data / split / name / f"{image}.jpg" for image in range(count)])
        for split, count in per_class.items()
        for number, name in enumerate(folders)
    ]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        sizes = list(pool.map(write_photographs, tasks, chunksize=25))
    return sum(sizes) // sum(len(files) for *_, files in tasks)


def write_photographs(task: tuple[int, tuple[int, int], list[Path]]) -> int:
    """Files of one class, and the bytes of all."""
    number, size, files = task
    generator = np.random.default_rng(number)
    scene = landscape(number % SCENES, size)
    files[0].parent.mkdir(parents=True)
    for file in files:
        left, top = (int(generator.integers(side)) for side in size)
        view = scene.crop((left, top, left + size[0], top + size[1]))
        with io.BytesIO() as stream:
            view.save(stream, "JPEG", quality=QUALITY)
            file.write_bytes(stream.getvalue())
    return sum(file.stat().st_size for file in files)


@cache
def landscape(number: int, size: tuple[int, int]) -> Image.Image:
    """Twice as wide and as high as a photograph: noise whose amplitude falls with its frequency."""
    generator = np.random.default_rng(number)
    width, height = 2 * size[0], 2 * size[1]
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(7):
        few = (width >> octave) + 1, (height >> octave) + 1
        noise = generator.integers(0, 256, (few[1], few[0], 3), np.uint8)
        wide = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        total += (np.asarray(wide, np.float32) - 128) * FALL**octave
    total *= 48 / total.std()
    return Image.fromarray((total + 128).clip(0, 255).astype(np.uint8))


RUNS: dict[str, Callable[[argparse.Namespace, Report], None]] = {"digits": digits, "epoch": epoch}


def options(parser: argparse.ArgumentParser) -> None:
    """What this script has of its own."""
    parser.add_argument("run", choices=[*RUNS])
    parser.add_argument("--tiny", action="store_true")
    device_options(parser)


def main() -> None:
    """Run, print, write."""
    arguments = arguments_of(__doc__, rounds=1, more=options)

    def report(rows: list[dict[str, Any]], **more: Any) -> None:
        print(rows[-1], more or "", flush=True)
        note = {"note": NOTES[arguments.run]} if arguments.run in NOTES else {}
        write(arguments, rows, {}, name=arguments.run, device=arguments.device, **note, **more)

    RUNS[arguments.run](arguments, report)


if __name__ == "__main__":
    main()
