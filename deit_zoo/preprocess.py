"""Moved to `deit_zoo.data.transforms` and `decode`; this name goes in 0.3."""

import warnings
from functools import partial

from deit_zoo.data.decode import open_image

warnings.warn(
    "deit_zoo.preprocess has moved; use deit_zoo.data.transforms", DeprecationWarning, stacklevel=2
)

open_photo = partial(open_image, reading="upright")


def __getattr__(name: str) -> object:
    if name == "EvalTransform":
        from deit_zoo.data.transforms import EvalTransform

        return EvalTransform
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
