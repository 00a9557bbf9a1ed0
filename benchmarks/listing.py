"""Before the first step: listing as many images as ImageNet has, as a folder and as an archive.

    python benchmarks/listing.py [ROUNDS] [--images N] [--classes N] [--folder DIR]

The images are hard links to one small JPEG file, or members of one tar archive with its bytes, in
DIR, which should be in memory (/dev/shm). In fresh processes: seconds of the survey, which the
first process of a run makes; then, of every process, seconds of opening the set, and of the loader
until a first batch of 64, MB that the set takes, and that the process has grown by at its highest
point. An archive is indexed by the first survey, which is said apart. Medians are printed.
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import random
import re
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measuring import arguments_of, write
from PIL import Image

from harness.timing import in_fresh_process

FOLDER, FIRST, AGAIN = "folder", "archive, first time", "archive"
IMAGENET, CLASSES = 1_281_167, 1000
SIDE = 24  # pixels
BATCH = 64


def jpeg() -> bytes:
    """A small photograph."""
    draw = random.Random(0)
    file = io.BytesIO()
    pixels = bytes(draw.randrange(256) for _ in range(3 * SIDE**2))
    Image.frombytes("RGB", (SIDE, SIDE), pixels).save(file, "JPEG")
    return file.getvalue()


def names(split: str, num_images: int, classes: int) -> list[str]:
    """Paths as ImageNet has them."""
    per_class = [num_images // classes + (c < num_images % classes) for c in range(classes)]
    return [
        f"{split}/n{10_000_000 + c:08}/n{10_000_000 + c:08}_{number}.JPEG"
        for c, count in enumerate(per_class)
        for number in range(count)
    ]


def make_folder(folder: Path, paths: list[str]) -> None:
    """A hard link for each path."""
    folder.mkdir()
    (folder / "image").write_bytes(jpeg())
    made = set()
    for path in paths:
        parent = path.rpartition("/")[0]
        if parent not in made:
            (folder / parent).mkdir(parents=True)
            made.add(parent)
        os.link(folder / "image", folder / path)


def make_archive(file: Path, paths: list[str]) -> None:
    """The same as a tar archive."""
    content = jpeg()
    with tarfile.open(file, "w") as archive:
        for path in paths:
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def memory(key: str) -> float:
    """MB of this process by Linux: VmRSS now, VmHWM at the highest point."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(rf"{key}:\s*(\d+)", status)[0]) / 1024


def survey(task: Mapping[str, Any]) -> dict[str, float]:
    """What the first process does before a run."""
    from deit_zoo.data.survey import scan

    started = time.perf_counter()
    scan(task["data"])
    return {"survey_seconds": time.perf_counter() - started}


def begin(task: Mapping[str, Any]) -> dict[str, float]:
    """What each process does until its first batch."""
    from deit_zoo.data.image_set import open_set
    from deit_zoo.recipes.deit import DEIT_SMALL
    from deit_zoo.recipes.plan import Plan
    from deit_zoo.training.data import TrainLoader
    from deit_zoo.training.timm_bridge import train_augment

    torch.set_num_threads(1)
    gc.collect()
    before, started = memory("VmRSS"), time.perf_counter()
    images = open_set(task["data"], "train")
    opening = time.perf_counter() - started
    gc.collect()
    of_set = memory("VmRSS") - before
    recipe = replace(DEIT_SMALL, batch_size=BATCH)
    plan = Plan(
        recipe=recipe, modified=True, device="cpu", processes=1, workers=1, num_images=len(images)
    )
    started = time.perf_counter()
    loader = TrainLoader(images, train_augment(recipe), plan, range(recipe.replicas))
    with closing(loader):
        next(loader.epoch(0))
    return {
        "open_seconds": opening,
        "batch_seconds": time.perf_counter() - started,
        "set_mb": of_set,
        "grown_mb": memory("VmHWM") - before,
    }


def main() -> None:
    """Make the files, measure, print a table, and write it where asked."""
    arguments = arguments_of(__doc__, rounds=3, more=_more)
    paths = names("train", arguments.images, arguments.classes)
    paths += names("val", arguments.classes, arguments.classes)
    rounds: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        folder, archive = Path(place) / "folder", Path(place) / "images.tar"
        os.environ["DEIT_ZOO_CACHE"] = str(Path(place) / "cache")
        make_folder(folder, paths)
        for _ in range(arguments.rounds):
            rounds.setdefault(FOLDER, []).append(begun(folder))
        shutil.rmtree(folder)
        make_archive(archive, paths)
        for number in range(arguments.rounds + 1):
            rounds.setdefault(AGAIN if number else FIRST, []).append(begun(archive))
    rows = [
        {"what": what, **{key: statistics.median(one[key] for one in all_) for key in all_[0]}}
        for what, all_ in rounds.items()
    ]
    print(f"{'':20}  survey s    open s   batch s    set MB  grown MB")
    for row in rows:
        what, *figures = row.values()
        print(f"{what:20}" + "".join(f"{figure:10.2f}" for figure in figures))
    write(arguments, rows, {}, num_images=arguments.images)


def begun(data: Path) -> dict[str, float]:
    """Both, each in a fresh process."""
    task = {"data": str(data)}
    return in_fresh_process("listing:survey", task) | in_fresh_process("listing:begin", task)


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=IMAGENET)
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--folder", type=Path, default="/dev/shm")


if __name__ == "__main__":
    main()
