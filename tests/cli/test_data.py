"""`deit-zoo data` as a process: bad files on stdout, talk on stderr, and the exit status."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from itertools import chain, product
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from deit_zoo.data.digits import digits, write_folder
from support.command import Done, Process, deit_zoo, run_python
from support.imagenet import kit_files, write_tar
from support.images import photo, write

COMMAND = ["-m", "deit_zoo", "data"]


def data(*arguments: str | Path) -> Done:
    """Run `deit-zoo data` and return how it ended."""
    return deit_zoo("data", *arguments)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty digits to train on and ten to validate with, two and one of each class."""
    folder = tmp_path_factory.mktemp("whole")
    seen: dict[str, int] = {}
    for image, label in digits():
        number = seen[label] = seen.get(label, 0) + 1
        if number <= 3:
            class_folder = folder / ("val" if number == 3 else "train") / label
            class_folder.mkdir(parents=True, exist_ok=True)
            image.save(class_folder / f"{number}.png")
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(whole, tmp_path / "data")


def test_digits_are_written_as_an_image_folder(tmp_path: Path) -> None:
    done = data("digits", "--output", tmp_path / "digits")
    assert done == (
        0,
        "",
        f"1437 training and 360 validation images are in {tmp_path / 'digits'}\n",
    )
    assert len(list((tmp_path / "digits" / "val").rglob("*.png"))) == 360


def test_a_good_folder_exits_0_and_lists_nothing(whole: Path) -> None:
    for place in (whole, whole.as_uri()):
        assert data("check", place) == (
            0,
            "",
            "train       20 images in 10 classes (2 each)\n"
            "val         10 images in 10 classes (1 each)\n"
            "10 classes: 0, 1, 2, 3, 4, 5, 6, 7 and 2 more\n"
            "30 images read, 0 bad\n",
        )


def test_bad_files_are_listed_one_per_line_and_exit_1(folder: Path) -> None:
    (folder / "train" / "3" / "0.png").write_bytes(b"")
    (folder / "val" / "7" / "a b.jpg").write_bytes(b"not found")
    done = data("check", folder, "--workers", "2")
    assert done.status == 1
    assert done.out == (
        f"{folder}/train/3/0.png\tzero bytes\n{folder}/val/7/a b.jpg\tnot an image\n"
    )
    assert done.err.endswith("32 images read, 2 bad\n")


def test_images_of_16_bits_that_use_12_of_them_are_told(folder: Path) -> None:
    for name, most in (("a", 4095), ("b", 4000), ("c", 60000)):
        grey = Image.fromarray(np.full((8, 8), most, np.uint16))
        grey.save(folder / "train" / "3" / f"{name}.png")
    done = data("check", folder)
    assert done.status == 0
    assert done.err.splitlines()[3] == (
        "images of 16 bits that use at most 4,095 of 65,535, and so look nearly black: 2; scale "
        "them"
    )


@pytest.mark.skipif(os.name != "posix", reason="names are text here")
def test_the_name_of_a_bad_file_is_printed_byte_for_byte(folder: Path) -> None:
    name = os.fsencode(folder / "val" / "7") + b"/\xff.png"
    Path(os.fsdecode(name)).write_bytes(b"")
    done = run_python([*COMMAND, "check", folder], text=False)
    assert (done.returncode, done.stdout) == (1, name + b"\tzero bytes\n")


def test_classes_that_differ_exit_1_after_every_image_was_read(folder: Path) -> None:
    shutil.rmtree(folder / "val" / "4")
    (folder / "val" / "5" / "0.png").write_bytes(b"")
    done = data("check", folder)
    assert (done.status, done.out) == (1, f"{folder}/val/5/0.png\tzero bytes\n")
    assert done.err.splitlines()[2:] == [
        "10 classes: 0, 1, 2, 3, 4, 5, 6, 7 and 2 more",
        f"error: the classes of {folder} differ: 1 in train/ only (such as '4'); give train and "
        "val the same classes",
        "30 images read, 1 bad",
    ]


def test_json_holds_counts_and_bad_files(folder: Path) -> None:
    (folder / "train" / "3" / "0.png").write_bytes(b"")
    done = data("check", folder, "--json")
    assert done.status == 1
    printed = json.loads(done.out)
    assert printed["data"] == str(folder)
    assert printed["bad"] == [{"file": f"{folder}/train/3/0.png", "reason": "zero bytes"}]
    assert printed["problem"] is None
    assert (printed["train"]["images"], printed["train"]["classes"]["3"]) == (21, 3)
    assert (printed["val"]["name"], printed["val"]["images"]) == ("val", 10)


def test_any_data_set_is_prepared_as_a_tree(whole: Path, tmp_path: Path) -> None:
    done = data("prepare", whole, "--output", tmp_path / "a tree", "--size", "4", "--workers", "1")
    assert done == (
        0,
        "",
        "images whose short side is over 4 pixels get other pixels: what is trained or measured on "
        "them is not comparable with published figures\n"
        f"20 training and 10 validation images of 10 classes are in {tmp_path}/a tree; to decode "
        f"them all, type: deit-zoo data check '{tmp_path}/a tree'\n",
    )
    with Image.open(next((tmp_path / "a tree" / "val" / "3").iterdir())) as image:
        assert image.size == (4, 4)


def test_a_home_folder_is_filled_in_where_no_shell_does(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data("prepare", whole, "--output=~/tree").status == 0
    assert data("check", "~/tree").err.endswith("30 images read, 0 bad\n")
    assert data("digits", "--output=~/tree").err.startswith(f"error: {tmp_path}/tree exists and ")


def test_a_label_or_a_column_may_be_called_anything(whole: Path, tmp_path: Path) -> None:
    rows = ['file,"a label, 5 %",by,split']
    for number, (split, label) in enumerate(product(("train", "val"), ("a/b", "c"))):
        path = next((whole / "train" / str(number)).iterdir())
        rows.append(f"{path},{label},Ann,{split}")
    file = tmp_path / "labels.csv"
    file.write_text("\n".join(rows))
    column = ("--label-column", "a label, 5 %")
    done = data("prepare", file, "--output", tmp_path / "tree", *column)
    assert (done.status, done.out) == (0, "")
    assert done.err.startswith("a folder's name holds no slash, so some classes have another: a_b ")
    assert sorted(path.name for path in (tmp_path / "tree" / "val").iterdir()) == ["a_b", "c"]


def test_imagenets_archives_are_prepared_and_checked(tmp_path: Path) -> None:
    synsets, labels = ["n02119789", "n01440764"], ["n01440764", "n02119789", "n01440764"]
    images = [photo("red", (number, 1)) for number in (1, 2, 3)]
    inner = {f"{name}.tar": {f"{name}_1.JPEG": photo("blue")} for name in synsets}
    outer = {name: write_tar(tmp_path / name, files).read_bytes() for name, files in inner.items()}
    heap = {f"ILSVRC2012_val_{n:08}.JPEG": image for n, image in enumerate(images, start=1)}
    options = {
        "--train": write_tar(tmp_path / "ILSVRC2012_img_train.tar", outer),
        "--val": write_tar(tmp_path / "ILSVRC2012_img_val.tar", heap),
        "--devkit": write_tar(tmp_path / "kit.tar.gz", kit_files(synsets, labels), "w:gz"),
        "--output": tmp_path / "imagenet",
    }
    done = data("prepare", "imagenet", *chain(*options.items()))
    assert (done.status, done.out) == (0, "")
    assert done.err.startswith("2 training and 3 validation images of 2 classes are in ")
    assert data("check", tmp_path / "imagenet") == (
        0,
        "",
        "train       2 images in 2 classes (1 each)\n"
        "val         3 images in 2 classes (1 to 2 each)\n"
        "2 classes: n01440764, n02119789\n"
        "5 images read, 0 bad\n",
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["imagenet", "--train", "train.tar"], "--train, --val and --devkit are ImageNet's archi"),
        (["digits", "--train", "a.tar", "--val", "b.tar"], "--train, --val and --devkit are Image"),
        (["imagenet"], "there is no folder imagenet; for ImageNet's archives type"),
    ],
)
def test_imagenets_archives_come_together_or_not_at_all(
    arguments: list[str], sentence: str, tmp_path: Path
) -> None:
    done = data("prepare", *arguments, "--output", tmp_path / "tree")
    assert done.status == 2
    assert done.err.startswith(f"error: {sentence}")
    assert "type deit-zoo data prepare imagenet --train ILSVRC2012_img_train.tar --val" in done.err


def test_imagenets_archives_that_are_not_there_are_named(tmp_path: Path) -> None:
    options = ("--train", tmp_path / "train.tar", "--val", tmp_path / "val.tar")
    done = data("prepare", "imagenet", *options, "--output", tmp_path / "tree")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"error: nothing beside {tmp_path}/val.tar says what ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere does not exist; give a folder with train/ and val/"),
        ([""], "the data set is '', which names none; give a folder with train/ and val/"),
        (["hfds:nobody/nothing"], "hfds:nobody/nothing cannot be read ("),
    ],
)
def test_what_is_no_data_set_exits_2_with_one_sentence(arguments: list[str], sentence: str) -> None:
    done = data("check", *arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"error: {sentence}")
    assert done.err.count("\n") == 1


def test_no_threads_is_a_usage_error(whole: Path) -> None:
    assert data("check", whole, "--workers", "0").status == 2


def test_ctrl_c_stops_a_check_without_a_traceback(folder: Path) -> None:
    (folder / "train" / "0" / "0.png").write_bytes(b"")
    whole = next((folder / "val" / "9").iterdir())
    for number in range(20_000):
        os.link(whole, whole.with_name(f"more_{number}.png"))
    with Process(
        [*COMMAND, "check", folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == f"{folder}/train/0/0.png\tzero bytes\n"
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    assert (running.returncode, out) == (130, "")
    assert err.splitlines()[3:] == ["stopped; 1 bad image so far"]


def test_each_stage_of_loading_is_measured(tmp_path: Path) -> None:
    write_folder(tmp_path / "digits")
    command = (
        "benchmark",
        tmp_path / "digits",
        "--images",
        "64",
        "--workers",
        "1",
        "--model",
        "deit-s",
    )
    done = data(*command, "--json")
    assert (done.status, done.err) == (0, "")
    report = json.loads(done.out)
    assert [stage["processes"] for stage in report["stages"]][:5] == [1] * 5
    assert min(stage["images_per_second"] for stage in report["stages"]) > 0
    [need] = report["models"]
    assert need["model"] == "deit_small"
    assert need["cores"] >= 1


@pytest.mark.parametrize("parts", ["val alone", "class folders", "train alone", "images"])
def test_what_evaluate_and_finetune_take_is_checked_too(parts: str, folder: Path) -> None:
    place = {"class folders": folder / "val", "images": folder / "val" / "3"}.get(parts, folder)
    if parts.endswith("alone"):
        shutil.rmtree(folder / ("train" if parts == "val alone" else "val"))
    good = data("check", place)
    assert (good.status, good.out) == (0, "")
    broken = next(place.rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:80])
    done = data("check", place, "--json")
    report = json.loads(done.out)
    assert (done.status, [bad["file"] for bad in report["bad"]]) == (1, [str(broken)])
    assert done.err.endswith("read, 1 bad\n")


def test_the_column_of_the_labels_is_an_option_of_tables_alone(tmp_path: Path, whole: Path) -> None:
    names = ["blue", "red"]
    columns = {
        "fine": datasets.ClassLabel(names=names),
        "coarse": datasets.ClassLabel(names=["all"]),
    }
    image = {"bytes": photo("red"), "path": None}
    rows = [{"img": image, "fine": number % 2, "coarse": 0} for number in range(4)]
    table = datasets.Dataset.from_list(
        rows, features=datasets.Features({"img": datasets.Image(), **columns})
    )
    datasets.DatasetDict(train=table, test=table).save_to_disk(tmp_path / "saved")
    asked = data("check", f"hfds:{tmp_path / 'saved'}")
    assert asked.status == 2
    assert "has 2 label columns (fine, coarse)" in asked.err
    done = data("check", f"hfds:{tmp_path / 'saved'}", "--label-column", "fine")
    assert done.status == 0
    assert "4 images in 2 classes (2 each)" in done.err
    refused = data("check", whole, "--label-column", "fine")
    assert refused.status == 2
    assert refused.err.endswith("leave it out: its folders say which class an image is of\n")


@pytest.mark.parametrize(
    ("row", "meant"),
    [
        ("C:\\Users\\Anna\\0a1b.png", "train/0a1b.png"),
        ("other.png", "photos/1.jpg"),
    ],
)
def test_a_list_of_files_that_are_elsewhere_is_told_how_one_is_written(
    row: str, meant: str, tmp_path: Path
) -> None:
    write(tmp_path, {"train/0a1b.png": photo("red"), "train/0a1c.png": photo("red")})
    file = tmp_path / "labels.csv"
    file.write_text(f"id,breed\n{row},pug\nmissing.png,beagle\n")
    done = data("check", file)
    assert (done.status, done.out) == (2, "")
    assert f"none of the 2 files that {file} names is there, from " in done.err
    assert done.err.rstrip().endswith(f"from {tmp_path} on, with its ending, such as {meant}")
