"""Top-1, top-5 and loss over a data set: each image exactly once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from deit_zoo.data.folder import FolderSet
from deit_zoo.data.hub import is_hfds
from deit_zoo.data.image_set import ImageSet, open_set
from deit_zoo.data.transforms import error_context
from deit_zoo.errors import ZooError
from deit_zoo.models.layers import ZooModel
from deit_zoo.results import Evaluation

IN_PROCESS = 2_000  # fewer images need no processes to read them
# Float32 rounds otherwise in batches of another size: what is beyond these tells of that alone.
LOSS_DIGITS = 6


class Prepared(Dataset[tuple[Any, int]]):
    """The images of a set, each transformed, with its label.

    `columns` are the classes of the model that compete, all unless given. With `answers` an
    image's label is its own number, and its answer lists the classes that are right: several, or
    none where the image does not count.
    """

    def __init__(
        self,
        images: ImageSet,
        transform: Callable[[Image.Image], Any],
        *,
        columns: Sequence[int] | None = None,
        answers: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.images = images
        self.transform = transform
        self.columns = columns
        self.answers = answers

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.images.open(index)
        label = self.images.label_of(index) if self.answers is None else index
        with error_context(self.images.name_of(index)):
            return self.transform(image), label

    def right(self, labels: Tensor, num_classes: int) -> Tensor:
        """Which classes are right for each image: (B, num_classes) of bool."""
        right = torch.zeros(len(labels), num_classes, dtype=torch.bool)
        if self.answers is None:
            return right.scatter_(1, labels[:, None], True)
        for row, label in zip(right, labels.tolist(), strict=True):
            row[list(self.answers[label])] = True
        return right


def validation_set(data: str | Path, classes: Sequence[str] = ()) -> ImageSet:
    """The validation images of a data set, or of a folder that is nothing else."""
    if is_hfds(data):
        return open_set(data, "val", classes)
    return FolderSet(validation_folder(Path(data)), classes)


@contextmanager
def one_sentence() -> Iterator[None]:
    """Within it, an error from a loader's worker is its own sentence again, not a traceback."""
    try:
        yield
    except ZooError as error:
        kind = type(error)
        _, raised, sentence = str(error).rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")
        if not raised:
            raise
        raise kind(sentence.strip()) from None


def validation_folder(data: Path) -> Path:
    """`data` itself, or its `val/` where it has one."""
    return data / "val" if (data / "val").is_dir() else data


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
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
    images: Prepared,
    *,
    batch_size: int,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
    shard: tuple[int, int] = (0, 1),
    add: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Evaluation:
    """Top-1, top-5 (percent) and mean cross-entropy of a model over a data set.

    Of many processes, `shard` = (rank, processes) takes every batch whose number is its rank's,
    and `add` sums over all of them. The batches are the same for any number of processes.
    """
    sums = tally(
        model, images, batch_size=batch_size, workers=workers, progress=progress, shard=shard
    )
    where = next(model.parameters()).device
    added = add(torch.tensor(sums, dtype=torch.float64, device=where))
    return evaluation_of(added.tolist(), images)


@torch.inference_mode()
def tally(
    model: ZooModel,
    images: Prepared,
    *,
    batch_size: int,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
    shard: tuple[int, int] = (0, 1),
) -> list[float]:
    """Of a shard: right at 1, right at 5, images that count, images seen, and the sum of losses."""
    rank, size = shard
    starts = range(0, len(images), batch_size)[rank::size]
    mine = [[*range(start, min(start + batch_size, len(images)))] for start in starts]
    total, done = sum(map(len, mine)), 0
    where = next(model.parameters())
    sums = torch.zeros(4, dtype=torch.float64, device=where.device)
    with eval_mode(model), one_sentence(), oom_as_error(batch_size, where.device):
        for batch, labels in _loaded(images, mine, workers):
            logits = model(batch.to(where.device, where.dtype)).float()
            if images.columns is not None:
                logits = logits[:, list(images.columns)]
            right = images.right(labels, logits.shape[1]).to(where.device)
            judged = right.any(dim=1)
            best = right.gather(1, logits.topk(min(5, logits.shape[1])).indices)
            sums[0] += best[:, 0].sum()
            sums[1] += best.any(dim=1).sum()
            sums[2] += judged.sum()
            sums[3] += cross_entropy(logits[judged].double(), right[judged]).sum()
            done += len(labels)
            if progress:
                progress(done, total)
    top1, top5, counting, loss = sums.tolist()
    return [top1, top5, counting, float(done), loss]


def evaluation_of(sums: Sequence[float], images: Prepared) -> Evaluation:
    """The figures from what all shards counted together."""
    top1, top5, judged, seen, loss = sums
    assert seen == len(images), f"{seen:.0f} of {len(images)} images were counted"
    return Evaluation(
        top1=100.0 * top1 / judged,
        top5=100.0 * top5 / judged,
        loss=round(loss / judged, LOSS_DIGITS),
        num_images=int(seen),
        num_unjudged=int(seen - judged),
    )


def cross_entropy(logits: Tensor, right: Tensor) -> Tensor:
    """Of each image, minus the logarithm of the probability of its right classes together."""
    told: Tensor = logits.masked_fill(~right, -torch.inf).logsumexp(dim=1)
    return logits.logsumexp(dim=1) - told


@contextmanager
def oom_as_error(batch_size: int, device: torch.device) -> Iterator[None]:
    """Within it, a GPU's want of memory is one sentence."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ZooError(
            f"a batch of {batch_size} does not fit into the memory of {device}; give a smaller "
            "batch size"
        ) from error


def _loaded(
    images: Prepared, batches: list[list[int]], workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    loader = DataLoader(
        images,
        batch_sampler=batches,
        num_workers=workers,
        worker_init_fn=leave_signals_to_the_main_process,
    )
    with block_signals():
        loading = iter(loader)
    yield from loading


def leave_signals_to_the_main_process(_worker: int) -> None:
    """In a loader's worker: a wish to stop is the main process's to hear; SIGTERM ends a worker."""
    # At exit, multiprocessing ends workers by SIGTERM and waits: deaf ones would be waited for.
    for name, action in (
        ("SIGINT", signal.SIG_IGN),
        ("SIGUSR1", signal.SIG_IGN),
        ("SIGTERM", signal.SIG_DFL),
    ):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), action)


@contextmanager
def block_signals() -> Iterator[None]:
    """While workers are started, Ctrl-C and SIGUSR1 wait; the workers hear neither, ever."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    held = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGUSR1])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
