"""Image folders, and top-1, top-5 and loss over one: each image exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from deit_zoo.errors import DataError
from deit_zoo.models.layers import ZooModel
from deit_zoo.preprocess import naming, open_rgb
from deit_zoo.results import Evaluation

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)


class ImageFolder(Dataset[tuple[Any, int]]):
    """Images in one folder per class, classes in alphabetical order, as torchvision reads them."""

    def __init__(
        self, root: Path, transform: Callable[[Image.Image], Any], classes: Sequence[str] = ()
    ) -> None:
        self.root = root
        self.transform = transform
        found = class_folders(root)
        self.classes = list(classes) or found
        if sorted(self.classes) != found:
            raise DataError(_wrong_classes(root, found, self.classes))
        self.samples = [
            (path, number)
            for number, name in enumerate(self.classes)
            for path in sorted((root / name).rglob("*"))
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        held = {number for _, number in self.samples}
        empty = [name for number, name in enumerate(self.classes) if number not in held]
        if empty:
            raise DataError(
                f"{len(empty)} of the {len(self.classes)} class folders of {root} hold no image "
                f"(such as {empty[0]!r}); give a folder with images of every class"
            )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        image = open_rgb(path)
        with naming(path):
            return self.transform(image), label


def class_folders(root: Path) -> list[str]:
    """The names of the folders in `root`, sorted. Raises DataError where there is none."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give one that holds a folder of images per class")
    names = sorted(path.name for path in root.iterdir() if path.is_dir())
    if not names:
        raise DataError(f"{root} holds no folder; it must hold one folder of images per class")
    return names


def validation_folder(data: Path) -> Path:
    """`data` itself, or its `val/` where it has one."""
    return data / "val" if (data / "val").is_dir() else data


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model in eval mode, and afterwards, whatever happened, in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.inference_mode()
def accuracy(
    model: ZooModel,
    data: Path,
    transform: Callable[[Image.Image], Tensor],
    classes: Sequence[str],
    *,
    batch_size: int,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Top-1, top-5 (percent) and mean cross-entropy of a model over an image folder."""
    dataset = ImageFolder(validation_folder(data), transform, classes)
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers)
    where = next(model.parameters())
    correct1 = correct5 = done = 0
    loss = 0.0
    with evaluating(model):
        for images, labels in loader:
            logits = model(images.to(where.device, where.dtype)).float()
            labels = labels.to(where.device)
            ranked = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            correct1 += int(ranked[:, 0].sum())
            correct5 += int(ranked.sum())
            loss += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
            done += len(labels)
            if progress:
                progress(done, len(dataset))
    assert done == len(dataset), f"{done} of {len(dataset)} images were counted"
    return Evaluation(100.0 * correct1 / done, 100.0 * correct5 / done, loss / done, done)


def _wrong_classes(root: Path, found: Sequence[str], wanted: Sequence[str]) -> str:
    extra = sorted(set(found) - set(wanted))
    missing = sorted(set(wanted) - set(found))
    told = [
        f"{len(group)} {word} (such as {group[0]!r})"
        for group, word in ((extra, "that are no class of the model"), (missing, "missing"))
        if group
    ]
    return (
        f"the class folders of {root} are not the model's {len(wanted)} classes: "
        f"{' and '.join(told)}; give a folder with one folder per class, from {wanted[0]!r} to "
        f"{wanted[-1]!r}"
    )
