"""The most probable classes of images, and what a model calls them."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from io import BytesIO
from typing import Any

import torch
from torch import Tensor

from deit_zoo.data.image_like import from_pixels
from deit_zoo.data.prefetch import prefetch
from deit_zoo.data.transforms import as_tensor, normalized, transform_of
from deit_zoo.errors import DataError
from deit_zoo.evaluation.accuracy import eval_mode, not_finite, oom_as_error
from deit_zoo.labels import SEVERAL_LABELS, Label, as_names, labels
from deit_zoo.manifest import Reading
from deit_zoo.models.model import ZooModel, num_classes_of, spec_of
from deit_zoo.results import Prediction

THUMBNAIL = 96  # pixels of its longer side


def class_names(model: ZooModel) -> tuple[Label, ...]:
    """The labels of a model's classes: those it has names for; numbers where it has none."""
    known = {label.folder: label for label in labels(spec_of(model).labels)}
    own, num_classes = model.labels or (), num_classes_of(model)
    if len(own) == num_classes:
        names = as_names(own, num_classes)  # a teacher from timm takes anything for its labels
    else:  # of a head that was replaced
        names = tuple(str(number) for number in range(num_classes))
    return tuple(known.get(folder, Label(folder, folder)) for folder in names)


def reading_for(model: ZooModel) -> Reading:
    """How images are decoded to measure a model: as it says, else upright for classes of its own.

    One that knows the published classes is measured as the published figures were.
    """
    own_reading: Reading | None = getattr(model, "reading", None)  # a RegNet from timm has none
    if own_reading is not None:
        return own_reading
    own = [label.folder for label in class_names(model)]
    published = [label.folder for label in labels(spec_of(model).labels)]
    return "upstream" if own == published else "upright"


def probabilities(model: ZooModel, logits: Tensor) -> Tensor:
    """Of each class: all together 1, or each by itself where an image may have several labels, or
    none, as with a single class."""
    return logits.sigmoid() if is_by_class(model) else logits.softmax(dim=-1)


def is_by_class(model: ZooModel) -> bool:
    """Whether each class has a probability of its own, as a single one must."""
    return gives_several(model) or num_classes_of(model) == 1


def gives_several(model: ZooModel) -> bool:
    """Whether a model judges each class by itself, so that an image may have several labels."""
    # A RegNet from timm has no such word.
    return getattr(model, "problem_type", None) == SEVERAL_LABELS


def predictions(network: ZooModel, images: list[Tensor], topk: int) -> list[list[Prediction]]:
    """The `topk` most probable classes of uint8 pixels (3, H, W), in one batch."""
    names = class_names(network)
    where = next(network.parameters())
    with eval_mode(network), oom_as_error(len(images), where.device), torch.inference_mode():
        pixels = torch.stack(images)
        if where.device.type == "cuda":
            pixels = pixels.pin_memory().to(where.device, non_blocking=True)
        # An optimized model normalises by itself.
        own = getattr(network, "takes_pixels", False)
        ready = pixels if own else normalized(pixels).to(where.dtype)
        logits: Tensor = network(ready.to(where.device))
        best = probabilities(network, logits.float()).topk(min(topk, len(names)))
        values = best.values.cpu()
    if not values.isfinite().all():
        raise not_finite(network)
    return [
        [
            Prediction(names[number].name, share, number, names[number].folder)
            for share, number in zip(shares, numbers, strict=True)
        ]
        for shares, numbers in zip(values.tolist(), best.indices.tolist(), strict=True)
    ]


def classify_stream(
    network: ZooModel,
    images: Iterable[tuple[str, Any]],
    topk: int,
    *,
    batch_size: int,
    threads: int | None,
) -> Generator[list[tuple[str, Tensor | DataError, list[Prediction] | DataError]], None, None]:
    """Batch by batch of named images: the name, the pixels and the classes of each, or in their
    place why it could not be read. Threads read ahead while the model works."""
    prepare = transform_of(network)

    def read(named: tuple[str, Any]) -> tuple[str, Tensor | DataError]:
        name, image = named
        if isinstance(image, DataError):
            return name, image
        try:
            return name, as_tensor(image, prepare.pixels, name)
        except DataError as error:
            return name, error

    with prefetch(images, read, batch_size=batch_size, threads=threads) as batches:
        for batch in batches:
            readable = [pixels for _, pixels in batch if not isinstance(pixels, DataError)]
            best = iter(predictions(network, readable, topk) if readable else ())
            yield [
                (name, pixels, pixels if isinstance(pixels, DataError) else next(best))
                for name, pixels in batch
            ]


def thumbnail(pixels: Tensor) -> bytes:
    """A small JPEG of the uint8 pixels (3, H, W) that a model saw."""
    file = BytesIO()
    image = from_pixels(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(file, "JPEG", quality=85)
    return file.getvalue()
