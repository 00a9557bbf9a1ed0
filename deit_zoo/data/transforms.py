"""From an image file to the tensor that the published figures were measured on.

Resize the short side bicubically, crop the centre, scale to [0, 1], normalise (upstream's
evaluation transform, section "Evaluate" of its README). Pillow alone; bit-equal to torchvision
over the Pillow of that time.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Condition, Lock
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from torch import Tensor

from deit_zoo.data.formats import decodable, undecodable
from deit_zoo.data.image_file import MAX_PIXELS, UnreadableError, read_file
from deit_zoo.data.image_like import ImageLike, name_of, source_of
from deit_zoo.data.jpeg import decode_jpeg, jpeg_pixels
from deit_zoo.errors import DataError, ImageSizeError
from deit_zoo.manifest import Reading, manifest_record
from deit_zoo.models.layers import as_pair
from deit_zoo.registry import ModelSpec

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# The bound on a decoded image is applied to a resized one as well (1 x 10000 pixels grow); a larger
# number in this variable lifts it.
MAX_PIXELS_ENVIRONMENT = "DEIT_ZOO_MAX_PIXELS"
MOST_OF_16_BITS = 0xFFFF
HEAD = 16  # bytes in which a file says what it is
STRIP = 1 << 21  # pixels that are converted at once
# Of a pixel, by the beginning of Pillow's mode; in any other, RGB among them, it takes four.
BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2}
OF_ROW = 16  # and of a row, whose address Pillow keeps
SLOWER = 8  # times fewer pixels may an image have that Pillow decodes in Python
# Of a progressive JPEG file: libjpeg-turbo's own bound for files of others (TJFLAG_LIMITSCANS).
START_OF_SCAN, MOST_SCANS = b"\xff\xda", 500
_DECODING = Lock()

Pixels: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalTransform:
    """An image, as `classify` takes it, to a normalised float32 tensor (3, H, W).

    `crop_pct` is the share of the resized short side that the crop keeps: 224 / 0.875 resizes to
    256. A rectangular `img_size` (height, width) is cut from the smallest resize that covers it.
    """

    img_size: tuple[int, int]
    crop_pct: float

    def __post_init__(self) -> None:
        if not 0.0 < self.crop_pct <= 1.0:
            raise ImageSizeError(
                f"crop_pct is {self.crop_pct}; give a share above 0 and up to 1, such as 0.875"
            )

    def __call__(self, image: ImageLike) -> Tensor:
        if isinstance(image, Image.Image):
            return normalized(self.pixels(image))
        return normalized(as_tensor(image, self.pixels))

    def pixels(self, image: Image.Image) -> Tensor:
        """A PIL image, upright, to uint8 pixels (3, H, W); `normalized` makes them ready."""
        image = center_crop(self._resize(to_rgb(upright(image))), self.img_size)
        # By Pillow: torch would start threads of its own within each thread that prepares images.
        planes = bytearray().join(plane.tobytes() for plane in image.split())
        return torch.frombuffer(planes, dtype=torch.uint8).view(3, image.height, image.width)

    def _resize(self, image: Image.Image) -> Image.Image:
        if 0 in image.size:
            raise DataError(f"an image of {image.width}x{image.height} pixels shows nothing")
        height, width = (int(side / self.crop_pct) for side in self.img_size)
        # Whichever side is short for its purpose is matched exactly; the other follows.
        if image.width * height <= image.height * width:
            size = (width, int(width * image.height / image.width))
        else:
            size = (int(height * image.width / image.height), height)
        if size[0] * size[1] > max_pixels():
            raise DataError(
                f"an image of {image.width}x{image.height} pixels would be resized to "
                f"{size[0]}x{size[1]}; crop it to a less extreme shape first, or set "
                f"{MAX_PIXELS_ENVIRONMENT} to a larger number"
            )
        return resize(image, size)


def eval_transform(
    spec: ModelSpec, img_size: int | Sequence[int], crop_pct: float | None = None
) -> EvalTransform:
    """The evaluation transform of a model at an image size; its own crop unless given."""
    crop = float(manifest_record(spec.name).crop_pct) if crop_pct is None else crop_pct
    return EvalTransform(img_size=as_pair(img_size), crop_pct=crop)


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An image at a size (width, height), bicubically.

    In two calls, columns first, as Pillow did in one when the models were trained: from 13 on it
    takes rows first where that is cheaper, as of a tall crop, and rounds to other pixels.
    """
    if 0 in image.size:  # what a random crop of a line of pixels may be
        return Image.new(image.mode, size)
    columns = image.resize((size[0], image.height), Image.Resampling.BICUBIC)
    return columns.resize(size, Image.Resampling.BICUBIC)


def center_crop(image: Image.Image, img_size: tuple[int, int]) -> Image.Image:
    """The central (height, width) of an image at least that large, rounded as torchvision does."""
    height, width = img_size
    left = round((image.width - width) / 2.0)
    top = round((image.height - height) / 2.0)
    return image.crop((left, top, left + width, top + height))


def normalized(pixels: Tensor) -> Tensor:
    """Uint8 pixels (..., 3, H, W) as a model takes them; bit-equal for one image or many."""
    # Divided by a tensor: a GPU would multiply with the inverse of a number.
    most = torch.tensor(255.0, device=pixels.device)
    return normalize(pixels.to(torch.float32).div_(most))


def normalize(images: Tensor) -> Tensor:
    """Pixels in [0, 1], (..., 3, H, W), to zero mean and unit spread over ImageNet. In place."""
    mean = torch.tensor(IMAGENET_MEAN, dtype=images.dtype, device=images.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD, dtype=images.dtype, device=images.device)[:, None, None]
    return images.sub_(mean).div_(std)


def upright(image: Image.Image) -> Image.Image:
    """An image as a person sees it, turned by its EXIF where that says so."""
    return image if _orientation(image) == 1 else ImageOps.exif_transpose(image)


def _orientation(image: Image.Image) -> object:
    """What its EXIF says; 1, not turned, where there is none or it is broken."""
    unread = getattr(image, "tile", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:  # raises nearly anything on broken bytes; viewers show such an image
            if unread and not getattr(image, "tile", None):  # of a PNG its pixels are read first
                raise
            return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image as 8-bit RGB: 16 bits are scaled, transparency shows white, palettes are read.

    Raises DataError for pixels without a defined range: floats, and integers beyond 16 bits.
    """
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
        # Where Pillow has no other mode for 16 bits, as in PGM.
        pixels = np.asarray(image)
        if pixels.size and not 0 <= pixels.min() <= pixels.max() <= MOST_OF_16_BITS:
            raise DataError(
                f"32-bit integer pixels from {pixels.min():,} to {pixels.max():,} have no defined "
                "range; save the image with 8 or 16 bits"
            )
        return Image.fromarray((pixels >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DataError("32-bit float pixels have no defined range; save the image with 8 bits")
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
    with _opened(source, name or name_of(source)) as image:
        return _decoded(image, reading)


def read_pixels(data: bytes, name: str, reading: Reading) -> Pixels:
    """The pixels (H, W, 3) of what `open_image` reads; raises what it raises."""
    with _opened(data, name) as image:
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


def _decoded(image: ImageFile, reading: Reading) -> Image.Image:
    """An opened image in RGB. What else its file says of it, such as EXIF, is done with."""
    rgb = _converted(_turned(image, reading), reading)
    plain = rgb.copy() if rgb is image else rgb
    plain.info = {}
    return plain


def _turned(image: ImageFile, reading: Reading) -> Image.Image:
    """An opened image, decoded, and upright where it is read so."""
    decoded = decode_jpeg(image) or image
    return decoded if reading == "upstream" else upright(decoded)


def _converted(image: Image.Image, reading: Reading) -> Image.Image:
    return image.convert("RGB") if reading == "upstream" else to_rgb(image)


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[ImageFile]:
    """An image whose pixels are still to be read; what goes wrong within is a DataError."""
    with warnings.catch_warnings(), image_errors(name):
        # Pillow warns of large photographs and of broken EXIF; beyond its bound it raises.
        warnings.simplefilter("ignore")
        allow_pixels_and_text()
        with open_header(source, name) as image, error_context(name):
            memory = _checked_memory(image)
            with _MEMORY.of(memory):
                yield image


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


_MEMORY = MemoryInUse()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_MEMORY.forget)


def _checked_memory(image: ImageFile) -> int:
    """The bytes that decoding takes. Raises DataError where these, or the time, have no bound."""
    pixels = image.width * image.height
    # As its file has it, and in RGB.
    memory = pixels * (BYTES.get(image.mode[:4], 4) + 4) + 2 * OF_ROW * image.height
    if memory > _most_memory():
        raise DataError(
            f"{image.width}x{image.height} pixels of {image.mode} take {memory / 1e9:.1f} GB; give "
            f"a smaller image, or set {MAX_PIXELS_ENVIRONMENT} to a larger number if you trust it"
        )
    by_python = any(tile[0] in Image.DECODERS for tile in image.tile)
    if by_python and pixels > (most := max_pixels() // SLOWER):
        raise DataError(
            f"{image.width}x{image.height} pixels of {image.format} take minutes, where {most:,} "
            "pixels are the most; save it as PNG"
        )
    if image.info.get("progressive") and image.fp is not None:
        image.fp.seek(0)
        if image.fp.read().count(START_OF_SCAN) > MOST_SCANS:
            raise DataError(f"over {MOST_SCANS} scans, which take minutes; save it anew")
    return memory


def _most_memory() -> int:
    return 7 * max_pixels()


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
        return Image.open(BytesIO(content), formats=decodable())
    except UnidentifiedImageError as error:
        if reason := undecodable(content[:HEAD]):
            raise UnknownFormatError(name, reason) from error
        raise


def max_pixels() -> int:
    """The most pixels that an image may have. Raises DataError where the variable is no number."""
    text = os.environ.get(MAX_PIXELS_ENVIRONMENT, str(MAX_PIXELS))
    if not text.replace("_", "").isdecimal():
        raise DataError(f"{MAX_PIXELS_ENVIRONMENT} is {text!r}; give a number of pixels")
    return int(text)


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
        raise DataError(f"{name} does not exist; give an image file, a folder or a URL") from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{name} claims over {max_pixels():,} pixels; give a smaller image, or set "
            f"{MAX_PIXELS_ENVIRONMENT} to a larger number if you trust it"
        ) from error
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise DataError(
            f"{name} cannot be read as an image ({_reason(error)}); give a whole JPEG, PNG, WebP, "
            "GIF, BMP or TIFF file"
        ) from error


def as_tensor(
    image: ImageLike, transform: Callable[[Image.Image], Tensor], name: str = ""
) -> Tensor:
    """An image of any kind, read upright and transformed. Raises DataError naming it."""
    name = name or name_of(image)
    with image_errors(name):
        source = source_of(image)
    if isinstance(source, Path | bytes):
        # Its pixels count among those that all threads hold until they are transformed.
        with _opened(source, name) as opened:
            return transform(_decoded(opened, "upright"))
    # The same image may be given twice, and no image is decoded by two threads at once.
    with _DECODING, image_errors(name):
        source.load()
        source = upright(source)
    return transform(source)


@contextmanager
def error_context(name: object) -> Iterator[None]:
    """Within it, a DataError about pixels also says whose they are."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "its format is not known"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
