"""What is listed of tar and zip archives: that of `tarfile` and `zipfile`, or one sentence."""

from __future__ import annotations

import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest

from deit_zoo.data.archives import Members, list_members, whole_archive
from support.images import refused

FILES = {
    "a.png": b"x" * 10,
    "./dot/b.png": b"y" * 512,
    "empty.png": b"",
    "ä/ö.jpg": b"z" * 513,
    f"{'n' * 60}/{'m' * 90}.jpg": b"long",
}
LONGER = {f"{'k' * 120}.jpg": b"longer", f"{'d' * 200}/{'e' * 200}.jpg": b"longest"}


def listed(file: Path) -> Members:
    return list_members(whole_archive(file))


def pack(file: Path, files: dict[str, bytes], kind: int, mtime: float = 0) -> Path:
    with tarfile.open(file, "w", format=kind) as archive:
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            # A fraction of a second goes into a header of its own, as WebDataset writes them.
            member.size, member.mtime = len(content), mtime  # type: ignore[assignment]
            archive.addfile(member, BytesIO(content))
    return file


@pytest.mark.parametrize(
    ("kind", "files", "mtime"),
    [
        (tarfile.USTAR_FORMAT, FILES, 0),
        (tarfile.GNU_FORMAT, FILES | LONGER, 0),
        (tarfile.PAX_FORMAT, FILES | LONGER, 1.5),
    ],
)
def test_a_tar_archive_is_listed_as_the_package_lists_it(
    tmp_path: Path, kind: int, files: dict[str, bytes], mtime: float
) -> None:
    file = pack(tmp_path / "x.tar", files, kind, mtime)
    members = listed(file)
    with tarfile.open(file) as archive:
        theirs = [member for member in archive if member.isfile()]
    assert members.names == [name.removeprefix("./") for name in files]
    assert members.names == [member.name.removeprefix("./") for member in theirs]
    assert list(members.offsets) == [member.offset_data for member in theirs]
    assert list(members.lengths) == [member.size for member in theirs]
    assert members.sizes == members.lengths


def test_a_size_beyond_eight_gigabytes_is_read(tmp_path: Path) -> None:
    sizes = (9 * 2**30, 5)
    file = tmp_path / "x.tar"
    with file.open("wb") as stream:  # of holes
        for number, size in enumerate(sizes):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = size
            stream.write(member.tobuf(tarfile.GNU_FORMAT))
            stream.seek(-(-size // 512) * 512, 1)
        stream.truncate(stream.tell() + 1024)
    assert list(listed(file).lengths) == list(sizes)


def test_a_zip_archive_is_listed_where_its_bytes_begin(tmp_path: Path) -> None:
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.mkdir("folder") if hasattr(archive, "mkdir") else None
        for name, content in FILES.items():
            archive.writestr(name, content * 9)
        archive.writestr("deflated.png", b"a" * 999, zipfile.ZIP_DEFLATED)
    members, whole = listed(file), file.read_bytes()
    assert members.names == [name.removeprefix("./") for name in FILES] + ["deflated.png"]
    spans = zip(members.offsets, members.lengths, strict=True)
    stored = [whole[offset : offset + length] for offset, length in spans]
    assert stored[:-1] == [content * 9 for content in FILES.values()]
    assert list(members.deflated) == [False] * len(FILES) + [True]
    assert members.lengths[-1] < members.sizes[-1] == 999


def test_large_and_many_and_shifted_zip_archives_are_listed_as_the_package_lists_them(
    tmp_path: Path,
) -> None:
    def begin_at_5_gib(file: Path) -> None:
        with file.open("wb") as stream:  # a hole
            stream.seek(5 * 2**30)
            with zipfile.ZipFile(stream, "w") as archive:
                archive.writestr("a.png", b"a")
                archive.writestr("ä.png", b"b")

    def hold_many(file: Path) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.comment = b"hello"
            for number in range(66_000):
                archive.writestr(zipfile.ZipInfo(f"{number}.png"), b"")

    def follow_a_program(file: Path) -> None:
        hold_one = tmp_path / "one.zip"
        with zipfile.ZipFile(hold_one, "w") as archive:
            archive.writestr("a.png", b"a")
        file.write_bytes(b"#!/bin/sh\n" + hold_one.read_bytes())

    for make in (begin_at_5_gib, hold_many, follow_a_program):
        file = tmp_path / f"{make.__name__}.zip"
        make(file)
        members = listed(file)
        with zipfile.ZipFile(file) as archive:
            theirs = archive.infolist()
        assert members.names == [entry.filename for entry in theirs]
        header = 30 + len(theirs[0].filename)
        assert members.offsets[0] == theirs[0].header_offset + header
        assert list(members.sizes) == [entry.file_size for entry in theirs]


def test_letters_of_a_zip_archive_are_read_whoever_packed_it(tmp_path: Path) -> None:
    path, plain = "caf\u00e9/1.png".encode(), b"cafXX/1.png"
    info_zip = struct.pack("<HHBL", 0x7075, 5 + len(path), 1, zlib.crc32(plain)) + path
    for raw, extra in ((path, b""), (b"caf\x82_/1.png", b""), (plain, info_zip)):
        member = zipfile.ZipInfo(plain.decode())
        member.extra = extra
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr(member, b"a")
        (tmp_path / "x.zip").write_bytes((tmp_path / "x.zip").read_bytes().replace(plain, raw))
        assert listed(tmp_path / "x.zip").names == [
            "caf\u00e9_/1.png" if raw[3:5] == b"\x82_" else "caf\u00e9/1.png"
        ]


def test_progress_counts_every_file_once(tmp_path: Path) -> None:
    file = pack(tmp_path / "x.tar", {f"{n}.png": b"" for n in range(9_000)}, tarfile.USTAR_FORMAT)
    counts: list[int] = []
    list_members(whole_archive(file), counts.append)
    assert len(counts) > 1
    assert sum(counts) == 9_000


def test_an_archive_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = pack(tmp_path / "x.tar", FILES, tarfile.USTAR_FORMAT).read_bytes()
    (tmp_path / "x.zip").touch()
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    zipped = (tmp_path / "x.zip").read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for length in (0, 100, 512, 700, end - 512, end):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        assert refused(lambda: listed(tmp_path / "cut.tar")) == (
            f"{tmp_path}/cut.tar is cut off: its last member or its end is missing; get it again"
        )
    for length in (0, 100, len(zipped) - 30, len(zipped) - 1):
        (tmp_path / "cut.zip").write_bytes(zipped[:length])
        assert refused(lambda: listed(tmp_path / "cut.zip")).startswith(
            f"{tmp_path}/cut.zip cannot be read as a zip archive ("
        )


def spoil(position: int, content: bytes) -> Callable[[bytes], bytes]:
    """Other bytes at a position."""
    return lambda whole: whole[:position] + content + whole[position + len(content) :]


def continued(kind: bytes, text: bytes, size: int = 0) -> Callable[[bytes], bytes]:
    """In place of the folder's header one that says more of the image behind it."""
    header = tarfile.TarInfo("more")
    header.type, header.size = kind, size or len(text)
    return lambda whole: header.tobuf(tarfile.GNU_FORMAT) + text.ljust(512, b"\0") + whole[512:]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (spoil(0, b"?"), "x.tar is no tar archive at byte 0; get it again, or unpack it first if"),
        (spoil(512, b"?"), "x.tar is no tar archive at byte 512; "),
        (
            lambda whole: whole * 2,
            "x.tar goes on behind its end, at byte 1,024; give archives that",
        ),
        (lambda whole: b"\x1f\x8b" * 600, "x.tar is no tar archive at byte 0; "),
        # Of 3 GB they took 2.4 GB and had no end.
        (continued(b"x", b"", 3_000_000_000), "x.tar is no tar archive at byte 0; "),
        (continued(b"L", b"", 3_000_000_000), "x.tar is no tar archive at byte 0; "),
        (continued(b"x", b"29 size=99999999999999999999\n"), "x.tar is cut off: "),
        (continued(b"x", b"11 size=-5\n"), "x.tar is no tar archive at byte 523; "),
        (continued(b"x", b"99 path=b.png\n"), "x.tar is no tar archive at byte 512; "),
        (continued(b"x", b"0 path=b.png\n"), "x.tar is no tar archive at byte 512; "),
    ],
)
def test_bytes_that_are_no_archive_are_refused(
    tmp_path: Path, change: Callable[[bytes], bytes], sentence: str
) -> None:
    file = pack(tmp_path / "x.tar", {"a.png": b""}, tarfile.USTAR_FORMAT)
    file.write_bytes(change(file.read_bytes()))
    assert f"{tmp_path}/{sentence}" in refused(lambda: listed(file))


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/etc/x.png"])
def test_a_member_that_leads_out_of_its_archive_is_refused(tmp_path: Path, name: str) -> None:
    files = [pack(tmp_path / "x.tar", {name: b""}, tarfile.USTAR_FORMAT), tmp_path / "x.zip"]
    with zipfile.ZipFile(files[1], "w") as archive:
        archive.writestr(name, b"")
    for file in files:
        assert refused(lambda file=file: listed(file)) == (  # type: ignore[misc]
            f"{file} holds {name!r}, which leads out of it; give an archive of a folder"
        )


def test_an_image_that_is_a_link_is_refused_and_another_file_is_not(tmp_path: Path) -> None:
    for name in ("a.png", "notes.txt"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.LNKTYPE, "b.png"
            archive.addfile(link)
    assert listed(tmp_path / "notes.txt.tar").names == []
    assert refused(lambda: listed(tmp_path / "a.png.tar")) == (
        f"{tmp_path}/a.png.tar holds 'a.png' as a link or in pieces; pack it again with tar "
        "--dereference --hard-dereference, without --sparse"
    )


def test_an_image_that_tar_keeps_in_pieces_is_refused(tmp_path: Path) -> None:
    # As `tar --sparse --format=posix` says it: the bytes begin with a map of the pieces.
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("train/a/GNUSparseFile.7/b.png")
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "train/a/b.png"}
        archive.addfile(member)
    assert "in pieces; pack it again with tar" in refused(lambda: listed(tmp_path / "a.tar"))


def test_a_zip_archive_packed_by_another_way_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.png", b"")
    assert refused(lambda: listed(tmp_path / "x.zip")) == (
        f"{tmp_path}/x.zip holds 'a.png' packed by another way than deflate; pack it again with "
        "zip -0, as images do not become smaller"
    )


def test_an_encrypted_zip_archive_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", b"")
    whole = bytearray(file.read_bytes())
    whole[whole.index(b"PK\1\2") + 8] |= 1  # the flag in the central directory
    file.write_bytes(whole)
    assert refused(lambda: listed(file)).startswith(f"{file} holds 'a.png' encrypted; ")


def test_a_zip_archive_whose_directory_is_larger_than_itself_is_refused(tmp_path: Path) -> None:
    end = struct.pack("<4s8xLLH", b"PK\5\6", (1 << 30) + 1, 0, 0)
    (tmp_path / "x.zip").write_bytes(end)
    assert refused(lambda: listed(tmp_path / "x.zip")).startswith(
        f"{tmp_path}/x.zip cannot be read as a zip archive ("
    )


@pytest.mark.parametrize("name", ["x.tar", "x.zip"])
def test_a_pipe_is_no_archive_and_is_not_opened(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    assert refused(lambda: whole_archive(tmp_path / name)) == (
        f"{tmp_path / name} is a pipe; give an archive"
    )


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    assert refused(lambda: whole_archive(tmp_path / "x.tar")) == (
        f"{tmp_path}/x.tar cannot be read (no such file or directory); give an archive that can"
    )
