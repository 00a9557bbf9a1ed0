"""What a loader's worker leaves of a place: a row of words, and the bytes that they point to.

A place is one image of one virtual replica in one step. A slot holds the rows of its places first,
`num_words(layers)` words of 8 bytes each, then crops and noise. A word is an int64; the arguments
of operations are float64 in the same block.
"""

from __future__ import annotations

from typing import NamedTuple

# The words of a row. A crop is (height, width, 3) uint8; flipping comes after resizing, operations
# after flipping, erasing after normalisation. Offsets are in bytes, from the start of the slot.
OFFSET, HEIGHT, WIDTH, FLIP = 0, 1, 2, 3
ROW, LABEL, BAD = 4, 5, 6  # where the image goes; its class; 1 + the number of an unreadable image
PLACE = slice(OFFSET, BAD + 1)  # the seven
ERASE_TOP, ERASE_LEFT, ERASE_HEIGHT, ERASE_WIDTH = 7, 8, 9, 10  # of height 0: nothing is erased
ERASE = slice(ERASE_TOP, ERASE_WIDTH + 1)  # the four, as a Box has them
NOISE = 11  # the offset of what is put there, (3, height, width) float32
FIRST_LAYER = 12  # then for each layer of RandAugment: the operation, and six arguments
ARGUMENTS = 6
LAYER = 1 + ARGUMENTS

# Operations by their number; their arguments are those of timm's functions of the same name, but
# for the five that move pixels, which have the six of an inverse affine map as Pillow takes it.
NO_OPERATION = -1
OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "Rotate",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
)
FILL = (124, 116, 104)  # where a moved image shows nothing


class Box(NamedTuple):
    """Pixels of an image."""

    top: int
    left: int
    height: int
    width: int


class Layer(NamedTuple):
    """One operation on an image: its number in OPERATIONS, and its arguments."""

    operation: int
    arguments: tuple[float, ...]


def num_words(layers: int) -> int:
    """The length of a row."""
    return FIRST_LAYER + layers * LAYER
