"""The page that a fine-tune leaves: what the exported weights know of each class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deit_zoo.data.image_set import ImageSet
from deit_zoo.data.survey import SMALL
from deit_zoo.distributed import DistributedContext
from deit_zoo.errors import DataError
from deit_zoo.evaluation.accuracy import EvalDataset, Sums
from deit_zoo.evaluation.answers import Answers, LabelAnswers, answers_of, answers_to
from deit_zoo.evaluation.parallel import EvalJob, evaluate_in_group, in_fitting_batches
from deit_zoo.evaluation.report import write_report
from deit_zoo.models.model import ZooModel
from deit_zoo.training.logger import full_disk_as_error
from deit_zoo.zoo import transform

RESULTS_FOLDER = "results"


def write_results(
    output: Path,
    model: ZooModel,
    val: ImageSet,
    train: ImageSet,
    workers: int,
    group: DistributedContext,
    say: Callable[[str], None],
    *,
    parquet: bool = False,
) -> None:
    """Write it for the validation images and, where they are few, for those that were learned.

    Every process of the group answers to its share of them, and the first one writes.
    """
    splits = [_answers("val", model, val, workers, group)]
    if len(train) <= SMALL:
        try:
            splits.append(_answers("train", model, train, workers, group))
        except DataError as error:
            say(f"the results are of the validation images alone, for {error}")

    def write() -> None:
        title, folder = f"{output.resolve().name}: results", output / RESULTS_FOLDER
        with full_disk_as_error(output):
            write_report(folder, title, splits, parquet=parquet)
        say(f"accuracy of each class, mistakes and predictions: {folder}/index.html")

    group.run_on_main(write)


def _answers(
    split: str, model: ZooModel, images: ImageSet, workers: int, group: DistributedContext
) -> Answers | LabelAnswers:
    by_class = images.label_sets is not None
    dataset = EvalDataset(images, transform(model), by_class=by_class, skips=split == "val")

    def count(batch_size: int) -> Sums:
        job = EvalJob(
            model=model, images=dataset, batch_size=batch_size, workers=workers, keep=answers_to
        )
        return evaluate_in_group(job, group)

    return answers_of(split, dataset, images.classes, in_fitting_batches(count, group))
