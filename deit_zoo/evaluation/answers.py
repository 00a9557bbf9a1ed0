"""What a model answers to each image of a split: one class, or several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deit_zoo.data.image_list import SEPARATOR
from deit_zoo.data.image_set import ImageSet
from deit_zoo.evaluation.accuracy import EvalDataset, average_precision, kept_of


def answers_to(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """What is kept of each image: its label, the answer, and the probability of either."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = powers / powers.sum(axis=1, keepdims=True)
    rows, best = np.arange(len(labels)), shares.argmax(axis=1)
    of_label = shares[rows, np.maximum(labels, 0)]
    return np.stack([labels, best, shares[rows, best], of_label], axis=1)


class SplitAnswers:
    """Of a split, the images that could be read, by their numbers among these."""

    def __init__(
        self,
        split: str,
        images: ImageSet,
        classes: Sequence[str],
        readable: NDArray[np.bool_],
    ) -> None:
        self.split = split
        self.images = images
        self.classes = list(classes)
        self.numbers = np.flatnonzero(readable).tolist()

    def name_of(self, number: int) -> str:
        """The name of an image."""
        return self.images.name_of(self.numbers[number])

    def open(self, number: int) -> Image.Image:
        """An image."""
        return self.images.open(self.numbers[number])


class Answers(SplitAnswers):
    """What a model answered to each image, in their order.

    `kept` has a row of `answers_to` for each.
    """

    keys = ("images", "right", "accuracy", "precision")
    worst_by = "accuracy"

    def __init__(
        self, split: str, images: ImageSet, classes: Sequence[str], kept: NDArray[np.float64]
    ) -> None:
        readable = kept[:, 0] >= 0
        super().__init__(split, images, classes, readable)
        labels, predicted, self.probability, self.of_label = kept[readable].T.tolist()
        self.labels = [int(label) for label in labels]
        self.predicted = [int(label) for label in predicted]

    @property
    def right(self) -> list[bool]:
        """Whether each answer is right."""
        return [a == b for a, b in zip(self.labels, self.predicted, strict=True)]

    @property
    def mistakes(self) -> list[int]:
        """The numbers of the images that were taken for another class, the surest first."""
        wrong = [number for number, right in enumerate(self.right) if not right]
        return sorted(wrong, key=lambda number: -self.probability[number])

    def confusion(self) -> Counter[tuple[int, int]]:
        """How many images of a class were taken for which."""
        return Counter(zip(self.labels, self.predicted, strict=True))

    def figures(self) -> list[tuple[float | None, ...]]:
        """Of each class, what `keys` name."""
        images, taken, confusion = Counter(self.labels), Counter(self.predicted), self.confusion()
        rows = [(confusion[n, n], images[n], taken[n]) for n in range(len(self.classes))]
        return [(of, right, _percent(right, of), _percent(right, by)) for right, of, by in rows]


class LabelAnswers(SplitAnswers):
    """The probability of each class in each image, where an image may have several labels."""

    keys = ("images", "average_precision", "recall", "precision")
    worst_by = "average_precision"

    def __init__(
        self,
        split: str,
        images: ImageSet,
        classes: Sequence[str],
        logits: NDArray[np.float64],
        label_sets: Sequence[Sequence[int]],
    ) -> None:
        readable = ~np.isnan(logits[:, 0])
        super().__init__(split, images, classes, readable)
        self.probability = 1.0 / (1.0 + np.exp(-logits[readable]))
        present = np.zeros(logits.shape, dtype=bool)
        for row, labels in zip(present, label_sets, strict=True):
            row[list(labels)] = True
        self.present = present[readable]

    @property
    def taken(self) -> NDArray[np.bool_]:
        """The classes that each image is taken to show: those that are more probable than not."""
        return self.probability > 0.5

    @property
    def mistakes(self) -> list[tuple[int, int]]:
        """Image and class of what is taken wrongly, the surest first."""
        distance = np.abs(self.probability - self.present)
        wrong = zip(*np.nonzero(self.taken != self.present), strict=True)
        pairs = [(int(image), int(label)) for image, label in wrong]
        return sorted(pairs, key=lambda pair: -distance[pair])

    def precisions(self) -> list[float | None]:
        """The average precision of each class, in percent."""
        shares = map(average_precision, self.probability.T, self.present.T)
        return [None if share is None else 100.0 * share for share in shares]

    def figures(self) -> list[tuple[float | None, ...]]:
        """Of each class, what `keys` name."""
        marks = (self.taken & self.present, self.present, self.taken)
        counts = zip(*(mark.sum(axis=0).tolist() for mark in marks), strict=True)
        return [
            (of, average, _percent(right, of), _percent(right, by))
            for average, (right, of, by) in zip(self.precisions(), counts, strict=True)
        ]

    def names_of(self, marks: NDArray[np.bool_]) -> str:
        """The classes that are marked, in one word."""
        return SEPARATOR.join(name for name, mark in zip(self.classes, marks, strict=True) if mark)


def _percent(right: int, all_of_them: int) -> float | None:
    """The share of images of a class, or of those taken for it, that is right."""
    return 100.0 * right / all_of_them if all_of_them else None


def answers_of(
    split: str, dataset: EvalDataset, classes: Sequence[str], sums: NDArray[np.float64]
) -> Answers | LabelAnswers:
    """What was kept of all images, as what was answered."""
    kept = kept_of(sums, dataset)
    if not dataset.by_class:
        return Answers(split, dataset.images, classes, kept)
    return LabelAnswers(split, dataset.images, classes, kept, dataset.multi_labels or ())
