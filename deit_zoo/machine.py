"""What this machine can do: its devices, its cores, its compiler."""

from __future__ import annotations

import os
import shutil
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from deit_zoo.errors import MissingExtraError, ZooError

if TYPE_CHECKING:
    import torch


def usable_device(device: str | torch.device) -> torch.device:
    """A device by its name. Raises ZooError where this machine cannot use it."""
    import torch

    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ZooError(
            f"device {str(device)!r} cannot be used here ({reason}); give 'cpu', or 'cuda' where "
            "PyTorch finds a GPU"
        ) from error
    return place


def usable_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def missing_compiler() -> str | None:
    """The C++ compiler that torch would call and that is not on the PATH; None where it is."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    return None if shutil.which(compiler) else compiler


def require_extra(extra: str, what: str, *modules: str) -> None:
    """Raises MissingExtraError, with what to type, where a module of an extra is not installed."""
    names = [module.split(".")[0] for module in modules]
    listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            raise MissingExtraError(
                f"{what} needs {listed}; type: pip install 'deit_zoo[{extra}]'"
            ) from error


def require_matplotlib() -> None:
    """Raises MissingExtraError where no picture can be drawn."""
    require_extra("train", "a picture", "matplotlib.figure")


def world_size() -> int | None:
    """The number of processes of which torchrun started this one; None without it."""
    size = os.environ.get("WORLD_SIZE") if "RANK" in os.environ else None
    return int(size) if size is not None else None


def check_processes(
    gpus: int | None,
    processes: int | None,
    *,
    dashes: str = "",
    error: type[ZooError] = ZooError,
) -> None:
    """Raises `error` where so many cannot be meant; `dashes` stand before a command's options."""
    if gpus and processes is not None:
        raise error(
            f"{dashes}processes {processes} is for the CPU; with {dashes}gpus {gpus} each GPU has "
            "one process"
        )
    if gpus is not None and gpus < 0:
        raise error(f"{dashes}gpus is {gpus}; give a number of GPUs, or 0 for the CPU")
    if processes is not None and processes < 1:
        raise error(f"{dashes}processes is {processes}; give 1 or more")


def check_gpus(
    gpus: int, *, dashes: str = "", error: type[ZooError] = ZooError, advice: str = ""
) -> None:
    """Raises `error` where torch sees fewer GPUs; `advice` is for a machine that has none."""
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < gpus:
        seen = f"{found} here" if found else "none here"
        raise error(
            f"{dashes}gpus is {gpus}, but torch sees {seen}; give {dashes}gpus {found}"
            f"{'' if found else advice}"
        )
