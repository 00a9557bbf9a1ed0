"""The door to timm: no image breaks it, fixed seeds give fixed numbers, targets are upstream's."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.auto_augment import AugmentOp, RandAugment
from torch import Tensor

import golden
from deit_zoo.augment.record import FILL, NO_OPERATION, OPERATIONS, Layer
from deit_zoo.data.transforms import normalized
from deit_zoo.errors import CheckpointError, RecipeError
from deit_zoo.manifest import IMAGENET_MEAN
from deit_zoo.recipes.deit import DEIT_BASE
from deit_zoo.recipes.recipe import Recipe
from deit_zoo.training.seeding import seed_from_key
from deit_zoo.training.timm_bridge import (
    Draws,
    Operation,
    TrainAugment,
    is_known,
    mixer,
    nearest,
    pretrained,
    train_augment,
    train_transform,
    with_weights,
)
from harness.slots import photograph
from support.tables import each_row

MIXUP = replace(DEIT_BASE, cutmix=0.0)
CUTMIX = replace(DEIT_BASE, mixup=0.0)
UNMIXED = replace(DEIT_BASE, mixup=0.0, cutmix=0.0)
SMALL = replace(DEIT_BASE, img_size=32)
# Strings of RandAugment with the probability of erasing.
AUGMENTED = [
    ("rand-m9-mstd0.5-inc1", 0.25),
    ("rand-m9-mstd0.5-inc1", 0.0),
    ("original", 0.25),
    (None, 0.25),
    (None, 0.0),
    ("rand-m7-n3", 1.0),
    ("rand-m9-mstd101", 0.25),
    ("rand-m0-p1-inc1", 0.25),  # rotates by 0 degrees
    ("rand-m20-mmax30-n5-p1-inc1-tweights", 0.25),
    ("rand-m5-n4-p1-t3a", 0.25),  # with operations that no device does
    ("rand-n0", 0.25),
]
TARGETS = golden.case("mixup_targets")
CASES = [pytest.param(entry, id=str(entry["index"])) for entry in TARGETS["cases"]]


@pytest.fixture
def float64() -> Iterator[None]:
    """timm and our mixer make targets in torch's default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def small_photos(count: int) -> Iterator[Image.Image]:
    """Images of 1 to 96 pixels a side, portrait and landscape."""
    sides = np.random.default_rng(0).integers(1, 97, (count, 2)).tolist()
    return (photograph(number, *size) for number, size in enumerate(sides))


def augmented(count: int) -> Iterator[Tensor]:
    """What the transform of DeiT base makes of so many images, each under its own key."""
    transform = train_transform(DEIT_BASE)
    for number, image in enumerate(small_photos(count)):
        seed_from_key(0, 0, 0, number, "augment")
        yield transform(image)


def posterize() -> AugmentOp:
    """RandAugment's posterize as the transform of DeiT base uses it, at its strongest."""
    pipeline: Any = train_transform(DEIT_BASE)
    augment = next(part for part in pipeline.transforms if isinstance(part, RandAugment))
    operation = next(part for part in augment.ops if part.name == "PosterizeIncreasing")
    operation.prob, operation.magnitude, operation.magnitude_std = 1.0, 10, 0.0
    return operation


def label_shares(mixed: Tensor, low: float, high: float) -> Tensor:
    """How much of each constant image is `high`, the rest being `low`."""
    return (mixed.mean(dim=(1, 2, 3)) - low) / (high - low)


# Warnings are errors in the tests, so this also proves that there are none.
def test_500_images_pass_through_the_whole_transform() -> None:
    found = [tuple(tensor.shape) for tensor in augmented(500) if torch.isfinite(tensor).all()]
    assert found == [(3, 224, 224)] * 500


def test_posterize_with_no_bits_is_black() -> None:
    # About once in 1,000 images. Pillow 12 and older, with which the published models were trained,
    # gave black; 13 raises.
    white = Image.new("RGB", (8, 8), (255, 255, 255))
    assert posterize()(white).getextrema() == ((0, 0),) * 3


def test_posterize_keeps_the_highest_bits() -> None:
    operation = posterize()
    operation.magnitude = 5  # of 10: 4 - int(5 / 10 * 4) = 2 bits
    assert operation(Image.new("RGB", (8, 8), (255, 127, 63))).getpixel((0, 0)) == (192, 64, 0)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, (-0.072, 0.103, 0.409, 0.613, -0.183, 0.468, 1.559)),
        (1, (0.457, 0.603, 0.819, 0.466, 1.102, 1.291, 1.490)),
        (2, (-0.216, -0.076, 0.200, 0.343, -1.073, -1.003, -0.515)),
        (3, (-0.288, -0.064, 0.147, 0.950, -1.467, -1.878, 0.374)),
    ],
)
def test_a_seed_gives_the_numbers_it_always_gave(number: int, expected: tuple[float, ...]) -> None:
    # Measured with timm 1.0.31 and Pillow 13.0: an upgrade that changes them is seen here.
    seed_from_key(0, 0, 0, number, "augment")
    tensor = train_transform(DEIT_BASE)(photograph(number, 320, 240))
    found = (*tensor.mean(dim=(1, 2)).tolist(), tensor.std().item(), *tensor[:, 50, 60].tolist())
    assert found == pytest.approx(expected, abs=2e-3)


def test_a_seed_gives_the_crops_of_pillow_12() -> None:
    # Measured with timm's own crop, 1.0.31, over Pillow 12.3; over 13 it gives others.
    pipeline: Any = train_transform(DEIT_BASE)
    pixels = np.random.default_rng(6).integers(0, 256, (640, 480, 3), dtype=np.uint8)
    digest = sha256()
    for number in range(40):
        seed_from_key(0, 0, 0, number, "augment")
        digest.update(pipeline.transforms[0](Image.fromarray(pixels)).tobytes())
    expected = "e9c984d9bd8be287ddc37644dada67d143f22d3a7e12a0fd2d0f6bb38741d85e"
    assert digest.hexdigest() == expected


def drawn_apart(augment: TrainAugment, image: Image.Image) -> Tensor:
    """What an image becomes by its draws, and by Pillow, normalised and erased afterwards."""
    draws = augment.draw(*image.size)
    top, left, height, width = draws.box
    crop = image.crop((left, top, left + width, top + height))
    pixels = np.array(augment.by_pillow(crop, draws))
    finished = normalized(torch.from_numpy(pixels).permute(2, 0, 1))
    if draws.erase is not None:
        top, left, height, width = draws.erase
        finished[:, top : top + height, left : left + width] = draws.noise
    return finished


def next_of_each_generator() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(1).item()


@each_row(("rand_augment", "erasing"), AUGMENTED)
def test_draws_apart_from_pixels_give_the_images_of_the_transform(
    rand_augment: str | None, erasing: float
) -> None:
    recipe = replace(SMALL, rand_augment=rand_augment, random_erasing=erasing)
    transform, augment = train_transform(recipe), train_augment(recipe)
    for number, image in enumerate(small_photos(40)):
        seed_from_key(0, 0, 0, number, "augment")
        expected = transform(image)
        after = next_of_each_generator()
        seed_from_key(0, 0, 0, number, "augment")
        assert torch.equal(drawn_apart(augment, image), expected)
        assert next_of_each_generator() == after


def test_an_image_that_is_not_flipped_by_the_recipe_draws_nothing_for_it() -> None:
    recipe = replace(SMALL, hflip=0.0)
    image = photograph(0, 40, 30)
    seed_from_key(0)
    expected = train_transform(recipe)(image)
    seed_from_key(0)
    assert torch.equal(drawn_apart(train_augment(recipe), image), expected)


def test_a_worker_that_is_sent_the_draws_makes_the_same() -> None:
    augment = train_augment(SMALL)
    sent = pickle.loads(pickle.dumps(augment))
    for number in range(20):
        layers = []
        for made in (augment, sent):
            seed_from_key(number)
            layers.append(made.layers_of(made.draw(300, 200)))
        assert layers[0] == layers[1]


@pytest.mark.parametrize(
    ("rand_augment", "layers", "on_device"),
    [
        ("rand-m9-mstd0.5-inc1", 2, True),
        ("rand-m9", 2, True),
        ("rand-n3-tweights", 3, True),
        ("rand-t3a", 2, False),
        ("original", 2, True),
        (None, 0, True),
    ],
)
def test_the_operations_of_a_recipe_say_whether_a_device_does_them(
    rand_augment: str | None, layers: int, on_device: bool
) -> None:
    augment = train_augment(replace(SMALL, rand_augment=rand_augment))
    assert (augment.layers, augment.on_device) == (layers, on_device)


def layers_with(operation: Operation, recipe: Recipe = SMALL) -> list[Layer]:
    """What a device is given for an image with this operation alone."""
    augment = train_augment(recipe)
    seed_from_key(0)
    draws: Draws = augment.draw(50, 40)._replace(operations=(operation,))
    return augment.layers_of(draws)


def applied(name: str, *arguments: float) -> Operation:
    """An operation as timm would apply it."""
    pipeline: Any = train_transform(SMALL)
    augment = next(part for part in pipeline.transforms if isinstance(part, RandAugment))
    found = next(part for part in augment.ops if part.name == name)
    return Operation(found.aug_fn, arguments, found.kwargs)


@pytest.mark.parametrize(
    ("name", "argument", "expected"),
    [
        ("ShearX", 0.2, (1, 0.2, 0, 0, 1, 0)),
        ("ShearY", -0.2, (1, 0, 0, -0.2, 1, 0)),
        ("TranslateXRel", 0.25, (1, 0, 8, 0, 1, 0)),  # of 32 pixels
        ("TranslateYRel", -0.5, (1, 0, 0, 0, 1, -16)),
        ("Rotate", 0.0, (1, 0, 0, 0, 1, 0)),
        ("Rotate", 90.0, (0, -1, 32, 1, 0, 0)),
        ("Rotate", 180.0, (-1, 0, 32, 0, -1, 32)),
        ("Rotate", -90.0, (0, 1, 0, -1, 0, 32)),
    ],
)
def test_an_operation_that_moves_pixels_is_given_as_a_map(
    name: str, argument: float, expected: tuple[float, ...]
) -> None:
    # From timm's functions; a rotation is about the centre, (16, 16).
    layer, empty = layers_with(applied(name, argument))
    assert OPERATIONS[layer.operation] == name.removesuffix("Rel")
    assert layer.arguments == expected
    assert empty == Layer(NO_OPERATION, ())


def test_a_rotation_is_the_map_that_pillow_makes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    maps: list[tuple[float, ...]] = []
    monkeypatch.setattr(Image.Image, "transform", lambda *given, **_: maps.append(tuple(given[3])))
    Image.new("RGB", (32, 32)).rotate(17.3, Image.Resampling.BICUBIC)
    monkeypatch.undo()
    assert layers_with(applied("Rotate", 17.3))[0].arguments == maps[0]


def test_the_other_operations_are_given_with_the_arguments_of_timm() -> None:
    layer, _ = layers_with(applied("SolarizeIncreasing", 26))
    assert (OPERATIONS[layer.operation], layer.arguments) == ("Solarize", (26.0,))
    layer, _ = layers_with(applied("Equalize"))
    assert (OPERATIONS[layer.operation], layer.arguments) == ("Equalize", ())


def test_a_moved_image_is_filled_as_devices_fill_it() -> None:
    # timm fills with the mean of ImageNet.
    assert applied("Rotate").options["fillcolor"] == FILL
    assert tuple(round(255 * mean) for mean in IMAGENET_MEAN) == FILL
    assert applied("Rotate").options["resample"] == Image.Resampling.BICUBIC


def test_an_image_of_any_shape_is_cropped_within_itself() -> None:
    # Of one line of pixels a crop may be empty; it is never outside.
    augment = train_augment(SMALL)
    for number, size in enumerate([(1, 1), (1, 500), (700, 1), (100, 900), (3000, 400)] * 20):
        seed_from_key(number)
        top, left, height, width = augment.draw(*size).box
        assert min(top, left, height, width) >= 0
        assert left + width <= size[0]
        assert top + height <= size[1]


@pytest.mark.parametrize("recipe", [MIXUP, CUTMIX], ids=["mixup", "cutmix"])
def test_a_seed_gives_the_lambda_it_always_gave(recipe: Recipe) -> None:
    seed_from_key(0, 0, 0, 0, "mixup")
    images = torch.zeros(2, 3, 32, 32)
    _, targets = mixer(replace(recipe, label_smoothing=0.0), 2)(images, torch.tensor([0, 1]))
    expected = {0.0: 0.940671980, 1.0: 0.902343750}[recipe.cutmix]
    assert targets[0, 0].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("entry", CASES)
@pytest.mark.usefixtures("float64")
def test_mixed_targets_are_those_of_the_original(
    entry: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = golden.arrays(TARGETS)
    number, classes = entry["index"], entry["num_classes"]
    monkeypatch.setattr(np.random, "beta", lambda a, b: entry["lam"])
    recipe = replace(MIXUP, label_smoothing=entry["smoothing"])
    labels = torch.from_numpy(stored[f"labels_{number}"])
    _, found = mixer(recipe, classes)(torch.zeros(len(labels), 3, 4, 4), labels)
    np.testing.assert_allclose(found, stored[f"targets_{number}"], rtol=1e-12, atol=1e-15)


def test_the_beta_parameters_are_the_recipe_s(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, float]] = []
    monkeypatch.setattr(np.random, "beta", lambda a, b: asked.append((a, b)) or 0.5)
    for switch in (0.0, 1.0):
        recipe = replace(DEIT_BASE, mixup_switch_prob=switch)
        mixer(recipe, 2)(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))
    assert asked == [(0.8, 0.8), (1.0, 1.0)]


@each_row("recipe", [MIXUP, CUTMIX])
@each_row("seed", range(4))
def test_a_label_weighs_as_much_as_its_image_shows(recipe: Recipe, seed: int) -> None:
    seed_from_key(seed, "mixup")
    images = torch.stack((torch.full((3, 32, 32), -1.0), torch.full((3, 32, 32), 2.0)))
    labels = torch.tensor([0, 1])
    mixed, targets = mixer(replace(recipe, label_smoothing=0.0), 2)(images, labels)
    torch.testing.assert_close(label_shares(mixed, -1.0, 2.0), targets[:, 1])


def test_cutmix_moves_a_box_and_mixup_blends() -> None:
    images = torch.stack((torch.zeros(3, 32, 32), torch.ones(3, 32, 32)))
    values = []
    for recipe in (CUTMIX, MIXUP):
        seed_from_key(1, "mixup")
        mixed, _ = mixer(recipe, 2)(images.clone(), torch.tensor([0, 1]))
        values.append(mixed[0].unique().numel())
    assert values == [2, 1]


def test_the_box_of_cutmix_has_an_odd_side_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of 32 pixels sqrt(1 - lambda) are 23.5. timm 0.3.2 halved 23 twice and cut 22 x 22.
    monkeypatch.setattr(np.random, "beta", lambda a, b: 1 - (23.5 / 32) ** 2)
    monkeypatch.setattr(np.random, "randint", lambda low, high, size=None: 16)
    images = torch.stack((torch.zeros(3, 32, 32), torch.ones(3, 32, 32)))
    recipe = replace(CUTMIX, label_smoothing=0.0)
    mixed, targets = mixer(recipe, 2)(images, torch.tensor([0, 1]))
    assert mixed[0, 0].sum() == 23 * 23
    assert targets[0, 1].item() == pytest.approx(23 * 23 / 32**2)


def test_a_mixing_probability_of_zero_leaves_images_as_they_are() -> None:
    images = torch.rand(2, 3, 4, 4)
    found, _ = mixer(replace(DEIT_BASE, mixup_prob=0.0), 2)(images.clone(), torch.tensor([0, 1]))
    assert torch.equal(found, images)


def test_without_mixing_labels_are_smoothed_by_the_formula() -> None:
    # 0.1 / 4 everywhere, and 1 - 0.1 more on the label.
    _, targets = mixer(UNMIXED, 4)(torch.zeros(2, 3, 4, 4), torch.tensor([2, 0]))
    expected = torch.tensor([[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]])
    torch.testing.assert_close(targets, expected)


def test_without_mixing_images_stay_as_they_are() -> None:
    images = torch.rand(2, 3, 4, 4)
    found, _ = mixer(UNMIXED, 4)(images.clone(), torch.tensor([2, 0]))
    assert torch.equal(found, images)


@pytest.mark.parametrize("recipe", [DEIT_BASE, UNMIXED], ids=["mixed", "unmixed"])
def test_targets_sum_to_one(recipe: Recipe) -> None:
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = mixer(recipe, 10)
    _, targets = mix(torch.zeros(4, 3, 8, 8), torch.tensor([1, 1, 7, 9]))
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))


@pytest.mark.parametrize("name", ["resnet18", "resnet18.a1_in1k", "resnet18.no_such_tag"])
def test_an_architecture_of_timm_is_known_whatever_its_tag(name: str) -> None:
    assert is_known(name)


@pytest.mark.parametrize("name", ["", "resnet", "deit_ti", "timm/resnet18", "hf-hub:timm/resnet18"])
def test_what_is_no_architecture_of_timm_is_not_known(name: str) -> None:
    assert not is_known(name)


def test_the_nearest_architecture_has_the_most_letters_in_common() -> None:
    assert nearest("ResNet-18", 1) == ["resnet18"]


def test_a_network_with_given_weights_says_what_its_images_are() -> None:
    # timm's record of test_vit: 160 pixels and no other, mean and std of 0.5.
    tensors = timm.create_model("test_vit", num_classes=5).state_dict()
    found = with_weights("test_vit", tensors, Path("mine.pth"))
    assert (found.name, found.num_classes) == ("test_vit.r160_in1k", 5)
    assert (found.mean, found.std, found.img_size) == ((0.5,) * 3, (0.5,) * 3, (160, 160))
    assert not found.network.training
    state = found.network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in tensors.items())


def test_a_convnet_takes_images_of_any_size() -> None:
    tensors = timm.create_model("test_resnet", num_classes=5).state_dict()
    assert with_weights("test_resnet", tensors, Path("mine.pth")).img_size is None


def test_weights_of_another_network_are_refused_with_the_first_keys() -> None:
    tensors = timm.create_model("test_resnet", num_classes=5).state_dict()
    del tensors["bn1.weight"]
    tensors["extra"] = torch.zeros(1)
    tensors["bn1.bias"] = torch.zeros(3)
    with pytest.raises(CheckpointError) as caught:
        with_weights("test_resnet", tensors, Path("mine.pth"))
    assert str(caught.value) == (
        "mine.pth does not fit timm's test_resnet: bn1.bias, bn1.weight, extra are missing, "
        "unexpected or of another shape; give the architecture that it was saved of"
    )


def test_weights_that_timm_never_had_are_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        pretrained("test_vit.no_such_tag")
    assert str(caught.value) == (
        "timm has no weights of the name 'test_vit.no_such_tag'; its weights are "
        "test_vit.r160_in1k; give one, or yours as test_vit@FILE"
    )
