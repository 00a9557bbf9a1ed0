"""Consoles and pipes that are not UTF-8: no command dies of a character that they have not got."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import deit_zoo as zoo
from deit_zoo.data.digits import digits
from support.images import encoded
from support.tables import each_row

# Windows' consoles in the USA, and POSIX without a locale.
ENCODINGS = ("cp437", "ascii")
PICO = "deit_pico_digits"
LABELS = ["猫", "собака"]


def said(encoding: str, *words: object) -> tuple[int, bytes, bytes]:
    """How a command ends on such a console, in a process of its own, and what it wrote."""
    env = os.environ | {"PYTHONUTF8": "0", "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "deit_zoo", *map(str, words)]
    done = subprocess.run(command, capture_output=True, env=env, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image whose name is no ASCII, beside weights whose labels are none."""
    folder = tmp_path_factory.mktemp("photos")
    image, _ = next(iter(digits()))
    (folder / "Zürich.png").write_bytes(encoded(image))
    zoo.save(zoo.create(PICO, num_classes=2), folder / "two.safetensors", labels=LABELS)
    return folder / "Zürich.png"


@each_row("encoding", ENCODINGS)
def test_a_command_ends_as_on_a_console_that_has_every_character(encoding: str) -> None:
    for words, status in (
        (("info", "deit_small"), 0),
        (("list", "deit*"), 0),
        (("info", "absent 猫"), 2),
    ):
        ended, _, err = said(encoding, *words)
        assert ended == status, (words, err)
        assert b"Traceback" not in err


@pytest.mark.slow
def test_labels_are_told_as_far_as_a_console_has_them_and_whole_as_json(photo: Path) -> None:
    model = photo.with_name("two.safetensors")
    status, out, err = said("latin-1", "classify", photo, "--model", model)
    assert status == 0, err
    assert "Zürich.png" in out.decode("latin-1")
    status, out, err = said("ascii", "classify", photo, "--model", model, "--json")
    assert status == 0, err
    [answer] = json.loads(out)
    assert sorted(one["label"] for one in answer["predictions"]) == sorted(LABELS)
