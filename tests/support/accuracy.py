"""The accuracy of a model on images, in one call."""

from __future__ import annotations

from typing import Any

from deit_zoo.evaluation.accuracy import EvalDataset, accumulate, evaluation_of
from deit_zoo.models.model import ZooModel
from deit_zoo.results import Evaluation


def accuracy(model: ZooModel, dataset: EvalDataset, **options: Any) -> Evaluation:
    """The figures of one process; options are those of `accumulate`."""
    return evaluation_of(accumulate(model, dataset, **options), dataset)
