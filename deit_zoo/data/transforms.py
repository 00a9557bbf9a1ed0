"""From an image file to the tensor that the published figures were measured on.

Resize the short side bicubically, crop the centre, scale to [0, 1], normalise (upstream's
evaluation transform, section "Evaluate" of its README). Pillow alone; bit-equal to torchvision
over the Pillow of that time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import torch
from PIL import Image
from torch import Tensor

from deit_zoo.data.bounds import MAX_PIXELS_ENVIRONMENT, max_pixels
from deit_zoo.data.decode import decoded, image_errors, opened, to_rgb, upright
from deit_zoo.data.image_like import ImageLike, name_of, source_of
from deit_zoo.errors import DataError, ImageSizeError, is_real
from deit_zoo.machine import without_warnings
from deit_zoo.manifest import IMAGENET_MEAN, IMAGENET_STD, manifest_record
from deit_zoo.models.layers import as_pair
from deit_zoo.models.model import ZooModel, in_chans_of, spec_of, unwrapped
from deit_zoo.registry import ModelSpec

_DECODING = Lock()


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalTransform:
    """An image, as `classify` takes it, to a normalised float32 tensor (3, H, W).

    `crop_pct` is the share of the resized short side that the crop keeps: 224 / 0.875 resizes to
    256. A rectangular `img_size` (height, width) is cut from the smallest resize that covers it.
    """

    mean, std, interpolation = IMAGENET_MEAN, IMAGENET_STD, "bicubic"
    img_size: tuple[int, int]
    crop_pct: float

    def __post_init__(self) -> None:
        if not (is_real(self.crop_pct) and 0.0 < self.crop_pct <= 1.0):
            raise ImageSizeError(
                f"crop_pct is {self.crop_pct!r}; give a share above 0 and up to 1, such as 0.875"
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
    """The evaluation transform of a name at an image size; the published crop unless given."""
    crop = float(manifest_record(spec.name).crop_pct) if crop_pct is None else crop_pct
    return EvalTransform(img_size=as_pair(img_size), crop_pct=crop)


def transform_of(
    model: ZooModel, img_size: int | Sequence[int] | None = None, crop_pct: float | None = None
) -> EvalTransform:
    """That of a model, at its image size and with its crop unless others are given."""
    model = unwrapped(model)
    spec, num = spec_of(model), in_chans_of(model)
    if num != len(IMAGENET_MEAN):
        raise ImageSizeError(
            f"the model has in_chans={num}, and files are read as RGB: give model(x) "
            f"tensors of shape (B, {num}, {model.img_size[0]}, {model.img_size[1]}) yourself, or "
            "create it with in_chans=3 to classify, evaluate, serve or export it"
        )
    crop = getattr(model, "crop_pct", None) if crop_pct is None else crop_pct  # no RegNet's
    return eval_transform(spec, model.img_size if img_size is None else img_size, crop)


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


def as_tensor(
    image: ImageLike, transform: Callable[[Image.Image], Tensor], name: str = ""
) -> Tensor:
    """An image of any kind, read upright and transformed. Raises DataError naming it."""
    name = name or name_of(image)
    with image_errors(name):
        source = source_of(image)
    if isinstance(source, Path | bytes):
        # Its pixels count among those that all threads hold until they are transformed.
        with opened(source, name) as file:
            return transform(decoded(file, "upright"))
    # The same image may be given twice, and no image is decoded by two threads at once.
    with _DECODING, without_warnings(), image_errors(name):
        source.load()
        source = upright(source)
    return transform(source)
