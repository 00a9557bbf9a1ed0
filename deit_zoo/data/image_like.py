"""What an image may be given as: a path, an address, bytes, an open file, pixels, a PIL image."""

from __future__ import annotations

import os
from contextlib import suppress
from inspect import iscoroutinefunction
from io import TextIOBase
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deit_zoo.data.image_file import DATA_URL, missing_image
from deit_zoo.data.remote import NotFetchedError, is_address, local_path, read_address
from deit_zoo.errors import DataError

Encoded: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]
ImageLike: TypeAlias = Encoded | Image.Image | NDArray[Any] | Tensor
URL_LIMIT, URL_SECONDS = 64 * 2**20, 120.0
KINDS = (
    "a path, a URL, the bytes of an encoded image, a file opened with 'rb', a PIL image, an array "
    "(H, W, 3) or a tensor (3, H, W)"
)
TEXT_FILE = "the file is open as text; open it with 'rb'"


def is_one(images: object) -> bool:
    """Whether this is one image, or anything else that is not many."""
    single = isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image)
    single = single or hasattr(images, "read") or not hasattr(images, "__iter__")
    ndim = getattr(images, "ndim", 4)
    # A column of paths is many, of pandas or NumPy; numbers in a row are no image.
    kind = getattr(getattr(images, "dtype", None), "kind", None)
    is_column = ndim == 1 and kind in ("O", "S", "T", "U")
    return single or isinstance(images, dict) or (ndim < 4 and not is_column)


def is_url(image: object) -> bool:
    """Whether an image is meant by its address."""
    return isinstance(image, str) and image.startswith(("http://", "https://"))


def source_of(image: Any) -> Path | bytes | Image.Image:
    """Where an image is to be read from, or the image. Raises DataError for what is none."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str) and image.startswith(DATA_URL):
        raise missing_image(image)
    if is_url(image):
        return fetch(image)
    if is_address(image):
        return read_address(image)
    if isinstance(image, str | os.PathLike):
        if image == "":
            raise DataError(f"an empty text is no image; give {KINDS}")
        return Path(local_path(image))
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if hasattr(image, "read"):
        if isinstance(image, TextIOBase):
            raise DataError(TEXT_FILE)
        if iscoroutinefunction(image.read):
            raise DataError(
                f"{type(image).__name__} is read by await; give its .file, or what await "
                "image.read() gives"
            )
        with suppress(OSError):  # of a pipe
            image.seek(0)
        content = image.read()
        if isinstance(content, bytes):
            return content
        raise DataError(TEXT_FILE)
    if isinstance(image, np.ndarray | Tensor):
        return from_pixels(image)
    raise DataError(f"{type(image).__name__} is no image; give {KINDS}")


def name_of(image: Any) -> str:
    """What an image is called in an error."""
    if isinstance(image, str | os.PathLike):
        return str(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return "the given bytes"
    return str(getattr(image, "name", None) or f"the given {type(image).__name__}")


def from_pixels(pixels: NDArray[Any] | Tensor) -> Image.Image:
    """An image of pixels in RGB order: an array (H, W, 3) or a tensor (3, H, W), uint8, uint16 (by
    its upper 8 bits) or floats from 0 to 1; (H, W) is grey, four channels have alpha.
    """
    kind = str(pixels.dtype).removeprefix("torch.")
    if is_tensor := isinstance(pixels, Tensor):
        given = f"the tensor {tuple(pixels.shape)} of {kind}"
        tensor = pixels.detach().cpu()
        # NumPy has no bfloat16.
        array = (tensor.double() if tensor.is_floating_point() else tensor).numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    else:
        array, given = pixels, f"the array {pixels.shape} of {kind}"
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        shape = "(3, H, W)" if is_tensor else "(H, W, 3)"
        raise DataError(f"{given} has not the shape of an image; give {shape}, in RGB order")
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        if array.size and not (array.min() >= 0 and array.max() <= 1):  # nor NaN
            raise DataError(f"{given} has values beyond 0 to 1; give uint8, before normalising")
        array = (array.astype(np.float64) * 255).round().astype(np.uint8)
    elif array.dtype != np.uint8:
        raise DataError(f"{given} has no defined range; give uint8, or floats from 0 to 1")
    return Image.fromarray(np.ascontiguousarray(array))


def fetch(url: str) -> bytes:
    """The bytes behind an address. Raises DataError with the reason where there are none, and of
    its kinds NotFetchedError where the reason may be gone later."""
    from requests import exceptions

    from deit_zoo.weights import web

    try:
        with web.get(url, timeout=30, seconds=URL_SECONDS) as (response, body):
            response.raise_for_status()
            content = bytearray()
            for piece in body:
                content += piece
                if len(content) > URL_LIMIT:
                    raise DataError(
                        f"{url} is larger than {URL_LIMIT >> 20} MiB; fetch it yourself"
                    )
            return bytes(content)
    except exceptions.RequestException as error:
        reason = web.reason_of(error)
        status = 0 if error.response is None else error.response.status_code
        lost = exceptions.ConnectionError, exceptions.Timeout, exceptions.ChunkedEncodingError
        may_pass = status == 429 or status >= 500 or isinstance(error, lost)
    kind = NotFetchedError if may_pass else DataError
    raise kind(f"{url} could not be fetched: {reason}")
