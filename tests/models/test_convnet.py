"""Where the convnet's methods differ: it has no class token, no attention and no drop-path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deit_zoo.errors import ImageSizeError, ZooError
from deit_zoo.models.model import ZooModel
from deit_zoo.registry.names import resolve

pytestmark = pytest.mark.parametrize("build", ["convnet_pico_digits"], indirect=True)


def test_pooled_features_are_the_mean_over_the_map(network: ZooModel, images: Tensor) -> None:
    tokens = network.forward_features(images)
    found = network.forward_head(tokens, pre_logits=True)
    torch.testing.assert_close(found, tokens.mean(dim=1))


def test_the_last_intermediate_layer_is_the_features(network: ZooModel, images: Tensor) -> None:
    (found,) = network.get_intermediate_layers(images)
    torch.testing.assert_close(found, network.forward_features(images))


def test_the_features_of_a_model_that_stops_early_are_what_that_block_gives(
    network: ZooModel, images: Tensor
) -> None:
    for block in (0, 1):  # whose channels the last norm does not fit
        features, [own] = network.forward_intermediates(images, [block], stop_early=True)
        torch.testing.assert_close(features, own.flatten(2).transpose(1, 2))
    features, _ = network.forward_intermediates(images, [2], stop_early=True)
    torch.testing.assert_close(features, network.forward_features(images))


def test_each_later_stage_halves_the_resolution(network: ZooModel, images: Tensor) -> None:
    maps = network.get_intermediate_layers(images, n=3, reshape=True)
    assert [tuple(found.shape) for found in maps] == [
        (2, 16, 8, 12),
        (2, 32, 4, 6),
        (2, 48, 2, 3),
    ]


def test_the_mean_over_the_map_stands_for_the_class_token(
    network: ZooModel, images: Tensor
) -> None:
    for tokens, mean in network.get_intermediate_layers(images, n=3, return_class_token=True):
        torch.testing.assert_close(mean, tokens.mean(dim=1))


def test_attention_is_refused(network: ZooModel, images: Tensor) -> None:
    with pytest.raises(ZooError, match="a convnet has no attention maps"):
        network.attention(images)


def test_images_of_another_size_are_refused(network: ZooModel) -> None:
    with pytest.raises(ImageSizeError, match="images of 8x12 pixels, not 12x8"):
        network(torch.zeros(2, 3, 12, 8))


def test_a_size_that_cannot_be_halved_is_refused_with_the_nearest_that_can(
    network: ZooModel,
) -> None:
    with pytest.raises(ImageSizeError, match=r"img_size=\(16, 20\)"):
        resolve("convnet_pico_digits").build(img_size=(15, 21))


def test_stochastic_depth_is_refused(network: ZooModel) -> None:
    with pytest.raises(ZooError, match="a convnet here has no drop-path"):
        resolve("convnet_pico_digits").build(drop_path_rate=0.1)
