"""What `forward` leaves out in eval mode without gradients, and who switches that off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.flop_counter import FlopCounterMode

import deit_zoo
import golden
from deit_zoo.models import cait
from deit_zoo.models.cait import CaiT
from deit_zoo.models.deit import VisionTransformer
from deit_zoo.models.layers import ZooModel, attend

LIMIT = 1e-9  # of the whole array's largest magnitude, as in test_golden.py
DIM, HEADS, PREFIX, PATCHES = 48, 3, 1, 6

QUICK = {
    "forward/deit_tiny_patch16_224",
    "forward/deit_tiny_distilled_patch16_224",
    "forward/deit_tiny_distilled_patch16_224@img_size=160,num_classes=37",
    "forward/cait_XXS24_224",
}

transformers = pytest.mark.parametrize(
    "build", ["deit_tiny", "deit_tiny_distilled", "cait_xxs24_224"], indirect=True
)
only_deit = pytest.mark.parametrize("build", ["deit_tiny"], indirect=True)
only_cait = pytest.mark.parametrize("build", ["cait_xxs24_224"], indirect=True)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case, id=case["name"], marks=[] if case["name"] in QUICK else [pytest.mark.slow]
        )
        for case in golden.cases("forward")
    ],
)
def test_logits_of_the_short_way_are_those_of_the_original(case: dict[str, Any]) -> None:
    model = golden.network(case).eval().double()
    expected = golden.arrays(case)["logits"]
    with torch.inference_mode():
        assert model.may_skip()
        found = model(golden.batch(case).double()).numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= LIMIT * np.abs(expected).max()


@transformers
@pytest.mark.parametrize("options", [{}, {"num_classes": 0}, {"depth": 1}, {"img_size": (48, 16)}])
def test_the_short_way_gives_what_the_long_way_gives(
    build: Callable[..., ZooModel], options: dict[str, Any]
) -> None:
    model = build(**options).eval().double()
    images = torch.from_numpy(golden.normals("short", (2, 3, *model.img_size))).double()
    with torch.no_grad():
        assert model.may_skip()
        found = model(images)
        expected = model.forward_head(model.forward_features(images))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@transformers
def test_the_short_way_ends_with_the_tokens_that_the_head_reads(
    network: ZooModel, images: Tensor
) -> None:
    with torch.no_grad():
        found = network.double().forward_prefix(images.double())
        every = network.forward_features(images.double())
    prefix = every[:, : network.num_prefix_tokens]
    torch.testing.assert_close(found, prefix, rtol=1e-12, atol=1e-12)


@only_deit
def test_the_last_block_costs_little_beyond_its_scores(network: ZooModel, images: Tensor) -> None:
    with torch.no_grad(), FlopCounterMode(display=False) as short:
        network.forward_prefix(images)
    with torch.no_grad(), FlopCounterMode(display=False) as long:
        network.forward_features(images)
    # By hand, of two images and 7 tokens: the projections and the MLP of 6 tokens go, and so do
    # all keys and values; in their place come 3 heads' queries and reads of 48 channels each.
    tokens = PREFIX + PATCHES
    before = tokens * (3 + 1 + 8) * DIM**2
    after = PREFIX * (1 + 1 + 8) * DIM**2 + PREFIX * (DIM**2 + DIM**2)
    after += 2 * HEADS * PREFIX * tokens * DIM
    attended = 2 * tokens**2 * DIM  # which an older torch does not count on a CPU
    saved = long.get_total_flops() - short.get_total_flops()
    assert saved in (2 * 2 * (before + attended - after), 2 * 2 * (before - after))


def test_a_convnet_has_no_short_way() -> None:
    model = deit_zoo.create("convnet_pico_digits").eval()
    with torch.no_grad():
        assert not model.may_skip()


@transformers
def test_train_mode_takes_the_long_way(network: ZooModel) -> None:
    with torch.no_grad():
        assert network.may_skip()
        assert not network.train().may_skip()


@transformers
def test_gradients_take_the_long_way(network: ZooModel) -> None:
    assert not network.may_skip()


class Adapted(nn.Linear):
    """A linear layer as an adapter replaces it: beside the weight there is more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean(dim=-1, keepdim=True)


class Doubled(nn.Module):
    """A weight computed from another one."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def adapt(block: nn.Module) -> None:
    adapted = Adapted(DIM, 3 * DIM)
    adapted.load_state_dict(block.attn.qkv.state_dict())
    block.attn.qkv = adapted


def parametrize_qkv(block: nn.Module) -> None:
    parametrize.register_parametrization(block.attn.qkv, "weight", Doubled())


def replace_weight(block: nn.Module) -> None:
    weight = block.attn.qkv.weight.detach()
    # Two plain tensors behind one, as a quantized weight is made of several.
    block.attn.qkv.weight = nn.Parameter(TwoTensor(weight, weight.clone()), requires_grad=False)


@only_deit
@pytest.mark.parametrize("touch", [adapt, parametrize_qkv, replace_weight])
def test_a_replaced_part_of_the_last_block_is_used(
    network: ZooModel, images: Tensor, touch: Callable[[nn.Module], None]
) -> None:
    touch(network.blocks[-1])
    with torch.no_grad():
        assert not network.may_skip()
        found = network(images)
        expected = network.forward_head(network.forward_features(images))
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))


WATCHED = ["blocks.2", "blocks.2.norm1", "blocks.2.attn", "blocks.2.attn.qkv", "blocks.2.attn.proj"]
WATCHED += ["blocks.2.drop_path", "blocks.2.norm2", "blocks.2.mlp", "blocks.2.mlp.fc1", "norm"]


@only_deit
@pytest.mark.parametrize("name", WATCHED)
def test_a_hook_in_the_last_block_sees_every_token(
    network: ZooModel, images: Tensor, name: str
) -> None:
    seen: list[torch.Size] = []
    hook = network.get_submodule(name).register_forward_hook(
        lambda module, args, out: seen.append(out.shape)
    )
    with torch.no_grad():
        assert not network.may_skip()
        network(images)
        hook.remove()
        assert network.may_skip()
    assert {shape[:2] for shape in seen} == {(2, PREFIX + PATCHES)}


@only_deit
@pytest.mark.parametrize("name", WATCHED)
def test_a_hook_before_the_last_block_sees_every_token(
    network: ZooModel, images: Tensor, name: str
) -> None:
    seen: list[torch.Size] = []
    network.get_submodule(name).register_forward_pre_hook(
        lambda module, args: seen.append(args[0].shape)
    )
    with torch.no_grad():
        assert not network.may_skip()
        network(images)
    assert {shape[:2] for shape in seen} == {(2, PREFIX + PATCHES)}


@only_cait
def test_a_hook_on_the_last_norm_of_cait_sees_every_token(
    network: ZooModel, images: Tensor
) -> None:
    seen: list[torch.Size] = []
    network.norm.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    with torch.no_grad():
        assert not network.may_skip()
        network(images)
    assert seen == [(2, 1 + PATCHES, DIM)]


@only_cait
@pytest.mark.parametrize("name", ["k", "v"])
def test_a_hook_in_class_attention_sees_every_token(
    network: ZooModel, images: Tensor, name: str
) -> None:
    seen: list[torch.Size] = []
    layer = network.blocks_token_only[0].attn.get_submodule(name)
    layer.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    with torch.no_grad():
        watched = network(images)
    assert seen == [(2, 1 + PATCHES, DIM)]
    torch.testing.assert_close(watched, network(images).detach())


@transformers
@pytest.mark.parametrize("name", ["blocks.0", "blocks.0.attn.qkv", "patch_embed", "head"])
def test_a_hook_elsewhere_leaves_the_short_way(
    network: ZooModel, images: Tensor, name: str
) -> None:
    seen: list[str] = []
    network.get_submodule(name).register_forward_hook(lambda *_: seen.append(name))
    with torch.no_grad():
        assert network.may_skip()
        network(images)
    assert seen == [name]


@transformers
def test_a_hook_on_all_modules_sees_every_token(network: ZooModel, images: Tensor) -> None:
    seen: list[torch.Size] = []

    def look(module: nn.Module, args: object, out: Tensor) -> None:
        if module is network.norm:
            seen.append(out.shape)

    with nn.modules.module.register_module_forward_hook(look), torch.no_grad():
        assert not network.may_skip()
        network(images)
    assert [shape[1] for shape in seen] == [network.num_prefix_tokens + PATCHES]


# Whose results the next operation would overwrite, were nobody watching.
@transformers
@pytest.mark.parametrize("name", ["mlp.fc1", "mlp.fc2", "mlp", "attn.proj", "attn"])
def test_what_a_hook_keeps_is_not_overwritten(network: ZooModel, images: Tensor, name: str) -> None:
    kept: list[Tensor] = []
    copied: list[Tensor] = []

    def keep(module: nn.Module, args: object, out: Tensor) -> None:
        kept.append(out)
        copied.append(out.clone())

    network.get_submodule(f"blocks.0.{name}").register_forward_hook(keep)
    with torch.no_grad():
        network(images)
    assert torch.equal(kept[0], copied[0])


@transformers
@pytest.mark.parametrize("part", ["attn", "mlp", "mlp.fc1", "norm2"])
def test_a_part_may_give_back_what_it_was_given(
    network: ZooModel, images: Tensor, part: str
) -> None:
    parent, _, name = f"blocks.0.{part}".rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())
    if part == "mlp.fc1":
        network.blocks[0].mlp.fc2 = nn.Linear(DIM, DIM)
        network.blocks[0].norm2 = nn.Identity()
    expected = network(images).detach()  # with gradients nothing is overwritten
    with torch.no_grad():
        torch.testing.assert_close(network(images), expected)


@transformers
def test_a_block_and_its_mlp_leave_their_input(network: ZooModel) -> None:
    tokens = torch.randn(2, PREFIX + PATCHES, DIM)
    given = tokens.clone()
    with torch.no_grad():
        network.blocks[0](tokens)
        network.blocks[0].mlp(tokens)
    assert torch.equal(tokens, given)


# Torch has no vectorized attention for the CPU; what it says of ours would be an error.
@pytest.mark.filterwarnings("ignore:There is a performance drop.*flash_attention:UserWarning")
@transformers
def test_the_short_way_can_be_vectorized(network: ZooModel, images: Tensor) -> None:
    with torch.no_grad():
        found = torch.func.vmap(network)(images[:, None])[:, 0]
        torch.testing.assert_close(found, network(images))


@pytest.mark.parametrize("family", [VisionTransformer, CaiT])
def test_features_of_a_subclass_are_used(family: type[ZooModel]) -> None:
    class Own(family):  # type: ignore[valid-type, misc]
        def forward_features(self, x: Tensor) -> Tensor:
            return 0 * super().forward_features(x)

    model = Own(img_size=32, embed_dim=48, depth=2, num_heads=4, num_classes=5).eval()
    torch.nn.init.ones_(model.head.bias)
    with torch.no_grad():
        assert not model.may_skip()
        assert torch.equal(model(torch.rand(2, 3, 32, 32)), torch.ones(2, 5))


@only_cait
@pytest.mark.parametrize("name", ["blocks.0.attn.proj_l.bias", "blocks_token_only.0.attn.k.bias"])
def test_a_bias_without_effect_has_a_gradient_in_eval_mode(
    network: ZooModel, images: Tensor, name: str
) -> None:
    network(images).square().sum().backward()
    gradient = network.get_parameter(name).grad
    # Of what moves all scores of a row alike it is zero, but it is there.
    assert gradient is not None
    assert gradient.abs().max() < 1e-5


@transformers
def test_gradients_of_the_images_are_the_same_in_both_modes(
    build: Callable[..., ZooModel], images: Tensor
) -> None:
    found = []
    for train in (True, False):
        asked = images.double().requires_grad_()
        out = build().double().train(train)(asked)
        logits = out if isinstance(out, Tensor) else (out[0] + out[1]) / 2
        logits.square().sum().backward()
        found.append(asked.grad)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


class Talking:
    """Operands of talking-heads attention and what the paper's formula makes of them."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        batch, heads, tokens, size = 3, 4, 10, 4
        self.query, self.key, self.value = (drawn(batch, heads, tokens, size) for _ in range(3))
        self.before, self.after = (nn.Linear(heads, heads).double() for _ in range(2))
        self.first, self.second = self.before.weight * size**-0.5, self.after.weight
        self.operands = (self.query, self.key, self.value, self.first, self.second)

    def by_formula(self) -> Tensor:
        """Heads are moved last, mixed, and moved back, as the paper writes it."""
        scores = torch.einsum("bhqd,bhkd->bqkh", self.query, self.key) * 4**-0.5
        shares = self.before(scores).permute(0, 3, 1, 2).softmax(dim=-1)
        mixed = self.after(shares.permute(0, 2, 3, 1))
        return torch.einsum("bqkh,bhkd->bhqd", mixed, self.value)

    def of_bias(self) -> Tensor:
        """What the second bias adds: each head's share of the sum of its values."""
        return self.after.bias[:, None, None] * self.value.sum(dim=2, keepdim=True)


@pytest.fixture
def talking() -> Talking:
    with torch.no_grad():
        return Talking()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", [cait.talk_whole, cait.talk_in_tiles, cait.talk_folded])
def test_each_form_of_talking_heads_is_the_formula(
    talking: Talking, form: Callable[..., Tensor]
) -> None:
    with torch.no_grad():
        close(form(*talking.operands) + talking.of_bias(), talking.by_formula())


def test_talking_heads_have_both_biases(talking: Talking) -> None:
    with torch.no_grad():
        close(cait.talk(*talking.operands, talking.after.bias), talking.by_formula())


@pytest.mark.parametrize(
    ("images", "rows"), [(1, 1), (1, 3), (1, 10), (2, 10), (2, 4), (3, 10), (3, 7)]
)
def test_tiles_of_any_size_give_the_same(
    talking: Talking, monkeypatch: pytest.MonkeyPatch, images: int, rows: int
) -> None:
    monkeypatch.setattr(cait, "tile", lambda *_: (images, rows))
    with torch.no_grad():
        close(cait.talk_in_tiles(*talking.operands) + talking.of_bias(), talking.by_formula())


@pytest.mark.parametrize(
    ("batch", "heads", "tokens", "size", "expected"),
    [
        (8, 4, 196, 4, (1, 196)),  # 0.6 MB an image
        (8, 4, 196, 2, (3, 196)),
        (2, 4, 196, 2, (2, 196)),
        (8, 8, 196, 4, (1, 196)),
        (8, 4, 576, 4, (1, 576)),  # 5.3 MB: still whole
        (8, 8, 576, 4, (1, 116)),  # 10.6 MB: five pieces
    ],
)
def test_a_tile_is_what_a_cache_holds(
    batch: int, heads: int, tokens: int, size: int, expected: tuple[int, int]
) -> None:
    assert cait.tile(batch, tokens, heads * tokens**2 * size) == expected


def test_a_tile_has_room_for_each_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert cait.tile(32, 196, 4 * 196**2 * 4) == (6, 196)


@pytest.mark.parametrize(
    ("dtype", "heads", "tokens", "suits"),
    [
        (torch.bfloat16, 4, 400, True),
        (torch.float16, 4, 576, True),
        (torch.float32, 4, 576, False),
        (torch.bfloat16, 4, 399, False),
        (torch.bfloat16, 5, 400, False),
    ],
)
def test_folding_is_for_many_patches_of_few_channels_in_half_precision(
    dtype: torch.dtype, heads: int, tokens: int, suits: bool
) -> None:
    assert cait.suits_folding(torch.empty(1, heads, tokens, 64, dtype=dtype)) is suits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_many_patches_in_half_precision_are_attended_as_in_single(dtype: torch.dtype) -> None:
    model = golden.filled(
        CaiT(img_size=320, embed_dim=32, depth=1, num_heads=4, num_classes=10)
    ).eval()
    images = torch.from_numpy(golden.normals("many patches", (1, 3, 320, 320)))
    with torch.no_grad():
        expected = model(images)
        found = model.to(dtype)(images.to(dtype)).float()
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()


def test_a_few_queries_attend_as_softmax_attention_with_biases_does() -> None:
    batch, asked, tokens, heads, dim = 3, 2, 10, 4, 16
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    query, x = drawn(batch, asked, dim), drawn(batch, tokens, dim)
    key, value, key_bias, value_bias = drawn(dim, dim), drawn(dim, dim), drawn(dim), drawn(dim)
    keys, values = x @ key.t() + key_bias, x @ value.t() + value_bias
    expected = []
    for own in torch.arange(dim).split(dim // heads):
        scores = query[..., own] @ keys[..., own].transpose(1, 2) / (dim // heads) ** 0.5
        expected.append(scores.softmax(dim=-1) @ values[..., own])
    shape = (heads, dim // heads, dim)
    found = attend(query, x, key.view(shape), value.view(shape), value_bias)
    close(found, torch.cat(expected, dim=-1))


@transformers
def test_autocast_takes_the_short_way_as_well(network: ZooModel, images: Tensor) -> None:
    with torch.no_grad():
        expected = network(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert network.may_skip()
            found = network(images).float()
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()


@pytest.mark.filterwarnings(
    # What torch says of tracing as such, and of our check of the image size, a constant here.
    r"ignore:`torch.jit.trace\w*` is:FutureWarning",
    r"ignore:`torch.jit.trace\w*` is:DeprecationWarning",
    "ignore:Converting a tensor to a Python boolean:torch.jit.TracerWarning",
)
@transformers
def test_a_model_traced_without_gradients_takes_any_batch(
    network: ZooModel, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cait, "tile", lambda *_: (1, 1))  # were there any
    batch = torch.from_numpy(golden.normals("small/any", (5, *images.shape[1:])))
    with torch.no_grad():
        traced = torch.jit.trace(network, images)
        for size in (1, 2, 5):
            torch.testing.assert_close(traced(batch[:size]), network(batch[:size]))


@transformers
def test_a_model_exported_without_gradients_takes_any_batch(
    network: ZooModel, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cait, "tile", lambda *_: (1, 1))  # were there any
    batch = torch.from_numpy(golden.normals("small/any", (5, *images.shape[1:])))
    dynamic = ({0: torch.export.Dim("batch")},)
    with torch.no_grad():
        exported = torch.export.export(network, (images,), dynamic_shapes=dynamic).module()
        for size in (1, 2, 5):
            torch.testing.assert_close(exported(batch[:size]), network(batch[:size]))


def same_both_ways(model: ZooModel) -> bool:
    """Whether a model gives the same with and without gradients."""
    images = torch.from_numpy(golden.normals("both ways", (2, 3, *model.img_size)))
    with torch.no_grad():
        found = model(images)
    return torch.allclose(found, model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [VisionTransformer, CaiT])
def test_a_subclass_may_pool_patches(family: type[ZooModel]) -> None:
    class Pooled(family):  # type: ignore[valid-type, misc]
        def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
            return self.head(tokens[:, 1:].mean(dim=1))

    assert same_both_ways(
        Pooled(img_size=32, embed_dim=48, depth=2, num_heads=4, num_classes=5).eval()
    )


@pytest.mark.parametrize("family", [VisionTransformer, CaiT])
@pytest.mark.parametrize("name", ["forward_features", "forward_head"])
def test_a_method_replaced_on_a_model_is_called(family: type[ZooModel], name: str) -> None:
    model = family(img_size=32, embed_dim=48, depth=2, num_heads=4, num_classes=5).eval()
    own = getattr(model, name)

    def replaced(x: Tensor) -> Tensor:
        return own(x) + x.shape[1]

    setattr(model, name, replaced)
    assert same_both_ways(model)


def swap_forward(model: ZooModel) -> None:
    attn = model.blocks[-1].attn
    own = attn.forward
    attn.forward = lambda x: 2 * own(x)


def swap_block(model: ZooModel) -> None:
    model.blocks[-1] = nn.Identity()


def swap_layer(model: ZooModel) -> None:
    model.blocks[-1].attn.qkv = nn.Sequential(model.blocks[-1].attn.qkv, nn.ReLU())


def drop_bias(model: ZooModel) -> None:
    model.blocks[-1].attn.qkv = nn.Linear(DIM, 3 * DIM, bias=False)


def drop_blocks(model: ZooModel) -> None:
    model.blocks = model.blocks[:0]


@only_deit
@pytest.mark.parametrize("swap", [swap_forward, swap_block, swap_layer, drop_bias, drop_blocks])
def test_a_last_block_of_another_kind_takes_the_long_way(
    network: ZooModel, swap: Callable[[ZooModel], None]
) -> None:
    swap(network)
    assert same_both_ways(network)


def swap_key(model: ZooModel) -> None:
    attn = model.blocks_token_only[0].attn
    attn.k = nn.Sequential(attn.k, nn.ReLU())


def swap_value(model: ZooModel) -> None:
    model.blocks_token_only[0].attn.v = nn.Linear(DIM, DIM, bias=False)


def swap_norm(model: ZooModel) -> None:
    own = model.norm.forward
    model.norm.forward = lambda x: own(x) + x.shape[1]


@only_cait
@pytest.mark.parametrize("swap", [swap_key, swap_value, swap_norm])
def test_class_attention_of_another_kind_takes_the_long_way(
    network: ZooModel, swap: Callable[[ZooModel], None]
) -> None:
    swap(network)
    assert same_both_ways(network)
