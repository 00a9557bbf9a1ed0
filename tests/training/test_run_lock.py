"""One run in a folder at a time, and what becomes of a run whose files somebody removes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deit_zoo.data import survey
from deit_zoo.errors import DataError
from deit_zoo.training import run_lock as run_lock_module
from deit_zoo.training import trainer
from deit_zoo.training.job import read_job
from deit_zoo.training.run_lock import LOCK_FILE, OWNER_FILE, read_owner, run_lock
from deit_zoo.training.state_files import states
from support.runs import log_of, train

begin = partial(train, ("epochs=2", "batch_size=32", "replicas=2", "warmup_epochs=0"))
HOLD = """
import sys, time
from pathlib import Path
from deit_zoo.training.run_lock import run_lock
with run_lock(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(600)
"""


def epochs_of(output: Path) -> list[int]:
    return [row["epoch"] for row in log_of(output)]


@pytest.fixture(scope="module", autouse=True)
def manifest(manifest_of: Callable[[float | None], Path]) -> Iterator[None]:
    """One without a figure to compare with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEIT_ZOO_MANIFEST", str(manifest_of(None)))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, digits_folder: Path) -> Path:
    """A run of two epochs that has ended."""
    output = tmp_path_factory.mktemp("finished") / "run"
    begin(output, digits_folder)
    return output


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoiled."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A folder, and another process that has its lock."""
    folder = tmp_path / "held"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield folder, process
        process.kill()


@pytest.fixture
def on_epoch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Have something done when the first epoch was trained and is to be measured."""

    def prepare(act: Callable[[], Any]) -> None:
        measure, todo = trainer.measure, [act]

        def measured(*arguments: Any) -> Any:
            while todo:
                todo.pop()()
            return measure(*arguments)

        monkeypatch.setattr(trainer, "measure", measured)

    return prepare


def test_a_folder_in_which_a_run_goes_on_is_refused_with_its_process(
    holder: tuple[Path, subprocess.Popen[str]], digits_folder: Path
) -> None:
    folder, process = holder
    before = sorted(os.listdir(folder))
    with pytest.raises(DataError) as raised:
        begin(folder, digits_folder)
    assert f"in use by another run (process {process.pid} on {socket.gethostname()}, since" in str(
        raised.value
    )
    assert sorted(os.listdir(folder)) == before


def test_the_lock_of_a_process_that_was_killed_is_taken_over_and_it_is_told(
    holder: tuple[Path, subprocess.Popen[str]],
) -> None:
    folder, process = holder
    process.kill()
    process.wait()
    told: list[str] = []
    with run_lock(folder, told.append):
        owner = read_owner(folder)
        assert owner is not None
        assert owner.pid == os.getpid()
    (sentence,) = told
    assert f"had no end (process {process.pid} on " in sentence


def test_a_run_that_waits_for_another_says_for_whom(
    holder: tuple[Path, subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, process = holder
    monkeypatch.setattr(run_lock_module, "TOLD_SECONDS", 0.0)
    told: list[str] = []
    with (
        pytest.raises(DataError, match="in use by another run"),
        run_lock(folder, told.append, 0.3),
    ):
        pass
    (sentence,) = told
    assert sentence.startswith(f"{folder} is in use by process {process.pid} on ")


def test_a_run_that_ends_leaves_no_owner(finished: Path) -> None:
    assert not (finished / OWNER_FILE).exists()


def test_a_folder_that_was_made_for_a_run_that_is_refused_goes_again(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), run_lock(tmp_path / "new", print):
        raise RuntimeError
    assert not (tmp_path / "new").exists()


def test_a_run_that_ends_leaves_the_lock_of_another_in_a_folder_that_was_made_again(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    with ExitStack() as second:
        with run_lock(folder, print):
            shutil.rmtree(folder)
            second.enter_context(run_lock(folder, pytest.fail))
        assert {path.name for path in folder.iterdir()} == {LOCK_FILE, OWNER_FILE}
        with pytest.raises(DataError, match="in use by another run"), run_lock(folder, print):
            pass


def test_a_lock_file_that_is_open_is_left_to_windows_and_the_lock_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = Path.unlink

    def refuse(file: Path, missing_ok: bool = False) -> None:
        if file.name == LOCK_FILE:
            raise PermissionError(13, "it is open")
        remove(file, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    for _ in range(2):
        with run_lock(tmp_path, pytest.fail):
            pass


def test_an_owner_that_is_no_json_is_nobody(tmp_path: Path) -> None:
    (tmp_path / OWNER_FILE).write_bytes(b"\xff[")
    with run_lock(tmp_path, pytest.fail):
        assert (tmp_path / LOCK_FILE).exists()


def test_a_log_that_was_removed_is_rebuilt_from_the_state(run: Path, digits_folder: Path) -> None:
    whole = (run / "log.jsonl").read_bytes()
    (run / "log.jsonl").unlink()
    begin(run, digits_folder)
    assert (run / "log.jsonl").read_bytes() == whole


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{}\n", b"[" * 100_000])
def test_a_log_with_other_content_is_rebuilt_from_the_state_and_it_is_told(
    run: Path, digits_folder: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (run / "log.jsonl").read_bytes()
    (run / "log.jsonl").write_bytes(content)
    begin(run, digits_folder)
    assert (run / "log.jsonl").read_bytes() == whole
    assert "log.jsonl is not as this run wrote it; it is written again" in capsys.readouterr().err


def test_a_plan_that_was_removed_is_made_again_by_the_command_and_it_is_told(
    run: Path, digits_folder: Path
) -> None:
    plan = (run / "plan.json").read_bytes()
    (run / "plan.json").unlink()
    told: list[str] = []
    begin(run, digits_folder, tell=told.append)
    assert (run / "plan.json").read_bytes() == plan
    assert told == [f"{run} has lost its plan.json; this command makes it again"]


def test_a_run_whose_plan_was_removed_goes_on_with_its_own_data_alone(
    run: Path, tmp_path: Path, digits_folder: Path
) -> None:
    data = shutil.copytree(digits_folder, tmp_path / "data")
    sorted((data / "train" / "3").glob("*.png"))[0].unlink()
    (run / "plan.json").unlink()
    with pytest.raises(DataError, match="began with other data"):
        begin(run, data)


def test_a_run_whose_plan_was_removed_says_still_what_was_changed_on_the_way(
    run: Path, digits_folder: Path
) -> None:
    record = json.loads((run / "plan.json").read_text())
    digest = record["recipe_sha256"]
    change = {"epoch": 1, "step": 0, "recipe_sha256": digest, "fields": {"lr": [2e-3, 1e-3]}}
    (run / "plan.json").write_text(json.dumps(record | {"changes": [change]}))
    states(run)[-1].unlink()  # it is written again, by this plan
    begin(run, digits_folder)
    (run / "plan.json").unlink()
    assert read_job(run).changed_fields == ("lr",)


def test_without_a_plan_and_with_states_that_do_not_say_it_a_run_is_refused(
    run: Path, digits_folder: Path
) -> None:
    (run / "plan.json").unlink()
    for file in states(run):
        file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(DataError, match=r"has lost its plan\.json, and no whole state there says"):
        begin(run, digits_folder)


def test_states_that_were_removed_beside_a_log_are_told_and_nothing_is_trained_again(
    run: Path, digits_folder: Path
) -> None:
    shutil.rmtree(run / "state")
    weights = (run / "model.safetensors").read_bytes()
    with pytest.raises(DataError, match="has no state to continue from; put the states back"):
        begin(run, digits_folder)
    assert (run / "model.safetensors").read_bytes() == weights


# TensorBoard's own thread fails there, and Python tells of it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_folder_that_is_removed_in_mid_run_is_made_again(
    tmp_path: Path, digits_folder: Path, on_epoch: Callable[[Callable[[], Any]], None]
) -> None:
    output = tmp_path / "run"
    on_epoch(lambda: shutil.rmtree(output))
    begin(output, digits_folder)
    assert epochs_of(output) == [0, 1]
    assert (output / "plan.json").is_file()
    assert states(output)


@pytest.mark.slow
def test_a_log_that_is_replaced_in_mid_run_is_written_again(
    tmp_path: Path, digits_folder: Path, on_epoch: Callable[[Callable[[], Any]], None]
) -> None:
    output = tmp_path / "run"
    on_epoch(lambda: (output / "log.jsonl").write_bytes(b"\x00torn"))
    begin(output, digits_folder)
    assert epochs_of(output) == [0, 1]


def test_a_validation_image_that_cannot_be_read_is_told_before_the_first_epoch(
    tmp_path: Path, digits_folder: Path
) -> None:
    data = shutil.copytree(digits_folder, tmp_path / "data")
    bad = sorted((data / "val" / "3").glob("*.png"))[0]
    bad.write_bytes(b"junk")
    with pytest.raises(DataError) as raised:
        begin(tmp_path / "run", data)
    assert str(raised.value) == (
        f"1 of 60 validation images cannot be read ({bad}: not an image), and figures are of all "
        f"of them; mend or remove them: deit-zoo data check {data} lists them"
    )
    assert not (tmp_path / "run").exists()


def test_a_validation_image_that_turns_bad_in_mid_run_ends_no_run_and_is_told(
    tmp_path: Path,
    digits_folder: Path,
    on_epoch: Callable[[Callable[[], Any]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = shutil.copytree(digits_folder, tmp_path / "data")
    bad = sorted((data / "val" / "3").glob("*.png"))[0]
    on_epoch(lambda: bad.write_bytes(b"junk"))
    begin(tmp_path / "run", data)
    assert epochs_of(tmp_path / "run") == [0, 1]
    assert f"1 of 60 validation images cannot be read ({bad})" in capsys.readouterr().err


def test_an_image_that_was_edited_to_another_of_the_same_size_is_other_data(
    run: Path, tmp_path: Path, digits_folder: Path
) -> None:
    data = shutil.copytree(digits_folder, tmp_path / "data")
    begin(run, data)  # a copy of the same images is the same data
    edited = sorted((data / "train" / "3").glob("*.png"))[0]
    content = bytearray(edited.read_bytes())
    content[-20] ^= 1
    edited.write_bytes(content)
    with pytest.raises(DataError) as raised:
        begin(run, data)
    assert str(raised.value) == (
        f"images of {data} are not those that the run in {run} began with, though their names and "
        "sizes are; give the data that it began with, or a new --output"
    )


def test_files_of_a_large_set_that_were_written_since_are_told(
    tmp_path: Path, digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "SMALL", 100)
    data = shutil.copytree(digits_folder, tmp_path / "data")
    output, told = tmp_path / "run", list[str]()
    begin(output, data, tell=told.append)
    begin(output, data, tell=told.append)
    assert told == []
    edited = sorted((data / "train" / "3").glob("*.png"))[0]
    os.utime(edited, ns=(0, 1 + max(file.stat().st_mtime_ns for file in data.rglob("*.png"))))
    begin(output, data, tell=told.append)
    assert told == [
        f"files of {data} were written since the run began; by name and size they are its"
    ]
