"""What a reader of a model sees is what runs: whoever patches, hooks, traces or transforms it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize, prune
from torch.testing._internal.two_tensor import TwoTensor
from torchvision.models.feature_extraction import create_feature_extractor

import golden
from deit_zoo.errors import ImageSizeError
from deit_zoo.models import cait, deit
from deit_zoo.models.cait import CaiT
from deit_zoo.models.deit import VisionTransformer
from deit_zoo.models.model import ZooModel

DIM, PREFIX, PATCHES = 48, 1, 6

transformers = pytest.mark.parametrize(
    "build", ["deit_tiny", "deit_tiny_distilled", "cait_xxs24_224"], indirect=True
)
only_deit = pytest.mark.parametrize("build", ["deit_tiny"], indirect=True)
only_cait = pytest.mark.parametrize("build", ["cait_xxs24_224"], indirect=True)


def attention_class(model: ZooModel) -> type[nn.Module]:
    return cait.TalkingHeadsAttention if isinstance(model, CaiT) else deit.Attention


@transformers
def test_a_forward_replaced_on_the_class_runs_in_every_block(
    network: ZooModel, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = attention_class(network)
    own = kind.forward
    seen: list[nn.Module] = []

    def replaced(self: nn.Module, x: Tensor) -> Tensor:
        seen.append(self)
        return own(self, x)

    monkeypatch.setattr(kind, "forward", replaced)
    with torch.no_grad():
        network(images)
    assert seen == [block.attn for block in network.blocks]


def test_a_hook_on_all_modules_sees_every_module_and_token(
    network: ZooModel, images: Tensor
) -> None:
    seen: dict[nn.Module, torch.Size] = {}

    def keep(module: nn.Module, args: object, out: Tensor) -> None:
        seen[module] = out.shape

    with nn.modules.module.register_module_forward_hook(keep), torch.no_grad():
        network(images)
    called = {part for part in network.modules() if not isinstance(part, nn.ModuleList)}
    assert called == seen.keys()
    if isinstance(network, VisionTransformer | CaiT):
        assert seen[network.norm][1] == network.num_prefix_tokens + PATCHES


INSIDE = ["norm1", "attn", "attn.qkv", "attn.proj", "drop_path", "norm2", "mlp", "mlp.fc1"]


@only_deit
@pytest.mark.parametrize("before", [True, False])
def test_a_hook_in_the_last_block_sees_every_token(
    network: ZooModel, images: Tensor, before: bool
) -> None:
    names = ["blocks.2", *(f"blocks.2.{name}" for name in INSIDE), "norm"]
    seen: dict[str, torch.Size] = {}
    for name in names:
        part = network.get_submodule(name)
        if before:
            part.register_forward_pre_hook(lambda _, args, n=name: seen.update({n: args[0].shape}))
        else:
            part.register_forward_hook(lambda _, args, out, n=name: seen.update({n: out.shape}))
    with torch.no_grad():
        network(images)
    assert seen.keys() == set(names)
    assert {shape[:2] for shape in seen.values()} == {(2, PREFIX + PATCHES)}


@only_cait
@pytest.mark.parametrize(
    "name", ["norm", "blocks_token_only.0.attn.k", "blocks_token_only.0.attn.v"]
)
def test_a_hook_at_the_end_of_cait_sees_every_token(
    network: ZooModel, images: Tensor, name: str
) -> None:
    seen: list[torch.Size] = []
    network.get_submodule(name).register_forward_hook(lambda _, args, out: seen.append(out.shape))
    with torch.no_grad():
        network(images)
    assert seen == [(2, 1 + PATCHES, DIM)]


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
def test_a_part_may_give_back_its_input(network: ZooModel, images: Tensor, part: str) -> None:
    parent, _, name = f"blocks.0.{part}".rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())
    if part == "mlp.fc1":
        network.blocks[0].mlp.fc2 = nn.Linear(DIM, DIM)
        network.blocks[0].norm2 = nn.Identity()
    assert same_both_ways(network)


@transformers
def test_a_block_and_its_mlp_leave_their_input(network: ZooModel) -> None:
    tokens = torch.randn(2, PREFIX + PATCHES, DIM)
    before = tokens.clone()
    with torch.no_grad():
        network.blocks[0](tokens)
        network.blocks[0].mlp(tokens)
    assert torch.equal(tokens, before)


def test_a_symbolic_trace_gives_the_logits_and_refuses_other_sizes(
    network: ZooModel, images: Tensor
) -> None:
    traced = torch.fx.symbolic_trace(network)
    assert torch.equal(traced(images), network(images))
    height, width = network.img_size
    with pytest.raises(ImageSizeError, match=f"images of {height}x{width} pixels, not 4x{width}"):
        traced(images[:, :, :4])


@pytest.mark.filterwarnings("ignore:NOTE. The nodes obtained by tracing:UserWarning")
def test_a_feature_extractor_gives_what_a_block_gives(network: ZooModel, images: Tensor) -> None:
    seen: list[Tensor] = []
    extracted = create_feature_extractor(network, ["blocks.2"])(images)
    network.blocks[2].register_forward_hook(lambda _, args, out: seen.append(out))
    network(images)
    assert list(extracted) == ["blocks.2"]
    assert torch.equal(extracted["blocks.2"], seen[0])


# Torch has no vectorized attention for the CPU; what it says of ours would be an error.
@pytest.mark.filterwarnings("ignore:There is a performance drop.*flash_attention:UserWarning")
@pytest.mark.parametrize("grad", [True, False])
def test_a_model_can_be_vectorized(network: ZooModel, images: Tensor, grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        logits = torch.func.vmap(network)(images[:, None])[:, 0]
        torch.testing.assert_close(logits, network(images))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated:FutureWarning")  # torch's own
def test_forward_mode_derivatives_are_those_of_backward_mode_by_the_math_kernel(
    network: ZooModel, images: Tensor
) -> None:
    network, images = network.double(), images.double()
    direction = torch.linspace(-1.0, 1.0, images.numel(), dtype=images.dtype).view_as(images)
    with sdpa_kernel(SDPBackend.MATH):
        logits, slopes = torch.func.jvp(network, (images,), (direction,))
    _, pull_back = torch.func.vjp(network, images)
    (gradient,) = pull_back(torch.ones_like(logits))
    torch.testing.assert_close(slopes.sum(), (gradient * direction).sum())


@transformers
@pytest.mark.parametrize("grad", [True, False])
def test_a_trace_without_a_warning_takes_any_batch(
    network: ZooModel, images: Tensor, grad: bool
) -> None:
    batch = torch.from_numpy(golden.normals("small/any", (5, *images.shape[1:])))
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        # What torch says of tracing as such.
        warnings.filterwarnings("ignore", r"`torch.jit.trace\w*` is", FutureWarning)
        warnings.filterwarnings("ignore", r"`torch.jit.trace\w*` is", DeprecationWarning)
        traced = torch.jit.trace(network, images)
        for size in (1, 2, 5):
            torch.testing.assert_close(traced(batch[:size]), network(batch[:size]))


@pytest.mark.parametrize("grad", [True, False])
def test_no_images_have_no_logits(network: ZooModel, images: Tensor, grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        assert network(images[:0]).shape == (0, 10)


@transformers
def test_autocast_gives_nearly_the_same(network: ZooModel, images: Tensor) -> None:
    with torch.no_grad():
        expected = network(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(images).float()
    assert (logits - expected).abs().max() < 0.03 * expected.abs().max()


class Adapted(nn.Linear):
    """A linear layer as an adapter replaces it: beside the weight there is more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean(dim=-1, keepdim=True)


class Doubled(nn.Module):
    """A weight computed from another one."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def adapt(model: ZooModel) -> None:
    adapted = Adapted(DIM, 3 * DIM)
    adapted.load_state_dict(model.blocks[-1].attn.qkv.state_dict())
    model.blocks[-1].attn.qkv = adapted


def parametrize_qkv(model: ZooModel) -> None:
    parametrize.register_parametrization(model.blocks[-1].attn.qkv, "weight", Doubled())


def replace_weight(model: ZooModel) -> None:
    weight = model.blocks[-1].attn.qkv.weight.detach()
    # Two plain tensors behind one, as a quantized weight is made of several.
    double = nn.Parameter(TwoTensor(weight, weight.clone()), requires_grad=False)
    model.blocks[-1].attn.qkv.weight = double


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


def swap_norm(model: ZooModel) -> None:
    own = model.norm.forward
    model.norm.forward = lambda x: own(x) + x.shape[1]


def swap_key(model: ZooModel) -> None:
    attn = model.blocks_token_only[0].attn
    attn.k = nn.Sequential(attn.k, nn.ReLU())


def drop_value_bias(model: ZooModel) -> None:
    model.blocks_token_only[0].attn.v = nn.Linear(DIM, DIM, bias=False)


def same_both_ways(model: ZooModel) -> bool:
    """Whether a model gives the same with and without gradients."""
    images = torch.from_numpy(golden.normals("both ways", (2, 3, *model.img_size)))
    with torch.no_grad():
        logits = torch.as_tensor(model(images))
    return torch.equal(logits, torch.as_tensor(model(images)))


SWAPS = [adapt, parametrize_qkv, replace_weight, swap_forward, swap_block, swap_layer, drop_bias]


@transformers
@pytest.mark.parametrize("swap", [*SWAPS, drop_blocks, swap_norm])
def test_a_replaced_part_is_used(
    network: ZooModel, images: Tensor, swap: Callable[[ZooModel], None]
) -> None:
    before = network(images)
    swap(network)
    assert same_both_ways(network)
    changed = not torch.equal(torch.as_tensor(network(images)), before)
    assert changed or swap is replace_weight  # the same numbers behind another tensor


@transformers
def test_an_adapter_around_the_stem_is_used(network: ZooModel, images: Tensor) -> None:
    before = network(images)
    network.patch_embed.proj = nn.Sequential(network.patch_embed.proj, nn.Identity())
    assert torch.equal(torch.as_tensor(network(images)), before)
    with pytest.raises(ImageSizeError, match=r"\(B, 3, 32, 48\), not \(2, 4, 32, 48\)"):
        network(torch.zeros(2, 4, 32, 48))


@only_cait
@pytest.mark.parametrize("swap", [swap_key, drop_value_bias])
def test_a_replaced_part_of_class_attention_is_used(
    network: ZooModel, images: Tensor, swap: Callable[[ZooModel], None]
) -> None:
    before = network(images)
    swap(network)
    assert same_both_ways(network)
    assert not torch.equal(network(images), before)


@only_cait
@pytest.mark.parametrize("name", ["proj_l", "proj_w"])
def test_the_mixing_of_heads_is_a_layer_that_is_called(
    network: ZooModel, images: Tensor, name: str
) -> None:
    before = network(images)
    for block in network.blocks:
        prune.identity(block.attn.get_submodule(name), "weight")
    assert torch.equal(network(images), before)
    for block in network.blocks:
        block.attn.get_submodule(name).get_buffer("weight_mask").zero_()
    with torch.no_grad():
        assert not torch.equal(network(images), before)


@only_cait
def test_every_linear_layer_acts_on_the_last_dimension(network: ZooModel, images: Tensor) -> None:
    # As LoRA on "all-linear" and other tools take it to do.
    def check(layer: nn.Linear, inputs: tuple[Tensor]) -> None:
        assert inputs[0].shape[-1] == layer.in_features

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        layer.register_forward_pre_hook(check)
    network(images)
    assert len(layers) == 3 * 4 + 2 * 6 + 1


@only_cait
def test_quantized_linear_layers_give_nearly_the_same(network: ZooModel, images: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao says that all of it is deprecated
        small = torch.ao.quantization.quantize_dynamic(network, {nn.Linear}, dtype=torch.qint8)
    expected = network(images)
    assert (small(images) - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("family", [VisionTransformer, CaiT])
def test_features_of_a_subclass_are_used(family: type[ZooModel]) -> None:
    class Own(family):  # type: ignore[valid-type, misc]
        def forward_features(self, x: Tensor) -> Tensor:
            return 0 * super().forward_features(x)

    model = Own(img_size=32, embed_dim=48, depth=2, num_heads=4, num_classes=5).eval()
    torch.nn.init.ones_(model.head.bias)
    with torch.no_grad():
        assert torch.equal(model(torch.rand(2, 3, 32, 32)), torch.ones(2, 5))


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
    before = model(torch.ones(1, 3, 32, 32))
    own = getattr(model, name)
    setattr(model, name, lambda x: own(x) + x.shape[1])
    assert same_both_ways(model)
    assert not torch.equal(model(torch.ones(1, 3, 32, 32)), before)


@only_cait
def test_talking_heads_are_the_formula(network: Any) -> None:
    attn = network.blocks[0].attn.double()
    x = torch.from_numpy(golden.normals("talking", (2, PATCHES, DIM))).double()
    query, key, value = attn.qkv(x).reshape(2, PATCHES, 3, 4, DIM // 4).permute(2, 0, 3, 1, 4)
    # Heads are moved last, mixed, and moved back, as the paper writes it.
    scores = torch.einsum("bhqd,bhkd->bqkh", query, key) * (DIM // 4) ** -0.5
    layer, other = attn.proj_l, attn.proj_w
    shares = nn.functional.linear(scores, layer.weight, layer.bias).softmax(dim=2)
    mixed = nn.functional.linear(shares, other.weight, other.bias)
    expected = attn.proj(torch.einsum("bqkh,bhkd->bqhd", mixed, value).flatten(2))
    torch.testing.assert_close(attn(x), expected, rtol=1e-12, atol=1e-12)


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
    gradients = []
    for train in (True, False):
        x = images.double().requires_grad_()
        out = build().double().train(train)(x)
        logits = out if isinstance(out, Tensor) else (out[0] + out[1]) / 2
        logits.square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
