"""Models against the outputs of the original code (facebookresearch/deit, float64, on a CPU)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import deit_zoo
import golden
from deit_zoo.models.layers import DropPath, resize_pos_embed
from deit_zoo.models.model import ZooModel

Case = dict[str, Any]
Array = NDArray[Any]

LARGEST = {"cait_S36", "cait_M36", "deit_base_patch16_384", "deit_large_patch16_LS"}
DTYPES = [torch.float64, torch.float32]
# The largest error over the largest magnitude of the whole array.
LIMIT = {torch.float64: 1e-9, torch.float32: 1e-5}


def each(kind: str) -> list[Any]:
    """The cases of a kind, the largest models marked slow."""
    return [
        pytest.param(
            case,
            id=case["name"],
            marks=[pytest.mark.slow] if case.get("model", {}).get("factory") in LARGEST else [],
        )
        for case in golden.cases(kind)
    ]


def relative_error(found: Tensor | Array, expected: Array) -> float:
    """The largest error over the largest magnitude."""
    assert found.shape == expected.shape
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


@dataclass(frozen=True)
class Reference:
    """A case, what it stores, and our model with its weights."""

    case: Case
    stored: dict[str, Array]
    model: ZooModel


@dataclass(frozen=True)
class Observed:
    """What our model gave for a case, as float64 arrays, and how far it may be off."""

    stored: dict[str, Array]
    logits: Array
    features: dict[str, Array]
    trace: Array
    limit: float


@pytest.fixture(scope="module", params=each("forward"))
def reference(request: pytest.FixtureRequest) -> Reference:
    case = request.param
    return Reference(case, golden.arrays(case), golden.network(case).eval())


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def observed(reference: Reference, request: pytest.FixtureRequest) -> Observed:
    dtype = request.param
    model = reference.model.to(dtype)  # exact both ways: all weights are float32 numbers
    names = list(reference.stored["trace_names"])
    outputs: dict[str, Tensor] = {}

    def remember(name: str) -> Any:
        return lambda module, args, output: outputs.update({name: output.double()})

    hooks = [model.get_submodule(n).register_forward_hook(remember(n)) for n in names]
    with torch.inference_mode():
        logits = model(golden.batch(reference.case).to(dtype)).double()
    for hook in hooks:
        hook.remove()

    tokens = outputs["norm"]
    distilled = "features_dist" in reference.stored
    features = (
        {"features_cls": tokens[:, 0], "features_dist": tokens[:, 1]}
        if distilled
        else {"features": tokens[:, 0]}
    )
    return Observed(
        stored=reference.stored,
        logits=logits.numpy(),
        features={name: value.numpy() for name, value in features.items()},
        trace=np.stack([summary(outputs[name]) for name in names]),
        limit=LIMIT[dtype],
    )


def summary(tokens: Tensor) -> Array:
    """Mean, spread, first 8 channels of the first and the last token: (B, 18)."""
    spread, mean = torch.std_mean(tokens, dim=(1, 2), correction=0)
    parts = (mean[:, None], spread[:, None], tokens[:, 0, :8], tokens[:, -1, :8])
    return torch.cat(parts, dim=1).numpy()


def stored_summary(stored: dict[str, Array]) -> Array:
    """The same from the file: (modules, B, 18)."""
    parts = (
        stored["trace_mean"][..., None],
        stored["trace_std"][..., None],
        stored["trace_first8_of_first_token"],
        stored["trace_first8_of_last_token"],
    )
    return np.concatenate(parts, axis=-1)


def test_a_model_has_the_number_of_parameters_of_the_original(reference: Reference) -> None:
    count = sum(parameter.numel() for parameter in reference.model.parameters())
    assert count == reference.case["num_parameters"]


def test_state_dict_names_come_in_the_order_of_the_original(reference: Reference) -> None:
    assert list(reference.model.state_dict()) == list(reference.stored["state_names"])


def test_state_dict_shapes_are_those_of_the_original(reference: Reference) -> None:
    found = {
        name: ",".join(map(str, value.shape))
        for name, value in reference.model.state_dict().items()
    }
    expected = dict(
        zip(reference.stored["state_names"], reference.stored["state_shapes"], strict=True)
    )
    assert found == expected


def test_the_weights_are_the_bits_that_the_case_was_made_with(reference: Reference) -> None:
    digest = hashlib.sha256()
    for value in reference.model.state_dict().values():
        if not value.is_floating_point():
            continue
        digest.update(value.float().numpy().astype("<f4", copy=False).data)
    assert digest.hexdigest() == reference.case["weights_sha256"]


def test_logits_are_those_of_the_original(observed: Observed) -> None:
    assert relative_error(observed.logits, observed.stored["logits"]) <= observed.limit


def test_features_are_those_of_the_original(observed: Observed) -> None:
    errors = {
        name: relative_error(value, observed.stored[name])
        for name, value in observed.features.items()
    }
    assert max(errors.values()) <= observed.limit, errors


def test_every_block_gives_what_the_original_gives(observed: Observed) -> None:
    expected = stored_summary(observed.stored)
    errors = {
        name: relative_error(observed.trace[number], expected[number])
        for number, name in enumerate(observed.stored["trace_names"])
    }
    wrong = [name for name, error in errors.items() if not error <= observed.limit]
    assert not wrong, f"the mismatch starts at {wrong[0]}: {errors[wrong[0]]:.3g}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", each("train_tuple"))
def test_a_distilled_model_in_train_mode_gives_the_pair_of_the_original(
    case: Case, dtype: torch.dtype
) -> None:
    stored = golden.arrays(case)
    model = golden.network(case).train().to(dtype)
    with torch.no_grad():
        logits, logits_dist = model(golden.batch(case).to(dtype))
    errors = (
        relative_error(logits.double(), stored["cls_logits"]),
        relative_error(logits_dist.double(), stored["dist_logits"]),
    )
    assert max(errors) <= LIMIT[dtype], errors


@dataclass(frozen=True)
class Gradients:
    """One backward pass in float64 beside the stored one."""

    stored: dict[str, Array]
    tolerance: dict[str, float]
    loss: float
    of_parameters: dict[str, Array]
    of_images: Array

    def assert_close(self, found: Any, key: str) -> None:
        """Compare as the index advises."""
        np.testing.assert_allclose(found, self.stored[key], **self.tolerance)


@pytest.fixture(scope="module", params=each("gradient"))
def gradients(request: pytest.FixtureRequest) -> Gradients:
    case = request.param
    model = golden.network(case).train().double()
    images = golden.batch(case).double().requires_grad_()
    logits = model(images)
    outputs = logits if isinstance(logits, tuple) else (logits,)
    loss = sum(
        (output * probe(f"cotangent/{name}", output)).sum()
        for name, output in zip(("cls", "dist"), outputs, strict=False)
    )
    loss.backward()
    return Gradients(
        stored=golden.arrays(case),
        tolerance=case["tolerance"]["float64"],
        loss=loss.item(),
        of_parameters={name: value.grad.numpy() for name, value in model.named_parameters()},
        of_images=images.grad.numpy(),
    )


def probe(name: str, like: Tensor | Array) -> Tensor:
    """Normals by name, of the shape of `like`, in float64."""
    return torch.from_numpy(golden.normals(name, like.shape)).double()


def test_parameters_come_in_the_order_of_the_original(gradients: Gradients) -> None:
    assert list(gradients.of_parameters) == list(gradients.stored["names"])


def test_the_loss_is_that_of_the_original(gradients: Gradients) -> None:
    gradients.assert_close(gradients.loss, "loss")


def test_gradients_are_as_long_as_those_of_the_original(gradients: Gradients) -> None:
    norms = [np.linalg.norm(value) for value in gradients.of_parameters.values()]
    gradients.assert_close(norms, "grad_norm")


def test_gradients_point_where_those_of_the_original_do(gradients: Gradients) -> None:
    probes = [
        (value * probe(f"probe/{name}", value).numpy()).sum()
        for name, value in gradients.of_parameters.items()
    ]
    gradients.assert_close(probes, "grad_probe")


def test_the_gradient_of_the_images_is_as_long_as_that_of_the_original(
    gradients: Gradients,
) -> None:
    gradients.assert_close(np.linalg.norm(gradients.of_images), "input_grad_norm")


def test_the_gradient_of_the_images_points_where_that_of_the_original_does(
    gradients: Gradients,
) -> None:
    projection = (gradients.of_images * probe("probe/input", gradients.of_images).numpy()).sum()
    gradients.assert_close(projection, "input_grad_probe")


def test_the_gradient_of_the_first_pixels_is_that_of_the_original(gradients: Gradients) -> None:
    gradients.assert_close(gradients.of_images[:, 0, 0, :8], "input_grad_first8")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", each("drop_path"))
def test_dropped_branches_give_what_they_give_in_the_original(
    case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = golden.arrays(case)
    model = golden.network(case).train().to(dtype)
    masks: dict[nn.Module, Iterator[Array]] = {
        block.drop_path: iter(branches)
        for block, branches in zip(model.blocks, stored["keep_masks"], strict=True)
    }

    def keep_mask(self: DropPath, x: Tensor) -> Tensor:
        return torch.from_numpy(next(masks[self])).to(x.dtype).reshape(-1, 1, 1)

    monkeypatch.setattr(DropPath, "keep_mask", keep_mask)
    with torch.no_grad():
        logits = model(golden.batch(case).to(dtype))
    outputs = logits if isinstance(logits, tuple) else (logits,)
    errors = [
        relative_error(output.double(), stored[name])
        for name, output in zip(("logits", "dist_logits"), outputs, strict=False)
    ]
    assert len(errors) == sum(name.endswith("logits") for name in stored)
    assert max(errors) <= LIMIT[dtype], errors


def drop_path_rates(block: nn.Module) -> list[float]:
    """The rates of a block's stochastic depth, of which a class-attention block has none."""
    return [module.rate for module in block.modules() if isinstance(module, DropPath)]


RATES = [
    expected
    for expected in json.loads((golden.HERE / "drop_path_rates.json").read_text(encoding="utf-8"))
    if expected["factory"].startswith(("deit_", "cait_"))
]


@pytest.mark.parametrize("expected", RATES, ids=[expected["factory"] for expected in RATES])
def test_blocks_drop_at_the_rates_of_the_original(expected: dict[str, Any]) -> None:
    model = deit_zoo.create(
        expected["factory"], drop_path_rate=expected["drop_path_rate"], device="meta"
    )
    rates = [drop_path_rates(block) for block in model.blocks]
    assert rates == [pytest.approx([rate], rel=0, abs=1e-7) for rate in expected["blocks"]]


def test_class_attention_blocks_never_drop() -> None:
    model = deit_zoo.create("cait_XXS24_224", drop_path_rate=0.05, device="meta")
    assert [drop_path_rates(block) for block in model.blocks_token_only] == [[], []]


@dataclass(frozen=True)
class Fresh:
    """A freshly built model beside the statistics of the original's: mean, std, min, max, count."""

    parameters: dict[str, Tensor]
    statistics: dict[str, Array]


@pytest.fixture(scope="module", params=each("init"))
def fresh(request: pytest.FixtureRequest) -> Fresh:
    case = request.param
    stored = golden.arrays(case)
    torch.manual_seed(0)
    model = deit_zoo.create(case["model"]["factory"], **case["model"]["given_kwargs"])
    return Fresh(
        parameters={name: value.detach().double() for name, value in model.named_parameters()},
        statistics=dict(zip(stored["names"], stored["stats"], strict=True)),
    )


def test_a_fresh_model_has_the_parameters_of_the_original(fresh: Fresh) -> None:
    counts = {name: value.numel() for name, value in fresh.parameters.items()}
    assert counts == {name: row[4] for name, row in fresh.statistics.items()}


def test_constants_of_a_fresh_model_are_those_of_the_original(fresh: Fresh) -> None:
    constants = {name: row[2] for name, row in fresh.statistics.items() if row[2] == row[3]}
    wrong = [
        name
        for name, value in constants.items()
        if not np.allclose(fresh.parameters[name], value, rtol=1e-6, atol=0)
    ]
    assert constants
    assert not wrong


def test_random_weights_of_a_fresh_model_spread_as_in_the_original(fresh: Fresh) -> None:
    wrong = []
    for name, (_, std, low, high, count) in fresh.statistics.items():
        allowed = 5 / (2 * count) ** 0.5 + 0.01
        found = fresh.parameters[name].std(correction=0).item()
        if low != high and not abs(found / std - 1) <= allowed:
            wrong.append(f"{name}: {found:.4g}, not {std:.4g}")
    assert not wrong


def test_a_fresh_patch_projection_is_uniform_as_in_the_original(fresh: Fresh) -> None:
    # Of so many uniform values the extremes lie at the bounds; normal ones would reach far beyond.
    _, _, low, high, _ = fresh.statistics["patch_embed.proj.weight"]
    weight = fresh.parameters["patch_embed.proj.weight"]
    assert (weight.min().item(), weight.max().item()) == pytest.approx((low, high), rel=1e-3)


def resampled(case: Case, dtype: torch.dtype) -> Tensor:
    """The positions of a case on the new grid, as float64 rows."""
    prefix = case["prefix_tokens"]
    old, new = (round((case[key][1] - prefix) ** 0.5) for key in ("source_shape", "target_shape"))
    source = torch.from_numpy(golden.fill("pos_embed", case["source_shape"])).to(dtype)
    return resize_pos_embed(source, (old, old), (new, new), prefix)[0].double()


# The DeiT III tables have no prefix rows, as CaiT's.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", each("pos_embed"))
def test_positions_are_resampled_as_by_the_original(case: Case, dtype: torch.dtype) -> None:
    stored = golden.arrays(case)
    tolerance = {"rtol": 0.0} | case["tolerance"][str(dtype).removeprefix("torch.")]
    rows = resampled(case, dtype)[torch.from_numpy(stored["row_index"])]
    np.testing.assert_allclose(rows, stored["rows"], **tolerance)


@pytest.mark.parametrize("case", each("pos_embed"))
def test_every_resampled_row_sums_as_in_the_original(case: Case) -> None:
    stored, rows = golden.arrays(case), resampled(case, torch.float64)
    found = torch.stack([rows.sum(1), rows.square().sum(1)])
    expected = np.stack([stored["row_sums"], stored["row_sums_of_squares"]])
    np.testing.assert_allclose(found, expected, **case["tolerance"]["float64"])


@pytest.mark.parametrize("case", each("pos_embed"))
def test_all_resampled_rows_together_are_those_of_the_original(case: Case) -> None:
    rows = resampled(case, torch.float64)
    weights = probe(f"probe/pos_embed/{len(rows)}", rows[None])[0]
    total = [rows.sum(), rows.square().sum(), rows.abs().sum(), (rows * weights).sum()]
    expected = golden.arrays(case)["total"]
    np.testing.assert_allclose(total, expected, **case["tolerance"]["float64"])
