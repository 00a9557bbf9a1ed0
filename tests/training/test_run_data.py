"""A run trains on the data that were typed, or not at all, and needs no link to remember them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pyarrow as pa
import pytest
from pyarrow import parquet

import deit_zoo
from deit_zoo.data.digits import digits
from deit_zoo.data.survey import most_unreadable, scan
from deit_zoo.errors import DataError
from deit_zoo.training.finetune import finetune
from deit_zoo.training.job import Job, read_job
from deit_zoo.training.launch import reproduce
from deit_zoo.training.state_files import position_of, states
from support.command import Done
from support.runs import train, words_of

PICO = "deit_pico_digits"
# Of a recipe on a folder, an epoch.
FEW = ("data=folder", "epochs=1", "batch_size=4", "replicas=1", "warmup_epochs=0")


def write(folder: Path, classes: str, count: int) -> Path:
    """So many digits of each class, in a folder of class folders."""
    counts = dict.fromkeys(classes, 0)
    for number, (image, label) in enumerate(digits()):
        name = str(label)
        if counts.get(name, count) < count:
            counts[name] += 1
            (folder / name).mkdir(parents=True, exist_ok=True)
            image.save(folder / name / f"{number:04d}.png")
    return folder


def tune(
    output: Path, data: Path, share: float | None = 0.2, *more: str, **options: object
) -> list[str]:
    """A run of an epoch; what it tells."""
    told: list[str] = []
    finetune(
        PICO,
        data=data,
        output=output,
        val_share=share,
        changes=["epochs=1", "hflip=0", *more],
        workers=0,
        tell=told.append,
        **options,  # type: ignore[arg-type]
    )
    return told


def refused(output: Path, data: Path, share: float | None = 0.2) -> str:
    with pytest.raises(DataError) as caught:
        tune(output, data, share)
    return str(caught.value)


def zipped(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder))


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "split.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    return write(tmp_path / "cats", "01", 10)


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    return write(tmp_path / "birds", "789", 12)


@pytest.fixture
def fail() -> Callable[[Job], None]:
    """A start that fails when its plan is on disk."""

    def raise_error(_: Job) -> None:
        raise KeyboardInterrupt

    return raise_error


def test_what_a_failed_start_left_binds_no_other_data(
    tmp_path: Path, cats: Path, birds: Path, fail: Callable[[Job], None]
) -> None:
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        tune(output, cats, say=fail)
    assert read_job(output).data == str(cats)
    tune(output, birds)
    assert {row["class"] for row in rows(output)} == set("789")
    assert all(row["file"].startswith(str(birds)) for row in rows(output))
    receipt = json.loads((output / "receipt.json").read_text())
    assert [receipt["data"][split]["files"] for split in ("train", "val")] == [30, 6]


def test_what_a_failed_start_left_binds_no_other_recipe(
    tmp_path: Path, cats: Path, fail: Callable[[Job], None]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "out", cats, say=fail)
    with pytest.raises(KeyboardInterrupt):
        finetune(PICO, data=cats, output=tmp_path / "out", val_share=0.5, workers=0, say=fail)
    job = read_job(tmp_path / "out")
    assert (job.plan.recipe.epochs, job.val_share) == (50, 0.5)


def test_a_start_that_was_killed_before_its_first_step_binds_no_other_archive(
    tmp_path: Path, command: Callable[..., Done]
) -> None:
    for name, classes in (("two", "01"), ("three", "789")):
        for split in ("train", "val"):
            write(tmp_path / name / split, classes, 6)
    two, three = (
        Path(shutil.make_archive(str(tmp_path / name), "tar", tmp_path / name))
        for name in ("two", "three")
    )
    output = tmp_path / "out"
    dead = command(*words_of(FEW, output, two), before='at_call(run.MetricLogger, "step", 0)')
    assert dead.status == -signal.SIGKILL, dead.err
    assert [position_of(file) for file in states(output)] == [(0, 0)]
    train(FEW, output, three)
    assert deit_zoo.create(PICO, checkpoint=output).labels == ("7", "8", "9")


def test_a_finished_run_is_of_the_data_that_it_began_with(tmp_path: Path, cats: Path) -> None:
    output = tmp_path / "out"
    tune(output, cats)
    assert not any(path.is_symlink() for path in output.rglob("*"))
    tune(output, cats)  # the same again: no error
    began = f"the run in {output} began with 16 training and 4 validation images"
    advice = "; give the data that it began with, or type a new --output for a run on these"

    nowhere = tmp_path / "nowhere"
    assert refused(output, nowhere).startswith(f"{nowhere} does not exist")
    assert refused(output, cats, 0.5) == (
        f"the run in {output} began with --val-share 0.2, so 16 training and 4 validation images, "
        f"and --val-share 0.5 gives 10 training and 10 validation images now{advice}"
    )
    other = write(tmp_path / "other", "01", 20)
    more = f"{began}, and {other} holds 32 training and 8 validation images now ({other}/0/"
    said = refused(output, other)
    assert said.startswith(more)
    assert said.endswith(f".png is new){advice}")
    write(cats, "2", 10)
    now = f"{began}, and {cats} holds 24 training and 6 validation images now ({cats}/2/"
    assert refused(output, cats).startswith(now)
    for file in (cats / "2").iterdir():
        file.unlink()
    (cats / "2").rmdir()
    files = sorted((cats / "0").iterdir())
    files[0].write_bytes(files[1].read_bytes())
    assert "bytes, not" in refused(output, cats)


def test_a_run_on_an_archive_goes_on_with_the_archive_that_it_began_with(
    tmp_path: Path, cats: Path
) -> None:
    output, file = tmp_path / "out", zipped(cats)
    tune(output, file)
    read = [row["member"] for row in rows(output) if row["data"] == str(file)]
    assert sorted(read) == [path.relative_to(cats).as_posix() for path in sorted(cats.rglob("*.*"))]
    weights = (output / "model.safetensors").read_bytes()
    tune(tmp_path / "folder", cats)
    assert (tmp_path / "folder" / "model.safetensors").read_bytes() == weights
    moved = file.rename(tmp_path / "moved.zip")
    tune(output, moved, 0.2, "parquet=true")  # the same again: no error
    table = parquet.read_table(output / "results" / "predictions.parquet")
    assert table["split"].to_pylist() == ["val"] * 4 + ["train"] * 16

    photo = sorted((cats / "0").iterdir())[0]
    photo.write_bytes(photo.read_bytes()[:-1] + b"!")
    assert refused(output, zipped(cats)) == (
        f"images of {file} are not those that the run in {output} began with, though their names "
        "and sizes are; give the data that it began with, or a new --output"
    )
    write(cats, "2", 10)
    said = refused(output, zipped(cats))
    assert said.startswith(
        f"the run in {output} began with 16 training and 4 validation images, and {file} holds 24 "
        f"training and 6 validation images now ({file}/2/"
    )


def test_a_run_does_not_lie_among_its_images(tmp_path: Path, cats: Path) -> None:
    output = cats / "runs" / "out"
    assert refused(output, cats) == (
        f"{output} lies in {cats}, where it would be a class; give an --output elsewhere"
    )
    assert sorted(path.name for path in cats.iterdir()) == ["0", "1"]
    (cats / "train").mkdir()
    for name in "01":
        (cats / name).rename(cats / "train" / name)
    tune(cats / "out", cats)  # beside train/ it is no class


def test_a_folder_that_moved_is_still_the_same(tmp_path: Path, cats: Path) -> None:
    tune(tmp_path / "out", cats)
    moved = cats.rename(tmp_path / "moved")
    tune(tmp_path / "out", moved)
    assert all(row["file"].startswith(str(moved)) for row in rows(tmp_path / "out"))


@pytest.mark.parametrize("share", [0.2, None])
def test_an_unreadable_image_is_left_out_and_may_be_deleted(
    tmp_path: Path, cats: Path, share: float | None
) -> None:
    data, output = cats, tmp_path / "out"
    if share is None:
        write(tmp_path / "parted" / "val", "01", 3)
        data = tmp_path / "parted"
        cats.rename(data / "train")
    folder = data if share else data / "train"
    bad = folder / "0" / "broken.png"
    bad.write_bytes((next((folder / "1").iterdir())).read_bytes()[:60])
    told = tune(output, data, share)
    images = 21 if share else 27
    assert told[0] == f"1 of {images} images cannot be read ({bad}: truncated); left out"
    assert [row["file"] for row in rows(output) if row["split"] == "unreadable"] == [str(bad)]
    bad.unlink()
    assert not any("cannot be read" in sentence for sentence in tune(output, data, share))


def test_many_unreadable_images_are_refused_before_the_start(tmp_path: Path, cats: Path) -> None:
    for number in range(4):
        (cats / "0" / f"a{number}.png").write_bytes(b"")
    assert refused(tmp_path / "out", cats) == (
        "4 of 24 images cannot be read ("
        + ", ".join(str(cats / "0" / f"a{number}.png") for number in range(3))
        + ": zero bytes, ...), and a run can do without 3; mend or remove them: "
        f"deit-zoo data check {cats} lists them all"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["a table", "an archive", "archives"])
def test_who_measures_on_members_hears_which_of_them_were_learned(
    form: str, tmp_path: Path, cats: Path
) -> None:
    data, files = tmp_path / "data", sorted(cats.rglob("*.png"))
    data.mkdir()
    if form == "a table":
        images = [{"bytes": file.read_bytes(), "path": None} for file in files]
        names = [file.parent.name for file in files]
        columns = {"image": images, "name": names, "by": ["Ann"] * len(files)}
        parquet.write_table(pa.table(columns), data / "x.parquet")
        data = data / "x.parquet,label=name"
    else:
        packed = {"0": cats} if form == "an archive" else {name: cats / name for name in "01"}
        for name, folder in packed.items():
            with ZipFile(data / f"{name}.zip", "w") as archive:
                for file in folder.rglob("*.png"):
                    archive.write(file, file.relative_to(cats))
    tune(tmp_path / "out", data)
    for measured in (data, data / "1.zip")[: 2 if form == "archives" else 1]:
        told: list[str] = []
        deit_zoo.evaluate(str(tmp_path / "out"), measured, say=told.append)
        count = "16 of these 20" if measured == data else "8 of these 10"
        assert told[-1].startswith(f"{count} images are those that the model learned from, so ")


@pytest.mark.parametrize(("images", "most"), [(1, 3), (120, 3), (4_000, 4), (1_281_167, 1281)])
def test_a_run_can_do_without_three_images_or_a_thousandth(images: int, most: int) -> None:
    assert most_unreadable(images) == most


def test_a_recipe_on_a_folder_keeps_its_list_too(tmp_path: Path, cats: Path) -> None:
    write(tmp_path / "parted" / "val", "01", 3)
    cats.rename(tmp_path / "parted" / "train")
    (tmp_path / "parted" / "train" / "1" / "empty.png").touch()
    told: list[str] = []
    output, data = tmp_path / "out", tmp_path / "parted"
    typed: dict[str, Any] = {"gpus": 0, "data": data, "changes": FEW, "workers": 0}
    reproduce(PICO, output=output, tell=told.append, **typed)
    assert len(told) == 2
    assert "byte for byte" in told[1]  # val/ is of the first digits too
    assert scan(output / "split.csv").train.images == 20
    (output / "split.csv").unlink()
    with pytest.raises(DataError, match=r"out has lost its split\.csv, .*; put it back"):
        reproduce(PICO, output=output, **typed)


def test_a_run_of_version_0_1_that_was_parted_by_links_goes_on(
    tmp_path: Path, cats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    tune(output, cats)
    weights = (output / "model.safetensors").read_bytes()
    for row in rows(output):
        link = output / "data" / row["split"] / Path(row["file"]).relative_to(cats)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(row["file"])
    plan = json.loads((output / "plan.json").read_text())
    del plan["val_share"], plan["listed"]
    plan["data"] = str(output / "data")
    (output / "plan.json").write_text(json.dumps(plan))
    (output / "split.csv").unlink()
    tune(output, cats)
    assert (output / "model.safetensors").read_bytes() == weights
    assert len(rows(output)) == 20


def test_photographs_that_are_in_both_splits_are_told_before_the_start_and_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, output = write(tmp_path / "pets", "01", 10), tmp_path / "run"
    before = tune(output, data)
    assert not any("byte for byte" in sentence for sentence in before)
    learned = next(row["file"] for row in rows(output) if row["split"] == "train")
    kept = next(row["file"] for row in rows(output) if row["split"] == "val")
    shutil.copy(learned, kept)
    told = tune(tmp_path / "again", data)
    assert [sentence for sentence in told if "byte for byte" in sentence] == [
        f"copies of other images, byte for byte: 1 (such as {kept} is {learned}); "
        "what is measured on an image that was learned is too good: remove one of each"
    ]
    # Whoever measures on the folder hears which of its images the run has seen.
    said: list[str] = []
    deit_zoo.evaluate(str(output), data, say=said.append)
    assert said == [
        f"16 of these 20 images are those that the model learned from, so the figures are too "
        f"good; give --data {output}/split.csv for what was kept apart"
    ]
    looked_at: set[str] = set()
    real = os.path.realpath
    monkeypatch.setattr(
        os.path, "realpath", lambda path, **how: looked_at.add(str(path)) or real(path, **how)
    )
    deit_zoo.evaluate(str(output), output / "split.csv", say=said.append)
    assert len(said) == 1
    # A look at each of a million files would take minutes.
    names = {Path(row["file"]).name for row in rows(output) if row["split"] == "val"}
    others = {row["file"] for row in rows(output) if Path(row["file"]).name not in names}
    assert others
    assert not others & looked_at


def test_a_class_of_one_image_is_trained_on_and_has_no_figure(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", "01", 6)
    write(photos, "7", 1)
    told = tune(tmp_path / "run", photos)
    remark = "no image of val shows 1 of the 3 classes (such as '7'), which are not measured"
    assert remark in told
    with (tmp_path / "run" / "results" / "classes.csv").open(newline="") as stream:
        rare = [row for row in csv.DictReader(stream) if row["class"] == "7"]
    assert [(row["val_images"], row["val_accuracy"], row["train_images"]) for row in rare] == [
        ("0", "", "1")
    ]
    split = tmp_path / "run" / "split.csv"
    assert deit_zoo.evaluate(str(tmp_path / "run"), split, say=told.append).num_images == 2
    assert told[-1] == f"{split} has 2 of the model's 3 classes, and no image of another"
