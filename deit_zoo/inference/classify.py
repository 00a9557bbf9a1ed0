"""The most probable classes of images, and what a model calls them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deit_zoo.data.transforms import normalized
from deit_zoo.evaluation.accuracy import eval_mode, oom_as_error
from deit_zoo.labels import Label, labels
from deit_zoo.manifest import Reading
from deit_zoo.models.layers import ZooModel, spec_of
from deit_zoo.results import Prediction

BATCH_SIZE = 32  # images classified at once


def class_names(model: ZooModel) -> tuple[Any, ...]:
    """The labels of a model's classes; numbers where only their count is known."""
    own = getattr(model, "labels", None)  # a RegNet from timm has none
    if own is not None and len(own) == model.num_classes:
        return tuple(Label(folder, folder) for folder in own)
    known = labels(spec_of(model).labels)
    if len(known) == model.num_classes:
        return known
    return tuple(Label(str(number), str(number)) for number in range(model.num_classes))


def reading_for(model: ZooModel) -> Reading:
    """How images are decoded to measure a model: as it says, else upright for classes of its own.

    One that knows the published classes is measured as the published figures were.
    """
    if model.reading is not None:
        return model.reading
    own = [label.folder for label in class_names(model)]
    published = [label.folder for label in labels(spec_of(model).labels)]
    return "upstream" if own == published else "upright"


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
        best = logits.float().softmax(dim=-1).topk(min(topk, network.num_classes))
    return [
        [
            Prediction(names[number].name, share, number, names[number].folder)
            for share, number in zip(shares, numbers, strict=True)
        ]
        for shares, numbers in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
