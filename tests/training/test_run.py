"""Whole runs on real digits: what they leave, and that no kill and no worker changes a bit."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import deit_zoo
from deit_zoo.errors import DataError, RecipeError, ZooError
from deit_zoo.training import run
from deit_zoo.training.checkpoint import states
from deit_zoo.training.launch import reproduce
from deit_zoo.training.recipes import RECIPES
from deit_zoo.training.report import Verdict

ROOT = Path(deit_zoo.__file__).parents[1]
# Three epochs of four steps, cut from the recipe of the embedded model.
CHANGES = (
    "epochs=3",
    "batch_size=64",
    "replicas=2",
    "warmup_epochs=1",
    "drop_path_rate=0.1",
    "mixup=0.2",
    "cutmix=0.5",
    "repeated_aug=2",
    "band=1.5",
)
# What a run does not choose: the clock.
MEASURED = {"images_per_second", "data_seconds", "seconds"}
# A process that kills itself, as hard as any node dies, at a chosen moment of the second epoch.
DYING = """
import os, signal, sys
from pathlib import Path
from deit_zoo.training import run

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def at_call(owner, name, number):
    real, calls = getattr(owner, name), iter(range(10**6))
    def called(*values, **options):
        return die() if next(calls) == number else real(*values, **options)
    setattr(owner, name, called)

{moment}
from deit_zoo.cli import main
main()
"""
MOMENTS = {
    "in a step": 'at_call(run.Watch, "step", 5)',
    "before the log": 'at_call(run.Watch, "epoch", 1)',
    "between log and state": 'at_call(run, "save_state", 1)',
    "in the rename of a state": (
        "real = Path.replace\n"
        "Path.replace = lambda file, to: die() if '00002' in to.name else real(file, to)"
    ),
    "after the state": 'at_call(run, "train_one_epoch", 2)',
    "before the export": 'at_call(run, "conclude", 0)',
    "before the receipt": 'at_call(run.report, "write_receipt", 0)',
}


@pytest.fixture(scope="module")
def manifest(manifest_of: Callable[[float | None], Path]) -> Path:
    """A manifest in which the embedded model is perfect, so that short runs fall short."""
    return manifest_of(100.0)


@pytest.fixture(scope="module", autouse=True)
def manifest_in_force(manifest: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEIT_ZOO_MANIFEST", str(manifest))
        yield


def begin(output: Path, data: Path, *changes: str, **options: Any) -> Verdict:
    """A short run in this process."""
    return reproduce(
        "deit_pico_digits",
        gpus=0,
        output=output,
        data=data,
        changes=(*CHANGES, *changes),
        **{"workers": 0} | options,
    )


def command(output: Path, data: Path) -> list[str]:
    """The same run, as typed."""
    settings = [part for change in CHANGES for part in ("--set", change)]
    paths = ["--data", str(data), "--output", str(output)]
    return ["reproduce", "deit_pico_digits", "--gpus", "0", "--workers", "0", *paths, *settings]


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def log_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def figures_of(output: Path) -> list[dict[str, Any]]:
    """The log without the clock."""
    return [
        {key: value for key, value in row.items() if key not in MEASURED} for row in log_of(output)
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, digits_folder: Path) -> Path:
    """The folder of a run that nobody disturbed."""
    output = tmp_path_factory.mktemp("runs") / "finished"
    begin(output, digits_folder)
    return output


@pytest.fixture(scope="module")
def receipt(finished: Path) -> dict[str, Any]:
    held: dict[str, Any] = json.loads((finished / "receipt.json").read_text(encoding="utf-8"))
    return held


def test_a_run_leaves_its_files_and_no_other(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == [
        "curve.png",
        "log.jsonl",
        "model.safetensors",
        "plan.json",
        "receipt.json",
        "state",
        "tensorboard",
    ]


def test_a_run_leaves_its_two_last_states(finished: Path) -> None:
    assert sorted(path.name for path in (finished / "state").iterdir()) == [
        "epoch-00002.safetensors",
        "epoch-00003.safetensors",
    ]


def test_the_plan_on_disk_is_the_one_that_was_run(finished: Path) -> None:
    plan = json.loads((finished / "plan.json").read_text(encoding="utf-8"))
    found = {key: plan[key] for key in ("num_images", "steps_per_epoch", "workers", "modified")}
    assert found == {"num_images": 320, "steps_per_epoch": 4, "workers": 0, "modified": True}


def test_the_log_has_a_line_per_epoch(finished: Path) -> None:
    assert [row["epoch"] for row in log_of(finished)] == [0, 1, 2]


def test_a_line_of_the_log_has_the_fields_of_the_interface(finished: Path) -> None:
    assert {tuple(row) for row in log_of(finished)} == {
        (
            "epoch",
            "lr",
            "train_loss",
            "val_top1",
            "val_top5",
            "val_loss",
            "images_per_second",
            "data_seconds",
            "seconds",
        )
    }


def test_the_log_holds_finite_numbers(finished: Path) -> None:
    assert all(math.isfinite(value) for row in log_of(finished) for value in row.values())


def test_the_curve_is_a_picture(finished: Path) -> None:
    with Image.open(finished / "curve.png") as image:
        image.load()
        assert image.format == "PNG"


def test_the_board_holds_the_events_of_the_run(finished: Path) -> None:
    assert len(list((finished / "tensorboard").glob("events.out.tfevents.*"))) == 1


def test_the_digests_of_the_receipt_are_true(finished: Path, receipt: dict[str, Any]) -> None:
    assert receipt["sha256"] == {
        "model.safetensors": sha256(finished / "model.safetensors"),
        "log.jsonl": sha256(finished / "log.jsonl"),
    }


def test_the_receipt_counts_the_data(receipt: dict[str, Any]) -> None:
    assert {split: receipt["data"][split]["files"] for split in receipt["data"]} == {
        "train": 320,
        "val": 60,
    }


def test_the_receipt_says_recipe_seed_and_band(receipt: dict[str, Any]) -> None:
    found = {key: receipt[key] for key in ("model", "seed", "band", "modified")}
    assert found == {"model": "deit_pico_digits", "seed": 0, "band": 1.5, "modified": True}


def test_the_receipt_holds_the_plan(finished: Path, receipt: dict[str, Any]) -> None:
    plan = json.loads((finished / "plan.json").read_text(encoding="utf-8"))
    assert receipt["plan"] == plan


def test_the_receipt_says_what_it_ran_on(receipt: dict[str, Any]) -> None:
    found = receipt["environment"]
    assert found["deit_zoo"] == deit_zoo.__version__
    assert found["torch"] == torch.__version__
    assert datetime.fromisoformat(found["finished"]).tzinfo is not None


def test_the_receipt_ends_in_a_verdict(receipt: dict[str, Any]) -> None:
    expected = (
        r"not reproduced: top-1 \d+\.\d\d % on 60 images "
        r"\(published 100\.00 %, -\d+\.\d\d, band 1\.5\)"
    )
    assert receipt["reproduced"] is False
    assert re.fullmatch(expected, receipt["verdict"])


def test_the_figure_reached_is_that_of_the_exported_file(
    finished: Path, receipt: dict[str, Any], digits_folder: Path
) -> None:
    model = deit_zoo.create("deit_pico_digits", checkpoint=finished)
    found = deit_zoo.evaluate(model, digits_folder)
    assert (found.top1, found.num_images) == (receipt["reached"]["top1"], 60)


def test_the_last_epoch_of_the_log_reached_the_same(
    finished: Path, receipt: dict[str, Any]
) -> None:
    last = log_of(finished)[-1]
    assert (last["val_top1"], last["val_loss"]) == (
        receipt["reached"]["top1"],
        pytest.approx(receipt["reached"]["loss"], rel=1e-6),
    )


def test_the_exported_file_is_checked_against_the_receipt(tmp_path: Path, finished: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(ZooError, match=r"has SHA-256 [0-9a-f]{64}, but [0-9a-f]{64} is expected; "):
        deit_zoo.create("deit_pico_digits", checkpoint=copy)


def test_a_finished_run_is_judged_again_without_training(
    tmp_path: Path, finished: Path, digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "model.safetensors").unlink()
    monkeypatch.setattr(run, "train_one_epoch", None)
    begin(copy, digits_folder)
    assert sha256(copy / "model.safetensors") == sha256(finished / "model.safetensors")


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")
def test_two_workers_train_the_same_bits_as_none(
    tmp_path: Path, finished: Path, digits_folder: Path
) -> None:
    output = tmp_path / "run"
    begin(output, digits_folder, workers=2)
    assert sha256(output / "model.safetensors") == sha256(finished / "model.safetensors")


def test_another_seed_trains_other_bits(
    tmp_path: Path, finished: Path, digits_folder: Path
) -> None:
    output = tmp_path / "run"
    begin(output, digits_folder, "seed=1")
    assert sha256(output / "model.safetensors") != sha256(finished / "model.safetensors")


def test_a_run_that_was_killed_ends_in_the_same_bits(
    tmp_path: Path, finished: Path, digits_folder: Path
) -> None:
    output = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-m", "deit_zoo", *command(output, digits_folder)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while not states(output) and process.poll() is None:
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    begin(output, digits_folder)
    assert sha256(output / "model.safetensors") == sha256(finished / "model.safetensors")
    assert figures_of(output) == figures_of(finished)


@pytest.mark.slow
@pytest.mark.parametrize("moment", list(MOMENTS))
def test_a_run_that_was_killed_at_any_moment_ends_in_the_same_bits_and_log(
    tmp_path: Path, finished: Path, digits_folder: Path, moment: str
) -> None:
    output = tmp_path / "run"
    script = DYING.format(moment=MOMENTS[moment])
    dead = subprocess.run(
        [sys.executable, "-c", script, *command(output, digits_folder)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    begin(output, digits_folder)
    assert sha256(output / "model.safetensors") == sha256(finished / "model.safetensors")
    assert figures_of(output) == figures_of(finished)


def test_a_run_of_another_recipe_in_the_same_folder_is_refused(
    finished: Path, digits_folder: Path
) -> None:
    before = sha256(finished / "plan.json")
    with pytest.raises(RecipeError, match=r"holds a run of another recipe \(deit_pico_digits\); "):
        begin(finished, digits_folder, "seed=1")
    assert sha256(finished / "plan.json") == before


def test_validation_classes_that_do_not_fit_are_refused_before_the_first_epoch(
    tmp_path: Path, digits_folder: Path
) -> None:
    data, output = tmp_path / "data", tmp_path / "run"
    shutil.copytree(digits_folder, data)
    shutil.rmtree(data / "val" / "7")
    with pytest.raises(DataError, match=r"1 missing \(such as '7'\)"):
        begin(output, data)
    assert [path.name for path in output.iterdir()] == ["plan.json"]


def test_a_loss_that_is_not_finite_ends_the_run_at_its_step(
    tmp_path: Path, digits_folder: Path
) -> None:
    expected = (
        r"the loss is (nan|inf) at epoch 0, step [123]; lower the rate with --set lr=5e\+29, or "
        r"bound the gradients with --set clip_grad=1"
    )
    with pytest.raises(ZooError) as caught:
        begin(tmp_path / "run", digits_folder, "lr=1e30", "warmup_epochs=0")
    assert re.fullmatch(expected, str(caught.value))


def test_a_teacher_of_other_classes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(RECIPES["deit_pico_distilled_digits"], teacher="deit_tiny")
    teacher = deit_zoo.create("deit_tiny", device="meta")
    monkeypatch.setattr(run, "create", lambda *_, **__: teacher)
    with pytest.raises(RecipeError) as caught:
        run.criterion_for(recipe, 10, torch.device("cpu"))
    assert str(caught.value) == (
        "the teacher deit_tiny knows 1000 classes, the student 10; choose a teacher of the same "
        "classes"
    )


def test_a_student_is_distilled_from_the_embedded_teacher_on_the_embedded_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEIT_ZOO_MANIFEST")
    reproduce(
        "deit_pico_distilled_digits",
        gpus=0,
        output=tmp_path,
        changes=("epochs=1", "batch_size=256", "replicas=2"),
        workers=0,
    )
    receipt = json.loads((tmp_path / "receipt.json").read_text(encoding="utf-8"))
    assert receipt["plan"]["recipe"]["teacher"] == "convnet_pico_digits"
    assert {split: receipt["data"][split]["files"] for split in receipt["data"]} == {
        "train": 1437,
        "val": 360,
    }
