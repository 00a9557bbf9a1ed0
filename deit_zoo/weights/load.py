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
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from msgspec import Meta
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deit_zoo.errors import CheckpointError, FormatError, ZooError
from deit_zoo.files import (
    ASSETS,
    MODEL_FILE,
    RECORD_FILE,
    WEIGHTS_SUFFIXES,
    as_record,
    digest,
    expand_user,
    parse_json,
    verify,
    write_whole,
)
from deit_zoo.labels import folders
from deit_zoo.manifest import Checkpoint, LocalCheckpoint, Reading
from deit_zoo.models.layers import ZooModel, as_pair, resize_pos_embed, unwrapped
from deit_zoo.registry import ModelSpec, is_path, resolve
from deit_zoo.weights import cache
from deit_zoo.weights.adapt import PATCH_EMBED, RGB, first_conv, with_channels, with_patch_size
from deit_zoo.weights.cache import KnownFile
from deit_zoo.weights.config import WEIGHT_FILES, check_network, read_config
from deit_zoo.weights.formats import (
    StateDict,
    is_pickle,
    leading_word,
    not_whole,
    read_state,
    to_file_keys,
)
from deit_zoo.weights.proof import carried_file, carried_name, known_file

# Far beyond any image that a model was made for; the sizes of what is built are made of it.
LARGEST_SIZE = 1 << 16
# The one metadata key: with two, safetensors writes them in random order and bytes differ.
METADATA_KEY = "deit_zoo"
_HEADS = ("head.", "head_dist.")
FACTORIES = (torch.empty, torch.full, torch.ones, torch.zeros, torch.tensor)


_Side = Annotated[int, Meta(ge=1, le=LARGEST_SIZE)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Facts:
    """What a file's metadata may say of its model; of labels and reading see `load_checkpoint`."""

    name: str | None = None
    img_size: _Side | Annotated[list[_Side], Meta(min_length=2, max_length=2)] = 1
    problem_type: str | None = None
    network: dict[str, str | int] | None = None


def resolve_file(record: Checkpoint) -> KnownFile:
    """The verified file of a record: carried here, inside the package, cached, or fetched.

    Raises IntegrityError where bytes are wrong, OfflineError or DownloadError where there are none.
    """
    if (carried := carried_file(record)) is not None:
        cache.check(carried.path, str(carried.sha256))
        return carried
    for source in record.sources:
        if source.kind == "builtin":
            file = ASSETS / str(source.filename)
            verify(file, str(source.sha256))
            return KnownFile(path=file, sha256=source.sha256, proof=source.proof)

    from deit_zoo.weights.fetch import fetch_checkpoint

    return fetch_checkpoint(record)


def open_local(path: str | os.PathLike[str], weights: str | None = None) -> LocalCheckpoint:
    """A file, a folder of a run or of transformers' or timm's, or `hf://ORG/REPO[@REVISION][/FILE]`.

    `weights` are the ones meant where there are several: a folder in a folder, else a part of the
    file. Where a receipt or SHA256SUMS lies beside the file, it must have the digest stated there.
    Raises CheckpointError for what is not there, IntegrityError where bytes are wrong, and
    DownloadError or OfflineError where an address cannot be fetched.
    """
    if str(path).startswith("hf://"):
        from deit_zoo.weights.fetch import fetch_address, fetch_config

        fetched = fetch_address(str(path))
        metadata = read_metadata(fetched.path, fetched.sha256)
        if not metadata:  # somebody else's
            fetch_config(str(path), fetched.path)
            try:
                metadata = read_config(fetched.path.parent)
            except CheckpointError:  # which nobody here can remove
                warnings.warn(
                    f"the config.json of {path} is none of timm's or transformers', and is not "
                    "used; give the model's name beside it",
                    stacklevel=2,
                )
        return LocalCheckpoint(
            path=fetched.path,
            sha256=fetched.sha256,
            proof=fetched.proof,
            metadata=metadata,
            weights=weights,
        )
    file = expand_user(path)
    if str(path) and os.path.isdir(file):
        if weights is not None and (file / weights / MODEL_FILE).is_file():
            file, weights = file / weights, None
        file = _file_in(file)
    if not os.path.isfile(file):
        raise CheckpointError(
            f"checkpoint {str(path)!r:.300} does not exist; give a .safetensors or .pth file, a "
            f"folder that holds {MODEL_FILE}, or hf://ORG/REPO"
        )
    known = known_file(file)
    metadata = read_metadata(file, known.sha256) or read_config(file.parent)
    if not metadata and file.name == MODEL_FILE and (file.parent / RECORD_FILE).exists():
        metadata = {"name": carried_name(file.parent)}
    return LocalCheckpoint(
        path=file, sha256=known.sha256, proof=known.proof, metadata=metadata, weights=weights
    )


def is_headless(checkpoint: str | os.PathLike[str]) -> bool:
    """Whether weights have no classifier, as those of self-supervised training."""
    local = open_local(checkpoint)
    return _num_classes(read_state(local.path, local.weights, local.sha256).tensors) is None


def spec_for(model: str) -> ModelSpec:
    """The model that is meant by a name, or by the path of weights that say what they are."""
    return spec_of_file(open_local(model), model) if is_path(model) else resolve(model)


def spec_of_file(local: LocalCheckpoint, given: str | os.PathLike[str]) -> ModelSpec:
    """The model that a file, or a configuration beside it, says that it is of."""
    if "name" not in local.metadata:
        raise CheckpointError(
            f"{local.path} does not say which model it is; give create(NAME, "
            f"checkpoint={os.fspath(given)!r})"
        )
    return resolve(str(local.metadata["name"]))


def _file_in(folder: Path) -> Path:
    """The weights of a folder: by their usual names, else the only ones."""
    usual = [folder / name for name in WEIGHT_FILES]
    if file := next((file for file in usual if file.is_file()), None):
        return file
    others = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS_SUFFIXES)
    if len(others) > 1:
        shown = ", ".join(path.name for path in others[:4])
        raise CheckpointError(
            f"{folder} holds {len(others)} files of weights ({shown}); give one of them"
        )
    if others:
        return others[0]
    raise CheckpointError(
        f"{folder} is a folder without weights; give one that holds {MODEL_FILE}, as a run does, "
        "or the file"
    )


def load_checkpoint(
    spec: ModelSpec,
    file: Path,
    metadata: dict[str, Any],
    *,
    sha256: str | None = None,
    weights: str | None = None,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    in_chans: int | None = None,
    drop_path_rate: float = 0.0,
) -> ZooModel:
    """A model of `spec` with the tensors of `file`, in float32 and in eval mode.

    Raises IntegrityError where a digest is given and the file that is mapped has another.
    """
    check_network(spec, metadata.get("network") or {}, file.parent)
    spec = spec.variant(metadata.get("blocks"), metadata.get("stem", "linear"))
    state = read_state(file, weights, sha256)
    tensors = state.tensors
    own_classes = _num_classes(tensors)
    headless = own_classes is None and num_classes is not None
    if headless:  # a head that is no classifier, as of self-supervised training, goes too
        for key in [key for key in tensors if key.startswith(_HEADS)]:
            del tensors[key]
    own = _own_shape(spec, tensors, metadata)
    shape = own.changed(img_size, patch_size, in_chans)
    options: dict[str, Any] = {"img_size": shape.img_size, "in_chans": shape.in_chans}
    if shape.patch_size is not None:
        options["patch_size"] = shape.patch_size
    with _Unfilled():
        model: ZooModel = spec.build(
            num_classes=0 if headless else own_classes or spec.num_classes,
            drop_path_rate=drop_path_rate,
            **options,
        )
    if _is_one_headed(tensors):
        model.register_module("head_dist", None)
    model.adapted = _adapt(spec, tensors, own, shape)
    _check_fit(model, state, file)
    _fill(model, tensors)
    if any(value.dtype != torch.float32 for value in tensors.values()):
        model.float()
    if num_classes not in (None, own_classes):
        model.reset_classifier(num_classes)
        model.labels = None
    elif "labels" in metadata:
        model.labels = _own_labels(metadata["labels"], file, model.num_classes)
    model.reading = _own_reading(metadata, file)
    if num_classes in (None, own_classes):
        model.problem_type = metadata.get("problem_type")
    return model.eval()


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file under the zoo's keys; safetensors are mapped and not yet read."""
    return read_state(file).tensors


def save_model(model: nn.Module, file: Path, **metadata: Any) -> str:
    """Write the weights with what is needed to load them; whole or not at all. Returns SHA-256.

    A compiled or parallel model stands for the one inside. The same tensors and metadata give the
    same bytes. Raises CheckpointError for a model that could not be loaded from its file.
    """
    own: ZooModel = unwrapped(model)
    facts = _facts(own) | metadata
    state = own.state_dict()
    _check_savable(own, state, facts)
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in to_file_keys(state, own.spec).items():
        tensor = value.detach().cpu().contiguous()
        # Two names of one tensor are two tensors in the file.
        start = tensor.untyped_storage().data_ptr()
        stored[key] = tensor.clone() if start in seen else tensor
        seen.add(start)
    try:
        text = json.dumps(facts, sort_keys=True)
        _read_facts(text)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the metadata could not be read again ({error}); give texts and finite numbers"
        ) from error
    write_whole(file, to_bytes(stored, metadata={METADATA_KEY: text}))
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


def read_metadata(file: Path, sha256: str | None = None) -> dict[str, Any]:
    """What a file of safetensors says of its model, in the very bytes that have this digest."""
    with cache.verified(file, sha256) as same:
        if is_pickle(same):
            return {}
        try:
            with safe_open(same, framework="pt") as tensors:
                text = (tensors.metadata() or {}).get(METADATA_KEY, "{}")
        except (SafetensorError, OSError) as error:
            raise not_whole(same, error) from error
    try:
        return _read_facts(text)
    except FormatError as error:
        raise not_whole(same, error) from error


def _read_facts(text: str) -> dict[str, Any]:
    facts: dict[str, Any] = parse_json(text, "its metadata")
    as_record(facts, _Facts, "its metadata")
    return facts


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shape:
    """What a model takes: image size, and of a transformer the patch size."""

    img_size: tuple[int, int]
    patch_size: int | None
    in_chans: int
    known_size: bool  # whether the file says its image size

    @property
    def grid(self) -> tuple[int, int]:
        assert self.patch_size is not None, "only patches have a grid"
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    def changed(
        self,
        img_size: int | tuple[int, int] | None,
        patch_size: int | None,
        in_chans: int | None,
    ) -> _Shape:
        if patch_size is not None and self.patch_size is None:
            raise ZooError(f"patch_size is {patch_size}, but a convnet has none; leave it out")
        return replace(
            self,
            img_size=self.img_size if img_size is None else as_pair(img_size),
            patch_size=self.patch_size if patch_size is None else patch_size,
            in_chans=self.in_chans if in_chans is None else in_chans,
        )


def _own_shape(spec: ModelSpec, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> _Shape:
    """The shape of the model that a file was saved of, as it says or as its tensors do."""
    patch: int | None = spec.arch.get("patch_size")
    key = first_conv(tensors)
    filters = tensors[key] if key else None
    if patch is not None and filters is not None and key == PATCH_EMBED:
        patch = filters.shape[3]
    size = as_pair(metadata["img_size"]) if "img_size" in metadata else None
    if size is None and patch is not None and (table := _positions(tensors)) is not None:
        patches = table.shape[1] - _num_prefix(spec)
        side = math.isqrt(max(patches, 0))
        size = as_pair(side * patch) if 0 < side * side == patches else None
    return _Shape(
        img_size=size or as_pair(spec.img_size),
        patch_size=patch,
        in_chans=RGB if filters is None else filters.shape[1],
        known_size=size is not None,
    )


def _adapt(
    spec: ModelSpec, tensors: dict[str, Tensor], own: _Shape, shape: _Shape
) -> tuple[str, ...]:
    """Fit tensors in place to another shape. Returns what was done, a phrase each."""
    done = []
    if (conv := first_conv(tensors)) is not None:
        if own.in_chans != shape.in_chans:
            tensors[conv] = with_channels(tensors[conv], shape.in_chans)
            done.append(f"{conv} from {own.in_chans} channels to {shape.in_chans}, by timm's rule")
        if own.patch_size not in (None, shape.patch_size):
            tensors[conv] = with_patch_size(tensors[conv], shape.patch_size or 0)
            done.append(
                f"{conv} from patches of {own.patch_size} pixels to {shape.patch_size}, which is "
                "an approximation"
            )
    table = _positions(tensors)
    if table is None or own.patch_size is None or not own.known_size or own.grid == shape.grid:
        return tuple(done)
    prefix = _num_prefix(spec)
    if table.shape[1] == prefix + own.grid[0] * own.grid[1]:  # else they are misfits, and named
        tensors["pos_embed"] = resize_pos_embed(table.float(), own.grid, shape.grid, prefix)
        grids = (f"{height}x{width}" for height, width in (own.grid, shape.grid))
        done.append(f"pos_embed from {' to '.join(grids)} patches, bicubic")
    return tuple(done)


def _num_classes(tensors: dict[str, Tensor]) -> int | None:
    """The classes of the file's head; None where it has no linear one."""
    for key in ("head.weight", "head.fc.weight"):  # the second is the RegNet's
        if key in tensors and tensors[key].ndim == 2:
            return tensors[key].shape[0]
    return None


def _is_one_headed(tensors: dict[str, Tensor]) -> bool:
    """Whether a file has a distillation token but, as transformers' DeiT, a class head alone."""
    return {"dist_token", "head.weight"} <= tensors.keys() and "head_dist.weight" not in tensors


def _are_names(names: Any, num_classes: int) -> bool:
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return is_list and len(names) == num_classes


def _own_labels(names: Any, file: Path, num_classes: int) -> tuple[str, ...] | None:
    """The class folders that a checkpoint was trained on, as it states them."""
    if names is None:
        return None
    if not _are_names(names, num_classes):
        raise CheckpointError(
            f"{file} states labels that are no {num_classes} names; export it again"
        )
    return tuple(names)


def _own_reading(metadata: dict[str, Any], file: Path) -> Reading | None:
    """How images were decoded for a model of one's own; older ones, which say no word, as upstream.

    None where it may be anybody's.
    """
    reading = metadata.get("reading", "upstream" if "labels" in metadata else None)
    if reading not in (None, "upright", "upstream"):
        raise CheckpointError(
            f"{file} states the reading {reading!r}, which is none; it must be upright or upstream"
        )
    return cast("Reading | None", reading)


def _facts(model: ZooModel) -> dict[str, Any]:
    """What a file says of its model; the classes only where they are not the published ones."""
    spec = model.spec
    facts: dict[str, Any] = {"name": spec and spec.name, "img_size": list(model.img_size)}
    if spec is not None and (spec.blocks, spec.stem) != (None, "linear"):
        facts |= {"blocks": spec.blocks, "stem": spec.stem}
    names = tuple(model.labels or ())
    if spec is not None and model.num_classes and names != folders(spec.labels):
        if len(names) == model.num_classes:
            facts["labels"] = list(names)
        elif model.num_classes == spec.num_classes:  # whose names they are not
            facts["labels"] = None
    return facts


def _check_savable(model: ZooModel, state: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Raises CheckpointError for what `create` could not load."""
    if any(value.is_meta for value in state.values()):
        raise CheckpointError("the model is on the meta device and has no weights; load them first")
    names = facts.get("labels")
    if names is not None and not _are_names(names, model.num_classes):
        raise CheckpointError(
            f"labels are {names!r}, but the model has {model.num_classes} classes; give a list of "
            "one name for each, in their order"
        )
    if model.spec is None:
        return
    with _Unfilled():
        own = model.spec.build(num_classes=model.num_classes)
    if _is_one_headed(state):
        own.register_module("head_dist", None)
    if other := sorted(own.state_dict().keys() ^ state.keys()):
        shown = ", ".join(other[:4]) + (f" and {len(other) - 4} more" if len(other) > 4 else "")
        raise CheckpointError(
            f"the model has other tensors than {model.spec.name} ({shown}), so its file could not "
            "be loaded again; merge what was wrapped around its layers, or keep its state_dict()"
        )


def _positions(tensors: dict[str, Tensor]) -> Tensor | None:
    table = tensors.get("pos_embed")
    return table if table is not None and table.ndim == 3 else None


def _num_prefix(spec: ModelSpec) -> int:
    if spec.family in ("cait", "deit3"):
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


def _check_fit(model: ZooModel, state: StateDict, file: Path) -> None:
    own, tensors = model.state_dict(), state.tensors
    missing = [f"missing {key}" for key in sorted(own.keys() - tensors.keys())]
    unexpected = [
        f"unexpected {_spelled(state.names.get(key, key))}"
        for key in sorted(tensors.keys() - own.keys())
    ]
    both = [(key, tensors[key], own[key]) for key in sorted(own.keys() & tensors.keys())]
    wrong = [
        f"{key} is {tuple(tensor.shape)}, not {tuple(value.shape)}"
        for key, tensor, value in both
        if tensor.shape != value.shape
    ]
    wrong += [
        f"{key} holds {tensor.dtype}"
        for key, tensor, value in both
        if tensor.is_floating_point() != value.is_floating_point()
    ]
    if not (missing or unexpected or wrong):
        return
    # Of keys that others named, the first of both sides.
    most = 4 if missing and unexpected else 8
    shown = [*missing[:most], *unexpected[:most], *wrong][:8]
    left = len(missing) + len(unexpected) + len(wrong) - len(shown)
    name = model.spec.name if model.spec else type(model).__name__
    raise CheckpointError(
        f"{file} does not fit {name}: {', '.join(shown)}{f' and {left} more' if left else ''}; "
        + _advice(missing, unexpected, state)
    )


def _spelled(key: str) -> str:
    """A key of somebody's file, as a part of a line."""
    return key if key.isprintable() and len(key) <= 100 else f"{key!r:.100}"


def _advice(missing: list[str], unexpected: list[str], state: StateDict) -> str:
    if missing and all(key.startswith("missing head") for key in missing) and not unexpected:
        return "it has no head: give num_classes=N for a fresh one, or 0 for features"
    if word := leading_word(state.names):
        return f"give weights={word.split('.')[0]!r} for what lies under that word alone"
    return "give the model and the img_size that it was saved of"
