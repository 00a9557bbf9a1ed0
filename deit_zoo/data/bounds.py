"""What an image may take of memory and of time, by what its header says."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import chain
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
# ICO, ICNS and BLP hold files of other formats, which Pillow decodes before it says how large they
# are: PNG, JPEG 2000 and JPEG, whose sizes stand behind these.
CONTAINERS = (b"\0\0\1\0", b"icns", b"BLP1")
_SIZES_INSIDE = (
    re.compile(rb"(?:IHDR|ihdr)(?=(.{4})(.{4}))", re.DOTALL),
    re.compile(rb"\xffO\xffQ(?=.{4}(.{4})(.{4}))", re.DOTALL),
    re.compile(rb"\xff[\xc0-\xcf]\0[\x0b\x11\x14]\x08(?=(..)(..))", re.DOTALL),
)
MOST_INSIDE = 2048 * 2048  # pixels; the largest icon that a system shows has 1024 x 1024
# A file is read in so many parts, or in parts of a KiB (libpng's chunks take three of 8): some
# Python runs at each.
MOST_READS, OF_PART = 100_000, 1 << 10
# Of a JPEG file: libjpeg-turbo's own bound for files of others (TJFLAG_LIMITSCANS).
START_OF_SCAN, MOST_SCANS = b"\xff\xda", 500


def max_pixels() -> int:
    """The most pixels that an image may have. Raises DataError where the variable is no number."""
    text = os.environ.get(MAX_PIXELS_ENVIRONMENT, str(MAX_PIXELS))
    if not text.replace("_", "").isdecimal():
        raise DataError(f"{MAX_PIXELS_ENVIRONMENT} is {text!r}; give a number of pixels")
    return int(text)


def check_inside(content: bytes) -> None:
    """Raises DataError for an icon or a texture that holds the file of a large image."""
    if content.startswith(CONTAINERS):
        for inside in chain.from_iterable(size.finditer(content) for size in _SIZES_INSIDE):
            pixels = math.prod(int.from_bytes(side, "big") for side in inside.groups())
            if pixels > MOST_INSIDE:
                raise DataError(
                    f"inside are {pixels:,} pixels, where {MOST_INSIDE:,} are the most; save it "
                    "as PNG"
                )


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
    by_python = any(tile[0] in Image.DECODERS for tile in image.tile)
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
    if in_scans and _content(image).count(START_OF_SCAN) > MOST_SCANS:
        raise DataError(f"over {MOST_SCANS} scans, which take minutes; save it anew")
    return memory


def _held(image: ImageFile, by_python: bool, in_scans: bool) -> float:
    """The bytes of a pixel that the decoder holds beside what it makes of it."""
    bands = len(image.getbands())
    if isinstance(image, JpegImageFile):
        return OF_COEFFICIENT * bands if in_scans else 0
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags, whole = image.tag_v2, image.height
        rows = tags.get(TiffImagePlugin.ROWSPERSTRIP, tags.get(TiffImagePlugin.TILELENGTH, whole))
        return OF_SAMPLE * bands * min(1, rows / whole)
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
