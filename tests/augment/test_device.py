"""From a slot to float32 images: equal in every bit to the transform that Pillow does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import invert, translate_x_rel
from torch import Tensor

from deit_zoo.augment.device import finish
from deit_zoo.augment.draws import Draws, Operation
from deit_zoo.augment.record import FILL, ROW, Box
from deit_zoo.data.transforms import normalized
from deit_zoo.recipes.deit import DEIT_BASE
from deit_zoo.recipes.recipe import Recipe
from deit_zoo.training.seeding import seed_from_key
from deit_zoo.training.timm_bridge import train_augment, train_transform
from harness.slots import drawn_slot, photograph
from support.tables import each_row

SMALL = replace(DEIT_BASE, img_size=64)
TINY = train_augment(replace(DEIT_BASE, img_size=8))
SHAPES = ((80, 60), (60, 80), (64, 64), (37, 51), (100, 90), (1, 40), (70, 1))
LARGE = ((500, 375), (375, 500), (224, 224), (100, 900), (3000, 400), (1, 300), (400, 1))


def image_of(number: int, shapes: tuple[tuple[int, int], ...]) -> Image.Image:
    """A photograph in one of the shapes; some were grey, some CMYK before they were RGB."""
    image = photograph(number, *shapes[number % len(shapes)])
    former = ("RGB", "RGB", "RGB", "L", "CMYK")[number % 5]
    return image.convert(former).convert("RGB")


def unequal(recipe: Recipe, numbers: range, shapes: tuple[tuple[int, int], ...]) -> list[int]:
    """Which images are other than those of the transform, in batches of 20."""
    transform, augment = train_transform(recipe), train_augment(recipe)
    differing = []
    for first in range(0, len(numbers), 20):
        batch = numbers[first : first + 20]
        expected, drawn = [], []
        for number in batch:
            image = image_of(number, shapes)
            seed_from_key(0, 0, 0, number, "augment")
            expected.append(transform(image))
            seed_from_key(0, 0, 0, number, "augment")
            drawn.append((image, augment.draw(*image.size)))
        slot, records = drawn_slot(drawn, augment)
        images = torch.full((len(batch), 3, *augment.img_size), torch.nan)
        finish(slot, records, images)
        equal = (images == torch.stack(expected)).flatten(1).all(dim=1).tolist()
        differing += [number for number, same in zip(batch, equal, strict=True) if not same]
    return differing


def whole(image: Image.Image, **changes: Any) -> tuple[Image.Image, Draws]:
    """An image of which all is kept as it is, but for these changes."""
    plain = Draws(Box(0, 0, image.height, image.width), False, (), None, None)
    return image, plain._replace(**changes)


def pixels_of(image: Image.Image) -> Tensor:
    return normalized(torch.from_numpy(np.array(image)).permute(2, 0, 1))


def test_300_images_are_those_of_the_transform() -> None:
    assert unequal(SMALL, range(300), SHAPES) == []


@pytest.mark.slow
def test_1000_images_of_every_shape_are_those_of_the_transform() -> None:
    assert unequal(DEIT_BASE, range(1000), LARGE) == []


@each_row(
    ("rand_augment", "erasing"),
    [(None, 0.0), (None, 1.0), ("rand-m7-n3-p1", 0.25), ("rand-m9-mmax30-mstd101-n1", 0.0)],
)
def test_other_recipes_are_finished_as_their_transforms_do(
    rand_augment: str | None, erasing: float
) -> None:
    recipe = replace(SMALL, img_size=32, rand_augment=rand_augment, random_erasing=erasing)
    assert unequal(recipe, range(40), SHAPES) == []


def test_a_rectangle_is_finished_as_its_transform_does() -> None:
    recipe = replace(SMALL, img_size=(24, 40), rand_augment="rand-m9-n3-p1", random_erasing=1.0)
    assert unequal(recipe, range(40), SHAPES) == []


def test_what_workers_finished_by_pillow_is_normalised_and_erased() -> None:
    noise = torch.arange(18.0).view(3, 2, 3)
    first, second = (photograph(number, 8, 8) for number in range(2))
    drawn = [whole(first, erase=Box(1, 4, 2, 3), noise=noise), whole(second)]
    images = torch.full((2, 3, 8, 8), torch.nan)
    finish(*drawn_slot(drawn, TINY), images)
    expected = pixels_of(first)
    expected[:, 1:3, 4:7] = noise
    assert torch.equal(images[0], expected)
    assert torch.equal(images[1], pixels_of(second))


def test_an_image_goes_to_the_row_that_its_place_names_and_others_stay() -> None:
    # As where several slots make up one batch.
    crops = [photograph(number, 8, 8) for number in range(3)]
    slot, records = drawn_slot([whole(crop) for crop in crops], TINY)
    records[:, ROW] = (4, 0, 2)
    images = torch.full((5, 3, 8, 8), 7.0)
    finish(slot, records, images)
    for row, crop in zip((4, 0, 2), crops, strict=True):
        assert torch.equal(images[row], pixels_of(crop))
    assert (images[[1, 3]] == 7.0).all()


def test_operations_come_after_the_flip_and_one_after_another() -> None:
    crop = photograph(0, 8, 8)
    moved_by_two = Operation(translate_x_rel, (0.25,), {"fillcolor": FILL})
    drawn = [whole(crop, flip=True, operations=(moved_by_two, Operation(invert, (), {})))]
    images = torch.full((1, 3, 8, 8), torch.nan)
    finish(*drawn_slot(drawn, TINY), images)
    flipped = np.array(crop)[:, ::-1]
    moved = np.full_like(flipped, FILL)
    moved[:, :-2] = flipped[:, 2:]
    assert torch.equal(images[0], pixels_of(Image.fromarray(255 - moved)))


@each_row("size", [(0, 5), (5, 0), (0, 0)])
def test_a_crop_of_nothing_is_black(size: tuple[int, int]) -> None:
    images = torch.full((1, 3, 8, 8), torch.nan)
    finish(*drawn_slot([whole(Image.new("RGB", size))], TINY), images)
    assert torch.equal(images[0], pixels_of(Image.new("RGB", (8, 8))))
