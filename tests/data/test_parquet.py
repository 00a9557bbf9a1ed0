"""Parquet files, read where they lie as the package `datasets` reads them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

import deit_zoo
from deit_zoo.data.digits import digits
from deit_zoo.data.hub import HubSet
from deit_zoo.data.image_set import open_set, open_unchecked
from deit_zoo.data.parquet import ParquetSet
from deit_zoo.data.split import check_split
from deit_zoo.data.survey import bad_images, inspect, validate
from deit_zoo.errors import DataError
from support.images import encoded, photo, refused

FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": ["blue", "red"], "_type": "ClassLabel"},
}
TRAIN = [("blue", 0), ("red", 1), ("red", 1)]
VAL = [("red", 1), ("blue", 0)]


def table(rows: list[tuple[str, int]], features: dict[str, Any] | None = FEATURES) -> pa.Table:
    """Rows as the Hub has them, with what it says of the columns."""
    images = [{"bytes": photo(colour), "path": f"{colour}.png"} for colour, _ in rows]
    columns = {
        "image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "label": pa.array([label for _, label in rows], pa.int64()),
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if features else None
    return pa.table(columns).replace_schema_metadata(metadata)


def write_parquet(file: Path, rows: pa.Table, **options: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(rows, file, **options)


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A folder as it is downloaded from the Hub: two files to train on, one to validate with."""
    root = tmp_path / "hub"
    write_parquet(root / "data" / "train-00000-of-00002.parquet", table(TRAIN[:2]))
    write_parquet(root / "data" / "train-00001-of-00002.parquet", table(TRAIN[2:]))
    write_parquet(root / "data" / "validation-00000-of-00001.parquet", table(VAL), row_group_size=1)
    return root


@pytest.mark.parametrize(
    "said",
    [
        "[" * 100_000,
        "[]",
        '{"info": 5}',
        '{"info": {"features": [1]}}',
        '{"info": {"features": {"label": {"_type": "ClassLabel", "names": [1, null]}}}}',
        "\udcff",
    ],
)
def test_what_a_file_says_of_its_columns_may_be_anything(said: str, hub: Path) -> None:
    told = said.encode("utf-8", "surrogateescape")
    for file in (hub / "data").iterdir():
        rows = parquet.read_table(file).replace_schema_metadata({"huggingface": told})
        parquet.write_table(rows, file)
    assert "cannot be read as Parquet (what the Hub says of it is " in refused(
        lambda: open_set(hub, "train")
    )


def test_images_are_read_from_every_file_and_row_group(hub: Path) -> None:
    train, val = open_set(hub, "train"), open_set(hub, "val")
    assert [(train.label_of(i), train.read(i)) for i in range(3)] == [
        (label, photo(colour)) for colour, label in TRAIN
    ]
    assert [val.open(index).getpixel((0, 0)) for index in (1, 0, 1)] == [
        (0, 0, 255),
        (255, 0, 0),
        (0, 0, 255),
    ]
    assert (val.classes, val.name_of(1)) == (["blue", "red"], f"{hub}[validation][1]")


def test_the_package_reads_the_same(hub: Path) -> None:
    datasets.disable_progress_bars()
    for split in ("train", "val"):
        ours, theirs = ParquetSet(str(hub), split), HubSet(f"hfds:{hub}", split)
        assert (ours.identity(), ours.classes) == (theirs.identity(), theirs.classes)
    assert validate(f"hfds:{hub}").fingerprint() == validate(hub).fingerprint()


def test_a_set_goes_to_another_process(hub: Path) -> None:
    images = open_set(hub, "val")
    images.read(0)
    assert pickle.loads(pickle.dumps(images)).read(1) == photo("blue")


@pytest.mark.parametrize(
    "names",
    [
        ("train.parquet", "test.parquet"),
        ("train/0000.parquet", "validation/0000.parquet"),
        ("data/train-a.parquet", "data/val-a.parquet"),
    ],
)
def test_the_names_of_the_hubs_files_are_known(tmp_path: Path, names: tuple[str, str]) -> None:
    for name, rows in zip(names, (TRAIN, VAL), strict=True):
        write_parquet(tmp_path / "hub" / name, table(rows))
    found = validate(tmp_path / "hub")
    assert (found.train.images, found.val.images) == (3, 2)
    check_split(tmp_path / "hub")


def test_without_the_hubs_word_columns_are_known_by_their_types(tmp_path: Path) -> None:
    plain = pa.table({"photo": [photo("red")], "kind": pa.array([0], pa.int8()), "name": ["a"]})
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", plain)
    images = open_set(tmp_path, "val")
    assert (images.read(0), images.classes) == (photo("red"), ["0"])


def test_a_column_of_names_that_is_called_label_is_that_of_the_labels(tmp_path: Path) -> None:
    names = ["red", "blue", "red"]
    columns = {"image": [photo(name) for name in names], "id": [0, 1, 2]}
    columns |= {"label": names, "by": ["Ann", "Bob", "Ann"]}
    write_parquet(tmp_path / "photos.parquet", pa.table(columns))
    images = open_set(tmp_path / "photos.parquet", "all")
    assert [images.classes[images.label_of(n)] for n in range(3)] == names
    assert open_set(f"{tmp_path / 'photos.parquet'},label=by", "all").classes == ["Ann", "Bob"]
    images = open_set(f"{tmp_path / 'photos.parquet'},label=id", "all")
    assert [images.label_of(n) for n in range(3)] == [0, 1, 2]


def test_columns_are_chosen_by_the_address(tmp_path: Path) -> None:
    rows = table(TRAIN, None).append_column("coarse", pa.array([0, 0, 1]))
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", rows)
    assert refused(lambda: validate(tmp_path)) == (
        f"{tmp_path} has 2 label columns (label, coarse); say which by typing "
        f"{tmp_path},label=label"
    )
    images = open_set(f"{tmp_path},label=coarse", "train")
    assert [images.label_of(index) for index in range(3)] == [0, 0, 1]


@pytest.fixture(scope="module")
def files() -> list[bytes | None]:
    """Files of some blocks of Snappy and of a part of one, alike ones, an empty one and none."""
    draw = Random(0)
    sizes = [70_000, 200, 65_536, 65_532, 131_072, 1, 300_000, 40_000, 40_000, 9]
    found: list[bytes | None] = [draw.randbytes(size) for size in sizes]
    return [*found, b"a" * 100_000, b"", None, found[0], None, found[1]]


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"write_batch_size": 2}])
@pytest.mark.parametrize("compression", ["none", "snappy"])
@pytest.mark.parametrize("rows", [100, 5])
def test_each_image_is_read_by_itself_from_the_pages_of_any_writer(
    tmp_path: Path, files: list[bytes | None], rows: int, compression: str, options: dict[str, Any]
) -> None:
    images = [{"bytes": file, "path": None} for file in files]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"image": pa.array(images, kind), "label": [0] * len(files)}
    options = {"compression": compression, "data_page_size": 1000} | options
    write_parquet(tmp_path / "train.parquet", pa.table(columns), row_group_size=rows, **options)
    found = ParquetSet(str(tmp_path), "train")
    order = Random(1).sample(range(len(files)), len(files))
    assert [found.read(index) for index in order] == [files[index] or b"" for index in order]
    assert [found.bytes_of(index) for index in order] == [len(files[i] or b"") for i in order]
    assert found.note == ""


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_a_dictionary_may_have_any_order_and_be_left_in_the_middle(
    tmp_path: Path, compression: str
) -> None:
    # As pandas writes a category: each row group has the whole dictionary. Beyond a page of it
    # (small here) the values themselves follow; what repeats is written as a run.
    draw = Random(2)
    choice = [draw.randbytes(draw.choice([1, 30, 70_000])) for _ in range(300)]
    rows = [*range(0, 300, 7), *[5] * 40, None, *draw.sample(range(300), 200), None, *[0] * 9]
    images = pa.DictionaryArray.from_arrays(pa.array(rows, pa.int32()), choice)
    plain = pa.array([None if row is None else choice[row] for row in rows])
    for name, array in (("category", images), ("plain", plain)):
        write_parquet(
            tmp_path / name / "train.parquet",
            pa.table({"image": array, "label": [0] * len(rows)}),
            row_group_size=120,
            compression=compression,
            dictionary_pagesize_limit=500_000,
            store_schema=False,
        )
        found = ParquetSet(str(tmp_path / name), "train")
        assert [found.read(index) for index in range(len(rows))] == [
            one or b"" for one in plain.to_pylist()
        ]
        assert found.note == ""  # none was read by its row group


@pytest.mark.parametrize("options", [{"compression": "zstd"}, {"data_page_version": "2.0"}])
def test_images_in_pages_of_another_kind_are_read_by_row_groups(
    hub: Path, options: dict[str, Any]
) -> None:
    write_parquet(hub / "data" / "train-00001-of-00002.parquet", table(TRAIN[2:]), **options)
    images = open_set(hub, "train")
    assert [images.read(index) for index in (2, 0, 1)] == [
        photo(colour) for colour in ("red", "blue", "red")
    ]
    assert open_set(hub, "val").note == ""
    # PNGs of one colour have some 70 bytes.
    assert images.note == (
        f"an image of {hub} in random order costs reading its row group, of up to 0.0 MB; where "
        f"that is slow, type: deit-zoo data prepare {hub} --output DIR"
    )


def test_an_index_is_made_once_and_again_for_other_files(hub: Path) -> None:
    found: list[int] = []
    for _ in range(2):
        ParquetSet(str(hub), "train", progress=found.append)
        assert sorted(found) == [1, 2]
    write_parquet(hub / "data" / "train-00001-of-00002.parquet", table(TRAIN[1:]))
    images = ParquetSet(str(hub), "train", progress=found.append)
    assert (len(images), sum(found)) == (4, 3 + 4)


def test_a_file_that_changes_while_it_is_read_is_named(hub: Path) -> None:
    images = open_set(hub, "val")
    file = hub / "data" / "validation-00000-of-00001.parquet"
    write_parquet(file, table([*VAL, *VAL]))
    assert refused(lambda: images.read(0)).startswith(f"{file} has changed since its images were ")


def test_rows_without_an_image_are_bad(tmp_path: Path) -> None:
    rows = table(VAL).set_column(0, "image", pa.nulls(2, table(VAL).schema.field("image").type))
    write_parquet(tmp_path / "val.parquet", rows)
    images = open_unchecked(tmp_path, "val")
    assert next(bad_images(images, workers=1)) == (f"{tmp_path}[val][0]", "zero bytes")


def test_images_of_a_broken_part_of_a_file_are_bad_and_no_others(hub: Path) -> None:
    file = hub / "data" / "validation-00000-of-00001.parquet"
    content = bytearray(file.read_bytes())
    content[4:24] = bytes(20)  # the header of the first page, of the first of two row groups
    file.write_bytes(content)
    [(name, reason)] = bad_images(open_unchecked(hub, "val"), workers=1)
    assert name == f"{hub}[validation][0]"
    assert reason.startswith("broken: ")


def test_a_table_without_a_row_holds_no_image(tmp_path: Path) -> None:
    file = tmp_path / "photos.parquet"
    write_parquet(file, table(TRAIN, features=None).slice(0, 0))
    told = f"{file} holds no image; give image files such as x.jpg, x.png, x.tif or x.heic"
    assert inspect(file)[1] == told


def test_a_file_that_is_no_parquet_is_named(hub: Path) -> None:
    file = hub / "data" / "train-00001-of-00002.parquet"
    file.write_bytes(b"not found")
    assert refused(lambda: open_set(hub, "train")).startswith(f"{file} cannot be read as Parquet (")


def test_files_of_one_split_only_are_refused(hub: Path) -> None:
    (hub / "data" / "validation-00000-of-00001.parquet").unlink()
    assert refused(lambda: validate(hub)) == (
        f"{hub} has no Parquet file of validation or val or valid or test; give a folder with "
        "train-*.parquet and validation-*.parquet in it, or in its data/"
    )


def test_labels_of_a_table_are_read_as_those_of_a_csv(tmp_path: Path) -> None:
    file, images = tmp_path / "x.parquet", [{"bytes": b"a", "path": None}] * 3

    def label(*values: object, **columns: list[str]) -> ParquetSet:
        rows = {"image": images, "label": list(values), **columns}
        write_parquet(file, pa.table(rows))
        return ParquetSet(str(file), "all")

    assert label(" cat", "cat", "caf\u00e9 ").classes == ["caf\u00e9", "cat"]
    counted = label(2, 1, 3)
    assert (counted.classes, counted.label_of(0)) == (["1", "2", "3"], 1)
    assert ParquetSet(str(file), "all", list("0123")).label_of(0) == 2
    assert ParquetSet(str(file), "all", list("wxyz")).label_of(0) == 2  # whose first no image has
    assert ParquetSet(str(file), "all", list("xyz")).label_of(0) == 1
    assert label("a", "b", "a", split=["x", "y", "z"]).classes == ["a", "b"]
    with pytest.raises(DataError, match="has the label 3,000,000,000 and 3 images"):
        label(3_000_000_000, 2, 3)
    with pytest.raises(DataError, match="has a column split, which is read of a CSV alone; write"):
        label("a", "b", "a", split=["train", "val", "val"])


@pytest.mark.parametrize(
    ("labels", "shown", "said"),
    [
        ("abcdefghij", "124", "FILE has 3 of the model's 10 classes, and no image of another"),
        (range(10), "9", ""),  # fewer images than the largest label
        (range(1, 11), "0358", ""),
        (range(1, 11), "39", ""),  # without the first class
    ],
)
def test_a_table_of_some_of_the_models_classes_is_measured(
    labels: Sequence[Any], shown: str, said: str, tmp_path: Path
) -> None:
    chosen = [(image, digit) for image, digit in list(digits())[:20] if digit in shown]
    rows: dict[str, list[Any]] = {"label": [labels[int(digit)] for _, digit in chosen]}
    images = [{"bytes": encoded(image), "path": None} for image, _ in chosen]
    write_parquet(tmp_path / "x.parquet", pa.table(rows | {"image": images}))
    model, told = deit_zoo.create("deit_pico_digits", pretrained=True), []
    model.labels = tuple(map(str, labels))
    reached = deit_zoo.evaluate(model, tmp_path / "x.parquet", say=told.append)
    assert (reached.num_images, reached.top1) == (2 * len(shown), 100.0)
    assert told == ([said.replace("FILE", f"{tmp_path}/x.parquet")] if said else [])
