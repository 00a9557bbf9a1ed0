"""ImageNet's validation labels, from the development kit and from Kaggle's table."""

from __future__ import annotations

import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from deit_zoo.data.imagenet import KIT_BYTES, META, _kit_file, validation_labels
from deit_zoo.errors import MissingExtraError
from support.imagenet import kit_files, solution_csv, write_tar
from support.images import refused, write

# The kit's IDs are not in the order of the synsets.
SYNSETS = ["n02119789", "n01440764", "n02100735"]
LABELS = ["n01440764", "n02100735", "n02119789", "n01440764"]


def test_the_development_kit_is_read_packed_and_unpacked(tmp_path: Path) -> None:
    files = kit_files(SYNSETS, LABELS)
    packed = write_tar(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", files, "w:gz")
    unpacked = write(tmp_path / "kit", {n: f for n, f in files.items() if not n.endswith("/")})
    assert validation_labels(packed) == LABELS
    assert validation_labels(unpacked) == LABELS


def test_kaggles_table_is_read_in_the_order_of_the_images(tmp_path: Path) -> None:
    marked = b"\xef\xbb\xbf" + solution_csv(LABELS)  # as a spreadsheet saves it
    write(tmp_path, {"LOC_val_solution.csv": solution_csv(LABELS), "marked.csv": marked})
    assert validation_labels(tmp_path / "LOC_val_solution.csv") == LABELS
    assert validation_labels(tmp_path / "marked.csv") == LABELS


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("kit.tar.gz", b"not found", "file could not be opened successfully"),
        ("nowhere/kit.tar.gz", None, "no such file or directory"),
        ("labels.csv", b"ImageId,PredictionString\nimage,n01440764 1 2 3 4\n", "it has no 'ILSV"),
        ("labels.csv", b"\xff", "'utf-8' codec can't decode byte"),
        ("nowhere/labels.csv", None, "no such file or directory"),
    ],
)
def test_what_is_no_source_of_labels_is_refused(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    if content is not None:
        write(tmp_path, {name: content})
    told = refused(lambda: validation_labels(tmp_path / name))
    assert told.startswith(f"{tmp_path / name} cannot be read as ")
    assert f" ({reason}" in told
    assert "LOC_val_solution.csv" in told


@pytest.mark.parametrize("missing", ["meta.mat", "ILSVRC2012_validation_ground_truth.txt"])
def test_a_kit_without_one_of_its_files_is_refused(tmp_path: Path, missing: str) -> None:
    files = {n: f for n, f in kit_files(SYNSETS, LABELS).items() if not n.endswith(missing)}
    kit = write_tar(tmp_path / "kit.tar.gz", files, "w:gz")
    assert f"{kit} cannot be read as the development kit (no {missing} in it); " in refused(
        lambda: validation_labels(kit)
    )


def test_an_id_that_is_no_class_is_refused(tmp_path: Path) -> None:
    files = kit_files([*SYNSETS, "n00000000"], [*LABELS, "n00000000"])
    files |= {n: f for n, f in kit_files(SYNSETS, LABELS).items() if n.endswith("meta.mat")}
    kit = write_tar(tmp_path / "kit.tar.gz", files, "w:gz")
    assert "(it has no 4); " in refused(lambda: validation_labels(kit))


def test_without_scipy_the_command_that_installs_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = write_tar(tmp_path / "kit.tar.gz", kit_files(SYNSETS, LABELS), "w:gz")
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtraError) as caught:
        validation_labels(kit)
    assert str(caught.value) == (
        "meta.mat of the development kit needs scipy; type: pip install 'deit_zoo[train]'"
    )


def test_of_a_file_of_the_kit_that_unpacks_without_end_little_is_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "kit.tar.gz", "w:gz", compresslevel=1) as kit:
        member = tarfile.TarInfo(f"kit/{META}")
        member.size = KIT_BYTES + 1
        kit.addfile(member, BytesIO(bytes(member.size)))
    assert len(_kit_file(tmp_path / "kit.tar.gz", META)) == KIT_BYTES
