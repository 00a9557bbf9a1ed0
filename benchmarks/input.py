"""What one worker of a loader does to an image, from the file to what a batch is made of.

    python benchmarks/input.py [ROUNDS] [--threads N] [--images N]

By CPU time. All read the same JPEG files under the same draws, with the recipe of DeiT-S: ours as
training does, also as if simplejpeg were not installed, and timm's chain, which leaves normalising
and erasing to the training process where its worker gives uint8. Drawing by key is counted in ours;
timm has nothing like it. Rounds are interleaved, medians are printed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from classify import SIZE, write_photographs
from measuring import arguments_of, write
from PIL import Image
from timm.data.transforms import MaybePILToTensor, RandomResizedCropAndInterpolation
from torchvision.transforms import Compose

from deit_zoo.data import jpeg
from deit_zoo.data.folder import FolderSet
from deit_zoo.recipes.deit import DEIT_SMALL as RECIPE
from deit_zoo.training.data import Key, KeyedImages
from deit_zoo.training.seeding import seed_from_key
from deit_zoo.training.timm_bridge import train_transform
from harness.timing import rotated

OURS, PILLOW_ALONE = "deit_zoo", "deit_zoo, Pillow alone"
FLOAT32, UINT8 = "timm, float32", "timm, uint8"
QUALITY = 97  # files nearly as large as ImageNet's

Act = Callable[[Key], object]


def timms(*, uint8: bool) -> Callable[[Image.Image], Any]:
    """timm's chain; of ours it has posterize alone, for timm's raises over Pillow 13."""
    parts = list(train_transform(RECIPE).transforms)  # type: ignore[attr-defined]
    crop = parts[0]
    parts[0] = RandomResizedCropAndInterpolation(crop.size, crop.scale, crop.ratio, "bicubic")
    names = [type(part).__name__ for part in parts[-3:]]
    assert names == ["MaybeToTensor", "Normalize", "RandomErasing"], names
    return Compose([*parts[:-3], MaybePILToTensor()] if uint8 else parts)


def ways(images: FolderSet) -> dict[str, Act]:
    """What is measured, each of one image."""
    ours = KeyedImages(images, train_transform(RECIPE), RECIPE.seed)

    def timm(uint8: bool) -> Act:
        transform = timms(uint8=uint8)
        return lambda key: transform(Image.open(images.path_of(key.image)).convert("RGB"))

    return {OURS: ours.__getitem__, PILLOW_ALONE: ours.__getitem__} | {
        FLOAT32: timm(False),
        UINT8: timm(True),
    }


def seconds_of(what: str, act: Act, count: int, epoch: int) -> float:
    """CPU time of all images of an epoch."""
    in_use, spent = jpeg.SIMPLEJPEG, 0.0
    if what == PILLOW_ALONE:
        jpeg.SIMPLEJPEG = None
    for image in range(count):
        key = Key(image, epoch, 0, image)
        seed_from_key(RECIPE.seed, *key[1:], "augment")
        started = time.process_time()
        act(key)
        spent += time.process_time() - started
    jpeg.SIMPLEJPEG = in_use
    return spent


def main() -> None:
    """Measure, print a table, and write it where asked."""
    arguments = arguments_of(__doc__, rounds=15, more=_more)
    torch.set_num_threads(arguments.threads)
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "class").mkdir()
        files = write_photographs(Path(folder) / "class", arguments.images, quality=QUALITY)
        size = statistics.mean(file.stat().st_size for file in files)
        acts = ways(FolderSet(Path(folder)))
        for number in range(arguments.rounds + 1):
            for what in rotated(list(acts), number):
                seconds = seconds_of(what, acts[what], len(files), number)
                if number:  # the first warms up
                    times.setdefault(what, []).append(seconds / len(files))
    medians = {what: statistics.median(times[what]) for what in acts}
    ratios = {
        what: statistics.median(
            theirs / ours for theirs, ours in zip(times[what], times[OURS], strict=True)
        )
        for what in acts
    }
    print(f"{len(files)} JPEGs of {SIZE[0]}x{SIZE[1]}, {size / 1000:.0f} kB; {jpeg.SIMPLEJPEG=}")
    for what, median in medians.items():
        print(f"{what:24}{1000 * median:8.3f} ms{1 / median:8.1f} images/s{ratios[what]:8.3f}")
    rows = [
        {"what": what, "cpu_ms": 1000 * median, "images_per_second": 1 / median}
        for what, median in medians.items()
    ]
    read = {"num_images": len(files), "bytes": size, "simplejpeg": jpeg.SIMPLEJPEG}
    write(arguments, rows, {f"{what}, to {OURS}": ratios[what] for what in acts}, **read)


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=64)


if __name__ == "__main__":
    main()
