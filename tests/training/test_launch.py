"""What is checked before a run: every refusal in its words, and nothing left behind by it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from deit_zoo.data.digits import NUM_IMAGES, NUM_VAL
from deit_zoo.errors import (
    DataError,
    ImageSizeError,
    MissingExtraError,
    RecipeError,
    UnknownModelError,
    ZooError,
)
from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.plan import DIGITS_TRAIN, default_workers
from deit_zoo.training import checks, elastic, launch
from deit_zoo.training.checks import check_output
from deit_zoo.training.finetune import finetune
from deit_zoo.training.launch import (
    Job,
    layout_of_run,
    make_plan,
    read_job,
    recipe_for,
    reproduce,
)
from support.tables import each_row


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


def test_a_model_without_a_recipe_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_for("regnety_160")
    assert str(caught.value) == (
        "there is no recipe for regnety_160_deit; `deit-zoo list --recipes` shows all"
    )


def test_a_stage_that_is_no_checkpoint_has_a_recipe_by_its_own_name() -> None:
    assert recipe_for("cait_m48_224").architecture == "cait_m48_448"


def test_a_plan_expects_imagenet_where_no_folder_is_named() -> None:
    plan = make_plan("deit_s", gpus=8, workers=10)
    assert (plan.num_images, plan.device, plan.processes) == (1_281_167, "cuda", 8)


def test_a_plan_expects_the_embedded_digits_where_no_folder_is_named() -> None:
    plan = make_plan("deit_pico_digits", gpus=0, workers=0)
    assert (plan.num_images, plan.device, plan.processes) == (1437, "cpu", 1)


def test_there_are_as_many_embedded_digits_as_a_plan_expects() -> None:
    # One number in two places: planning must not import what reads the digits.
    assert DIGITS_TRAIN == NUM_IMAGES - NUM_VAL


@pytest.mark.parametrize(
    ("changes", "modified"), [((), False), (("epochs=300",), False), (("epochs=100",), True)]
)
def test_a_plan_says_whether_its_recipe_was_changed(
    changes: tuple[str, ...], modified: bool
) -> None:
    assert make_plan("deit_s", gpus=1, changes=changes).modified is modified


@each_row(
    ("machine", "changes", "modified"),
    [
        ({"gpus": 8, "nodes": 2}, [], False),
        ({"gpus": 8}, ["replicas=16"], False),
        ({"gpus": 8}, ["replicas=8"], False),
        ({"gpus": 4}, ["replicas=4"], True),
        ({"gpus": 8, "nodes": 2}, ["lr=2e-3"], True),
        ({"gpus": 8}, ["replicas=16", "batch_size=2048"], True),
    ],
)
def test_a_layout_of_the_authors_is_no_modification(
    machine: dict[str, int], changes: list[str], modified: bool
) -> None:
    plan = make_plan("deit_b", changes=changes, **machine)
    assert plan.modified is modified
    assert ("(modified: replicas" in dict(plan.lines())["recipe"]) == ("replicas=4" in changes)


def test_a_run_that_goes_on_keeps_its_layout(tmp_path: Path) -> None:
    assert layout_of_run(tmp_path, []) == []
    plan = make_plan("deit_pico_digits", gpus=0, changes=["replicas=4"])
    Job(plan=plan, data="digits", fingerprint={}).write(tmp_path)
    assert layout_of_run(tmp_path, []) == []  # nothing has begun
    (tmp_path / "log.jsonl").write_text("{}\n", encoding="utf-8")
    assert layout_of_run(tmp_path, []) == ["replicas=4"]
    assert layout_of_run(tmp_path, ["replicas=2"]) == []


def test_a_setting_of_the_machine_does_not_change_the_recipe() -> None:
    plan = make_plan("deit_s", gpus=1, changes=["precision=fp32", "state_minutes=5", "log_steps=9"])
    assert (plan.modified, plan.precision) == (False, "fp32")
    assert (plan.state_minutes, plan.log_steps, plan.log_to) == (5.0, 9, "none")
    assert plan.recipe == RECIPES["deit_small"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"gpus": 8}, ("cuda", 8, 1)),
        ({"gpus": 4, "nodes": 2}, ("cuda", 8, 2)),
        ({"gpus": 0}, ("cpu", 1, 1)),
        ({"gpus": 0, "processes": 2}, ("cpu", 2, 1)),
        ({"gpus": 0, "processes": 2, "nodes": 2}, ("cpu", 4, 2)),
    ],
)
def test_a_plan_counts_the_processes_of_all_nodes(
    options: dict[str, int], expected: tuple[str, int, int]
) -> None:
    plan = make_plan("deit_s", **options)
    assert (plan.device, plan.processes, plan.nodes) == expected


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"gpus": -1},
            "--gpus is -1; give a number of GPUs, or 0 for the CPU",
        ),
        ({"gpus": 0, "nodes": 0}, "--nodes is 0; give 1 or more"),
        (
            {"gpus": 8, "processes": 2},
            "--processes 2 is for the CPU; with --gpus 8 each GPU has one process",
        ),
        ({"gpus": 0, "processes": 0}, "--processes is 0; give 1 or more"),
        (
            {"gpus": 0, "changes": ["precision=fp16"]},
            "precision is 'fp16' on the CPU; type --set precision=bf16 or fp32",
        ),
    ],
)
def test_a_machine_that_makes_no_sense_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_plan("deit_s", **options)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("cores", "processes", "workers"), [(2, 1, 1), (1, 1, 1), (16, 1, 12), (16, 8, 1), (96, 8, 11)]
)
def test_workers_leave_a_core_to_each_process(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, workers: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)))
    assert default_workers(processes) == workers


@pytest.mark.parametrize(("gpus", "workers"), [(0, 12), (1, 15)])
def test_a_gpu_is_fed_by_more_workers(
    monkeypatch: pytest.MonkeyPatch, gpus: int, workers: int
) -> None:
    # Twelve make 8,800 images of DeiT-S a second on the machine whose GPU takes 8,300.
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)))
    assert make_plan("deit_s", gpus=gpus).workers == workers


@pytest.mark.parametrize(
    ("missing", "named"),
    [(("timm",), "timm"), (("timm", "matplotlib", "tensorboard"), "timm, matplotlib, tensorboard")],
)
def test_a_missing_extra_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, output: Path, missing: tuple[str, ...], named: str
) -> None:
    def without(name: str) -> Any:
        return None if name in missing else find_spec(name)

    monkeypatch.setattr(checks, "find_spec", without)
    assert refused(MissingExtraError, output=output) == (
        f"training needs {named}; type: pip install 'deit_zoo[train]'"
    )


def test_more_gpus_than_there_are_are_refused(
    monkeypatch: pytest.MonkeyPatch, output: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    changes = ["replicas=8", "batch_size=1024"]
    assert refused(RecipeError, output=output, gpus=2, changes=changes) == (
        "--gpus is 2, but torch sees 1 here; give --gpus 1"
    )


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, output: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refused(RecipeError, output=output, gpus=1) == (
        "--gpus is 1, but torch sees none here; give --gpus 0 for the CPU (--dry-run shows the "
        "plan of any number)"
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


def test_a_folder_without_classes_is_refused(tmp_path: Path, output: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    assert refused(DataError, output=output, data=tmp_path) == (
        f"{tmp_path / 'train'} is empty; it must hold one folder of images per class, as in "
        f"{tmp_path / 'train' / 'cat' / '1.jpg'}"
    )


@pytest.fixture
def few(tmp_path: Path, digits_folder: Path) -> Path:
    """Two images of each class, and one to validate with."""
    for split, count in (("train", 2), ("val", 1)):
        for label in map(str, range(10)):
            place = tmp_path / "few" / split / label
            place.mkdir(parents=True)
            for image in sorted((digits_folder / split / label).iterdir())[:count]:
                (place / image.name).write_bytes(image.read_bytes())
    return tmp_path / "few"


def test_a_folder_of_too_few_images_is_refused(few: Path, output: Path) -> None:
    sentence = refused(DataError, output=output, data=few)
    assert sentence.startswith("20 training images give no whole step of 64; ")


def test_a_folder_of_other_classes_says_how_it_is_trained_on(few: Path, output: Path) -> None:
    for split in ("train", "val"):
        (few / split / "7").rename(few / split / "seven")
    assert refused(DataError, output=output, data=few) == (
        f"{few} has 10 classes; deit_pico_digits is trained on the 10 of digits ('seven' is not "
        "in both); to train on your own classes, type --set data=folder"
    )


def test_a_way_to_resume_that_does_not_exist_is_refused(output: Path) -> None:
    assert refused(RecipeError, output=output, resume="maybe") == (
        "--resume is 'maybe'; it must be auto or never"
    )


def test_a_file_as_output_is_refused(output: Path) -> None:
    output.touch()
    assert refused(DataError, output=output) == f"{output} is a file; give a folder as --output"


@pytest.mark.parametrize("train", [reproduce, finetune])
def test_an_output_may_begin_with_the_sign_of_home(
    train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=f"^{tmp_path}/file is a file; give a folder as --output"):
        train("deit_pico_digits", output=Path("~/file"), data="none", gpus=0)


def test_an_output_with_foreign_files_is_refused(output: Path) -> None:
    output.mkdir()
    (output / "split.csv").touch()  # of no killed start, which had an owner
    assert refused(DataError, output=output) == (
        f"{output} holds files that are no run; give an empty folder as --output"
    )


def test_the_log_of_a_shell_or_a_scheduler_may_lie_in_the_output(output: Path) -> None:
    output.mkdir()
    for name in ("train.log", "4711.out", "4711.err", "said.txt"):
        (output / name).touch()
    check_output(output, RECIPES["deit_pico_digits"], "never")
    for name in ("1.png", "data.log"):  # the second holds what is no log
        (output / name).mkdir()
        assert refused(DataError, output=output).endswith(
            " holds files that are no run; give an empty folder as --output"
        )
        (output / name).rmdir()


@pytest.fixture
def left(output: Path) -> Path:
    """An output folder in which a run of another recipe has ended an epoch."""
    plan = make_plan("deit_pico_digits", gpus=0, changes=["seed=7"], workers=0)
    output.mkdir()
    (output / "log.jsonl").write_text('{"epoch": 0}\n')
    Job(plan=plan, data="digits", fingerprint={"train": {"files": 1}}).write(output)
    return output


def test_a_job_that_was_left_is_read_again(output: Path) -> None:
    output.mkdir()
    plan = make_plan("cait_m48_448", gpus=4, nodes=2, changes=["compile=false", "clip_grad=none"])
    job = Job(plan=plan, data="hfds:org/name", fingerprint={"val": {"files": 2, "name": "x"}})
    job.write(output)
    assert read_job(output) == job
    held = json.loads((output / "plan.json").read_text(encoding="utf-8"))
    assert (held["data"], held["fingerprint"]) == (job.data, job.fingerprint)


@pytest.mark.parametrize(
    "held",
    [
        *(("data",), (".data.4711",), (".owner.json", "split.csv", ".plan.json.4711")),
        *(("..owner.json.4711",), (".nfs0001",)),
    ],
)
def test_what_a_process_left_that_was_killed_before_its_plan_is_begun_anew(
    output: Path, held: tuple[str, ...]
) -> None:
    for name in held:
        (output / name).mkdir(parents=True)
    check_output(output, RECIPES["deit_pico_digits"], "auto")


def test_other_images_where_a_run_keeps_the_digits_are_refused(
    output: Path, digits_folder: Path
) -> None:
    data = Path(shutil.copytree(digits_folder, output / "data"))  # fewer digits
    with pytest.raises(DataError, match=r"a run writes them \(it lacks 1,417 of them\); remove "):
        launch.digits_folder(output)
    (data / "val" / "9" / "own.png").touch()
    assert refused(DataError, output=output) == (
        f"{data} is not the embedded digits as a run writes them (it has val/9/own.png); remove "
        f"it, and they are written again, or give --data {data} to train on what it holds"
    )


@pytest.mark.slow
def test_a_run_that_was_killed_while_the_digits_were_written_begins_again(
    output: Path, command: Any
) -> None:
    typed = ["reproduce", "deit_pico_digits", "--gpus", "0", "--workers", "0"]
    typed += ["--output", str(output), "--set", "epochs=1", "--set", "batch_size=256"]
    killed = command(*typed, before='from PIL import Image; at_call(Image.Image, "save", 500)')
    assert killed.status == -9
    assert len(list(output.glob(".data.*"))) == 1
    assert command(*typed).status == 1  # so short a run reaches no published figure
    assert list(output.glob(".data.*")) == []


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "run"
    assert refused(DataError, output=output) == (
        f"{output} cannot be written (Not a directory); give another --output"
    )


def test_a_run_of_another_recipe_is_refused(left: Path) -> None:
    assert refused(RecipeError, output=left) == (
        f"{left} holds a run of another recipe (deit_pico_digits, whose seed is 7, not 0); give a "
        "new --output"
    )


def test_a_run_is_not_gone_on_with_against_the_will(left: Path) -> None:
    assert refused(DataError, output=left, changes=["seed=7"], resume="never") == (
        f"{left} holds a run already; give a new --output, or --resume auto"
    )


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (RecipeError, {"changes": ["epoch=3"]}),
        (RecipeError, {"gpus": 3}),
        (RecipeError, {"changes": ["precision=fp16"]}),
        (RecipeError, {"nodes": 2, "processes": 1}),
        (DataError, {"changes": ["batch_size=4096"]}),
        (DataError, {"data": Path("/nowhere")}),
        (DataError, {"name": "deit_s"}),
        (ImageSizeError, {"changes": ["img_size=17"]}),
        (ZooError, {"changes": ["stem=hmlp"]}),
    ],
    ids=["no field", "GPUs", "half", "nodes", "no step", "no folder", "ImageNet", "size", "stem"],
)
def test_a_refused_run_leaves_no_folder(
    output: Path, error: type[ZooError], options: dict[str, Any]
) -> None:
    refused(error, output=output, **options)
    assert not output.exists()


def test_the_plan_is_on_disk_when_it_is_said(digits_folder: Path, output: Path) -> None:
    class GracefulStop(Exception):
        """Raised in place of the training."""

    said: list[tuple[Job, Job]] = []

    def stop(job: Job) -> None:
        said.append((job, read_job(output)))
        raise GracefulStop

    with pytest.raises(GracefulStop):
        reproduce("deit_pico_digits", gpus=0, output=output, data=digits_folder, say=stop)
    ((told, written),) = said
    assert told == written
    assert told.plan.num_images == 320
    assert (told.data, told.fingerprint["train"]["files"]) == (str(digits_folder), 320)


@pytest.mark.parametrize("content", [b"{}", b"[]", b"not JSON", b"\xff", b"[" * 100_000])
def test_a_folder_with_somebody_elses_plan_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(DataError, match="is no plan of a deit_zoo run; give an empty folder"):
        check_output(tmp_path, RECIPES["deit_pico_digits"], "auto")


def test_a_plan_of_wrong_types_is_read_or_refused_in_one_sentence(tmp_path: Path) -> None:
    plan = make_plan("deit_pico_digits", gpus=0)
    Job(plan=plan, data="digits", fingerprint={"train": {}}).write(tmp_path)
    file = tmp_path / "plan.json"
    whole = json.loads(file.read_text(encoding="utf-8"))
    places: list[tuple[str, ...]] = [("fingerprint", "train"), *((key,) for key in whole)]
    places += [("recipe", key) for key in whole["recipe"]]
    sentences: list[str] = []
    for place, value in product(places, [None, [], {}, "x", -1, 1e308, [[10**12]], 2**63]):
        record = json.loads(json.dumps(whole))
        inner = record if len(place) == 1 else record[place[0]]
        inner[place[-1]] = value
        file.write_text(json.dumps(record), encoding="utf-8")
        try:
            job = read_job(tmp_path)
            assert all(facts == {} for facts in job.fingerprint.values())
            assert job.changed_fields == ()
        except ZooError as error:
            sentences.append(str(error))
    assert len(sentences) > len(places)
    assert not any("\n" in sentence for sentence in sentences)


def test_a_nodes_launcher_reads_the_images_before_it_waits_for_anothers(
    output: Path, digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(output: Path, tell: Any, seconds: float) -> None:
        raise DataError(f"in use for {seconds:g} seconds")

    monkeypatch.setattr(launch, "run_lock", busy)
    machine: dict[str, Any] = {"gpus": 0, "processes": 1, "nodes": 2, "rendezvous": "localhost:1"}
    seen: list[int] = []
    with pytest.raises(DataError, match=f"in use for {elastic.JOIN_SECONDS} seconds"):
        reproduce(
            "deit_pico_digits", output=output, data=digits_folder, progress=seen.append, **machine
        )
    assert seen
