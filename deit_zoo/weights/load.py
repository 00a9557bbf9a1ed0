"""From a record, a file or a folder to a model: digest checked and strict.

The network is built on the meta device, and the file's tensors become the parameters: mapped where
nobody writes into the file again, else copied, since it may be saved over while the model is used.
Two adaptations are allowed, and only when asked for: another number of classes (a fresh head) and
another image size (positions resampled). Anything else that does not fit is an error that lists the
keys.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deit_zoo.errors import CheckpointError, first_of
from deit_zoo.files import (
    ASSETS,
    CONFIG_FILE,
    INDEX_SUFFIX,
    MODEL_FILE,
    PREPROCESSOR_FILE,
    RECORD_FILE,
    WEIGHT_FILES,
    WEIGHTS_SUFFIXES,
    expand_user,
    verify,
)
from deit_zoo.labels import as_names
from deit_zoo.manifest import Checkpoint, LocalCheckpoint
from deit_zoo.models.layers import LAYER_NORM_EPS, as_pair
from deit_zoo.models.model import ZooModel, unwrapped
from deit_zoo.registry import ModelSpec
from deit_zoo.registry.names import is_path, lookup, resolve
from deit_zoo.weights import cache
from deit_zoo.weights.adapt import Shape, adapt, normalized_alike, own_shape
from deit_zoo.weights.cache import KnownFile
from deit_zoo.weights.config import check_stated_network, read_config
from deit_zoo.weights.formats import StateDict, read_state, spelled, to_file_keys, write_tensors
from deit_zoo.weights.metadata import as_metadata, facts_of, labels_of, read_metadata
from deit_zoo.weights.proof import carried_file, carried_name, known_file

_HEADS = ("head.", "head_dist.")
_POOLERS = ("pooler.", "vit.pooler.", "deit.pooler.")  # of transformers, before no class head
# What tells weights that no model here can take, and what to do about it.
_FOREIGN = (
    (".lora_", "it holds an adapter of PEFT's: save what model.merge_and_unload() gives"),
    ("fc_norm.", "its head reads the mean of all patches, and no model's here does"),
    (
        "encoder_layer_",
        "its keys are torchvision's, which are not read; give weights of timm's or transformers'",
    ),
)
FACTORIES = (torch.empty, torch.full, torch.ones, torch.zeros, torch.tensor)
# The proofs of what lies in the package or in a cache, where a file is written once.
_WRITTEN_ONCE = ("pinned", "hub digest", "prefix")


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

        known = fetch_address(str(path))
        metadata = read_metadata(known.path, known.sha256)
        if not metadata:  # somebody else's
            for filename in (CONFIG_FILE, PREPROCESSOR_FILE):
                fetch_config(str(path), known.path, filename)
            try:
                metadata = read_config(known.path.parent)
            except CheckpointError:  # which nobody here can remove
                warnings.warn(
                    f"what lies beside the weights of {path} is no configuration of timm's or "
                    "transformers', and is not used; give the model's name too",
                    stacklevel=2,
                )
    else:
        file = expand_user(path)
        if str(path) and os.path.isdir(file):
            if weights is not None and (file / weights / MODEL_FILE).is_file():
                file, weights = file / weights, None
            file = _file_in(file)
        if not os.path.isfile(file):
            if "://" in str(path):
                raise CheckpointError(
                    f"checkpoint {str(path)!r:.300} is an address, and none are taken but "
                    "hf://ORG/REPO; fetch the file, by curl -LO ADDRESS, and give it"
                )
            raise CheckpointError(
                f"checkpoint {str(path)!r:.300} does not exist; give a .safetensors or .pth file, "
                f"a folder that holds {MODEL_FILE}, or hf://ORG/REPO"
            )
        known = known_file(file)
        metadata = read_metadata(file, known.sha256)
        if not metadata and (file.parent / RECORD_FILE).exists():
            metadata = {"name": carried_name(file.parent)}  # no manifest pins a config.json
        metadata = metadata or read_config(file.parent)
    return LocalCheckpoint(**asdict(known), metadata=metadata, weights=weights)


def is_headless(checkpoint: str | os.PathLike[str]) -> bool:
    """Whether weights have no classifier, as those of self-supervised training."""
    local = open_local(checkpoint)
    return _num_classes(read_state(local.path, local.weights, local.sha256).tensors) is None


def spec_for(model: str) -> ModelSpec:
    """The model that is meant by a name, or by the path of weights that say what they are."""
    return spec_of_file(open_local(model), model) if is_path(model) else resolve(model)


def spec_of_file(local: LocalCheckpoint, given: str | os.PathLike[str]) -> ModelSpec:
    """The model that a file, or a configuration beside it, says that it is of."""
    if local.metadata.get("name") is None:
        raise CheckpointError(
            f"{local.path} does not say which model it is; in Python give create(NAME, "
            f"checkpoint={os.fspath(given)!r}), and deit_zoo.save(model, 'FILE.safetensors') makes "
            "of that a file which every command takes"
        )
    return resolve(str(local.metadata["name"]))


def _file_in(folder: Path) -> Path:
    """The weights of a folder, or the index of their parts: by the usual names, else the only
    ones."""
    usual = [folder / f"{name}{end}" for name in WEIGHT_FILES for end in ("", INDEX_SUFFIX)]
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
    proof: str = "none",
    weights: str | None = None,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    in_chans: int | None = None,
    drop_path_rate: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> ZooModel:
    """A model of `spec` with the tensors of `file`, in eval mode.

    Raises IntegrityError where a digest is given and the file that is read has another.
    """
    check_stated_network(spec, metadata.get("network") or {}, file.parent)
    spec = spec.variant(metadata.get("blocks"), metadata.get("stem", "linear"))
    state = read_state(file, weights, sha256)
    tensors = state.tensors
    own_classes = _num_classes(tensors)
    headless = own_classes is None and num_classes is not None
    if own_classes is None:
        # A head that is no classifier, as of self-supervised training, goes too.
        dropped = (*_POOLERS, *_HEADS) if headless else _POOLERS
        for key in [key for key in tensors if key.startswith(dropped)]:
            del tensors[key]
    own = own_shape(spec, tensors, metadata, img_size)
    shape = own.changed(img_size, patch_size, in_chans)
    built_classes = 0 if headless else own_classes or spec.num_classes
    model = _built(spec, tensors, shape, built_classes, drop_path_rate)
    model.adapted = (*normalized_alike(spec, tensors, metadata), *adapt(spec, tensors, own, shape))
    if "resizing" in metadata:
        model.adapted += (
            f"images resized bicubically and cut from their centre, not by {metadata['resizing']}",
        )
    if "layer_norm_eps" in metadata:
        model.adapted += (f"layer norms of eps {LAYER_NORM_EPS}, not {metadata['layer_norm_eps']}",)
    model.crop_pct = metadata.get("crop_pct")
    _check_fit(model, state, file)
    _fill(model, tensors, dtype, copy=proof not in _WRITTEN_ONCE)
    if num_classes not in (None, own_classes):
        model.reset_classifier(num_classes)
        model.labels = None
    else:
        if "labels" in metadata:
            model.labels = labels_of(metadata, model.num_classes, file)
        # Older models of one's own do not say how their images were decoded: as upstream's.
        model.reading = metadata.get("reading", "upstream" if "labels" in metadata else None)
        model.problem_type = metadata.get("problem_type")
    return model.eval()


def _built(
    spec: ModelSpec,
    tensors: dict[str, Tensor],
    shape: Shape,
    num_classes: int,
    drop_path_rate: float = 0.0,
) -> ZooModel:
    """The network that takes tensors of this shape, without memory."""
    options: dict[str, Any] = {"img_size": shape.img_size, "in_chans": shape.in_chans}
    if shape.patch_size is not None:
        options["patch_size"] = shape.patch_size
    with _Unfilled():
        model: ZooModel = spec.build(
            num_classes=num_classes, drop_path_rate=drop_path_rate, **options
        )
    if _is_one_headed(tensors):
        model.register_module("head_dist", None)
    return model


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file under the zoo's keys; safetensors are mapped and not yet read."""
    return read_state(file).tensors


def save_model(model: nn.Module, file: Path, **metadata: Any) -> str:
    """Write the weights with what is needed to load them; whole or not at all. Returns SHA-256.

    A compiled or parallel model stands for the one inside. The same tensors and metadata give the
    same bytes. Raises CheckpointError for a model that could not be loaded from its file.
    """
    own: ZooModel = unwrapped(model)
    facts = facts_of(own) | metadata
    if (names := facts.get("labels")) is not None:
        facts["labels"] = as_names(names, own.num_classes)
    state, text = to_file_keys(own.state_dict(), own.spec), as_metadata(facts)
    _check_savable(own, state, facts)
    return write_tensors(state, file, text)


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


def _num_classes(tensors: dict[str, Tensor]) -> int | None:
    """The classes of the file's head; None where it has no linear one."""
    for key in ("head.weight", "head.fc.weight"):  # the second is the RegNet's
        if key in tensors and tensors[key].ndim == 2:
            return tensors[key].shape[0]
    return None


def _is_one_headed(tensors: dict[str, Tensor]) -> bool:
    """Whether a file has a distillation token but, as transformers' DeiT, a class head alone."""
    return {"dist_token", "head.weight"} <= tensors.keys() and "head_dist.weight" not in tensors


def _check_savable(model: ZooModel, state: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Raises CheckpointError for what `create` could not load."""
    if any(hasattr(value, "full_tensor") for value in state.values()):  # a DTensor
        raise CheckpointError(
            "the model's weights are shared out among processes, as by FSDP; gather them by "
            "torch's get_model_state_dict with full_state_dict=True, and load them into a model of "
            "create, which can be saved"
        )
    kinds = {type(value) for value in state.values()}
    if other_kinds := sorted(kind.__name__ for kind in kinds - {Tensor, nn.Parameter}):
        raise CheckpointError(
            f"the model's weights are held as {other_kinds[0]}, as by quantizing, and files are of "
            "plain tensors; save the model before that, or torch.save(model.state_dict(), FILE)"
        )
    if any(value.is_meta for value in state.values()):
        raise CheckpointError("the model is on the meta device and has no weights; load them first")
    if model.spec is None:
        return
    stated = _built_by(facts_of(model))
    for key, value in _built_by(facts).items():
        if value != stated[key]:
            raise CheckpointError(
                f"{key} is {facts[key]!r:.80}, but files say by it how the model is built, which "
                f"is {stated[key]!r}; leave it out, or store yours under another key"
            )
    own = _built(model.spec, state, own_shape(model.spec, state, facts, None), model.num_classes)
    expected = _shapes(to_file_keys(own.state_dict(), model.spec))
    if other := sorted({key for key, _ in expected ^ _shapes(state)}):
        raise CheckpointError(
            f"the model has other tensors than {model.spec.name} ({first_of(other, 4)}), so its "
            "file could not be loaded again; give layers back the sizes that they had, merge what "
            "was wrapped around them, or keep its state_dict()"
        )


def _built_by(facts: dict[str, Any]) -> dict[str, Any]:
    """By which facts a model is built, however they are spelled."""
    spec, stem = lookup(str(facts["name"])), facts.get("stem", "linear")
    size = as_pair(facts["img_size"])
    return {
        "name": spec and spec.name,
        "img_size": size,
        "blocks": facts.get("blocks"),
        "stem": stem,
    }


def _shapes(state: dict[str, Tensor]) -> set[tuple[str, torch.Size]]:
    return {(key, value.shape) for key, value in state.items()}


def _fill(model: ZooModel, tensors: dict[str, Tensor], dtype: torch.dtype, *, copy: bool) -> None:
    """Make the tensors the parameters and buffers of those names: `load_state_dict` with
    `assign=True` in less than half the time, after `_check_fit` has found that all fit."""

    def own(key: str) -> Tensor:
        value = tensors[key]
        return value.to(dtype if value.is_floating_point() else value.dtype, copy=copy)

    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for name, _ in tuple(module.named_parameters(recurse=False)):
            module.register_parameter(name, nn.Parameter(own(prefix + name)))
        for name, _ in tuple(module.named_buffers(recurse=False)):
            module.register_buffer(name, own(prefix + name))


def _check_fit(model: ZooModel, state: StateDict, file: Path) -> None:
    own, tensors = model.state_dict(), state.tensors
    missing = [f"missing {key}" for key in sorted(own.keys() - tensors.keys())]
    unexpected = [
        f"unexpected {spelled(state.names.get(key, key))}"
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


def _advice(missing: list[str], unexpected: list[str], state: StateDict) -> str:
    for sign, advice in _FOREIGN:
        if any(sign in key for key in unexpected):
            return advice
    if missing and all(key.startswith("missing head") for key in missing) and not unexpected:
        return "it has no head: give num_classes=N for a fresh one, or 0 for features"
    if state.part:
        return f"give weights={state.part!r} for what lies under that word alone"
    return "give the model and the img_size that it was saved of"
