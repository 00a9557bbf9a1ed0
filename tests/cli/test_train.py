"""`deit-zoo reproduce` as it is typed: the plan, the script for Slurm, and what is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from deit_zoo.data.digits import digits
from support.command import deit_zoo, sentence
from support.tables import each_row

PICO = ("reproduce", "deit_pico_digits", "--gpus", "0")
OPTIONS = "gpus data output set workers processes nodes rendezvous log-to resume slurm dry-run"
SMALL = ("reproduce", "deit_s", "--gpus", "8")


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
    assert "640 training images of 16 px\n" in done.out
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
    tmp_path: Path, option: tuple[str, ...]
) -> None:
    done = deit_zoo(*SMALL, *option, "--set", "lr=1e-3", "--workers", "9", cwd=tmp_path)
    assert (done.status, done.err) == (0, "job.sh is written; type: sbatch job.sh\n")
    assert "300 epochs of 1251 steps" in done.out
    text = (tmp_path / "job.sh").read_text()
    assert "\nsrun deit-zoo reproduce deit_s --gpus 8 --set lr=1e-3 --workers 9\n" in text
    assert "--slurm" not in text
    assert "#SBATCH --gpus-per-node=8\n#SBATCH" in text
    assert subprocess.run(["bash", "-n", tmp_path / "job.sh"], check=False).returncode == 0


def test_words_with_blanks_and_quotes_reach_the_run_as_they_were_typed(
    tmp_path: Path, folder: Path
) -> None:
    link = tmp_path / 'it\'s my "data" $HOME'
    link.symlink_to(folder)
    done = deit_zoo(*PICO, "--data", link, "--slurm", "job.sh", cwd=tmp_path)
    assert done.status == 0, done.err
    text = (tmp_path / "job.sh").read_text().replace("srun deit-zoo", "printf '%s\\n'")
    printed = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines() == [*PICO, "--data", str(link)]


def test_a_script_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text("mine")
    done = deit_zoo(*SMALL, "--slurm", "job.sh", cwd=tmp_path)
    assert done.status == 2
    assert done.err == "error: job.sh exists; give a new file as --slurm, or remove it\n"
    assert (tmp_path / "job.sh").read_text() == "mine"


def test_a_dry_run_writes_no_script(tmp_path: Path) -> None:
    done = deit_zoo(*SMALL, "--slurm", "job.sh", "--dry-run", cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_makes_no_sense_is_refused_in_one_sentence(tmp_path: Path) -> None:
    message = sentence(deit_zoo(*PICO, "--set", "precision=fp16", cwd=tmp_path))
    assert message == "precision is 'fp16' on the CPU; type --set precision=bf16 or fp32"
    assert list(tmp_path.iterdir()) == []
