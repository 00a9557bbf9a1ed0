"""3-Augment: each operation as torchvision does it, and draws that are functions of their key."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as torchvision

from deit_zoo.augment.draws import Draws
from deit_zoo.augment.record import Box
from deit_zoo.augment.three_augment import colours, one_of_three, simple_crop
from deit_zoo.data.transforms import resize
from deit_zoo.errors import RecipeError
from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.plan import Plan
from deit_zoo.recipes.recipe import Recipe
from deit_zoo.training.data import augments_on_device
from deit_zoo.training.seeding import seed_from_key
from deit_zoo.training.timm_bridge import TrainAugment, train_augment
from support.tables import each_row

SMALL = RECIPES["deit3_small"]
MUCH_DATA = RECIPES["deit3_small_in21k"]


def photograph(width: int = 61, height: int = 45) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)


def same(found: Image.Image, expected: Image.Image) -> bool:
    return np.array_equal(np.asarray(found), np.asarray(expected))


def drawn(recipe: Recipe, position: int) -> Draws:
    seed_from_key(0, 0, 0, position, "augment")
    return train_augment(recipe).draw(61, 45)


def three(seed: int) -> tuple[str, Image.Image]:
    """The name of an operation that is drawn, and what it makes."""
    random.seed(seed)
    operation = one_of_three()
    return operation.function.__name__, operation(photograph())


@pytest.mark.parametrize("recipe", [SMALL, MUCH_DATA])
def test_a_worker_that_is_not_forked_is_sent_the_draws(recipe: Recipe) -> None:
    sent = pickle.loads(pickle.dumps(train_augment(recipe)))
    seed_from_key(0, 0, 0, 7, "augment")
    assert sent.draw(61, 45) == drawn(recipe, 7)


def test_each_of_the_three_comes_as_often() -> None:
    random.seed(0)
    counts = Counter(one_of_three().function.__name__ for _ in range(3000))
    assert set(counts) == {"grey", "solarize", "blurred"}
    assert min(counts.values()) > 900


def test_grey_is_torchvisions_grayscale_and_solarised_from_128() -> None:
    expected = {
        "grey": torchvision.to_grayscale(photograph(), 3),
        "solarize": torchvision.solarize(photograph(), 128),
    }
    made = dict(three(seed) for seed in range(20))
    assert all(same(made[name], image) for name, image in expected.items())


def test_blur_is_gaussian_with_a_radius_from_a_tenth_to_two() -> None:
    random.seed(0)
    operations = [one_of_three() for _ in range(600)]
    radii = [o.arguments[0] for o in operations if o.function.__name__ == "blurred"]
    assert 0.1 <= min(radii) < 0.2 < 1.9 < max(radii) <= 2.0
    blur = next(o for o in operations if o.function.__name__ == "blurred" and o.arguments[0] > 1.5)
    # Pillow sums boxes, torchvision weights: no pixel of noise is further off than a few levels.
    pixels = torch.from_numpy(np.asarray(photograph()).copy()).permute(2, 0, 1)
    expected = torchvision.gaussian_blur(pixels, [15, 15], [blur.arguments[0]] * 2)
    found = torch.from_numpy(np.asarray(blur(photograph())).copy()).permute(2, 0, 1)
    inner = (slice(None), slice(8, -8), slice(8, -8))
    assert (found[inner].int() - expected[inner].int()).abs().max() <= 6


def test_colours_are_torchvisions_in_an_order_that_is_drawn() -> None:
    adjust = {
        "Brightness": torchvision.adjust_brightness,
        "Contrast": torchvision.adjust_contrast,
        "Color": torchvision.adjust_saturation,
    }
    orders = set()
    for seed in range(40):
        random.seed(seed)
        image, expected, order = photograph(), photograph(), []
        for operation in colours(0.3):
            [factor], name = operation.arguments, operation.options["kind"].__name__
            assert 0.7 <= factor <= 1.3
            image, expected = operation(image), adjust[name](expected, factor)
            order.append(name)
        assert same(image, expected)
        orders.add(tuple(order))
    assert len(orders) == 6


@each_row("box", [Box(0, 0, 32, 32), Box(8, 8, 32, 32), Box(4, 4, 32, 32), Box(0, 19, 32, 32)])
def test_the_simple_crop_is_torchvisions_of_a_reflected_image(box: Box) -> None:
    image = photograph(61, 45)
    small = resize(image, (43, 32))  # torchvision: the short side 32, the long one int(32 * 61/45)
    assert torchvision.resize(image, 32).size == (43, 32)
    padded = torchvision.pad(small, 4, padding_mode="reflect")
    expected = torchvision.crop(padded, box.top, box.left, box.height, box.width)
    assert same(simple_crop(image, (43, 32), box), expected)


def test_the_simple_crop_lies_anywhere_in_the_padded_image() -> None:
    recipe = replace(MUCH_DATA, img_size=32)
    crops = [drawn(recipe, position).operations[0].arguments for position in range(900)]
    assert {size for size, _ in crops} == {(43, 32)}
    assert {box.top for _, box in crops} == set(range(9))
    assert {box.left for _, box in crops} == set(range(20))


@pytest.mark.parametrize("recipe", [SMALL, MUCH_DATA], ids=["resized", "simple"])
def test_an_image_comes_out_at_its_size_and_by_its_key_alone(recipe: Recipe) -> None:
    recipe = replace(recipe, img_size=32)
    image = photograph(61, 45)

    def made(position: int) -> Image.Image:
        draws = drawn(recipe, position)
        top, left, height, width = draws.box
        crop = image.crop((left, top, left + width, top + height))
        return train_augment(recipe).by_pillow(crop, draws)

    assert {made(position).size for position in range(20)} == {(32, 32)}
    assert all(same(made(position), made(position)) for position in range(5))
    assert len({made(position).tobytes() for position in range(20)}) == 20


def test_the_resized_crop_is_the_one_that_timm_draws() -> None:
    plain = train_augment(replace(SMALL, three_augment=False, color_jitter=0.0))
    assert isinstance(plain, TrainAugment)
    for position in range(20):
        seed_from_key(0, 0, 0, position, "augment")
        assert plain.draw(61, 45).box == drawn(SMALL, position).box


def test_a_device_leaves_it_to_the_workers() -> None:
    plan = Plan(
        recipe=SMALL, modified=False, device="cuda", processes=8, workers=1, num_images=1_281_167
    )
    assert not augments_on_device(plan, train_augment(SMALL))
    with pytest.raises(RecipeError, match=r"of three_augment only .* can be done"):
        augments_on_device(replace(plan, augment="device"), train_augment(SMALL))


@each_row(
    ("change", "message"),
    [
        ({"rand_augment": "rand-m9"}, "takes the place of RandAugment"),
        ({"random_erasing": 0.25}, "takes the place of RandAugment and of erasing"),
        ({"three_augment": False}, "without three_augment, which alone has them"),
        ({"color_jitter": -1.0}, "color_jitter is -1.0; it must be 0 or more"),
    ],
)
def test_what_does_not_go_with_it_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        replace(SMALL, **change)  # type: ignore[arg-type]
