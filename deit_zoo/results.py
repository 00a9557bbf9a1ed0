"""What a model answers: a prediction for an image, figures for many, a teacher's labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class of an image and its softmax probability, with the class's number and folder."""

    label: str
    probability: float
    index: int
    folder: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Accuracy in percent and mean cross-entropy over `num_images` images, each seen once.

    A label set may have no label for some of them: `num_unjudged` images count in no figure.
    """

    top1: float
    top5: float
    loss: float
    num_images: int
    num_unjudged: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelFacts:
    """What stands beside a teacher's labels: everything that they depend on, by name, the teacher,
    and the SHA-256 of their file once all are known."""

    key: dict[str, Any]
    teacher: dict[str, Any]
    sha256: str | None = None
