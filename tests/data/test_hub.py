"""Data sets of the Hub: read, labelled and surveyed as a folder of the same files would be."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

import deit_zoo
from deit_zoo.data.digits import digits
from deit_zoo.data.hub import HubSet
from deit_zoo.data.image_set import open_set, open_unchecked
from deit_zoo.data.survey import bad_images, validate
from deit_zoo.errors import MissingExtraError
from deit_zoo.labels import labels
from support.images import encoded, photo, refused, write


def saved(
    output: Path,
    rows: dict[str, list[tuple[bytes | None, int | None]]],
    names: Sequence[str] = ("blue", "red"),
    columns: tuple[str, str] = ("img", "kind"),
) -> str:
    """A saved data set of splits of (file, label); returns what a person would type."""
    features = datasets.Features(
        {
            columns[0]: datasets.Image(),
            columns[1]: datasets.ClassLabel(names=list(names)),
            "id": datasets.Value("string"),
        }
    )
    splits = {
        split: datasets.Dataset.from_dict(
            {
                columns[0]: [file and {"bytes": file, "path": None} for file, _ in held],
                columns[1]: [label for _, label in held],
                "id": [str(number) for number in range(len(held))],
            },
            features=features,
        )
        for split, held in rows.items()
    }
    datasets.DatasetDict(splits).save_to_disk(output)
    return f"hfds:{output}"


TRAIN = [(photo("blue"), 0), (photo("red"), 1), (photo("red"), 1)]
VAL = [(photo("red"), 1), (photo("blue"), 0)]


@pytest.fixture(autouse=True)
def no_bars() -> None:
    """Saving shows a bar otherwise."""
    datasets.disable_progress_bars()


@pytest.fixture
def hub(tmp_path: Path) -> str:
    return saved(tmp_path / "hub", {"train": TRAIN, "validation": VAL})


def test_a_data_set_of_the_hub_is_read_by_the_types_of_its_columns(hub: str) -> None:
    images = open_set(hub, "val")
    assert (len(images), images.classes, images.note) == (2, ["blue", "red"], "")
    assert [images.label_of(i) for i in range(2)] == [1, 0]
    assert (images.open(0).mode, images.open(0).getpixel((0, 0))) == ("RGB", (255, 0, 0))
    assert images.name_of(1) == f"{hub}[validation][1]"


def test_a_survey_of_a_data_set_of_the_hub_says_which_split_validates(hub: str) -> None:
    found = validate(hub)
    assert found.lines() == [
        ("train", "3 images in 2 classes (1 to 2 each)"),
        ("validation", "2 images in 2 classes (1 each)"),
    ]
    assert found.fingerprint()["val"]["split"] == "validation"
    assert (found.train.images, found.val.images) == (3, 2)


@pytest.mark.parametrize(
    ("splits", "chosen"),
    [
        (("test", "val", "validation"), "validation"),
        (("test", "val"), "val"),
        (("test", "extra"), "test"),
    ],
)
def test_the_first_split_that_may_validate_is_taken(
    tmp_path: Path, splits: tuple[str, ...], chosen: str
) -> None:
    data = saved(tmp_path / "hub", {"train": TRAIN} | dict.fromkeys(splits, VAL))
    assert open_set(data, "val").name_of(0) == f"{data}[{chosen}][0]"


def test_a_fingerprint_does_not_depend_on_the_place_but_on_the_images(tmp_path: Path) -> None:
    smaller = [(photo("blue", (3, 2)), 0), *TRAIN[1:]]
    relabelled = [*TRAIN[:2], (photo("red"), 0)]
    found = [
        validate(saved(tmp_path / str(number), {"train": rows, "test": VAL})).fingerprint()["train"]
        for number, rows in enumerate((TRAIN, TRAIN, smaller, relabelled))
    ]
    assert found[0] == found[1]
    assert len({one["sample_sha256"] for one in found}) == 3


def test_a_rotated_photograph_is_read_alike_from_a_folder_and_from_the_hub(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encoded(Image.effect_noise((8, 4), 50).convert("RGB"), "JPEG", exif=exif)
    write(tmp_path, {"val/blue/1.jpg": file, "val/red/2.jpg": file})
    data = saved(tmp_path / "hub", {"train": TRAIN, "val": [(file, 0)]})
    ours, theirs = open_set(tmp_path, "val").open(0), open_set(data, "val").open(0)
    assert ours.size == theirs.size == (4, 8)
    assert ours.tobytes() == theirs.tobytes()


def test_a_model_is_evaluated_alike_on_a_folder_and_on_the_hub(tmp_path: Path) -> None:
    held = [(encoded(image), int(label)) for image, label in list(digits())[-40:]]
    write(tmp_path, {f"val/{label}/{n}.png": file for n, (file, label) in enumerate(held)})
    data = saved(tmp_path / "hub", {"validation": held}, [str(digit) for digit in range(10)])
    ours, theirs = (deit_zoo.evaluate("deit_pico_digits", where) for where in (str(tmp_path), data))
    assert ours.num_images == theirs.num_images == 40
    assert (ours.top1, ours.loss) == pytest.approx((theirs.top1, theirs.loss), rel=1e-6)


def test_a_row_is_read_as_its_file_from_any_piece_of_the_table(tmp_path: Path) -> None:
    files = [photo("red", (width, 2)) for width in range(1, 6)]
    (tmp_path / "beside.png").write_bytes(files[4])
    parts = [
        datasets.Dataset.from_dict(
            {"image": rows, "label": [0] * len(rows)},
            features=datasets.Features(
                {"image": datasets.Image(), "label": datasets.ClassLabel(names=["red"])}
            ),
        )
        for rows in (
            [{"bytes": file, "path": None} for file in files[:2]],
            [{"bytes": file, "path": None} for file in files[2:4]],
            [{"bytes": None, "path": str(tmp_path / "beside.png")}],
        )
    ]
    rows = datasets.concatenate_datasets(parts)
    datasets.DatasetDict({"train": rows, "val": rows}).save_to_disk(tmp_path / "hub")
    images = open_set(f"hfds:{tmp_path / 'hub'}", "train")
    assert [images.read(index) for index in (4, 0, 3, 1, 2)] == [files[i] for i in (4, 0, 3, 1, 2)]


def test_a_row_that_names_a_file_is_read_from_it_and_named_where_the_file_is_gone(
    tmp_path: Path,
) -> None:
    file = photo("blue")
    write(tmp_path / "photos", {f"train/{name}.png": file for name in ("blue/1", "red/2")})
    images = open_set(f"hfds:{tmp_path / 'photos'}", "train")
    assert (images.read(0), images.bytes_of(0)) == (file, len(file))
    (tmp_path / "photos/train/blue/1.png").unlink()
    assert refused(lambda: images.bytes_of(0)) == (
        f"{images.name_of(0)} does not exist; give an image file, a folder or a URL"
    )


def test_the_images_of_a_set_that_was_read_do_not_travel_with_it(tmp_path: Path) -> None:
    file = encoded(Image.new("RGB", (300, 300)), "BMP")
    data = saved(tmp_path / "hub", {"train": [(file, 0), (file, 1)], "val": VAL})
    images = open_set(data, "train")
    assert len(images.read(1)) > 100_000
    sent = pickle.dumps(images)
    assert len(sent) < 50_000
    assert pickle.loads(sent).read(1) == file


def test_bad_rows_of_the_hub_are_named(tmp_path: Path) -> None:
    rows = [(b"not found", 0), (None, 1), (photo("red"), 1)]
    data = saved(tmp_path / "hub", {"train": TRAIN, "val": rows})
    assert list(bad_images(open_unchecked(data, "val"), workers=2)) == [
        (f"{data}[val][0]", "not an image"),
        (f"{data}[val][1]", "zero bytes"),
    ]
    assert refused(lambda: open_set(data, "val").open(0)).startswith(
        f"{data}[val][0] cannot be read as an image (its format is not known); "
    )


def test_the_same_class_names_in_another_order_are_mapped(hub: str) -> None:
    images = open_set(hub, "train", ["red", "blue"])
    assert [images.label_of(i) for i in range(3)] == [1, 0, 0]
    assert (images.classes, images.note) == (["red", "blue"], "")


def test_other_class_names_are_taken_in_their_order_and_that_is_said(hub: str) -> None:
    images = open_set(hub, "train", ["blue", "rot"])
    assert [images.label_of(i) for i in range(3)] == [0, 1, 1]
    assert images.note == (
        f"the 2 classes of {hub} are taken in their order for the model's: their number is the "
        "same, and 1 of their names"
    )


def imagenet(tmp_path: Path, names: Sequence[str]) -> str:
    rows = [(photo("red"), 0), (photo("red"), 999)]
    return saved(tmp_path / "imagenet", {"train": rows, "validation": rows}, names)


def words() -> list[str]:
    """ImageNet's class names in words; the second crane is renamed, for names must differ."""
    found = [label.name for label in labels("imagenet1k")]
    found[517] = "construction crane"
    return found


def test_imagenets_classes_are_known_by_their_words(tmp_path: Path) -> None:
    folders = [label.folder for label in labels("imagenet1k")]
    data = imagenet(tmp_path, words())
    images = open_set(data, "val", folders)
    assert [images.label_of(i) for i in range(2)] == [0, 999]
    assert images.note.endswith("their number is the same, and 999 of their names")


def test_imagenets_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    folders = [label.folder for label in labels("imagenet1k")]
    names = words()
    names[:2] = names[1::-1]
    data = imagenet(tmp_path, names)
    assert refused(lambda: open_set(data, "val", folders)) == (
        f"2 classes of {data} stand at other places than the model's (such as 'goldfish, Carassius "
        "auratus'); give a data set whose classes are in the model's order"
    )


def test_another_number_of_classes_is_refused(hub: str) -> None:
    assert refused(lambda: open_set(hub, "train", ["a", "b", "c"])) == (
        f"{hub} has 2 classes and the model 3; give a data set of the model's classes, from 'a' to "
        "'c'"
    )


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    data = saved(tmp_path / "hub", {"train": TRAIN})
    assert refused(lambda: validate(data)) == (
        f"{data} has no split validation or val or valid or test (it has train); give a "
        "data set with one to train on and one to validate with"
    )


def test_a_data_set_without_an_image_column_is_refused(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"text": ["a"]}, features=features)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "texts")
    data = f"hfds:{tmp_path / 'texts'}"
    assert refused(lambda: validate(data)) == (
        f"{data} has no image column among text; it must have one of images, and one of classes, "
        "of whole numbers from 0, or of names"
    )


@pytest.fixture
def many(tmp_path: Path) -> str:
    """A data set with two columns of images, two of classes, and a number."""
    kind = datasets.ClassLabel(names=["a", "b"])
    features = {"left": datasets.Image(), "right": datasets.Image(), "fine": kind, "coarse": kind}
    held = {
        "left": [{"bytes": photo("red"), "path": None}] * 2,
        "right": [{"bytes": photo("blue"), "path": None}] * 2,
        "fine": [0, 1],
        "coarse": [1, 0],
        "id": [1, 0],
        "size": [7, 300],
    }
    features |= {"id": datasets.Value("int32"), "size": datasets.Value("int32")}
    rows = datasets.Dataset.from_dict(held, features=datasets.Features(features))
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "many")
    return f"hfds:{tmp_path / 'many'}"


def test_where_columns_are_not_clear_what_to_type_is_said(many: str) -> None:
    assert refused(lambda: validate(many)) == (
        f"{many} has 2 image columns (left, right); say which by typing {many},image=left"
    )
    assert refused(lambda: validate(f"{many},image=right")) == (
        f"{many},image=right has 2 label columns (fine, coarse); say which by typing "
        f"{many},image=right,label=fine"
    )
    assert refused(lambda: validate(f"{many},label=middle,image=left")) == (
        f"{many},label=middle,image=left has no label column 'middle'; give one of fine, coarse, "
        "id, size"
    )


def test_the_address_chooses_columns(many: str) -> None:
    images = open_set(f"{many},label=coarse,image=right", "train")
    assert [images.label_of(index) for index in range(2)] == [1, 0]
    assert images.open(0).getpixel((0, 0)) == (0, 0, 255)
    numbered = open_set(f"{many},label=id,image=left", "train")
    assert [numbered.label_of(index) for index in range(2)] == [1, 0]
    assert numbered.classes == ["0", "1"]
    sizes = f"{many},label=size,image=left"
    assert refused(lambda: open_set(sizes, "train")) == (
        f"{sizes}[train] has the label 300 and 2 images; give labels that number classes from 0"
    )


def test_whole_numbers_are_labels_where_no_column_has_classes(tmp_path: Path) -> None:
    held = {"image": [{"bytes": photo("red"), "path": None}] * 2, "label": [1, 0]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict(held, features=features)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "numbers")
    data = f"hfds:{tmp_path / 'numbers'}"
    images = open_set(data, "train", ["cat", "dog", "owl"])
    assert ([images.label_of(i) for i in range(2)], images.classes[2]) == ([1, 0], "owl")
    assert images.note == (
        f"the 3 classes of {data} are taken in their order for the model's: their number is the "
        "same, and 0 of their names"
    )
    assert validate(data).train.classes == {"0": 1, "1": 1}
    assert refused(lambda: open_set(data, "train", ["cat"])).startswith(
        f"{data} has 2 classes and the model 1; "
    )


def test_a_folder_that_is_called_as_a_format_is_read_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    for name, colour in (("parquet", "blue"), ("other", "red")):
        held = {"image": [{"bytes": photo(colour), "path": None}], "label": [0]}
        rows = datasets.Dataset.from_dict(held, features=features)
        for split in ("train", "test"):
            rows.to_parquet(tmp_path / name / f"{split}.parquet")
    monkeypatch.chdir(tmp_path)
    for images in (HubSet("hfds:parquet", "train"), open_set("hfds:parquet", "train")):
        assert (len(images), images.open(0).getpixel((0, 0))) == (1, (0, 0, 255))
    (tmp_path / "parquet").rename(tmp_path / "blue")
    assert refused(lambda: open_set("hfds:parquet", "train")).startswith(
        "hfds:parquet is a file format and no data set, and there is no folder of that name; "
    )


@pytest.mark.parametrize("label", [None, -1])
def test_images_without_labels_are_refused(tmp_path: Path, label: int | None) -> None:
    data = saved(tmp_path / "hub", {"train": TRAIN, "test": [*VAL, (photo("red"), label)]})
    assert refused(lambda: validate(data)) == (
        f"1 of the 3 images of {data}[test] have no label; give a data set whose every image has "
        "one"
    )


def test_classes_of_the_hub_without_images_are_refused(tmp_path: Path) -> None:
    data = saved(tmp_path / "hub", {"train": TRAIN, "test": VAL[:1]})
    assert refused(lambda: validate(data)).startswith(
        f"1 of the 2 classes of {data}/test has no image (such as 'blue')"
    )


def test_a_data_set_that_is_not_there_is_one_sentence() -> None:
    told = refused(lambda: validate("hfds:nobody/nothing"))
    assert told.startswith("hfds:nobody/nothing cannot be read (")
    assert told.endswith("); give hfds: and a data set of the Hub, or the folder of a saved one")


def test_without_the_extra_the_command_that_installs_it_is_said(
    hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError) as caught:
        validate(hub)
    assert str(caught.value) == f"{hub} needs datasets; type: pip install 'deit_zoo[hfds]'"


def test_a_set_of_the_hub_travels_to_another_process(hub: str) -> None:
    images = pickle.loads(pickle.dumps(open_set(hub, "train")))
    assert images.open(2).getpixel((0, 0)) == (255, 0, 0)


def test_the_configuration_and_the_revision_of_a_name_are_those_that_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    held = datasets.load_from_disk(
        saved(tmp_path, {"train": TRAIN, "test": VAL}).removeprefix("hfds:")
    )

    def load(name: str, config: str | None, *, revision: str | None) -> Any:
        asked.append((name, config, revision))
        return held

    monkeypatch.setattr(datasets, "load_dataset", load)
    for words in ("org/pets", "org/pets:small", "org/pets@v1", "org/pets:small@refs/convert"):
        assert len(open_set(f"hfds:{words},label=kind", "train")) == len(TRAIN)
    assert asked == [
        ("org/pets", None, None),
        ("org/pets", "small", None),
        ("org/pets", None, "v1"),
        ("org/pets", "small", "refs/convert"),
    ]


def test_a_folder_has_configurations_too_and_a_saved_set_has_none(tmp_path: Path) -> None:
    lines = ["---", "configs:"]
    for config, kinds in (("two", ("cat", "dog")), ("three", ("cat", "dog", "fox"))):
        lines += [f"- config_name: {config}", f"  data_dir: {config}"]
        for split in ("train", "validation"):
            for kind in kinds:
                file = tmp_path / "pets" / config / split / kind / "1.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(encoded(Image.new("RGB", (4, 4))))
    (tmp_path / "pets" / "README.md").write_text("\n".join([*lines, "---", ""]))
    for config, count in (("two", 2), ("three", 3)):
        assert len(open_set(f"hfds:{tmp_path / 'pets'}:{config}", "train")) == count
    data = saved(tmp_path / "saved", {"train": TRAIN, "test": VAL})
    assert refused(lambda: open_set(f"{data}:two", "train")) == (
        f"{data}:two is a saved data set, which has no configuration; type {data}"
    )
