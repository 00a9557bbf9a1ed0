"""What a model answers: a prediction for an image, figures for many, a teacher's labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from deit_zoo.errors import DataError

Method = Literal["all", "heads", "mean", "rollout"]  # of maps of attention


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class of an image and its probability, with the class's number and folder.

    By softmax, or by sigmoid of a model that was trained on images with several labels.
    """

    label: str
    probability: float
    index: int
    folder: str


class Predictions(list["list[Prediction] | Any"]):
    """The classes of each image, or the DataError that says why it could not be read, for which a
    type checker takes anything; a notebook shows the first of them.

    `images` are answers with their images' names and a JPEG each of what the model saw, so that
    each stands beside its own, however the list is changed.
    """

    MOST = 24  # images shown

    def __init__(self) -> None:
        super().__init__()
        self.images: list[tuple[list[Prediction] | DataError, str, bytes | None]] = []

    def _repr_html_(self) -> str:
        from deit_zoo.notebook import Html, bar, picture, table, text

        rows: list[tuple[str, ...]] = []
        known = {id(answer): (name, thumbnail) for answer, name, thumbnail in self.images}
        for classes in self[: self.MOST]:
            name, thumbnail = known.get(id(classes), ("", None))
            if isinstance(classes, DataError):
                answers = f"<em>{text(str(classes))}</em>"
            else:
                answers = table((one.label, bar(one.probability), share(one)) for one in classes)
            image = thumbnail and picture(thumbnail, "jpeg", description=name, width=72)
            rows.append((image or Html(""), name, Html(answers)))
        more = len(self) - len(rows)
        return table(rows, notes=[f"and {more:,} more"] if more > 0 else ())


def share(prediction: Prediction) -> str:
    """A probability in percent."""
    return f"{100 * prediction.probability:.2f} %"


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
        figures = ("mean_ap", "top1", "top5", "loss")
        return figures[1:] if self.mean_ap is None else figures

    def _repr_html_(self) -> str:
        from deit_zoo.notebook import Html, bar, table

        shown = {"mean_ap": "mean average precision", "top1": "top-1", "top5": "top-5"}
        rows: list[tuple[str, ...]] = [
            (shown[name], bar(value / 100), f"{value:.2f} %")
            for name in self.names
            if name in shown and (value := getattr(self, name)) is not None
        ]
        rows += [
            ("loss", Html(""), f"{self.loss:.4f}"),
            ("images", Html(""), f"{self.num_images:,}"),
        ]
        if self.num_unjudged:
            rows.append(("without a label", Html(""), f"{self.num_unjudged:,}"))
        return table(rows)

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
