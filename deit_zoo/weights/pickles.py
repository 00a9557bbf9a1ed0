"""What others pickled, read by torch's restricted unpickler: data alone, and no code is run.

Beside their weights training scripts leave arguments, figures and paths. What such an object is
must stand in the list here, by its name; any other name ends the reading.
"""

from __future__ import annotations

import pickle
import re
import threading
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Iterable
from datetime import date, datetime, timedelta, timezone
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any
from zipfile import ZIP_STORED, ZipFile, is_zipfile

import numpy as np
import torch
from torch.torch_version import TorchVersion

from deit_zoo.errors import CheckpointError
from deit_zoo.files import OpenedFile

# A path of another system is read as one that only spells it.
_PATHS = {
    "PosixPath": PurePosixPath,
    "WindowsPath": PureWindowsPath,
    "PurePosixPath": PurePosixPath,
    "PureWindowsPath": PureWindowsPath,
}
_NUMPY = {
    "scalar": np.float64(0).__reduce__()[0],
    "_reconstruct": np.zeros(0).__reduce__()[0],
}
# The unpickler fills no dict but these; what others make of one is of no use here.
_DICTS = (
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "addict.addict.Dict",
    "easydict.EasyDict",
    "yacs.config.CfgNode",
)


def _plain_dict(factory: object = None) -> dict[Any, Any]:
    return {}


def _plain_range(*bounds: int) -> tuple[int, ...]:
    """Its bounds: what is made of all its numbers could be of any size."""
    return bounds


def _plain_list(items: Iterable[Any] = (), maxlen: int | None = None) -> list[Any]:
    return list(items)


_SAFE: list[Any] = [
    *(Namespace, SimpleNamespace, TorchVersion),
    *(date, datetime, timedelta, timezone),
    *(bool, dict, float, frozenset, int, list, slice, str, tuple),
    *(np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdgUSO")),
    (_plain_dict, "collections.defaultdict"),
    (_plain_list, "collections.deque"),
    (_plain_range, "builtins.range"),
    *((OrderedDict, name) for name in _DICTS),
    *(
        (call, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name, call in _NUMPY.items()
    ),
    *(
        (path, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name, path in _PATHS.items()
    ),
]

# torch's list of what is allowed is the process's: one thread would take back another's.
_ALLOWANCE = threading.Lock()


def _check_stored(file: Path | OpenedFile) -> None:
    """Raises CheckpointError for parts that are packed, as torch.save never does: what is made of
    them could be of any size."""
    with ZipFile(file) as archive:
        if any(part.compress_type != ZIP_STORED for part in archive.infolist()):
            raise CheckpointError(
                f"{file} is a packed archive, or a program as TorchScript saves it; give a file of "
                "the model's state_dict()"
            )


def read_pickled(file: Path | OpenedFile) -> Any:
    """The content of a file of torch.save. Raises CheckpointError where it holds more than data."""
    try:
        with _ALLOWANCE, torch.serialization.safe_globals(_SAFE), open(file, "rb") as stream:
            # By its path torch maps a file, but takes one of this suffix for what it is not.
            mapped = is_zipfile(file) and file.suffix != ".safetensors"
            if mapped:
                _check_stored(file)
            source: Any = file if mapped else stream
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"asks for {blocked[1]}, which could run code" if blocked else "is no plain pickle"
        raise CheckpointError(
            f"{file} {what}, so it was not read; give a safetensors file"
        ) from error
    except Exception as error:  # of damaged bytes the unpickler can make anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{file} is not a whole PyTorch file ({reason}); fetch it again"
        ) from error
