"""What is checked before a run: every refusal in its words, and nothing left behind by it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from deit_zoo.digits import NUM_IMAGES, NUM_VAL
from deit_zoo.errors import DataError, MissingExtraError, RecipeError, UnknownModelError, ZooError
from deit_zoo.training import launch
from deit_zoo.training.launch import (
    DIGITS_TRAIN,
    count_images,
    default_workers,
    make_plan,
    recipe_for,
    reproduce,
)
from deit_zoo.training.recipes import RECIPES


def refused(error: type[ZooError], **changes: Any) -> str:
    """The sentence with which a run is refused."""
    options = {"name": "deit_pico_digits", "gpus": 0} | changes
    with pytest.raises(error) as caught:
        reproduce(options.pop("name"), **options)
    return str(caught.value)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A folder that is not there yet."""
    return tmp_path / "run"


def test_a_recipe_is_found_by_any_spelling_of_its_model() -> None:
    assert recipe_for("DeiT-S") == RECIPES["deit_small"]


def test_a_recipe_comes_with_its_changes() -> None:
    assert recipe_for("deit_s", ["epochs=3"]).epochs == 3


def test_an_unknown_model_has_no_recipe() -> None:
    with pytest.raises(UnknownModelError):
        recipe_for("deit_gigantic")


def test_a_model_without_a_recipe_is_refused_with_those_that_have_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = {name: RECIPES[name] for name in ("deit_tiny", "deit_base")}
    monkeypatch.setattr(launch, "RECIPES", known)
    with pytest.raises(RecipeError) as caught:
        recipe_for("deit_s")
    assert str(caught.value) == (
        "no recipe for deit_small is in this version of deit_zoo; there are recipes for "
        "deit_tiny, deit_base"
    )


def test_a_plan_expects_imagenet_where_no_folder_is_named() -> None:
    plan = make_plan("deit_s", gpus=8, workers=10)
    assert (plan.num_images, plan.device, plan.processes) == (1_281_167, "cuda", 8)


def test_a_plan_expects_the_embedded_digits_where_no_folder_is_named() -> None:
    plan = make_plan("deit_pico_digits", gpus=0, workers=0)
    assert (plan.num_images, plan.device, plan.processes) == (1437, "cpu", 1)


def test_there_are_as_many_embedded_digits_as_a_plan_expects() -> None:
    # One number in two places: planning must not import what reads the digits.
    assert DIGITS_TRAIN == NUM_IMAGES - NUM_VAL


@pytest.mark.parametrize(("changes", "modified"), [((), False), (("epochs=300",), True)])
def test_a_plan_says_whether_its_recipe_was_changed(
    changes: tuple[str, ...], modified: bool
) -> None:
    assert make_plan("deit_s", gpus=1, changes=changes).modified is modified


def test_a_negative_number_of_gpus_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        make_plan("deit_s", gpus=-1)
    assert str(caught.value) == "--gpus is -1; give the number of GPUs, or 0 for the CPU"


@pytest.mark.parametrize(
    ("cores", "processes", "workers"), [(2, 1, 1), (1, 1, 1), (16, 1, 12), (16, 8, 1), (96, 8, 11)]
)
def test_workers_leave_a_core_to_each_process(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, workers: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert default_workers(processes) == workers


def test_images_are_counted_in_every_class_folder(digits_folder: Path) -> None:
    assert count_images(digits_folder / "train") == 320


def test_files_that_are_no_images_are_not_counted(tmp_path: Path) -> None:
    for name in ("a/1.PNG", "a/2.jpeg", "a/.DS_Store", "a/notes.txt", "labels.csv"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert count_images(tmp_path) == 2


@pytest.mark.parametrize(
    ("missing", "named"),
    [(("timm",), "timm"), (("timm", "matplotlib", "tensorboard"), "timm, matplotlib, tensorboard")],
)
def test_a_missing_extra_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, output: Path, missing: tuple[str, ...], named: str
) -> None:
    def without(name: str) -> Any:
        return None if name in missing else find_spec(name)

    monkeypatch.setattr(launch, "find_spec", without)
    assert refused(MissingExtraError, output=output) == (
        f"training needs {named}; type: pip install 'deit_zoo[train]'"
    )


def test_several_gpus_are_refused_for_now(output: Path) -> None:
    assert refused(RecipeError, output=output, gpus=8) == (
        "--gpus 8: this version of deit_zoo trains in one process; type --gpus 1, or --gpus 0 for "
        "the CPU (--dry-run shows the plan of any number)"
    )


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, output: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refused(RecipeError, output=output, gpus=1) == (
        "--gpus 1, but torch sees no GPU here; type --gpus 0 for the CPU"
    )


def test_imagenet_must_be_named(output: Path) -> None:
    assert refused(DataError, name="deit_s", output=output) == (
        "deit_small trains on imagenet1k, which is not shipped; type --data DIR with train/ and "
        "val/ in it"
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_data_without_one_of_its_folders_is_refused(
    tmp_path: Path, output: Path, split: str
) -> None:
    data = tmp_path / "data"
    for name in {"train", "val"} - {split}:
        (data / name).mkdir(parents=True)
    assert refused(DataError, output=output, data=data) == (
        f"{data} has no folder {split}/; it must hold train/ and val/, each with one folder of "
        "images per class"
    )


def test_a_folder_of_too_few_images_is_refused(tmp_path: Path, output: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    sentence = refused(DataError, output=output, data=tmp_path)
    assert sentence.startswith("0 training images give no whole step of ")


def test_a_way_to_resume_that_does_not_exist_is_refused(output: Path) -> None:
    assert refused(RecipeError, output=output, resume="maybe") == (
        "--resume is 'maybe'; it must be auto or never"
    )


def test_a_file_as_output_is_refused(output: Path) -> None:
    output.touch()
    assert refused(DataError, output=output) == f"{output} is a file; give a folder as --output"


def test_an_output_with_foreign_files_is_refused(output: Path) -> None:
    output.mkdir()
    (output / "thesis.tex").touch()
    assert refused(DataError, output=output) == (
        f"{output} holds files that are no run; give an empty folder as --output"
    )


@pytest.fixture
def left(output: Path) -> Path:
    """An output folder in which a run of another recipe was begun."""
    plan = make_plan("deit_pico_digits", gpus=0, changes=["seed=7"], workers=0)
    output.mkdir()
    (output / "plan.json").write_text(json.dumps(plan.to_dict()), encoding="utf-8")
    return output


def test_a_run_of_another_recipe_is_refused(left: Path) -> None:
    assert refused(RecipeError, output=left) == (
        f"{left} holds a run of another recipe (deit_pico_digits); give a new --output, or remove "
        f"it: rm -r {left}"
    )


def test_a_run_is_not_gone_on_with_against_the_will(left: Path) -> None:
    assert refused(DataError, output=left, changes=["seed=7"], resume="never") == (
        f"{left} holds a run already; give a new --output, or --resume auto"
    )


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (RecipeError, {"changes": ["epoch=3"]}),
        (RecipeError, {"gpus": 8}),
        (DataError, {"changes": ["batch_size=4096"]}),
        (DataError, {"data": Path("/nowhere")}),
        (DataError, {"name": "deit_s"}),
    ],
    ids=["no field", "GPUs", "no whole step", "no folder", "ImageNet"],
)
def test_a_refused_run_leaves_no_folder(
    output: Path, error: type[ZooError], options: dict[str, Any]
) -> None:
    refused(error, output=output, **options)
    assert not output.exists()


def test_the_plan_is_on_disk_when_it_is_said(
    monkeypatch: pytest.MonkeyPatch, digits_folder: Path, output: Path
) -> None:
    class Stop(Exception):
        """Raised in place of the training."""

    said: list[Any] = []

    def stop(plan: Any) -> None:
        said.append(json.loads((output / "plan.json").read_text(encoding="utf-8")))
        raise Stop

    with pytest.raises(Stop):
        reproduce("deit_pico_digits", gpus=0, output=output, data=digits_folder, say=stop)
    assert said[0]["num_images"] == 320


@pytest.mark.parametrize("content", ["{}", "[]", "not JSON"])
def test_a_folder_with_somebody_elses_plan_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(DataError, match="is no plan of a deit_zoo run; give an empty folder"):
        launch.check_output(tmp_path, RECIPES["deit_pico_digits"], "auto")
