"""Small images as files, and the sentence of a refusal."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deit_zoo.errors import DataError

COLOURS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}
# The first bytes of a photograph of an iPhone.
HEIC = b"\0\0\0\x24ftypheic\0\0\0\0mif1MiHEmiafheic" + bytes(64)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image as a file's bytes."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(colour: str, size: tuple[int, int] = (6, 4)) -> bytes:
    """A PNG of one colour."""
    return encoded(Image.new("RGB", size, COLOURS[colour]))


def write(root: Path, files: dict[str, bytes]) -> Path:
    """Write files under a folder."""
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return root


def refused(call: Callable[[], object]) -> str:
    """The sentence of a refusal."""
    with pytest.raises(DataError) as caught:
        call()
    return str(caught.value)
