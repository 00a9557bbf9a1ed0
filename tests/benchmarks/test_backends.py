"""Backends: who is measured, with the same weights, and who is found out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deit_zoo.errors import MissingExtraError, ZooError
from deit_zoo.inference.throughput import Case, random_images
from harness import backends
from harness.backends import SharedInputs, UnsupportedError

TINY = Case(model="deit_tiny", img_size=(32, 32), batch_size=2)


def inputs(case: Case) -> SharedInputs:
    return SharedInputs(state=backends.plain(case).state_dict(), images=random_images(case))


def expected(case: Case) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = backends.plain(case)(random_images(case))
    return logits


def distance(who: str, mode: str, case: Case) -> float:
    backend = backends.built(who, mode, case, inputs(case))
    return backends.check_logits(backend.run(), expected(case), case.precision)


def test_random_weights_are_the_same_each_time_and_no_constant_is_left() -> None:
    state = backends.plain(TINY).state_dict()
    again = backends.plain(TINY).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in state.items())
    # Zeros and ones, as biases and norms start, would hide a mix-up.
    assert [key for key, value in state.items() if value.unique().numel() == 1] == []


@pytest.mark.parametrize("model", ["deit_tiny", "deit_tiny_distilled", "cait_xxs24_224"])
@pytest.mark.parametrize(("precision", "limit"), [("float32", 1e-5), ("bfloat16", 0.1)])
def test_timm_gets_the_same_weights(model: str, precision: str, limit: float) -> None:
    case = replace(TINY, model=model, precision=precision)
    assert distance("timm", "eager", case) < limit


@pytest.mark.slow
@pytest.mark.parametrize("model", ["deit_tiny", "deit_tiny_distilled"])
def test_transformers_gets_the_same_weights(model: str) -> None:
    pytest.importorskip("transformers")
    assert distance("transformers", "eager", replace(TINY, model=model)) < 1e-5


def test_transformers_has_no_cait() -> None:
    pytest.importorskip("transformers")
    with pytest.raises(UnsupportedError, match=r"^transformers has no cait_xxs24_224$"):
        distance("transformers", "eager", replace(TINY, model="cait_xxs24_224"))


def test_timm_has_no_digits() -> None:
    case = Case(model="deit_pico_digits", img_size=(16, 16))
    with pytest.raises(UnsupportedError, match=r"^timm has no deit_pico_digits$"):
        distance("timm", "eager", case)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_other_weights_are_found_out(precision: str) -> None:
    backend = backends.built("timm", "eager", TINY, SharedInputs(images=random_images(TINY)))
    with pytest.raises(UnsupportedError, match=r"it is not the same model$"):
        backends.check_logits(backend.run(), expected(TINY), precision)


def test_one_bias_that_is_missing_is_found_out() -> None:
    shared = inputs(TINY)
    assert shared.state is not None
    shared.state["blocks.5.mlp.fc2.bias"].zero_()
    backend = backends.built("timm", "eager", TINY, shared)
    with pytest.raises(UnsupportedError, match=r"it is not the same model$"):
        backends.check_logits(backend.run(), expected(TINY), "float32")


def test_logits_that_are_not_numbers_are_found_out() -> None:
    with pytest.raises(UnsupportedError, match=r"^its logits are nan of their size away"):
        backends.check_logits(torch.full((2, 3), torch.nan), torch.ones(2, 3), "int8")
    with pytest.raises(UnsupportedError, match=r"^its logits are \(1, 3\), not \(2, 3\)$"):
        backends.check_logits(torch.ones(1, 3), torch.ones(2, 3), "int8")


@pytest.mark.parametrize("who", ["deit_zoo", "timm"])
def test_training_leaves_fresh_gradients(who: str) -> None:
    case = replace(TINY, train=True, model="deit_tiny_distilled")
    run = backends.built(who, "eager", case, inputs(case)).run
    first = run()
    assert first.requires_grad
    assert torch.equal(first, run())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> SharedInputs:
    """With both graphs."""
    shared = replace(inputs(TINY), graphs=tmp_path_factory.mktemp("graphs"))
    assert backends.save_graphs(TINY, shared, [*backends.GRAPHS.values()]) == {}
    return shared


@pytest.mark.slow
@pytest.mark.parametrize("who", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("graph", ["timm's graph", "our file"])
def test_runtimes_get_the_same_weights(who: str, graph: str, shared: SharedInputs) -> None:
    pytest.importorskip(who)
    for batch_size in (1, 3):
        case = replace(TINY, batch_size=batch_size)
        backend = backends.built(who, graph, case, replace(shared, images=random_images(case)))
        assert backends.check_logits(backend.run(), expected(case), "float32") < 1e-5


def test_a_model_without_a_graph_says_why(tmp_path: Path) -> None:
    case = Case(model="deit_pico_digits", img_size=(16, 16))
    failed = backends.save_graphs(case, replace(inputs(case), graphs=tmp_path), ["timm"])
    assert failed == {"timm": "timm has no deit_pico_digits"}


ALL = ("timm", "transformers", "onnxruntime", "openvino")


@pytest.mark.parametrize(
    ("precision", "modes", "train", "entered"),
    [
        (
            "float32",
            ["eager", "optimized"],
            False,
            [
                ("deit_zoo", "eager"),
                ("deit_zoo", "optimized"),
                ("timm", "eager"),
                ("timm", "compiled"),
                ("transformers", "eager"),
                ("onnxruntime", "timm's graph"),
                ("onnxruntime", "our file"),
                ("openvino", "timm's graph"),
                ("openvino", "our file"),
            ],
        ),
        (
            "bfloat16",
            ["eager"],
            False,
            [
                ("deit_zoo", "eager"),
                ("timm", "eager"),
                ("transformers", "eager"),
                ("openvino", "timm's graph"),
                ("openvino", "our file"),
            ],
        ),
        ("int8", ["eager", "optimized"], False, [("deit_zoo", "optimized")]),
        (
            "float32",
            ["compiled"],
            True,
            [
                ("deit_zoo", "compiled"),
                ("timm", "eager"),
                ("timm", "compiled"),
                ("transformers", "eager"),
            ],
        ),
    ],
)
def test_who_is_measured_in_a_case(
    precision: str, modes: list[str], train: bool, entered: list[tuple[str, str]]
) -> None:
    case = replace(TINY, precision=precision, train=train)
    assert list(backends.entries(case, modes, ALL)) == entered


def test_without_timm_a_runtime_runs_our_file_alone() -> None:
    entered = list(backends.entries(TINY, ["eager"], ["onnxruntime"]))
    assert entered == [("deit_zoo", "eager"), ("onnxruntime", "our file")]


def test_a_peer_that_is_asked_for_must_be_known_and_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "is_installed", lambda name: name != "transformers")
    assert backends.chosen(["openvino", "timm", "timm"]) == ("openvino", "timm")
    assert backends.chosen(None) == ("timm", "onnxruntime", "openvino")
    with pytest.raises(ZooError) as unknown:
        backends.chosen(["tensorrt"])
    assert str(unknown.value) == (
        "no peer is named 'tensorrt'; give timm, transformers, onnxruntime, openvino"
    )
    with pytest.raises(MissingExtraError) as missing:
        backends.chosen(["timm", "transformers"])
    assert str(missing.value) == (
        "transformers is not installed; type: pip install 'deit_zoo[examples]'"
    )


def test_a_reason_names_no_folder_of_this_machine() -> None:
    error = ImportError("/home/me/cache/3v/main.so: file too short, 3/4 of a/b read")
    assert backends.reason(error) == "ImportError: main.so: file too short, 3/4 of a/b read"
