"""Archives as sets of images: the bytes, the labels and the order of the folder that they hold."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import deit_zoo
from deit_zoo.data import archive_source
from deit_zoo.data.digits import digits
from deit_zoo.data.image_set import ImageSet, absolute, kind_of, open_set, open_unchecked
from deit_zoo.data.images import MissingSplitError
from deit_zoo.data.survey import bad_images, scan, validate
from deit_zoo.errors import DataError
from deit_zoo.evaluation.accuracy import validation_set
from deit_zoo.training.checks import check_classes
from deit_zoo.training.launch import recipe_for
from support.archives import CLASSES, FILES, FORMS, imagenet, one_tar, part, shards, stored_zip
from support.imagenet import kit_files, solution_csv, write_tar
from support.images import encoded, photo, refused, write
from support.tables import each_row


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds nothing."""
    monkeypatch.setenv("DEIT_ZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def content(images: ImageSet) -> list[tuple[bytes, int, int]]:
    """Bytes, label and length of every image."""
    return [(images.read(i), images.label_of(i), images.bytes_of(i)) for i in range(len(images))]


def reader(images: ImageSet, results: multiprocessing.Queue[list[tuple[bytes, int, int]]]) -> None:
    """What another process does."""
    results.put(content(images))


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("form", FORMS)
def test_archives_are_the_folder_of_the_same_images(tmp_path: Path, form: str, split: str) -> None:
    # Shards have keys for names: "a/7" comes after "a" where "a_7" comes before.
    flat = {name: file for name, file in FILES.items() if form != "shards" or "/a" not in name}
    folder = open_set(write(tmp_path / "folder", flat), split)
    images = open_set(FORMS[form](tmp_path, flat), split)
    assert content(images) == content(folder)
    assert images.classes == (["0", "1", "2"] if form == "shards" else CLASSES)
    assert images.open(1).tobytes() == folder.open(1).tobytes()


@pytest.mark.parametrize("form", [form for form in FORMS if form != "shards"])
def test_a_survey_of_archives_is_that_of_the_folder(tmp_path: Path, form: str) -> None:
    folder = validate(write(tmp_path / "folder", FILES))
    listed: list[int] = []
    archives = scan(FORMS[form](tmp_path, FILES), listed.append)
    assert archives.fingerprint() == folder.fingerprint()
    assert archives.lines() == folder.lines()
    # A file of both splits is listed for each of them.
    assert listed[-1] == len(FILES) * (1 if form == "tar_of_each_split" else 2)


def test_imagenets_own_archives_are_the_folder_that_they_unpack_to(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", imagenet(tmp_path / "archives"))
    for data in (tmp_path / "archives", tmp_path / "archives" / "ILSVRC2012_img_val.tar"):
        assert validate(data).fingerprint() == validate(folder).fingerprint()
        for split in ("train", "val"):
            assert content(open_set(data, split)) == content(open_set(folder, split))  # type: ignore[arg-type]
    images = open_set(tmp_path / "archives", "val")
    assert images.name_of(0) == (
        f"{tmp_path}/archives/ILSVRC2012_img_val.tar/val/n01/ILSVRC2012_val_00000003.JPEG"
    )


def test_kaggles_table_sorts_imagenets_validation_images_too(tmp_path: Path) -> None:
    imagenet(tmp_path)
    before = content(open_set(tmp_path, "val"))
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    told = refused(lambda: open_set(tmp_path, "val"))
    assert told == (
        f"{tmp_path} holds no ILSVRC2012_devkit_t12.tar.gz, which sorts the images of "
        "ILSVRC2012_img_val.tar; put it there, or Kaggle's LOC_val_solution.csv"
    )
    table = solution_csv(["n02", "n10", "n01", "n02", "n10"])
    write(tmp_path, {"LOC_val_solution.csv": table})
    assert content(open_set(tmp_path, "val")) == before


def test_an_unpacked_kit_sorts_imagenets_validation_images_and_its_changes_are_seen(
    tmp_path: Path,
) -> None:
    imagenet(tmp_path)
    before, labels = content(open_set(tmp_path, "val")), ["n02", "n10", "n01", "n02", "n10"]
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    for changed in (False, True):
        kit = kit_files(["n10", "n01", "n02"], labels[::-1] if changed else labels)
        write(tmp_path, {name: file for name, file in kit.items() if not name.endswith("/")})
        for file in (tmp_path / "ILSVRC2012_devkit_t12").rglob("*.txt"):
            os.utime(file, (int(changed), int(changed)))
        assert (content(open_set(tmp_path, "val")) != before) == changed


@pytest.mark.parametrize("form", ["stored_zip", "deflated_zip", "one_tar"])
def test_kaggles_archive_is_the_folder_that_it_unpacks_to(tmp_path: Path, form: str) -> None:
    labels = ["n02", "n10", "n01", "n02", "n10"]
    files = imagenet(tmp_path / "archives")
    root = "ILSVRC/Data/CLS-LOC"
    packed = {f"{root}/{name}": file for name, file in files.items() if "train/" in name}
    for name, file in part(files, "val").items():
        packed[f"{root}/val/{name.rpartition('/')[2]}"] = file
        annotation = name.rpartition("/")[2].replace("JPEG", "xml")
        packed[f"ILSVRC/Annotations/CLS-LOC/val/{annotation}"] = b"<annotation/>"
    packed["LOC_val_solution.csv"] = solution_csv(labels)
    folder = write(tmp_path / "folder", files)
    data = FORMS[form](tmp_path, packed)
    assert validate(data).fingerprint() == validate(folder).fingerprint()
    assert content(open_set(data, "val")) == content(open_set(folder, "val"))
    packed["LOC_val_solution.csv"] = b"ImageId,PredictionString\nimage,n01 1 2 3 4\n"
    assert refused(lambda: open_set(FORMS[form](tmp_path, packed), "val")).startswith(
        f"{data}/{'images/' * (form == 'one_tar')}LOC_val_solution.csv cannot be read as labels ("
    )


def test_labels_follow_the_classes_that_are_given(tmp_path: Path) -> None:
    given = ["n10", "n01", "n02"]
    folder = open_set(write(tmp_path / "folder", FILES), "train", given)
    images = open_set(one_tar(tmp_path, FILES), "train", given)
    assert content(images) == content(folder)
    assert images.classes == given
    assert images.name_of(0).endswith("images.tar/train/n10/10.png")


def test_numbers_as_labels_are_taken_for_the_models_classes_in_their_order(tmp_path: Path) -> None:
    data = shards(tmp_path, FILES)
    images = open_set(data, "val", CLASSES)
    assert images.classes == CLASSES
    assert images.note == (
        f"the 3 classes of {data} are numbers, which are taken in their order for the model's, "
        "from 'n01' to 'n10'"
    )
    assert open_set(data, "val", ["0", "1", "2"]).note == ""
    assert refused(lambda: open_set(data, "val", CLASSES[:2])).startswith(
        f"the labels of {data} are not the model's 2 classes: "
    )


def test_classes_that_are_numbers_may_be_those_of_a_recipe_with_folders(tmp_path: Path) -> None:
    recipe = recipe_for("deit_tiny")
    numbers = [str(number) for number in range(1000)]
    check_classes(recipe, shards(tmp_path, FILES), numbers)
    for data, classes in ((shards(tmp_path, FILES), CLASSES), (one_tar(tmp_path, FILES), CLASSES)):
        told = refused(lambda data=data, classes=classes: check_classes(recipe, data, classes))  # type: ignore[misc]
        assert told.startswith(f"{data} has 3 classes; deit_tiny is trained on the 1,000 of ")


def test_names_as_labels_are_classes_in_alphabetical_order(tmp_path: Path) -> None:
    members = {}
    for number, name in enumerate(("wolf", "ant", "wolf")):
        members |= {f"{number}.png": photo("red"), f"{number}.cls": f"{name}\n".encode()}
    data = str(write_tar(tmp_path / "train.tar", members))
    images = open_set(data, "train")
    assert images.classes == ["ant", "wolf"]
    assert [images.name_of(i) for i in range(3)] == [f"{data}/{n}.png" for n in (1, 0, 2)]


def test_other_classes_than_the_models_are_refused(tmp_path: Path) -> None:
    data = one_tar(tmp_path, FILES)
    assert refused(lambda: open_set(data, "val", ["n01", "n02", "n03"])) == (
        f"the class folders of {data} are not the model's 3 classes: 1 that are no class of the "
        "model (such as 'n10') and 1 missing (such as 'n03'); give images of each class, from "
        "'n01' to 'n03'"
    )


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_another_process_reads_the_same(tmp_path: Path, start: str) -> None:
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip("processes are not forked here")
    images = open_set(shards(tmp_path, FILES), "train")
    expected = content(images)  # and its archives are open from here on
    context = multiprocessing.get_context(start)
    results: multiprocessing.Queue[list[tuple[bytes, int, int]]] = context.Queue()
    process = context.Process(target=reader, args=(images, results))
    process.start()
    assert results.get(timeout=60) == expected
    process.join()
    assert content(images) == expected
    assert len(pickle.dumps(images)) < 3_000


def test_threads_read_at_the_same_time(tmp_path: Path) -> None:
    images = open_set(one_tar(tmp_path, FILES), "train")
    expected = [images.read(i) for i in range(len(images))]
    with ThreadPoolExecutor(8) as pool:
        numbers = list(range(len(images))) * 50
        assert list(pool.map(images.read, numbers)) == expected * 50


@each_row(("limit", "most"), [(256, 64), (1000, 250)])
def test_the_sets_of_a_run_leave_half_of_the_files_that_may_be_open(limit: int, most: int) -> None:
    code = "from deit_zoo.data.archive_set import MOST_OPEN; print(MOST_OPEN)"
    shell = ["sh", "-c", f'ulimit -n {limit} && exec "$@"', "sh", sys.executable, "-c", code]
    assert subprocess.run(shell, capture_output=True, check=True).stdout == b"%d\n" % most


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="open files are not listed here")
def test_more_archives_than_may_be_open_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deit_zoo.data.archive_set.MOST_OPEN", 0)
    images = open_set(shards(tmp_path, FILES), "train")
    before = len(os.listdir("/dev/fd"))
    assert len({read for read, _, _ in content(images)}) == len(images)
    assert len(os.listdir("/dev/fd")) == before


def test_an_index_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = one_tar(tmp_path, FILES)
    expected = content(open_set(data, "train"))

    def list_again(*_: object) -> None:
        raise RuntimeError("listed")

    monkeypatch.setattr(archive_source, "list_archives", list_again)
    assert content(open_set(data, "train")) == expected
    with pytest.raises(RuntimeError, match="listed"):
        open_set(data, "val")


def test_an_index_is_made_anew_for_another_archive_or_when_it_is_broken(
    tmp_path: Path, cache: Path
) -> None:
    data = one_tar(tmp_path, FILES)
    assert len(open_set(data, "train")) == 12
    fewer = {name: file for name, file in FILES.items() if "a/7" not in name}
    one_tar(tmp_path, fewer)
    assert len(open_set(data, "train")) == 9
    (index,) = (cache / "indexes").iterdir()
    whole = index.read_bytes()
    method = whole.index(b"PK\1\2") + 10  # of numpy's zip; 99 is none that Python has
    foreign = whole[:method] + b"\x63" + whole[method + 1 :]
    for broken in (b"", whole[:-1], whole[:200] + b"?" + whole[201:], foreign):
        index.write_bytes(broken)
        assert content(open_set(data, "train")) == content(open_set(data, "train"))
        assert index.read_bytes() == whole
    index.unlink()
    os.mkfifo(index)  # which would be waited for
    assert len(open_set(data, "train")) == 9


def test_without_a_cache_that_can_be_written_to_archives_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("DEIT_ZOO_CACHE", str(tmp_path / "file" / "cache"))
    assert len(open_set(one_tar(tmp_path, FILES), "train")) == 12


def test_an_archive_that_changes_while_it_is_read_is_told(tmp_path: Path) -> None:
    data = one_tar(tmp_path, FILES)
    images = open_set(data, "train")
    one_tar(tmp_path, FILES | {"train/n01/new.png": b""})
    assert refused(lambda: images.read(0)) == (
        f"{data} has changed since its images were listed; leave it as it is while it is read, and "
        "start again"
    )


def test_a_deflated_image_that_is_broken_is_named(tmp_path: Path) -> None:
    noise = encoded(next(iter(digits()))[0].resize((64, 64)), "BMP")
    data = FORMS["deflated_zip"](tmp_path, {"train/a/1.bmp": noise, "val/a/2.bmp": noise})
    with zipfile.ZipFile(data) as archive:
        offset = archive.getinfo("train/a/1.bmp").header_offset + 30 + len("train/a/1.bmp")
    spoiled = bytearray(Path(data).read_bytes())
    spoiled[offset] = 0xFF
    Path(data).write_bytes(spoiled)
    assert list(bad_images(open_unchecked(data, "train"), workers=1)) == [
        (f"{data}/train/a/1.bmp", "broken: Error -3 while decompressing data: invalid block type")
    ]
    assert refused(lambda: open_set(data, "train").read(0)).startswith(
        f"{data}/train/a/1.bmp cannot be read (Error -3 while decompressing data"
    )


@pytest.mark.parametrize(
    ("stated", "sentence"),
    [
        (100, "has more than its 100 bytes; get its archive again"),
        (4_000_000_000, "is of 4.0 GB, where at most 1.4 GB are read"),
    ],
)
def test_no_more_is_inflated_than_the_directory_states_and_an_image_may_have(
    stated: int, sentence: str, tmp_path: Path
) -> None:
    data = FORMS["deflated_zip"](tmp_path, {"train/a/1.png": bytes(10**6)})
    content = bytearray(Path(data).read_bytes())
    place = content.index(b"PK\1\2") + 24
    content[place : place + 4] = stated.to_bytes(4, "little")
    Path(data).write_bytes(content)
    images = open_set(data, "train")
    assert refused(lambda: images.read(0)) == f"{data}/train/a/1.png {sentence}"


LABEL = {"0.cls": b"0", "0.png": b""}


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        (
            {"1.png": b"", "2.png": b"", "2.cls": b"0"},
            "holds an image without a label, of the key '1'",
        ),
        ({"a/1.cls": b"0"}, "holds a label without an image, of the key 'a/1'"),
        ({"1.png": b"", "1.JPG": b"", "1.cls": b"0"}, "holds a second image of the key '1'"),
        ({"1.png": b"", "1.cls": b""}, "is no label; it must hold the number or the name"),
        ({"1.png": b"", "1.cls": b"\xff"}, "is no label; it must hold the number or the name"),
        ({"1.png": b"", "1.cls": b"9" * 900}, "is no label; it must hold the number or the name"),
        ({"1.png": b"", "1.cls": b"7"}, "has the label 7, of 1 images; give labels that are"),
        (
            {"1.png": b"", "1.cls": b"0", "2.png": b"", "2.cls": b"-1"},
            "has the label '-1', and others that are numbers; give labels that are all names",
        ),
    ],
)
def test_a_shard_that_does_not_label_its_images_is_refused(
    tmp_path: Path, members: dict[str, bytes], sentence: str
) -> None:
    data = write_tar(tmp_path / "train-0.tar", members)
    told = refused(lambda: open_set(data, "train"))
    assert sentence in told
    assert str(data) in told


def test_a_class_of_a_number_without_images_is_refused_unless_all_is_wanted(tmp_path: Path) -> None:
    members = {f"{n}.png": photo("red") for n in range(3)}
    members |= {f"{n}.cls": b"2" if n else b"0" for n in range(3)}
    data = write_tar(tmp_path / "train.tar", members)
    assert refused(lambda: open_set(data, "train")).startswith("1 of the 3 classes of ")
    assert len(open_unchecked(data, "train")) == 3


def test_shards_whose_splits_have_other_classes_are_refused(tmp_path: Path) -> None:
    for split, labels in (("train", b"01"), ("val", b"012")):
        members = {f"{n}.png": photo("red") for n in range(len(labels))}
        members |= {f"{n}.cls": labels[n : n + 1] for n in range(len(labels))}
        write_tar(tmp_path / f"{split}-000.tar", members)
    assert refused(lambda: validate(tmp_path)) == (
        f"the classes of {tmp_path} differ: 1 in val/ only (such as '2'); give train and val the "
        "same classes"
    )


def test_the_same_key_in_two_shards_is_two_images(tmp_path: Path) -> None:
    for number in range(2):
        members = {"0.png": photo("red", (number + 1, 1)), "0.cls": b"0"}
        write_tar(tmp_path / f"train-{number}.tar", members)
    images = open_set(tmp_path, "train")
    assert [images.name_of(i) for i in range(2)] == [
        f"{tmp_path}/train-{n}.tar/0.png" for n in (0, 1)
    ]
    assert [images.open(i).width for i in range(2)] == [1, 2]


def test_an_image_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "images.tar"
    with tarfile.open(data, "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("train/a/1.png"))
    assert refused(lambda: open_set(data, "train")) == (
        f"{data} holds a second a/1.png; give archives that hold each image once"
    )


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("x-{00..02}.tar", ["x-00.tar", "x-01.tar", "x-02.tar"]),
        ("x-{8..11}.tar", ["x-8.tar", "x-9.tar", "x-10.tar", "x-11.tar"]),
        ("{train,val}.zip", ["train.zip", "val.zip"]),
        ("{a-{0..1},b}/{c,d}.tar", [f"{a}/{b}.tar" for a in ("a-0", "a-1", "b") for b in "cd"]),
    ],
)
def test_a_pattern_is_the_names_that_a_shell_makes_of_it(
    pattern: str, names: Sequence[str]
) -> None:
    assert archive_source.expand(pattern) == names


@pytest.mark.parametrize("pattern", ["x-{00..02.tar", "x-{}.tar", "x-{0}.tar", "x-*.tar"])
def test_braces_without_a_choice_are_refused(pattern: str) -> None:
    assert refused(lambda: archive_source.expand(pattern)).startswith(f"{pattern} is no pattern; ")


def test_a_pattern_chooses_among_archives_and_misses_none(tmp_path: Path) -> None:
    data = f"{shards(tmp_path, FILES)}/x-{{train-{{000..001}},validation-000}}.tar"
    assert len(open_set(data, "train")) == 8
    assert len(open_set(data, "val")) == 4
    more = data.replace("001", "003")
    assert refused(lambda: open_set(more, "train")) == (
        f"{tmp_path}/shards/x-train-003.tar cannot be read (no such file or directory); give an "
        "archive that can"
    )


def test_shards_in_folders_of_their_splits_are_found(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        members = {"0.png": photo("red"), "0.cls": b"0"}
        write_tar(tmp_path / "shards" / split / "00000.tar", members)
    for split, folder in (("train", "train"), ("val", "validation")):
        images = open_set(tmp_path / "shards", split)  # type: ignore[arg-type]
        assert images.name_of(0) == f"{tmp_path}/shards/{folder}/00000.tar/0.png"


def test_archives_of_one_split_are_enough_to_evaluate(tmp_path: Path) -> None:
    held = [(encoded(image), int(label)) for image, label in list(digits())[-40:]]
    tree = {f"val/{label}/{n}.png": file for n, (file, label) in enumerate(held)}
    folder = write(tmp_path / "folder", tree)
    write_tar(tmp_path / "shards" / "val.tar", part(tree, "val"))
    ours, theirs = (
        deit_zoo.evaluate("deit_pico_digits", data) for data in (tmp_path / "shards", folder)
    )
    assert (ours.top1, ours.loss, ours.num_images) == (theirs.top1, theirs.loss, 40)
    assert refused(lambda: open_set(tmp_path / "shards", "train")).startswith(
        f"{tmp_path}/shards has no archive of train among its 1 (such as "
    )


def test_a_shard_whose_name_tells_no_split_is_not_in_both(tmp_path: Path) -> None:
    members = {"1.png": photo("red"), "1.cls": b"0", "2.png": photo("blue"), "2.cls": b"1"}
    write_tar(tmp_path / "000.tar", members)
    for split in ("train", "val"):
        with pytest.raises(MissingSplitError):
            open_set(tmp_path, split)  # type: ignore[arg-type]
    assert len(open_set(tmp_path, "all")) == 2
    write_tar(tmp_path / "train-000.tar", members)
    assert refused(lambda: open_set(tmp_path, "train")) == (
        f"{tmp_path}/000.tar holds WebDataset samples, and its name does not tell whether for "
        f"train or val, as that of {tmp_path}/train-000.tar does; call it so, or give the others "
        "alone"
    )


def test_archives_beside_class_folders_do_not_hide_them(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", FILES)
    for name in ("train.tar", "ILSVRC2012_img_train.tar"):
        write_tar(folder / name, {})
    assert kind_of(folder) == "folder"
    write_tar(folder / "train" / "n01" / "more.tar", {})
    assert kind_of(folder) == kind_of(folder / "train") == "folder"


def test_what_is_no_data_set_is_told_what_would_be_one(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"")
    for data in (tmp_path / "notes.txt", tmp_path / "nowhere"):
        with pytest.raises(
            DataError, match=r"(no data set|not exist); give .*\.tar.*ImageNet.*Parquet.*hfds:"
        ):
            scan(data)


def test_an_archive_packed_as_one_stream_is_refused(tmp_path: Path) -> None:
    data = write_tar(tmp_path / "train.tar.gz", part(FILES, "train"), "w:gz")
    assert refused(lambda: open_set(data, "train")) == (
        f"{data} is packed as one stream, in which no image can be reached by itself; unpack it to "
        "a .tar, such as with gunzip"
    )


def test_an_archive_without_images_of_a_split_is_refused(tmp_path: Path) -> None:
    data = stored_zip(tmp_path, {"readme.txt": b"", "train/x.png": b"", "train/a/x.png": b""})
    assert len(open_set(data, "train")) == 1
    assert refused(lambda: open_set(data, "val")).startswith(
        f"{data} holds no image of val; give archives with CLASS/x.jpg in them, or with val/CLASS/"
    )


def test_data_are_named_alike_from_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("x/{train,val}.tar") == f"{tmp_path}/x/{{train,val}}.tar"
    assert absolute("s3://bucket/x.tar") == "s3://bucket/x.tar"
    assert absolute("hfds:name") == "hfds:name"


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_what_a_mac_puts_into_an_archive_is_no_image(kind: str, tmp_path: Path) -> None:
    files = FILES | {f"__MACOSX/{name.replace('/', '/._')}": b"\0\5\x16\7" for name in FILES}
    files |= {"train/.DS_Store": b"", "train/.ipynb_checkpoints/1.png": b"", "val/n01/._1.png": b""}
    root = write(tmp_path / "set", files)
    data = shutil.make_archive(str(tmp_path / "packed"), kind, root)
    for split in ("train", "val"):
        images = open_set(data, split)
        assert (len(images), images.classes) == (12, CLASSES)
        assert images.open(0).size == open_set(root, split).open(0).size
        assert re.search(r"\d+ hidden files? or folders? (is|are) ignored in ", images.note)


@pytest.mark.parametrize("name", ["valid", "validation", "test"])
def test_an_archives_validation_images_lie_under_any_usual_name(name: str, tmp_path: Path) -> None:
    files = {path.replace("val/", f"{name}/"): file for path, file in FILES.items()}
    root = write(tmp_path / "set", files)
    data = shutil.make_archive(str(tmp_path / "packed"), "tar", root)
    assert len(open_set(data, "val")) == 12
    write(root, {f"{'val' if name == 'test' else 'train'}/n01/more.png": photo("red")})
    data = shutil.make_archive(str(tmp_path / "more"), "tar", root)
    assert len(open_set(data, "val")) == (12 if name != "test" else 1)


def test_a_zip_with_the_separators_of_windows_is_a_folder_too(tmp_path: Path) -> None:
    names = {name.replace("/", "\\"): file for name, file in FILES.items()}
    images = open_set(stored_zip(tmp_path, names), "val")
    assert (images.classes, len(images)) == (CLASSES, 12)


@pytest.mark.parametrize("name", ["", " ", "hfds:"])
def test_no_name_is_not_the_folder_in_which_one_is(name: str) -> None:
    assert refused(lambda: kind_of(name)).startswith(f"the data set is {name!r}, which names none;")


@pytest.mark.parametrize("outer", ["", "photos/", "a/b/"])
def test_an_archive_that_is_not_parted_is_measured_on(outer: str, tmp_path: Path) -> None:
    files = {f"{outer}{path}": file for path, file in part(FILES, "val").items()}
    root = write(tmp_path / "set", files | {f"{outer}.DS_Store": b"", f"{outer}read me.txt": b""})
    data = shutil.make_archive(str(tmp_path / "packed"), "zip", root)
    images, folder = validation_set(data), validation_set(root / outer)
    assert images.classes == folder.classes == CLASSES
    assert [images.read(i) for i in range(12)] == [folder.read(i) for i in range(12)]
    assert images.name_of(0) == f"{data}/n01/10.png"
