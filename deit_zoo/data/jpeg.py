"""JPEG files by simplejpeg where it is installed: the pixels of Pillow, in less time.

Both are libjpeg-turbo. Pillow reads every header, and the pixels of what simplejpeg does not take.
So neither an image nor the sentence about a broken one depends on what is installed.
"""

from __future__ import annotations

from typing import Any

from PIL import Image, features
from PIL.ImageFile import ImageFile

try:
    import simplejpeg
except ImportError:
    simplejpeg: Any = None  # type: ignore[no-redef]

# Of Pillow. Some systems build it on another library, and before this version progressive files
# that lack scans have other pixels.
OLDEST_TURBO = (3, 0, 1)


def _version_in_use() -> str | None:
    turbo = features.version("libjpeg_turbo")
    if simplejpeg is None or turbo is None:
        return None
    old = tuple(int(part) for part in turbo.split(".")[:3]) < OLDEST_TURBO
    return None if old else str(simplejpeg.__version__)


# Pixels of an image that Pillow decodes itself: by way of an array there would be two of it.
LARGE = 1 << 25
# Of simplejpeg; None where Pillow alone decodes.
SIMPLEJPEG = _version_in_use()


def decode_jpeg(image: ImageFile) -> Image.Image | None:
    """An opened JPEG file in RGB; None is for Pillow to decode, or to say what is wrong."""
    pixels = jpeg_pixels(image)
    if pixels is None:
        return None
    decoded = Image.fromarray(pixels)
    decoded.info = image.info.copy()  # EXIF among it
    return decoded


def jpeg_pixels(image: ImageFile) -> Any:
    """The same as an array (H, W, 3) uint8."""
    takes = image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")
    is_large = image.width * image.height > LARGE
    if SIMPLEJPEG is None or not takes or image.fp is None or is_large:
        return None
    image.fp.seek(0)
    try:
        return simplejpeg.decode_jpeg(image.fp.read(), "RGB")
    except ValueError:
        return None
