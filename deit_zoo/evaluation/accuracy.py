"""Top-1, top-5 and loss over a data set: each image exactly once."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from deit_zoo.data.archive_set import ArchiveSet
from deit_zoo.data.decode import error_context
from deit_zoo.data.folder import class_folders, part_folder, split_folder
from deit_zoo.data.image_list import SPLIT_FILE, is_split, read_split
from deit_zoo.data.image_set import ImageSet, absolute, are_numbers, kind_of, open_set
from deit_zoo.data.images import MissingSplitError, class_counts
from deit_zoo.data.loader import Loader
from deit_zoo.data.survey import most_unreadable
from deit_zoo.data.table import TableSet, split_address
from deit_zoo.errors import DataError, ZooError, first_of
from deit_zoo.machine import shared
from deit_zoo.manifest import LocalCheckpoint, Reading
from deit_zoo.models.model import ZooModel, spec_of
from deit_zoo.results import Evaluation

IN_PROCESS = 2_000  # fewer images need no processes to read them
# Float32 rounds otherwise in batches of another size: what is beyond these tells of that alone.
LOSS_DIGITS = 6
NUM_SUMS = 6  # numbers of `accumulate` before those of each image

Sums = NDArray[np.float64]
# Of a batch's logits and labels, the numbers that are kept of each image.
Keep = Callable[[Sums, NDArray[np.int64]], Sums]


class EvalDataset(Dataset[tuple[Any, int]]):
    """The images of a set, each transformed, with its label.

    `class_subset` are the classes of the model that compete, all unless given. With `multi_labels`,
    which are the set's own unless given, an image's label is its own number, and its entry lists
    the classes that are right: several, or none where the image does not count. `by_class` says
    that the model judges every class by itself. With `skips` an image that cannot be read does not
    count either, and is labelled with minus its number, less one; without, it is an error.
    """

    def __init__(
        self,
        images: ImageSet,
        transform: Callable[[Image.Image], Any],
        *,
        class_subset: Sequence[int] | None = None,
        multi_labels: Sequence[Sequence[int]] | None = None,
        by_class: bool = False,
        skips: bool = False,
    ) -> None:
        self.images = images
        self.transform = transform
        self.class_subset = class_subset
        self.by_class = by_class
        self.multi_labels = images.label_sets if multi_labels is None else multi_labels
        if by_class and self.multi_labels is None:
            self.multi_labels = [(images.label_of(index),) for index in range(len(images))]
        self.skips = skips

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            return self._read(index)
        except DataError:
            if not self.skips:
                raise
            return self.transform(Image.new("RGB", (1, 1))), -1 - index

    def _read(self, index: int) -> tuple[Any, int]:
        image = self.images.open(index)
        label = self.images.label_of(index) if self.multi_labels is None else index
        with error_context(self.images.name_of(index)):
            return self.transform(image), label

    def label_mask(self, labels: Tensor, num_classes: int) -> Tensor:
        """Which classes are right for each image: (B, num_classes) of bool."""
        mask = torch.zeros(len(labels), num_classes, dtype=torch.bool)
        for row, label in zip(mask, labels.tolist(), strict=True):
            if label >= 0:
                row[label if self.multi_labels is None else list(self.multi_labels[label])] = True
        return mask


def validation_set(
    data: str | Path,
    classes: Sequence[str] = (),
    *,
    reading: Reading | None = None,
    several: bool = False,
) -> ImageSet:
    """The validation images of a data set, or of a folder that is nothing else."""
    try:
        return open_set(data, "val", classes, reading=reading, several=several)
    except MissingSplitError as error:
        missing = error
    with suppress(MissingSplitError):
        return open_set(data, "all", classes, reading=reading, several=several)
    raise missing


def note_on_learned(model: ZooModel, images: ImageSet) -> str:
    """The sentence on images that a run learned from, by the list that lies beside its weights."""
    weights = model.checkpoint
    file = weights.path.parent / SPLIT_FILE if isinstance(weights, LocalCheckpoint) else Path()
    if not (file.is_file() and is_split(file)):
        return ""
    run, numbers = read_split(file), range(len(images))
    place = images.data if isinstance(images, TableSet) else images.where
    is_the_runs = split_address(absolute(place))[0] == split_address(run.data)[0]
    if is_the_runs and isinstance(images, ArchiveSet | TableSet):
        learned = {image.path for image in run.of("train")}
        count = sum(images.path_in_root(number) in learned for number in numbers)
    else:
        measured = [images.name_of(number) for number in numbers]
        # Of a million that were learned, only what may be one of these is looked at on the disk.
        names = set(map(os.path.basename, measured))
        paths = (run.root / image.path for image in run.of("train"))
        learned = {os.path.realpath(path) for path in paths if path.name in names}
        count = sum(os.path.realpath(path) in learned for path in measured if learned)
    if not count:
        return ""
    return (
        f"{count:,} of these {len(images):,} images are those that the model learned from, so the "
        f"figures are too good; give --data {file} for what was kept apart"
    )


def folder_classes(data: str | Path, model: Sequence[str]) -> list[str]:
    """The classes of which a validation set has images; none where all are the model's, or go by
    their order."""
    kind = kind_of(data)
    if kind == "folder":
        return class_folders(validation_folder(Path(data)))
    if kind == "heap":
        return []
    if kind == "table":
        with suppress(DataError):  # few images need not say by their numbers how many classes are
            validation_set(data, model, several=True)
            return []
    images = validation_set(data, several=True)
    if kind == "list":
        return [name for name, count in class_counts(images).items() if count]
    return [] if are_numbers(images.classes) else images.classes


def validation_folder(data: Path) -> Path:
    """The `val/` of a folder, or itself where it is not parted.

    Raises MissingSplitError for one that has `train/` alone.
    """
    return split_folder(data, "val") or part_folder(data, "all")


@shared
def eval_mode(model: nn.Module) -> Iterator[None]:
    """A model in eval mode, and after the last thread, whatever happened, each part as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.inference_mode()
def accumulate(
    model: ZooModel,
    dataset: EvalDataset,
    *,
    batch_size: int,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
    keep: Keep | None = None,
    shard: tuple[int, int] = (0, 1),
    tell: Callable[[str], None] = lambda sentence: None,
) -> Sums:
    """Of a shard: right at 1, right at 5, images that count, seen, the sum of losses, and skipped.

    What is kept of each image follows, 0 of those that are not in the shard: what `keep` gives, or
    its logits, where each class is judged by itself. So the sum of all shards has that of all
    images. Sums are float64 of NumPy's: Apple's GPUs have none.
    """
    rank, size = shard
    starts = range(0, len(dataset), batch_size)[rank::size]
    batches = [[*range(start, min(start + batch_size, len(dataset)))] for start in starts]
    total, done = sum(map(len, batches)), 0
    weight = next(model.parameters())
    sums, kept = np.zeros(4), np.zeros((len(dataset), 0))
    keep = all_logits if dataset.by_class else keep
    skipped: list[int] = []
    loader = Loader(dataset, batches, workers)
    with closing(loader), eval_mode(model), oom_as_error(batch_size, weight.device):
        for numbers, (images, labels) in zip(batches, loader.read(), strict=True):
            logits = model(images.to(weight.device, weight.dtype)).float()
            if dataset.class_subset is not None:
                logits = logits[:, list(dataset.class_subset)]
            sums += count_right(logits, labels, dataset)
            if keep is not None:
                rows = keep(logits.cpu().numpy().astype(np.float64), labels.numpy())
                kept = kept if kept.size else np.zeros((len(dataset), rows.shape[1]))
                kept[numbers] = rows
            skipped += [-1 - label for label in labels[labels < 0].tolist()]
            done += len(labels)
            if progress:
                progress(done, total)
    if keep is not None and not batches:  # as many numbers as the other shards have
        num_classes = (
            model.num_classes if dataset.class_subset is None else len(dataset.class_subset)
        )
        nothing = keep(np.zeros((0, num_classes)), np.zeros(0, dtype=np.int64))
        kept = np.zeros((len(dataset), nothing.shape[1]))
    if skipped:
        names = first_of([dataset.images.name_of(index) for index in skipped], 3)
        count = f"{len(skipped):,} of {len(dataset):,} validation images"
        tell(f"{count} cannot be read ({names}); the figures are of the others")
    top1, top5, num_judged, loss = sums.tolist()
    figures = (top1, top5, num_judged, float(done), loss, float(len(skipped)))
    return np.concatenate([figures, kept.ravel()])


def count_right(logits: Tensor, labels: Tensor, dataset: EvalDataset) -> Sums:
    """Of a batch: right at 1, right at 5, images that count, and the sum of losses."""
    best = logits.topk(min(5, logits.shape[1])).indices.cpu()
    mask = dataset.label_mask(labels, logits.shape[1])
    counts, correct = mask.any(dim=1).numpy(), mask.gather(1, best).numpy()
    exact = logits.cpu().numpy().astype(np.float64)
    if dataset.by_class:
        losses = binary_cross_entropy(exact, mask.numpy())[labels.numpy() >= 0]
    else:
        losses = cross_entropy(exact[counts], mask.numpy()[counts])
    right = correct[:, 0].sum(), correct.any(axis=1).sum(), counts.sum()
    return np.array([*right, losses.sum()], dtype=np.float64)


def all_logits(logits: Sums, labels: NDArray[np.int64]) -> Sums:
    """What is kept of a batch where each class is judged by itself; NaN of what is skipped."""
    return np.where(labels[:, None] < 0, np.nan, logits)


def kept_of(sums: Sums, dataset: EvalDataset) -> Sums:
    """What was kept of each image (images, numbers), from the sum of all shards."""
    return sums[NUM_SUMS:].reshape(len(dataset), -1)


def evaluation_of(sums: Sums, dataset: EvalDataset) -> Evaluation:
    """The figures from what all shards accumulated together."""
    top1, top5, num_judged, num_images, loss, num_skipped = sums[:NUM_SUMS].tolist()
    assert num_images == len(dataset), f"{num_images:.0f} of {len(dataset)} images were counted"
    # Whichever processes met them.
    if num_skipped > (most := most_unreadable(len(dataset))) or 0 < num_skipped == num_images:
        raise DataError(
            f"{num_skipped:,.0f} of {num_images:,.0f} validation images cannot be read, and a run "
            f"can do without {most:,}; mend or remove them"
        )
    mean_ap, num_losses = None, num_judged
    if dataset.by_class:
        logits = kept_of(sums, dataset)
        read = ~np.isnan(logits[:, 0])
        num_losses = float(read.sum())
        mask = dataset.label_mask(torch.arange(len(dataset)), logits.shape[1]).numpy()
        by_class = map(average_precision, logits[read].T, mask[read].T)
        precisions = [precision for precision in by_class if precision is not None]
        if not precisions:
            raise DataError("no image that can be read has a label; mend those that have")
        mean_ap = 100.0 * sum(precisions) / len(precisions)
    return Evaluation(
        top1=100.0 * top1 / max(num_judged, 1.0),
        top5=100.0 * top5 / max(num_judged, 1.0),
        loss=round(loss / num_losses, LOSS_DIGITS),
        num_images=int(num_images),
        num_unjudged=int(num_images - (num_losses if dataset.by_class else num_judged)),
        mean_ap=mean_ap,
    )


def check_finite(model: ZooModel, sums: Sums) -> None:
    """Raises ZooError where what a model says of some image that counts is no number."""
    if not np.isfinite(sums[4]):
        raise not_finite(model)


def not_finite(model: ZooModel) -> ZooError:
    """The sentence on a model whose answers are no numbers."""
    return ZooError(
        f"the logits of {spec_of(model).name} are not finite; its weights are broken, or too large "
        "for its precision"
    )


def average_precision(scores: NDArray[np.float64], present: NDArray[np.bool_]) -> float | None:
    """Of one class over all images: the mean precision at each image that shows it, by score.

    Equal scores have one rank. None where no image shows the class.
    """
    if not present.any():
        return None
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0.0, True))
    right = np.cumsum(present[order])[ends]
    return float((np.diff(right, prepend=0) * right / (ends + 1)).sum() / right[-1])


def binary_cross_entropy(
    logits: NDArray[np.float64], mask: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Of each image, the mean over the classes, each judged by itself."""
    losses: NDArray[np.float64] = np.logaddexp(0.0, np.where(mask, -logits, logits)).mean(axis=1)
    return losses


def cross_entropy(logits: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of each image, minus the logarithm of the probability of its right classes together."""
    right = np.where(mask, logits, -np.inf)
    with np.errstate(invalid="ignore"):  # broken weights are told by the loss, which is no number
        return np.logaddexp.reduce(logits, axis=1) - np.logaddexp.reduce(right, axis=1)


class TooLargeError(ZooError):
    """A batch does not fit into a GPU's memory."""


@contextmanager
def oom_as_error(
    batch_size: int, device: torch.device, cure: str = "give a smaller batch size"
) -> Iterator[None]:
    """Within it, a GPU's want of memory is one sentence."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)  # they hold what the batch has taken
        raise TooLargeError(
            f"a batch of {batch_size} does not fit into the memory of {device}; {cure}"
        ) from error
