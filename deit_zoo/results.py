"""What a model answers: a prediction for an image, figures for many, a teacher's labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class of an image and its probability, with the class's number and folder.

    By softmax, or by sigmoid of a model that was trained on images with several labels.
    """

    label: str
    probability: float
    index: int
    folder: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Accuracy in percent and mean cross-entropy over `num_images` images, each seen once.

    A label set may have no label for some of them: `num_unjudged` images count in no figure. Where
    images have several labels, `loss` is binary cross-entropy over all of them, `mean_ap` the mean
    average precision of the classes in percent, and `top1` of the images that have a label.
    """

    top1: float
    top5: float
    loss: float
    num_images: int
    num_unjudged: int = 0
    mean_ap: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The figures that there are, the one that counts most first."""
        return (
            ("top1", "top5", "loss")
            if self.mean_ap is None
            else ("mean_ap", "top1", "top5", "loss")
        )

    def words(self) -> str:
        """What was reached, in words."""
        if self.mean_ap is None:
            return f"top-1 {self.top1:.2f} % on {self.num_images:,} images"
        return f"mean average precision {self.mean_ap:.2f} % on {self.num_images:,} images"


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelFacts:
    """What stands beside a teacher's labels: everything that they depend on, by name, the teacher,
    and the SHA-256 of their file once all are known."""

    key: dict[str, Any]
    teacher: dict[str, Any]
    sha256: str | None = None
