"""Checkpoints as others wrote them: every layout gives the same tensors, and no code is run.

Where no file of upstream's is at hand the layouts are written here from a model of ours, whose
weights come from the golden files' rule.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import deit_zoo
import golden
from deit_zoo.errors import CheckpointError
from deit_zoo.models.model import ZooModel
from deit_zoo.weights.formats import read_state, write_tensors
from deit_zoo.weights.load import read_tensors
from support.command import run_python
from support.machine import NAME, ROOT, sha256

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """The weights of a small model."""
    return golden.filled(deit_zoo.create(NAME, device="meta")).state_dict()


def converted(pth: Path, file: Path) -> str:
    return write_tensors(read_state(pth).tensors, file)


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "model": lambda state: {"model": state},
    "model beside an optimizer and arguments": lambda state: {
        "model": state,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]},
        "lr_scheduler": {"last_epoch": 299},
        "epoch": 299,
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(lr=5e-4, model="deit_small_patch16_224", output_dir=None),
    },
    "state_dict": lambda state: {"state_dict": state, "arch": "deit"},
    "the top": lambda state: OrderedDict(state),
    "the top, the epoch beside": lambda state: {**state, "epoch": 3},
    "CaiT's module. prefix": lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
    "module. at the top": lambda state: {f"module.{k}": v for k, v in state.items()},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_layout_of_upstream_is_read(
    layout: str, zipped: bool, state: State, tmp_path: Path
) -> None:
    file = tmp_path / "upstream.pth"
    torch.save(LAYOUTS[layout](state), file, _use_new_zipfile_serialization=zipped)
    assert same(read_tensors(file), state)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_a_pth_is_a_checkpoint(suffix: str, state: State, tmp_path: Path) -> None:
    file = tmp_path / f"pico{suffix}"
    torch.save({"model": state}, file)
    assert same(deit_zoo.create(NAME, checkpoint=file).state_dict(), state)


def test_the_layerscale_keys_of_deit_iii_are_kept(tmp_path: Path) -> None:
    keys = ("blocks.0.gamma_1", "blocks.0.gamma_2")
    torch.save({"model": {key: torch.ones(4) for key in keys}}, tmp_path / "deit_3.pth")
    assert tuple(read_tensors(tmp_path / "deit_3.pth")) == keys


def test_threads_may_read_at_once(tmp_path: Path) -> None:
    # What the unpickler allows is the process's, and each reading takes its allowance back.
    file = tmp_path / "upstream.pth"
    many = {f"figure {number}": argparse.Namespace(lr=number) for number in range(100)}
    torch.save({"model": {"a": torch.ones(1)}, **many}, file)
    with ThreadPoolExecutor(4) as pool:
        states = list(pool.map(read_tensors, [file] * 40))
    assert [list(state) for state in states] == 40 * [["a"]]


class Wicked:
    """A pickle that makes a file when it is read carelessly."""

    def __init__(self, call: Callable[..., Any], *arguments: object) -> None:
        self.call = (call, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_tries_to_run_code_is_refused_by_name(zipped: bool, tmp_path: Path) -> None:
    file, mark = tmp_path / "wicked.pth", tmp_path / "it ran"
    content = {"model": {"a": torch.ones(1)}, "args": Wicked(os.system, f"touch '{mark}'")}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError) as caught:
        deit_zoo.create(NAME, checkpoint=file)
    assert str(caught.value) == (
        f"{file} asks for posix.system, which could run code, so it was not read; give a "
        "safetensors file"
    )
    assert not mark.exists()
    torch.load(file, weights_only=False)  # the pickle is a real one
    assert mark.exists()


def test_a_whole_model_of_the_zoo_is_refused_with_what_to_type(tmp_path: Path) -> None:
    torch.save(deit_zoo.create(NAME, device="meta"), tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match=r"weights_only=False\) gives by deit_zoo\.save$"):
        read_tensors(tmp_path / "whole.pth")


@pytest.mark.parametrize("call", [eval, exec, print], ids=["eval", "exec", "print"])
def test_a_bare_pickle_is_refused_too(call: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "bare.pth"
    file.write_bytes(pickle.dumps({"model": Wicked(call, "1 + 1")}, protocol=2))
    with pytest.raises(CheckpointError, match=r"so it was not read|is not a whole PyTorch file"):
        read_tensors(file)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_pth_cut_short_is_one_sentence(
    share: float, zipped: bool, state: State, tmp_path: Path
) -> None:
    file = tmp_path / "cut.pth"
    torch.save({"model": state}, file, _use_new_zipfile_serialization=zipped)
    os.truncate(file, int(share * file.stat().st_size))
    with pytest.raises(CheckpointError) as caught:
        deit_zoo.create(NAME, checkpoint=file)
    told = str(caught.value)
    assert re.fullmatch(
        rf"{re.escape(str(file))} (is not a whole PyTorch file \(.*\); fetch it again|"
        r"is no plain pickle, so it was not read; give a safetensors file)",
        told,
    )


@pytest.mark.parametrize(
    "content",
    [b"\x80\x02.", b"\x80\x02}q\x00(U", bytes(1000), b"PK\x03\x04"],
)
def test_what_is_no_pickle_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"a\.pth is (not a whole PyTorch file|no plain pick)"
    ):
        read_tensors(tmp_path / "a.pth")


def test_no_damage_to_the_head_of_a_file_escapes_as_another_error(
    state: State, tmp_path: Path
) -> None:
    # A byte at a time; what is still read holds tensors or is refused as no state dict.
    file = tmp_path / "damaged.pth"
    small = {"model": {"norm.weight": torch.ones(3)}}
    torch.save(small, file, _use_new_zipfile_serialization=False)
    whole = file.read_bytes()
    for place in range(0, len(whole), 2):
        damaged = bytearray(whole)
        damaged[place] ^= 0x15
        file.write_bytes(bytes(damaged))
        try:
            tensors = read_tensors(file)
        except (CheckpointError, UserWarning):  # torch warns of a strange pickle protocol
            continue
        assert all(isinstance(value, Tensor) for value in tensors.values())


@pytest.mark.parametrize("content", [[1, 2], {"model": {"a": 1}}, {"model": {1: torch.ones(1)}}])
def test_a_pickle_without_a_state_dict_is_one_sentence(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"holds no state dict, neither at its top nor under"):
        read_tensors(tmp_path / "a.pth")


def test_the_same_pth_is_converted_to_the_same_bytes(state: State, tmp_path: Path) -> None:
    digests = set()
    for zipped in (True, False):
        torch.save(
            {"model": dict(reversed(state.items())) if zipped else state},
            tmp_path / "a.pth",
            _use_new_zipfile_serialization=zipped,
        )
        digests.add(converted(tmp_path / "a.pth", tmp_path / "a.safetensors"))
        assert same(load_file(tmp_path / "a.safetensors"), state)
    assert digests == {sha256((tmp_path / "a.safetensors").read_bytes())}
    code = (
        "import sys; from pathlib import Path\n"
        "from deit_zoo.weights.formats import read_state, write_tensors\n"
        "print(write_tensors(read_state(Path(sys.argv[1])).tensors, Path(sys.argv[2])))"
    )
    arguments = [str(tmp_path / "a.pth"), str(tmp_path / "b.safetensors")]
    done = run_python(["-c", code, *arguments], cwd=ROOT)
    assert {done.stdout.strip()} == digests, done.stderr


def test_tensors_that_share_memory_or_lie_across_are_converted(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    torch.save({"model": {"a": weight, "b": weight, "c": weight.T}}, tmp_path / "a.pth")
    converted(tmp_path / "a.pth", tmp_path / "a.safetensors")
    assert same(load_file(tmp_path / "a.safetensors"), {"a": weight, "b": weight, "c": weight.T})


# transformers' keys, written down from its documentation; `{}` is the number of a block.
BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def as_transformers(state: State, kind: str) -> State:
    """Our tensors under the keys of transformers' DeiT or ViT, queries, keys and values apart."""
    outer = {
        "cls_token": f"{kind}.embeddings.cls_token",
        "dist_token": f"{kind}.embeddings.distillation_token",
        "pos_embed": f"{kind}.embeddings.position_embeddings",
        "patch_embed.proj": f"{kind}.embeddings.patch_embeddings.projection",
        "norm": f"{kind}.layernorm",
        "head": "cls_classifier" if "dist_token" in state else "classifier",
        "head_dist": "distillation_classifier",
    }
    theirs: State = {}
    for key, value in state.items():
        stem, _, last = key.rpartition(".")
        if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", stem):
            layer = f"{kind}.encoder.layer.{match[1]}"
            if match[2] == "attn.qkv":
                for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    theirs[f"{layer}.attention.attention.{part}.{last}"] = third.contiguous()
            else:
                theirs[f"{layer}.{BLOCK[match[2]]}.{last}"] = value
        elif stem:
            theirs[f"{outer[stem]}.{last}"] = value
        else:
            theirs[outer[key]] = value
    return theirs


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize(
    ("name", "kind"), [("deit_tiny_distilled", "deit"), ("deit_tiny", "deit"), ("deit_tiny", "vit")]
)
def test_a_file_of_transformers_gives_the_same_logits(
    name: str, kind: str, suffix: str, tmp_path: Path
) -> None:
    model: ZooModel = golden.filled(deit_zoo.create(name, device="meta")).eval()
    theirs, file = as_transformers(model.state_dict(), kind), tmp_path / f"model{suffix}"
    assert f"{kind}.encoder.layer.11.attention.attention.query.weight" in theirs
    assert theirs.keys().isdisjoint(model.state_dict())
    save_file(theirs, file) if suffix == ".safetensors" else torch.save(theirs, file)
    images = torch.from_numpy(golden.normals("input/224x2", (2, 3, 224, 224)))
    loaded = deit_zoo.create(name, checkpoint=file)
    with torch.inference_mode():
        assert torch.equal(loaded(images), model(images))


# Of a layer, as `state_dict()` of transformers 5.24 calls what its own files call otherwise.
IN_MEMORY = {
    "encoder.layer.": "layers.",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


@pytest.mark.parametrize("prefix", ["vit.", "deit.", ""])
def test_a_state_dict_of_transformers_5_is_read_as_its_files_are(
    prefix: str, state: State, tmp_path: Path
) -> None:
    theirs = {}
    for key, value in as_transformers(state, "vit").items():
        for file, memory in IN_MEMORY.items():
            key = key.replace(file, memory)
        theirs[re.sub(r"^vit\.", prefix, key)] = value
    assert f"{prefix}layers.0.attention.q_proj.weight" in theirs
    torch.save(theirs, tmp_path / "a.bin")
    assert same(read_tensors(tmp_path / "a.bin"), state)


def test_a_key_that_transformers_alone_has_is_named(tmp_path: Path) -> None:
    model = golden.filled(deit_zoo.create("deit_tiny", device="meta"))
    theirs = as_transformers(model.state_dict(), "vit")
    theirs["vit.pooler.dense.bias"] = torch.zeros(192)
    save_file(theirs, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"unexpected vit\.pooler\.dense\.bias"):
        deit_zoo.create("deit_tiny", checkpoint=tmp_path)


def as_mmpretrain(state: State) -> State:
    """Our tensors under the keys of mmpretrain's ViT, DeiT and DeiT III with their class heads, as
    its tools/model_converters/deit3_to_mmpretrain.py writes them."""
    words = (
        *((r"^patch_embed\.proj", "patch_embed.projection"), (r"^blocks", "layers")),
        *((r"\.norm(?=[12]\.)", ".ln"), (r"^norm", "ln1")),
        *((r"mlp\.fc1", "ffn.layers.0.0"), (r"mlp\.fc2", "ffn.layers.1")),
        *((r"gamma_1", "attn.gamma1.weight"), (r"gamma_2", "ffn.gamma2.weight")),
        *((r"^(head|head_dist)\.", r"head.layers.\1."), (r"^(?!head)", "backbone.")),
    )
    theirs = {}
    for key, value in state.items():
        for ours, word in words:
            key = re.sub(ours, word, key)
        theirs[key] = value
    return theirs


@pytest.mark.parametrize("name", ["deit_pico_distilled_digits", "deit3_small"])
def test_a_file_of_mmpretrain_is_read(name: str, tmp_path: Path) -> None:
    state = golden.filled(deit_zoo.create(name, device="meta")).state_dict()
    theirs = as_mmpretrain(state)
    assert {"backbone.layers.0.ffn.layers.0.0.weight", "head.layers.head.bias"} <= theirs.keys()
    assert ("backbone.layers.1.attn.gamma1.weight" in theirs) == (name == "deit3_small")
    torch.save({"meta": {}, "state_dict": theirs}, tmp_path / "mm.pth")
    assert same(deit_zoo.create(name, checkpoint=tmp_path / "mm.pth").state_dict(), state)
    # As of self-supervised training.
    body = {key: value for key, value in theirs.items() if key.startswith("backbone.")}
    torch.save(body, tmp_path / "mm.pth")
    headless = {key for key in state if not key.startswith("head")}
    assert read_tensors(tmp_path / "mm.pth").keys() == headless


def test_a_file_of_torchvision_is_called_so(tmp_path: Path) -> None:
    keys = ("class_token", "conv_proj.weight", "encoder.layers.encoder_layer_0.ln_1.weight")
    torch.save({key: torch.ones(4) for key in keys}, tmp_path / "vit_b_16.pth")
    with pytest.raises(CheckpointError, match="keys are torchvision's, which are not read; give"):
        deit_zoo.create("deit_base", checkpoint=tmp_path / "vit_b_16.pth")


# safetensors that lie.


def with_header(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def entry(**changed: Any) -> bytes:
    """A header of one tensor of four floats."""
    return json.dumps(
        {"norm.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changed}
    ).encode()


@pytest.mark.parametrize(
    "content",
    [
        with_header(entry(shape=[5]), bytes(16)),
        with_header(entry(shape=[2**40]), bytes(16)),
        with_header(entry(data_offsets=[0, 2**40]), bytes(16)),
        with_header(entry(data_offsets=[8, 24]), bytes(24)),
        with_header(entry(data_offsets=[16, 0]), bytes(16)),
        with_header(entry(dtype="F128"), bytes(16)),
        with_header(entry(), bytes(12)),
        with_header(entry(), bytes(20)),
        with_header(entry(), bytes(16), length=10),
        with_header(entry(), bytes(16), length=10_000),
        with_header(b"[]", bytes(16)),
        with_header(b"\xff\xfe", bytes(16)),
    ],
    ids=[
        "a shape too large",
        "a shape of a terabyte",
        "offsets beyond the end",
        "a hole",
        "offsets backwards",
        "an unknown type",
        "a body too short",
        "a body too long",
        "a header cut off",
        "a header beyond the end",
        "a list",
        "no text",
    ],
)
def test_a_header_that_lies_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(
        CheckpointError,
        match=rf"^{re.escape(str(file))} is not a whole safetensors file \(.*\); fetch or export",
    ):
        deit_zoo.create(NAME, checkpoint=file)


@pytest.mark.parametrize("length", [2**27, 2**63 - 1, 2**64 - 1])
def test_a_huge_header_is_refused_without_reading_it(length: int, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(with_header(entry(), bytes(16), length=length))
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        deit_zoo.create(NAME, checkpoint=file)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("norm.bias"), "missing norm.bias"),
        (lambda state: state.update(extra=torch.zeros(1)), "unexpected extra"),
        (
            lambda state: state.update({"norm.bias": torch.zeros(81)}),
            "norm.bias is (81,), not (80,)",
        ),
        (
            lambda state: state.update({"norm.bias": torch.zeros(80).long()}),
            "norm.bias holds torch.int64",
        ),
    ],
    ids=["missing", "extra", "misshaped", "wrong type"],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_tensor_that_does_not_fit_is_named_in_one_sentence(
    suffix: str, change: Callable[[State], Any], told: str, state: State, tmp_path: Path
) -> None:
    changed, file = dict(state), tmp_path / f"changed{suffix}"
    change(changed)
    save_file(changed, file) if suffix == ".safetensors" else torch.save({"model": changed}, file)
    with pytest.raises(CheckpointError) as caught:
        deit_zoo.create(NAME, checkpoint=file)
    assert str(caught.value) == (
        f"{file} does not fit {NAME}: {told}; give the model and the img_size that it was saved of"
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("blocks.0.gamma_1", "blocks.0.ls1.gamma"),
        ("deit.layernorm.weight", "vit.layernorm.weight"),
        ("vit.layernorm.weight", "norm.weight"),
        (
            "deit.encoder.layer.0.attention.attention.query.weight",
            "vit.encoder.layer.0.attention.attention.query.weight",
        ),
        (
            "vit.layers.0.attention.q_proj.weight",
            "vit.encoder.layer.0.attention.attention.query.weight",
        ),
        ("blocks.0.attn.qkv.weight", "vit.encoder.layer.0.attention.attention.key.weight"),
    ],
)
def test_two_tensors_that_would_be_one_are_refused(first: str, second: str, tmp_path: Path) -> None:
    for keys in ((first, second), (second, first)):
        torch.save({key: torch.ones(2, 2) for key in keys}, tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match=r"a\.pth holds .* one tensor") as caught:
            read_tensors(tmp_path / "a.pth")
        assert first in str(caught.value)
        assert second in str(caught.value)
