"""Loaders of training images, each with one worker process: what an image costs, by CPU time.

    python benchmarks/input.py [ROUNDS] [--threads N] [--images N]

From JPEG files to the batches of DeiT-S. An epoch's CPU time (user and system) is read from the
clocks of the worker and of the training process, start-up left out, over the images delivered.
Loaders take turns, figures are medians, a ratio is the median of the ratios of each round.

  timm       a DataLoader with timm's transform and collate for its prefetcher: the worker gives
             uint8; normalising and erasing are left to the GPU
  before     this project's loader before there was a ring: float32 items, collated by default
  deit_zoo   `TrainLoader.filled`: crops that a GPU resizes and augments, or (Pillow) the workers
             do; with the recipe's three repeats, and without

Of the training process that is what receives a batch, as on a machine with a GPU: the copy there is
the GPU's own work, out of pinned memory, for deit_zoo; for the others a copy into pinned memory
would have to be added. Starting copies and kernels is counted for none. `copied` is deit_zoo's with
a copy of each slot by the processor.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import torch
from classify import SIZE, write_photographs
from measuring import arguments_of, write
from timm.data import create_transform
from timm.data.auto_augment import RandAugment
from timm.data.loader import fast_collate
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from deit_zoo.augment.record import BAD, LABEL
from deit_zoo.data import jpeg
from deit_zoo.data.folder import FolderSet
from deit_zoo.recipes.deit import DEIT_SMALL as RECIPE
from deit_zoo.recipes.plan import Plan
from deit_zoo.recipes.recipe import IMAGENET_TRAIN
from deit_zoo.training.data import TrainLoader
from deit_zoo.training.places import EpochPlaces, Key, epoch_order
from deit_zoo.training.seeding import seed_from_key
from deit_zoo.training.timm_bridge import train_augment, train_transform
from harness.timing import rotated

TIMM, BEFORE = "timm", "before"
CROPS, CROPS_ONCE = "deit_zoo, 3 repeats", "deit_zoo, no repeats"
COPIED = "deit_zoo, 3 repeats, copied"
PILLOW, PILLOW_ONCE = "deit_zoo, Pillow, 3 repeats", "deit_zoo, Pillow, no repeats"
QUALITY = 97  # files nearly as large as ImageNet's
BATCH = 128  # of a process: 8 of them make the recipe's step
NODE = 8

Epoch = Callable[[int], None]  # takes all images of an epoch from a loader


class KeyedImages(Dataset[Any]):
    """The items of the loader before: a key seeds the augmentation of its image."""

    def __init__(self, images: FolderSet) -> None:
        self.images = images
        self.transform = train_transform(RECIPE)

    def __getitem__(self, key: Key) -> tuple[Any, int, int]:
        seed_from_key(RECIPE.seed, *key[1:], "augment")
        return self.transform(self.images.open(key.image)), self.images.label_of(key.image), 0


def timms_transform() -> Callable[[Any], Any]:
    """timm's; of ours it has posterize alone, for timm's raises over Pillow 13."""
    transform = create_transform(
        RECIPE.img_size,
        is_training=True,
        use_prefetcher=True,
        scale=RECIPE.crop_scale,
        ratio=RECIPE.crop_ratio,
        hflip=RECIPE.hflip,
        color_jitter=None,
        auto_augment=RECIPE.rand_augment,
        interpolation="bicubic",
    )
    ours = {operation.name: operation.aug_fn for operation in operations(train_transform(RECIPE))}
    for operation in operations(transform):
        operation.aug_fn = ours[operation.name]
    return transform


def operations(transform: Any) -> list[Any]:
    """Those of a transform's RandAugment."""
    [part] = [part for part in transform.transforms if isinstance(part, RandAugment)]
    return list(part.ops)


def data_loader(dataset: Dataset[Any], epochs: Iterator[list[list[Any]]], **options: Any) -> Epoch:
    """Epochs of a DataLoader whose batches are listed epoch by epoch."""

    class Batches:
        def __iter__(self) -> Iterator[list[Any]]:
            yield from next(epochs)

    loader = DataLoader(
        dataset, batch_sampler=Batches(), num_workers=1, persistent_workers=True, **options
    )

    def epoch(_number: int) -> None:
        for _ in loader:
            pass

    return epoch


def batches_of(indices: list[Any]) -> list[list[Any]]:
    """In batches of a process."""
    return [indices[begin : begin + BATCH] for begin in range(0, len(indices), BATCH)]


def train_loader(images: FolderSet, repeats: int, augment: Any, *, copies: bool = False) -> Epoch:
    """Epochs of this project's, as the training process receives them."""
    recipe = replace(RECIPE, batch_size=BATCH, replicas=1, repeated_aug=repeats)
    plan = Plan(
        recipe=recipe,
        modified=True,
        device="cpu",
        processes=1,
        workers=1,
        num_images=len(images),
        augment=augment,
    )
    loader = TrainLoader(images, train_augment(recipe), plan, range(1))
    room = torch.empty(loader.ring.slot_bytes, dtype=torch.uint8)

    def epoch(number: int) -> None:
        for slot, places, num_bytes in loader.filled(number):
            rows = loader.ring.rows(slot, places)
            torch.from_numpy(rows[:, [LABEL, BAD]])
            if copies:
                room[:num_bytes] = loader.ring.bytes[slot, :num_bytes]
            loader.ring.give_back(slot)

    return epoch


def ways(folder: Path) -> dict[str, Callable[[], Epoch]]:
    """What is measured; a call starts nothing yet, an epoch does."""
    images = FolderSet(folder)
    number = len(images)

    def shuffled(repeats: int) -> Iterator[list[int]]:
        for epoch in count():
            [order] = epoch_order(number, epoch=epoch, replicas=1, repeats=repeats, count=number)
            yield order.tolist()

    keys = (
        [Key(image, epoch, 0, position) for position, image in enumerate(order)]
        for epoch, order in enumerate(shuffled(RECIPE.repeated_aug))
    )
    timms = ImageFolder(str(folder), timms_transform())
    return {
        TIMM: lambda: data_loader(timms, map(batches_of, shuffled(1)), collate_fn=fast_collate),
        BEFORE: lambda: data_loader(KeyedImages(images), map(batches_of, keys)),
        CROPS: lambda: train_loader(images, 3, "device"),
        COPIED: lambda: train_loader(images, 3, "device", copies=True),
        CROPS_ONCE: lambda: train_loader(images, 1, "device"),
        PILLOW: lambda: train_loader(images, 3, "workers"),
        PILLOW_ONCE: lambda: train_loader(images, 1, "workers"),
    }


class Measured:
    """A loader with its worker, which runs from the first epoch, that warms up."""

    def __init__(self, make: Callable[[], Epoch]) -> None:
        self.epoch = make()
        before = active_children()
        self.epoch(0)
        [worker] = [process for process in active_children() if process not in before]
        assert worker.pid is not None, "the worker has not started"
        self.clock = ~worker.pid << 3 | 2  # as clock_getcpuclockid(3) makes it

    def seconds(self, number: int) -> tuple[float, float]:
        """CPU time of an epoch, of the worker and of this process."""
        began = time.clock_gettime(self.clock), time.process_time()
        self.epoch(number)
        return time.clock_gettime(self.clock) - began[0], time.process_time() - began[1]


def decodes_per_sample() -> float:
    """Of DeiT's step of 8 x 128 on the processes of one node, by the order of an epoch."""
    plan = Plan(
        recipe=RECIPE,
        modified=False,
        device="cuda",
        processes=NODE,
        workers=1,
        num_images=IMAGENET_TRAIN,
    )
    replicas = range(RECIPE.replicas)
    peers = [EpochPlaces(plan, 0, replicas, peer=peer, peers=NODE) for peer in range(NODE)]
    steps = range(0, plan.steps_per_epoch, 100)
    decodes = sum(len(peer.share(step).images) for peer in peers for step in steps)
    return decodes / (len(steps) * RECIPE.batch_size)


def main() -> None:
    """Measure, print a table, and write it where asked."""
    arguments = arguments_of(__doc__, rounds=9, more=_more)
    torch.set_num_threads(arguments.threads)
    times: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "class").mkdir()
        files = write_photographs(Path(folder) / "class", arguments.images, quality=QUALITY)
        size = statistics.mean(file.stat().st_size for file in files)
        loaders = {what: Measured(make) for what, make in ways(Path(folder)).items()}
        for number in range(1, arguments.rounds + 1):
            for what in rotated(list(loaders), number):
                times.setdefault(what, []).append(loaders[what].seconds(number))
    worker, process = (
        {what: np.array(times[what])[:, part] / arguments.images for what in loaders}
        for part in (0, 1)
    )
    ratios = {
        what: {
            "worker, to timm": float(np.median(worker[TIMM] / worker[what])),
            "training process, to before": float(np.median(process[what] / process[BEFORE])),
        }
        for what in loaders
    }
    rows = [
        {
            "what": what,
            "worker_ms": 1000 * float(np.median(worker[what])),
            "images_per_second": 1 / float(np.median(worker[what])),
            "process_ms": 1000 * float(np.median(process[what])),
        }
        for what in loaders
    ]
    decodes = decodes_per_sample()
    print(f"{len(files)} JPEGs of {SIZE[0]}x{SIZE[1]}, {size / 1000:.0f} kB; {jpeg.SIMPLEJPEG=}")
    print(f"{'':28}   worker ms  images/s   to timm  process ms  to before")
    for row in rows:
        to_timm, to_before = ratios[row["what"]].values()
        print(
            f"{row['what']:28}{row['worker_ms']:12.3f}{row['images_per_second']:10.1f}"
            f"{to_timm:10.2f}{row['process_ms']:12.4f}{to_before:11.3f}"
        )
    print(f"decodes per sample of a step of {NODE} x {BATCH}: {decodes:.4f}")
    read = {"num_images": len(files), "bytes": size, "simplejpeg": jpeg.SIMPLEJPEG}
    write(arguments, rows, ratios, decodes_per_sample=decodes, **read)


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=1024, help="Of an epoch, a multiple of 256.")


if __name__ == "__main__":
    main()
