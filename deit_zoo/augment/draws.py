"""What chance decides about an image, apart from what is done to its pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from deit_zoo.augment.record import Box, Layer

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


class Operation(NamedTuple):
    """A function on an image, with its arguments."""

    function: Callable[..., Image.Image]
    arguments: tuple[Any, ...]
    options: dict[str, Any] = {}  # noqa: RUF012 (a default that nobody changes)

    def __call__(self, image: Image.Image) -> Image.Image:
        return self.function(image, *self.arguments, **self.options)


class Draws(NamedTuple):
    """What chance decides about one image, in the order in which it is done."""

    box: Box  # the crop, of the image as it was read
    flip: bool
    operations: tuple[Operation, ...]  # a layer of RandAugment that is skipped has none
    erase: Box | None  # of the finished image
    noise: Tensor | None  # what is put there, (3, height, width) float32


class Augment(Protocol):
    """How training images are augmented: draws by an image's size alone, then pixels."""

    img_size: tuple[int, int]
    layers: int  # of operations, where a device does them
    on_device: bool  # whether it can

    def draw(self, width: int, height: int) -> Draws:
        """The draws for an image of this size, by the generators as `seed_from_key` left them."""

    def layers_of(self, draws: Draws) -> list[Layer]:
        """The operations as a device takes them."""

    def by_pillow(self, crop: Image.Image, draws: Draws) -> Image.Image:
        """A crop of `draws.box` as it is before it is normalised and erased."""
