"""`deit-zoo reproduce` as it is typed: the plan, the script for Slurm, and what is refused."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from deit_zoo.cli.train import is_main_process, run
from deit_zoo.data.digits import digits
from deit_zoo.recipes.plan import default_workers
from support.command import deit_zoo, sentence
from support.tables import each_row

PICO = ("reproduce", "deit_pico_digits", "--gpus", "0")
OPTIONS = (
    "gpus device data output set workers processes nodes rendezvous log-to resume slurm dry-run"
)
LONE = ("reproduce", "deit_s", "--gpus", "8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """640 digits to train on, and 20 to validate with."""
    path = tmp_path_factory.mktemp("digits")
    for number, (image, label) in enumerate(digits()):
        split = "train" if number < 640 else "val"
        if number < 660:
            class_folder = path / split / label
            class_folder.mkdir(parents=True, exist_ok=True)
            image.save(class_folder / f"{number}.png")
    return path


@each_row("word", OPTIONS.split())
def test_the_help_names_every_option(word: str, helped: str) -> None:
    assert f" --{word} " in helped


@pytest.mark.parametrize("status", ["0: reproduced", "1: not reproduced", "75: ", "130: "])
def test_the_help_says_what_each_exit_means(status: str, helped: str) -> None:
    assert status in helped


@pytest.fixture(scope="module")
def helped() -> str:
    """The help, on one line."""
    done = deit_zoo("reproduce", "--help", env={"COLUMNS": "200", "TERM": "dumb"})
    assert (done.status, done.err) == (0, "")
    return " ".join(done.out.replace("│", " ").split())


def test_a_dry_run_prints_the_plan_and_leaves_nothing(tmp_path: Path) -> None:
    done = deit_zoo(*PICO, "--dry-run", cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert "digits, 1,437 training images of 16 px\n" in done.out
    assert "140 epochs of 20 steps, 1,280 different images\n" in done.out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_counts_the_images_of_a_folder(folder: Path, tmp_path: Path) -> None:
    done = deit_zoo(*PICO, "--dry-run", "--data", folder, cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert "640 training images of 16 px: only 640 of 1,437 training images\n" in done.out
    assert done.out.endswith("\noutput        runs/deit_pico_digits\n")
    assert "140 epochs of 8 steps, 512 different images\n" in done.out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_a_folder_that_is_none(tmp_path: Path) -> None:
    message = sentence(deit_zoo(*PICO, "--dry-run", "--data", tmp_path))
    assert message == (
        f"{tmp_path} has no folder train/; it must hold train/ and val/, each with one folder of "
        "images per class"
    )


def test_a_dry_run_refuses_more_processes_than_there_are_replicas() -> None:
    message = sentence(deit_zoo(*PICO, "--dry-run", "--processes", "3"))
    assert message == (
        "3 processes cannot share 2 replicas evenly; the nearest number that can is --processes 2, "
        "or change --set replicas="
    )


@pytest.mark.parametrize("option", [("--slurm", "job.sh"), ("--slurm=job.sh",)])
def test_a_script_for_slurm_starts_what_was_typed_without_the_script(
    tmp_path: Path, folder: Path, option: tuple[str, ...]
) -> None:
    typed = [*PICO, "--data", str(folder), "--set", "lr=1e-3", "--workers", "9"]
    done = deit_zoo(*typed, *option, cwd=tmp_path)
    assert (done.status, done.err) == (
        0,
        "job.sh asks for 1 node of 10 cores (1 x (1 + 9 workers)), for 24 h at a time; "
        "type: sbatch job.sh\n",
    )
    assert "140 epochs of 8 steps" in done.out
    text = (tmp_path / "job.sh").read_text()
    assert f"-m deit_zoo {shlex.join(typed)}\n" in text
    assert "--slurm" not in text
    assert (
        f"#SBATCH --cpus-per-task=10\n#SBATCH --time=24:00:00\n#SBATCH --chdir={tmp_path}\n" in text
    )
    assert subprocess.run(["bash", "-n", tmp_path / "job.sh"], check=False).returncode == 0


def test_words_with_blanks_and_quotes_reach_the_run_as_they_were_typed(
    tmp_path: Path, folder: Path
) -> None:
    link = tmp_path / 'it\'s my "data" $HOME'
    link.symlink_to(folder)
    done = deit_zoo(*PICO, "--data", link, "--slurm", "job.sh", cwd=tmp_path)
    assert done.status == 0, done.err
    text = (tmp_path / "job.sh").read_text()
    text = re.sub(r"srun \S+ -m deit_zoo", r"printf '%s\\n'", text)
    printed = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines()[:-2] == [*PICO, "--data", str(link)]


def test_a_script_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text("mine")
    done = deit_zoo(*PICO, "--slurm", "job.sh", cwd=tmp_path)
    assert done.status == 2
    assert done.err == "error: job.sh exists; give a new file as --slurm, or remove it\n"
    assert (tmp_path / "job.sh").read_text() == "mine"


def test_a_script_without_images_is_refused(tmp_path: Path) -> None:
    done = deit_zoo(*LONE, "--slurm", "job.sh", cwd=tmp_path)
    assert done.status == 2
    assert done.err == (
        "error: deit_small trains on imagenet1k, which is not shipped; type --data DIR with train/ "
        "and val/ in it\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_fine_tuning_has_a_script_too_in_a_new_folder(tmp_path: Path, folder: Path) -> None:
    typed = ["finetune", "deit_pico_digits", "--data", str(folder), "--epochs", "2"]
    done = deit_zoo(*typed, "--slurm", "jobs/job.sh", "--device", "cpu", cwd=tmp_path)
    assert done.status == 0, done.err
    workers = default_workers(1)
    text = (tmp_path / "jobs" / "job.sh").read_text()
    command = f"-m deit_zoo {shlex.join(typed)} --device cpu --workers {workers}\n"
    assert command in text
    assert f"#SBATCH --cpus-per-task={workers + 1}\n" in text


@pytest.mark.parametrize(
    ("teacher", "told"),
    [
        ("regnet_y", "teacher is 'regnet_y', which neither the zoo nor timm knows; give a name"),
        ("./nowhere", "nowhere"),
        ("nowhere.safetensors", "checkpoint 'nowhere.safetensors' does not exist; give "),
        ("deit_pico_digits@a/b.pth", "checkpoint 'a/b.pth' does not exist; give "),
    ],
)
def test_a_dry_run_refuses_a_teacher_that_cannot_be_had(teacher: str, told: str) -> None:
    changes = ("--set", f"teacher={teacher}", "--set", "distillation=hard")
    assert told in sentence(deit_zoo(*PICO, *changes, "--dry-run", server="training"))


@each_row(
    "teacher",
    [
        "hf://me/t/model.safetensors",
        "hf://me/t@main/model.safetensors",
        "deit_pico_digits@hf://me/t/model.safetensors",
    ],
)
def test_a_dry_run_fetches_no_teacher(teacher: str) -> None:
    # Whoever fetched one would be refused here, where there is no network.
    changes = ("--set", f"teacher={teacher}", "--set", "distillation=hard")
    done = deit_zoo(*PICO, *changes, "--dry-run", server="training")
    assert (done.status, done.err) == (0, "")
    assert f"hard from {teacher}, " in " ".join(done.out.split())


@pytest.mark.parametrize("words", [("--lr", "0.005", "--log-steps=7"), ("--lr=0.005",)])
def test_a_field_may_be_typed_as_an_option(words: tuple[str, ...]) -> None:
    done = deit_zoo(*PICO, *words, "--epochs", "3", "--batch-size", "32", "--dry-run")
    assert (done.status, done.err) == (0, "")
    changes = "(modified: epochs 140 -> 3, batch_size 64 -> 32, lr 0.002 -> 0.005)"
    assert changes in done.out


def test_an_option_without_its_value_is_told_how_it_is_typed() -> None:
    message = sentence(deit_zoo(*PICO, "--lr", "--dry-run"))
    assert message == "--lr has no value; type --set lr=VALUE"


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_is_said_to_go_on_where_it_had_begun(
    begun: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(say: Callable[[Any], None], progress: Callable[[int], None]) -> Any:
        if begun:
            say(SimpleNamespace(plan=None))
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["deit-zoo", "finetune", "a"])
    with pytest.raises(typer.Exit) as caught:
        run(train, lambda plan: None, speaks=True)
    how = "; this continues the run" if begun else " before it trained; type it again"
    assert caught.value.exit_code == 130
    assert capsys.readouterr().err.endswith(f"stopped{how}: deit-zoo finetune a\n")


@pytest.mark.parametrize("command", [PICO[:2], ("finetune", "deit_pico_digits", "--data", "x")])
def test_one_device_and_a_number_of_them_are_refused(command: tuple[str, ...]) -> None:
    message = sentence(deit_zoo(*command, "--device", "cpu", "--gpus", "2"))
    assert message == "--device cpu names one device and --gpus 2 others; give one"


def test_a_device_that_is_not_here_is_refused_before_anything_is_read() -> None:
    message = sentence(deit_zoo(*PICO[:2], "--device", "cuda:77"))
    assert message.startswith("device 'cuda:77' cannot be used here")
    assert message.endswith("give auto, cpu, or cuda, cuda:1 or mps where PyTorch finds that GPU")


def test_a_dry_run_writes_no_script(tmp_path: Path) -> None:
    done = deit_zoo(*LONE, "--slurm", "job.sh", "--dry-run", cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_makes_no_sense_is_refused_in_one_sentence(tmp_path: Path) -> None:
    message = sentence(deit_zoo(*PICO, "--set", "precision=fp16", cwd=tmp_path))
    assert message == "precision is 'fp16' on the CPU; type --set precision=bf16 or fp32"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tasks", "processes", "nodes", "speaks"),
    [
        ("4", 1, 1, True),  # of a sweep, each a run of its own
        ("4", 2, 1, True),
        ("4", 4, 1, False),
        ("2", 16, 2, False),
        (None, 16, 2, False),
    ],
)
def test_a_task_of_srun_is_silent_where_another_speaks_for_its_run(
    monkeypatch: pytest.MonkeyPatch, tasks: str | None, processes: int, nodes: int, speaks: bool
) -> None:
    for name in ("RANK", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    if tasks is not None:
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", tasks)
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert is_main_process(processes, nodes) == speaks
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert is_main_process(processes, nodes)
