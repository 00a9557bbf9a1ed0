"""Classifiers beside each other on the same images: the figures of each, and who disagrees.

DeiT, Table 3: the two heads of a distilled model, and both together (the mean of their logits, as
in upstream's code). Table 4: the share of images on which two classifiers do not agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deit_zoo.errors import ZooError
from deit_zoo.evaluation.accuracy import (
    NUM_SUMS,
    EvalDataset,
    Sums,
    accumulate,
    check_finite,
    count_right,
    evaluation_of,
    kept_of,
)
from deit_zoo.models.model import ZooModel
from deit_zoo.results import Evaluation

LABELS = "labels"
HEADS, BOTH = ("class", "distillation"), "both"


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Each classifier's figures, and the share of images on which two answer differently.

    The labels are a classifier too, which is always right.
    """

    figures: dict[str, Evaluation]
    disagreement: dict[str, dict[str, float]]


class Comparing:
    """Classifiers over the images of one set, one after another; the labels are the first."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.figures: dict[str, Evaluation] = {}
        self.answers: dict[str, NDArray[np.int64]] = {}

    def add(
        self, name: str, model: ZooModel, dataset: EvalDataset, *, workers: int, heads: bool = False
    ) -> None:
        """Ask a model, and each of its heads where it has two."""
        if dataset.multi_labels is not None:
            raise ZooError(
                f"{name} or the data give several labels to an image, so no answer is compared"
            )
        sums = {head: np.zeros(4) for head in HEADS if heads}

        with ExitStack() as hooks:
            said = hooks.enter_context(outputs_of_heads(name, model)) if heads else {}

            def keep(logits: Sums, labels: NDArray[np.int64]) -> Sums:
                columns = [labels, logits.argmax(axis=1)]
                for head in sums:
                    output = said[head].float()
                    if dataset.class_subset is not None:
                        output = output[:, list(dataset.class_subset)]
                    sums[head] += count_right(output, torch.from_numpy(labels), dataset)
                    columns.append(output.argmax(dim=1).cpu().numpy())
                return np.stack(columns, axis=1).astype(np.float64)

            total = accumulate(model, dataset, keep=keep, workers=workers, **self.options)
        check_finite(model, total)
        labels, whole, *others = kept_of(total, dataset).astype(np.int64).T
        for head, answers in zip(sums, others, strict=True):
            top1, top5, num_judged, loss = sums[head]
            num_skipped = total[NUM_SUMS - 1]
            of_head = np.array([top1, top5, num_judged, len(dataset), loss, num_skipped])
            self.figures[head] = evaluation_of(of_head, dataset)
            self.answers[head] = answers
        own = BOTH if heads else name
        self.figures[own] = evaluation_of(total, dataset)
        self.answers |= {own: whole, LABELS: labels}

    def result(self) -> Comparison:
        """The figures of all, and how often each two disagree on images that could be read."""
        readable = self.answers[LABELS] >= 0
        names = (LABELS, *self.figures)
        answers = {name: self.answers[name][readable] for name in names}
        return Comparison(
            figures=self.figures,
            disagreement={
                one: {other: float((a != b).mean()) for other, b in answers.items()}
                for one, a in answers.items()
            },
        )


@contextmanager
def outputs_of_heads(name: str, model: ZooModel) -> Iterator[dict[str, Tensor]]:
    """What each head said of the last batch. Raises ZooError for a model with one head."""
    if not hasattr(model, "get_classifier"):
        raise ZooError(
            f"{name} is an optimized copy, whose heads cannot be told apart; give the model that "
            "it was made of"
        )
    heads = model.get_classifier()
    if not isinstance(heads, tuple):
        raise ZooError(
            f"{name} has one head; --heads is for a distilled model, such as deit_small_distilled"
        )
    said: dict[str, Tensor] = {}

    def keep(head: str) -> Callable[[torch.nn.Module, Any, Tensor], None]:
        return lambda _module, _inputs, output: said.__setitem__(head, output)

    with ExitStack() as hooks:
        for key, head in zip(HEADS, heads, strict=True):
            hooks.callback(head.register_forward_hook(keep(key)).remove)
        yield said
