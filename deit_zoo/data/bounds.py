"""What an image may take of memory and of time, by what its header says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from threading import Condition
from typing import NoReturn

from PIL import Image, TiffImagePlugin
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from deit_zoo.data.image_file import MAX_PIXELS
from deit_zoo.errors import DataError

# The bound on a decoded image is applied to a resized one as well (1 x 10000 pixels grow); a larger
# number in this variable lifts it.
MAX_PIXELS_ENVIRONMENT = "DEIT_ZOO_MAX_PIXELS"
MEMORY_OF_PIXEL = 7  # bytes for each of them that an image may take
# Of a pixel, by the beginning of Pillow's mode; in any other, RGB among them, it takes four.
BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2}
OF_RGB = 4
OF_ROW = 16  # and of a row, whose address Pillow keeps
# What decoders hold beside that, in bytes for each band of a pixel: measured with Pillow 13.0 of
# every format. HEIF as AVIF; a decoder in Python has the bytes once more, and all others a strip.
HELD = {"AVIF": 2, "HEIF": 2, "JPEG2000": 5, "WEBP": 3.3}
OF_COEFFICIENT, OF_SAMPLE, OF_BYTES = 2, 2, 1
SLOWER = 8  # times fewer pixels may an image have that Pillow decodes in Python
# A file is read in so many parts, or in parts of a KiB (libpng's chunks take three of 8): some
# Python runs at each.
MOST_READS, OF_PART = 100_000, 1 << 10
# Of a JPEG file, libjpeg-turbo's own bound for files of others (TJFLAG_LIMITSCANS); of a PPM of
# text, Pillow copies what is left at each comment.
START_OF_SCAN, MOST_TIMES = b"\xff\xda", 500
# A JPEG 2000 file says of all bands (COD) or of one (COC) their levels, blocks and precincts, by
# powers of two, and behind its own sides those of its tiles. openjpeg holds over 500 bytes of each.
_BLOCKS = re.compile(
    rb"\xff(?:R\0.(.)....|S\0..(.))([\0-\x20])([\0-\x08])([\0-\x08])[\0-\x3f][\0\1](.{0,33})",
    re.DOTALL,
)
_TILES = re.compile(rb"\xffO\xffQ.{4}(.{4})(.{4}).{8}(.{4})(.{4})", re.DOTALL)
SMALLEST_BLOCK = 4  # of 16 pixels a side; tiles and precincts have bands, of half their sides


def max_pixels() -> int:
    """The most pixels that an image may have. Raises DataError where the variable is no number."""
    text = os.environ.get(MAX_PIXELS_ENVIRONMENT, str(MAX_PIXELS))
    if not text.replace("_", "").isdecimal():
        raise DataError(f"{MAX_PIXELS_ENVIRONMENT} is {text!r}; give a number of pixels")
    return int(text)


class CountedReads(BytesIO):
    """A file's bytes, which a decoder may not ask for in very many small parts."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.reads, self.most = 0, max(MOST_READS, len(content) // OF_PART)

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file. Raises DataError for too many."""
        self.reads += 1  # no call: a JPEG's header takes 40 reads, and this is on the way of all
        if self.reads > self.most:
            self._refuse()
        return super().read(size)

    def readline(self, size: int | None = -1, /) -> bytes:
        """As of any file. Raises DataError for too many."""
        self.reads += 1
        if self.reads > self.most:
            self._refuse()
        return super().readline(size)

    def _refuse(self) -> NoReturn:
        raise DataError(f"it is read in over {self.most:,} parts; save it anew")


class MemoryInUse:
    """Bytes that threads decode into at the same time: as many as the largest image may take."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Nothing is in use, as in a forked process, where the threads do not go on."""
        self.used, self.changed = 0, Condition()

    @contextmanager
    def of(self, count: int) -> Iterator[None]:
        """Within it so many are in use; waits until there is room, or nothing else is in use."""
        with self.changed:
            self.changed.wait_for(lambda: not self.used or self.used + count <= _most_memory())
            self.used += count
        try:
            yield
        finally:
            with self.changed:
                self.used -= count
                self.changed.notify_all()


MEMORY = MemoryInUse()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=MEMORY.forget)


def checked_memory(image: ImageFile) -> int:
    """The bytes that decoding takes. Raises DataError where these, or the time, have no bound."""
    pixels = image.width * image.height
    decoders = {tile[0] for tile in image.tile}
    by_python = not decoders.isdisjoint(Image.DECODERS)
    in_scans = isinstance(image, JpegImageFile) and _in_several_scans(image)
    of_pixel = BYTES.get(image.mode[:4], 4) + OF_RGB + _held(image, by_python, in_scans)
    memory = int(pixels * of_pixel) + 2 * OF_ROW * image.height
    if memory > _most_memory():
        raise DataError(
            f"{image.width}x{image.height} pixels of {image.mode} take {memory / 1e9:.1f} GB; give "
            f"a smaller image, or set {MAX_PIXELS_ENVIRONMENT} to a larger number if you trust it"
        )
    if by_python and pixels > (most := max_pixels() // SLOWER):
        raise DataError(
            f"{image.width}x{image.height} pixels of {image.format} take minutes, where {most:,} "
            "pixels are the most; save it as PNG"
        )
    sign, what = (START_OF_SCAN, "scans") if in_scans else (b"#", "comments")
    if (in_scans or "ppm_plain" in decoders) and _content(image).count(sign) > MOST_TIMES:
        raise DataError(f"over {MOST_TIMES} {what}, which take minutes; save it anew")
    if "jpeg2k" in decoders and _smallest_block(_content(image)) < SMALLEST_BLOCK:
        raise DataError("its blocks of under 16 pixels take gigabytes; save it anew, or as PNG")
    return memory


def _smallest_block(content: bytes) -> int:
    """The shortest side of a JPEG 2000 file's blocks, as a power of two."""
    sides = [SMALLEST_BLOCK]
    for all_style, style, levels, width, height, precincts in _BLOCKS.findall(content):
        sides += [width[0] + 2, height[0] + 2]
        if (all_style + style)[0] & 1:  # it states precincts, of the smallest level first
            for smaller, own in enumerate(precincts[: levels[0] + 1], start=1):
                sides += [(own & 15) + levels[0] - smaller, (own >> 4) + levels[0] - smaller]
    for numbers in _TILES.findall(content):
        width, height, *tile = (int.from_bytes(number, "big") for number in numbers)
        parts = ((width, tile[0]), (height, tile[1]))
        sides += [side.bit_length() - 2 for whole, side in parts if side < whole]
    return min(sides)


def _held(image: ImageFile, by_python: bool, in_scans: bool) -> float:
    """The bytes of a pixel that the decoder holds beside what it makes of it."""
    bands = len(image.getbands())
    if isinstance(image, JpegImageFile):
        return OF_COEFFICIENT * bands if in_scans else 0
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags, (width, height) = image.tag_v2, image.size
        pixels_held = width * min(height, tags.get(TiffImagePlugin.ROWSPERSTRIP, height))
        if TiffImagePlugin.TILEWIDTH in tags:  # whole, however small the image is
            pixels_held = tags[TiffImagePlugin.TILEWIDTH] * tags[TiffImagePlugin.TILELENGTH]
        return OF_SAMPLE * bands * pixels_held / (width * height)
    return HELD.get(image.format or "", OF_BYTES if by_python else 0) * bands


def _in_several_scans(image: JpegImageFile) -> bool:
    """Whether libjpeg holds the coefficients of all pixels: the first scan is not of all bands."""
    if image.info.get("progressive"):
        return True
    # Pillow stops behind the header of the first scan, and begins anew where several images are.
    header = image if image.format == "JPEG" else JpegImageFile(BytesIO(_content(image)))
    assert header.fp is not None, "it is open"
    end = header.fp.tell()
    start = _content(image).rfind(START_OF_SCAN, 0, end)
    return end - start != 8 + 2 * len(image.getbands())


def _content(image: ImageFile) -> bytes:
    assert isinstance(image.fp, BytesIO), "images are opened from bytes"
    return image.fp.getvalue()


def _most_memory() -> int:
    return MEMORY_OF_PIXEL * max_pixels()
