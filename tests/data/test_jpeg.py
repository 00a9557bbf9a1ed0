"""JPEG files by simplejpeg: every pixel and every sentence is Pillow's."""

from __future__ import annotations

import struct
from io import BytesIO
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from deit_zoo.data import jpeg
from deit_zoo.data.decode import open_image
from deit_zoo.data.jpeg import decode_jpeg
from deit_zoo.errors import DataError
from support.images import encoded
from support.tables import each_row

simplejpeg: Any = pytest.importorskip("simplejpeg")

SIZES = [(1, 1), (17, 31), (333, 500)]


def photo(width: int, height: int) -> Image.Image:
    """Smooth and noisy in one: both what JPEG keeps and what it does not."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / step + y / 9) for step in (5, 11, 23)], axis=2)
    noise = np.random.default_rng(width).normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(128 + 90 * waves + noise, 0, 255).astype(np.uint8))


PHOTO = photo(97, 61)
ARRAY: NDArray[np.uint8] = np.array(PHOTO)


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def arithmetic() -> bytes:
    """Eight grey pixels a side, entropy coded as Pillow does not write it: SOF9."""
    frame = struct.pack(">BHHB", 8, 8, 8, 1) + b"\x01\x11\x00"
    scan = segment(0xDA, b"\x01\x01\x00\x00\x3f\x00") + bytes.fromhex("d6a840278fb0")
    table = segment(0xDB, b"\x00" + bytes(range(1, 65)))
    return b"\xff\xd8" + table + segment(0xC9, frame) + scan + b"\xff\xd9"


def first_scans(count: int) -> bytes:
    """A progressive file that ends, as it should, after a few of its scans."""
    whole = encoded(PHOTO, "JPEG", progressive=True)
    starts = [place for place in range(len(whole)) if whole[place : place + 2] == b"\xff\xda"]
    cut = whole[: starts[count]]
    tables = cut.rfind(b"\xff\xc4")
    return (cut[:tables] if tables > starts[count - 1] else cut) + b"\xff\xd9"


def with_frame(data: bytes, place: int, content: bytes) -> bytes:
    """A baseline file with other bytes in the header of its frame."""
    start = data.index(b"\xff\xc0") + place
    return data[:start] + content + data[start + len(content) :]


def in_the_middle(data: bytes, content: bytes) -> bytes:
    half = len(data) // 2
    return data[:half] + content + data[half + len(content) :]


def several_pictures() -> bytes:
    """An MPO file, as some cameras and telephones write."""
    file = BytesIO()
    PHOTO.save(file, "MPO", save_all=True, append_images=[PHOTO.rotate(180)])
    return file.getvalue()


TURNED = Image.Exif()
TURNED[0x0112] = 6
BASELINE = encoded(PHOTO, "JPEG")
# What simplejpeg decodes.
TAKEN = {
    f"{width}x{height}, {sampling}, quality {quality}": encoded(
        photo(width, height), "JPEG", quality=quality, subsampling=sampling
    )
    for (width, height), sampling, quality in product(
        SIZES, ("4:4:4", "4:2:2", "4:2:0"), (5, 75, 90, 100)
    )
} | {
    f"{width}x{height}, {sampling}": simplejpeg.encode_jpeg(
        np.array(photo(width, height)), colorsubsampling=sampling
    )
    for (width, height), sampling in product(SIZES, ("440", "411"))
}
TAKEN |= {
    "progressive": encoded(PHOTO, "JPEG", progressive=True),
    "progressive, first scan": first_scans(1),
    "progressive, four scans": first_scans(4),
    "optimized": encoded(PHOTO, "JPEG", optimize=True),
    "grey": encoded(PHOTO.convert("L"), "JPEG"),
    "grey, progressive": encoded(PHOTO.convert("L"), "JPEG", progressive=True),
    "restart markers": encoded(PHOTO, "JPEG", restart_marker_blocks=3),
    "restart markers, by rows": encoded(PHOTO, "JPEG", restart_marker_rows=1),
    "RGB, not YCbCr": encoded(PHOTO, "JPEG", keep_rgb=True),
    "EXIF, turned": encoded(PHOTO, "JPEG", exif=TURNED),
    "several pictures": several_pictures(),
    "arithmetic": arithmetic(),
    "bytes after the end": BASELINE + bytes(500),
    "bytes before the end": BASELINE[:-2] + b"\x11\x22\x33" + BASELINE[-2:],
    "other bytes in the middle": in_the_middle(BASELINE, b"\x12\x34\x56\x78\x9a"),
    "a comment and a profile": encoded(PHOTO, "JPEG", comment=b"a", icc_profile=bytes(300)),
}
# What is left to Pillow, which reads it, mends it or says what is wrong.
LEFT = {
    "CMYK": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "CMYK, progressive": encoded(PHOTO.convert("CMYK"), "JPEG", progressive=True),
    "a PNG": encoded(PHOTO, "PNG"),
    "a TIFF that holds a JPEG": encoded(PHOTO, "TIFF", compression="jpeg"),
    "uncommon sampling": with_frame(BASELINE, 11, b"\x22\x00\x00\x21"),
    "half of it": BASELINE[: len(BASELINE) // 2],
    "half of it, progressive": TAKEN["progressive"][: len(TAKEN["progressive"]) // 2],
    "all but the end": BASELINE[:-2],
    "the header alone": BASELINE[: BASELINE.index(b"\xff\xda")],
    "a restart marker too many": in_the_middle(BASELINE, b"\xff\xd3"),
    "12 bits": with_frame(BASELINE, 4, b"\x0c"),
    "30000x30000 claimed": with_frame(BASELINE, 5, struct.pack(">HH", 30_000, 30_000)),
    "no height": with_frame(BASELINE, 5, b"\x00\x00"),
    "nothing": b"",
}


def opened(data: bytes) -> object:
    """All that can be seen of an image, or the sentence of its refusal."""
    try:
        image = open_image(data, "a.jpg", reading="upstream")
    except DataError as error:
        return str(error)
    return type(image), image.mode, image.size, image.tobytes(), image.info


@pytest.mark.skipif(jpeg.SIMPLEJPEG is None, reason="Pillow has another library")
@each_row("name", TAKEN)
def test_simplejpeg_gives_every_pixel_of_pillow(name: str) -> None:
    with Image.open(BytesIO(TAKEN[name])) as image:
        decoded = decode_jpeg(image)
        assert decoded is not None
        assert decoded.tobytes() == image.convert("RGB").tobytes()


@each_row("name", LEFT)
def test_what_simplejpeg_does_not_take_is_left_to_pillow(name: str) -> None:
    try:
        image = Image.open(BytesIO(LEFT[name]))
    except (OSError, Image.DecompressionBombError):
        return
    with image:
        assert decode_jpeg(image) is None


@each_row("name", TAKEN | LEFT)
def test_an_image_or_its_refusal_is_the_same_without_simplejpeg(name: str) -> None:
    data = (TAKEN | LEFT)[name]
    with_simplejpeg = opened(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg, "SIMPLEJPEG", None)
        assert opened(data) == with_simplejpeg


def test_simplejpeg_is_in_use_where_pillow_decodes_by_the_same_library() -> None:
    turbo = features.version("libjpeg_turbo") or "0"
    same = tuple(map(int, turbo.split(".")[:3])) >= (3, 0, 1)
    assert (simplejpeg.__version__ if same else None) == jpeg.SIMPLEJPEG
