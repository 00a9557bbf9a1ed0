"""Which files are images by their names, and which bytes are opened as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit_zoo.data.decode import open_image
from deit_zoo.data.folder import is_image
from deit_zoo.data.formats import FORMATS, IMAGE_SUFFIXES, decodable, undecodable
from deit_zoo.data.image_set import open_set
from deit_zoo.data.survey import bad_images
from support.images import HEIC, encoded, refused, write
from support.tables import each_row

# Pillow's formats that are no raster images, that start a program (Ghostscript for EPS), whose
# decoder somebody else must bring, or that hold no photographs and many a way to halt a process.
OF_THE_PAST = {"DCX", "FITS", "FLI", "GBR", "IM", "MSP", "PCD", "PCX", "PIXAR", "SGI", "SUN"}
OF_SCREENS = {"BLP", "CUR", "DDS", "FTEX", "ICNS", "ICO", "XBM", "XPM"}
NO_RASTER = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PALM", "PDF", "WMF"}
NO_IMAGES = NO_RASTER | OF_THE_PAST | OF_SCREENS
ADVICE = "which nothing here decodes; type: pip install pillow-heif"


def test_every_ending_that_pillow_knows_is_an_image_or_known_to_be_none() -> None:
    Image.init()
    registered = Image.registered_extensions().items()
    assert {kind for _, kind in registered} - FORMATS.keys() - NO_IMAGES == set()
    images = {ending for ending, kind in registered if kind not in NO_IMAGES}
    assert images <= IMAGE_SUFFIXES


def test_formats_that_are_no_raster_images_are_not_opened() -> None:
    assert not NO_IMAGES & {*decodable()}
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    told = refused(lambda: open_image(postscript, "drawing.jpg", reading="upright"))
    assert told.startswith("drawing.jpg cannot be read as an image (its format is not known); ")


@each_row(
    ("name", "kind"),
    [
        ("phone.avif", "AVIF"),
        ("saved.jfif", "JPEG"),
        ("old.jpe", "JPEG"),
        ("scan.jp2", "JPEG2000"),
        ("left.mpo", "MPO"),
        ("icon.TGA", "TGA"),
    ],
)
def test_files_of_all_these_names_are_images(name: str, kind: str, tmp_path: Path) -> None:
    pixels = np.full((16, 16, 3), 90, np.uint8)
    content = encoded(Image.fromarray(pixels), kind)
    root = write(tmp_path / name, {f"val/a/{name}": content})
    images = open_set(root, "val")
    assert is_image(name)
    assert len(images) == 1
    assert np.abs(np.asarray(images.open(0)).astype(int) - 90).max() <= 2


@pytest.mark.parametrize("name", ["IMG_0001.HEIC", "sent.jpg"])
@pytest.mark.skipif("HEIF" in decodable(), reason="pillow-heif is here")
def test_a_heic_without_its_decoder_is_named_with_what_to_install(
    name: str, tmp_path: Path
) -> None:
    write(tmp_path, {f"val/a/{name}": HEIC})
    images = open_set(tmp_path, "val")
    file = f"{tmp_path}/val/a/{name}"
    assert refused(lambda: images.open(0)) == f"{file} is a HEIC image, {ADVICE}"
    assert [*bad_images(images, workers=1)] == [(file, f"a HEIC image, {ADVICE}")]


def test_what_an_older_pillow_does_not_decode_is_named() -> None:
    head = encoded(Image.new("RGB", (8, 8)), "AVIF")[:16]
    assert undecodable(head) == (
        "an AVIF image, which nothing here decodes; type: pip install -U pillow"
    )
    assert undecodable(b"\x89PNG\r\n\x1a\n" + bytes(8)) is None
