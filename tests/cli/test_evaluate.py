"""`deit-zoo evaluate` as it is typed: the figures, the judgement, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

import deit_zoo
from deit_zoo.cli.evaluate import judge, print_report, published_for, report_of
from deit_zoo.data.digits import write_folder
from deit_zoo.data.formats import decodable
from deit_zoo.manifest import manifest_path
from deit_zoo.results import Evaluation
from deit_zoo.weights.load import save_model
from deit_zoo.zoo import info
from support.command import Process, forked_python, run_python
from support.images import HEIC

MODEL = "deit_pico_digits"
COMMAND = ["-m", "deit_zoo", "evaluate"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli_evaluate") / "digits"
    write_folder(folder)
    return folder


def evaluate(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_python([*COMMAND, *map(str, arguments)], env=os.environ | environment)


@pytest.fixture(scope="module")
def claiming(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose manifest claims that a top-1 of 99 was published for the model."""
    manifest = json.loads(manifest_path().read_text())
    manifest["checkpoints"][MODEL]["metrics"]["digits_val"]["top1"] = 99.0
    file = tmp_path_factory.mktemp("manifest") / "manifest.json"
    file.write_text(json.dumps(manifest))
    return {"DEIT_ZOO_MANIFEST": str(file)}


def test_the_figures_stand_beside_the_published_ones(digits: Path) -> None:
    done = evaluate(MODEL, "--data", digits)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines == [
        "measured published difference",
        "top1 98.333 98.333 +0.000",
        "top5 100.000 100.000 +0.000",
        "loss 0.2235 0.2235 +0.0000",
        "360 images, each once",
        "short side resized to 16 pixels, centre crop of 16",
        "published: deit-zoo reproduce deit_pico_digits --gpus 0",
        "top-1 is the published figure, or at most 0.1 below it",
    ]


def test_two_processes_print_the_same_data(digits: Path) -> None:
    done = evaluate(MODEL, "--data", digits, "--processes", 2, "--batch-size", 7, "--json")
    row = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert row["top1"] == {"measured": 100 * 354 / 360, "published": 98.333, "difference": 0.000333}
    assert (row["model"], row["labels"], row["reached"]) == (MODEL, None, True)
    assert (row["num_images"], row["num_judged"]) == (360, 360)
    assert row["source"] == "deit-zoo reproduce deit_pico_digits --gpus 0"


@pytest.mark.skipif("HEIF" in decodable(), reason="pillow-heif is here")
def test_an_image_that_a_process_cannot_decode_is_one_sentence(
    digits: Path, tmp_path: Path
) -> None:
    shutil.copytree(digits / "val", tmp_path / "data")
    bad = sorted((tmp_path / "data" / "9").iterdir())[-1]
    bad.write_bytes(HEIC)
    done = evaluate(MODEL, "--data", tmp_path / "data", "--processes", 2)
    assert (done.returncode, done.stdout) == (2, "")
    advice = "which nothing here decodes; type: pip install pillow-heif"
    assert done.stderr == f"error: {bad} is a HEIC image, {advice}\n"


def test_a_figure_that_falls_short_exits_1(digits: Path, claiming: dict[str, str]) -> None:
    done = evaluate(MODEL, "--data", digits, **claiming)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[-1] == (
        "top-1 falls 0.667 short of the published figure; other machines explain 0.1"
    )


def test_a_part_of_the_images_is_not_judged(digits: Path, claiming: dict[str, str]) -> None:
    done = evaluate(MODEL, "--data", digits / "train", "--json", **claiming)
    row = json.loads(done.stdout)
    assert (done.returncode, row["reached"], row["num_images"]) == (0, None, 1437)
    assert row["verdict"] == ("not the full validation set (1,437 images of 360), so no judgement")


@pytest.mark.parametrize(
    ("top1", "num_images", "good"),
    [
        (79.854, 50_000, True),
        (79.76, 50_000, True),
        (79.75, 50_000, False),
        (0.0, 49_999, None),
        (100.0, 50_000, True),
    ],
)
def test_the_whole_validation_set_is_judged(
    top1: float, num_images: int, good: bool | None
) -> None:
    # 79.854 is published; reruns by others land within 0.07, and 0.1 is allowed.
    model = info("deit_small")
    reached = Evaluation(top1=top1, top5=95.0, loss=0.9, num_images=num_images)
    assert judge(model, None, published_for(model, None), reached)[0] is good


@pytest.mark.parametrize("name", ["deit_base", "deit_small", "deit_base_distilled_384"])
def test_a_figure_that_is_just_as_far_below_as_is_allowed_is_reached(name: str) -> None:
    model = info(name)
    published = published_for(model, None)
    assert published is not None
    assert published.top1 is not None
    right = round(500 * published.top1) - 50  # of 50,000 images, 0.1 % fewer
    reached = Evaluation(top1=100.0 * right / 50_000, top5=95.0, loss=0.9, num_images=50_000)
    assert judge(model, None, published, reached)[0] is True


def test_other_label_sets_are_compared_and_not_judged() -> None:
    model = info("deit_small")
    published = published_for(model, "real")
    assert published is not None
    assert published.top1 == 85.7
    reached = Evaluation(top1=1.0, top5=2.0, loss=0.9, num_images=50_000)
    assert judge(model, "real", published, reached) == (
        None,
        "no judgement: only the model's own validation set is judged",
    )
    assert judge(model, "a", published_for(model, "a"), reached) == (
        None,
        "no published figure to compare with",
    )


def test_a_figure_that_timm_measured_has_a_star(capsys: pytest.CaptureFixture[str]) -> None:
    model = info("cait_s24_224")
    reached = Evaluation(top1=31.0, top5=60.0, loss=3.0, num_images=7_500)
    print_report(report_of(model, "a", reached), model)
    shown = capsys.readouterr().out
    assert [line.split() for line in shown.splitlines() if "31.187" in line] == [
        ["top1", "31.000", "31.187*", "-0.187"]
    ]
    assert "* measured by timm: timm results-imagenet-a.csv, the same transform" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "c"], "labels is 'c'; give one of real, v2, a, r, sketch"),
        (["--processes", "2", "--gpus", "1"], "processes 2 is for the CPU; with gpus 1 each GPU"),
        (["--data", "absent"], "absent does not exist; give a folder"),
        (["--parquet"], "parquet is of a report's predictions; give report=DIR (--report DIR)"),
        (["--heads", "--parquet"], "--heads and --beside compare answers in one process and write"),
    ],
)
def test_a_wrong_word_is_one_sentence(arguments: list[str], message: str, digits: Path) -> None:
    done = evaluate(MODEL, "--data", digits, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [forked_python("torch"), "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, "-m", "deit_zoo", "evaluate", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_under_torchrun_the_first_process_prints_for_all(digits: Path) -> None:
    done = torchrun(MODEL, "--data", digits, "--processes", 2, "--batch-size", 7, "--json")
    row = json.loads(done.stdout)
    assert (done.returncode, row["num_images"]) == (0, 360)
    assert (row["top1"]["measured"], row["loss"]["measured"]) == (100 * 354 / 360, 0.223457)


@pytest.mark.slow
def test_under_torchrun_an_error_of_any_process_is_told_once(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "val", tmp_path / "data")
    # Of batches of 64 the last, the sixth, is the second process's.
    bad = sorted((tmp_path / "data" / "9").iterdir())[-1]
    bad.write_bytes(b"no image")
    done = torchrun(MODEL, "--data", tmp_path / "data")
    assert done.returncode == 1  # torchrun's own
    assert done.stderr.count(f"error: {bad} cannot be read as an image") == 1


@pytest.mark.slow
def test_torchrun_must_start_as_many_as_are_asked_for(digits: Path) -> None:
    done = torchrun(MODEL, "--data", digits, "--processes", 3)
    message = "error: torchrun started 2 processes here, but 3 are asked for; make the two agree"
    assert done.stderr.count(message) == 1


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10,000 small images in ten folders."""
    root, stream = tmp_path_factory.mktemp("many"), BytesIO()
    Image.new("RGB", (8, 8)).save(stream, format="PNG")
    for digit in range(10):
        (root / str(digit)).mkdir()
        for number in range(1000):
            (root / str(digit) / f"{number}.png").write_bytes(stream.getvalue())
    return root


def interrupted(*arguments: object) -> tuple[int, str, str]:
    """The exit status, stdout and what a terminal showed, of a command stopped by Ctrl-C.

    As a terminal does, the signal goes to all processes, when the bar shows the first images.
    """
    pty = pytest.importorskip("pty")
    terminal, stderr = pty.openpty()
    process = Process(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
        env=os.environ | {"COLUMNS": "120", "TERM": "xterm", "OMP_NUM_THREADS": "1"},
    )
    os.close(stderr)
    shown, sent, until = "", False, time.monotonic() + 60
    while time.monotonic() < until:
        try:
            shown += os.read(terminal, 4096).decode(errors="replace")
        except OSError:  # Linux's end of a terminal that nobody holds any more
            break
        if not sent and re.search(r"[1-9]\d*/10000", shown):
            os.killpg(process.pid, signal.SIGINT)
            sent = True
    os.close(terminal)
    out, _ = process.communicate(timeout=60)
    assert sent, shown
    return process.returncode, out, shown


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
@pytest.mark.parametrize(
    "arguments",
    [
        ("--workers", "0"),
        pytest.param(("--workers", "2"), marks=pytest.mark.slow),
        pytest.param(("--processes", "2", "--workers", "1"), marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_stops_ten_thousand_images_without_a_traceback(
    arguments: tuple[str, ...], many: Path
) -> None:
    status, out, shown = interrupted(MODEL, "--data", many, "--batch-size", "16", *arguments)
    assert (status, out) == (130, "")
    assert "Traceback" not in shown
    assert re.search(r"stopped after [\d,]+ of 10,000 images", shown)


def test_the_weights_of_a_folder_are_measured_on_its_own_classes(tmp_path: Path) -> None:
    model = deit_zoo.create(MODEL, num_classes=2)
    model.head.weight.data.zero_()
    model.head.bias.data.copy_(torch.tensor([1.0, 0.0]))
    (tmp_path / "run").mkdir()
    save_model(model, tmp_path / "run" / "model.safetensors", labels=["zebra", "ant"])
    for folder, count in {"ant": 1, "zebra": 3}.items():
        (tmp_path / "data" / folder).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (16, 16)).save(tmp_path / "data" / folder / f"{number}.png")
    done = evaluate(tmp_path / "run", "--data", tmp_path / "data", "--json")
    row = json.loads(done.stdout)
    assert (done.returncode, row["model"]) == (0, MODEL)
    assert row["top1"] == {"measured": 75.0, "published": None, "difference": None}
    assert row["verdict"] == "no published figure to compare with"


def test_no_bar_is_drawn_where_nobody_looks(digits: Path) -> None:
    done = evaluate(MODEL, "--data", digits, "--json")
    assert done.stderr == ""


def running(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are listed in /proc")
def test_processes_end_with_the_one_that_began_them(many: Path) -> None:
    pty = pytest.importorskip("pty")
    terminal, stderr = pty.openpty()
    process = Process(
        [*COMMAND, MODEL, "--data", str(many), "--processes", "2", "--batch-size", "1"],
        stderr=stderr,
        env=os.environ | {"COLUMNS": "120", "TERM": "xterm", "OMP_NUM_THREADS": "1"},
    )
    os.close(stderr)
    shown = ""
    while not re.search(r"[1-9]\d*/10000", shown):  # they have begun to work
        shown += os.read(terminal, 4096).decode(errors="replace")
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    begun = {int(pid) for pid in listed.read_text().split()}
    assert len(begun) == 2
    assert running(begun) == begun
    process.kill()
    process.wait()
    os.close(terminal)
    until = time.monotonic() + 10
    while running(begun) and time.monotonic() < until:
        time.sleep(0.1)
    assert running(begun) == set()


def test_images_of_every_ending_are_measured_and_what_is_ignored_is_said(
    digits: Path, tmp_path: Path
) -> None:
    for label in range(10):
        (tmp_path / "val" / str(label)).mkdir(parents=True)
        files = sorted((digits / "val" / str(label)).iterdir())[:2]
        shutil.copy(files[0], tmp_path / "val" / str(label))
        with Image.open(files[1]) as image:
            again = tmp_path / "val" / str(label) / f"{files[1].stem}.avif"
            image.convert("RGB").save(again, quality=100)
    for name in ("val/.DS_Store", "val/3/._1.png", "val/3/list.csv"):
        (tmp_path / name).write_bytes(b"")
    done = evaluate(MODEL, "--data", tmp_path, "--json")
    assert (done.returncode, json.loads(done.stdout)["num_images"]) == (0, 20)
    assert done.stderr == (
        f"note: 1 other file (.csv) and 2 hidden files or folders are ignored in {tmp_path}/val\n"
    )
