"""The one door to timm: augmentation, mixing and the teacher, used as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import timm
import torch
from PIL import Image, ImageOps
from timm.data import Mixup, create_transform
from timm.data.auto_augment import RandAugment
from torch import Tensor, nn

from deit_zoo.models.layers import as_pair
from deit_zoo.preprocess import IMAGENET_MEAN, IMAGENET_STD
from deit_zoo.training.recipe import Recipe


def regnety_160(
    *,
    img_size: int | Sequence[int] = 224,
    in_chans: int = 3,
    num_classes: int = 1000,
    drop_path_rate: float = 0.0,
) -> nn.Module:
    """RegNetY-16GF (arXiv 2003.13678), DeiT's teacher, as timm builds it."""
    network: Any = timm.create_model(
        "regnety_160", in_chans=in_chans, num_classes=num_classes, drop_path_rate=drop_path_rate
    )
    network.img_size = as_pair(img_size)
    network.embed_dim = network.num_features
    return cast(nn.Module, network)


def train_transform(recipe: Recipe) -> Callable[[Image.Image], Tensor]:
    """Random resized crop, flip, RandAugment, normalisation and erasing (DeiT, Table 9)."""
    pipeline = create_transform(
        input_size=recipe.img_size,
        is_training=True,
        scale=recipe.crop_scale,
        ratio=recipe.crop_ratio,
        hflip=recipe.hflip,
        color_jitter=None,  # inactive upstream too: timm drops it when RandAugment is on
        auto_augment=recipe.rand_augment,
        interpolation="bicubic",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        re_prob=recipe.random_erasing,
        re_mode="pixel",
    )
    for part in pipeline.transforms:
        if isinstance(part, RandAugment):
            for operation in part.ops:
                if operation.name.startswith("Posterize"):
                    operation.aug_fn = _posterize
    transform: Callable[[Image.Image], Tensor] = pipeline
    return transform


def mixer(recipe: Recipe, num_classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images and labels to mixed images and soft targets: one draw of lambda per call."""
    if recipe.mixup or recipe.cutmix:
        mixed: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = Mixup(
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            prob=recipe.mixup_prob,
            switch_prob=recipe.mixup_switch_prob,
            mode="batch",
            label_smoothing=recipe.label_smoothing,
            num_classes=num_classes,
        )
        return mixed

    def smoothed(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        spread = recipe.label_smoothing / num_classes
        targets = torch.full((len(labels), num_classes), spread, device=images.device)
        return images, targets.scatter_(1, labels[:, None], 1.0 - recipe.label_smoothing + spread)

    return smoothed


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the highest bits of each channel; timm may ask for 0, which Pillow 13 refuses.

    Older Pillow, with which the published models were trained, answered with a black image.
    """
    if bits >= 8:
        return image
    if bits < 1:
        return Image.new(image.mode, image.size)
    return ImageOps.posterize(image, bits)
