"""What a model answered to the images of a split, and how often it was right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from deit_zoo.data.image_set import ImageSet


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassCounts:
    """Of a class: its images, those that were seen to be of it, and all that were taken for it."""

    images: int
    right: int
    taken: int

    @property
    def accuracy(self) -> float | None:
        """The share of its images that is right, in percent: its recall."""
        return 100.0 * self.right / self.images if self.images else None

    @property
    def precision(self) -> float | None:
        """The share of what was taken for it that is right, in percent."""
        return 100.0 * self.right / self.taken if self.taken else None


class Answers:
    """What a model answered to each image of a split, in the order of the images.

    It is called with the logits and labels of a batch.
    """

    def __init__(self, split: str, images: ImageSet, classes: Sequence[str]) -> None:
        self.split = split
        self.images = images
        self.classes = list(classes)
        self.labels: list[int] = []
        self.predicted: list[int] = []
        self.probability: list[float] = []
        self.of_label: list[float] = []

    def __call__(self, logits: Tensor, labels: Tensor) -> None:
        shares = logits.cpu().double().softmax(dim=1)  # not every GPU has float64
        best = shares.max(dim=1)
        self.labels += labels.tolist()
        self.predicted += best.indices.tolist()
        self.probability += best.values.tolist()
        self.of_label += shares.gather(1, labels[:, None].cpu())[:, 0].tolist()

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

    def counts(self) -> list[ClassCounts]:
        """The figures of each class."""
        images, taken = Counter(self.labels), Counter(self.predicted)
        right = Counter(
            label for label, is_right in zip(self.labels, self.right, strict=True) if is_right
        )
        return [
            ClassCounts(images=images[n], right=right[n], taken=taken[n])
            for n in range(len(self.classes))
        ]
