"""Any classifier as a teacher: found by its name or file, checked, and shown the student's images.

A teacher is a name of the zoo (its verified checkpoint), NAME@PLACE (an architecture of the zoo or
of timm with weights of yours), a file or folder that says which model it is, a repository of the
Hub, or a name of timm, looked for in this order.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit_zoo.errors import CheckpointError, RecipeError
from deit_zoo.files import WEIGHTS_SUFFIXES, digest
from deit_zoo.manifest import IMAGENET_MEAN, IMAGENET_STD, manifest_record
from deit_zoo.models.layers import as_pair
from deit_zoo.recipes.recipe import Recipe
from deit_zoo.registry import ModelSpec
from deit_zoo.registry.names import lookup, nearest
from deit_zoo.training import timm_bridge
from deit_zoo.weights.load import open_local, read_tensors, resolve_file
from deit_zoo.zoo import create

_PATHS = ("/", "./", "../", "~")
_HUB = re.compile(r"^(hf://|hf[-_]hub:)")
_REPO = re.compile(r"[\w.-]+/[\w.-]+(@[^/@]+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Teacher:
    """A frozen classifier that turns the student's images into logits.

    `img_size` is the only size of images that it takes; None where any will do. `facts` say for
    the receipt what it is and where it came from.
    """

    network: nn.Module
    num_classes: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    img_size: tuple[int, int] | None = None
    facts: dict[str, Any]
    prepare: Callable[[Tensor], Tensor] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network(self.prepare(images) if self.prepare else images)


def teacher_for(recipe: Recipe, num_classes: int, device: torch.device) -> Teacher:
    """The recipe's teacher, loaded, frozen and tried on one image of the student's size."""
    teacher = loader_of(recipe)()
    name, img_size = recipe.teacher, as_pair(recipe.img_size)
    if teacher.num_classes != num_classes:
        raise RecipeError(
            f"the teacher {name} knows {teacher.num_classes} classes, the student "
            f"{num_classes}; fine-tune it on these classes first, or choose another"
        )
    if recipe.teacher_input == "own":
        teacher = replace(teacher, prepare=own_preprocessing(teacher, device))
    elif (teacher.mean, teacher.std) != (IMAGENET_MEAN, IMAGENET_STD):
        raise RecipeError(
            f"the teacher {name} takes images of mean {teacher.mean} and std {teacher.std}, the "
            f"student those of {IMAGENET_MEAN} and {IMAGENET_STD}; type --set teacher_input=own"
        )
    elif teacher.img_size not in (None, img_size):
        raise RecipeError(
            f"the teacher {name} takes images of {_pixels(teacher.img_size)} pixels alone, the "
            f"student those of {_pixels(img_size)}; type --set teacher_input=own"
        )
    teacher.network.to(device).eval().requires_grad_(False)
    _check_outputs(teacher, torch.zeros(1, 3, *img_size, device=device), str(name))
    return teacher


def check(recipe: Recipe) -> None:
    """Raises what says that a recipe's teacher cannot be had, without loading or fetching it."""
    if recipe.teacher is not None:
        loader_of(recipe)
        is_address = "hf://" in recipe.teacher or _HUB.match(recipe.teacher)
        path = recipe.teacher.partition("@")[2] or recipe.teacher
        is_file = path.startswith(_PATHS) or Path(path).suffix in WEIGHTS_SUFFIXES
        if is_file and not is_address:
            open_local(path)


def facts_of(recipe: Recipe) -> dict[str, Any]:
    """What a receipt says of a recipe's teacher. One of the zoo is not built for it."""
    load = loader_of(recipe)
    return load.facts() if isinstance(load, _OfZoo) else load().facts


def loader_of(recipe: Recipe) -> Callable[[], Teacher]:
    """What gives the teacher that a recipe names. Raises RecipeError saying what it can be."""
    text = str(recipe.teacher)
    if _HUB.match(text):
        return partial(_from_hub, recipe, _HUB.sub("", text))
    name, at, path = text.partition("@")
    if text.startswith(_PATHS) or (not path and Path(text).suffix in WEIGHTS_SUFFIXES):
        return partial(_from_file, recipe, text)
    if bool(at) == bool(path):  # NAME@ alone names nothing
        if (spec := lookup(name)) is not None:
            return _OfZoo(recipe, spec, path or None)
        if timm_bridge.is_known(name):
            if path:
                return partial(_timm_teacher_with, name, path)
            return lambda: _timm_teacher(timm_bridge.pretrained(name))
    if text and Path(text).exists():
        return partial(_from_file, recipe, text)
    if _REPO.fullmatch(text):
        return partial(_from_hub, recipe, text)
    near = ", ".join([*nearest(text, 2), *timm_bridge.nearest(text, 2)])
    raise RecipeError(
        f"teacher is {text!r}, which neither the zoo nor timm knows; give a name such as {near}, "
        "NAME@FILE for weights of yours, a folder of a run, or hf://ORG/REPO"
    )


def own_preprocessing(teacher: Teacher, device: torch.device) -> Callable[[Tensor], Tensor]:
    """From the student's normalised images to the teacher's: other numbers, maybe another size."""
    ours = [torch.tensor(values, device=device) for values in (IMAGENET_MEAN, IMAGENET_STD)]
    own = [torch.tensor(values, device=device) for values in (teacher.mean, teacher.std)]
    scale = (ours[1] / own[1])[:, None, None]
    shift = ((ours[0] - own[0]) / own[1])[:, None, None]

    def prepare(images: Tensor) -> Tensor:
        images = images * scale + shift
        if teacher.img_size in (None, tuple(images.shape[-2:])):
            return images
        return F.interpolate(images, teacher.img_size, mode="bicubic", antialias=True)

    return prepare


@dataclass(frozen=True)
class _OfZoo:
    """A model of the zoo at the student's image size, or at its own if that is asked for."""

    recipe: Recipe
    spec: ModelSpec
    path: str | None

    def __call__(self) -> Teacher:
        size = None if self.recipe.teacher_input == "own" else self.recipe.img_size
        network = create(self.spec.name, pretrained=True, checkpoint=self.path, img_size=size)
        return Teacher(
            network=network,
            num_classes=network.num_classes,
            # timm's RegNet averages over whatever map an image gives.
            img_size=None if self.spec.family == "regnet" else network.img_size,
            facts=self.facts(),
        )

    def facts(self) -> dict[str, Any]:
        if self.path is None:
            file = resolve_file(manifest_record(self.spec.name)).path
        else:
            file = open_local(self.path).path
        source = self.path or "manifest"
        return {"name": self.spec.name, "source": source, "sha256": digest(file)}


def _from_file(recipe: Recipe, text: str) -> Teacher:
    """A model that was saved with its name, as a run's is."""
    checkpoint = open_local(text)
    spec = lookup(str(checkpoint.metadata.get("name")))
    if spec is None:
        raise CheckpointError(
            f"{checkpoint.path} does not say which model it is; give the teacher as NAME@{text}"
        )
    return _OfZoo(recipe, spec, text)()


def _from_hub(recipe: Recipe, address: str) -> Teacher:
    """A repository: the zoo's own record of it, a model that the zoo saved, or one of timm's."""
    repo = address.partition("@")[0]
    if (spec := lookup(repo)) is not None:
        return _OfZoo(recipe, spec, None if address == repo else f"hf://{address}")()
    checkpoint = open_local(f"hf://{address}")
    if checkpoint.metadata.get("name") or not _REPO.fullmatch(address):
        return _from_file(recipe, f"hf://{address}")
    return _timm_teacher(timm_bridge.pretrained(f"hf-hub:{address}"))


def _timm_teacher_with(name: str, path: str) -> Teacher:
    file = open_local(path).path
    model = timm_bridge.with_weights(name, read_tensors(file), file)
    return _timm_teacher(model, source=path)


def _timm_teacher(model: timm_bridge.TimmModel, source: str | None = None) -> Teacher:
    return Teacher(
        network=model.network,
        num_classes=model.num_classes,
        mean=model.mean,
        std=model.std,
        img_size=model.img_size,
        facts={
            "name": model.name,
            "source": source or model.source,
            "sha256": digest(model.file) if model.file else None,
        },
    )


def _check_outputs(teacher: Teacher, image: Tensor, name: str) -> None:
    """One image before the first batch, so that what does not fit is one sentence."""
    try:
        shape = tuple(teacher(image).shape)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"the teacher {name} cannot read images of {_pixels(image.shape[-2:])} pixels "
            f"({reason}); choose another"
        ) from error
    if shape != (1, teacher.num_classes):
        raise RecipeError(
            f"the teacher {name} answers an image with a tensor of {shape}, not with "
            f"{teacher.num_classes} logits; choose a classifier"
        )


def _pixels(size: Any) -> str:
    return f"{size[0]}x{size[1]}"
