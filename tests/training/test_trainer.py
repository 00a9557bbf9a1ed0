"""Whole runs on real digits: what they leave, and that no kill and no worker changes a bit."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

import deit_zoo
from deit_zoo.data.digits import write_folder
from deit_zoo.data.jpeg import SIMPLEJPEG
from deit_zoo.errors import DataError, RecipeError, ZooError
from deit_zoo.machine import commit, cpu_name
from deit_zoo.training import trainer as run
from deit_zoo.training.launch import reproduce
from deit_zoo.training.state_files import states
from support.archives import FORMS
from support.command import ROOT, Process
from support.runs import LEFT, log_of, receipt_of, sha256, train, words_of

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
    "log_steps=1",
)
begin, words = partial(train, CHANGES), partial(words_of, CHANGES)
OFTEN = "state_minutes=0"  # a state after every step
# What a run does not choose: the clock.
MEASURED = {"images_per_second", "data_seconds", "seconds", "data_share", "memory"}
# Where one process after another kills itself, as hard as any node dies, each time from where the
# one before it has come to; the last state and the lines of the log that it leaves.
IN_RENAME = """
real = Path.replace
Path.replace = lambda file, to: die() if "{place}" in to.name else real(file, to)
"""
MOMENTS = {
    "in a step of the second epoch": (
        'at_call(run.MetricLogger, "step", 5)',
        (),
        ("epoch-00001-step-000000", 1),
    ),
    "in a step after one of which there is a state": (
        'at_call(run.MetricLogger, "step", 1)',
        (OFTEN,),
        ("epoch-00001-step-000001", 1),
    ),
    "in the rename of a state in mid-epoch": (
        IN_RENAME.format(place="epoch-00001-step-000002"),
        (OFTEN,),
        ("epoch-00001-step-000001", 1),
    ),
    "before the log": (
        'at_call(run.MetricLogger, "epoch", 0)',
        (),
        ("epoch-00001-step-000001", 1),
    ),
    "between log and state": (
        'at_call(checkpoint, "save_state", 0)',
        (),
        ("epoch-00001-step-000001", 2),
    ),
    "in the rename of a state": (
        IN_RENAME.format(place="epoch-00002-step-000000"),
        (),
        ("epoch-00001-step-000001", 2),
    ),
    "after the state": ('at_call(run, "train_one_epoch", 1)', (), ("epoch-00002-step-000000", 2)),
    "before the export": ('at_call(run, "conclude", 0)', (), ("epoch-00003-step-000000", 3)),
    "before the receipt": ('at_call(run, "write_receipt", 0)', (), ("epoch-00003-step-000000", 3)),
}


@pytest.fixture(scope="module", autouse=True)
def manifest(manifest_of: Callable[[float | None], Path]) -> Iterator[None]:
    """One in which the embedded model is perfect, so that short runs fall short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEIT_ZOO_MANIFEST", str(manifest_of(100.0)))
        yield


def figures_of(output: Path, file: str = "log.jsonl") -> list[dict[str, Any]]:
    """The lines of a log without the clock."""
    rows = [json.loads(line) for line in (output / file).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in rows]


def steps_of(output: Path) -> list[dict[str, Any]]:
    """The same of each step."""
    return figures_of(output, "steps.jsonl")


def places(output: Path) -> list[str]:
    """Where the states of a run are; nothing else lies beside them."""
    return sorted(path.name.rpartition("-")[0] for path in (output / "state").iterdir())


def assert_same_run(output: Path, finished: Path) -> None:
    """Nothing tells a run from the one that nobody disturbed, but the clock."""
    assert sha256(output / "model.safetensors") == sha256(finished / "model.safetensors")
    assert figures_of(output) == figures_of(finished)
    assert steps_of(output) == steps_of(finished)
    assert places(output) == places(finished)
    assert sorted(path.name for path in output.iterdir()) == LEFT


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, digits_folder: Path) -> Path:
    """The folder of a run that nobody disturbed."""
    output = tmp_path_factory.mktemp("runs") / "finished"
    begin(output, digits_folder)
    return output


@pytest.fixture
def copy(tmp_path: Path, finished: Path) -> Path:
    """A copy of that folder, to be disturbed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def receipt(finished: Path) -> dict[str, Any]:
    return receipt_of(finished)


def test_a_run_leaves_its_files_and_no_other(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == LEFT


def test_a_run_leaves_its_two_last_states(finished: Path) -> None:
    assert places(finished) == ["epoch-00002-step-000000", "epoch-00003-step-000000"]


def test_the_plan_on_disk_is_the_one_that_was_run(finished: Path) -> None:
    plan = json.loads((finished / "plan.json").read_text(encoding="utf-8"))
    found = {key: plan[key] for key in ("num_images", "steps_per_epoch", "workers", "modified")}
    assert found == {"num_images": 320, "steps_per_epoch": 4, "workers": 0, "modified": True}


def test_the_log_has_a_line_per_epoch(finished: Path) -> None:
    assert [row["epoch"] for row in log_of(finished)] == [0, 1, 2]


def test_steps_jsonl_has_a_line_per_step_that_was_asked_for(finished: Path) -> None:
    rows = steps_of(finished)
    places = [(row["epoch"], row["step"]) for row in rows]
    assert places == [(epoch, step) for epoch in range(3) for step in range(4)]
    assert all(row["loss"] == row["last_loss"] > 0 and row["grad_norm"] > 0 for row in rows)


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
            "skipped_steps",
            "bad_images",
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


def test_the_receipt_holds_the_plan_and_the_data(finished: Path, receipt: dict[str, Any]) -> None:
    plan = json.loads((finished / "plan.json").read_text(encoding="utf-8"))
    assert receipt["data"] == plan.pop("fingerprint")
    assert (plan.pop("changes"), bool(plan.pop("data"))) == ([], True)
    assert (plan.pop("listed"), plan.pop("val_share")) == (False, None)
    assert plan.pop("newest") > 0
    assert receipt["plan"] == plan


def test_the_receipt_says_that_nothing_went_wrong(receipt: dict[str, Any]) -> None:
    run = dict(receipt["run"])
    assert run.pop("seconds") > 0
    assert run == {
        "gpu_hours": None,
        "skipped_steps": 0,
        "bad_images": 0,
        "rewinds": 0,
        "rollbacks": [],
        "changes": [],
    }


def test_the_receipt_says_what_it_ran_on(receipt: dict[str, Any]) -> None:
    found = receipt["environment"]
    assert found["deit_zoo"] == deit_zoo.__version__
    assert found["torch"] == torch.__version__
    assert found["simplejpeg"] == SIMPLEJPEG
    assert found["cpu"] == cpu_name()
    assert found["commit"] == commit()
    assert (found["processes"], found["precision"]) == (1, "float32")
    assert datetime.fromisoformat(found["finished"]).tzinfo is not None


def test_the_receipt_ends_in_a_verdict(receipt: dict[str, Any]) -> None:
    expected = (
        r"not reproduced: top-1 \d+\.\d\d % on 60 images "
        r"\(published 100\.00 %, -\d+\.\d\d, tolerance 1\.5\); only 320 of 1,437 training images; "
        r"modified: epochs, .*"
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


def test_the_exported_file_is_checked_against_the_receipt(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(ZooError, match=r"has SHA-256 [0-9a-f]{64}, but [0-9a-f]{64} is expected; "):
        deit_zoo.create("deit_pico_digits", checkpoint=copy)


def test_a_finished_run_is_judged_again_without_training(
    copy: Path, finished: Path, digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "model.safetensors").unlink()
    monkeypatch.setattr(run, "train_one_epoch", None)
    verdict = begin(copy, digits_folder)
    assert verdict.sentence() == receipt_of(finished)["verdict"]
    assert_same_run(copy, finished)


def test_the_receipt_of_an_earlier_export_does_not_refuse_the_next(
    copy: Path, finished: Path, digits_folder: Path
) -> None:
    # On a GPU the bits of an epoch that is trained again may be others.
    held = receipt_of(copy)
    held["sha256"]["model.safetensors"] = "0" * 64
    (copy / "receipt.json").write_text(json.dumps(held))
    begin(copy, digits_folder)
    assert receipt_of(copy)["sha256"]["model.safetensors"] == sha256(copy / "model.safetensors")


@pytest.mark.slow
def test_bfloat16_on_the_cpu_trains_other_bits_and_says_so(
    tmp_path: Path, finished: Path, digits_folder: Path
) -> None:
    begin(tmp_path, digits_folder, "precision=bf16")
    assert receipt_of(tmp_path)["environment"]["precision"] == "bfloat16"
    assert sha256(tmp_path / "model.safetensors") != sha256(finished / "model.safetensors")


def test_two_workers_train_the_same_bits_as_none(
    tmp_path: Path, finished: Path, digits_folder: Path
) -> None:
    output = tmp_path / "run"
    begin(output, digits_folder, workers=2)
    assert_same_run(output, finished)


def start(*arguments: str) -> Process:
    """A process of its own, of which only what it says to people is heard."""
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return Process(list(arguments), server="training", cwd=ROOT, text=True, **streams)


def wait_for(there: Callable[[], bool], process: Process) -> None:
    while not there() and process.poll() is None:
        time.sleep(0.005)


def test_a_process_that_was_killed_ends_in_the_same_bits(
    tmp_path: Path, finished: Path, digits_folder: Path
) -> None:
    output = tmp_path / "run"
    with start("-m", "deit_zoo", *words(output, digits_folder)) as process:
        wait_for(lambda: len(states(output)) > 1, process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    begin(output, digits_folder)
    assert_same_run(output, finished)


@pytest.mark.slow
def test_a_run_that_was_killed_at_every_moment_ends_in_the_same_bits_and_log(
    tmp_path: Path, finished: Path, digits_folder: Path, command: Any
) -> None:
    output = tmp_path / "run"
    for moment, (kill, changes, left) in MOMENTS.items():
        typed = words(output, digits_folder, *changes)
        before = f"wait_for_states()\n{kill}"
        dead = command(*typed, before=before)
        assert dead.status == -signal.SIGKILL, f"{moment}: {dead.err}"
        last = states(output)[-1].name.rpartition("-")[0]
        assert (last, len(log_of(output))) == left, moment
        assert not (output / "receipt.json").exists()
    begin(output, digits_folder)
    assert_same_run(output, finished)


@pytest.mark.slow
def test_the_moving_average_of_a_run_that_was_killed_is_that_of_one_that_was_not(
    tmp_path: Path, finished: Path, digits_folder: Path, command: Any
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    begin(whole, digits_folder, "ema_decay=0.9")
    dead = command(
        *words(killed, digits_folder, "ema_decay=0.9", OFTEN),
        before='at_call(run.MetricLogger, "step", 6)',
    )
    assert dead.status == -signal.SIGKILL, dead.err
    begin(killed, digits_folder, "ema_decay=0.9")
    for file in ("model.safetensors", "ema/model.safetensors"):
        assert sha256(killed / file) == sha256(whole / file)
    # An average beside a run does not change it.
    with_average, without = (
        safe_open(folder / "model.safetensors", "pt") for folder in (whole, finished)
    )
    for key in without.keys():  # noqa: SIM118
        assert torch.equal(with_average.get_tensor(key), without.get_tensor(key))
    assert figures_of(killed) == figures_of(whole)
    assert {"ema_top1", "ema_top5", "ema_loss"} < log_of(whole)[-1].keys()
    average = deit_zoo.create("deit_pico_digits", checkpoint=whole / "ema" / "model.safetensors")
    reached = deit_zoo.evaluate(average, digits_folder)
    assert reached.loss == pytest.approx(log_of(whole)[-1]["ema_loss"], rel=1e-6)


def test_a_state_that_is_not_whole_is_told_and_costs_only_time(
    copy: Path, finished: Path, digits_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = states(copy)[-1]
    last.write_bytes(last.read_bytes()[:-1])
    begin(copy, digits_folder)
    assert capsys.readouterr().err.splitlines()[:2] == [
        f"{last} is torn or altered (its SHA-256 is not the one in its name); not used",
        "continuing after epoch 2, step 0",
    ]
    assert_same_run(copy, finished)


def test_a_run_of_another_recipe_in_the_same_folder_is_refused(
    finished: Path, digits_folder: Path
) -> None:
    before = sha256(finished / "plan.json")
    with pytest.raises(RecipeError, match=r"\(deit_pico_digits, whose seed is 0, not 1\); "):
        begin(finished, digits_folder, "seed=1")
    assert sha256(finished / "plan.json") == before


def test_other_images_than_the_run_began_with_are_refused(
    copy: Path, tmp_path: Path, digits_folder: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(digits_folder, data)
    begin(copy, data)  # the same images elsewhere are the same
    more = next((data / "train" / "7").iterdir())
    shutil.copy(more, more.with_name("one_more.png"))
    with pytest.raises(DataError) as caught:
        begin(copy, data)
    train, val = (len(list((digits_folder / split).rglob("*.png"))) for split in ("train", "val"))
    assert str(caught.value) == (
        f"the run in {copy} began with other data ({train} files in train and {val} in val) than "
        f"{data} holds now ({train + 1} files in train and {val} in val); give the data that it "
        "began with, or a new --output"
    )


def test_validation_classes_that_do_not_fit_are_refused_before_the_first_epoch(
    tmp_path: Path, digits_folder: Path
) -> None:
    data, output = tmp_path / "data", tmp_path / "run"
    shutil.copytree(digits_folder, data)
    shutil.rmtree(data / "val" / "7")
    with pytest.raises(DataError, match=r"^the classes of .* differ: 1 in train/ only "):
        begin(output, data)
    assert not output.exists()


STOPS = {signal.SIGINT: 130, signal.SIGTERM: 75}


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_stops_a_run_after_its_step_and_the_same_command_continues_it(
    tmp_path: Path, finished: Path, digits_folder: Path, number: int, command: Any
) -> None:
    output = tmp_path / "run"
    typed = words(output, digits_folder)
    stopped = command(
        *typed,
        before=f'at_call(run.MetricLogger, "step", 5, lambda: os.kill(os.getpid(), {int(number)}))',
    )
    assert (stopped.status, stopped.out) == (STOPS[number], "")
    told = stopped.err.splitlines()[-2:]
    assert told[0].startswith(f"{signal.Signals(number).name}: stopping after this step")
    assert told[1] == f"stopped; this continues the run: {shlex.join(['deit-zoo', *typed])}"
    # The signal came between two steps, so the one after it is the last.
    assert places(output) == ["epoch-00001-step-000000", "epoch-00001-step-000003"]
    again = command(*typed)
    assert again.status == 1  # so short a run reaches no published figure
    assert "continuing after epoch 1, step 3\n" in again.err
    assert again.out == f"{receipt_of(output)['verdict']}\n"
    assert_same_run(output, finished)


def test_the_second_ctrl_c_stops_at_once(
    tmp_path: Path, finished: Path, digits_folder: Path, command: Any
) -> None:
    output = tmp_path / "run"
    twice = "lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)]"
    stopped = command(
        *words(output, digits_folder),
        before=f'at_call(loop, "update", 5, {twice})',  # in the second step of the second epoch
    )
    assert (stopped.status, stopped.out) == (130, "")
    assert "Traceback" not in stopped.err
    assert places(output) == ["epoch-00000-step-000000", "epoch-00001-step-000000"]
    begin(output, digits_folder)
    assert_same_run(output, finished)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_slurms_warning_or_a_closed_terminal_reach_a_real_process_in_its_step(
    tmp_path: Path, digits_folder: Path, number: signal.Signals
) -> None:
    output = tmp_path / "run"
    typed = words(output, digits_folder, "epochs=100000")
    with start("-m", "deit_zoo", *typed) as process:
        wait_for(lambda: bool(states(output)), process)
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 75
    assert told.splitlines()[-2:] == [
        f"{number.name}: stopping after this step",
        f"stopped; this continues the run: {shlex.join(['deit-zoo', *typed])}",
    ]
    assert len(states(output)) == 2


# A full disk cannot be had in a test, files that may not grow can.
LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes}, {bytes}))"
# Of this model: 3.8 MB a state, 1.3 MB the weights.
STATES_DO_NOT_FIT, WEIGHTS_DO_NOT_FIT = 2_000_000, 1_000_000


def test_states_that_cannot_be_written_are_told_and_the_run_goes_on(
    copy: Path, finished: Path, digits_folder: Path, command: Any
) -> None:
    after_two, after_three = states(copy)
    after_three.unlink()
    done = command(
        *words(copy, digits_folder),
        before=LIMIT.format(bytes=STATES_DO_NOT_FIT),
    )
    assert done.status == 1, done.err
    told = (
        "the state after epoch 3, step 0 could not be written (File too large); the run goes on "
        f"and the states before it stay; make room on the disk of {copy}"
    )
    assert told in done.err.splitlines()
    assert [file.name for file in (copy / "state").iterdir()] == [after_two.name]
    assert sha256(copy / "model.safetensors") == sha256(finished / "model.safetensors")


def test_weights_that_cannot_be_written_end_the_run_in_one_sentence_until_there_is_room(
    copy: Path, finished: Path, digits_folder: Path, command: Any
) -> None:
    (copy / "model.safetensors").unlink()
    done = command(
        *words(copy, digits_folder),
        before=LIMIT.format(bytes=WEIGHTS_DO_NOT_FIT),
    )
    assert (done.status, done.out) == (2, "")
    assert done.err.splitlines()[-1] == (
        f"error: {copy} cannot be written (File too large); make room there and type the same "
        "command: it continues from the last state"
    )
    assert "Traceback" not in done.err
    begin(copy, digits_folder)
    assert_same_run(copy, finished)


@pytest.mark.slow
def test_without_room_for_tensorboard_the_run_goes_on(
    tmp_path: Path, finished: Path, digits_folder: Path
) -> None:
    # An epoch is 0.6 kB for TensorBoard and 0.3 kB of log; the plan has 2 kB.
    limit = LIMIT.format(bytes=(finished / "plan.json").stat().st_size + 200)
    # The limit holds for every file, so what is said goes into a pipe.
    process = start(
        "-c",
        # From when the loader has its memory on, which counts as a file.
        "import deit_zoo.training.trainer as run; from deit_zoo.cli import main; "
        "whole = run.profile; "
        f"run.profile = lambda *a: (exec({limit!r}), whole(*a))[1]; main()",
        *words(tmp_path, digits_folder, "epochs=8", "batch_size=256"),
    )
    _, said = process.communicate()
    told = "no more is written for TensorBoard (File too large); the run goes on"
    assert said.count(told) == 1  # amid what TensorBoard's own thread says
    assert [row["epoch"] for row in log_of(tmp_path)] == list(range(8))


@pytest.fixture(scope="module")
def all_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 1,437 training images, 1,280 of which are an epoch."""
    folder = tmp_path_factory.mktemp("all") / "digits"
    write_folder(folder)
    return folder


def test_one_bad_image_is_replaced_told_and_counted(
    tmp_path: Path, all_digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(all_digits, tmp_path / "data"))
    bad = data / "train" / "0" / "0000.png"
    bad.write_bytes(bad.read_bytes()[:60])
    output = tmp_path / "run"
    begin(output, data, "epochs=1", "batch_size=256", "repeated_aug=1")
    assert f"{bad} cannot be read; another image takes its place\n" in capsys.readouterr().err
    assert [row["bad_images"] for row in log_of(output)] == [1]
    assert receipt_of(output)["run"]["bad_images"] == 1


def test_more_than_a_few_bad_images_end_the_run(
    tmp_path: Path, digits_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(digits_folder, tmp_path / "data"))
    for image in (data / "train" / "3").iterdir():
        image.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        begin(tmp_path / "run", data)
    assert re.fullmatch(
        r"\d+ of 256 images of epoch 1 could not be read, and a run can do without 3; `deit-zoo "
        r"data check DIR` lists them",
        str(caught.value),
    )
    assert " cannot be read; another image takes its place" in capsys.readouterr().err


def test_a_run_from_shards_is_the_run_from_the_folder(
    tmp_path: Path, finished: Path, digits_folder: Path
) -> None:
    paths = sorted(digits_folder.rglob("*.png"))
    files = {path.relative_to(digits_folder).as_posix(): path.read_bytes() for path in paths}
    output = tmp_path / "run"
    begin(output, Path(FORMS["shards"](tmp_path, files)))
    assert steps_of(output) == steps_of(finished)
    assert sha256(output / "model.safetensors") == sha256(finished / "model.safetensors")


@pytest.fixture
def own_classes(tmp_path: Path, digits_folder: Path) -> Path:
    """Somebody's three classes."""
    names = {"0": "round", "1": "straight", "8": "twice round"}
    for split in ("train", "val"):
        for digit, name in names.items():
            shutil.copytree(digits_folder / split / digit, tmp_path / "own" / split / name)
    return tmp_path / "own"


def test_a_folder_of_ones_own_classes_is_trained_without_a_verdict(
    tmp_path: Path, own_classes: Path, command: Any
) -> None:
    output = tmp_path / "run"
    done = command(*words(output, own_classes, "data=folder", "batch_size=32", "epochs=2"))
    assert done.status == 0, done.err
    assert re.fullmatch(
        r"no verdict: top-1 \d+\.\d\d % on \d+ images, and no published figure to compare with"
        r"; modified: .*\n",
        done.out,
    )
    with safe_open(output / "model.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["deit_zoo"])
    assert facts["labels"] == ["round", "straight", "twice round"]
    assert receipt_of(output)["reproduced"] is None
    model = deit_zoo.create("deit_pico_digits", checkpoint=output)
    assert model.num_classes == 3


@pytest.mark.slow
def test_a_second_stage_trains_on_from_a_finished_run_and_leaves_it_alone(
    tmp_path: Path, finished: Path, digits_folder: Path
) -> None:
    before = sha256(finished / "model.safetensors")
    second, fresh = tmp_path / "second", tmp_path / "fresh"
    begin(second, digits_folder, "epochs=1", f"init_from={finished}")
    begin(fresh, digits_folder, "epochs=1")
    # At the warm-up rate of 1e-6, an epoch of four steps moves a weight by 4e-6 at most.
    first, continued, random = (
        deit_zoo.create("deit_pico_digits", checkpoint=run).head.weight.detach()
        for run in (finished, second, fresh)
    )
    assert 0.0 < float((continued - first).abs().max()) < 1e-5
    assert float((continued - random).abs().max()) > 1e-3
    with safe_open(second / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["deit_zoo"])["name"] == "deit_pico_digits"
    assert sha256(finished / "model.safetensors") == before


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
    receipt = receipt_of(tmp_path)
    assert receipt["plan"]["recipe"]["teacher"] == "convnet_pico_digits"
    assert receipt["teacher"]["name"] == "convnet_pico_digits"
    assert {split: receipt["data"][split]["files"] for split in receipt["data"]} == {
        "train": 1437,
        "val": 360,
    }
