"""Models against timm's of the same name: the same keys, numbers, gradients and files."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import deit_zoo
import golden
from deit_zoo.models.layers import resize_pos_embed
from deit_zoo.models.model import ZooModel
from deit_zoo.registry import MODELS, ModelSpec
from deit_zoo.weights import load
from deit_zoo.weights.formats import to_file_keys, to_zoo_keys
from support.tables import each_row

NAMES = [name for name in MODELS if "digits" not in name and name != "regnety_160_deit"]
# The two checkpoints of a size of DeiT III, with and without ImageNet-21k, are one network.
PAIRS = [name for name in NAMES if not name.endswith("_in21k")]
# Of those, models that differ in depth, image size and the start of LayerScale alone are one when
# they are cut to two blocks and filled.
WIDTHS = {
    str(
        MODELS[name].arch | {"family": MODELS[name].family, "depth": 2, "layer_scale_init": 0}
    ): name
    for name in reversed(PAIRS)
}
SMALLEST = ["deit_tiny", "deit_tiny_distilled", "cait_xxs24_224", "deit3_small"]
LIMIT = 1e-6


def timm_name(spec: ModelSpec) -> str:
    """The alias that carries timm's tag."""
    return next(alias for alias in spec.aliases if alias.endswith("_in1k"))


def timm_model(name: str, **options: Any) -> nn.Module:
    """timm's model of a name of ours, with random weights."""
    model: nn.Module = timm.create_model(timm_name(MODELS[name]), pretrained=False, **options)
    return model


def theirs_as_ours(model: nn.Module) -> dict[str, Tensor]:
    """timm's weights under our keys, which differ where upstream's do."""
    return to_zoo_keys(model.state_dict())


@each_row("name", PAIRS)
def test_state_dict_keys_and_shapes_are_those_of_timm(name: str) -> None:
    with torch.device("meta"):
        theirs = timm_model(name)
    ours = deit_zoo.create(name, device="meta")
    found, expected = (
        {key: tuple(value.shape) for key, value in state.items()}
        for state in (to_file_keys(ours.state_dict(), ours.spec), theirs.state_dict())
    )
    assert found == expected


@each_row("name", [name for name in NAMES if name not in PAIRS])
def test_training_on_imagenet_21k_before_is_no_other_network(name: str) -> None:
    spec, other = MODELS[name], MODELS[name.removesuffix("_in21k")]
    assert (spec.arch, spec.img_size) == (other.arch, other.img_size)


@dataclass(frozen=True)
class Pair:
    """Two blocks of a model, ours and timm's, with the same weights."""

    ours: ZooModel
    theirs: nn.Module


@pytest.fixture(scope="module", params=WIDTHS.values())
def pair(request: pytest.FixtureRequest) -> Pair:
    cut = {"depth": 2, "img_size": 4 * MODELS[request.param].arch["patch_size"]}
    with torch.device("meta"):
        ours: ZooModel = MODELS[request.param].build(**cut)
        theirs = timm_model(request.param, **cut)
    if getattr(ours, "distilled", False):
        theirs.set_distilled_training(True)
    golden.filled(theirs)
    ours.load_state_dict(theirs_as_ours(theirs), strict=True, assign=True)
    return Pair(ours, theirs)


def images(model: Any) -> Tensor:
    return torch.from_numpy(golden.normals("timm/64x2", (2, 3, *model.patch_embed.img_size)))


def outputs(model: nn.Module) -> tuple[Tensor, ...]:
    logits = model(images(model).to(next(model.parameters()).dtype))
    return logits if isinstance(logits, tuple) else (logits,)


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of one number in which every logit of every head has its own weight."""
    model.zero_grad()
    loss = sum(
        (logits * torch.from_numpy(golden.normals(f"timm/{number}", logits.shape)).to(logits)).sum()
        for number, logits in enumerate(outputs(model.train()))
    )
    loss.backward()
    return to_zoo_keys({name: value.grad for name, value in model.named_parameters()})


def test_timm_loads_our_weights(pair: Pair) -> None:
    ours = to_file_keys(pair.ours.state_dict(), pair.ours.spec)
    assert not any(pair.theirs.load_state_dict(ours, strict=True))


def test_logits_are_those_of_timm(pair: Pair) -> None:
    ours, theirs = (deepcopy(model).double().eval() for model in (pair.ours, pair.theirs))
    with torch.inference_mode():
        (found,), (expected,) = outputs(ours), outputs(theirs)
    assert relative_error(found, expected) <= 1e-12


def test_logits_in_train_mode_are_those_of_timm(pair: Pair) -> None:
    with torch.no_grad():
        found, expected = outputs(pair.ours.train()), outputs(pair.theirs.train())
    errors = [relative_error(*both) for both in zip(found, expected, strict=True)]
    assert max(errors) <= LIMIT


def test_gradients_are_those_of_timm(pair: Pair) -> None:
    # In float64: of float32's rounding, which differs between processors, nothing is said.
    found, expected = (gradients(deepcopy(model).double()) for model in (pair.ours, pair.theirs))
    largest = max(value.abs().max() for value in expected.values())
    # Each parameter by its own magnitude, but those whose true gradient is zero by all others'.
    wrong = [
        name
        for name, value in expected.items()
        if not (found[name] - value).abs().max()
        <= 1e-10 * torch.maximum(value.abs().max(), 1e-3 * largest)
    ]
    assert found.keys() == expected.keys()
    assert not wrong


@pytest.mark.parametrize("name", SMALLEST)
def test_timm_loads_a_file_saved_here(name: str, tmp_path: Path) -> None:
    ours = golden.filled(deit_zoo.create(name, device="meta"))
    load.save_model(ours, tmp_path / "ours.safetensors")
    theirs = timm_model(name, checkpoint_path=str(tmp_path / "ours.safetensors"))
    state = theirs_as_ours(theirs)
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())


@pytest.mark.parametrize("name", SMALLEST)
def test_a_file_saved_from_timm_loads_here(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        theirs = timm_model(name)
    golden.filled(theirs)
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    ours = deit_zoo.create(name, checkpoint=tmp_path / "theirs.safetensors")
    state = ours.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in theirs_as_ours(theirs).items())
    assigned = deit_zoo.create(name, device="meta")
    assigned.load_state_dict(theirs.state_dict(), assign=True)
    assert all(torch.equal(value, state[key]) for key, value in assigned.state_dict().items())


@pytest.mark.parametrize("name", ["deit_tiny", "deit_tiny_distilled", "deit3_small"])
def test_intermediate_layers_are_those_of_timm(name: str) -> None:
    cut = {"depth": 3, "img_size": (32, 48)}
    x = torch.from_numpy(golden.normals("timm/32x48", (2, 3, 32, 48)))
    with torch.device("meta"):
        ours, theirs = MODELS[name].build(**cut).eval(), timm_model(name, **cut).eval()
    golden.filled(theirs)
    ours.load_state_dict(theirs_as_ours(theirs), strict=True, assign=True)
    with torch.inference_mode():
        found = ours.get_intermediate_layers(x, n=[0, 2], reshape=True)
        expected = theirs.get_intermediate_layers(x, n=[0, 2], reshape=True, norm=True)
    errors = [relative_error(*both) for both in zip(found, expected, strict=True)]
    assert max(errors) <= LIMIT


@each_row("new", [(24, 24), (12, 16), (10, 10)])
@each_row("num_prefix", [0, 1, 2])
def test_positions_are_resampled_as_by_timm_without_antialiasing(
    num_prefix: int, new: tuple[int, int]
) -> None:
    table = torch.from_numpy(golden.fill("pos_embed", (1, num_prefix + 14 * 14, 8)))
    expected = timm.layers.resample_abs_pos_embed(
        table, new_size=list(new), num_prefix_tokens=num_prefix, antialias=False
    )
    assert torch.equal(resize_pos_embed(table, (14, 14), new, num_prefix), expected)


def test_the_teacher_is_timms_own_network(tmp_path: Path) -> None:
    theirs = timm.create_model("regnety_160.deit_in1k", pretrained=False).eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    ours = deit_zoo.create("regnety_160_deit", checkpoint=tmp_path)
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs(images))
