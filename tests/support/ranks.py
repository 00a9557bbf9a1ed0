"""One process of a group: it trains small models on digits and leaves what it saw as JSON.

`python ranks.py DATA OUTPUT JOB...` under torchrun's variables; OUTPUT/SIZE-RANK.json maps each job
to its result. The parts are those of a run: loader, loop, optimizer, DistributedDataParallel.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from deit_zoo.data.image_set import ImageSet, open_set
from deit_zoo.data.table import SplitName
from deit_zoo.distributed import DistributedContext, init_distributed
from deit_zoo.errors import DataError
from deit_zoo.evaluation.accuracy import EvalDataset
from deit_zoo.models.deit import VisionTransformer
from deit_zoo.models.model import ZooModel
from deit_zoo.recipes.digits import DEIT_PICO
from deit_zoo.recipes.plan import Plan
from deit_zoo.recipes.recipe import Recipe
from deit_zoo.registry import MODELS
from deit_zoo.training import trainer as run
from deit_zoo.training.build import build_train_state, open_images
from deit_zoo.training.data import TrainLoader
from deit_zoo.training.loop import TrainState, train_one_epoch
from deit_zoo.training.results import write_results
from deit_zoo.training.seeding import seed_from_key
from deit_zoo.training.state_files import TrainPosition, load_state, save_state, snapshot
from deit_zoo.training.steps import EpochStats, NotFinite, StepResult
from deit_zoo.training.teacher import teacher_for
from deit_zoo.training.timm_bridge import train_augment
from deit_zoo.zoo import create, transform

EPOCH = 10  # the warm-up is over: a wrong gradient moves the next loss
STEPS = 8  # of 64 of 512 images: one epoch
MIDDLE = 4
SHORT = 3
NOT_FINITE = (1, 3, 5, 6, 7)  # single steps, and as many in a row as end an epoch
SIZES = dict(patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=10)
RECIPE = replace(
    DEIT_PICO,
    data="folder",
    img_size=32,
    batch_size=64,
    replicas=4,
    drop_path_rate=0.1,
    rand_augment="rand-m9-mstd0.5-inc1",
    random_erasing=0.25,
    repeated_aug=3,
    mixup=0.8,
    cutmix=1.0,
)


class Enough(Exception):
    """As many steps as were asked for are done."""


@dataclass
class Training:
    """A model in training, and the losses of its steps."""

    group: DistributedContext
    images: ImageSet
    dtype: torch.dtype
    recipe: Recipe = RECIPE
    workers: int = 0
    distilled: bool = False
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.set_default_dtype(torch.float32)  # in which the teacher is tried
        self.plan = Plan(
            recipe=self.recipe,
            modified=True,
            device="cpu",
            processes=self.group.size,
            workers=self.workers,
            num_images=len(self.images),
        )
        device = self.group.device
        teacher = teacher_for(self.recipe, 10, device) if self.recipe.teacher else None
        if teacher is not None:
            teacher.network.to(self.dtype)
        torch.set_default_dtype(self.dtype)
        seed_from_key(0, "init")
        model = VisionTransformer(
            img_size=self.recipe.img_size,
            drop_path_rate=self.recipe.drop_path_rate,
            distilled=self.distilled,
            **SIZES,
        )
        model.spec = MODELS["deit_pico_distilled_digits" if self.distilled else "deit_pico_digits"]
        self.state: TrainState = build_train_state(self.plan, model, teacher, self.group)

    def train(self, steps: int = STEPS, sums: EpochStats | None = None) -> None:
        """Train until `steps` steps of the epoch are done."""

        def noted(step: StepResult) -> None:
            self.losses.append(step.loss)
            if step.number + 1 == steps:
                raise Enough

        augment = train_augment(self.recipe)
        loader = TrainLoader(self.images, augment, self.plan, self.state.replicas, group=self.group)
        batches = loader.epoch(EPOCH, sums.step if sums else 0)
        try:
            train_one_epoch(self.state, self.plan, EPOCH, batches, noted, sums)
        except Enough:
            pass
        finally:
            loader.close()

    def weights(self) -> str:
        """A digest of every weight."""
        tensors = self.state.model.state_dict().values()
        return hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()


def losses(dtype: torch.dtype, workers: int = 0) -> Callable[[DistributedContext, Path], Any]:
    """An epoch."""

    def job(group: DistributedContext, data: Path) -> list[float]:
        training = Training(group, open_set(data, "train"), dtype, workers=workers)
        training.train()
        return training.losses

    return job


def continued(group: DistributedContext, data: Path) -> list[float]:
    """Half an epoch, a state on disk, and the rest by another model that takes the state up."""
    images = open_set(data, "train")
    first = Training(group, images, torch.float32)
    first.train(MIDDLE)
    second = Training(group, images, torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        place = TrainPosition(epoch=EPOCH, step=MIDDLE)
        file = save_state(Path(folder), place, snapshot(first.state), RECIPE.digest)
        held = load_state(file, second.state, RECIPE.digest)
    second.train(sums=EpochStats(step=held.step))
    return second.losses


def taught(group: DistributedContext, data: Path) -> list[float]:
    """Some steps of hard distillation from the embedded convnet."""
    recipe = replace(
        RECIPE, img_size=16, distillation="hard", teacher="convnet_pico_digits", repeated_aug=1
    )
    training = Training(group, open_set(data, "train"), torch.float64, recipe, distilled=True)
    training.train(SHORT)
    return training.losses


def untaught(group: DistributedContext, data: Path) -> list[float]:
    """Some steps of a distilled model without a teacher: its second head is never used."""
    training = Training(group, open_set(data, "train"), torch.float64, distilled=True)
    training.train(SHORT)
    return training.losses


def not_finite(group: DistributedContext, data: Path) -> dict[str, Any]:
    """Steps in which one replica of the last process alone has a loss that is no number."""
    training = Training(group, open_set(data, "train"), torch.float64)
    criterion, share, calls = training.state.criterion, training.plan.replicas_per_process, 0

    def sometimes(outputs: Any, taught: Tensor | None, targets: Tensor) -> Tensor:
        nonlocal calls
        step, place = divmod(calls, share)
        calls += 1
        loss = criterion(outputs, taught, targets)
        ill = step in NOT_FINITE and place == share - 1 and group.rank == group.size - 1
        return loss * math.nan if ill else loss

    training.state = replace(training.state, criterion=sometimes)
    ended = None
    try:
        training.train()
    except NotFinite as bad:
        ended = bad.step.number
    return {"losses": training.losses, "ended": ended, "weights": training.weights()}


class Watched:
    """The images of a split, and the numbers of those that were opened; one may be unreadable."""

    def __init__(self, data: Path, split: SplitName, broken: int | None = None) -> None:
        self.images = open_set(data, split)
        self.opened: list[int] = []
        self.broken = broken

    def __getattr__(self, name: str) -> Any:
        return getattr(self.images, name)

    def __len__(self) -> int:
        return len(self.images)

    def open(self, index: int) -> Image.Image:
        self.opened.append(index)
        if index == self.broken:
            raise DataError(f"{self.images.name_of(index)} is broken")
        return self.images.open(index)


def random_model() -> ZooModel:
    """The same in every process."""
    torch.set_default_dtype(torch.float32)
    seed_from_key(0, "init")
    return create("deit_pico_digits")


def evaluated(group: DistributedContext, data: Path, room: int | None = None) -> dict[str, Any]:
    """A random model on the validation images, of which this process takes its share.

    The first process has `room` for so many images at a time.
    """
    model = random_model()

    def check_room(network: Any, images: tuple[Tensor]) -> None:
        if room is not None and group.is_main and len(images[0]) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(check_room)
    images: Any = Watched(data, "val")
    reached = run.measure(model, EvalDataset(images, transform(model)), 0, group)
    return {
        "opened": images.opened,
        "top1": reached.top1,
        "loss": reached.loss,
        "num_images": reached.num_images,
    }


def answered(group: DistributedContext, data: Path) -> dict[str, Any]:
    """The training images that this process opened for a page of results, and what it said; then
    the same with one broken image in the second batch."""
    output, said = data.parent / f"answered by {group.size}", list[str]()
    train: Any = Watched(data, "train")
    val = open_set(data, "val")
    write_results(output, random_model(), val, train, 0, group, said.append)
    opened = [*train.opened]
    broken: Any = Watched(data, "train", broken=300)
    write_results(output / "without", random_model(), val, broken, 0, group, said.append)
    return {"opened": opened, "said": said}


class Counted:
    """Training images, and the numbers of those that were read."""

    def __init__(self, data: Path) -> None:
        self.images = open_set(data, "train")
        self.reads: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.images, name)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> bytes:
        self.reads.append(index)
        return self.images.read(index)


def batches(workers: int = 0, kill: bool = False) -> Callable[[DistributedContext, Path], Any]:
    """Digests of what each replica of this process sees, by its number, and the images read."""

    def job(group: DistributedContext, data: Path) -> dict[str, Any]:
        images: Any = Counted(data)
        plan = Plan(
            recipe=RECIPE,
            modified=True,
            device="cpu",
            processes=group.size,
            workers=workers,
            num_images=len(images),
        )
        share = plan.replicas_per_process
        replicas = range(group.rank * share, (group.rank + 1) * share)
        loader = TrainLoader(images, train_augment(RECIPE), plan, replicas, group=group)
        seen: dict[int, list[str]] = {replica: [] for replica in replicas}
        for number, batch in enumerate(loader.epoch(EPOCH)):
            if kill and number == share and group.is_main:
                os.kill(loader.loader.workers[0].pid or 0, signal.SIGKILL)
            tensors = (batch.images.contiguous(), batch.labels)
            content = b"".join(tensor.numpy().tobytes() for tensor in tensors)
            seen[replicas[number % share]].append(hashlib.sha256(content).hexdigest())
        loader.close()
        return {"seen": seen, "reads": images.reads}

    return job


def listed(group: DistributedContext, data: Path) -> dict[str, Any]:
    """What this process knows of a run's images, and the class folders that it listed for that."""
    folders: list[str] = []
    scandir = os.scandir

    def counted(folder: str) -> Any:
        if Path(folder).parent == data / "train":
            folders.append(Path(folder).name)
        return scandir(folder)

    os.scandir = counted  # type: ignore[assignment]
    images = open_images(str(data), "train", [], group, "upright")
    os.scandir = scandir
    numbers = range(len(images))
    known = [(images.name_of(index), images.label_of(index)) for index in numbers]
    return {"folders": folders, "known": known, "classes": images.classes}


JOBS: dict[str, Callable[[DistributedContext, Path], Any]] = {
    "float64": losses(torch.float64),
    "float32": losses(torch.float32),
    "one worker": losses(torch.float32, workers=1),
    "three workers": losses(torch.float32, workers=3),
    "continued": continued,
    "taught": taught,
    "untaught": untaught,
    "not finite": not_finite,
    "evaluated": evaluated,
    "cramped": partial(evaluated, room=40),
    "answered": answered,
    "listed": listed,
    "batches": batches(),
    "batches of a worker": batches(workers=1),
    "batches of a killed worker": batches(workers=1, kill=True),
}


def main() -> None:
    """Do the jobs in order, all processes the same."""
    data, output, names = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    torch.set_num_threads(1)
    with init_distributed("cpu") as group:
        results = {name: JOBS[name](group, data) for name in names}
        file = output / f"{group.size}-{group.rank}.json"
        file.write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
