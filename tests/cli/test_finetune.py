"""`finetune` as a user types it: the plan, the refusals, and what options mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from PIL import Image

from deit_zoo.cli.train import finetune_, usage_lines
from deit_zoo.data.digits import write_folder
from support.typed import Done

PICO = "deit_pico_digits"

app = typer.Typer()
app.command("finetune")(finetune_)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """`train/` with six images of cats and four of dogs, and `val/` with one of each."""
    folder = tmp_path / "pets"
    for split, name, count in (("train", "cat", 6), ("train", "dog", 4), ("val", "cat", 1)):
        (folder / split / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8)).save(folder / split / name / f"{number}.png")
    (folder / "val" / "dog").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "val" / "dog" / "0.png")
    return folder


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    """The embedded digits, whose classes the convnet knows."""
    write_folder(tmp_path / "digits")
    return tmp_path / "digits"


def rows_of(out: str) -> dict[str, str]:
    """The rows of a plan by their labels; those without one belong to the last that has one."""
    rows: dict[str, str] = {}
    last = ""
    for line in out.splitlines():
        label, _, value = line.partition("  ")
        last = label.strip() or last
        rows[last] = f"{rows[last]}\n{value.strip()}" if last in rows else value.strip()
    return rows


def test_a_dry_run_shows_the_plan_and_leaves_nothing(
    typed: Callable[..., Done], data: Path, tmp_path: Path
) -> None:
    done = typed(PICO, "--data", data, "--gpus", "0", "--workers", "0", "--dry-run")
    assert (done.status, done.error) == (0, None)
    rows = rows_of(done.out)
    assert rows["recipe"] == "deit_pico_digits_custom, deit_zoo, for folders from ten images up"
    assert rows["first stage"] == "deit_pico_digits, 140 epochs at 16 px: its published weights"
    assert rows["data"] == "folder, 10 training images of 16 px"
    assert rows["rate"].startswith("peak 8.84e-05 after scaling, 3 warm-up epochs from ")
    assert "lr: 0.0005 in the recipe; with the batch's root" in rows["assumed"]
    assert "partly assumed" not in rows
    assert (rows["train"], rows["val"]) == (
        "10 images in 2 classes (4 to 6 each)",
        "2 images in 2 classes (1 each)",
    )
    assert done.err == (
        "2 classes: cat, dog\n"
        "10 training images: batch_size 64 -> 2, replicas 2 -> 1, lr 0.0005 -> 8.84e-05\n"
    )
    assert list((tmp_path / "here").iterdir()) == []


def test_where_a_run_logs_to_is_no_change_of_the_recipe(
    typed: Callable[..., Done], data: Path
) -> None:
    words = (PICO, "--data", data, "--gpus", "0", "--dry-run", "--log-to")
    assert "modified" not in typed(*words, "wandb").out
    refused = typed(*words, "mlflow")
    assert refused.error == "log_to is 'mlflow'; it must be one of none, trackio, wandb"


def test_a_dry_run_refuses_what_no_model_begins_with(
    typed: Callable[..., Done], data: Path
) -> None:
    words = (PICO, "--data", data, "--gpus", "0", "--dry-run")
    assert "cannot be cut into patches of 4x4" in typed(*words, "--img-size", "17").error
    assert "is no model, no" in typed(*words, "--set", "init_from=nothing.pth").error


def test_options_are_changes_of_the_recipe(typed: Callable[..., Done], data: Path) -> None:
    options = ("--epochs", "7", "--img-size", "32", "--layer-decay", "0.5", "--freeze", "backbone")
    done = typed(PICO, "--data", data, "--gpus", "0", *options, "--set", "lr=0.004", "--dry-run")
    rows = rows_of(done.out)
    assert rows["recipe"].startswith("deit_pico_digits_custom (modified)")
    assert rows["length"].startswith("7 epochs of 5 steps")
    assert rows["data"].endswith("of 32 px")
    assert rows["rate"].startswith("peak 0.004 after scaling, 1 warm-up epoch from 1e-06")
    assert rows["also"] == "eval mode: no drop-path; backbone frozen"
    assert (
        "train_mode: a frozen backbone gives the head always the same features" in (rows["assumed"])
    )
    assert "layer_decay" not in rows["assumed"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (PICO, "hard from convnet_pico_digits, alpha 0.5, on the class head"),
        (
            "deit_pico_distilled_digits",
            "hard from convnet_pico_digits, alpha 0.5, on the distillation token",
        ),
    ],
)
def test_a_teacher_alone_means_hard_distillation(
    typed: Callable[..., Done], ten: Path, name: str, line: str
) -> None:
    teacher = ("--teacher", "convnet_pico_digits")
    done = typed(name, "--data", ten, "--gpus", "0", *teacher, "--dry-run")
    assert rows_of(done.out)["distillation"] == line


def test_a_teacher_may_teach_softly(typed: Callable[..., Done], ten: Path) -> None:
    soft = ("--teacher", "convnet_pico_digits", "--set", "distillation=soft", "--set", "tau=3")
    done = typed(PICO, "--data", ten, "--gpus", "0", *soft, "--dry-run")
    assert rows_of(done.out)["distillation"].startswith("soft from convnet_pico_digits, alpha 0.5")


def test_a_recipe_of_the_authors_names_its_contradictions(
    typed: Callable[..., Done], data: Path
) -> None:
    done = typed(PICO, "--data", data, "--gpus", "0", "--recipe", "cars", "--dry-run")
    rows = rows_of(done.out)
    assert rows["recipe"] == (
        "deit_pico_digits_cars, DeiT #45; DeiT-B: 92.1 in Table 7, 93.3 at 384"
    )
    done = typed(PICO, "--data", data, "--gpus", "0", "--recipe", "cifar10", "--dry-run")
    assert (
        "optimizer, weight_decay, drop_path_rate: DINO #81 says AdamW, 7.5e-6, 0.05 and drop-path "
        "0.1; DeiT's own #45, which #175 repeats"
    ) in rows_of(done.out)["assumed"]


def test_a_folder_that_is_not_parted_is_refused(typed: Callable[..., Done], data: Path) -> None:
    done = typed(PICO, "--data", data / "train", "--gpus", "0", "--output", "out")
    assert done.error == (
        f"{data / 'train'} holds class folders (cat, dog) and no train/ and val/; type "
        "--val-share 0.2 to keep a fifth of each class apart for validation"
    )
    assert not Path("out").exists()


def test_a_folder_is_parted_in_thought_by_a_dry_run(typed: Callable[..., Done], data: Path) -> None:
    share = ("--val-share", "0.5", "--dry-run")
    done = typed(PICO, "--data", data / "train", "--gpus", "0", *share)
    assert rows_of(done.out)["data"] == "folder, 5 training images of 16 px"


def test_a_dry_run_refuses_a_list_of_files_that_are_elsewhere(
    typed: Callable[..., Done], tmp_path: Path
) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("file,label,split\na.jpg,a,train\nb.jpg,b,train\nc.jpg,a,val\nd.jpg,b,val\n")
    done = typed(PICO, "--data", file, "--gpus", "0", "--dry-run")
    assert str(done.error).startswith(f"none of the 4 files that {file} names is there, from a.jpg")


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_teacher_of_other_classes_is_refused(
    typed: Callable[..., Done], data: Path, dry: list[str]
) -> None:
    teacher = ("--teacher", "convnet_pico_digits")
    done = typed(PICO, "--data", data, "--gpus", "0", *teacher, "--output", "out", *dry)
    assert done.error == (
        f"the teacher convnet_pico_digits knows 10 other classes than the 2 of {data}; fine-tune "
        f"it first: deit-zoo finetune convnet_pico_digits --data {data} --output "
        "runs/convnet_pico_digits_teacher; then type --teacher runs/convnet_pico_digits_teacher"
    )
    assert not Path("out").exists()


def test_gpus_and_processes_are_one_or_the_other(typed: Callable[..., Done], data: Path) -> None:
    done = typed(PICO, "--data", data, "--gpus", "2", "--processes", "2")
    assert done.error == ("--processes 2 is for the CPU; with --gpus 2 each GPU has one process")


def test_what_is_told_at_the_end_can_be_typed() -> None:
    assert usage_lines("deit_small", Path("my runs/pets")) == [
        "import deit_zoo",
        "model = deit_zoo.create('deit_small', checkpoint='my runs/pets')",
        "deit-zoo classify --model 'my runs/pets' PHOTO.jpg",
    ]
