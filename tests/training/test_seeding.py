"""Randomness as a function: a key decides every draw, whoever asks, whenever, and in what order."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deit_zoo.data.folder import FolderSet
from deit_zoo.recipes.digits import DEIT_PICO
from deit_zoo.recipes.plan import Plan
from deit_zoo.training.data import Batch, Key, KeyedImages, TrainLoader
from deit_zoo.training.seeding import seed_from_key
from deit_zoo.training.timm_bridge import train_transform

RECIPE = replace(DEIT_PICO, batch_size=64, replicas=2)
KEYS = [
    (0, 7, 3, 11, "augment"),
    (1, 7, 3, 11, "augment"),
    (0, 8, 3, 11, "augment"),
    (0, 7, 4, 11, "augment"),
    (0, 7, 3, 12, "augment"),
    (0, 7, 3, 11, "mixup"),
    (0, 7, 31, 1, "augment"),
]


def draws_of(*key: int | str) -> tuple[float, float, float]:
    """The first draw of each generator under a key."""
    seed_from_key(*key)
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@pytest.fixture(scope="module")
def images(digits_folder: Path) -> KeyedImages:
    return KeyedImages(FolderSet(digits_folder / "train"), train_transform(RECIPE), RECIPE.seed)


@pytest.fixture(scope="module")
def epoch_with(images: KeyedImages) -> Callable[[int], list[Batch]]:
    """All batches of epoch 5 as a loader with so many workers gives them."""

    def batches(workers: int) -> list[Batch]:
        plan = Plan(
            recipe=RECIPE,
            modified=True,
            device="cpu",
            processes=1,
            workers=workers,
            num_images=len(images.images),
        )
        supply = TrainLoader(images.images, images.transform, plan, range(2))
        found = list(supply.epoch(5))
        supply.close()
        return found

    return batches


@pytest.mark.parametrize("generator", [0, 1, 2], ids=["random", "numpy", "torch"])
def test_the_same_key_gives_the_same_draws(generator: int) -> None:
    first = draws_of(*KEYS[0])[generator]
    draws_of(*KEYS[1])
    assert draws_of(*KEYS[0])[generator] == first


@pytest.mark.parametrize("generator", [0, 1, 2], ids=["random", "numpy", "torch"])
def test_different_keys_give_different_draws(generator: int) -> None:
    assert len({draws_of(*key)[generator] for key in KEYS}) == len(KEYS)


def test_the_draws_of_a_key_never_change() -> None:
    # Measured once: another derivation of seeds would silently start every run elsewhere.
    found = draws_of(0, 7, 3, 11, "augment")
    assert found == pytest.approx((0.52663573209, 0.10793266835, 0.63076329231), abs=1e-10)


def test_an_image_does_not_depend_on_what_was_asked_before(images: KeyedImages) -> None:
    keys = [Key(image, 2, 1, position) for position, image in enumerate(range(0, 320, 40))]
    forwards = [images[key][0] for key in keys]
    backwards = [images[key][0] for key in reversed(keys)]
    assert torch.equal(torch.stack(forwards), torch.stack(backwards[::-1]))


def test_an_image_is_augmented_otherwise_at_another_position(images: KeyedImages) -> None:
    first, second = (images[Key(0, 2, 1, position)][0] for position in (0, 1))
    assert not torch.equal(first, second)


def test_an_image_is_augmented_otherwise_in_another_epoch(images: KeyedImages) -> None:
    first, second = (images[Key(0, epoch, 1, 0)][0] for epoch in (2, 3))
    assert not torch.equal(first, second)


def test_an_image_is_augmented_otherwise_under_another_seed(images: KeyedImages) -> None:
    other = KeyedImages(images.images, images.transform, seed=1)
    assert not torch.equal(images[Key(0, 2, 1, 0)][0], other[Key(0, 2, 1, 0)][0])


def test_an_image_comes_with_its_own_label(images: KeyedImages) -> None:
    found = [images[Key(image, 0, 0, 0)][1] for image in (0, 100, 319)]
    names = [images.images.name_of(image) for image in (0, 100, 319)]
    assert found == [int(Path(name).parent.name) for name in names]


# torch warns where there are fewer than 3 cores, and that is no matter here.
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes:UserWarning")
@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_no_bit(
    epoch_with: Callable[[int], list[Batch]], workers: int
) -> None:
    alone, together = epoch_with(0), epoch_with(workers)
    assert len(alone) == len(together) == 8
    assert all(
        torch.equal(first, second)
        for pair in zip(alone, together, strict=True)
        for first, second in zip(*pair, strict=True)
    )
