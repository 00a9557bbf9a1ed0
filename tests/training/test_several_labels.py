"""Images with several labels: a CSV names them, each class is learned and judged by itself."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

import deit_zoo
from deit_zoo.data.digits import digits
from deit_zoo.data.image_list import check_there, read_split
from deit_zoo.data.image_set import open_set
from deit_zoo.data.label_file import read_labels
from deit_zoo.data.prepare import write_tree
from deit_zoo.data.split import list_images
from deit_zoo.data.survey import class_remarks, inspect, scan, validate
from deit_zoo.errors import DataError, RecipeError, ZooError
from deit_zoo.evaluation.accuracy import (
    EvalDataset,
    accumulate,
    average_precision,
    evaluation_of,
)
from deit_zoo.training.finetune import finetune
from deit_zoo.training.launch import reproduce
from support.accuracy import accuracy
from support.images import refused
from support.tables import each_row

PICO = "deit_pico_digits"
TAGS = {"big": "56789", "even": "02468", "round": "0689"}


def listed(file: Path, *rows: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 digits in one heap, and which of three things each is: some are none of them."""
    folder = tmp_path_factory.mktemp("tagged")
    rows = ["file,tags"]
    for number, (image, label) in enumerate(list(digits())[:240]):
        image.save(folder / f"{number}.png")
        tags = [tag for tag, of in TAGS.items() if label in of]
        rows.append(f"{number}.png,{'|'.join(tags)}")
    return listed(folder / "labels.csv", *rows)


@pytest.fixture(scope="module")
def run(tagged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "tags"
    finetune(PICO, data=tagged, val_share=0.25, output=output, changes=["epochs=6"], workers=0)
    return output


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


# The file of labels.


FORMS = {
    "one column": ("file,tags", "a.png,cat|dog", "b.png,", "c.png,dog"),
    "semicolons": ("image,tags", "a.png,cat; dog", "b.png,", "c.png, dog"),
    "a column of each class": ("file,cat,dog", "a.png,1,1", "b.png,0,0", "c.png,0,1"),
    "a row of each label": ("file,tag", "a.png,cat", "b.png,", "a.png,dog", "c.png,dog"),
    "semicolons between columns": ("file;tags", "a.png;cat|dog", "b.png;", "c.png;dog"),
    "tabs, in folders of Windows": ("file\ttags", ".\\a.png\tcat;dog", "b.png\t", "c.png\tdog"),
    "the delimiter that Excel names": (
        "sep=;",
        "file;tags",
        "a.png;cat|dog",
        "b.png;",
        "c.png;dog",
    ),
    "labels before names of images": ("tags,photo", "cat|dog,a.png", ",b.png", "dog,c.png"),
    "a column of nothing": ("file,tags,notes", "a.png,cat|dog,", "b.png,,", "c.png,dog,"),
    "blanks, and rows that a spreadsheet leaves": (
        "file, tags ",
        'a.png, "cat;dog"',
        "b.png,",
        "",
        " , ",
        "c.png ,dog",
        ",,",
    ),
    "empty columns": ("file,tags,,", "a.png,cat|dog,,", "b.png,,,", "c.png,dog,,"),
    "labels first": ("tags,File", "cat|dog,a.png", ",b.png", "dog,c.png"),
    "a comma in a heading": ("file;tags, all", "a.png;cat|dog", "b.png;", "c.png;dog"),
    "a file by three names": (
        "file,tag",
        "a.png,cat",
        "b.png,",
        "FOLDER/c.png,dog",
        "FOLDER/a.png,dog",
        "../FOLDER/c.png,dog",
    ),
    "True and False of pandas, by the files": (
        ",cat,dog",
        "a.png,True,True",
        "b.png,False,False",
        "c.png,False,True",
    ),
    "an index of pandas": (",file,tags", "0,./a.png,cat|dog", "1,b.png,", "2,c.png,dog"),
    "other columns": ("file,by,tags", "a.png,Ann,cat|dog", "b.png,Ann,", "c.png,Bob,dog"),
}


@each_row("form", FORMS)
def test_a_file_of_labels_says_the_same_in_every_form(form: str, tmp_path: Path) -> None:
    rows = (row.replace("../FOLDER", f"../{tmp_path.name}") for row in FORMS[form])
    file = listed(tmp_path / "labels.csv", *(row.replace("FOLDER", str(tmp_path)) for row in rows))
    images = read_labels(f"{file},label=tags" if form == "other columns" else file)
    assert images.several
    assert [(image.path, images.labels_of(image)) for image in images.images] == [
        ("a.png", ["cat", "dog"]),
        ("b.png", []),
        ("c.png", ["dog"]),
    ]


def test_a_file_as_excel_saves_it_is_read(tmp_path: Path) -> None:
    rows = "file\tlabel\r\nö.png\tkatze\r\nb.png\thund\r\n"
    for name, encoding in (("wide.tsv", "utf-16"), ("marked.csv", "utf-8-sig")):
        (tmp_path / name).write_bytes(rows.encode(encoding))
        images = open_set(tmp_path / name, "all")
        assert [images.name_of(n) for n in range(2)] == [f"{tmp_path}/b.png", f"{tmp_path}/ö.png"]
        assert images.classes == ["hund", "katze"]


def test_a_file_is_found_in_whichever_form_its_letters_are_written(tmp_path: Path) -> None:
    forms = [normalize(form, "b\u00e4r.png") for form in ("NFC", "NFD")]
    for listed_as, lies_as in (forms, forms[::-1]):
        folder = tmp_path / str(len(lies_as))
        file = listed(folder / "labels.csv", "file,label", f"sub\\{listed_as},bear")
        (folder / "sub").mkdir()
        (folder / "sub" / lies_as).write_bytes(b"bear")
        assert open_set(file, "all").read(0) == b"bear"
    (tmp_path / "1252.csv").write_bytes("file;label\nb\u00e4r.png;bear\n".encode("cp1252"))
    assert refused(lambda: check_there(read_labels(tmp_path / "1252.csv"))) == (
        f"the name of a file in {tmp_path}/1252.csv is not UTF-8 ('b\\udce4r.png'); save it as CSV "
        "UTF-8"
    )


@each_row(
    ("labels", "longest"),
    [
        (("cat", "dog", "cat, dog"), "cat, dog"),
        (("clear road", "clear road water", "road", "water road"), "clear road water"),
        (("[]", "['cat']", "['dog']", "['cat', 'dog']"), "['cat', 'dog']"),
        (("red fox", "grey fox", "red wolf", "grey wolf", "blue fox", "blue wolf"), None),
        (("+", "-", "C", "C++", "[x]"), None),
    ],
)
def test_labels_that_may_be_several_in_one_are_told(
    labels: tuple[str, ...], longest: str | None, tmp_path: Path
) -> None:
    rows = [f'{number}.png,"{label}"' for number, label in enumerate(labels)]
    file = listed(tmp_path / "labels.csv", "file,label", *rows)
    told = f"labels of {file} may be several in one ({longest!r}): put | between such"
    assert read_labels(file).ignored == (told if longest else "")


def test_each_label_of_two_images_is_in_both_splits(tmp_path: Path) -> None:
    rows = [f"{n}.png,{'|'.join(filter(None, ('all', f'rare{n // 2}')))}" for n in range(12)]
    file = listed(tmp_path / "labels.csv", "file,tags", *rows, "12.png,all|single", "13.png,")
    for share in (0.05, 0.5, 0.95):
        images = list_images(file, share)
        assert len(images.images) == 14
        for split in ("train", "val"):
            labels = {label for image in images.of(split) for label in images.labels_of(image)}
            assert {"all", *(f"rare{n}" for n in range(6))} <= labels


UNREAD = ("a.png,1,0,0,train", "b.png,0,1,0,val")


@pytest.mark.parametrize(("last", "several"), [("0,1", False), ("0,0", True), ("1,1", True)])
def test_columns_of_marks_are_several_labels_where_a_row_has_not_one(
    last: str, several: bool, tmp_path: Path
) -> None:
    file = listed(
        tmp_path / "labels.csv", "file,cat,dog", "a.png,1,0", "b.png,0,1", f"c.png,{last}"
    )
    assert read_labels(file).several == several
    unread = listed(tmp_path / "split.csv", "file,cat,dog,cow,split", *UNREAD, f"c.png,{last},0,x")
    images = read_labels(unread)
    assert not images.several
    assert f"classes of {unread} that no image has: cow" in images.ignored


def test_a_class_that_few_images_or_none_show_stops_no_training(tmp_path: Path) -> None:
    rows = [f"{n}.png,{n % 2},{n % 3 // 2},{int(n == 3)},0" for n in range(12)]
    file = listed(tmp_path / "labels.csv", "file,odd,third,rare,none", *rows)
    images = list_images(file, 0.25)
    survey = validate(str(file), images=images)
    assert [counts["rare"] for counts in (survey.train.classes, survey.val.classes)] == [1, 0]
    assert class_remarks(survey.train, survey.val) == [
        "4 classes: none, odd, rare, third",
        "no image of train shows 1 of the 4 classes (such as 'none'), which are not learned",
        "no image of val shows 2 of the 4 classes (such as 'none'), which are not measured",
    ]
    split = listed(tmp_path / "split.csv", images.to_bytes().decode().rstrip())
    assert read_split(split, images.root) == images
    assert open_set(split, "val").classes == ["none", "odd", "rare", "third"]


@each_row(
    ("form", "message"),
    [
        ("labels", "the label in row 3 of DATA/labels.csv is not UTF-8 ('K\\udce4se'); save it as"),
        (
            "heading",
            "the label in row 2 of DATA/labels.csv is not UTF-8 ('K\\udce4se'); save it as",
        ),
        ("folder", "the name of a class folder of DATA/val is not UTF-8 ('K\\udce4se'); rename it"),
    ],
)
def test_a_label_that_is_not_utf_8_is_refused_where_it_is_read(
    form: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "labels.csv"
    if form == "folder":
        (tmp_path / "val" / os.fsdecode(b"K\xe4se")).mkdir(parents=True)
    elif form == "labels":
        file.write_bytes(b"file;label\na.png;dog\nb.png;K\xe4se\n")
    else:
        file.write_bytes(b"file;K\xe4se;Brot\na.png;1;0\n")
    data = tmp_path / "val" if form == "folder" else file
    assert message.replace("DATA", str(tmp_path)) in refused(lambda: inspect(data))


def test_classes_that_look_alike_are_told_and_one_label_in_two_forms_is_one_class(
    tmp_path: Path,
) -> None:
    labels = ["Cat", "cat", "big cat", "big\u00a0 cat", "caf\u00e9", "cafe\u0301", "dog"]
    rows = [f"{n}.png,{label}" for n, label in enumerate(labels)]
    [split] = inspect(listed(tmp_path / "labels.csv", "file,label", *rows))[0].values()
    assert len(split.classes) == 6
    alike = "classes that differ in case, blanks or the form of letters alone: "
    assert class_remarks(split)[1:] == [f"{alike}'Cat', 'cat'", f"{alike}'big cat', 'big\\xa0 cat'"]
    whole = ("file,label", "a.png,1", "b.png,1.0", "c.png,0")
    assert read_labels(listed(tmp_path / "whole.csv", *whole)).classes == ["0", "1"]


def test_a_part_alone_is_measured_and_not_trained_on(tmp_path: Path) -> None:
    rows = [f"{n}.png,{'ab'[n % 2]}" for n in range(4)]
    for splits, count in ((["test"] * 4, 4), (["val", "val", "test", "test"], 2)):
        lines = [f"{row},{split}" for row, split in zip(rows, splits, strict=True)]
        file = listed(tmp_path / "labels.csv", "file,label,split", *lines)
        assert len(open_set(file, "val")) == count
        assert list(inspect(file)[0]) == ["val"]
        with pytest.raises(DataError, match="says no train; it must say train and val"):
            list_images(file)


def test_a_file_with_one_label_for_each_image_is_as_class_folders(
    tmp_path: Path, digits_folder: Path
) -> None:
    files = [
        path
        for split in ("train", "val")
        for path in sorted((digits_folder / split).rglob("*.png"))
    ]
    chosen = [path for path in files if path.parent.name in "37"]
    rows = [f"{path},{path.parent.name},{path.parent.parent.name}" for path in chosen]
    file = listed(tmp_path / "labels.csv", "file,digit,split", *rows)
    for split in ("train", "val"):
        images = open_set(f"{file},label=digit", split)  # type: ignore[arg-type]
        assert images.label_sets is None
        assert images.classes == ["3", "7"]
        assert [images.name_of(n) for n in range(len(images))] == [
            str(path) for path in chosen if path.parent.parent.name == split
        ]


@each_row(
    ("rows", "message"),
    [
        (
            ("file,age", "a.png,31", "b.png,52"),
            "column 'age' of FILE holds numbers such as 31, and",
        ),
        (
            ("a.png,cat", "b.png,dog"),
            "the first row of FILE is an image, a.png, and should name the",
        ),
        (("file,tag,tag", "a.png,cat,dog"), "two columns of FILE have one name; its first row is"),
        (("file,score", "a.png,0.5"), "column 'score' of FILE holds numbers such as 0.5, and"),
        (("file,x,y", "a.png,3,4", "b.png,5,6"), "column 'x' of FILE holds numbers such as 3, and"),
        (("file,by,tags", "a.png,Ann,cat"), "which holds the labels by typing --label-column by"),
        (("file", "a.png"), "FILE names no images with labels"),
        (("file,split", "a.png,train"), "FILE names no images with labels"),
        (("file,tags", "a.png,cat,dog"), "row 2 of FILE has not the 2 columns of the first"),
        (("file,tag,split", "a.png,cat,0"), "column split of FILE says 0; it must say train and"),
        (("file,label,fold", "a.png,1,1", "b.png,0,0"), "by typing --label-column label"),
        (("file,age,sort", "a.png,80.5,nv", "b.png,,mel"), "by typing --label-column sort"),
        (("file,target,is_valid", "a.png,1,True", "b.png,0,"), "by typing --label-column target"),
        (("file;mm", "a.png;0,5", "b.png;NA", "c.png;1 024,25"), "column 'mm' of FILE holds numb"),
        (("file,share", "a.png,5%", "b.png,7.5 %"), "column 'share' of FILE holds numbers such as"),
        (
            ("file,tag,Split", "a.png,cat,train", "b.png,cat,Valid", "FOLDER/a.png,cat,val"),
            "FILE puts a.png in train and in val; leave one",
        ),
        (("file,age", "a.png,31", "b.png,"), "column 'age' of FILE holds numbers such as 31, and"),
        (("file,tag", "a.png,cat", "", ",dog"), "row 4 of FILE names no file"),
        (("file,tag,", "a.png,cat,dog"), "a column of FILE has no name; its first row is"),
        ((",file", "cat,a.png"), "a column of FILE has no name; its first row is"),
        (("file,Tag,tag", "a.png,cat,dog"), "two columns of FILE have one name; its first row is"),
        (("file,tag", 'a.png,"cat', "b.png,dog"), "(unexpected end of data); it must have a file"),
        (("file,tag", "a\0.png,cat"), "(it is no text: it holds a zero byte); it must have a file"),
    ],
)
def test_what_is_no_file_of_labels_is_refused_in_a_sentence(
    rows: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    rows = tuple(row.replace("FOLDER", str(tmp_path)) for row in rows)
    file = listed(tmp_path / "labels.csv", *rows)
    told = refused(lambda: read_labels(file))
    assert message.replace("FILE", str(file)) in told


def test_which_column_is_meant_is_said_for_the_shell_and_for_python(tmp_path: Path) -> None:
    file = listed(tmp_path / "labels.csv", "file,by,tags", "a.png,1,cat", "b.png,1,dog")
    assert refused(lambda: read_labels(file)).endswith(
        f"by typing --label-column by (in Python as {file},label=by)"
    )
    file = listed(tmp_path / "ages.csv", 'file,"age, 5 %"', "a.png,31", "b.png,7")
    told = refused(lambda: read_labels(file))
    assert (address := f"{file},label=age%2C 5 %25") in told
    assert read_labels(address).classes == ["31", "7"]


def test_what_a_file_of_labels_has_that_is_not_read_is_told(tmp_path: Path) -> None:
    rows = ("a.png,cat,Ann,train", "b.png,cat,Ann, Valid", "c.png,dog,Bob,TEST", "d.png,dog,Bob,")
    more = ("e.png,dog,Bob,val", "f.png,,Bob,train", "g.png,dog,Bob,test", "h.png,cat|dog,Bob,val")
    file = listed(tmp_path / "labels.csv", "file,tag,by,Split", *rows, *more)
    images = read_labels(f"{file},label=tag")
    assert [(image.path, image.split) for image in images.images] == [
        ("a.png", "train"),
        ("b.png", "val"),
        ("e.png", "val"),
        ("f.png", "train"),
        ("h.png", "val"),
    ]
    assert images.ignored == (
        f"rows of {file} left out, whose split is 'test': 4, 8; rows of {file} left out, whose "
        f"split is '': 5; columns of {file} not read: by; images of {file} with no label or "
        "several: 2 of 5, first f.png"
    )
    assert scan(f"{file},label=tag").lines()[0][1].endswith(f" each); {images.ignored}")
    with pytest.raises(DataError, match="has no column 'photo'; give one of file, tag, by, Split"):
        read_labels(f"{file},image=photo,label=tag")
    test_alone = listed(tmp_path / "two.csv", "file,tag,split", "a.png,x,train", "b.png,x,test")
    assert [image.split for image in read_labels(test_alone).images] == ["train", "val"]


# What is measured.


def test_average_precision_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        scores = generator.integers(0, 6, 30) / 6  # many are equal
        present = generator.random(30) < 0.3
        present[0] = True
        expected = average_precision_score(present, scores)
        assert average_precision(scores, present) == pytest.approx(expected, abs=1e-12)
    assert average_precision(scores, np.zeros(30, dtype=bool)) is None


def test_an_image_that_is_skipped_is_in_no_figure(tagged: Path, run: Path, tmp_path: Path) -> None:
    rows = [f"{tagged.parent / row}" for row in tagged.read_text().splitlines()[1:61]]
    (tmp_path / "broken.png").touch()
    figures = []
    for extra in ([], ["broken.png,big"]):
        file = listed(tmp_path / "labels.csv", "file,tags", *rows, *extra)
        model = deit_zoo.create(checkpoint=run)
        images = EvalDataset(
            open_set(file, "all"), deit_zoo.transform(model), by_class=True, skips=True
        )
        found = accuracy(model, images, batch_size=16, workers=0)
        figures.append((found.mean_ap, found.loss, found.num_images - found.num_unjudged))
    assert figures[0] == pytest.approx(figures[1])


def test_where_no_image_with_a_label_can_be_read_there_is_no_mean(tmp_path: Path) -> None:
    for number, (image, _) in enumerate(list(digits())[:3]):
        image.save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").touch()
    rows = (*(f"{number}.png," for number in range(3)), "broken.png,big|even|round")
    images = open_set(listed(tmp_path / "labels.csv", "file,tags", *rows), "all")
    model = deit_zoo.create(PICO, num_classes=3)
    dataset = EvalDataset(images, deit_zoo.transform(model), by_class=True, skips=True)
    assert refused(lambda: accuracy(model, dataset, batch_size=4, workers=0)) == (
        "no image that can be read has a label; mend those that have"
    )


def test_more_processes_than_batches_measure_what_one_measures(run: Path, tagged: Path) -> None:
    model = deit_zoo.create(checkpoint=run)
    images = EvalDataset(
        open_set(tagged, "all"), deit_zoo.transform(model), by_class=True, skips=True
    )
    shards = [
        accumulate(model, images, batch_size=256, workers=0, shard=(rank, 2)) for rank in range(2)
    ]
    together = evaluation_of(shards[0] + shards[1], images)
    assert together == accuracy(model, images, batch_size=256, workers=0)


@pytest.mark.parametrize("tags", [["big", "even", "round"], ["big", "even"], ["even", ""]])
def test_a_model_of_several_labels_judges_each_class_whatever_the_table_looks_like(
    tags: list[str], run: Path, tagged: Path, tmp_path: Path
) -> None:
    # Every image has one label, its last, or in the last case none.
    rows = [row.replace(",", "|").split("|") for row in tagged.read_text().splitlines()[1:]]
    chosen = [(file, labels[-1]) for file, *labels in rows if labels[-1] in tags]
    lines = [f"{tagged.parent / file},{tag}" for file, tag in chosen]
    data, told = listed(tmp_path / "labels.csv", "file,label", *lines), []
    model = deit_zoo.create(checkpoint=run)
    reached = deit_zoo.evaluate(model, data, say=told.append)
    answers = deit_zoo.classify([tagged.parent / file for file, _ in chosen], model)
    shares = [{one.label: one.probability for one in answer} for answer in answers]
    losses, precisions = [], []
    for name in TAGS:
        right, scores = [tag == name for _, tag in chosen], [share[name] for share in shares]
        losses += [-np.log(s if is_it else 1 - s) for s, is_it in zip(scores, right, strict=True)]
        if any(right):
            precisions.append(average_precision_score(right, scores))
    assert reached.num_images == len(chosen)
    assert reached.mean_ap == pytest.approx(100 * np.mean(precisions), abs=0.1)
    assert reached.loss == pytest.approx(np.mean(losses), abs=1e-3)
    there = len(set(tags) - {""})
    part = f"{data} has {there} of the model's 3 classes, and no image of another"
    of_classes = [sentence for sentence in told if "the model learned from" not in sentence]
    assert [sentence.startswith(part) for sentence in of_classes] == [True] * (there < 3)


def test_a_model_of_one_label_is_measured_by_cross_entropy_whatever_the_table_looks_like(
    tagged: Path, tmp_path: Path
) -> None:
    labels = [label for _, label in list(digits())[:40]]
    rows = [f"{tagged.parent}/{n}.png,{label}" for n, label in enumerate(labels)]
    told: list[str] = []
    whole = listed(tmp_path / "whole.csv", "file,label", *rows)
    blank = listed(tmp_path / "blank.csv", "file,label", *rows, f"{tagged.parent}/41.png,")
    twice = listed(tmp_path / "twice.csv", "file,label", *rows, f"{tagged.parent}/0.png,9")
    columns = ",".join(map(str, range(10)))
    marks = (",".join(str(int(digit == label)) for digit in "0123456789") for label in labels)
    lines = (f"{tagged.parent}/{n}.png,{row}" for n, row in enumerate(marks))
    one_hot = listed(tmp_path / "hot.csv", f"file,{columns}", *lines)
    expected = deit_zoo.evaluate(PICO, whole)
    assert expected.mean_ap is None
    assert deit_zoo.evaluate(PICO, blank, say=told.append) == expected
    assert told == [f"rows of {blank} left out, which have no label: 42"]
    assert deit_zoo.evaluate(PICO, one_hot) == expected
    reached = deit_zoo.evaluate(PICO, twice, say=told.append)
    assert (reached.num_images, reached.top1, reached.mean_ap) == (40, expected.top1, None)
    assert reached.loss <= expected.loss  # either answer is right
    with pytest.raises(ZooError, match=r"those of .*twice\.csv may have several; leave out"):
        deit_zoo.evaluate(PICO, twice, report=tmp_path / "report", say=told.append)


# A run, and what it leaves.


def test_each_class_is_learned_and_the_best_epoch_is_that_of_the_highest_mean(run: Path) -> None:
    receipt = json.loads((run / "receipt.json").read_text())
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert receipt["reached"]["mean_ap"] > 60  # 47 where nothing is learned: a half, a half and 0.4
    assert receipt["reached"]["mean_ap"] == pytest.approx(max(row["val_mean_ap"] for row in log))
    assert receipt["plan"]["recipe"]["loss"] == "binary_cross_entropy"
    assert receipt["verdict"].startswith("no verdict: mean average precision ")


def test_the_results_are_of_each_class_with_every_probability(run: Path) -> None:
    classes = {row["class"]: row for row in rows_of(run / "results" / "classes.csv")}
    assert sorted(classes) == sorted(TAGS)
    predictions = [
        row for row in rows_of(run / "results" / "predictions.csv") if row["split"] == "val"
    ]
    for name, row in classes.items():
        present = [name in one["labels"].split("|") for one in predictions]
        shares = [float(one[name]) for one in predictions]
        expected = 100 * average_precision_score(present, shares)
        assert float(row["val_average_precision"]) == pytest.approx(expected, abs=0.02)
        assert int(row["val_images"]) == sum(present)
    assert not (run / "results" / "confusion.png").exists()
    assert "mean average precision" in (run / "results" / "index.html").read_text()


def test_the_model_says_of_each_class_how_sure_it_is(run: Path, tagged: Path) -> None:
    row = rows_of(run / "results" / "predictions.csv")[0]
    for model in (str(run), deit_zoo.optimize(str(run), dtype="float32", compile=False)):
        [answers] = deit_zoo.classify([row["file"]], model)
        assert isinstance(answers, list)
        for answer in answers:
            assert answer.probability == pytest.approx(float(row[answer.label]), abs=1e-4)


def test_an_evaluation_finds_the_figures_of_the_run_in_one_process_and_in_two(run: Path) -> None:
    reached = json.loads((run / "receipt.json").read_text())["reached"]
    found = [deit_zoo.evaluate(str(run), run / "split.csv", processes=n) for n in (None, 2)]
    assert found[0] == found[1]
    assert found[0].mean_ap == pytest.approx(reached["mean_ap"])
    assert found[0].num_images == reached["num_images"] == 60


def test_a_model_that_is_saved_again_still_gives_several(run: Path, tmp_path: Path) -> None:
    deit_zoo.save(deit_zoo.create(checkpoint=run), tmp_path / "again.safetensors")
    again = deit_zoo.create(checkpoint=tmp_path / "again.safetensors")
    assert again.problem_type == "multi_label_classification"
    other = deit_zoo.create(checkpoint=run, num_classes=2)
    assert other.problem_type is None


def test_other_labels_are_other_data(run: Path, tagged: Path, tmp_path: Path) -> None:
    rows = tagged.read_text().splitlines()
    number, row = next((n, row) for n, row in enumerate(rows) if row.endswith(",even|round"))
    tagged.write_text("\n".join([*rows[:number], row.replace("even|", ""), *rows[number + 1 :]]))
    try:
        with pytest.raises(DataError, match=r"png was even\|round and is round"):
            finetune(PICO, data=tagged, val_share=0.25, output=run, changes=["epochs=6"], workers=0)
    finally:
        tagged.write_text("\n".join(rows) + "\n")


@each_row(
    ("change", "value"),
    [("mixup=0.2", "0.0"), ("class_weights=balanced", "none"), ("sampling=balanced", "uniform")],
)
def test_what_is_for_one_label_is_refused(
    change: str, value: str, tagged: Path, tmp_path: Path
) -> None:
    field = change.partition("=")[0]
    with pytest.raises(RecipeError, match=f"type --set {field}={value}$"):
        finetune(
            PICO, data=tagged, val_share=0.2, output=tmp_path / "run", changes=[change], workers=0
        )


def test_a_list_that_is_not_parted_is_not_trained_on_without_a_share(
    tagged: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"output": tmp_path / "run", "workers": 0}
    with pytest.raises(DataError, match=r"type --val-share 0\.2 to keep a fifth apart, or give"):
        finetune(PICO, data=tagged, **options)


def test_what_has_one_class_for_each_image_refuses_several(tagged: Path, tmp_path: Path) -> None:
    rows = tagged.read_text().splitlines()
    splits_of = [*["train"] * 3, "val"] * 60
    lines = [
        f"{tagged.parent / row},{split}" for row, split in zip(rows[1:], splits_of, strict=True)
    ]
    file = listed(tmp_path / "labels.csv", "file,tags,split", *lines)
    with pytest.raises(RecipeError, match="may have several labels, and the recipe"):
        reproduce(PICO, data=file, output=tmp_path / "run", changes=["data=folder"], workers=0)
    splits = {split: open_set(file, split) for split in ("train", "val")}  # type: ignore[arg-type]
    with pytest.raises(DataError, match="a tree of class folders has one class for each image"):
        write_tree(splits, tmp_path / "tree", workers=1)
