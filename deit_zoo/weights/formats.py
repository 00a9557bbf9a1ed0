"""Checkpoints as others wrote them, as plain tensors under the zoo's keys. No code is run.

Upstream's `.pth`: weights under `model`, CaiT's keys behind `module.`, optimizer and arguments
beside them. transformers' DeiT and ViT files: another key layout, with queries, keys and values
apart.
"""

from __future__ import annotations

import argparse
import pickle
import re
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from deit_zoo.errors import CheckpointError
from deit_zoo.files import digest, write_whole

PICKLES = frozenset((".pth", ".pt", ".bin"))

# transformers' keys and ours; `deit.` in front is read as `vit.`.
_TRANSFORMERS = (
    (r"vit\.embeddings\.cls_token", "cls_token"),
    (r"vit\.embeddings\.distillation_token", "dist_token"),
    (r"vit\.embeddings\.position_embeddings", "pos_embed"),
    (r"vit\.embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"vit\.encoder\.layer\.(\d+)\.layernorm_before\.(weight|bias)", r"blocks.\1.norm1.\2"),
    (r"vit\.encoder\.layer\.(\d+)\.layernorm_after\.(weight|bias)", r"blocks.\1.norm2.\2"),
    (
        r"vit\.encoder\.layer\.(\d+)\.attention\.output\.dense\.(weight|bias)",
        r"blocks.\1.attn.proj.\2",
    ),
    (r"vit\.encoder\.layer\.(\d+)\.intermediate\.dense\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (r"vit\.encoder\.layer\.(\d+)\.output\.dense\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (r"vit\.layernorm\.(weight|bias)", r"norm.\1"),
    (r"(?:cls_)?classifier\.(weight|bias)", r"head.\1"),
    (r"distillation_classifier\.(weight|bias)", r"head_dist.\1"),
)
_PROJECTION = re.compile(
    r"vit\.encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)"
)


def read_pickle(file: Path) -> dict[str, Tensor]:
    """The weights of a `.pth` file. Raises CheckpointError where it holds more than data.

    torch's restricted unpickler reads it; besides tensors only `argparse.Namespace` is allowed,
    which upstream's training script leaves in its files.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
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
    return _state_dict(content, file)


def _state_dict(content: Any, file: Path) -> dict[str, Tensor]:
    """The state dict inside what a file held, under the zoo's keys."""
    state = content
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise CheckpointError(
            f"{file} holds no state dict, neither at its top nor under 'model'; give a checkpoint"
        )
    return to_zoo_keys({key.removeprefix("module."): value for key, value in state.items()})


def to_zoo_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the zoo's keys: transformers' layout is translated."""
    if not any(key.startswith(("deit.", "vit.")) for key in state):
        return state
    tensors: dict[str, Tensor] = {}
    projections: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        theirs = re.sub(r"^deit\.", "vit.", key)
        if match := _PROJECTION.fullmatch(theirs):
            block, part, kind = match.groups()
            projections.setdefault(f"blocks.{block}.attn.qkv.{kind}", {})[part] = value
            continue
        pattern, ours = next(
            (row for row in _TRANSFORMERS if re.fullmatch(row[0], theirs)), ("", "")
        )
        tensors[re.sub(pattern, ours, theirs) if pattern else key] = value
    for key, parts in projections.items():
        ordered = [parts[part] for part in ("query", "key", "value") if part in parts]
        tensors[key] = torch.cat(ordered)
    return tensors


def convert_pickle(file: Path, converted: Path) -> str:
    """Write a `.pth` as safetensors. Returns its SHA-256."""
    return write_tensors(read_pickle(file), converted)


def write_tensors(tensors: dict[str, Tensor], file: Path) -> str:
    """Write tensors as safetensors, the same bytes for the same tensors. Returns the SHA-256."""
    # Copied, because safetensors holds no tensor that shares its memory with another.
    own = {
        key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()
    }
    write_whole(file, to_bytes(own))
    return digest(file)
