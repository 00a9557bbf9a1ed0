"""Where the values of a Parquet column lie in its file, so that each can be read by itself.

A column chunk is a row of pages, and in a plain page of byte strings each value has its length
before it. The first may be a dictionary: pages of numbers then say which of its values each row
has. A page may be compressed by Snappy, which compresses 64 KiB at a time: at each such place
a piece begins that can be inflated alone. Any other page is not for this module.

Parquet  https://parquet.apache.org/docs/file-format
Snappy   https://github.com/google/snappy/blob/main/format_description.txt
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

BLOCK = 1 << 16
PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY = 0, 2, 8
DATA_PAGE, DICTIONARY_PAGE = 0, 2
CODECS = ("UNCOMPRESSED", "SNAPPY")
# Fields of a page's header (parquet.thrift).
_KIND, _INFLATED, _LENGTH, _DATA, _DICTIONARY = 1, 2, 3, 5, 7
_NUM_VALUES, _ENCODING = 1, 2
# Of the compact protocol of Thrift.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _STRUCT = 1, 2, 3, 7, 8, 12


class Place(NamedTuple):
    """A value: the bytes of a file to read, how many they are inflated, and its part of those.

    `inflated` is 0 where they are the value itself.
    """

    offset: int
    length: int
    inflated: int
    skip: int
    size: int


class UnknownPageError(Exception):
    """A page whose values cannot be read one by one."""


NO_PLACE = Place(0, 0, 0, 0, 0)  # of a row without an image


def places(chunk: memoryview, offset: int, codec: str, most_level: int) -> Iterator[Place]:
    """The value of each row of a column chunk that lies at an offset of its file."""
    if codec not in CODECS:
        raise UnknownPageError(f"its pages are compressed by {codec}")
    dictionary: list[Place] = []
    start = 0
    while start < len(chunk):
        header, start = _read_struct(chunk, start)
        if not 0 <= header[_LENGTH] <= len(chunk) - start:
            raise UnknownPageError("a page is not whole")
        body = chunk[start : start + header[_LENGTH]]
        page = _Page(body, offset + start, codec, header[_INFLATED])
        start += header[_LENGTH]
        if (kind := header[_KIND]) == DICTIONARY_PAGE:
            # More may lie there: pyarrow leaves room for values that a dictionary has twice.
            num_values = header[_DICTIONARY][_NUM_VALUES]
            dictionary += islice(page.values(page.content(), 0), num_values)
        elif kind != DATA_PAGE:
            raise UnknownPageError(f"it has pages of kind {kind}")
        elif (num_rows := header[_DATA][_NUM_VALUES]) > len(chunk) + BLOCK:
            raise UnknownPageError("it has more rows than bytes")
        else:
            yield from page.rows(num_rows, header[_DATA][_ENCODING], most_level, dictionary)


@dataclass(frozen=True, slots=True)
class _Page:
    """The body of a page, and its place in the file."""

    body: memoryview
    offset: int
    codec: str
    inflated: int

    def rows(
        self, num_rows: int, encoding: int, most_level: int, dictionary: list[Place]
    ) -> Iterator[Place]:
        """A value for each row, behind the levels, which say in which rows there is one."""
        content = self.content()
        is_there, start = [True] * num_rows, 0
        if most_level:
            start = 4 + struct.unpack_from("<I", content, 0)[0]
            levels = _numbers(content[4:start], most_level.bit_length(), num_rows)
            is_there = [level == most_level for level in levels]
        if encoding == PLAIN:
            values = self.values(content, start)
        elif encoding in (PLAIN_DICTIONARY, RLE_DICTIONARY):
            numbers = _numbers(content[start + 1 :], content[start], sum(is_there))
            values = (dictionary[number] for number in numbers)
        else:
            raise UnknownPageError(f"its pages have encoding {encoding}")
        for one in is_there:
            if (place := next(values, None) if one else NO_PLACE) is None:
                raise UnknownPageError("values are missing")
            yield place

    def content(self) -> memoryview:
        """The body, inflated."""
        return inflate(self.body, self.inflated) if self.codec == "SNAPPY" else self.body

    def values(self, content: memoryview, start: int) -> Iterator[Place]:
        """Byte strings from a place of the content on, each with its length before it."""
        blocks = _blocks(self.body, self.inflated) if self.codec == "SNAPPY" else []
        while start < len(content):
            size = struct.unpack_from("<I", content, start)[0]
            start += 4
            if start + size > len(content):
                raise UnknownPageError("a value is not whole")
            if not blocks or not size:
                yield Place(0 if blocks else self.offset + start, size, 0, 0, size)
            else:
                first, last = start // BLOCK, -(-(start + size) // BLOCK)
                inflated = min(last * BLOCK, self.inflated) - first * BLOCK
                length = blocks[last] - blocks[first]
                skip = start - first * BLOCK
                yield Place(self.offset + blocks[first], length, inflated, skip, size)
            start += size


def _numbers(buffer: memoryview, width: int, count: int) -> list[int]:
    """So many numbers of so many bits, in runs: one number again and again, or eights of them."""
    import numpy as np

    if not width:
        return [0] * count
    numbers: list[int] = []
    offset = 0
    while len(numbers) < count:
        header, offset = _varint(buffer, offset)
        if header & 1:
            size = (header >> 1) * width
            packed = np.frombuffer(buffer[offset : offset + size], np.uint8)
            bits = np.unpackbits(packed, bitorder="little")[: len(packed) // width * width * 8]
            run = (bits.reshape(-1, width) @ (1 << np.arange(width))).tolist()
        else:
            size = -(-width // 8)
            number = int.from_bytes(buffer[offset : offset + size], "little")
            run = [number] * min(header >> 1, count - len(numbers))
        if not run:
            raise UnknownPageError("a run is empty")
        numbers += run
        offset += size
    return numbers[:count]


def inflate(piece: Any, inflated: int) -> memoryview:
    """What Snappy compressed: a page, which begins with its inflated length."""
    import pyarrow

    return memoryview(pyarrow.Codec("snappy").decompress(piece, inflated)).cast("B")


def inflate_piece(piece: bytes, inflated: int) -> memoryview:
    """Some blocks of what Snappy compressed, which have no length before them."""
    length, rest = bytearray(), inflated
    while rest >= 0x80:
        length.append(rest & 0x7F | 0x80)
        rest >>= 7
    length.append(rest)
    return inflate(bytes(length) + piece, inflated)


def _blocks(body: memoryview, inflated: int) -> list[int]:
    """Where each 64 KiB of what Snappy compressed begins, and at last the end."""
    total, offset = _varint(body, 0)
    starts: list[int] = []
    done = 0
    while offset < len(body):
        if done >= len(starts) * BLOCK:
            if done > len(starts) * BLOCK:
                raise UnknownPageError("Snappy's blocks are not of 64 KiB")
            starts.append(offset)
        tag = body[offset]
        kind, count = tag & 3, tag >> 2
        offset += 1
        if kind == 0:
            if count >= 60:
                width = count - 59
                count = int.from_bytes(body[offset : offset + width], "little")
                offset += width
            done += count + 1
            offset += count + 1
        elif kind == 1:
            done += (count & 7) + 4
            offset += 1
        else:
            done += count + 1
            offset += 2 if kind == 2 else 4
    if done != total or total != inflated:
        raise UnknownPageError("a page is not whole")
    return [*starts, offset]


def _varint(buffer: memoryview, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = buffer[offset]
        value |= (byte & 0x7F) << shift
        offset, shift = offset + 1, shift + 7
        if byte < 0x80:
            return value, offset


def _read_struct(buffer: memoryview, offset: int) -> tuple[dict[int, Any], int]:
    """A struct in Thrift's compact protocol, by the numbers of its fields, and where it ends."""
    fields: dict[int, Any] = {}
    number = 0
    while (head := buffer[offset]) != 0:
        offset += 1
        if head >> 4:
            number += head >> 4
        else:
            number, offset = _zigzag(buffer, offset)
        fields[number], offset = _read_value(buffer, offset, head & 15)
    return fields, offset + 1


def _read_value(buffer: memoryview, offset: int, kind: int) -> tuple[Any, int]:
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE, offset
    if kind == _STRUCT:
        return _read_struct(buffer, offset)
    if kind == _BINARY:
        length, offset = _varint(buffer, offset)
        return bytes(buffer[offset : offset + length]), offset + length
    if kind in (_BYTE, _DOUBLE):
        width = 1 if kind == _BYTE else 8
        return bytes(buffer[offset : offset + width]), offset + width
    if _BYTE < kind < _DOUBLE:
        return _zigzag(buffer, offset)
    raise UnknownPageError("the header of a page is not known")


def _zigzag(buffer: memoryview, offset: int) -> tuple[int, int]:
    value, offset = _varint(buffer, offset)
    return value >> 1 ^ -(value & 1), offset
