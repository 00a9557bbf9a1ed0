"""The page that a fine-tune leaves: what the exported weights know of each class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deit_zoo.data.image_set import ImageSet
from deit_zoo.data.survey import SMALL
from deit_zoo.errors import DataError
from deit_zoo.evaluation.accuracy import EvalDataset, accumulate
from deit_zoo.evaluation.answers import Answers, LabelAnswers, answers_of, answers_to
from deit_zoo.evaluation.report import write_report
from deit_zoo.models.model import ZooModel
from deit_zoo.zoo import transform

RESULTS_FOLDER = "results"


def write_results(
    output: Path,
    model: ZooModel,
    val: ImageSet,
    train: ImageSet,
    workers: int,
    say: Callable[[str], None],
    *,
    parquet: bool = False,
) -> None:
    """Write it for the validation images and, where they are few, for those that were learned."""
    splits = [_answers("val", model, val, workers)]
    if len(train) <= SMALL:
        try:
            splits.append(_answers("train", model, train, workers))
        except DataError as error:
            say(f"the results are of the validation images alone, for {error}")
    title = f"{output.resolve().name}: results"
    write_report(output / RESULTS_FOLDER, title, splits, parquet=parquet)
    say(f"accuracy of each class, mistakes and predictions: {output / RESULTS_FOLDER}/index.html")


def _answers(split: str, model: ZooModel, images: ImageSet, workers: int) -> Answers | LabelAnswers:
    by_class = images.label_sets is not None
    dataset = EvalDataset(images, transform(model), by_class=by_class, skips=split == "val")
    sums = accumulate(model, dataset, batch_size=256, workers=workers, keep=answers_to)
    return answers_of(split, dataset, images.classes, sums)
