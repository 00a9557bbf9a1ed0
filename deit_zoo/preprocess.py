"""Moved to `deit_zoo.data.transforms`; this name goes in 0.3."""

import warnings
from functools import partial

from deit_zoo.data.transforms import EvalTransform, open_image

warnings.warn(
    "deit_zoo.preprocess has moved; use deit_zoo.data.transforms", DeprecationWarning, stacklevel=2
)

open_photo = partial(open_image, reading="upright")

__all__ = ["EvalTransform", "open_photo"]
