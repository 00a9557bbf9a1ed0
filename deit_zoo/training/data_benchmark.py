"""How many images of a data set come here, stage by stage, and which models that feeds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from random import Random

import torch

from deit_zoo.data.decode import read_pixels
from deit_zoo.data.image_set import ImageSet
from deit_zoo.distributed import DistributedContext
from deit_zoo.errors import DataError, RecipeError, ZooError
from deit_zoo.inference.throughput import cases_of, measure_case
from deit_zoo.recipes.deit import DEIT_SMALL
from deit_zoo.recipes.plan import Plan
from deit_zoo.recipes.recipe import count
from deit_zoo.training.data import TrainLoader
from deit_zoo.training.launch import recipe_for
from deit_zoo.training.places import PLACES_PER_CHUNK
from deit_zoo.training.throughput import rate_of_receiving, rate_of_workers
from deit_zoo.training.timm_bridge import train_augment

# Images per second of a training step on one H200: bfloat16, compiled, 128 images (64 at 384
# pixels), torch 2.11; benchmarks/results/gpu_train_step.json.
H200_RATES = {
    "deit_tiny": 15_632,
    "deit_small": 8_336,
    "deit_base": 3_501,
    "deit_small_distilled": 2_502,
    "deit_base_384": 1_123,
    "cait_xxs24_224": 4_442,
}
BATCH = 128  # of one process


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A part of the way, alone; a GPU's has no processes."""

    name: str
    processes: int | None
    images_per_second: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """The images that a model trains with on a GPU, and the cores like those here that feed it."""

    model: str
    gpu: str
    images_per_second: float
    cores: int

    def sentence(self) -> str:
        """The need in words."""
        feed = "core like these feeds" if self.cores == 1 else "cores like these feed"
        return (
            f"{self.model} trains at {self.images_per_second:,.0f} img/s on one {self.gpu}: "
            f"{self.cores:,} {feed} it"
        )


def measure(
    images: ImageSet,
    models: Sequence[str],
    *,
    workers: int,
    num_images: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Stage], list[Need]]:
    """Every stage for about so many images, and what each model needs."""
    if len(images) < BATCH:
        few = count(len(images), "image")
        raise DataError(f"{few} cannot keep a loader busy; give at least {BATCH}")
    repeats_of = {recipe.name: recipe.repeated_aug for recipe in map(recipe_for, models)}
    rates = {name: rate_of_model(name) for name in repeats_of}
    most = max(repeats_of.values())
    todo = 4 if most > 1 else 3
    progress(0, todo)
    reading, decoding = rates_of_files(images, num_images)
    stages = [
        Stage(name="read", processes=1, images_per_second=reading),
        Stage(name="decode", processes=1, images_per_second=decoding),
    ]
    progress(1, todo)
    alone: dict[int, float] = {}
    for repeats in sorted({1, most}):
        rate, _ = rate_of_loader(images, repeats, workers=1, num_images=num_images)
        stages.append(Stage(name=crops(repeats), processes=1, images_per_second=rate))
        alone[repeats] = rate
        progress(1 + len(alone), todo)
    together, on_gpu = rate_of_loader(images, most, workers=workers, num_images=num_images)
    progress(todo, todo)
    stages.append(Stage(name=crops(most), processes=workers, images_per_second=together))
    if on_gpu is not None:
        name = "copy and augmentation on the GPU"
        stages.append(Stage(name=name, processes=None, images_per_second=on_gpu))
    needs = []
    for name, (gpu, rate) in rates.items():
        cores = math.ceil(rate / alone[most if repeats_of[name] > 1 else 1])
        needs.append(Need(model=name, gpu=gpu, images_per_second=rate, cores=cores))
    return stages, needs


def crops(repeats: int) -> str:
    """What a worker does, in words."""
    return f"read, decode, draw, crop: {count(repeats, 'crop')} of an image"


def rates_of_files(images: ImageSet, num_images: int) -> tuple[float, float]:
    """Images per second that are read, and that are decoded, of any in the set."""
    draw = Random(0)
    reading = decoding = 0.0
    readable = 0
    for _ in range(num_images):
        index = draw.randrange(len(images))
        started = time.perf_counter()
        try:
            data = images.read(index)
            read = time.perf_counter()
            read_pixels(data, images.name_of(index), images.reading)
        except DataError as error:
            bad = error
            continue
        decoding += time.perf_counter() - read
        reading += read - started
        readable += 1
    if not readable:
        raise bad
    return readable / reading, readable / decoding


def rate_of_loader(
    images: ImageSet, repeats: int, *, workers: int, num_images: int
) -> tuple[float, float | None]:
    """Images per second that so many workers have ready, and that a GPU finishes, if one is here.

    They are augmented as DeiT's are, and each is decoded once for its repeats in a step.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe = replace(DEIT_SMALL, batch_size=BATCH, replicas=1, repeated_aug=repeats)
    augment = train_augment(recipe)
    plan = Plan(
        recipe=recipe,
        modified=True,
        device=device,
        processes=1,
        workers=workers,
        num_images=len(images),
        augment="device",
    )
    group = DistributedContext(device=torch.device(device))
    chunks = max(2 * workers, math.ceil(num_images / PLACES_PER_CHUNK))
    with closing(TrainLoader(images, augment, plan, range(1), group=group)) as loader:
        ready = rate_of_workers(loader, chunks)
        return ready, rate_of_receiving(loader) if device == "cuda" else None


def rate_of_model(model: str) -> tuple[str, float]:
    """A GPU, and the images per second that a model trains with there."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(), measured_rate(model, "cuda", "bfloat16", "compiled")
    if model not in H200_RATES:
        raise RecipeError(
            f"how fast {model} trains is known of no GPU; give {', '.join(H200_RATES)}, or measure "
            "on a machine with a GPU"
        )
    return "H200", H200_RATES[model]


def measured_rate(model: str, device: str, precision: str, mode: str) -> float:
    """Images per second, forward and backward. Raises ZooError where it cannot be measured."""
    [case] = cases_of(
        [model],
        batch_sizes=[BATCH],
        precisions=[precision],
        modes=[mode],
        img_size=None,
        device=device,
        threads=torch.get_num_threads(),
        train=True,
        pretrained=False,
    )
    rows, failed = measure_case(case, [mode], rounds=3, seconds=0.5)
    if failed:
        raise ZooError(f"{model} cannot be measured here: {failed[0]['reason']}")
    return float(rows[0]["images_per_second"])
