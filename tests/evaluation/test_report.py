"""The page of a report: figures counted by hand, pictures that can be opened, names as they are."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

import deit_zoo
from deit_zoo.data.folder import FolderSet
from deit_zoo.errors import DataError
from deit_zoo.evaluation.accuracy import EvalDataset, accumulate
from deit_zoo.evaluation.answers import Answers, answers_of, answers_to
from deit_zoo.evaluation.report import (
    check_report_folder,
    class_rows,
    confusion_rows,
    write_report,
)
from deit_zoo.evaluation.report_pictures import draw_confusion
from deit_zoo.training.finetune import finetune

PICO = "deit_pico_digits"
FILES = [
    "classes.csv",
    "confusion.csv",
    "confusion.png",
    "index.html",
    "mistakes.png",
    "predictions.csv",
]


@pytest.fixture
def images(tmp_path: Path) -> FolderSet:
    """Three cats, two dogs and a class whose name must be escaped, and is no formula."""
    for name, count in (("cat", 3), ("dog", 2), ("<fox> $x^$", 1)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (40, 30), "teal").save(tmp_path / "pets" / name / f"{number}.png")
    return FolderSet(tmp_path / "pets", ["cat", "dog", "<fox> $x^$"])


@pytest.fixture
def answers(images: FolderSet) -> Answers:
    """A cat is taken for a dog with 90 %, the fox for a cat with 60 %."""
    shares = [
        [0.8, 0.1, 0.1],
        [0.1, 0.9, 0.0],
        [0.7, 0.2, 0.1],
        [0.2, 0.7, 0.1],
        [0.1, 0.8, 0.1],
        [0.6, 0.1, 0.3],
    ]
    logits = np.log(np.clip(shares, 1e-9, None))
    kept = answers_to(logits, np.array([0, 0, 0, 1, 1, 2]))
    return Answers("val", images, images.classes, kept)


def test_a_class_has_its_recall_and_its_precision(answers: Answers) -> None:
    heading, *rows = class_rows([answers])
    assert heading == ["class", "val_images", "val_right", "val_accuracy", "val_precision"]
    assert rows == [
        ["<fox> $x^$", 1, 0, "0.00", ""],  # nothing was taken for it
        ["cat", 3, 2, "66.67", "66.67"],
        ["dog", 2, 2, "100.00", "66.67"],
    ]


def test_a_row_of_the_confusion_matrix_is_what_a_class_was_taken_for(answers: Answers) -> None:
    assert confusion_rows(answers) == [
        ["class", "cat", "dog", "<fox> $x^$"],
        ["cat", 2, 1, 0],
        ["dog", 0, 2, 0],
        ["<fox> $x^$", 1, 0, 0],
    ]


def test_the_surest_mistake_comes_first(answers: Answers) -> None:
    assert answers.mistakes == [1, 5]


def test_a_report_has_its_files_and_escapes_names(answers: Answers, tmp_path: Path) -> None:
    write_report(tmp_path / "deep" / "report", "A & B", [answers])
    folder = tmp_path / "deep" / "report"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "<h1>A &amp; B</h1>" in page
    assert "&lt;fox&gt; $x^$" in page
    assert "66.67 % right, 4 of 6 images" in page
    for name in ("confusion.png", "mistakes.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 200
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 10
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[1] == {
        "split": "val",
        "file": str(tmp_path / "pets" / "cat" / "1.png"),
        "class": "cat",
        "predicted": "dog",
        "probability": "0.900000",
        "probability_of_class": "0.100000",
        "right": "0",
    }


def test_a_folder_that_holds_other_files_is_left_alone(answers: Answers, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    check_report_folder(folder)
    write_report(folder, "pets", [answers])
    check_report_folder(folder)  # an earlier report is replaced
    (folder / "index.html").write_text("<h1>mine</h1>", encoding="utf-8")
    with pytest.raises(DataError, match=r"site holds other files \(classes.csv, "):
        check_report_folder(folder)


def test_the_predictions_are_also_parquet_with_numbers_as_numbers(
    answers: Answers, tmp_path: Path
) -> None:
    write_report(tmp_path / "report", "pets", [answers], parquet=True)
    table = parquet.read_table(tmp_path / "report" / "predictions.parquet").to_pylist()
    with (tmp_path / "report" / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["file"] for row in table] == [row["file"] for row in rows]
    assert table[1]["probability"] == pytest.approx(0.9)
    assert table[1]["right"] == 0
    write_report(tmp_path / "report", "pets", [answers])
    assert not (tmp_path / "report" / "predictions.parquet").exists()


def test_classes_that_are_numbers_are_texts_in_parquet(answers: Answers, tmp_path: Path) -> None:
    answers.classes = ["007", "7", "70"]
    write_report(tmp_path / "report", "pets", [answers], parquet=True)
    table = parquet.read_table(tmp_path / "report" / "predictions.parquet")
    assert table["class"].to_pylist() == ["007"] * 3 + ["7"] * 2 + ["70"]
    assert table["predicted"].to_pylist() == ["007", "7", "007", "7", "7", "007"]
    assert [str(kind) for kind in table.schema.types] == ["string"] * 4 + ["double"] * 2 + ["int64"]


def test_a_mistake_whose_name_is_no_utf_8_is_drawn_and_in_parquet_too(
    answers: Answers, tmp_path: Path
) -> None:
    cat = tmp_path / "pets" / "cat"
    (cat / "1.png").rename(os.fsdecode(bytes(cat) + b"/1\xe9.png"))
    answers.images = FolderSet(tmp_path / "pets", answers.classes)
    write_report(tmp_path / "report", "pets", [answers], parquet=True)
    files = parquet.read_table(tmp_path / "report" / "predictions.parquet")["file"].to_pylist()
    assert files[1] == f"{cat}/1\\xe9.png"


@pytest.mark.parametrize("label_sets", [None, [(0,), (0, 1), (), (1,), (1,), (2,)]])
def test_an_image_that_turned_bad_is_left_out(
    images: FolderSet, tmp_path: Path, label_sets: list[tuple[int, ...]] | None
) -> None:
    images.label_sets = label_sets
    (tmp_path / "pets" / "dog" / "0.png").write_bytes(b"no image")
    model = deit_zoo.create(PICO, num_classes=3)
    by_class = label_sets is not None
    dataset = EvalDataset(images, deit_zoo.transform(model), by_class=by_class, skips=True)
    sums = accumulate(model, dataset, batch_size=2, workers=0, keep=answers_to)
    write_report(tmp_path / "pets", "pets", [answers_of("val", dataset, images.classes, sums)])
    with (tmp_path / "pets" / "predictions.csv").open(newline="") as stream:
        files = [Path(row["file"]) for row in csv.DictReader(stream)]
    assert [f"{file.parent.name}/{file.stem}" for file in files] == [
        *("cat/0", "cat/1", "cat/2", "dog/1"),
        "<fox> $x^$/0",
    ]


def test_without_mistakes_there_is_no_sheet(images: FolderSet, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "mistakes.png").touch()  # of an earlier report
    labels = np.array([0, 0, 0, 1, 1, 2])
    answers = Answers("val", images, images.classes, answers_to(np.eye(3)[labels] * 9, labels))
    write_report(tmp_path / "report", "right", [answers])
    assert not (tmp_path / "report" / "mistakes.png").exists()
    assert "None in val." in (tmp_path / "report" / "index.html").read_text()


def test_a_class_called_by_a_sign_that_the_font_lacks_is_drawn_without_a_warning(
    recwarn: pytest.WarningsRecorder,
) -> None:
    draw_confusion(["\U0001f332 fir", "\u6a31"], Counter({(0, 1): 2}))
    assert [str(warning.message) for warning in recwarn] == []


def test_the_report_of_an_evaluation_has_its_figures(tmp_path: Path, digits_folder: Path) -> None:
    reached = deit_zoo.evaluate(PICO, digits_folder, report=tmp_path / "report")
    assert deit_zoo.evaluate(PICO, digits_folder) == reached
    with (tmp_path / "report" / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == reached.num_images
    assert 100 * sum(row["right"] == "1" for row in rows) / len(rows) == pytest.approx(reached.top1)
    assert [row["class"] for row in rows] == [Path(row["file"]).parent.name for row in rows]


def test_a_report_that_cannot_be_made_is_refused_at_once(
    tmp_path: Path, digits_folder: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file cannot be written \(.*\); give another --report$"):
        deit_zoo.evaluate(PICO, digits_folder, report=tmp_path / "file")


def test_several_processes_make_the_report_of_one(tmp_path: Path, digits_folder: Path) -> None:
    for name, processes in (("one", None), ("two", 2)):
        deit_zoo.evaluate(PICO, digits_folder, report=tmp_path / name, processes=processes)
    one, two = (
        {file.name: file.read_bytes() for file in (tmp_path / report).iterdir()}
        for report in ("one", "two")
    )
    assert one == two


def test_a_fine_tune_leaves_its_results_for_both_splits(
    tmp_path: Path, digits_folder: Path
) -> None:
    output = tmp_path / "run"
    finetune(PICO, data=digits_folder, output=output, changes=["epochs=1"], workers=0)
    assert set(FILES) - {"mistakes.png"} <= {path.name for path in (output / "results").iterdir()}
    with (output / "results" / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for split in ("train", "val"):
        assert sum(row["split"] == split for row in rows) == len(
            list((digits_folder / split).rglob("*.png"))
        )
    right = [row["right"] == "1" for row in rows if row["split"] == "val"]
    receipt = json.loads((output / "receipt.json").read_text())
    assert 100 * sum(right) / len(right) == pytest.approx(receipt["reached"]["top1"])
