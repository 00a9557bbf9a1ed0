"""What goes to steps.jsonl, TensorBoard and the packages of others, and what is left after a kill.

trackio and wandb are not installed for these tests: 257 MB with what they need. A module with
their three functions stands for them in a real process, and writes down how it was called; both
packages have been tried by hand (trackio 0.43, wandb 0.31).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from deit_zoo.recipes.digits import DEIT_PICO
from deit_zoo.recipes.plan import Plan
from deit_zoo.training.trackers import StepsFile, TensorBoard
from support.command import Done

PLAN = Plan(
    recipe=DEIT_PICO, modified=False, device="cpu", processes=1, workers=0, num_images=1437
)  # epochs of 20 steps
PACKAGE = """
import json, os

def _write(call, **values):
    with open(os.environ["CALLS"], "a") as stream:
        stream.write(json.dumps([call, os.environ.get("RANK"), values]) + "\\n")

def init(project, name, config, **options):
    print("hello from", __name__)
    _write("init", project=project, name=name, log_steps=config["log_steps"], **options)

def log(figures, step):
    if os.environ.get("BROKEN"):
        raise ConnectionError("no route\\nto host.")
    _write("log", step=step, **figures)

def finish():
    _write("finish")
"""


@pytest.fixture(autouse=True)
def first_files_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads files of one second by the names of their numbers, and 10 before 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def row(epoch: int, step: int, **values: Any) -> dict[str, Any]:
    return {"epoch": epoch, "step": step, "loss": 10.0 * epoch + step, "skipped": 0} | values


def rows_of(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def places(file: Path) -> list[tuple[int, int]]:
    return [(row["epoch"], row["step"]) for row in rows_of(file)]


@pytest.fixture
def steps(tmp_path: Path) -> StepsFile:
    """A file with the steps 9 and 19 of two epochs."""
    tracker = StepsFile(tmp_path)
    tracker.go_to(0, 0)
    for epoch, step in ((0, 9), (0, 19), (1, 9), (1, 19)):
        tracker.log_steps(row(epoch, step))
    return tracker


@pytest.mark.parametrize(
    ("epoch", "step", "left"),
    [
        (2, 0, [(0, 9), (0, 19), (1, 9), (1, 19)]),
        (1, 19, [(0, 9), (0, 19), (1, 9)]),
        (1, 10, [(0, 9), (0, 19), (1, 9)]),
        (1, 9, [(0, 9), (0, 19)]),
        (1, 0, [(0, 9), (0, 19)]),
        (0, 0, []),
    ],
)
def test_a_run_that_goes_on_cuts_the_steps_at_its_state(
    steps: StepsFile, epoch: int, step: int, left: list[tuple[int, int]]
) -> None:
    StepsFile(steps.file.parent).go_to(epoch, step)
    assert places(steps.file) == left
    assert not steps.rolled_back.exists()


@pytest.mark.parametrize(
    "torn", ['{"epoch": 1, "st', '{"epoch": 1, "step": 29}', "\0\0\0\0", "null\n", '{"epoch": 1}\n']
)
def test_a_torn_last_line_is_dropped(steps: StepsFile, torn: str) -> None:
    whole = steps.file.read_bytes()
    with steps.file.open("a", encoding="utf-8") as stream:
        stream.write(torn)
    steps.go_to(2, 0)
    assert steps.file.read_bytes() == whole


def test_a_file_that_ends_where_the_state_is_stays_as_it_is(steps: StepsFile) -> None:
    before = steps.file.stat()
    steps.go_to(2, 0)
    after = steps.file.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_tells_of_a_skipped_step_is_kept_when_a_run_goes_back_over_it(
    steps: StepsFile,
) -> None:
    steps.log_steps(row(2, 3, last_loss=float("nan"), skipped=1))
    steps.go_to(1, 10)
    steps.log_steps(row(1, 19))
    steps.go_to(1, 0)
    assert places(steps.file) == [(0, 9), (0, 19)]
    assert places(steps.rolled_back) == [(1, 19), (2, 3)]
    assert rows_of(steps.rolled_back)[1]["not_finite"] == {"last_loss": "nan"}


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_counts_steps_through_the_run(tmp_path: Path) -> None:
    board = TensorBoard(PLAN, tmp_path)
    board.go_to(0, 0)
    board.log_steps(row(0, 9))
    board.log_steps(row(1, 9, grad_norm=None))
    board.close()
    assert scalars(tmp_path / "tensorboard" / "steps", "step/loss") == [(9, 9.0), (29, 19.0)]


def test_tensorboard_shows_what_was_trained_again_once_by_step_and_by_epoch(tmp_path: Path) -> None:
    first, second = TensorBoard(PLAN, tmp_path), TensorBoard(PLAN, tmp_path)
    first.go_to(0, 0)
    for epoch in (0, 1):
        first.log_steps(row(epoch, 9))
        first.log_steps(row(epoch, 19))
        first.log_epoch({"epoch": epoch, "val_top1": 50.0})
    first.close()
    second.go_to(1, 10)  # of epoch 1 the first ten steps stand, the rest is trained again
    second.log_steps(row(1, 19, loss=-1.0))
    second.log_epoch({"epoch": 1, "val_top1": 60.0})
    second.close()
    assert scalars(tmp_path / "tensorboard" / "steps", "step/loss") == [
        (9, 9.0),
        (19, 19.0),
        (29, 19.0),
        (39, -1.0),
    ]
    assert scalars(tmp_path / "tensorboard", "val_top1") == [(0, 50.0), (1, 60.0)]


def test_tensorboard_hides_what_a_run_went_back_over(tmp_path: Path) -> None:
    board = TensorBoard(PLAN, tmp_path)
    board.go_to(0, 0)
    board.log_steps(row(0, 9))
    board.log_steps(row(0, 19))
    board.go_to(0, 15)
    board.close()
    assert scalars(tmp_path / "tensorboard" / "steps", "step/loss") == [(9, 9.0)]


class Packages:
    """Runs that log to a package, and what it was told."""

    def __init__(self, command: Callable[..., Done], folder: Path, data: Path) -> None:
        self.command, self.folder, self.data = command, folder, data
        self.calls_file = folder / "calls"
        (folder / "packages").mkdir()
        for name in ("trackio", "wandb"):
            (folder / "packages" / f"{name}.py").write_text(PACKAGE, encoding="utf-8")

    def run(self, package: str, *words: str, before: str = "", **env: str) -> Done:
        """Two epochs of four steps."""
        sets = ("epochs=2", "warmup_epochs=0", "log_steps=2")
        return self.command(
            *("reproduce", "deit_pico_digits", "--gpus", "0", "--workers", "0"),
            *("--data", self.data, "--output", self.folder / "mine", "--log-to", package),
            *(word for change in sets for word in ("--set", change)),
            *words,
            before=before,
            PYTHONPATH=self.folder / "packages",
            CALLS=self.calls_file,
            **env,
        )

    def calls(self) -> list[tuple[str, str | None, dict[str, Any]]]:
        """The name of each call, the rank that made it, and its values."""
        return [tuple(call) for call in rows_of(self.calls_file)]


@pytest.fixture
def packages(command: Callable[..., Done], tmp_path: Path, digits_folder: Path) -> Packages:
    return Packages(command, tmp_path, digits_folder)


@pytest.mark.parametrize("package", ["trackio", "wandb"])
def test_a_package_is_told_what_the_logs_say(packages: Packages, package: str) -> None:
    done = packages.run(package)
    assert "Traceback" not in done.err
    assert f"hello from {package}" in done.err
    assert "hello" not in done.out  # which is for the verdict
    calls = packages.calls()
    assert [name for name, _, _ in calls] == ["init", *["log"] * 6, "finish"]
    first = calls[0][2]
    assert (first["project"], first["name"], first["log_steps"]) == ("deit_zoo", "mine", 2)
    told = [values for name, _, values in calls if name == "log"]
    assert [values["step"] for values in told] == [1, 3, 3, 5, 7, 7]
    epochs = rows_of(packages.folder / "mine" / "log.jsonl")
    assert [told[2], told[5]] == [epochs[0] | {"step": 3}, epochs[1] | {"step": 7}]
    rows = rows_of(packages.folder / "mine" / "steps.jsonl")
    losses = [values["step/loss"] for values in told if "step/loss" in values]
    assert losses == [row["loss"] for row in rows]


@pytest.mark.parametrize(
    ("package", "options"),
    [
        ("wandb", [{"resume": "allow"}, {"resume": "allow"}]),
        # By its name alone trackio would go on in another folder's run.
        ("trackio", [{"resume": "never"}, {"resume": "allow"}]),
    ],
)
def test_a_run_that_was_killed_goes_on_in_the_run_of_the_package(
    packages: Packages, package: str, options: list[dict[str, str]]
) -> None:
    killed = packages.run(package, before='at_call(run.MetricLogger, "step", 5)')
    assert killed.status == -9
    assert packages.run(package).status in (0, 1)
    begun = [values for name, _, values in packages.calls() if name == "init"]
    ids = [values.pop("id", None) for values in begun]
    assert [{"resume": values["resume"]} for values in begun] == options
    assert ids[0] == ids[1]
    assert (ids[0] is None) is (package == "trackio")


def test_a_package_that_fails_ends_itself_and_not_the_run(packages: Packages) -> None:
    done = packages.run("wandb", BROKEN="1")
    message = "no more is written for wandb (ConnectionError: no route to host); the run goes on\n"
    assert done.err.count(message) == 1
    assert (packages.folder / "mine" / "receipt.json").is_file()
    assert [name for name, _, _ in packages.calls()] == ["init"]


def test_wandbs_own_variables_name_the_project_and_the_run(packages: Packages) -> None:
    packages.run("wandb", BROKEN="1", WANDB_PROJECT="birds", WANDB_NAME="second try")
    [(_, _, begun)] = packages.calls()
    assert (begun["project"], begun["name"]) == ("birds", "second try")


def test_of_two_processes_the_first_alone_tells_the_package(packages: Packages) -> None:
    done = packages.run("trackio", "--processes", "2")
    assert "Traceback" not in done.err
    calls = packages.calls()
    assert {rank for _, rank, _ in calls} == {"0"}
    assert [name for name, _, _ in calls] == ["init", *["log"] * 6, "finish"]


def test_a_package_that_is_not_installed_is_named_with_what_to_type(packages: Packages) -> None:
    (packages.folder / "packages" / "trackio.py").unlink()
    done = packages.run("trackio")
    assert (done.status, done.out) == (2, "")
    assert "error: --log-to trackio needs the package of that name; type: pip install trackio" in (
        " ".join(done.err.split())
    )
    assert not (packages.folder / "mine").exists()


def test_another_package_is_refused(packages: Packages) -> None:
    done = packages.run("mlflow")
    assert done.status == 2
    assert "log_to is 'mlflow'; it must be one of none, trackio, wandb" in done.err
