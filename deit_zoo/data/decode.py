"""From an image's file to its pixels: upright or as upstream reads them, in RGB, within bounds.

Pillow alone: no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from deit_zoo.data.bounds import (
    MAX_PIXELS_ENVIRONMENT,
    MEMORY,
    CountedReads,
    checked_memory,
    max_pixels,
)
from deit_zoo.data.formats import decodable, undecodable
from deit_zoo.data.image_file import BITS, UnreadableError, missing_image, read_file
from deit_zoo.data.jpeg import decode_jpeg, jpeg_pixels
from deit_zoo.errors import DataError, reason_of
from deit_zoo.machine import without_warnings
from deit_zoo.manifest import Reading

# Formats whose 16 bits Pillow has in its mode of 32: PGM, and with Pillow 10 PNG.
OF_16_BITS = ("PPM", "PNG")
HEAD = 16  # bytes in which a file says what it is
STRIP = 1 << 21  # pixels that are converted at once

Pixels: TypeAlias = npt.NDArray[np.uint8]


def upright(image: Image.Image, *, in_place: bool = False) -> Image.Image:
    """An image as a person sees it, turned by its EXIF where that says so; the given one is left
    as it is, unless it is turned in place, where there is never more than one.

    Raises DataError for pixels without a defined range: floats, and integers beyond 16 bits.
    """
    if image.mode == "F":
        raise DataError("32-bit float pixels have no defined range; save the image with 8 bits")
    if image.mode == "I" and image.format not in OF_16_BITS:
        raise DataError(
            "32-bit integer pixels have no defined range; save the image with 8 or 16 bits"
        )
    if _orientation(image) == 1:
        return image
    if not in_place:
        return ImageOps.exif_transpose(image)
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _orientation(image: Image.Image) -> object:
    """What its EXIF says; 1, not turned, where there is none or it is broken."""
    unread = getattr(image, "tile", None)
    with without_warnings():
        try:
            return image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:  # raises nearly anything on broken bytes; viewers show such an image
            if unread and not getattr(image, "tile", None):  # of a PNG its pixels are read first
                raise
            return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright image as 8-bit RGB: 16 bits are scaled, transparency shows white, palettes are
    read."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.width * image.height <= STRIP:
        return _to_rgb(image)
    # What it becomes on the way takes several times its memory: of a strip at a time.
    rgb = Image.new("RGB", image.size)
    for box in strips(image):
        rgb.paste(_to_rgb(image.crop(box)), box[:2])
    return rgb


def strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """The boxes of strips of an image, each of some million pixels."""
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        high_byte = 0 if image.mode.endswith("B") else 1
        return Image.frombytes("L", image.size, image.tobytes()[high_byte::2]).convert("RGB")
    if image.mode == "I":
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def open_image(source: Path | bytes, name: str = "", *, reading: Reading) -> Image.Image:
    """An image in RGB, as it is to be seen. Raises DataError naming the file.

    "upright" is as a person sees it: turned by its EXIF, and converted by `to_rgb`; "upstream" as
    upstream's loader reads it: EXIF ignored, and converted as Pillow does.
    """
    unnamed = str(source) if isinstance(source, Path) else "the given bytes"
    with opened(source, name or unnamed) as image:
        return decoded(image, reading)


def read_pixels(data: bytes, name: str, reading: Reading) -> Pixels:
    """The pixels (H, W, 3) of what `open_image` reads; raises what it raises."""
    with opened(data, name) as image:
        if reading == "upstream" or _orientation(image) == 1:
            pixels: Pixels | None = jpeg_pixels(image)
            if pixels is not None:
                return pixels
        turned = _turned(image, reading)
        if turned.width * turned.height <= STRIP:
            return np.asarray(_converted(turned, reading))
        pixels = np.empty((turned.height, turned.width, 3), np.uint8)
        for box in strips(turned):
            pixels[box[1] : box[3]] = np.asarray(_converted(turned.crop(box), reading))
        return pixels


def decoded(image: ImageFile, reading: Reading) -> Image.Image:
    """An opened image in RGB. What else its file says of it, such as EXIF, is done with; `info` has
    the BITS of one whose high bytes are left."""
    turned = _turned(image, reading)
    rgb = _converted(turned, reading)
    plain = rgb.copy() if rgb is image else rgb
    plain.info = {BITS: 16} if turned.mode.startswith("I") and reading == "upright" else {}
    return plain


def _turned(image: ImageFile, reading: Reading) -> Image.Image:
    """An opened image, decoded, and upright where it is read so."""
    whole = decode_jpeg(image) or image
    return whole if reading == "upstream" else upright(whole, in_place=True)


def _converted(image: Image.Image, reading: Reading) -> Image.Image:
    return image.convert("RGB") if reading == "upstream" else to_rgb(image)


@contextmanager
def opened(source: Path | bytes, name: str) -> Iterator[ImageFile]:
    """An image whose pixels are still to be read; what goes wrong within is a DataError."""
    # Pillow warns of large photographs and of broken EXIF; beyond its bound it raises.
    with without_warnings(), image_errors(name):
        allow_pixels_and_text()
        with (
            open_header(source, name) as image,
            error_context(name),
            MEMORY.of(checked_memory(image)),
        ):
            yield image


class UnknownFormatError(UnreadableError):
    """A file is an image of a format that cannot be decoded here."""


def open_header(source: Path | bytes, name: str) -> ImageFile:
    """An image of a known raster format whose pixels are still to be read.

    Raises UnknownFormatError where a package would decode it, and whatever Pillow raises.
    """
    content = source if isinstance(source, bytes) else read_file(source)
    if not content:  # Pillow would try every format on it, and twice
        raise UnidentifiedImageError("it is empty")
    try:
        with error_context(name):
            return Image.open(CountedReads(content), formats=decodable())
    except UnidentifiedImageError as error:
        if reason := undecodable(content[:HEAD]):
            raise UnknownFormatError(name, reason) from error
        raise


def allow_pixels_and_text() -> None:
    """Let Pillow open what it would refuse: as many pixels as the variable says, and texts beside
    them, such as the workflow of the program that made a picture, up to what all may have together.
    """
    if MAX_PIXELS_ENVIRONMENT in os.environ:
        Image.MAX_IMAGE_PIXELS = max_pixels() // 2  # it warns from here on, and refuses the double
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


@contextmanager
def image_errors(name: str) -> Iterator[None]:
    """Within it, what goes wrong with an image's file or its bytes is a DataError naming it."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise missing_image(name) from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{name} claims over {max_pixels():,} pixels; give a smaller image, or set "
            f"{MAX_PIXELS_ENVIRONMENT} to a larger number if you trust it"
        ) from error
    except Exception as error:  # decoders raise nearly anything on broken bytes
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "its format is not known" if unknown else reason_of(error)
        raise DataError(
            f"{name} cannot be read as an image ({reason}); give a whole JPEG, PNG, WebP, "
            "GIF, BMP or TIFF file"
        ) from error


@contextmanager
def error_context(name: object) -> Iterator[None]:
    """Within it, a DataError about pixels also says whose they are."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
