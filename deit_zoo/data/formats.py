"""Which files are images: the raster formats that Pillow decodes, and what their names end in.

None that starts another program (EPS), draws (WMF), holds something else (PDF) or is of games and
machines of the past (BLP, ICO, PCX) is an image here, whatever it is called. The table is the same
on every machine, so a folder is too: an image whose decoder is missing is one to name.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec

FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jfif", ".jpe", ".jpeg", ".jpg"),
    "PNG": (".apng", ".png"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "PPM": (".pbm", ".pfm", ".pgm", ".pnm", ".ppm"),
    "MPO": (".mpo",),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heics", ".heif", ".heifs", ".hif"),
    "JPEG2000": (".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx"),
    "PSD": (".psd",),
    "QOI": (".qoi",),
    "TGA": (".icb", ".tga", ".vda", ".vst"),
}
IMAGE_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
# What files of these formats call themselves, and what would decode them.
BRANDS = {
    "a HEIC": (b"heic", b"heim", b"heis", b"heix", b"hevc", b"hevx", b"mif1", b"msf1"),
    "an AVIF": (b"avif", b"avis"),
}
ADVICE = {"a HEIC": "pip install pillow-heif", "an AVIF": "pip install -U pillow"}


@cache
def decodable() -> tuple[str, ...]:
    """The formats that can be decoded here, as Pillow names them."""
    from PIL import Image

    Image.init()
    if find_spec("pillow_heif") is not None:
        import_module("pillow_heif").register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def undecodable(head: bytes) -> str | None:
    """What a file that cannot be decoded here is, by its first bytes, and what would help."""
    if head[4:8] != b"ftyp":
        return None
    for name, brands in BRANDS.items():
        if head[8:12] in brands:
            return f"{name} image, which nothing here decodes; type: {ADVICE[name]}"
    return None
