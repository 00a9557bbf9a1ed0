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
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from deit_zoo.errors import CheckpointError, DownloadError, IntegrityError
from deit_zoo.files import digest, write_whole
from deit_zoo.manifest import Checkpoint, LocalCheckpoint, Source
from deit_zoo.models.layers import ZooModel, as_pair, resize_pos_embed
from deit_zoo.registry import ModelSpec

EMBEDDED = Path(__file__).parent / "embedded"
MODEL_FILE = "model.safetensors"
RECEIPT_FILE = "receipt.json"
# The one metadata key: with two, safetensors writes them in random order and bytes differ.
METADATA_KEY = "deit_zoo"


def locate(checkpoint: Checkpoint) -> Path:
    """The file of a record, its digest checked, from the first source that has it.

    Raises DownloadError with the reason of each source, IntegrityError where bytes are wrong.
    """
    reasons = []
    for source in checkpoint.sources:
        if source.kind == "builtin":
            path = EMBEDDED / str(source.filename)
            verify(path, str(source.sha256))
            return path
        reasons.append(f"{_place(source)}: this version of deit_zoo does not fetch files yet")
    raise DownloadError(
        f"the weights of {checkpoint.name} could not be had from any source ({'; '.join(reasons)});"
        f" download the file by other means and pass create({checkpoint.name!r}, checkpoint=FILE)"
    )


def local(path: str | os.PathLike[str]) -> LocalCheckpoint:
    """A safetensors file, or a folder that holds `model.safetensors`.

    Where a receipt lies beside the file, the file must have the digest it states.
    Raises CheckpointError for what is not there, IntegrityError where bytes are wrong.
    """
    if str(path).startswith("hf://"):
        raise DownloadError(
            f"checkpoint {str(path)!r} is on the Hub, and this version of deit_zoo does not fetch "
            "files yet; download it by other means and pass checkpoint=FILE"
        )
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / MODEL_FILE
    if not file.is_file():
        raise CheckpointError(
            f"checkpoint {str(path)!r} does not exist; give a .safetensors file, or a folder that "
            f"holds {MODEL_FILE}"
        )
    if file.suffix in {".pth", ".pt", ".bin"}:
        raise CheckpointError(
            f"checkpoint {str(path)!r} is a pickle, which this version of deit_zoo does not read; "
            "give a .safetensors file"
        )
    sha256 = _receipt_digest(file)
    if sha256 is not None:
        verify(file, sha256)
    return LocalCheckpoint(path=file, sha256=sha256, metadata=_metadata(file))


def load(
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
    tensors = read(file)
    held = _num_classes(spec, tensors, num_classes)
    own_size = _img_size(spec, tensors, metadata)
    size = as_pair(img_size) if img_size is not None else own_size or as_pair(spec.img_size)
    with torch.device("meta"):
        model: ZooModel = spec.build(
            num_classes=held, img_size=size, in_chans=in_chans, drop_path_rate=drop_path_rate
        )
    if own_size is not None and size != own_size:
        _resample(spec, tensors, own_size, size)
    _check_fit(model, tensors, file)
    model.load_state_dict(tensors, strict=True, assign=True)
    model.float()
    if num_classes is not None and num_classes != held:
        model.reset_classifier(num_classes)
    return model.eval()


def read(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, mapped into memory and not yet read."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is not a whole safetensors file ({error}); fetch or export it again"
        ) from error


def save(model: ZooModel, file: Path, **metadata: Any) -> str:
    """Write the weights with what is needed to load them; whole or not at all. Returns SHA-256.

    The same tensors and metadata give the same bytes.
    """
    facts = {"name": model.spec.name if model.spec else None, "img_size": list(model.img_size)}
    text = json.dumps(facts | metadata, sort_keys=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_whole(file, to_bytes(tensors, metadata={METADATA_KEY: text}))
    return digest(file)


def verify(file: Path, sha256: str) -> None:
    """Raises IntegrityError with both digests unless the file has this SHA-256."""
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; reinstall deit_zoo")
    if (found := digest(file)) != sha256:
        raise IntegrityError(
            f"{file} has SHA-256 {found}, not {sha256}; remove the file and get it again"
        )


def _receipt_digest(file: Path) -> str | None:
    receipt = file.with_name(RECEIPT_FILE)
    if not receipt.is_file():
        return None
    try:
        stated = json.loads(receipt.read_text(encoding="utf-8"))["sha256"][file.name]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{receipt} states no SHA-256 for {file.name}; remove the receipt to load the file "
            "without proof"
        ) from error
    return str(stated)


def _metadata(file: Path) -> dict[str, Any]:
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


def _num_classes(spec: ModelSpec, tensors: dict[str, Tensor], asked: int | None) -> int:
    if "head.weight" in tensors and tensors["head.weight"].ndim == 2:
        return tensors["head.weight"].shape[0]
    return spec.num_classes if asked is None else 0


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


def _check_fit(model: ZooModel, tensors: dict[str, Tensor], file: Path) -> None:
    state = model.state_dict()
    wanted = {key: tuple(value.shape) for key, value in state.items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    both = sorted(wanted.keys() & found.keys())
    wrong = [f"missing {key}" for key in sorted(wanted.keys() - found.keys())]
    wrong += [f"unexpected {key}" for key in sorted(found.keys() - wanted.keys())]
    wrong += [
        f"{key} is {found[key]}, not {wanted[key]}" for key in both if wanted[key] != found[key]
    ]
    wrong += [
        f"{key} holds {tensors[key].dtype}"
        for key in both
        if tensors[key].is_floating_point() != state[key].is_floating_point()
    ]
    if wrong:
        name = model.spec.name if model.spec else type(model).__name__
        shown = ", ".join(wrong[:8]) + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise CheckpointError(
            f"{file} does not fit {name}: {shown}; give the model and the img_size "
            "that it was saved of"
        )


def _place(source: Source) -> str:
    return str(source.url) if source.kind == "url" else f"the Hub's {source.repo_id}"
