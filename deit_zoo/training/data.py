"""The training images of one process, augmented by draws that depend on their place alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deit_zoo.evaluation import ImageFolder
from deit_zoo.training.draws import seed_all
from deit_zoo.training.plan import Plan
from deit_zoo.training.samplers import Key, ReplicaBatches


class KeyedImages(Dataset[tuple[Tensor, int]]):
    """An image folder whose items are asked for by key: the key seeds the augmentation."""

    def __init__(self, folder: ImageFolder, seed: int) -> None:
        self.folder = folder
        self.seed = seed

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        seed_all(self.seed, key.epoch, key.replica, key.position, "augment")
        return self.folder[key.image]


def training_folder(
    data: Path, transform: Callable[[Image.Image], Any], classes: list[str]
) -> ImageFolder:
    """The `train/` folder under `data`."""
    return ImageFolder(data / "train", transform, classes)


def train_loader(folder: ImageFolder, plan: Plan, replicas: range) -> DataLoader[Any]:
    """Batches of one replica each; `loader.batch_sampler.epoch` chooses the epoch."""
    return DataLoader(
        KeyedImages(folder, plan.recipe.seed),
        batch_sampler=ReplicaBatches(plan, replicas),
        num_workers=plan.workers,
        persistent_workers=plan.workers > 0,
        pin_memory=plan.device == "cuda",
    )
