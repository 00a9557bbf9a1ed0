"""Images of others: what is no file is not opened, and time and memory have bounds."""

from __future__ import annotations

import os
import socket
import stat
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deit_zoo.data import decode
from deit_zoo.data.bounds import MEMORY_OF_PIXEL, START_OF_SCAN, MemoryInUse, checked_memory
from deit_zoo.data.decode import open_image, read_pixels, to_rgb
from deit_zoo.data.folder import FolderSet, images_of
from deit_zoo.data.image_file import MAX_PIXELS, MOST_BYTES, read_file
from deit_zoo.data.survey import bad_images, scan
from deit_zoo.data.transforms import as_tensor
from deit_zoo.manifest import Reading
from support.images import encoded, refused, write

SIDE = 13_300  # 176,890,000 pixels, within Pillow's bound
# What an image took, above what the program took before, in MiB; by a figure that begins anew:
# ru_maxrss is inherited, and never falls.
PEAK = """
import sys
from contextlib import suppress
from pathlib import Path
from deit_zoo.data.decode import open_image, read_pixels
from deit_zoo.errors import DataError
def read(image):
    with suppress(DataError):
        if sys.argv[3] == "pixels":
            read_pixels(image.read_bytes(), "image", "upright")
        else:
            open_image(image, reading="upright")
def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) // 1024
read(Path(sys.argv[1]))  # all that is imported on the way
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
read(Path(sys.argv[2]))
print(memory("VmHWM") - before)
"""
IS_TOLD = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="Linux alone says what memory was used"
)


def grey(size: int = 8) -> bytes:
    return encoded(Image.new("L", (size, size), 90), "PNG")


def png_header(width: int, height: int, colour: int) -> bytes:
    """A PNG file that has no pixels yet."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    chunk = struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT\x35\xaf\x06\x1e"


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A data set in which a pipe, a socket and a link to a device are called images."""
    folder = write(tmp_path / "odd", {f"{split}/a/1.png": grey() for split in ("train", "val")})
    os.mkfifo(folder / "val" / "a" / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "val" / "a" / "socket.png"))
    (folder / "val" / "a" / "terminal.png").symlink_to("/dev/ptmx")
    (folder / "val" / "a" / "zero.png").symlink_to("/dev/zero")
    return folder


def test_what_is_no_regular_file_is_named_and_not_opened(odd: Path) -> None:
    images = FolderSet(odd / "val")
    assert dict(bad_images(images, workers=2)) == {
        str(odd / "val" / "a" / "pipe.png"): "a pipe; give an image file",
        str(odd / "val" / "a" / "socket.png"): "a socket; give an image file",
        str(odd / "val" / "a" / "terminal.png"): "a device; give an image file",
        str(odd / "val" / "a" / "zero.png"): "a device; give an image file",
    }


def test_the_survey_counts_what_the_set_holds(odd: Path) -> None:
    assert scan(odd).val.images == len(FolderSet(odd / "val")) == 5


def test_a_pipe_that_takes_the_place_of_a_file_while_it_is_opened_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regular = os.stat(sys.executable)
    os.mkfifo(tmp_path / "pipe.png")
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", lambda path: regular)
        told = refused(lambda: read_file(tmp_path / "pipe.png"))
    assert told == f"{tmp_path / 'pipe.png'} is a pipe; give an image file"


def test_a_file_that_is_larger_than_any_image_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    told = refused(lambda: read_file(tmp_path / "a.png"))
    assert told == f"{tmp_path / 'a.png'} is of 1.4 GB, where at most 1.4 GB are read"


def test_no_program_is_started_for_a_drawing_that_is_called_a_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    ghostscript.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{ghostscript.parent}:{os.environ['PATH']}")
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(x) print\n"
    folder = write(tmp_path / "data", {"val/a/photo.jpg": drawing})
    images = FolderSet(folder / "val")
    assert [why for _, why in bad_images(images, workers=1)] == ["not an image"]
    assert refused(lambda: read_pixels(drawing, "photo.jpg", "upstream"))
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "I;16", "CMYK", "L", "I"])
def test_an_image_that_is_converted_strip_by_strip_has_the_pixels_of_the_whole(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (37, 23, 4), np.uint8)
    if mode in ("I;16", "I"):
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 250)
        image = image if mode == "I;16" else image.convert("I")
    else:
        channels = {"P": 1, "L": 1, "LA": 2}.get(mode, 4)
        pixels = noise[..., 0] if channels == 1 else noise[..., :channels]
        image = Image.frombytes("L" if mode == "P" else mode, (23, 37), pixels.tobytes())
        if mode == "P":
            image = image.quantize(16)
        if mode in ("P", "L"):
            image.info["transparency"] = 5
    whole = to_rgb(image).tobytes()
    monkeypatch.setattr(decode, "STRIP", 100)
    assert to_rgb(image).tobytes() == whole


def test_pixels_that_are_read_strip_by_strip_are_those_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (37, 23, 3), np.uint8)
    content = encoded(Image.fromarray(noise), "PNG")
    monkeypatch.setattr(decode, "STRIP", 100)
    assert np.array_equal(read_pixels(content, "a", "upstream"), noise)


def memory_for(image: Path, folder: Path, how: str = "image") -> int:
    """The most MiB that reading it took."""
    (folder / "plain.png").write_bytes(grey())
    command = [sys.executable, "-c", PEAK, str(folder / "plain.png"), str(image), how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@IS_TOLD
@pytest.mark.slow
@pytest.mark.parametrize("how", ["image", "pixels"])
def test_a_small_file_of_many_pixels_takes_little_more_than_its_pixels(
    how: str, tmp_path: Path
) -> None:
    # It took 3.2 GB; it is made of a byte and then four for each pixel, or three of an array.
    Image.new("P", (SIDE, SIDE)).save(tmp_path / "p.png", transparency=0)
    assert memory_for(tmp_path / "p.png", tmp_path, how) < 1300


@pytest.mark.parametrize(("colour", "mode", "size"), [(6, "RGBA", "1.4"), (2, "RGB", "1.4")])
def test_pixels_beyond_the_bound_on_memory_are_refused_by_the_header(
    colour: int, mode: str, size: str
) -> None:
    content = png_header(SIDE, SIDE, colour)
    told = refused(lambda: open_image(content, "a.png", reading="upright"))
    assert told.startswith(f"a.png: {SIDE}x{SIDE} pixels of {mode} take {size} GB; give a smaller")


PLAIN = Image.new("RGB", (800, 800), (9, 90, 200))
WHOLE_SCAN, FIRST_OF_SEVERAL = b"\xff\xda\0\x0c\3\1\0\2", b"\xff\xda\0\x08\1\1\0\0\x3f\0"
OF_FORMAT = {
    "png": encoded(PLAIN, "PNG"),
    "jpeg": encoded(PLAIN, "JPEG"),
    "gif": encoded(PLAIN, "GIF"),
    "tiff_of_strips": encoded(PLAIN, "TIFF", compression="tiff_lzw"),
    "several_photos": encoded(PLAIN, "MPO", save_all=True, append_images=[PLAIN]),
}
HOLDS_MORE = {
    "webp": encoded(PLAIN, "WEBP"),
    "lossless_webp": encoded(PLAIN, "WEBP", lossless=True),
    "jpeg2000": encoded(PLAIN, "JPEG2000"),
    "progressive_jpeg": encoded(PLAIN, "JPEG", progressive=True),
    "jpeg_of_scans": OF_FORMAT["jpeg"].replace(WHOLE_SCAN, FIRST_OF_SEVERAL + WHOLE_SCAN),
    "tiff_of_one_strip": encoded(PLAIN, "TIFF", compression="tiff_lzw", strip_size=1 << 30),
}


@pytest.mark.parametrize("name", [*OF_FORMAT, *HOLDS_MORE])
def test_what_a_decoder_holds_beside_the_pixels_counts_too(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # so that it comes back
    monkeypatch.setenv("DEIT_ZOO_MAX_PIXELS", "800_000")  # 7 bytes of each: 8.75 of this image's
    if name in OF_FORMAT:
        assert open_image(OF_FORMAT[name], reading="upright").size == PLAIN.size
    else:
        told = refused(lambda: open_image(HOLDS_MORE[name], "a", reading="upright"))
        assert told.startswith("a: 800x800 pixels of RGB take 0.0 GB; give a smaller")


@IS_TOLD
@pytest.mark.slow
@pytest.mark.parametrize("how", ["image", "pixels"])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"format": "JPEG"}),
        ("CMYK", {"format": "JPEG", "progressive": True}),
        ("RGB", {"format": "WEBP", "lossless": True, "method": 0}),
        ("RGBA", {"format": "WEBP", "method": 0}),
        ("RGBA", {"format": "JPEG2000"}),
        ("CMYK", {"format": "TIFF", "compression": "tiff_lzw", "strip_size": 1 << 30}),
        (
            "RGBA",
            {
                "format": "PNG",
                "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6" + bytes(6),
            },
        ),
    ],
)
def test_decoding_takes_no_more_memory_than_is_counted(
    mode: str, options: dict[str, Any], how: str, tmp_path: Path
) -> None:
    file = tmp_path / "image"
    Image.new(mode, (6000, 4000)).save(file, **options)
    with decode.open_header(file, "image") as image:
        counted = checked_memory(image) >> 20
    # Beside it the file itself, and a strip of what is converted.
    assert memory_for(file, tmp_path, how) < counted + 40


def test_an_icon_is_no_image_whatever_it_is_called() -> None:
    # Pillow decodes what is inside before it says how large that is: of 319 bytes 2 GB.
    head = b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, 1 << 20, 22)
    told = refused(lambda: open_image(head + grey(), "a.png", reading="upright"))
    assert told.startswith("a.png cannot be read as an image (its format is not known)")


def test_a_tiny_tiff_of_one_huge_tile_is_refused_by_the_header() -> None:
    # Of 2 MB packed by deflate 16x16 pixels took 2 GB, of which none was counted.
    tags = {
        256: 16,
        257: 16,
        258: 8,
        259: 8,
        262: 1,
        277: 1,
        322: 32768,
        323: 32768,
        324: 8,
        325: 1,
    }
    rows = (struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    whole = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(rows) + bytes(4)
    told = refused(lambda: open_image(whole, "a.tif", reading="upright"))
    assert told.startswith("a.tif: 16x16 pixels of L take 2.1 GB; give a smaller image")


@pytest.mark.parametrize(
    ("how", "is_read"),
    [
        ({"precinct_size": (64, 64)}, True),  # of which each smaller level has half the side
        ({"tile_size": (64, 64), "codeblock_size": (16, 16)}, True),
        ({"precinct_size": (16, 16), "codeblock_size": (8, 8)}, False),
        ({"codeblock_size": (4, 4)}, False),
        ({"tile_size": (16, 16)}, False),
    ],
)
def test_a_jpeg_2000_file_of_very_small_blocks_is_refused(
    how: dict[str, Any], is_read: bool
) -> None:
    # openjpeg holds over 500 bytes of each: a file of 4 MB took 8 GB and more.
    content = encoded(Image.new("RGB", (200, 100)), "JPEG2000", **how)
    if is_read:
        assert open_image(content, "a.jp2", reading="upright").size == (200, 100)
    else:
        told = refused(lambda: open_image(content, "a.jp2", reading="upright"))
        assert told.startswith("a.jp2: its blocks of under 16 pixels take gigabytes")


def test_a_ppm_of_text_with_very_many_comments_is_refused() -> None:
    comments = b"P1 4 4\n" + b"#\n" * 501  # of 9 MB one took an hour
    told = refused(lambda: open_image(comments + b"1 " * 16, "a.pbm", reading="upright"))
    assert told == "a.pbm: over 500 comments, which take minutes; save it anew"
    assert open_image(comments[:-2] + b"1 " * 16, "a.pbm", reading="upright").size == (4, 4)


def test_a_file_that_is_read_in_very_many_parts_is_refused() -> None:
    # The search for a JPEG's next marker goes byte by byte: of 100 MB it had no end.
    told = refused(lambda: open_image(b"\xff\xd8" + b"\xff" * 10**6, "a.jpg", reading="upright"))
    assert told == "a.jpg: it is read in over 100,000 parts; save it anew"


def test_a_picture_of_very_many_rows_is_refused_by_the_header() -> None:
    told = refused(lambda: open_image(png_header(1, 10**8, 0), "a.png", reading="upright"))
    assert told.startswith("a.png: 1x100000000 pixels of L take 3.7 GB")


@pytest.mark.parametrize("reading", ["upright", "upstream"])
@pytest.mark.parametrize("broken", [b"nonsense", zlib.compress(bytes(72))[:-1] + b"?"])
def test_a_picture_whose_pixels_are_broken_is_refused_however_it_is_read(
    broken: bytes, reading: Reading
) -> None:
    # Its EXIF may stand behind its pixels, so Pillow reads these for it, and once more in vain.
    chunk = struct.pack(">I", len(broken)) + b"IDAT" + broken
    chunk += struct.pack(">I", zlib.crc32(b"IDAT" + broken))
    content = grey()[:33] + chunk + b"\0\0\0\0IEND\xae\x42\x60\x82"
    for read in (open_image, read_pixels):
        told = refused(partial(read, content, "a.png", reading=reading))
        assert told.startswith("a.png cannot be read as an image (broken data stream")


def test_pixels_that_pillow_decodes_in_python_have_a_bound_of_their_own() -> None:
    content = b"qoif" + struct.pack(">IIBB", 5000, 5000, 3, 0) + b"\xfd" * 100
    told = refused(lambda: open_image(content, "a.qoi", reading="upright"))
    assert told == (
        "a.qoi: 5000x5000 pixels of QOI take minutes, where 22,369,621 pixels are the most; save "
        "it as PNG"
    )


@pytest.mark.parametrize("progressive", [True, False])
def test_a_jpeg_file_of_very_many_scans_is_refused(progressive: bool) -> None:
    content = encoded(Image.new("RGB", (32, 32), (9, 90, 200)), "JPEG", progressive=progressive)
    last = content.rindex(START_OF_SCAN)
    scan = content[last:-2] if progressive else FIRST_OF_SEVERAL
    assert open_image(content, "a.jpg", reading="upright").size == (32, 32)
    content = content[:last] + 501 * scan + content[last:]
    told = refused(lambda: open_image(content, "a.jpg", reading="upright"))
    assert told == "a.jpg: over 500 scans, which take minutes; save it anew"


def test_threads_decode_no_more_at_a_time_than_the_largest_image_takes() -> None:
    memory, waiting, inside = MemoryInUse(), threading.Event(), threading.Event()
    most = MEMORY_OF_PIXEL * MAX_PIXELS

    class Told(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            waiting.set()
            return super().wait(timeout)

    memory.changed = Told()

    def decode() -> None:
        with memory.of(most // 2):
            inside.set()

    with memory.of(most // 2 + 1):
        thread = threading.Thread(target=decode)
        thread.start()
        assert waiting.wait(60)
        assert not inside.is_set()
    assert inside.wait(60)
    thread.join()
    assert memory.used == 0


def test_an_image_counts_until_it_is_transformed(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = MemoryInUse()
    monkeypatch.setattr(decode, "MEMORY", memory)

    def transform(image: Image.Image) -> torch.Tensor:
        return torch.tensor(memory.used)

    assert as_tensor(grey(), transform, "a.png") > 0
    assert memory.used == 0


def test_an_image_larger_than_the_bound_is_decoded_alone() -> None:
    # Where somebody has lifted the bound meanwhile.
    with MemoryInUse().of(100 * MAX_PIXELS):
        pass


@IS_TOLD
def test_texts_beside_a_picture_are_bounded(tmp_path: Path) -> None:
    content = b"zTXtComment\0\0" + zlib.compress(bytes(300 << 20), 1)
    chunk = struct.pack(">I", len(content) - 4) + content
    bomb = grey()[:33] + chunk + struct.pack(">I", zlib.crc32(content)) + grey()[33:]
    refused(lambda: open_image(bomb, "a.png", reading="upright"))
    (tmp_path / "bomb.png").write_bytes(bomb)
    # Pillow stops at 64, and holds them twice.
    assert memory_for(tmp_path / "bomb.png", tmp_path) < 200


def test_eleven_hundred_nested_folders_are_walked(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    for _ in range(1100):
        folder = folder / "d"
        folder.mkdir()
    (folder / "a.png").write_bytes(grey())
    try:
        assert list(images_of(tmp_path)) == [folder / "a.png"]
    finally:  # in Python it would be too deep
        subprocess.run(["rm", "-r", tmp_path / "deep"], check=True)


def test_a_folder_that_goes_while_it_is_walked_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"a.png": grey(), "gone/b.png": grey(), "stays/c.png": grey()})
    scandir: Callable[[str], object] = os.scandir

    def scan_folder(path: str) -> object:
        if path.endswith("gone"):
            (tmp_path / "gone" / "b.png").unlink()
            (tmp_path / "gone").rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan_folder)
    assert list(images_of(tmp_path)) == [tmp_path / "a.png", tmp_path / "stays" / "c.png"]
