"""What this machine can do: its devices, its cores, its compiler."""

from __future__ import annotations

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


def require_matplotlib() -> None:
    """Raises MissingExtraError where no picture can be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "a picture needs matplotlib; type: pip install 'deit_zoo[train]'"
        ) from error
