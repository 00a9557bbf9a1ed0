"""Checkpoints as people leave them: any suffix, any wrapper's keys, objects and averages beside."""

from __future__ import annotations

import json
import pathlib
import re
import sys
import zipfile
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import deit_zoo
import golden
from deit_zoo.errors import CheckpointError
from deit_zoo.weights.formats import spelled
from support.machine import NAME

State = dict[str, Tensor]
DISTILLED = "deit_pico_distilled_digits"


@pytest.fixture(scope="module")
def state() -> State:
    """The weights of a small model of four classes."""
    model = golden.filled(deit_zoo.create(NAME, device="meta", num_classes=4))
    return dict(model.state_dict())


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def holds(file: Path, state: State, **options: Any) -> bool:
    """Whether the model that a file gives has these tensors."""
    loaded = deit_zoo.create(NAME, checkpoint=file, **options).state_dict()
    return loaded.keys() == state.keys() and all(torch.equal(loaded[k], state[k]) for k in state)


# What a file is.


@pytest.mark.parametrize("name", ["model_best.pth.tar", "a.ckpt", "a.pkl", "a", "a.safetensors"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_may_have_any_suffix(
    name: str, zipped: bool, state: State, tmp_path: Path
) -> None:
    content = {"epoch": 3, "arch": "deit", "state_dict": state, "metric": 91.2}
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert holds(tmp_path / name, state)


@pytest.mark.parametrize("name", ["a.pth", "a.bin", "a"])
def test_safetensors_may_have_any_suffix(name: str, state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / name)
    assert holds(tmp_path / name, state)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a pointer that Git LFS"),
        (b"<!doctype html><title>Sign in</title>", "a web page that was saved in its place"),
        (b"<html>404 Not Found</html>", "a web page that was saved in its place"),
        (b"\x1f\x8b\x08\x00", "packed by gzip"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_lies_in_place_of_weights_is_named(
    suffix: str, content: bytes, what: str, tmp_path: Path
) -> None:
    file = tmp_path / f"a{suffix}"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"a{suffix} holds no weights: it is {what}"):
        deit_zoo.create(NAME, checkpoint=file)


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("name", ["a.npz", "a.keras", "a.pth"])
def test_an_archive_of_something_else_is_called_so(name: str, packing: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / name, "w", packing) as archive:
        archive.writestr("Transformer/encoder_norm/bias.npy", b"\x93NUMPY")
    with pytest.raises(CheckpointError) as caught:
        deit_zoo.create(NAME, checkpoint=tmp_path / name)
    assert str(caught.value) == (
        f"{tmp_path / name} holds no weights of PyTorch: it is an archive of "
        "'Transformer/encoder_norm/bias.npy', as NumPy's .npz, Keras's .keras or a packed folder; "
        "give PyTorch's weights"
    )


@pytest.mark.parametrize("name", ["a.onnx", "a.pt2"])
def test_an_exported_model_is_called_so(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x08\x0a\x12\x07pytorch")
    with pytest.raises(CheckpointError, match="is an exported model; give the one that it was"):
        deit_zoo.create(str(tmp_path / name), pretrained=True)


def test_a_folder_of_transformers_may_hold_a_pickle(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "pytorch_model.bin")
    torch.save({}, tmp_path / "training_args.bin")
    assert holds(tmp_path, state)


def test_of_several_files_in_a_folder_one_must_be_given(state: State, tmp_path: Path) -> None:
    torch.save({"state_dict": state}, tmp_path / "last.pth.tar")
    assert holds(tmp_path, state)
    torch.save({"state_dict": state}, tmp_path / "model_best.pth.tar")
    with pytest.raises(CheckpointError) as caught:
        deit_zoo.create(NAME, checkpoint=tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds 2 files of weights (last.pth.tar, model_best.pth.tar); give one of them"
    )


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_with_an_index_of_parts_is_read_as_one_model(
    file: str, state: State, tmp_path: Path
) -> None:
    # As transformers' save_pretrained(max_shard_size=...) writes it.
    stem, suffix = file.split(".")
    parts = {key: f"{stem}-0000{1 + number % 2}.{suffix}" for number, key in enumerate(state)}
    for name in set(parts.values()):
        part = {key: value for key, value in state.items() if parts[key] == name}
        (save_file if suffix == "safetensors" else torch.save)(part, tmp_path / name)
    index = tmp_path / f"{file}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    assert holds(tmp_path, state)
    index.write_text(json.dumps({"weight_map": {"head.weight": "../a.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"it lists '\.\./a\.safetensors', which is not in"):
        deit_zoo.create(NAME, checkpoint=tmp_path)


# Keys.


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "model.", "net.", "backbone."),
        *("module._orig_mod.", "_orig_mod.module.", "model._orig_mod.", "student.module.vit."),
    ],
)
def test_words_of_wrappers_come_off(prefix: str, suffix: str, state: State, tmp_path: Path) -> None:
    file, keys = tmp_path / f"a{suffix}", prefixed(prefix, state)
    save_file(keys, file) if suffix == ".safetensors" else torch.save({"model": keys}, file)
    assert holds(file, state)


def test_blocks_that_were_compiled_one_by_one_are_read(state: State, tmp_path: Path) -> None:
    keys = {re.sub(r"(blocks\.\d)", r"\1._orig_mod", key): value for key, value in state.items()}
    assert "blocks.0._orig_mod.norm1.weight" in keys
    torch.save(keys, tmp_path / "a.pth")
    assert holds(tmp_path / "a.pth", state)


def test_keys_of_another_network_are_shown_beside_the_models_own(
    state: State, tmp_path: Path
) -> None:
    torch.save({"head.conv1": torch.ones(2, 2), "tail": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        deit_zoo.create(NAME, checkpoint=tmp_path / "a.pth")
    assert re.search(
        r"missing blocks\.0\..*, missing .*, unexpected head\.conv1, unexpected tail and \d+ more;",
        str(caught.value),
    )


def test_what_lies_under_one_word_is_taken_by_that_word(state: State, tmp_path: Path) -> None:
    # A LightningModule with a loss of its own.
    keys = prefixed("model.", state) | {"loss.weight": torch.ones(4)}
    torch.save({"state_dict": keys}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"unexpected loss\.weight.*; give weights='model'"):
        deit_zoo.create(NAME, checkpoint=tmp_path / "a.ckpt")
    assert holds(tmp_path / "a.ckpt", state, weights="model")


# Several weights in one file.


def other(state: State) -> State:
    return {key: value + 1 for key, value in state.items()}


@pytest.mark.parametrize(
    "key", ["model_ema", "state_dict_ema", "ema", "EMA", "swa_state_dict", "\x1b[2J.ema"]
)
def test_averaged_weights_are_told_of_and_taken_by_their_name(
    key: str, state: State, tmp_path: Path
) -> None:
    file = tmp_path / "checkpoint.pth"
    torch.save({"model": state, key: prefixed("module.", other(state))}, file)
    with pytest.warns(UserWarning, match="averaged") as caught:
        assert holds(file, state)
    assert "\x1b" not in str(caught[0].message)
    assert str(caught[0].message) == (
        f"{file} holds averaged weights ({spelled(key)}) beside those as trained (model), "
        "which are taken; give weights='ema' for the averaged ones"
    )
    assert holds(file, other(state), weights="ema")
    assert holds(file, other(state), weights=key)


def test_averaged_weights_alone_are_the_weights(state: State, tmp_path: Path) -> None:
    torch.save({"ema_state_dict": state, "step": 3}, tmp_path / "a.pth")
    assert holds(tmp_path / "a.pth", state)


def test_an_averaged_copy_inside_one_state_dict_is_taken_by_its_name(
    state: State, tmp_path: Path
) -> None:
    keys = prefixed("model.", state) | prefixed("ema_model.module.", other(state))
    torch.save({"state_dict": keys}, tmp_path / "a.ckpt")
    assert holds(tmp_path / "a.ckpt", other(state), weights="ema")
    assert holds(tmp_path / "a.ckpt", state, weights="model")


def test_a_folder_with_averaged_weights_in_a_folder_is_asked_by_the_same_word(
    state: State, tmp_path: Path
) -> None:
    (tmp_path / "ema").mkdir()
    save_file(state, tmp_path / "model.safetensors")
    save_file(other(state), tmp_path / "ema" / "model.safetensors")
    assert holds(tmp_path, state)
    assert holds(tmp_path, other(state), weights="ema")


def test_torchs_averaged_model_is_read(state: State, tmp_path: Path) -> None:
    averaged = AveragedModel(deit_zoo.create(NAME, num_classes=4))
    averaged.module.load_state_dict(state)
    assert "n_averaged" in averaged.state_dict()
    torch.save(averaged.state_dict(), tmp_path / "a.pth")
    assert holds(tmp_path / "a.pth", state)


def test_of_weights_under_unusual_keys_one_must_be_named(state: State, tmp_path: Path) -> None:
    torch.save({"student": state, "teacher": other(state)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"weights under 'student' and 'teacher'; say which"):
        deit_zoo.create(NAME, checkpoint=tmp_path / "a.pth")
    assert holds(tmp_path / "a.pth", other(state), weights="teacher")


def test_weights_that_are_not_there_are_named_with_those_that_are(
    state: State, tmp_path: Path
) -> None:
    torch.save({"model": state}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"no weights of the name 'ema'; there are 'model'$"):
        deit_zoo.create(NAME, checkpoint=tmp_path / "a.pth", weights="ema")


def test_a_teachers_backbone_is_told_from_its_students(state: State, tmp_path: Path) -> None:
    # As DINO and iBOT leave them.
    body = {key: value for key, value in state.items() if not key.startswith("head.")}
    head = {"head.mlp.0.weight": torch.ones(8, 80)}
    content = {
        "student": prefixed("module.", prefixed("backbone.", body) | head),
        "teacher": prefixed("backbone.", other(body)) | head,
        "dino_loss": {"center": torch.ones(1, 8)},
    }
    file, options = tmp_path / "dino.pth", {"num_classes": 3}
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"weights under 'student' and 'teacher'; say which"):
        deit_zoo.create(NAME, checkpoint=file, **options)
    with pytest.raises(CheckpointError, match=r"give weights='teacher\.backbone' for what lies"):
        deit_zoo.create(NAME, checkpoint=file, weights="teacher", **options)
    there = r"'student', 'teacher', 'student\.backbone', 'teacher\.backbone'$"
    with pytest.raises(CheckpointError, match=rf"no weights of the name 'backbone'; .* {there}"):
        deit_zoo.create(NAME, checkpoint=file, weights="backbone", **options)
    teacher = deit_zoo.create(NAME, checkpoint=file, weights="teacher.backbone", **options)
    assert torch.equal(teacher.cls_token, state["cls_token"] + 1)


# Objects beside the weights.

BESIDE: dict[str, Any] = {
    "a figure of numpy's": np.float64(91.2),
    "a count of numpy's": np.int64(3),
    "a truth of numpy's": np.bool_(True),
    "an array": np.arange(3.0),
    "names": np.array(["cat", "dog"]),
    "numpy's generator": np.random.RandomState(0).get_state(),
    "a path": Path("runs/a"),
    "a path of Windows": pathlib.PureWindowsPath("c:/runs/a"),
    "lists by name": defaultdict(list, a=[1]),
    "counts by name": defaultdict(int, a=1),
    "a window of losses": deque([1.0], maxlen=3),
    "arguments": SimpleNamespace(lr=1e-3),
    "a time": datetime(2026, 1, 1),
    "a version": torch.__version__,
    "a span": slice(1, 2),
    "a range": range(3),
    "a set": frozenset([1]),
    "an optimizer's class with its arguments": partial(torch.optim.AdamW, lr=1e-3),
    "a function": golden.filled,
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("what", list(BESIDE))
def test_plain_objects_may_lie_beside_the_weights(
    what: str, zipped: bool, state: State, tmp_path: Path
) -> None:
    content = {"model": state, "beside": BESIDE[what]}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert holds(tmp_path / "a.pth", state)


@pytest.mark.parametrize(
    "name",
    [
        *("omegaconf.dictconfig.DictConfig", "omegaconf.nodes.AnyNode"),
        *("mmengine.config.config.ConfigDict", "mmengine.logging.history_buffer.HistoryBuffer"),
    ],
)
def test_objects_of_libraries_that_are_not_here_may_lie_beside_the_weights(
    name: str, state: State, tmp_path: Path
) -> None:
    made = made_by(name)()
    made._content = {"lr": 1e-3, "history": np.arange(3.0)}
    with library_of(type(made)):
        torch.save({"state_dict": state, "beside": made}, tmp_path / "a.ckpt")
    assert holds(tmp_path / "a.ckpt", state)


def made_by(name: str) -> Any:
    """A stand-in for a class of a library that need not be installed."""
    module, _, name = name.rpartition(".")
    return type(name, (), {"__module__": module})


@contextmanager
def library_of(*kinds: type) -> Iterator[None]:
    """Within it pickle finds the classes where they say that they are."""
    module = kinds[0].__module__
    parents = [module[:end] for end, sign in enumerate(f"{module}.") if sign == "."]
    stand_ins = dict.fromkeys(parents, SimpleNamespace(**{kind.__name__: kind for kind in kinds}))
    with patch.dict(sys.modules, stand_ins):
        yield


def test_an_object_of_ones_own_is_refused_with_what_to_do_where_the_file_is_trusted(
    state: State, tmp_path: Path
) -> None:
    kind = made_by("my_project.Options")
    with library_of(kind):
        torch.save({"state_dict": state, "options": kind()}, tmp_path / "a.ckpt")
        with pytest.raises(CheckpointError) as caught:
            deit_zoo.create(NAME, checkpoint=tmp_path / "a.ckpt")
        assert str(caught.value) == (
            f"{tmp_path / 'a.ckpt'} asks for my_project.Options, which could run code, so it was "
            "not read; where you trust it, load it by torch.load(FILE, weights_only=False), and "
            "torch.save the state dict that is in it, or the model's .state_dict(), to a new file"
        )
        trusted = torch.load(tmp_path / "a.ckpt", weights_only=False)["state_dict"]
    torch.save(trusted, tmp_path / "new.pth")
    assert holds(tmp_path / "new.pth", state)


@pytest.mark.parametrize("method", ["numel", "detach"])
def test_attributes_in_the_place_of_methods_are_not_called(
    method: str, state: State, tmp_path: Path
) -> None:
    tensor = nn.Parameter(state["cls_token"])
    vars(tensor)[method] = 3
    torch.save(state | {"cls_token": tensor}, tmp_path / "a.pth")
    assert holds(tmp_path / "a.pth", state)


def test_a_kind_of_tensor_that_is_not_here_is_named(state: State, tmp_path: Path) -> None:
    # As of a quantized model.
    kind = type("Int8", (Tensor,), {"__module__": "my_project"})
    with library_of(kind):
        torch.save(state | {"cls_token": state["cls_token"].as_subclass(kind)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth asks for my_project\.Int8, which could run"):
        deit_zoo.create(NAME, checkpoint=tmp_path / "a.pth")


def test_a_pickle_that_names_hundreds_of_classes_is_refused(state: State, tmp_path: Path) -> None:
    kinds = [made_by(f"my_project.Kind{number}") for number in range(300)]
    with library_of(*kinds):
        torch.save({"state_dict": state, "kinds": kinds}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"names 30\d classes and functions, far more than"):
        deit_zoo.create(NAME, checkpoint=tmp_path / "a.ckpt")


# Heads.


@pytest.fixture
def one_headed(tmp_path: Path) -> Path:
    """transformers' DeiTForImageClassification: a distillation token, and a class head alone."""
    model = golden.filled(deit_zoo.create(DISTILLED, device="meta"))
    keys = {k: v for k, v in model.state_dict().items() if not k.startswith("head_dist.")}
    save_file(keys, tmp_path / "model.safetensors")
    return tmp_path


def test_a_distilled_file_with_one_head_answers_by_the_class_token(one_headed: Path) -> None:
    model = deit_zoo.create(DISTILLED, checkpoint=one_headed)
    images = torch.from_numpy(golden.normals("input/16x2", (2, 3, 16, 16)))
    with torch.inference_mode():
        tokens = model.forward_features(images)
        assert tokens.shape == (2, 18, 80)  # class, distillation and 16 patches
        assert torch.equal(model(images), model.head(tokens[:, 0]))


def test_a_distilled_model_of_one_head_is_saved_and_loaded(
    one_headed: Path, tmp_path: Path
) -> None:
    model = deit_zoo.create(DISTILLED, checkpoint=one_headed, num_classes=3)
    deit_zoo.weights.save(model, tmp_path / "again.safetensors")
    again = deit_zoo.create(checkpoint=tmp_path / "again.safetensors")
    assert again.head_dist is None
    assert again.num_classes == 3


Change = Callable[[State], State]
HEADLESS: dict[str, Change] = {
    "no head": lambda state: {k: v for k, v in state.items() if not k.startswith("head.")},
    "transformers' pooler": lambda state: (
        {k: v for k, v in state.items() if not k.startswith("head.")}
        | {"pooler.dense.weight": torch.ones(80, 80), "pooler.dense.bias": torch.ones(80)}
    ),
    "DINO's projection": lambda state: (
        {k: v for k, v in state.items() if not k.startswith("head.")}
        | {"head.mlp.0.weight": torch.ones(8, 80), "head.last_layer.weight_g": torch.ones(9, 1)}
    ),
    "DINO's backbone": lambda state: prefixed(
        "module.backbone.", {k: v for k, v in state.items() if not k.startswith("head.")}
    ),
}


@pytest.mark.parametrize("kind", list(HEADLESS))
@pytest.mark.parametrize("num_classes", [3, 10, 0])
def test_self_supervised_weights_are_a_start_with_a_fresh_head(
    num_classes: int, kind: str, state: State, tmp_path: Path
) -> None:
    torch.save(HEADLESS[kind](state), tmp_path / "dino.pth")
    model = deit_zoo.create(NAME, checkpoint=tmp_path / "dino.pth", num_classes=num_classes)
    assert (model.num_classes, model.labels) == (num_classes, None)
    assert torch.equal(model.cls_token, state["cls_token"])


@pytest.mark.parametrize("kind", ["no head", "transformers' pooler"])
def test_weights_without_a_head_say_what_to_type(kind: str, state: State, tmp_path: Path) -> None:
    torch.save(HEADLESS[kind](state), tmp_path / "dino.pth")
    with pytest.raises(CheckpointError, match=r"head\.weight; it has no head: give num_classes=N"):
        deit_zoo.create(NAME, checkpoint=tmp_path / "dino.pth")


def test_a_linear_layer_is_no_module_of_a_wrapper() -> None:
    # `unwrapped` looks for what wrappers call the model inside, and a model calls nothing so.
    names = {name for name, _ in deit_zoo.create(NAME, device="meta").named_modules()}
    assert names.isdisjoint({"module", "_orig_mod"})
    assert isinstance(deit_zoo.create(NAME, device="meta").head, nn.Linear)
