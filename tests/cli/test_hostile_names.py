"""Names and labels of others hold anything: no terminal acts on them, no line breaks in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import deit_zoo
from deit_zoo import weights
from deit_zoo.data.digits import digits
from deit_zoo.files import ASSETS
from deit_zoo.terminal import one_line, printable
from support.command import deit_zoo as typed

HOSTILE = (
    "\x1b]0;owned\x07\x1b[31mred",
    "two\nlines",
    "[/bold]\t",
    "\u202etxt",
    "a:fire:b",
    *"56789",
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A model whose classes have such names."""
    model = deit_zoo.create("deit_pico_digits", pretrained=True)
    model.labels = list(HOSTILE)
    weights.save(model, tmp_path / "hostile.safetensors")
    return tmp_path / "hostile.safetensors"


def test_labels_with_escapes_and_ends_of_lines_are_spelled(file: Path, tmp_path: Path) -> None:
    image = tmp_path / "[red]\x1b[2J7.png"
    next(image for image, label in digits() if label == "7").save(image)
    done = typed("classify", image, "--model", file, "--topk", 10)
    assert done.status == 0
    assert not {"\x1b", "\x07", "\u202e"} & set(done.out + done.err)
    lines = done.out.splitlines()
    assert len(lines) == 11
    assert lines[0].endswith(r"[red]\x1b[2J7.png")
    assert {r"two\nlines", "a:fire:b"} <= {line.split()[-1] for line in lines}
    assert "\x1b" not in typed("info", file).out
    rows = json.loads(typed("classify", image, "--model", file, "--topk", 10, "--json").out)
    assert {one["label"] for one in rows[0]["predictions"]} == set(HOSTILE)


def test_a_receipt_with_escapes_and_ends_of_lines_is_spelled(tmp_path: Path) -> None:
    receipt = json.loads((ASSETS / "deit_pico_digits.receipt.json").read_text())
    receipt["environment"]["host"] = "\x1b[2Jtwo\nlines"
    (tmp_path / "receipt.json").write_text(json.dumps(receipt))
    done = typed("diff", "deit_pico_digits", tmp_path)
    assert done.status == 1
    assert done.out.splitlines()[-1].endswith(r"\x1b[2Jtwo\nlines")


@pytest.mark.parametrize(
    ("text", "shown"), [("a\x1b[0m\r", r"a\x1b[0m\r"), ("\x9b2J", r"\x9b2J"), ("é·\n", "é·\n")]
)
def test_what_acts_on_a_terminal_is_spelled_and_all_else_stays(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert "\n" not in one_line(text)
