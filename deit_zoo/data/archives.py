"""What lies in tar and zip archives, and where: headers are read, and none of the images.

An archive that is not whole, or a member that leads out of it, is a DataError.
"""

from __future__ import annotations

import os
import re
import struct
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from deit_zoo.data.folder import is_image
from deit_zoo.data.image_file import open_regular
from deit_zoo.errors import DataError, reason_of

BLOCK = 512
# Read at a time around a header: the members of a WebDataset sample lie close together.
WINDOW = 4096
# Behind its end a tar archive is filled up with zeros, of GNU tar to 10 KiB unless told otherwise.
MOST_PADDING = 1 << 20
MOST_HEADER = 1 << 20  # of one that continues another, such as a long name
MEMBERS_PER_CALL = 4096
# Of a member of a zip archive.
_LOCAL_HEADER = struct.Struct("<4s22xHH")
STORED_OR_DEFLATED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED, UTF8 = 1 << 0, 1 << 11
UNICODE_PATH = 0x7075  # an extra field
_PAX_RECORD, _SIZE = re.compile(rb"(\d{1,7}) ([^=]+)="), re.compile(rb"\d{1,20}")
_SEEKING = Lock()


class Archive(NamedTuple):
    """An archive's file, or the part of one that is a tar archive itself."""

    path: Path
    start: int
    end: int


class Members(NamedTuple):
    """The files in an archive: where their bytes are, and how many they are when inflated."""

    names: list[str]
    offsets: array[int]
    lengths: array[int]
    sizes: array[int]
    deflated: bytearray


class _Member(NamedTuple):
    name: str
    offset: int
    length: int
    size: int
    deflated: bool = False


def read_at(descriptor: int, length: int, offset: int) -> bytes:
    """So many bytes of an open file, fewer at its end; nobody else's place in it is moved."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, length, offset)
    with _SEEKING:  # Windows
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, length)


def inflate(content: bytes, size: int) -> bytes:
    """A deflated member; a byte more than its size, where it has more. Raises zlib.error."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = stream.decompress(content, size + 1)
    if len(inflated) <= size and not stream.eof:
        raise zlib.error("it is cut off")
    return inflated


@contextmanager
def open_descriptor(path: Path) -> Iterator[int]:
    """A regular file's descriptor. Raises DataError where it cannot be opened or read."""
    try:
        descriptor = open_regular(path, "an archive")
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({reason_of(error)}); give an archive that can"
        ) from error


def whole_archive(path: Path) -> Archive:
    """An archive's file from its first byte to its last."""
    with open_descriptor(path) as descriptor:
        return Archive(path, 0, os.fstat(descriptor).st_size)


def list_members(archive: Archive, progress: Callable[[int], None] = lambda count: None) -> Members:
    """The files in an archive, in its order. `progress` gets how many are new."""
    members = Members([], array("Q"), array("Q"), array("Q"), bytearray())
    of_kind = _zip_members if archive.path.suffix.lower() == ".zip" else _tar_members
    for name, offset, length, size, deflated in of_kind(archive):
        # Nothing is ever written by these names; but an archive that has them is no data set.
        if name.startswith("/") or (".." in name and ".." in name.split("/")):
            raise DataError(
                f"{archive.path} holds {name!r}, which leads out of it; give an archive of a folder"
            )
        members.names.append(name.removeprefix("./"))
        members.offsets.append(offset)
        members.lengths.append(length)
        members.sizes.append(size)
        members.deflated.append(deflated)
        if len(members.names) % MEMBERS_PER_CALL == 0:
            progress(MEMBERS_PER_CALL)
    progress(len(members.names) % MEMBERS_PER_CALL)
    return members


def _tar_members(archive: Archive) -> Iterator[_Member]:
    """By hand: the package `tarfile` takes five times as long, and holds every header."""
    path, position, end = archive
    long_name: bytes | None = None
    long_size: int | None = None
    in_pieces = False
    with open_descriptor(path) as descriptor, open(descriptor, "rb", WINDOW, closefd=False) as file:
        while True:
            file.seek(position)
            header = file.read(min(BLOCK, end - position))
            if len(header) < BLOCK:
                raise _not_whole(path)
            if header.count(0) == BLOCK:
                return _check_padding(descriptor, archive, position)
            size, kind = _size(header, path, position), header[156:157]
            offset, in_header = position + BLOCK, kind in b"xLK"
            size = size if long_size is None or in_header else long_size
            if in_header and size > MOST_HEADER:
                raise _no_tar(path, position)
            position = offset + -(-size // BLOCK) * BLOCK
            if position > end:
                raise _not_whole(path)
            if in_header:  # of the next member: what does not fit into its header
                text = file.read(size)
                if kind == b"x":
                    records = _pax_records(text, path, offset)
                    long_name = records.get(b"path", long_name)
                    long_size = int(records[b"size"]) if b"size" in records else None
                    in_pieces = any(key.startswith(b"GNU.sparse") for key in records)
                elif kind == b"L":
                    long_name = text.rstrip(b"\0")
            else:
                name = os.fsdecode(_name(header) if long_name is None else long_name)
                whole = kind in b"0\0007" and not in_pieces
                long_name, long_size, in_pieces = None, None, False
                if whole and not name.endswith("/"):
                    yield _Member(name, offset, size, size)
                elif kind not in b"5g" and is_image(name):
                    raise DataError(
                        f"{path} holds {name!r} as a link or in pieces; pack it again with tar "
                        "--dereference --hard-dereference, without --sparse"
                    )


def _size(header: bytes, path: Path, position: int) -> int:
    """The length of what follows a header. Raises DataError where it is none."""
    try:
        total = int(header[148:156].rstrip(b"\0 "), 8)
        length = header[124:136]
        # Beyond 8 GiB, GNU tar writes a number of base 256 whose first bit is set.
        large = length[0] & 0x80
        size = int.from_bytes(length[1:], "big") if large else int(length.rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        total = size = -1
    # The checksum is the sum of the header's bytes, its own eight taken for blanks. Adler-32 has
    # the sum of bytes, plus 1, in its lower half: a fifteenth of the time of `sum`.
    expected = total - 8 * 32 + sum(header[148:156]) + 1
    if min(total, size) < 0 or zlib.adler32(header) & 0xFFFF != expected % 65521:
        raise _no_tar(path, position)
    return size


def _no_tar(path: Path, position: int) -> DataError:
    return DataError(
        f"{path} is no tar archive at byte {position:,}; get it again, or unpack it first if it is "
        "compressed"
    )


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    # Only POSIX archives have the first part of a long name there.
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax_records(text: bytes, path: Path, offset: int) -> dict[bytes, bytes]:
    """Records "LENGTH KEY=VALUE", each of that length and with a newline at its end."""
    records, position = {}, 0
    while record := _PAX_RECORD.match(text, position):
        stop = position + int(record[1])
        if stop <= record.end() or text[stop - 1 : stop] != b"\n":
            break
        records[record[2]] = text[record.end() : stop - 1]
        position = stop
    if text[position:].strip(b"\0") or not _SIZE.fullmatch(records.get(b"size", b"0")):
        raise _no_tar(path, offset + position)
    return records


def _check_padding(descriptor: int, archive: Archive, position: int) -> None:
    """Raises DataError for more behind an archive's end: another one, put there by `cat`."""
    padding = archive.end - position
    if padding > MOST_PADDING or any(read_at(descriptor, padding, position)):
        raise DataError(
            f"{archive.path} goes on behind its end, at byte {position:,}; give archives that were "
            "not put together, or put them together with tar --concatenate"
        )


def _not_whole(path: Path) -> DataError:
    return DataError(f"{path} is cut off: its last member or its end is missing; get it again")


def _zip_members(archive: Archive) -> Iterator[_Member]:
    """What `zipfile` lists, and where the bytes of each begin: behind a header of its own."""
    path = archive.path
    with open_descriptor(path) as descriptor, open(descriptor, "rb", closefd=False) as stream:
        try:
            entries = zipfile.ZipFile(stream).infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            raise _no_zip(path, reason_of(error)) from error
        for entry in entries:
            name = _zip_name(entry)
            if name.endswith("/"):
                continue
            is_encrypted = entry.flag_bits & ENCRYPTED
            if is_encrypted or entry.compress_type not in STORED_OR_DEFLATED:
                how = "encrypted" if is_encrypted else "packed by another way than deflate"
                raise DataError(
                    f"{path} holds {name!r} {how}; pack it again with zip -0, as images do not "
                    "become smaller"
                )
            start, length = entry.header_offset, entry.compress_size
            header = read_at(descriptor, _LOCAL_HEADER.size, start)
            if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
                raise _no_zip(path, f"there is no member at byte {start:,}")
            _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
            offset = start + _LOCAL_HEADER.size + name_length + extra_length
            if offset + length > archive.end:
                raise _no_zip(path, f"it ends within {name!r}")
            deflated = entry.compress_type == zipfile.ZIP_DEFLATED
            yield _Member(name, offset, length, entry.file_size, deflated)


def _zip_name(entry: zipfile.ZipInfo) -> str:
    """A member's name: as Info-ZIP writes it beside, else in UTF-8 where it can be, else DOS's.

    Apple and Info-ZIP write UTF-8 without the flag that says so.
    """
    raw = entry.orig_filename.encode("utf-8" if entry.flag_bits & UTF8 else "cp437")
    field = _field(entry.extra, UNICODE_PATH)
    if field.startswith(struct.pack("<BL", 1, zlib.crc32(raw))):
        name = field[5:].decode("utf-8", "surrogateescape")
    else:
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            name = entry.orig_filename
    return name if "/" in name else name.replace("\\", "/")  # as some of Windows pack


def _field(extra: bytes, kind: int) -> bytes:
    """An extra field of this kind; empty where there is none."""
    while len(extra) >= 4:
        own, length = struct.unpack_from("<HH", extra)
        if own == kind:
            return extra[4 : 4 + length]
        extra = extra[4 + length :]
    return b""


def _no_zip(path: Path, reason: str) -> DataError:
    return DataError(f"{path} cannot be read as a zip archive ({reason}); get it again")
