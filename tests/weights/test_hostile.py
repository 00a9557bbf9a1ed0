"""Files of others that would break, fill or halt a process: each is refused in one sentence."""

from __future__ import annotations

import codecs
import json
import struct
import sys
import zipfile
from collections import Counter, deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

import deit_zoo
from deit_zoo.errors import CheckpointError
from deit_zoo.weights.pickles import read_pickled
from support.tables import each_row

NAME = "deit_pico_digits"
DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return dict(deit_zoo.create(NAME, pretrained=True).state_dict())


def refused(checkpoint: Path, message: str, name: str | None = NAME) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        deit_zoo.create(name, checkpoint=checkpoint)
    assert len(str(caught.value)) < 700
    assert "\n" not in str(caught.value)


@each_row(
    "metadata",
    [
        *(DEEP, "{", "null", "5", '"x"', '{"a": 1e999}', '{"a": NaN}', '{"a": 1, "a": 2}'),
        *(
            f'{{"img_size": {size}}}'
            for size in (
                *("null", "1e308", "[1000000000000, 1000000000000]", '"32"', "-1", "0", "true"),
                *("[32]", "[32, null]", "[1, 2, 3]", "100000", "{}"),
            )
        ),
        *('{"name": 5}', '{"name": []}'),
        *('{"labels": 5}', '{"labels": [1]}', '{"labels": {"a": 1}}', '{"reading": []}'),
    ],
)
def test_metadata_of_safetensors_that_is_torn_deep_or_of_wrong_types(
    metadata: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(save(state, metadata={"deit_zoo": metadata}))
    refused(file, "is not a whole safetensors file|states")


@each_row(
    "header",
    [
        *(
            DEEP,
            '{"a":' * 100_000,
            "[]",
            '{"__metadata__": 5}',
            '{"__metadata__": {"deit_zoo": 5}}',
        ),
        *('{"a": 5}', "\xff"),
        *(
            json.dumps({"head.weight": {"dtype": kind, "shape": shape, "data_offsets": [0, 4]}})
            for kind, shape in (
                *(("F32", [-1]), ("F32", [10**12, 10**12]), ("F32", [2]), ("XX", [1])),
                *(("F8_E8M0", [4]), ("F4", [8]), ("BOOL", [4]), ("U64", [1])),
            )
        ),
    ],
)
def test_a_header_of_safetensors_that_is_torn_deep_or_lies(header: str, tmp_path: Path) -> None:
    text = header.encode("latin-1")
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"\1\1\1\1")
    refused(file, "safetensors file|no plain pickle|does not fit|not a whole")


def test_a_header_of_safetensors_without_end_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", 90 << 20) + b'{"a":')
        stream.truncate(100 << 20)  # sparse: on the disk it takes nothing
    refused(file, "has a header of 94,371,840 bytes, far more than a model's tensors have")


@each_row(
    "config",
    [
        *(DEEP, "{", "[]", "5", "\xff"),
        *('{"architecture": "vit", "model_args": 5}', '{"label_names": 5}', '{"id2label": 5}'),
        *(
            '{"id2label": [1]}',
            '{"id2label": {"x": "y"}}',
            '{"id2label": {"%s": "y"}}' % ("9" * 5000),
        ),
    ],
)
def test_a_configuration_that_is_torn_deep_or_of_wrong_types(
    config: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes(save(state))
    (tmp_path / "config.json").write_text(config, encoding="latin-1")
    refused(tmp_path, "config.json is no configuration of timm's or transformers'")


QKV = "deit.encoder.layer.0.attention.attention."


def odd_tensors(weight: Tensor) -> dict[str, dict[str, Tensor]]:
    parts = [f"{QKV}{part}.weight" for part in ("query", "key", "value")]
    many = torch.zeros(1, 1).expand(10**9, weight.shape[1])
    return {
        "sparse": {"head.weight": weight.to_sparse()},
        "sparse rows": {"head.weight": weight.to_sparse_csr()},
        "on the meta device": {"head.weight": weight.to("meta")},
        "nested": {"head.weight": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])},
        "quantized": {"head.weight": torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)},
        "complex": {"head.weight": weight.to(torch.complex64)},
        "a billion classes of one number": {"head.weight": many},
        "no channels": {"patch_embed.proj.weight": torch.zeros(80, 0, 4, 4)},
        "a scalar": {"head.weight": torch.tensor(1.0)},
        "q alone": {parts[0]: torch.zeros(3, 3)},
        "k and v alone": {parts[1]: torch.zeros(3, 3), parts[2]: torch.zeros(4)},
        "q, k, v of other widths": {
            part: torch.zeros(width, width) for width, part in enumerate(parts, start=1)
        },
        "q, k, v that are scalars": dict.fromkeys(parts, torch.tensor(1.0)),
        "a key of 100,000 letters": {"x" * 100_000: weight},
        "a key with a line break and an escape": {"x\n\x1b[31my": weight},
    }


@pytest.mark.filterwarnings("ignore")  # torch says which of its tensors are prototypes
def test_a_tensor_that_is_not_plainly_in_the_file_is_refused(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    for what, tensors in odd_tensors(state["head.weight"]).items():
        torch.save({"model": state | tensors}, tmp_path / f"{what[:20]}.pth")
        refused(tmp_path / f"{what[:20]}.pth", "holds|says that|does not fit")


@each_row(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"\x80\x02.",
        b"\x80\x04" + b"(" * 100_000 + b".",
        b"\x80\x02" + b"]" * 9999,
    ],
)
def test_bytes_that_begin_as_a_pickle_and_are_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    refused(
        tmp_path / "a.pth", "is not a whole PyTorch file|is no plain pickle|holds no state dict"
    )


def test_a_packed_archive_is_not_unpacked(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(3)}}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as stored,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    refused(tmp_path / "b.pth", "is a packed archive, or a program as TorchScript")


def test_parts_that_share_their_bytes_are_not_read_again_and_again(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(9999)}}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth", "a") as archive:
        archive.writestr("a/more", "")  # so that the directory is written again
        archive.filelist += archive.filelist * 99
    refused(tmp_path / "a.pth", r"is not a whole PyTorch file \(its parts overlap, or reach")


def test_a_pickle_that_torch_finds_by_another_way_is_scanned_too(tmp_path: Path) -> None:
    torch.save({"args": {doubled(3): 1}}, tmp_path / "a.pth")
    whole = (tmp_path / "a.pth").read_bytes()
    bomb = "a key that is neither text nor"
    (tmp_path / "b.pth").write_bytes(whole.replace(b"data.pkl", b"DATA.PKL"))
    refused(tmp_path / "b.pth", bomb)
    (tmp_path / "c.pth").write_bytes(whole[:30] + whole)  # what lists torch's parts is elsewhere
    refused(tmp_path / "c.pth", "is not a whole PyTorch file")
    # An old pickle with an archive behind it.
    torch.save({"args": {doubled(3): 1}}, tmp_path / "d", _use_new_zipfile_serialization=False)
    torch.save({}, tmp_path / "e")
    both = (tmp_path / "d").read_bytes() + (tmp_path / "e").read_bytes()
    (tmp_path / "d.safetensors").write_bytes(both)
    refused(tmp_path / "d.safetensors", bomb)


def test_numbers_that_many_tensors_have_are_not_multiplied(tmp_path: Path) -> None:
    # Joined to query, key and value, or written apart: 4 MB became 5 GB.
    one = torch.zeros(4, 4)
    torch.save({f"layers.{n}.weight": one for n in range(5)}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "names the same numbers over 4 times; save each tensor once")


class Call:
    """What its unpickling calls, with what."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def doubled(times: int) -> tuple[Any, ...]:
    inner: tuple[Any, ...] = ()
    for _ in range(times):
        inner = (inner, inner)
    return inner


MANY = 2_000_000_000
IGNORED, REFUSED = "holds no state dict", "a call of .*, which could take any amount of memory"
AGAIN = "names the same things again and again"
ARRAY = Call(np.ndarray, (MANY,), "i1")
BOMBS = {
    "a list of a trillion": (Call(list, range(10**12)), IGNORED),
    **{
        f"a {kind.__name__} of an array": (Call(kind, ARRAY), IGNORED)
        for kind in (list, tuple, frozenset, str, deque)
    },
    "an array of objects": (Call(np.ndarray, (MANY,), "O"), IGNORED),
    "a set of what is made": (Call(set, ARRAY), REFUSED),
    "a counter of what is made": (Call(Counter, ARRAY), REFUSED),
    "bytes": (Call(bytearray, MANY), REFUSED),
    "a tensor": (Call(torch.Tensor, MANY), REFUSED),
    "bytes by a type": (
        Call(torch._tensor._rebuild_from_type_v2, bytearray, torch.Tensor, (MANY,), {}),
        REFUSED,
    ),
    "a slow encoding": (Call(codecs.encode, "x", "punycode"), REFUSED),
    "one text in many": ([Call(codecs.encode, "x" * 9999, "latin1")] * 2, IGNORED),
    "a tuple doubled": ({"a": doubled(40)}, AGAIN),
    "keys of one hash": ({(1 << 61) - 1 << 61: 1}, "a key that is neither text nor"),
    "a key that is nested": ({doubled(3): 1}, "a key that is neither text nor"),
    "a text a thousand times": (
        (lambda text: [Call(codecs.encode, text, "latin1") for _ in range(999)])("x" * 9999),
        AGAIN,
    ),
}


def test_a_module_in_place_of_its_weights_is_code(tmp_path: Path) -> None:
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path / "a.pth")
    refused(tmp_path / "a.pth", r"asks for torch\.nn\.\S+, which could run code")


def test_a_dict_of_another_library_is_not_made_of_what_it_is_called_with(tmp_path: Path) -> None:
    # Two billion rows of one number would be as many keys.
    kind = type("Dict", (), {"__module__": "addict.addict"})
    module = SimpleNamespace(Dict=kind)
    with patch.dict(sys.modules, {"addict": module, "addict.addict": module}):
        torch.save({"args": Call(kind, torch.zeros(1, 2).expand(2000, 2))}, tmp_path / "a.pth")
    assert read_pickled(tmp_path / "a.pth") == {"args": {}}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@each_row("bomb", list(BOMBS.values()))
def test_a_pickle_takes_no_more_memory_than_its_size_lets_expect(
    bomb: tuple[Any, str], zipped: bool, tmp_path: Path
) -> None:
    content, message = bomb
    torch.save({"args": content}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    refused(tmp_path / "a.pth", message)


def test_a_part_of_a_pth_must_have_the_crc_that_is_stated(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "a.pth"
    torch.save({"model": state}, file)
    whole = bytearray(file.read_bytes())
    whole[whole.find(state["pos_embed"].numpy().tobytes())] ^= 1
    file.write_bytes(whole)
    refused(file, r"is not a whole PyTorch file \(Bad CRC-32 for file 'a/data/\d+'\); fetch it")
    try:  # as in files of who has torch state none
        torch.serialization.set_crc32_options(False)
        torch.save({"model": state}, file)
    finally:
        torch.serialization.set_crc32_options(True)
    assert deit_zoo.create(NAME, checkpoint=file).num_classes == 10


def test_a_receipt_that_is_torn_deep_or_of_wrong_types_is_no_proof(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes(save(state))
    for receipt in (DEEP, "{", '{"sha256": 5}', '{"sha256": {"model.safetensors": null}}', "\xff"):
        (tmp_path / "receipt.json").write_text(receipt, encoding="latin-1")
        refused(tmp_path, r"receipt\.json .*; fetch the folder again, or remove that file")
    (tmp_path / "receipt.json").write_text(json.dumps({"sha256": {"../x": "0" * 64}}))
    refused(tmp_path, "names '../x', which is not in its folder")
