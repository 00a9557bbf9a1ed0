"""From a record, a file or a folder to a model: digest checked, strict, without a second copy.

The network is built on the meta device, the file is mapped into memory and its tensors become the
parameters. Two adaptations are allowed, and only when asked for: another number of classes
(a fresh head) and another image size (positions resampled). Anything else that does not fit is an
error that lists the keys.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deit_zoo.errors import CheckpointError
from deit_zoo.files import (
    ASSETS,
    MODEL_FILE,
    RECEIPT_FILE,
    SUMS_FILE,
    digest,
    read_sums,
    verify,
    write_whole,
)
from deit_zoo.manifest import Checkpoint, LocalCheckpoint
from deit_zoo.models.layers import ZooModel, as_pair, resize_pos_embed
from deit_zoo.registry import ModelSpec
from deit_zoo.weights import cache
from deit_zoo.weights.formats import PICKLES, read_pickle, to_zoo_keys

# The one metadata key: with two, safetensors writes them in random order and bytes differ.
METADATA_KEY = "deit_zoo"
FACTORIES = (torch.empty, torch.full, torch.ones, torch.zeros, torch.tensor)


def resolve_file(record: Checkpoint) -> Path:
    """The verified file of a record: inside the package, on this machine, or fetched.

    Raises IntegrityError where bytes are wrong, OfflineError or DownloadError where there are none.
    """
    for source in record.sources:
        if source.kind == "builtin":
            file = ASSETS / str(source.filename)
            verify(file, str(source.sha256))
            return file

    from deit_zoo.weights.fetch import fetch_checkpoint

    return fetch_checkpoint(record)


def open_local(path: str | os.PathLike[str]) -> LocalCheckpoint:
    """A file, a folder that holds `model.safetensors`, or `hf://ORG/REPO[@REVISION][/FILE]`.

    Where a receipt or SHA256SUMS lies beside the file, the file must have the digest it states.
    Raises CheckpointError for what is not there, IntegrityError where bytes are wrong, and
    DownloadError or OfflineError where an address cannot be fetched.
    """
    if str(path).startswith("hf://"):
        from deit_zoo.weights.fetch import fetch_address

        file, sha256 = fetch_address(str(path))
        return LocalCheckpoint(path=file, sha256=sha256, metadata=read_metadata(file))
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / MODEL_FILE
    if not file.is_file():
        raise CheckpointError(
            f"checkpoint {str(path)!r} does not exist; give a .safetensors or .pth file, a folder "
            f"that holds {MODEL_FILE}, or hf://ORG/REPO"
        )
    sha256 = _stated_digest(file)
    if sha256 is not None:
        cache.check(file, sha256)
    return LocalCheckpoint(path=file, sha256=sha256, metadata=read_metadata(file))


def load_checkpoint(
    spec: ModelSpec,
    file: Path,
    metadata: dict[str, Any],
    *,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
) -> ZooModel:
    """A model of `spec` with the tensors of `file`, in float32 and in eval mode."""
    tensors = read_tensors(file)
    own_classes = _num_classes(spec, tensors, num_classes)
    own_size = _img_size(spec, tensors, metadata)
    size = as_pair(img_size) if img_size is not None else own_size or as_pair(spec.img_size)
    with _Unfilled():
        model: ZooModel = spec.build(
            num_classes=own_classes,
            img_size=size,
            in_chans=in_chans,
            drop_path_rate=drop_path_rate,
        )
    if own_size is not None and size != own_size:
        _resample(spec, tensors, own_size, size)
    _check_fit(model, tensors, file)
    _fill(model, tensors)
    if any(value.dtype != torch.float32 for value in tensors.values()):
        model.float()
    if num_classes is not None and num_classes != own_classes:
        model.reset_classifier(num_classes)
    return model.eval()


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file under the zoo's keys; safetensors are mapped and not yet read."""
    if file.suffix in PICKLES:
        return read_pickle(file)
    try:
        with safe_open(file, framework="pt") as tensors:
            state = {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is not a whole safetensors file ({error}); fetch or export it again"
        ) from error
    return to_zoo_keys(state)


def save_model(model: ZooModel, file: Path, **metadata: Any) -> str:
    """Write the weights with what is needed to load them; whole or not at all. Returns SHA-256.

    The same tensors and metadata give the same bytes.
    """
    facts = {"name": model.spec.name if model.spec else None, "img_size": list(model.img_size)}
    text = json.dumps(facts | metadata, sort_keys=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_whole(file, to_bytes(tensors, metadata={METADATA_KEY: text}))
    return digest(file)


class _Unfilled(TorchFunctionMode):
    """Within it, new tensors have no memory and initialisation does nothing: parameters are about
    to be replaced. As `torch.device("meta")`, in one step for each call instead of two."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        if func in FACTORIES and kwargs.get("device") is None:
            kwargs = kwargs | {"device": "meta"}
        return func(*args, **kwargs)


def _stated_digest(file: Path) -> str | None:
    """The SHA-256 that a receipt or SHA256SUMS beside the file states for it."""
    sums, receipt = file.with_name(SUMS_FILE), file.with_name(RECEIPT_FILE)
    stating = next((path for path in (sums, receipt) if path.is_file()), None)
    try:
        if stating == sums:
            return read_sums(sums)[file.name]
        if stating == receipt:
            return str(json.loads(receipt.read_text(encoding="utf-8"))["sha256"][file.name])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{stating} states no SHA-256 for {file.name}; remove it to load the file without proof"
        ) from error
    return None


def read_metadata(file: Path) -> dict[str, Any]:
    if file.suffix in PICKLES:
        return {}
    try:
        with safe_open(file, framework="pt") as tensors:
            text = (tensors.metadata() or {}).get(METADATA_KEY, "{}")
        facts: dict[str, Any] = json.loads(text)
        if not isinstance(facts, dict):
            raise ValueError(f"its metadata is {text}")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} is not a whole safetensors file ({error}); fetch or export it again"
        ) from error
    return facts


def _num_classes(spec: ModelSpec, tensors: dict[str, Tensor], num_classes: int | None) -> int:
    for key in ("head.weight", "head.fc.weight"):  # the second is the RegNet's
        if key in tensors and tensors[key].ndim == 2:
            return tensors[key].shape[0]
    return spec.num_classes if num_classes is None else 0


def _img_size(
    spec: ModelSpec, tensors: dict[str, Tensor], metadata: dict[str, Any]
) -> tuple[int, int] | None:
    """The image size a file was saved at: as it says, or else the square of its positions."""
    if "img_size" in metadata:
        return as_pair(metadata["img_size"])
    if (table := _positions(spec, tensors)) is None:
        return None
    patches = table.shape[1] - _num_prefix(spec)
    side = math.isqrt(max(patches, 0))
    return as_pair(side * spec.arch["patch_size"]) if 0 < side * side == patches else None


def _resample(
    spec: ModelSpec,
    tensors: dict[str, Tensor],
    own_size: tuple[int, int],
    size: tuple[int, int],
) -> None:
    """Fit the positions to another image size, unless they are not of the one they came with."""
    if (table := _positions(spec, tensors)) is None:
        return
    patch, prefix = spec.arch["patch_size"], _num_prefix(spec)
    grid, new_grid = ((height // patch, width // patch) for height, width in (own_size, size))
    if table.shape[1] == prefix + grid[0] * grid[1]:
        tensors["pos_embed"] = resize_pos_embed(table.float(), grid, new_grid, prefix)


def _positions(spec: ModelSpec, tensors: dict[str, Tensor]) -> Tensor | None:
    table = tensors.get("pos_embed")
    return table if table is not None and table.ndim == 3 and "patch_size" in spec.arch else None


def _num_prefix(spec: ModelSpec) -> int:
    if spec.family == "cait":
        return 0
    return 2 if spec.arch.get("distilled") else 1


def _fill(model: ZooModel, tensors: dict[str, Tensor]) -> None:
    """Make the tensors the parameters and buffers of those names: `load_state_dict` with
    `assign=True` in less than half the time, after `_check_fit` has found that all fit."""
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for name, _ in tuple(module.named_parameters(recurse=False)):
            module.register_parameter(name, nn.Parameter(tensors[prefix + name]))
        for name, _ in tuple(module.named_buffers(recurse=False)):
            module.register_buffer(name, tensors[prefix + name])


def _check_fit(model: ZooModel, tensors: dict[str, Tensor], file: Path) -> None:
    state = model.state_dict()
    wrong = [f"missing {key}" for key in sorted(state.keys() - tensors.keys())]
    wrong += [f"unexpected {key}" for key in sorted(tensors.keys() - state.keys())]
    both = [(key, tensors[key], state[key]) for key in sorted(state.keys() & tensors.keys())]
    wrong += [
        f"{key} is {tuple(tensor.shape)}, not {tuple(own.shape)}"
        for key, tensor, own in both
        if tensor.shape != own.shape
    ]
    wrong += [
        f"{key} holds {tensor.dtype}"
        for key, tensor, own in both
        if tensor.is_floating_point() != own.is_floating_point()
    ]
    if wrong:
        name = model.spec.name if model.spec else type(model).__name__
        shown = ", ".join(wrong[:8]) + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise CheckpointError(
            f"{file} does not fit {name}: {shown}; give the model and the img_size "
            "that it was saved of"
        )
