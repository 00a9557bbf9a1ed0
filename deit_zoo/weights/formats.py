"""Checkpoints as others wrote them, as plain tensors under the zoo's keys.

What a file is, its first bytes say, whatever it is called. Training scripts put the weights under
one key among others, averaged ones beside them; wrappers (DataParallel, torch.compile, Lightning)
put a word before each tensor's key. transformers' DeiT and ViT have another key layout, with
queries, keys and values apart, and mmpretrain's has its own; timm's DeiT III calls its LayerScale
`ls1.gamma`.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from deit_zoo.errors import CheckpointError, FormatError
from deit_zoo.files import (
    EXPORT_SUFFIXES,
    INDEX_SUFFIX,
    PICKLE_SUFFIXES,
    OpenedFile,
    as_record,
    digest,
    is_inside,
    read_json,
    write_whole,
)
from deit_zoo.registry import ModelSpec
from deit_zoo.weights import cache
from deit_zoo.weights.pickles import read_pickled
from deit_zoo.weights.proof import known_file

EMA = "ema"  # the word for weights that were averaged, whatever a file calls them

SHARED = 4  # tensors that may have the same numbers, as tied weights and their averages do
HEADER_BYTES = 8 << 20  # of safetensors: 100 for a tensor, and the names of classes
# What the first bytes of a file say it is. A safetensors file has its length there.
_PICKLE = (b"PK\x03\x04", b"\x80")
_NO_WEIGHTS = (
    (b"version https://git-lfs", "a pointer that Git LFS left in its place; type git lfs pull"),
    (b"<!", "a web page that was saved in its place; fetch it again"),
    (b"<htm", "a web page that was saved in its place; fetch it again"),
    (b"\x1f\x8b", "packed by gzip; unpack it"),
    (b"\x89HDF", "an HDF5 file of Keras; give PyTorch's weights"),
)
# Where training scripts keep weights; the first that is there is meant.
_STATE_KEYS = (
    *("model", "state_dict", "model_state_dict", "module", "net", "network"),
    *("model_state", "weights", "params"),
)
_AVERAGED = re.compile(r"ema|swa|avg|averag\w*")  # a word of a key
# Words that wrappers put between a model's own.
_WRAPPER = re.compile(
    r"(?:(?<=\.)|^)(?:module|_orig_mod|_forward_module|_fsdp_wrapped_module"
    r"|_checkpoint_wrapped_module)\."
)
# The tensor by which a model is known: what stands before its key stands before every key.
_FIRST = re.compile(
    r"(.*?)(?:patch_embed\.proj(?:\.0|ection)?|stem|stem\.conv"
    r"|(?:(?:vit|deit)\.)?embeddings\.patch_embeddings\.projection)\.weight"
)
_NUM_AVERAGED = "n_averaged"  # torch's AveragedModel counts in it

# transformers' keys and ours; `deit.` in front is read as `vit.`. A layer has one set of keys in
# transformers' own files, and another in a state dict of transformers 5.
_LAYER = r"vit\.(?:encoder\.layer|layers)\.(\d+)\."
_TRANSFORMERS = (
    (r"vit\.embeddings\.cls_token", "cls_token"),
    (r"vit\.embeddings\.distillation_token", "dist_token"),
    (r"vit\.embeddings\.position_embeddings", "pos_embed"),
    (r"vit\.embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (_LAYER + r"layernorm_before\.(weight|bias)", r"blocks.\1.norm1.\2"),
    (_LAYER + r"layernorm_after\.(weight|bias)", r"blocks.\1.norm2.\2"),
    (_LAYER + r"attention\.(?:output\.dense|o_proj)\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
    (_LAYER + r"(?:intermediate\.dense|mlp\.fc1)\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (_LAYER + r"(?:output\.dense|mlp\.fc2)\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (r"vit\.layernorm\.(weight|bias)", r"norm.\1"),
    (r"(?:cls_)?classifier\.(weight|bias)", r"head.\1"),
    (r"distillation_classifier\.(weight|bias)", r"head_dist.\1"),
)
# mmpretrain's ViT, DeiT and DeiT III, with their heads or without.
_MM_LAYER = r"(?:backbone\.)?layers\.(\d+)\."
_MMPRETRAIN = (
    (r"backbone\.(cls_token|dist_token|pos_embed)", r"\1"),
    (r"(?:backbone\.)?patch_embed\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (_MM_LAYER + r"ln([12])\.(weight|bias)", r"blocks.\1.norm\2.\3"),
    (_MM_LAYER + r"attn\.(qkv|proj)\.(weight|bias)", r"blocks.\1.attn.\2.\3"),
    (_MM_LAYER + r"ffn\.layers\.0\.0\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (_MM_LAYER + r"ffn\.layers\.1\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (_MM_LAYER + r"(?:attn|ffn)\.gamma([12])\.weight", r"blocks.\1.gamma_\2"),
    (r"(?:backbone\.)?ln1\.(weight|bias)", r"norm.\1"),
    (r"head\.layers\.(head|head_dist)\.(weight|bias)", r"\1.\2"),
)
_PROJECTION = re.compile(
    _LAYER + r"attention\.(?:attention\.)?([qkv])(?:uery|ey|alue|_proj)\.(weight|bias)"
)


# A gain of LayerScale: ours and upstream's `blocks.0.gamma_1`, timm's `blocks.0.ls1.gamma`.
_OWN_GAIN = re.compile(r"(blocks\.\d+)\.gamma_([12])")
_TIMM_GAIN = re.compile(r"(blocks\.\d+)\.ls([12])\.gamma")


@dataclass(frozen=True, kw_only=True, slots=True)
class StateDict:
    """A file's tensors under the zoo's keys, and for each the key that the file has.

    `part` is the `weights` that would take a model's keys alone, where others lie beside them.
    """

    tensors: dict[str, Tensor]
    names: dict[str, str]
    part: str = ""


def read_state(file: Path, weights: str | None = None, sha256: str | None = None) -> StateDict:
    """The weights of a file: those as trained, or the ones that `weights` names.

    Where `sha256` is given, they are those of the very file that was found to have it.

    `weights` is "ema" for averaged ones, a key of the file, or the word that its tensors' keys
    begin with, as KEY.WORD where those under several keys do. Warns where averaged weights lie
    beside those that are taken.
    Raises CheckpointError where the file is not whole, holds more than data, or no such weights;
    IntegrityError where it has another digest.
    """
    with cache.verified(file, sha256) as same:
        states = {"": _read_parts(same)} if is_index(same) else _states_of(same)
        if not states:
            raise CheckpointError(
                f"{file} holds no state dict, neither at its top nor under 'model'; give a "
                "checkpoint"
            )
        if len(states) > 1:  # what has no first layer, such as the centre of a loss, is no network
            states = {key: one for key, one in states.items() if _is_network(one)} or states
        groups = states if weights is None else _groups(states)
        chosen = _as_trained(states, same) if weights is None else _chosen(groups, weights, same)
        state, part = groups[chosen], ""
        names = _without_wrappers(state)
        if word := leading_word(names).split(".")[0]:
            groups = _groups(states)
            part = next((name for name in (f"{chosen}.{word}", word) if name in groups), "")
        _check_stored(state, same)
        tensors = to_zoo_keys({name: state[key] for name, key in names.items()}, str(file))
    return StateDict(tensors=tensors, names=names, part=part)


def _states_of(file: OpenedFile) -> dict[str, dict[str, Tensor]]:
    if is_pickle(file):
        return dict(_state_dicts(read_pickled(file)))
    return {"": read_safetensors(file)}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Index:
    weight_map: dict[str, str]


def is_index(file: OpenedFile) -> bool:
    """Whether a file lists others, as transformers and accelerate write it of large models."""
    return file.path.name.endswith(INDEX_SUFFIX)


def _read_parts(index: OpenedFile) -> dict[str, Tensor]:
    """The tensors of all files that an index lists, each checked as weights that lie alone."""
    try:
        names = set(as_record(read_json(index), _Index, str(index)).weight_map.values())
        if outside := next((name for name in names if not is_inside(name)), None):
            raise FormatError(f"it lists {outside!r:.120}, which is not in its folder")
    except FormatError as error:
        raise CheckpointError(f"{index} is no index of weights ({error}); save it again") from error
    tensors: dict[str, Tensor] = {}
    for name in sorted(names):
        known = known_file(index.path.parent / name)
        with cache.verified(known.path, known.sha256) as part:
            for state in _states_of(part).values():
                tensors |= state
    return tensors


def read_safetensors(file: Path | OpenedFile) -> dict[str, Tensor]:
    """All tensors under the file's own keys, mapped and not yet read."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise not_whole(file, error) from error


def not_whole(file: Path | OpenedFile, error: Exception) -> CheckpointError:
    """The sentence for a damaged safetensors file."""
    return CheckpointError(
        f"{file} is not a whole safetensors file ({error}); fetch or export it again"
    )


def is_pickle(file: Path | OpenedFile) -> bool:
    """Whether a file is to be unpickled: as its bytes say, or where they say nothing its suffix.

    Raises CheckpointError for bytes that are known to be something else.
    """
    try:
        with open(file, "rb") as stream:
            start = stream.read(24)
            size = stream.seek(0, os.SEEK_END)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}); give a file") from error
    header = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and header < size:
        if header > HEADER_BYTES:
            raise CheckpointError(
                f"{file} has a header of {header:,} bytes, far more than a model's tensors have; "
                "give the model's own file"
            )
        return False
    for sign, what in _NO_WEIGHTS:
        if start.startswith(sign):
            raise CheckpointError(f"{file} holds no weights: it is {what}")
    if file.suffix in EXPORT_SUFFIXES:
        raise CheckpointError(f"{file} is an exported model; give the one that it was made of")
    return start.startswith(_PICKLE) or file.suffix in PICKLE_SUFFIXES


def _state_dicts(content: Any, key: str = "", depth: int = 2) -> Iterator[tuple[str, Any]]:
    """Every state dict in what a file held, with the key that it lies under."""
    if not isinstance(content, dict):
        return
    # Of a file, objects may have attributes in the place of any method.
    items = dict.items(content)
    state = {k: Tensor.detach(v) for k, v in items if isinstance(k, str) and isinstance(v, Tensor)}
    # A model's may have a figure beside its tensors, such as the epoch.
    if state and (len(state) == len(content) or any(map(_FIRST.fullmatch, state))):
        yield key, state
    if depth:
        for inner, value in items:
            yield from _state_dicts(value, f"{key}.{inner}" if key else str(inner), depth - 1)


def _as_trained(states: dict[str, dict[str, Tensor]], file: OpenedFile) -> str:
    averaged = [key for key in states if _is_averaged(key)]
    raw = [key for key in states if key not in averaged]
    usual = [key for key in ("", *_STATE_KEYS) if key in raw]
    if raw and averaged:
        key = (usual or raw)[0]
        warnings.warn(
            f"{file} holds averaged weights ({spelled(averaged[0])}) beside those as trained "
            f"({spelled(key)}), which are taken; give weights={EMA!r} for the averaged ones",
            stacklevel=2,
        )
    candidates = usual[:1] or raw or averaged
    if len(candidates) > 1:
        shown = " and ".join(map(repr, candidates[:4]))
        raise CheckpointError(
            f"{file} holds weights under {shown}; say which by weights={candidates[0]!r}"
        )
    return candidates[0]


def spelled(key: str) -> str:
    """A key of somebody's file, as a part of a line."""
    return key if key.isprintable() and len(key) <= 100 else f"{key!r:.100}"


def _groups(states: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """All weights by the names that mean them: what they lie under, or a word before their keys."""
    parts: dict[str, dict[str, dict[str, Tensor]]] = {}
    for under, state in states.items():
        of_word: dict[str, dict[str, Tensor]] = {}
        for name, key in _without_wrappers(state).items():
            word, _, rest = name.partition(".")
            of_word.setdefault(word, {})[rest] = state[key]
        for word, part in of_word.items():
            if _is_network(part):
                parts.setdefault(word, {})[under] = part
    groups = dict(states)
    for word, found in parts.items():
        for under, part in found.items():
            is_plain = word not in states and (len(found) == 1 or not under)
            groups.setdefault(word if is_plain else f"{under}.{word}", part)
    return groups


def _is_averaged(key: str) -> bool:
    return any(map(_AVERAGED.fullmatch, re.split(r"[._]", key.lower())))


def _is_network(state: dict[str, Tensor]) -> bool:
    return any(map(_FIRST.fullmatch, _without_wrappers(state)))


def _chosen(groups: dict[str, dict[str, Tensor]], weights: str, file: OpenedFile) -> str:
    for key in groups:
        if key == weights or (weights == EMA and _is_averaged(key)):
            return key
    there = ", ".join(repr(key) for key in groups if key)
    raise CheckpointError(
        f"{file} holds no weights of the name {weights!r}; "
        + (f"there are {there}" if there else "it holds one model: leave out weights=")
    )


def _check_stored(state: dict[str, Tensor], file: OpenedFile) -> None:
    """Raises CheckpointError for tensors whose numbers do not all lie in the file."""
    stored: dict[int, int] = {}
    for key, value in state.items():
        plain = value.layout is torch.strided and not (value.is_nested or value.is_quantized)
        if not plain or value.device.type != "cpu":
            kind = "nested" if value.is_nested else f"{value.device.type} and {value.layout}"
            raise CheckpointError(
                f"{file} holds {key!r:.80} as a tensor that is {kind}; save it as a plain one, "
                "on the CPU"
            )
        if not value.numel():
            raise CheckpointError(
                f"{file} says that {key!r:.80} is {tuple(value.shape)}, which is no number; give "
                "the checkpoint that training wrote"
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{file} says that {key!r:.80} is {tuple(value.shape)}, but holds fewer numbers "
                "than that; save it with .contiguous()"
            )
        stored[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    # Two names of one tensor are two in what is made of them.
    if sum(value.nbytes for value in state.values()) > SHARED * sum(stored.values()):
        raise CheckpointError(
            f"{file} names the same numbers over {SHARED} times; save each tensor once"
        )


def leading_word(names: Iterable[str]) -> str:
    """What stands before the keys of the model among `names`, with its dot; "" for nothing."""
    return next((match[1] for name in names if (match := _FIRST.fullmatch(name))), "")


def _without_wrappers(state: dict[str, Tensor]) -> dict[str, str]:
    """The model's own keys, each with the file's: words that wrappers put before them come off."""
    keys = [key for key in state if key != _NUM_AVERAGED]
    names = [_WRAPPER.sub("", key) for key in keys]
    if len(set(names)) < len(names):
        names = keys
    prefix = leading_word(names)
    if all(name.startswith(prefix) for name in names):
        names = [name.removeprefix(prefix) for name in names]
    return dict(zip(names, keys, strict=True))


def to_zoo_keys(state: dict[str, Tensor], where: str = "the state dict") -> dict[str, Tensor]:
    """The same tensors under the zoo's keys: the layouts of transformers, mmpretrain and timm are
    translated.

    Raises CheckpointError for two tensors that would be one.
    """
    is_transformers = any(key.startswith(("deit.", "vit.", "embeddings.")) for key in state)
    is_mmpretrain = any("patch_embed.projection." in key for key in state)
    patterns = _TRANSFORMERS if is_transformers else _MMPRETRAIN if is_mmpretrain else ()
    tensors: dict[str, Tensor] = {}
    source_of: dict[str, str] = {}
    projections: dict[str, dict[str, str]] = {}

    def claimed(ours: str, theirs: str) -> str:
        if (other := source_of.setdefault(ours, theirs)) != theirs:
            raise CheckpointError(
                f"{where} holds {other!r} and {theirs!r}, which are one tensor of the model; "
                "remove the one that is not meant"
            )
        return ours

    for key, value in state.items():
        ours = theirs = _TIMM_GAIN.sub(r"\1.gamma_\2", key)
        if is_transformers:
            theirs = re.sub(
                r"^(?:deit\.|(?=(?:embeddings|encoder|layers|layernorm)\.))", "vit.", ours
            )
            if match := _PROJECTION.fullmatch(theirs):
                block, part, kind = match.groups()
                claimed(f"blocks.{block}.attn.{part}.{kind}", key)
                projections.setdefault(f"blocks.{block}.attn.qkv.{kind}", {})[part] = key
                continue
        for pattern, replacement in patterns:
            if re.fullmatch(pattern, theirs):
                ours = re.sub(pattern, replacement, theirs)
                break
        tensors[claimed(ours, key)] = value
    for ours, parts in projections.items():
        claimed(ours, next(iter(parts.values())))
        stacked = [state[parts[part]] for part in "qkv" if part in parts]
        if len(stacked) == 3 and len({value.shape for value in stacked}) == 1 and stacked[0].ndim:
            tensors[ours] = torch.cat(stacked)
        else:  # what does not belong together keeps its keys, and is named as a misfit
            tensors |= {key: state[key] for key in parts.values()}
    return tensors


def to_file_keys(state: dict[str, Tensor], spec: ModelSpec | None) -> dict[str, Tensor]:
    """A model's tensors as they are saved: under the keys of timm's model of that name, without the
    words that stand in them for layers which are compiled one by one."""
    state = {name: state[key] for name, key in _without_wrappers(state).items()}
    if spec is None or spec.family != "deit3":
        return state
    return {_OWN_GAIN.sub(r"\1.ls\2.gamma", key): value for key, value in state.items()}


def write_tensors(
    tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None
) -> str:
    """Write safetensors, whole or not at all: the same bytes for the same tensors and metadata.

    Returns the SHA-256.
    """
    own: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        # Two names of one tensor are two tensors in the file.
        start = tensor.untyped_storage().data_ptr()
        own[key] = tensor.clone() if start in seen else tensor
        seen.add(start)
    write_whole(file, to_bytes(own, metadata=metadata))
    return digest(file)
