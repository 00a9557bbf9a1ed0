"""Class names as data: ImageNet-1k's 1000 synsets in class order, and the ten digits.

The ImageNet names are WordNet 3.0 lemmas (Princeton University); the order is the benchmark's own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from reprlib import repr as shortened

from deit_zoo.errors import CheckpointError, DataError
from deit_zoo.files import ASSETS

# The kind of model that gives each class a sigmoid of its own, as transformers' configurations say.
SEVERAL_LABELS = "multi_label_classification"


@dataclass(frozen=True, slots=True)
class Label:
    """One class: its folder name in an image folder (for ImageNet the synset id) and its name."""

    folder: str
    name: str


@cache
def labels(kind: str) -> tuple[Label, ...]:
    """The classes of `imagenet1k` or `digits`, in class order."""
    if kind == "imagenet1k":
        text = (ASSETS / "imagenet1k_labels.txt").read_text(encoding="utf-8")
        return tuple(Label(*line.split(" ", 1)) for line in text.splitlines())
    if kind == "digits":
        return tuple(Label(str(digit), str(digit)) for digit in range(10))
    raise DataError(f"no labels are named {kind!r}; there are imagenet1k and digits")


def in_words(classes: Collection[str]) -> bool:
    """Whether classes are ImageNet-1k's in its order, named in words as on the Hub, but for a few:
    two of its classes are called crane, and a data set may not repeat a name."""
    published = labels("imagenet1k")
    if len(classes) != len(published):
        return False
    same = sum(name == label.name for name, label in zip(classes, published, strict=True))
    return same > 0.9 * len(published)


def as_names(names: Sequence[str], num_classes: int) -> tuple[str, ...]:
    """The names of a model's classes, in their order, which no dict and no set says; numpy's and
    pandas' too.

    Raises CheckpointError where they are not one for each.
    """
    listed = names.tolist() if hasattr(names, "tolist") else names
    is_list = isinstance(listed, Sequence) and not isinstance(listed, str)
    if not (is_list and len(listed) == num_classes and all(isinstance(n, str) for n in listed)):
        raise CheckpointError(
            f"labels are {shortened(names)}, but the model has {num_classes} classes; give a list "
            "of one name for each, in their order"
        )
    return tuple(listed)


@cache
def folders(kind: str) -> tuple[str, ...]:
    """The folder names of the classes of `imagenet1k` or `digits`, in class order."""
    return tuple(label.folder for label in labels(kind))
