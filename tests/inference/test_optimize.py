"""`deit_zoo.optimize`: the same function as the model's, in any precision, and what it refuses."""

from __future__ import annotations

import pickle
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import deit_zoo
import golden
from deit_zoo import machine
from deit_zoo.data import digits
from deit_zoo.errors import ImageSizeError, MissingExtraError, ZooError
from deit_zoo.inference import compiled, talking_heads
from deit_zoo.inference import optimize as inference
from deit_zoo.inference.folded_network import attend
from deit_zoo.inference.optimize import OptimizedModel
from deit_zoo.inference.throughput import agreement
from deit_zoo.models import deit
from deit_zoo.models.deit import VisionTransformer
from deit_zoo.models.model import ZooModel
from deit_zoo.registry import MODELS
from support.tables import each_row

# What is tested of 16 bits is tested on any processor.
pytestmark = pytest.mark.filterwarnings(r"ignore:\w+ is slower than float32 on this:UserWarning")
DISTILLED = "deit_pico_distilled_digits"
# Of ImageNet, as everyone writes them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def small(name: str = "deit_tiny", **options: Any) -> ZooModel:
    """A small network in eval mode; its weights come from the golden files' rule."""
    heads = 4 if name.startswith("cait") else 3
    given = {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": heads, "num_classes": 10}
    with torch.device("meta"):
        model: ZooModel = MODELS[name].build(**given | options)
    return golden.filled(model).eval()


def some(model: ZooModel, batch: int = 3, channels: int = 3) -> Tensor:
    """Normalised images for a model, in float32."""
    return torch.from_numpy(golden.normals("optimize", (batch, channels, *model.img_size)))


def pixels_for(model: ZooModel, batch: int = 3) -> Tensor:
    """Uint8 pixels for a model."""
    generator = torch.Generator().manual_seed(1)
    shape = (batch, 3, *model.img_size)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def as_if_compiled(fast: OptimizedModel) -> dict[torch.dtype, dict[int, Any]]:
    """Have a copy treat sizes as compiled code does, without minutes of compiling; the sizes."""
    fast.compiled = compiled.CompiledSizes(fast.network, fast.network.bytes_of_scores())
    return fast.compiled.sizes


# Tokens that fill vector registers of 16 numbers, and tokens that do not.
KINDS: dict[str, Callable[[], ZooModel]] = {
    "17 tokens": small,
    "16 tokens": lambda: small(img_size=(48, 80)),
    "distilled, 18 tokens": lambda: small("deit_tiny_distilled"),
    "distilled, 16 tokens": lambda: small("deit_tiny_distilled", img_size=(32, 112)),
    "distilled, one head": lambda: put("head_dist", None, "deit_tiny_distilled"),
    "one block": lambda: small(depth=1),
    "37 classes": lambda: small(num_classes=37),
    "deit3": lambda: small("deit3_small"),
    "deit3, one block of 96x32": lambda: small("deit3_small", depth=1, img_size=(96, 32)),
    "cait": lambda: small("cait_xxs24_224"),
    "cait, 96x32": lambda: small("cait_xxs24_224", img_size=(96, 32)),
    "cait, 37 classes": lambda: small("cait_xxs24_224", num_classes=37),
}
each_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


@each_kind
def test_a_copy_in_double_precision_equals_its_model(make: Callable[[], ZooModel]) -> None:
    model = make()
    fast = deit_zoo.optimize(model, "float64", compile=False)
    images = some(model).double()
    with torch.no_grad():
        expected = model.double()(images)
    assert expected.std() > 0.1
    assert (fast(images) - expected).abs().max() < 1e-10


# The others differ from these in their sizes alone; test_golden.py has them.
PUBLISHED = {
    "forward/deit_tiny_patch16_224",
    "forward/deit_tiny_distilled_patch16_224",
    "forward/deit_tiny_distilled_patch16_224@img_size=160,num_classes=37",
    "forward/cait_XXS24_224",
    "forward/deit_tiny_patch16_LS",
}
OTHER_BUILDS = {"forward/deit_small_patch16_18x2_LS", "forward/hmlp_stem_dim192_depth4"}


@pytest.mark.parametrize("name", sorted(OTHER_BUILDS))
def test_another_build_than_the_published_is_not_optimized(name: str) -> None:
    [case] = [case for case in golden.cases("forward") if case["name"] == name]
    with pytest.raises(ZooError):
        deit_zoo.optimize(golden.network(case), "float64", compile=False)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_logits_of_a_copy_are_those_of_the_original(name: str) -> None:
    [case] = [case for case in golden.cases("forward") if case["name"] == name]
    fast = deit_zoo.optimize(golden.network(case), "float64", compile=False)
    expected = golden.arrays(case)["logits"]
    logits = fast(golden.batch(case).double()).numpy()
    assert logits.shape == expected.shape
    # Of the whole array's largest magnitude, as in test_golden.py.
    assert np.abs(logits - expected).max() <= 1e-9 * np.abs(expected).max()


def test_the_last_block_costs_little_beyond_its_scores() -> None:
    model = small(img_size=(32, 48))
    fast = deit_zoo.optimize(model, "float32", compile=False)
    x = torch.randn(2, 7, 48)
    with torch.no_grad(), FlopCounterMode(display=False) as short:
        fast.network.reader(x)
    with torch.no_grad(), FlopCounterMode(display=False) as long:
        model.blocks[-1](x)  # type: ignore[operator]
    # By hand, of two images and 7 tokens: the projections and the MLP of 6 tokens go, and so do
    # all keys and values; in their place come 3 heads' queries and reads of 48 channels each.
    dim, heads, tokens = 48, 3, 7
    before = tokens * (3 + 1 + 8) * dim**2
    after = (1 + 1 + 8) * dim**2 + 2 * dim**2 + 2 * heads * tokens * dim
    attended = 2 * tokens**2 * dim  # which an older torch does not count on a CPU
    saved = long.get_total_flops() - short.get_total_flops()
    assert saved in (2 * 2 * (before + attended - after), 2 * 2 * (before - after))


def test_a_few_queries_attend_as_softmax_attention_with_biases_does() -> None:
    batch, queries, tokens, heads, dim = 3, 2, 10, 4, 16
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    query, x = drawn(batch, queries, dim), drawn(batch, tokens, dim)
    key, value, key_bias, value_bias = drawn(dim, dim), drawn(dim, dim), drawn(dim), drawn(dim)
    keys, values = x @ key.t() + key_bias, x @ value.t() + value_bias
    expected = []
    for own in torch.arange(dim).split(dim // heads):
        scores = query[..., own] @ keys[..., own].transpose(1, 2) / (dim // heads) ** 0.5
        expected.append(scores.softmax(dim=-1) @ values[..., own])
    shape = (heads, dim // heads, dim)
    result = attend(query, x, key.view(shape), value.view(shape), value_bias)
    torch.testing.assert_close(result, torch.cat(expected, dim=-1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_many_patches_in_half_precision_are_attended_as_in_single(dtype: str) -> None:
    model = small("cait_xxs24_224", img_size=320, embed_dim=32, depth=1)
    images = some(model, 1)
    with torch.no_grad():
        expected = model(images)
    logits = deit_zoo.optimize(model, dtype, compile=False)(images)
    assert (logits - expected).abs().max() < 0.03 * expected.abs().max()


each_family = pytest.mark.parametrize(
    "name", ["deit_tiny", "deit_tiny_distilled", "cait_xxs24_224"]
)


# Torch has no vectorized attention for the CPU; what it says of ours would be an error.
@pytest.mark.filterwarnings("ignore:There is a performance drop.*flash_attention:UserWarning")
@each_family
def test_a_copy_can_be_vectorized(name: str) -> None:
    fast = deit_zoo.optimize(small(name), "float32", compile=False)
    images = some(small(name))
    logits = torch.func.vmap(fast)(images[:, None])[:, 0]
    torch.testing.assert_close(logits, fast(images))


@pytest.mark.filterwarnings(
    # What torch says of tracing as such.
    r"ignore:`torch.jit.trace\w*` is:FutureWarning",
    r"ignore:`torch.jit.trace\w*` is:DeprecationWarning",
)
@each_family
def test_a_copy_that_is_traced_or_exported_takes_any_batch(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(talking_heads, "tile", lambda *_: (1, 1))  # were there any
    fast = deit_zoo.optimize(small(name), "float32", compile=False)
    batch = some(small(name), 5)
    dynamic = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(fast, (batch[:2],), dynamic_shapes=dynamic).module()
    traced = torch.jit.trace(fast, batch[:2])
    for size in (1, 2, 5):
        torch.testing.assert_close(exported(batch[:size]), fast(batch[:size]))
        torch.testing.assert_close(traced(batch[:size]), fast(batch[:size]))


@each_family
def test_images_are_not_overwritten(name: str) -> None:
    fast = deit_zoo.optimize(small(name), "float32", compile=False)
    images = some(small(name))
    before = images.clone()
    assert torch.equal(fast(images), fast(images))
    assert torch.equal(images, before)


@each_kind
def test_a_copy_takes_pixels_as_they_are(make: Callable[[], ZooModel]) -> None:
    model = make()
    fast = deit_zoo.optimize(model, "float64", compile=False)
    pixels = pixels_for(model)
    mean, std = (torch.tensor(row, dtype=torch.float64)[:, None, None] for row in (MEAN, STD))
    with torch.no_grad():
        expected = model.double()((pixels.double() / 255 - mean) / std)
    assert (fast(pixels) - expected).abs().max() < 1e-10


@pytest.mark.parametrize("channels", [1, 4])
def test_a_copy_takes_floats_of_any_channels(channels: int) -> None:
    model = small(in_chans=channels)
    fast = deit_zoo.optimize(model, "float64", compile=False)
    images = some(model, channels=channels).double()
    with torch.no_grad():
        assert (fast(images) - model.double()(images)).abs().max() < 1e-10


def test_the_logits_of_a_distilled_copy_are_the_mean_of_both_heads() -> None:
    model = small("deit_tiny_distilled")
    fast = deit_zoo.optimize(model, "float64", compile=False)
    images = some(model).double()
    with torch.no_grad():
        logits, logits_dist = model.double().train()(images)
    assert (logits - logits_dist).abs().max() > 0.1
    assert (fast(images) - (logits + logits_dist) / 2).abs().max() < 1e-10


@each_row("name", ["deit_tiny_distilled", "cait_xxs24_224"])
@each_row(("dtype", "limit"), [("float32", 1e-5), ("float16", 0.01), (torch.bfloat16, 0.05)])
def test_logits_are_single_in_every_lower_precision(
    name: str, dtype: str | torch.dtype, limit: float
) -> None:
    model = small(name)
    fast = deit_zoo.optimize(model, dtype, compile=False)
    with torch.no_grad():
        expected = model(some(model))
    found = fast(some(model))
    assert found.dtype == torch.float32
    # Over the largest logit; bfloat16 holds 8 bits.
    assert (found - expected).abs().max() <= limit * expected.abs().max()


@pytest.mark.parametrize(
    ("fast", "dtype", "shown"),
    [
        ({"bfloat16": "AMX"}, "bfloat16", "bfloat16 (auto: AMX)"),
        ({"float16": "CUDA capability 7.5"}, "float16", "float16 (auto: CUDA capability 7.5)"),
        ({}, "float32", "float32 (auto: no units for 16 bits)"),
        (None, "float32", "float32 (auto: no known units for 16 bits)"),
    ],
)
def test_the_precision_is_the_fastest_of_the_device(
    monkeypatch: pytest.MonkeyPatch, fast: dict[str, str] | None, dtype: str, shown: str
) -> None:
    monkeypatch.setattr(machine, "fast_dtypes", lambda device: fast)
    copy = deit_zoo.optimize(small(), compile=False)
    assert copy.precision == dtype
    assert copy.network.patches.weight.dtype == getattr(torch, dtype)
    assert copy.extra_repr() == f"dtype={shown}, compiled=False, img_size=(64, 64)"
    assert f"dtype={shown}, compiled=False" in repr(copy)


@pytest.mark.parametrize(
    ("fast", "dtype", "warned"),
    [
        ({}, "bfloat16", True),
        ({}, "fp16", True),
        ({"bfloat16": "AMX"}, torch.float16, True),
        ({"bfloat16": "AMX"}, "bf16", False),
        ({"float16": "CUDA capability 7.5"}, "bf16", True),
        ({}, "auto", False),
        ({}, "float32", False),
        (None, "bfloat16", False),
    ],
)
def test_a_precision_that_loses_is_obeyed_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    fast: dict[str, str] | None,
    dtype: str | torch.dtype,
    warned: bool,
) -> None:
    monkeypatch.setattr(machine, "fast_dtypes", lambda device: fast)
    monkeypatch.setattr(inference, "fast_dtypes", lambda device: fast)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        copy = deit_zoo.optimize(small(), dtype, compile=False)
    assert [str(one.message) for one in caught] == [
        f"{copy.precision} is slower than float32 on this device, which has no units for it; give "
        "dtype='auto' for the fastest"
    ] * warned
    assert {one.filename for one in caught} <= {__file__}


def test_code_is_compiled_where_there_is_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "has_compiler", lambda device: True)
    assert "compiled=True," in deit_zoo.optimize(small(), "float32").extra_repr()
    monkeypatch.setattr(inference, "has_compiler", lambda device: False)
    fast = deit_zoo.optimize(small(), "float32")
    assert fast.extra_repr() == (
        "dtype=float32, compiled=False (auto: no compiler), img_size=(64, 64)"
    )
    assert torch.equal(
        fast(some(small())), deit_zoo.optimize(small(), "float32", False)(some(small()))
    )


@each_row("make", [small, lambda: small("cait_xxs24_224")])
@each_row("dtype", ["float64", "float32", "bfloat16"])
def test_a_model_and_its_copy_share_nothing(make: Callable[[], ZooModel], dtype: str) -> None:
    # Stored as the copy will be, so that no conversion would part them.
    model = make().to(getattr(torch, dtype)).train()
    before = deepcopy(model.state_dict())
    fast = deit_zoo.optimize(model, dtype, compile=False)
    assert model.training
    assert all(value.requires_grad for value in model.parameters())
    after = model.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []

    expected = fast(some(model))
    with torch.no_grad():
        for value in model.parameters():
            value.fill_(3.0)
    assert torch.equal(fast(some(model)), expected)


def test_a_copy_only_predicts() -> None:
    fast = deit_zoo.optimize(small().train(), "float32", compile=False)
    assert not any(part.training for part in fast.modules())
    assert not any(value.requires_grad for value in fast.parameters())
    assert not fast(some(small())).requires_grad
    assert fast.eval() is fast
    with pytest.raises(ZooError) as caught:
        fast.train()
    assert str(caught.value) == ("an optimized model only predicts; train the one it was made of")


def test_a_copy_knows_what_it_is() -> None:
    model = deit_zoo.create(DISTILLED, pretrained=True)
    fast = deit_zoo.optimize(model, "float32", compile=False)
    assert (fast.spec, fast.checkpoint, fast.labels) == (
        model.spec,
        model.checkpoint,
        model.labels,
    )
    assert repr(deit_zoo.transform(fast)) == repr(deit_zoo.transform(model))
    assert fast.extra_repr() == "dtype=float32, compiled=False, img_size=(16, 16)"


@pytest.mark.parametrize("name", ["deit_tiny_distilled", "cait_xxs24_224"])
@pytest.mark.parametrize("again", [deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_can_be_copied_and_pickled(
    name: str, again: Callable[[OptimizedModel], OptimizedModel]
) -> None:
    model = small(name)
    fast = deit_zoo.optimize(model, compile=False)
    assert torch.equal(again(fast)(some(model)), fast(some(model)))


@pytest.mark.parametrize("make", [some, pixels_for], ids=["floats", "pixels"])
def test_images_may_lie_in_memory_as_they_like(make: Callable[[ZooModel], Tensor]) -> None:
    fast = deit_zoo.optimize(small(), "float32", compile=False)
    images = make(small())
    last = images.contiguous(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    assert torch.equal(fast(last), fast(images))
    flipped = images.flip(-1)
    assert torch.equal(fast(flipped), fast(flipped.transpose(2, 3).contiguous().transpose(2, 3)))


@pytest.mark.parametrize("name", ["deit_tiny_distilled", "cait_xxs24_224"])
def test_no_images_have_no_logits(name: str) -> None:
    fast = deit_zoo.optimize(small(name), "float32", compile=False)
    assert fast(some(small())[:0]).shape == (0, 10)
    as_if_compiled(fast)
    assert fast(some(small())[:0]).shape == (0, 10)


@pytest.mark.parametrize(
    ("images", "kind", "sentence"),
    [
        (
            torch.zeros(2, 3, 32, 64),
            ImageSizeError,
            "the model takes images of 64x64 pixels, not 32x64; resize them with "
            "deit_zoo.transform(model), or build it with deit_zoo.create(name, img_size=(32, 64))",
        ),
        (
            torch.zeros(3, 64, 64),
            ImageSizeError,
            "the model takes a batch of shape (B, 3, 64, 64), not (3, 64, 64); add a batch "
            "dimension with x[None], or build it with in_chans=",
        ),
        (
            torch.zeros(2, 1, 64, 64, dtype=torch.uint8),
            ImageSizeError,
            "the model takes a batch of shape (B, 3, 64, 64), not (2, 1, 64, 64); add a batch "
            "dimension with x[None], or build it with in_chans=",
        ),
        (
            torch.zeros(2, 3, 64, 64, dtype=torch.int64),
            ZooError,
            "images are torch.int64; give uint8 pixels, or floats",
        ),
    ],
)
def test_other_images_are_refused(images: Tensor, kind: type[ZooError], sentence: str) -> None:
    fast = deit_zoo.optimize(small(), "float32", compile=False)
    with pytest.raises(kind) as caught:
        fast(images)
    assert (type(caught.value), str(caught.value)) == (kind, sentence)


def test_pixels_of_other_channels_are_refused() -> None:
    fast = deit_zoo.optimize(small(in_chans=1), "float32", compile=False)
    with pytest.raises(ZooError) as caught:
        fast(torch.zeros(2, 1, 64, 64, dtype=torch.uint8))
    assert str(caught.value) == (
        "pixels of 1 channels have no known mean; normalise them yourself and give floats"
    )


class Adapted(nn.Linear):
    """A linear layer as an adapter replaces it."""


class Doubled(nn.Module):
    """A weight computed from another one."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Pooled(VisionTransformer):
    """A model with a head of its own."""

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        logits: Tensor = self.head(tokens[:, 1:].mean(dim=1))
        return logits


def put(name: str, part: nn.Module | None, model: str = "deit_tiny") -> ZooModel:
    """A model with another part, or none, in the place of its own."""
    network = small(model)
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, part)
    return network


def touched(change: Callable[[Any], object], model: str = "deit_tiny") -> ZooModel:
    """A model after a change."""
    network = small(model)
    change(network)
    return network


def replaced_weight(model: Any) -> None:
    weight = model.blocks[-1].attn.qkv.weight.detach()
    # Two plain tensors behind one, as a quantized weight is made of several.
    model.blocks[-1].attn.qkv.weight = nn.Parameter(
        TwoTensor(weight, weight.clone()), requires_grad=False
    )


def replaced_method(name: str) -> Callable[[Any], None]:
    def replace(model: Any) -> None:
        own = getattr(model, name)
        setattr(model, name, lambda x: own(x) + 1)

    return replace


REFUSED: dict[str, Callable[[], ZooModel]] = {
    "hook": lambda: touched(lambda model: model.blocks[0].register_forward_hook(print)),
    "hook before": lambda: touched(lambda model: model.norm.register_forward_pre_hook(print)),
    "adapter": lambda: put("blocks.2.attn.qkv", Adapted(48, 144)),
    "parametrization": lambda: touched(
        lambda model: parametrize.register_parametrization(
            model.blocks[2].attn.qkv, "weight", Doubled()
        )
    ),
    "weight of a kind": lambda: touched(replaced_weight),
    "own forward": lambda: touched(lambda model: replaced_method("forward")(model.blocks[1].attn)),
    "own features": lambda: touched(replaced_method("forward_features")),
    "own head": lambda: touched(replaced_method("forward_head")),
    "own embedding": lambda: touched(replaced_method("embed")),
    "own end": lambda: touched(replaced_method("finish")),
    "own scores": lambda: touched(
        lambda model: replaced_method("softmax_map")(model.blocks[0].attn), "cait_xxs24_224"
    ),
    "subclass": lambda: touched(lambda model: setattr(model, "__class__", Pooled)),
    "other block": lambda: put("blocks.2", nn.Identity()),
    "other layer": lambda: put("blocks.2.attn.qkv", nn.Sequential(nn.Linear(48, 144), nn.ReLU())),
    "other norm": lambda: put("norm", nn.Identity()),
    "other gelu": lambda: put("blocks.0.mlp", nn.Sequential(nn.Linear(48, 48), nn.ReLU())),
    "no bias": lambda: put("blocks.2.attn.qkv", nn.Linear(48, 144, bias=False)),
    "no blocks": lambda: put("blocks", nn.ModuleList()),
    "other head": lambda: put("head", nn.Sequential(nn.Linear(48, 10), nn.Softmax(dim=-1))),
    "cait, other key": lambda: put(
        "blocks_token_only.0.attn.k",
        nn.Sequential(nn.Linear(48, 48), nn.ReLU()),
        "cait_xxs24_224",
    ),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_a_model_that_a_copy_would_not_be_like_is_refused(make: Callable[[], ZooModel]) -> None:
    with pytest.raises(ZooError) as caught:
        deit_zoo.optimize(make(), "float32", compile=False)
    assert str(caught.value) == (
        "the model has hooks, adapters or overridden parts, which a copy would leave out; remove "
        "the hooks, and merge adapters into the weights"
    )


@pytest.mark.parametrize(
    ("cls", "method"),
    [
        (deit.Attention, "forward"),
        (VisionTransformer, "forward_head"),
        (VisionTransformer, "embed"),
    ],
)
def test_a_model_whose_class_was_patched_is_refused(
    monkeypatch: pytest.MonkeyPatch, cls: type[nn.Module], method: str
) -> None:
    monkeypatch.setattr(cls, method, lambda self, x: x)
    with pytest.raises(ZooError, match="the model has hooks, adapters or overridden parts"):
        deit_zoo.optimize(small(), "float32", compile=False)


def test_a_copy_of_compiled_code_says_that_it_is_not_compiled() -> None:
    fast = deit_zoo.optimize(deit_zoo.create("deit_pico_digits"), "float32", compile=False)
    as_if_compiled(fast)
    assert "compiled=True" in str(fast)
    assert "compiled=False" in str(deepcopy(fast))


def test_a_head_of_another_size_is_copied() -> None:
    model = put("head", nn.Linear(48, 4))
    fast = deit_zoo.optimize(model, "float64", compile=False)
    with torch.no_grad():
        expected = model.double()(some(model).double())
    assert (fast(some(model).double()) - expected).abs().max() < 1e-10


@each_row(
    ("call", "sentence"),
    [
        (
            lambda: deit_zoo.optimize(small(), "float8", compile=False),
            "dtype is 'float8'; give one of auto, float64, float32, bfloat16, float16, int8",
        ),
        (
            lambda: deit_zoo.optimize(small(), torch.int64, compile=False),
            "dtype is 'int64'; give one of auto, float64, float32, bfloat16, float16, int8",
        ),
        (
            lambda: deit_zoo.optimize(small(), compile="always"),
            "compile is 'always'; give True, False or 'auto'",
        ),
        (
            lambda: deit_zoo.optimize("convnet_pico_digits", compile=False),
            "ConvNet cannot be optimized; give a deit or cait model from create",
        ),
        (
            lambda: deit_zoo.optimize(small(num_classes=0), compile=False),
            "the model has no head (num_classes=0), so it has no logits to be fast at",
        ),
        (
            lambda: deit_zoo.optimize(
                put("head_dist", nn.Linear(48, 3), "deit_tiny_distilled"), compile=False
            ),
            "the model's two heads tell 10 and 3 classes apart; give both one number: "
            "model.reset_classifier(10)",
        ),
        (
            lambda: agreement(small(), small(), []),
            "there is no image to compare on; give one or more",
        ),
    ],
)
def test_an_error_is_one_sentence(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ZooError) as caught:
        call()
    assert (type(caught.value), str(caught.value)) == (ZooError, sentence)


def test_without_a_compiler_nothing_is_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not machine.has_compiler(torch.device("cpu"))
    choices: tuple[Any, ...] = (True, 1)  # which are equal in Python
    for wanted in choices:
        with pytest.raises(ZooError) as caught:
            deit_zoo.optimize(small(), compile=wanted)
        assert str(caught.value) == (
            "compiling for the CPU needs a C++ compiler, and g++ is not on the PATH; install it, "
            "set CXX to another, or give compile=False"
        )


def test_a_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    told = deit_zoo.optimize(small(), "float32").extra_repr()
    assert "compiled=False (auto: no no-such-compiler -O2)" in told


def test_int8_without_torchao_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchao", "torchao.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError) as caught:
        deit_zoo.optimize(small(), "int8", compile=False)
    assert str(caught.value) == (
        "dtype='int8' needs torchao; pip install 'deit_zoo[int8]', or give dtype='bfloat16'"
    )


def test_int8_that_loses_is_refused_with_both_times(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without compiled code each layer rounds its input in many small steps. The least of many
    # rounds, since other programs may run.
    monkeypatch.setattr(inference, "TRIAL_ROUNDS", 20)
    with pytest.raises(ZooError) as caught:
        deit_zoo.optimize(small(embed_dim=96), "int8", compile=False)
    found = re.fullmatch(
        r"int8 loses on this device: ([\d.]+) ms an image where (\w+) takes ([\d.]+) ms; "
        r"give dtype='(\w+)'",
        str(caught.value),
    )
    assert found
    assert float(found[1]) >= float(found[3])
    assert found[2] == found[4] == machine.fastest_dtype(torch.device("cpu"))[0]


def test_int8_that_wins_is_kept() -> None:
    less = deit_zoo.optimize(small(depth=1), "float32", compile=False)
    more = deit_zoo.optimize(small(depth=12, embed_dim=192), "float32", compile=False)
    inference._check_faster(less, more)
    with pytest.raises(ZooError, match=r"int8 loses .* give dtype='float32'"):
        inference._check_faster(more, less)


class Shifted(nn.Module):
    """The first two numbers of an image as logits, the second one raised."""

    def __init__(self, raised: float) -> None:
        super().__init__()
        self.raised = nn.Parameter(torch.tensor([0.0, raised]))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :2] + self.raised


def test_agreement_counts_first_classes_and_tells_the_largest_difference() -> None:
    # Raised by a half, the second logit passes the first one of the second image alone.
    rows = torch.tensor([[1.0, 0.25], [1.0, 0.75], [0.0, 1.0]])
    images = [row.repeat(3, 1)[:, :, None] for row in rows]
    for size in (1, 2, 32):
        found = agreement(Shifted(0.0), Shifted(0.5), images, batch_size=size)
        assert (found.top1, found.largest, found.num_images) == (2 / 3, 0.5, 3)


class WithoutDouble(TorchDispatchMode):
    """The meta device as a GPU without float64, from which numbers come back as zeros."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_from_meta = len(args) > 0 and isinstance(args[0], Tensor) and args[0].is_meta
        if is_from_meta and kwargs.get("device") == torch.device("cpu"):
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        result = func(*args, **kwargs)
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, Tensor) and one.is_meta and one.dtype == torch.float64:
                raise TypeError(f"{func} on a device without float64")
        return result


@pytest.mark.parametrize("name", ["deit_tiny_distilled", "deit3_small", "cait_xxs24_224"])
def test_a_copy_is_made_and_compared_on_a_device_without_float64(name: str) -> None:
    # As Apple's GPUs are.
    model = small(name).to("meta")
    with WithoutDouble():
        fast = deit_zoo.optimize(model, "float32", compile=False)
        found = agreement(model, fast, [*pixels_for(model)])
    assert {value.device.type for value in fast.state_dict().values()} == {"meta"}
    assert found.num_images == 3


def test_a_copy_is_made_of_weights_by_their_path_too(tmp_path: Path) -> None:
    deit_zoo.save(deit_zoo.create("deit_pico_digits", pretrained=True), tmp_path / "a.safetensors")
    fast = deit_zoo.optimize(tmp_path / "a.safetensors", "float32", compile=False)
    assert fast.network.patches.weight.device.type == "cpu"


@pytest.fixture(scope="module")
def handwritten() -> list[Image.Image]:
    """The 360 validation digits."""
    return [image for image, _ in digits.digits()][-360:]


def test_half_precision_agrees_on_real_digits(handwritten: list[Image.Image]) -> None:
    model = deit_zoo.create(DISTILLED, pretrained=True)
    fast = deit_zoo.optimize(model, compile=False)
    prepare = deit_zoo.transform(model).pixels
    found = agreement(model, fast, [prepare(image) for image in handwritten[:64]])
    assert found.num_images == 64
    assert found.top1 >= 0.98
    assert 0 < found.largest < 0.5


def test_classify_gives_the_labels_of_the_model(handwritten: list[Image.Image]) -> None:
    model = deit_zoo.create(DISTILLED, pretrained=True)
    fast = deit_zoo.optimize(model, "float32", compile=False)
    found, expected = (
        deit_zoo.classify(handwritten[:40], network, topk=3, batch_size=16)
        for network in (fast, model)
    )
    assert [[best.label for best in row] for row in found] == [
        [best.label for best in row] for row in expected
    ]
    assert [row[0].probability for row in found] == pytest.approx(
        [row[0].probability for row in expected], abs=1e-5
    )


def test_classify_makes_a_copy_itself(handwritten: list[Image.Image]) -> None:
    exact, fast = (
        deit_zoo.classify(handwritten, DISTILLED, topk=2, batch_size=60, fast=fast)
        for fast in (False, True)
    )
    assert [row[0].label for row in fast] == [row[0].label for row in exact]
    assert {len(row) for row in fast} == {2}
    assert (
        max(abs(a[0].probability - b[0].probability) for a, b in zip(exact, fast, strict=True))
        < 0.05
    )


def test_classify_takes_a_copy_as_it_is(handwritten: list[Image.Image]) -> None:
    copy = deit_zoo.optimize(DISTILLED, "float64", compile=False)
    [row] = deit_zoo.classify(handwritten[0], copy, fast=True)
    assert [row] == deit_zoo.classify(handwritten[0], copy)


def test_evaluate_takes_a_copy(tmp_path: Path) -> None:
    digits.write_folder(tmp_path / "digits")
    model = deit_zoo.create(DISTILLED, pretrained=True)
    fast = deit_zoo.optimize(model, compile=False)
    found, expected = (deit_zoo.evaluate(network, tmp_path / "digits") for network in (fast, model))
    assert (found.num_images, expected.num_images) == (360, 360)
    assert found.top1 == pytest.approx(expected.top1, abs=100 / 360 + 1e-9)


@pytest.fixture
def compiler() -> Iterator[None]:
    """Forget what other tests compiled."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_sizes_are_padded_cut_or_compiled() -> None:
    fast = deit_zoo.optimize(small(), "float32", compile=False)
    sizes_of_code = as_if_compiled(fast)
    seen: list[int] = []
    fast.network.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    expected = {
        4: [4],
        3: [4],  # padded to 4
        1: [1],  # 4 is more than twice as many
        9: [9],
        16: [16],
        12: [16],
        8: [9],
        40: [16, 16, 9],  # cut, and the last 8 are padded
        17: [16, 1],
    }
    for batch, sizes in expected.items():
        images = some(small(), batch)
        plain = deit_zoo.optimize(small(), "float32", compile=False)
        torch.testing.assert_close(fast(images), plain(images))
        assert seen == sizes, batch
        seen.clear()
    assert list(sizes_of_code[torch.float32]) == [4, 1, 9, 16]


def test_as_many_images_of_cait_go_together_as_a_cache_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = KINDS["cait"]
    fast, plain = (deit_zoo.optimize(make(), "float32", compile=False) for _ in range(2))
    as_if_compiled(fast)
    # An image has 4 heads of 16 patches: 4096 bytes of scores. There is one thread in tests.
    monkeypatch.setattr(compiled, "SCORES", 2 * 4096)
    seen: list[int] = []
    fast.network.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    images = some(make(), 5)
    torch.testing.assert_close(fast(images), plain(images))
    assert seen == [2, 2, 2]  # the last one padded
    monkeypatch.setattr(compiled, "SCORES", 1)
    seen.clear()
    torch.testing.assert_close(fast(images[:2]), plain(images[:2]))
    assert seen == [2, 2]


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_every_size_of_many_models_is_compiled() -> None:
    # Torch stops compiling a function at 8 forms, and says so in its log alone.
    made: list[object] = []

    def counted(graph: Any, _: object) -> Any:
        made.append(graph)
        return graph.forward

    for _ in range(2):
        fast = deit_zoo.optimize(small(depth=1), "float32", compile=False)
        as_if_compiled(fast)
        fast.network.compile(dynamic=False, backend=counted)
        for batch in (1, 3, 7, 15):
            fast(some(small(), batch))
            fast(pixels_for(small(), batch))
            fast(some(small(), batch).contiguous(memory_format=torch.channels_last))
    assert len(made) == 2 * 2 * compiled.MOST_SIZES


@pytest.fixture(scope="module")
def own_compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A C++ compiler that notes beside itself that it was called; its headers are compiled once."""
    compiler = tmp_path_factory.mktemp("compiler") / "my-c++"
    compiler.write_text(f'#!/bin/sh\necho >> {compiler}.called\nshift\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    return compiler


# Each takes half a minute; the rest of what becomes of sizes is tested above.
@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", ["deit_tiny_distilled", "cait_xxs24_224"])
def test_compiled_copies_give_the_logits_of_eager_ones_by_the_compiler_that_cxx_names(
    name: str, monkeypatch: pytest.MonkeyPatch, own_compiler: Path
) -> None:
    # Torch has read CXX when its configuration was first imported.
    import torch._inductor.config

    called = own_compiler.with_name("my-c++.called")
    called.unlink(missing_ok=True)
    monkeypatch.setenv("CXX", f"{own_compiler} wrapped")
    assert machine.missing_compiler() is None
    # Two of one architecture: each has its own weights, and the code is compiled once.
    for bias in (0.0, 7.0):
        model = small(name, depth=1)
        with torch.no_grad():
            model.get_parameter("head.bias").fill_(bias)
        fast, eager = (deit_zoo.optimize(model, "float32", compile=way) for way in (True, False))
        for batch in (4, 3):
            for images in (some(model, batch), pixels_for(model, batch)):
                torch.testing.assert_close(fast(images), eager(images), rtol=0, atol=1e-4)
        assert fast.compiled is not None
        assert {kind: list(sizes) for kind, sizes in fast.compiled.sizes.items()} == {
            torch.float32: [4],
            torch.uint8: [4],
        }
    assert called.is_file()


def test_a_precision_has_short_names() -> None:
    names = [inference.precision(name) for name in ("bf16", "fp16", "fp32", torch.bfloat16)]
    assert names == ["bfloat16", "float16", "float32", "bfloat16"]
