"""The golden files are those of the index, and the generator makes the bits of the fill rule."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import golden
from support.tables import each_row

CASES: list[dict[str, Any]] = json.loads((golden.HERE / "index.json").read_text(encoding="utf-8"))[
    "cases"
]


@each_row("case", CASES)
def test_a_golden_file_has_the_digest_that_the_index_states(case: dict[str, Any]) -> None:
    data = (golden.HERE / case["file"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == case["sha256"]


def test_the_index_lists_every_golden_file() -> None:
    files = {path.name for path in golden.HERE.iterdir() if path.suffix in {".npz", ".json"}}
    assert files - {"index.json"} == {case["file"] for case in CASES}


# The table "Check your generator" of the rule's own text (fill_rule.md, section 4).
TABLE = """
normals input/224x2              2,3,224,224
    dcf82e7b34641e19b265e321e9a983e8d476a26dc280bf24f3918ff5d3d9b892
fill    blocks.0.attn.qkv.weight 576,192
    a32f745799c133885991250c7c3947b88596982f79ec2fed772f716c98dce079
fill    blocks.0.gamma_1         192
    f2b1115cdc890d42cc55254d93c9422c01852ff3705b56bc6036b221f281c176
fill    pos_embed                1,198,192
    a1537b1bba84755a6989198b81396522f98c5c6884be53f985795dc1bc6eeada
fill    norm.weight              384
    fd705feba02e3b47e618e7104077e4bd00018f362e94cb2741b1d6e9d0075cdd
fill    head_dist.bias           1000
    a283c582cb019a901c34d603b3599d29b4ba1fb6084cb5dc1681dab5d744528c
"""
BITS = iter(TABLE.split())


@each_row(("rule", "name", "shape", "sha256"), zip(BITS, BITS, BITS, BITS, strict=True))
def test_the_generator_makes_the_bits_of_the_rule(
    rule: str, name: str, shape: str, sha256: str
) -> None:
    make = {"normals": golden.normals, "fill": golden.fill}[rule]
    values = make(name, tuple(map(int, shape.split(","))))
    assert hashlib.sha256(values.astype("<f4").tobytes()).hexdigest() == sha256
