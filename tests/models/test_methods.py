"""The methods that every model of every family has."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from deit_zoo.errors import ZooError
from deit_zoo.labels import SEVERAL_LABELS
from deit_zoo.models.model import ZooModel
from support.tables import each_row

DEPTH = 3
DIM = 48
GRID = (2, 3)
PATCHES = 6

only_distilled = pytest.mark.parametrize("build", ["deit_tiny_distilled"], indirect=True)
transformers = pytest.mark.parametrize(
    "build", ["deit_tiny", "deit_tiny_distilled", "cait_xxs24_224"], indirect=True
)
only_deit = pytest.mark.parametrize("build", ["deit_tiny", "deit_tiny_distilled"], indirect=True)
only_cait = pytest.mark.parametrize("build", ["cait_xxs24_224"], indirect=True)
one_head = pytest.mark.parametrize(
    "build", ["deit_tiny", "cait_xxs24_224", "convnet_pico_digits"], indirect=True
)


def outputs_of(
    modules: dict[str, nn.Module], model: Callable[[Tensor], Any], images: Tensor
) -> dict[str, Tensor]:
    """What the named modules give while the model runs."""
    seen: dict[str, Tensor] = {}
    for name, module in modules.items():
        module.register_forward_hook(lambda _, args, out, name=name: seen.update({name: out}))
    model(images)
    return seen


def cut(network: ZooModel, blocks: int) -> ZooModel:
    """The same network without its later self-attention blocks."""
    shorter = deepcopy(network)
    shorter.blocks = shorter.blocks[:blocks]
    return shorter


def test_forward_features_gives_every_token(network: ZooModel, images: Tensor) -> None:
    tokens = PATCHES + getattr(network, "num_prefix_tokens", 0)
    assert network.forward_features(images).shape == (2, tokens, DIM)


@transformers
def test_forward_features_ends_with_the_last_norm(network: ZooModel, images: Tensor) -> None:
    seen = outputs_of({"norm": network.norm}, network, images)
    assert torch.equal(network.forward_features(images), seen["norm"])


def test_forward_is_the_head_on_the_features(network: ZooModel, images: Tensor) -> None:
    found = network.forward_head(network.forward_features(images))
    assert torch.equal(found, network(images))


def test_logits_have_one_column_per_class(network: ZooModel, images: Tensor) -> None:
    assert network(images).shape == (2, 10)


@one_head
def test_pre_logits_are_what_the_head_reads(network: ZooModel, images: Tensor) -> None:
    pooled = network.forward_head(network.forward_features(images), pre_logits=True)
    assert pooled.shape == (2, DIM)
    assert torch.equal(network.head(pooled), network(images))


@only_distilled
def test_pre_logits_of_a_distilled_model_are_the_mean_of_both_tokens(
    network: ZooModel, images: Tensor
) -> None:
    tokens = network.forward_features(images)
    found = network.forward_head(tokens, pre_logits=True)
    torch.testing.assert_close(found, tokens[:, :2].mean(dim=1))


@only_distilled
def test_pre_logits_of_a_distilled_model_are_one_tensor_in_train_mode(
    network: ZooModel, images: Tensor
) -> None:
    found = network.train().forward_head(network.forward_features(images), pre_logits=True)
    assert found.shape == (2, DIM)


@only_distilled
def test_a_distilled_model_returns_both_logits_in_train_mode(
    network: ZooModel, images: Tensor
) -> None:
    tokens = network.forward_features(images)
    logits, logits_dist = network.train()(images)
    assert torch.equal(logits, network.head(tokens[:, 0]))
    assert torch.equal(logits_dist, network.head_dist(tokens[:, 1]))


@only_distilled
def test_a_distilled_model_returns_the_mean_of_both_logits_in_eval_mode(
    network: ZooModel, images: Tensor
) -> None:
    expected = torch.stack(network.train()(images)).mean(dim=0)
    torch.testing.assert_close(network.eval()(images), expected)


@one_head
def test_a_model_with_one_head_returns_one_tensor_in_train_mode(
    network: ZooModel, images: Tensor
) -> None:
    assert torch.equal(network.train()(images), network.eval()(images))


@transformers
@pytest.mark.parametrize("last", range(DEPTH))
def test_intermediate_layers_are_the_features_of_a_model_that_ends_there(
    network: ZooModel, images: Tensor, last: int
) -> None:
    tokens = cut(network, last + 1).forward_features(images)
    (found,) = network.get_intermediate_layers(images, n=[last])
    torch.testing.assert_close(found, tokens[:, network.num_prefix_tokens :])


@transformers
@pytest.mark.parametrize("last", range(DEPTH))
def test_intermediate_class_tokens_are_those_of_a_model_that_ends_there(
    network: ZooModel, images: Tensor, last: int
) -> None:
    tokens = cut(network, last + 1).forward_features(images)
    ((_, found),) = network.get_intermediate_layers(images, n=[last], return_class_token=True)
    torch.testing.assert_close(found, tokens[:, 0])


def test_class_tokens_come_beside_the_same_patches(network: ZooModel, images: Tensor) -> None:
    pairs = network.get_intermediate_layers(images, n=2, return_class_token=True)
    alone = network.get_intermediate_layers(images, n=2)
    torch.testing.assert_close(tuple(patches for patches, _ in pairs), alone, rtol=0, atol=0)


@each_row(
    ("asked", "same"),
    [
        ({}, [2]),
        ({"n": 1}, [2]),
        ({"n": 2}, [1, 2]),
        ({"n": np.int64(2)}, [1, 2]),
        ({"n": 3}, [0, 1, 2]),
        ({"n": [-3, -1]}, [0, 2]),
    ],
)
def test_intermediate_layers_are_the_last_one_the_last_n_or_those_of_a_list(
    network: ZooModel, images: Tensor, asked: dict[str, Any], same: list[int]
) -> None:
    found = network.get_intermediate_layers(images, **asked)
    expected = network.get_intermediate_layers(images, n=same)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_reshaped_intermediate_layers_lie_as_the_patches_do(
    network: ZooModel, images: Tensor
) -> None:
    (grid,) = network.get_intermediate_layers(images, reshape=True)
    (tokens,) = network.get_intermediate_layers(images)
    rows = [
        torch.stack([tokens[:, GRID[1] * row + column] for column in range(GRID[1])], dim=-1)
        for row in range(GRID[0])
    ]
    assert torch.equal(grid, torch.stack(rows, dim=-2))


@transformers
def test_intermediate_layers_without_the_norm_are_what_the_blocks_give(
    network: ZooModel, images: Tensor
) -> None:
    found = network.get_intermediate_layers(images, n=DEPTH, norm=False)
    seen = outputs_of(dict(network.blocks.named_children()), network, images)
    skipped = seen["0"].shape[1] - PATCHES
    expected = tuple(seen[str(number)][:, skipped:] for number in range(DEPTH))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@each_row("n", [0, 4, -1, [], [3], [-4], True, "2", [1.0]])
def test_intermediate_layers_that_do_not_exist_are_refused(
    network: ZooModel, images: Tensor, n: int | list[int]
) -> None:
    with pytest.raises(ZooError, match="the model has 3 blocks"):
        network.get_intermediate_layers(images, n=n)


@transformers
def test_the_last_attention_is_the_default(network: ZooModel, images: Tensor) -> None:
    last = DEPTH + len(getattr(network, "blocks_token_only", ())) - 1
    found, expected = network.attention(images), network.attention(images, layers=(last,))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@transformers
def test_attention_comes_in_the_order_asked_for(network: ZooModel, images: Tensor) -> None:
    found = network.attention(images, layers=(2, 0))
    expected = [network.attention(images, layers=(layer,))[0] for layer in (2, 0)]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@transformers
@each_row("layers", [(), (9,), (-9,), -1])
def test_attention_of_layers_that_do_not_exist_is_refused(
    network: ZooModel, images: Tensor, layers: tuple[int, ...]
) -> None:
    with pytest.raises(ZooError, match=r"the model has \d blocks"):
        network.attention(images, layers=layers)


def scores(query: Tensor, key: Tensor, num_heads: int) -> Tensor:
    """Scaled products of each head's own channels: (B, H, queries, keys)."""
    size = DIM // num_heads
    channels = [slice(head * size, (head + 1) * size) for head in range(num_heads)]
    heads = [query[..., own] @ key[..., own].transpose(1, 2) / size**0.5 for own in channels]
    return torch.stack(heads, dim=1)


@pytest.mark.parametrize("layer", range(DEPTH))
@only_deit
def test_self_attention_is_the_softmax_of_scaled_products(
    network: ZooModel, images: Tensor, layer: int
) -> None:
    (found,) = network.double().attention(images.double(), layers=(layer,))
    qkv = outputs_of({"qkv": network.blocks[layer].attn.qkv}, network, images.double())["qkv"]
    query, key, _ = qkv.split(DIM, dim=-1)
    torch.testing.assert_close(found, scores(query, key, num_heads=3).softmax(dim=-1))


@pytest.mark.parametrize("layer", range(DEPTH))
@only_cait
def test_talking_heads_attention_is_the_softmax_of_mixed_products(
    network: ZooModel, images: Tensor, layer: int
) -> None:
    (found,) = network.double().attention(images.double(), layers=(layer,))
    attn = network.blocks[layer].attn
    query, key, _ = outputs_of({"qkv": attn.qkv}, network, images.double())["qkv"].split(DIM, -1)
    mixed = torch.einsum("gh,bhqk->bgqk", attn.proj_l.weight, scores(query, key, num_heads=4))
    expected = (mixed + attn.proj_l.bias[:, None, None]).softmax(dim=-1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("layer", [0, 1])
@only_cait
def test_class_attention_is_the_softmax_of_the_class_tokens_products(
    network: ZooModel, images: Tensor, layer: int
) -> None:
    (found,) = network.double().attention(images.double(), layers=(DEPTH + layer,))
    attn = network.blocks_token_only[layer].attn
    seen = outputs_of({"q": attn.q, "k": attn.k}, network, images.double())
    expected = scores(seen["q"], seen["k"], num_heads=4).softmax(dim=-1)
    torch.testing.assert_close(found, expected)


@transformers
def test_a_model_runs_on_fused_kernels(
    network: ZooModel, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Tensor, ...]] = []
    fused = F.scaled_dot_product_attention

    def counted(*args: Tensor) -> Tensor:
        calls.append(args)
        return fused(*args)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    network(images)
    # Heads that talk leave no room for the kernel; CaiT's class-attention blocks use it.
    assert len(calls) == len(getattr(network, "blocks_token_only", network.blocks))


@one_head
def test_the_classifier_is_the_head(network: ZooModel) -> None:
    assert network.get_classifier() is network.head


@only_distilled
def test_the_classifier_of_a_distilled_model_is_both_heads(network: ZooModel) -> None:
    head, head_dist = network.get_classifier()
    assert head is network.head
    assert head_dist is network.head_dist


def test_reset_classifier_gives_a_head_for_the_new_classes(
    network: ZooModel, images: Tensor
) -> None:
    network.reset_classifier(7)
    assert network(images).shape == (2, 7)
    assert network.num_classes == 7


@only_distilled
def test_reset_classifier_gives_a_distilled_model_two_heads_for_the_new_classes(
    network: ZooModel, images: Tensor
) -> None:
    network.train().reset_classifier(7)
    assert [logits.shape for logits in network(images)] == [(2, 7), (2, 7)]


def test_a_fresh_head_knows_neither_names_nor_how_the_former_ones_were_told(
    network: ZooModel,
) -> None:
    network.labels = [f"class {n}" for n in range(network.num_classes)]
    network.problem_type = SEVERAL_LABELS
    network.reset_classifier(7)
    assert (network.labels, network.problem_type) == (None, None)


def test_reset_classifier_replaces_the_head_and_nothing_else(network: ZooModel) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.reset_classifier(10)
    after = network.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {name for name in before if name.startswith("head")}


def test_a_fresh_head_is_of_the_models_dtype(network: ZooModel, images: Tensor) -> None:
    network.double().reset_classifier(7)
    assert network(images.double()).dtype == torch.float64


def test_a_fresh_head_starts_as_the_first_one_did(network: ZooModel) -> None:
    network.reset_classifier(1000)
    assert network.head.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert network.head.bias.abs().max() == 0


def test_no_classes_leave_the_pooled_features(network: ZooModel, images: Tensor) -> None:
    expected = network.forward_head(network.forward_features(images), pre_logits=True)
    network.reset_classifier(0)
    torch.testing.assert_close(network(images), expected)


def test_a_model_built_without_classes_has_no_head(build: Callable[..., ZooModel]) -> None:
    assert not [name for name in build(num_classes=0).state_dict() if name.startswith("head")]


@pytest.mark.parametrize("number", [-1, "3", 2.0, True])
def test_what_is_no_number_of_classes_is_refused(network: ZooModel, number: Any) -> None:
    with pytest.raises(ZooError, match=f"num_classes is {number!r}"):
        network.reset_classifier(number)


def test_a_head_is_reset_with_the_pooling_that_it_has(network: ZooModel) -> None:
    network.reset_classifier(3, global_pool=network.global_pool)  # as timm's callers give it
    assert network.num_classes == 3
    with pytest.raises(ZooError, match=r"^global_pool is 'map', but the head of \w+ reads"):
        network.reset_classifier(3, "map")


@transformers
def test_no_weight_decay_names_the_class_token_and_the_positions(network: ZooModel) -> None:
    # Upstream's timm 0.3.2 lists these two; the distillation token it does decay.
    assert network.no_weight_decay() == {"cls_token", "pos_embed"}


def expected_depths(network: ZooModel) -> dict[str, int]:
    """Where each parameter stands: the stem, the blocks, the norm with the last of them, the head.

    CaiT's class-attention blocks come after all self-attention blocks.
    """
    class_blocks = len(getattr(network, "blocks_token_only", ()))
    starts = {"blocks.": 1, "blocks_token_only.": 1 + DEPTH}
    depths = {}
    for name, _ in network.named_parameters():
        start = next((first for prefix, first in starts.items() if name.startswith(prefix)), None)
        if start is not None:
            depths[name] = start + int(name.split(".")[1])
        elif name.startswith("norm"):
            depths[name] = DEPTH + class_blocks
        else:
            depths[name] = DEPTH + class_blocks + 1 if name.startswith("head") else 0
    return depths


def ranks(values: dict[str, float]) -> dict[str, int]:
    """Each value by its place among the distinct ones."""
    order = sorted(set(values.values()))
    return {name: order.index(value) for name, value in values.items()}


@pytest.mark.parametrize("coarse", [False, True])
def test_timm_groups_parameters_by_their_depth(network: ZooModel, coarse: bool) -> None:
    groups = group_parameters(network, network.group_matcher(coarse=coarse))
    found = {name: float(layer) for layer, names in groups.items() for name in names}
    assert ranks(found) == expected_depths(network)


@transformers
def test_timm_decays_neither_vectors_nor_the_names_of_no_weight_decay(network: ZooModel) -> None:
    optimizer = create_optimizer_v2(network, opt="adamw", lr=1.0, weight_decay=0.05)
    decayed = {
        id(value)
        for group in optimizer.param_groups
        for value in group["params"]
        if group["weight_decay"] > 0
    }
    found = {name for name, value in network.named_parameters() if id(value) not in decayed}
    vectors = {name for name, value in network.named_parameters() if value.ndim == 1}
    assert found == vectors | network.no_weight_decay()
