"""What this machine can do: its devices, its cores, its compiler."""

from __future__ import annotations

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
