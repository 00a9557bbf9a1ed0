"""Torch operations against Pillow's own, and timm's over it: every pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import RandAugment
from torch import Tensor

from deit_zoo.augment.draws import Operation
from deit_zoo.augment.operations import augmented, resized
from deit_zoo.augment.record import ARGUMENTS, NO_OPERATION, OPERATIONS
from deit_zoo.data.transforms import resize
from deit_zoo.recipes.deit import DEIT_BASE
from deit_zoo.training.seeding import seed_from_key
from deit_zoo.training.timm_bridge import train_augment, train_transform
from harness.slots import photograph
from support.tables import each_row

SIDE = 48
RECIPE = replace(DEIT_BASE, img_size=SIDE)
FACTORS = (0.0, 0.1, 0.5, 1 - 2e-8, 1.0, 1 + 2e-7, 1.81, 1.9, 2.8)
# What timm may ask of each operation, and its ends; the images that remain take draws between.
TRIED: dict[str, tuple[float, ...]] = {
    "AutoContrast": (),
    "Equalize": (),
    "Invert": (),
    "PosterizeIncreasing": (-1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
    "SolarizeIncreasing": (0, 1, 26, 127, 128, 255, 256),
    "SolarizeAdd": (0, 1, 55, 99, 110, 127, 128),
    "ColorIncreasing": FACTORS,
    "ContrastIncreasing": FACTORS,
    "BrightnessIncreasing": FACTORS,
    "SharpnessIncreasing": FACTORS,
    "Rotate": (0.0, 1e-9, 27.0, -27.0, 30.0, 45.0, 90.0, 180.0, 270.0, 359.0),
    "ShearX": (0.0, 1e-9, 0.3, -0.3, 0.5, 1.0),
    "ShearY": (0.0, 1e-9, 0.3, -0.3, 0.5, 1.0),
    "TranslateXRel": (0.0, 1e-9, 0.45, -0.45, 0.5, -1.0, 1 / 96),
    "TranslateYRel": (0.0, 1e-9, 0.45, -0.45, 0.5, -1.0, 1 / 96),
}
WHOLE = ("PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd")
# Width and height: enlarged, reduced, as they are; lines, and crops of nothing.
SIZES = [
    (SIDE, SIDE),
    (SIDE, 100),
    (100, SIDE),
    (SIDE - 1, SIDE + 1),
    (500, 375),
    (100, 900),
    (3000, 400),
    (2, 3),
    (1, 1),
    (1, 500),
    (700, 1),
    (0, 5),
    (5, 0),
]


def images_to_try() -> Iterator[Image.Image]:
    """Photographs, and what histograms are wary of: one colour, two, few levels, one pixel off."""
    for number in range(84):
        yield photograph(number, SIDE, SIDE)
    generator = np.random.default_rng(0)
    for levels in ((0,), (255,), (7,), (0, 255), (100, 101), (3, 4, 5), (0, 128), (250, 255)):
        yield Image.fromarray(generator.choice(np.uint8(levels), (SIDE, SIDE, 3)))
        pixels = np.full((SIDE, SIDE, 3), levels[0], dtype=np.uint8)
        pixels[5, 9] = levels[-1]
        yield Image.fromarray(pixels)


def tensor_of(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def arguments_of(name: str, count: int) -> list[tuple[float, ...]]:
    """An argument for each image: first those that are named, then random ones between."""
    named = TRIED[name]
    if not named:
        return [()] * count
    draws = np.random.default_rng(1).uniform(min(named), max(named), count - len(named))
    if name in WHOLE:
        draws = draws.round().astype(int)
    return [(value,) for value in [*named, *draws.tolist()]]


def operation_named(name: str) -> Callable[..., Operation]:
    """An operation of timm's as the transform of DeiT has it."""
    pipeline: Any = train_transform(RECIPE)
    augment = next(part for part in pipeline.transforms if isinstance(part, RandAugment))
    found = next(part for part in augment.ops if part.name == name)
    return lambda *arguments: Operation(found.aug_fn, arguments, found.kwargs)


def test_every_operation_is_tried() -> None:
    names = {name.removesuffix("Increasing").removesuffix("Rel") for name in TRIED}
    assert names == set(OPERATIONS)


@each_row("name", TRIED)
def test_an_operation_gives_timm_s_pixels_of_100_images(name: str) -> None:
    images = list(images_to_try())
    operations = [operation_named(name)(*given) for given in arguments_of(name, len(images))]
    augment = train_augment(RECIPE)
    seed_from_key(0)
    draws = augment.draw(SIDE, SIDE)
    layers = [augment.layers_of(draws._replace(operations=(one,)))[0] for one in operations]
    arguments = torch.zeros(len(images), ARGUMENTS, dtype=torch.float64)
    for number, layer in enumerate(layers):
        arguments[number, : len(layer.arguments)] = torch.tensor(
            layer.arguments, dtype=torch.float64
        )
    found = augmented(
        torch.stack([tensor_of(image) for image in images]),
        [layer.operation for layer in layers],
        arguments,
    )
    expected = [tensor_of(one(image)) for one, image in zip(operations, images, strict=True)]
    differing = [
        (number, operations[number].arguments)
        for number, pixels in enumerate(expected)
        if not torch.equal(found[number], pixels)
    ]
    assert len(images) == 100
    assert differing == []


def test_images_of_a_batch_are_changed_each_by_its_own_operation() -> None:
    images = torch.stack([tensor_of(photograph(number, 8, 8)) for number in range(3)])
    operations = [OPERATIONS.index("Invert"), NO_OPERATION, OPERATIONS.index("Brightness")]
    arguments = torch.zeros(3, ARGUMENTS, dtype=torch.float64)
    before = images.clone()
    found = augmented(images, operations, arguments)
    assert torch.equal(found[0], 255 - before[0])
    assert torch.equal(found[1], before[1])
    assert not found[2].any()
    assert torch.equal(images, before)


@each_row(("width", "height"), SIZES)
@each_row("size", ((SIDE, SIDE), (7, 7), (224, 224), (12, 40)))
def test_an_image_is_resized_to_pillow_s_pixels(
    width: int, height: int, size: tuple[int, int]
) -> None:
    image = (
        photograph(width, width, height) if width * height else Image.new("RGB", (width, height))
    )
    pixels = torch.from_numpy(np.array(image)).view(height, width, 3)
    assert torch.equal(resized(pixels, size), tensor_of(resize(image, size[::-1])))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_image_of_few_pixels_is_sharpened_as_pillow_does(size: int) -> None:
    # Pillow's filter keeps the border, and of an image of 2 pixels there is nothing else.
    image = photograph(0, size, size)
    expected = operation_named("SharpnessIncreasing")(1.7)(image)
    arguments = torch.full((1, ARGUMENTS), 1.7, dtype=torch.float64)
    found = augmented(tensor_of(image)[None], [OPERATIONS.index("Sharpness")], arguments)
    assert torch.equal(found[0], tensor_of(expected))
