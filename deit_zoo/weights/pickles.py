"""What others pickled, read by torch's restricted unpickler: data alone, and no code is run.

Beside their weights training scripts leave arguments, figures and paths. What a pickle calls to
make such an object must stand in the list here, by its name; any other call ends the reading.
Nothing is made of them, nor of what a pickle only names: the weights are tensors in dicts.
"""

from __future__ import annotations

import os
import pickle
import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from tarfile import is_tarfile
from typing import IO, Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import torch

from deit_zoo.errors import CheckpointError
from deit_zoo.files import OpenedFile
from deit_zoo.weights.pickle_scan import scan_pickle


class _Ignored:
    """Whatever it was, its arguments and state are of no use here."""

    def __new__(cls, *arguments: object) -> _Ignored:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


# The unpickler fills no dict and no list but these.
class _PlainDict:
    def __new__(cls, *arguments: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


def _plain_list(*arguments: object) -> list[Any]:
    return []


_IGNORED = (
    *("argparse.Namespace", "types.SimpleNamespace", "torch.torch_version.TorchVersion"),
    *("functools.partial", "builtins.getattr"),
    "mmengine.logging.history_buffer.HistoryBuffer",
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
    *("omegaconf.base.Metadata", "omegaconf.base.ContainerMetadata"),
    *(
        f"omegaconf.nodes.{kind}Node"
        for kind in ("Any", "Boolean", "Bytes", "Float", "Integer", "Path", "String")
    ),
    *(f"datetime.{name}" for name in ("date", "datetime", "timedelta", "timezone")),
    *(
        f"builtins.{name}"
        for name in (
            *("bool", "dict", "float", "frozenset", "int", "list", "range", "slice", "str"),
            "tuple",
        )
    ),
    *("numpy.ndarray", "numpy.dtype"),
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    *(
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    ),
)
_DICTS = (
    "collections.defaultdict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "addict.addict.Dict",
    "easydict.EasyDict",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
    "yacs.config.CfgNode",
)
_SAFE: list[Any] = [
    *((_Ignored, name) for name in _IGNORED),
    *((_PlainDict, name) for name in _DICTS),
    (_plain_list, "collections.deque"),
]
MOST_NAMES = 256  # of classes and functions that a pickle may name besides; torch looks through all

# torch's list of what is allowed is the process's: one thread would take back another's.
_ALLOWANCE = threading.Lock()
# In what torch.save wrote before 1.6: a number, a version, the system, the content, its storages.
_LEGACY_PICKLES = 5


def read_pickled(file: Path | OpenedFile) -> Any:
    """The content of a file of torch.save. Raises CheckpointError where it holds more than data,
    would take more memory than it, or has not the CRC-32 that it states."""
    try:
        with _ALLOWANCE, torch.serialization.safe_globals(_SAFE), open(file, "rb") as stream:
            is_zip = stream.read(4) == b"PK\3\4"  # as torch knows one
            stream.seek(0)
            allowed, named = _allowed_names(), set[str]()
            for pickled in _pickles_in(file, stream, is_zip):
                named |= scan_pickle(pickled, str(file), allowed)
                if len(named) > MOST_NAMES:
                    raise CheckpointError(
                        f"{file} names {len(named):,} classes and functions, far more than "
                        "training leaves; give a safetensors file"
                    )
            stream.seek(0)
            # By its path torch maps a file, but takes one of this suffix for what it is not.
            mapped = is_zip and file.suffix != ".safetensors"
            source: Any = file if mapped else stream
            uncalled: list[Any] = [(_Ignored, name) for name in named - allowed]
            with torch.serialization.safe_globals(uncalled):
                return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"asks for {blocked[1]}, which could run code" if blocked else "is no plain pickle"
        cure = _cure(blocked[1] if blocked else "")
        raise CheckpointError(f"{file} {what}, so it was not read; {cure}") from error
    except Exception as error:  # of damaged bytes the unpickler can make anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{file} is not a whole PyTorch file ({reason}); fetch it again"
        ) from error


def _cure(name: str) -> str:
    """What to give instead: a library's class, or one's own, can be trusted by who knows it."""
    package, dot, _ = name.partition(".")
    if not dot or package in sys.stdlib_module_names:
        return "give a safetensors file"
    if package == "deit_zoo":  # torch.save(model)
        return (
            "where you trust it, write the model that torch.load(FILE, weights_only=False) gives "
            "by deit_zoo.save"
        )
    return (
        "where you trust it, load it by torch.load(FILE, weights_only=False), and torch.save the "
        "state dict that is in it, or the model's .state_dict(), to a new file"
    )


def _allowed_names() -> set[str]:
    """What the unpickler may call besides torch's own: ours, and what the process has added."""
    entries: list[Any] = torch.serialization.get_safe_globals()
    return {
        entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"
        for entry in entries
    }


def _pickles_in(file: Path | OpenedFile, stream: IO[bytes], is_zip: bool) -> Iterator[IO[bytes]]:
    """The pickles that torch.load would read, each of them begun."""
    if is_zip:
        with ZipFile(file) as archive:
            _check_parts(archive, file)
            for part in archive.infolist():
                if _is_content(part):
                    yield BytesIO(archive.read(part))
    elif is_tarfile(file):
        raise ValueError("it is laid out as a tar archive")  # torch would look for others in it
    else:
        for _ in range(_LEGACY_PICKLES):
            yield stream


def _is_content(part: ZipInfo) -> bool:
    return part.orig_filename.lower().endswith("data.pkl")  # as torch finds it


def _check_parts(archive: ZipFile, file: Path | OpenedFile) -> None:
    """Raises CheckpointError for parts that are packed, as torch.save never does: what is made of
    them could be of any size. And for a part with another CRC-32 than is stated."""
    parts = archive.infolist()
    if parts and not any(map(_is_content, parts)):
        raise CheckpointError(
            f"{file} holds no weights of PyTorch: it is an archive of {parts[0].filename!r:.80}, "
            "as NumPy's .npz, Keras's .keras or a packed folder; give PyTorch's weights"
        )
    if any(part.compress_type != ZIP_STORED for part in parts):
        raise CheckpointError(
            f"{file} is a packed archive, or a program as TorchScript saves it; give a file of "
            "the model's state_dict()"
        )
    begin = min((part.header_offset for part in parts), default=0)
    # Torch would find another list of parts where there is more around them.
    if begin or archive.comment or sum(part.file_size for part in parts) > os.stat(file).st_size:
        raise ValueError("its parts overlap, or reach beyond it")
    for part in parts:
        if part.CRC == 0:  # torch was told not to compute it
            del part.CRC
        with archive.open(part) as content:
            while content.read(1 << 20):
                pass
