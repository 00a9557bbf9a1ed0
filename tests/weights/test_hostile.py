"""Files of others that would break, fill or halt a process: each is refused in one sentence."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

import deit_zoo
from deit_zoo.errors import CheckpointError
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


def test_a_pickle_that_asks_for_a_list_of_a_trillion_numbers_gets_none(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return list, (range(10**12),)

    file = tmp_path / "a.pth"
    torch.save({"args": Bomb()}, file)
    refused(file, "holds no state dict")
    file.write_bytes(pickle.dumps({"args": Bomb()}, protocol=2))
    refused(file, "is not a whole PyTorch file|is no plain pickle")


def test_a_receipt_that_is_torn_deep_or_of_wrong_types_is_no_proof(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes(save(state))
    for receipt in (DEEP, "{", '{"sha256": 5}', '{"sha256": {"model.safetensors": null}}', "\xff"):
        (tmp_path / "receipt.json").write_text(receipt, encoding="latin-1")
        refused(tmp_path, r"receipt\.json .*; fetch the folder again, or remove that file")
    (tmp_path / "receipt.json").write_text(json.dumps({"sha256": {"../x": "0" * 64}}))
    refused(tmp_path, "names '../x', which is not in its folder")
