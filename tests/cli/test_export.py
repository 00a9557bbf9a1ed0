"""`deit-zoo export`, as it is typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import typer

import deit_zoo
from deit_zoo.api import export
from deit_zoo.cli.export import export_
from deit_zoo.data.digits import digits
from deit_zoo.files import ASSETS
from deit_zoo.weights import load
from support.command import Process, run_python
from support.typed import Done

PLAIN, DISTILLED = "deit_pico_digits", "deit_pico_distilled_digits"

pytest.importorskip("onnxruntime")

app = typer.Typer()
app.command("export")(export_)


def program(*arguments: str, before: str = "pass") -> list[str]:
    code = f"import sys; {before}; from deit_zoo.cli import main; main()"
    return ["-W", "default", "-c", code, "export", *arguments]


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    here = export(PLAIN, tmp_path / f"{PLAIN}.onnx")
    here.file.unlink()
    done = subprocess.run(
        [sys.executable, *program(PLAIN, "--to", "onnx")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONHASHSEED": "1"},  # and with it the order of sets
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sha256((tmp_path / f"{PLAIN}.onnx").read_bytes()).hexdigest() == here.sha256


def test_a_process_prints_rows_and_no_chatter(tmp_path: Path) -> None:
    done = run_python(program(PLAIN, "--to", "onnx"), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    size = (tmp_path / f"{PLAIN}.onnx").stat().st_size
    difference = rows.pop("difference").strip()
    assert {label.strip(): text.strip() for label, text in rows.items()} == {
        "file": f"{PLAIN}.onnx",
        "format": "ONNX, opset 18",
        "size": f"{size:,} bytes",
        "input": "images (any, 3, 16, 16), float32, normalised",
        "top-1": "the model's own on 8 of 8 images",
        "use": f"onnxruntime.InferenceSession('{PLAIN}.onnx').run(None, {{'images': images}})[0]",
    }
    figure, rest = difference.split(" ", 1)
    assert 0 < float(figure) < 1e-5
    assert rest == "at most, in a logit; limit 0.0001"
    assert [path.name for path in tmp_path.iterdir()] == [f"{PLAIN}.onnx"]


def test_export_as_json_gives_the_record(typed: Callable[..., Done]) -> None:
    done = typed("deit-pico-digits", "--to", "pt2", "--json")
    printed = json.loads(done.out)
    assert (done.status, done.err) == (0, f"model: {PLAIN}\n")
    assert printed.pop("max_difference") < 1e-5
    file = Path(f"{PLAIN}.pt2")
    assert printed == {
        "file": str(file),
        "model": PLAIN,
        "format": "pt2",
        "compiled": False,
        "opset": None,
        "img_size": [16, 16],
        "bytes": file.stat().st_size,
        "sha256": sha256(file.read_bytes()).hexdigest(),
        "num_images": 8,
        "agreed": 8,
        "limit": 0.0001,
    }


def test_the_suffix_of_output_says_the_format(typed: Callable[..., Done]) -> None:
    done = typed(PLAIN, "--output", "mine.pt2", "--img-size", "8x12")
    assert done.status == 0
    assert files() == ["mine.pt2"]
    assert torch.export.load("mine.pt2").module()(torch.zeros(3, 3, 8, 12)).shape == (3, 10)
    use = done.out.splitlines()[-1].split("  ")[-1].strip()
    assert use == "torch.export.load('mine.pt2').module()(images)"


def test_a_run_gives_its_own_classes_under_its_own_name(typed: Callable[..., Done]) -> None:
    model = deit_zoo.create(PLAIN, num_classes=2)
    Path("photos").mkdir()
    load.save_model(model, Path("photos/model.safetensors"), labels=["cat", "dog"])
    done = typed("./photos", "--to", "pt2", "--img-size", "32", "--json")
    printed = json.loads(done.out)
    assert (printed["file"], printed["model"], printed["img_size"]) == (
        "photos.pt2",
        PLAIN,
        [32, 32],
    )
    extra_files = {"labels": ""}
    torch.export.load("photos.pt2", extra_files=extra_files)
    assert extra_files["labels"] == '["cat", "dog"]'


def test_weights_and_images_of_ones_own_are_taken(typed: Callable[..., Done]) -> None:
    Path("seen").mkdir()
    for (image, _), number in zip(digits(), range(3), strict=False):
        image.save(f"seen/{number}.png")
    checkpoint = ASSETS / f"{PLAIN}.safetensors"
    arguments = ("--to", "pt2", "--checkpoint", checkpoint, "--images", "seen", "--json")
    assert json.loads(typed(PLAIN, *arguments).out)["num_images"] == 3
    refused = typed(DISTILLED, *arguments, "--force")
    assert refused.error is not None
    assert "does not fit" in refused.error
    assert files() == [f"{PLAIN}.pt2", "seen"]


def test_a_difference_above_the_limit_is_exit_1_and_no_file(typed: Callable[..., Done]) -> None:
    done = typed(DISTILLED, "--to", "onnx", "--limit", "1e-9")
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(f"error: {DISTILLED} as onnx gives logits up to ")
    assert "the limit is 1e-09; nothing was written" in done.err
    assert files() == []


def test_a_file_that_is_there_needs_force(typed: Callable[..., Done]) -> None:
    file = Path(f"{PLAIN}.pt2")
    file.write_text("mine", encoding="utf-8")
    done = typed(PLAIN, "--to", "pt2")
    assert done.error == (
        f"{file} is there already; give another --output, or --force to replace it"
    )
    assert file.read_text(encoding="utf-8") == "mine"
    assert typed(PLAIN, "--to", "pt2", "--overwrite").status == 0
    assert torch.export.load(file).module()(torch.zeros(1, 3, 16, 16)).shape == (1, 10)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([PLAIN], "the format is not given; type --to onnx or --to pt2"),
        (
            [PLAIN, "--to", "pt2", "--opset", "18"],
            "a .pt2 file has no opset; give --to onnx, or leave out --opset",
        ),
        (
            [PLAIN, "--to", "pt2", "--img-size", "17"],
            "images of 17x17 pixels cannot be cut into patches of 4x4; the nearest size that can "
            "is img_size=16",
        ),
        (
            [PLAIN, "--to", "pt2", "--images", "none.png"],
            "none.png does not exist; give an image file, a folder or a URL",
        ),
    ],
)
def test_export_refuses_in_one_sentence_and_writes_nothing(
    typed: Callable[..., Done], arguments: list[str], sentence: str
) -> None:
    done = typed(*arguments)
    assert (done.status, done.out, done.error) == (1, "", sentence)
    assert files() == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_onnx_without_the_extra_names_it(package: str, tmp_path: Path) -> None:
    done = run_python(
        program(PLAIN, "--to", "onnx", before=f"sys.modules[{package!r}] = None"), cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: ONNX needs onnx, onnxscript and onnxruntime; type: pip install 'deit_zoo[export]'\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_program_of_torch_needs_no_extra(tmp_path: Path) -> None:
    blocked = "sys.modules.update(onnx=None, onnxscript=None, onnxruntime=None)"
    done = run_python(program(PLAIN, "--to", "pt2", before=blocked), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (signal.SIGKILL, -signal.SIGKILL, ""),
        (signal.SIGINT, 130, "stopped; nothing was written\n"),
    ],
)
def test_a_stopped_export_leaves_nothing(
    sent: signal.Signals, status: int, said: str, tmp_path: Path
) -> None:
    # It says when it has begun to convert, and is stopped then.
    before = (
        "import deit_zoo.inference.export as e; whole = e._of_program; "
        "e._of_program = lambda *a: (print('converting', flush=True), whole(*a))[1]"
    )
    with Process(
        program(PLAIN, "--to", "onnx", before=before),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "converting\n"
        time.sleep(0.2)
        running.send_signal(sent)
        _, err = running.communicate()
    assert (running.returncode, err) == (status, said)
    assert list(tmp_path.iterdir()) == []
