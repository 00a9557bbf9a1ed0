"""The zoo: which models there are, what is known of them, and how one is made.

torch is imported inside the functions, so that names and facts cost nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from deit_zoo.errors import CheckpointError, ZooError
from deit_zoo.machine import usable_device
from deit_zoo.manifest import Checkpoint, Reading, manifest_record, read_manifest
from deit_zoo.registry import MODELS, ModelSpec, lookup, resolve

if TYPE_CHECKING:
    import torch
    from torch import nn

    from deit_zoo.data.transforms import EvalTransform
    from deit_zoo.models.layers import ZooModel

_SORT_KEYS = ("name", "top1", "params", "gmacs", "img_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """What is known of a model. `checkpoint` and `recipe` are None where there is none.

    `recipe_assumed` names the recipe's values that nobody published, each with a reason.
    """

    name: str
    family: str
    aliases: tuple[str, ...]
    arch: dict[str, Any]
    num_params: int
    gmacs: float
    img_size: int
    source: str
    checkpoint: Checkpoint | None
    recipe: str | None
    recipe_assumed: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, ready for JSON."""
        record = self.checkpoint.to_dict() if self.checkpoint else None
        return asdict(self) | {"checkpoint": record}


def list_models(
    pattern: str = "*",
    *,
    exclude: str | Sequence[str] = (),
    family: str | None = None,
    pretrained: bool | None = None,
    img_size: int | None = None,
    min_top1: float | None = None,
    max_params: float | None = None,
    license: str | None = None,
    sort: str = "name",
) -> list[str]:
    """Canonical names that pass every filter.

    `pattern` and `exclude` are shell patterns; a plain word matches anywhere in the name.
    `sort` is one of name, top1 (best first), params, gmacs, img_size.

    >>> deit_zoo.list_models("cait", img_size=224)
    ['cait_s24_224', 'cait_xxs24_224', 'cait_xxs36_224']
    """
    if sort not in _SORT_KEYS:
        raise ZooError(f"sort is {sort!r}; give one of {', '.join(_SORT_KEYS)}")
    records = read_manifest()
    excluded = (exclude,) if isinstance(exclude, str) else tuple(exclude)

    def passes(spec: ModelSpec) -> bool:
        record = records.get(spec.name)
        return (
            _matches(spec.name, pattern)
            and not any(_matches(spec.name, other) for other in excluded)
            and (family is None or spec.family == family)
            and (pretrained is None or (record is not None) == pretrained)
            and (img_size is None or spec.img_size == img_size)
            and (min_top1 is None or (_top1(record) or 0.0) >= min_top1)
            and (max_params is None or spec.num_params <= max_params)
            and (license is None or license.lower() == (record.license.lower() if record else None))
        )

    def order(spec: ModelSpec) -> tuple[Any, ...]:
        by_name = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", spec.name)]
        first: dict[str, float] = {
            "name": 0.0,
            # Percent of digits are not percent of ImageNet.
            "top1": 100.0 * (spec.labels == "digits") - (_top1(records.get(spec.name)) or 0.0),
            "params": spec.num_params,
            "gmacs": spec.gmacs,
            "img_size": spec.img_size,
        }
        return first[sort], by_name

    return [spec.name for spec in sorted(filter(passes, MODELS.values()), key=order)]


def info(name: str) -> ModelInfo:
    """Everything known of a model, without building it.

    >>> deit_zoo.info("deit_s").num_params
    22050664
    """
    from deit_zoo.recipes import RECIPES

    spec = resolve(name)
    recipe = RECIPES.get(spec.name)
    return ModelInfo(
        name=spec.name,
        family=spec.family,
        aliases=spec.aliases,
        arch=spec.arch,
        num_params=spec.num_params,
        gmacs=spec.gmacs,
        img_size=spec.img_size,
        source=spec.source,
        checkpoint=read_manifest().get(spec.name),
        recipe=recipe.source if recipe else None,
        recipe_assumed=dict(recipe.assumed) if recipe else {},
    )


def create(
    name: str,
    pretrained: bool = False,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> ZooModel:
    """Build a model: random and in train mode, or with weights and in eval mode.

    Args:
        name: any spelling that `deit-zoo info` accepts.
        pretrained: take the manifest's checkpoint, its SHA-256 checked.
        checkpoint: a safetensors file, or a folder with `model.safetensors`; wins over the
            manifest.
        num_classes: another number than the checkpoint's gives a fresh head (both heads of a
            distilled model); 0 gives pooled features.
        img_size: an int or (height, width); positions are resampled bicubically, as upstream does.
        in_chans: channels of the images.
        drop_path_rate: stochastic depth, in training.
        device, dtype: where the parameters live ("auto" is the best that is there) and how they
            are stored; float32 on the CPU.

    Raises:
        UnknownModelError: no model has this name.
        ImageSizeError: patches do not tile this image size.
        CheckpointError, IntegrityError, DownloadError: the weights do not fit, are not what their
            digest says, or cannot be had.

    >>> deit_zoo.create("deit_pico_digits", pretrained=True)
    """
    import torch

    spec = resolve(name)
    if not 0.0 <= drop_path_rate < 1.0:
        raise ZooError(f"drop_path_rate is {drop_path_rate}; give a share from 0 to below 1")
    if in_chans < 1:
        raise ZooError(
            f"in_chans is {in_chans}; give the number of channels of an image, such as 3"
        )
    device = usable_device("cpu" if device is None else device)
    dtype = torch.float32 if dtype is None else dtype
    if checkpoint is None and not pretrained:
        with device:
            model: ZooModel = spec.build(
                num_classes=spec.num_classes if num_classes is None else num_classes,
                img_size=spec.img_size if img_size is None else img_size,
                in_chans=in_chans,
                drop_path_rate=drop_path_rate,
            )
        return model.to(dtype=dtype)

    from deit_zoo.weights.load import load_checkpoint, open_local, resolve_file

    origin: Any
    if checkpoint is not None:
        origin = open_local(checkpoint)
        file, metadata = origin.path, origin.metadata
    else:
        origin = manifest_record(spec.name)
        file, metadata = resolve_file(origin), {}
    model = load_checkpoint(
        spec,
        file,
        metadata,
        num_classes=num_classes,
        img_size=img_size,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
    )
    model.checkpoint = origin
    model.reading = _own_reading(metadata, file)
    model.labels = _own_labels(metadata, file, model.num_classes if num_classes is None else None)
    # As loaded, it is in float32 on the CPU.
    if (device.type, dtype) == ("cpu", torch.float32):
        return model
    return model.to(device=device, dtype=dtype)


def transform(
    name_or_model: str | nn.Module,
    *,
    img_size: int | tuple[int, int] | None = None,
    crop_pct: float | None = None,
) -> EvalTransform:
    """The evaluation transform: an image, of any kind that `classify` takes, to a normalised
    float32 tensor (3, H, W).

    For a name it is the one the checkpoint's figures were measured with; for a model also at the
    image size that the model was built for.

    >>> deit_zoo.transform("deit_base_384")
    EvalTransform(img_size=(384, 384), crop_pct=0.875)
    """
    from deit_zoo.data.transforms import eval_transform
    from deit_zoo.models.layers import spec_of

    if isinstance(name_or_model, str):
        spec = resolve(name_or_model)
        own_size: int | tuple[int, int] = spec.img_size
    else:
        spec, own_size = spec_of(name_or_model), cast("ZooModel", name_or_model).img_size
    return eval_transform(spec, own_size if img_size is None else img_size, crop_pct)


def _own_labels(
    metadata: dict[str, Any], file: Path, num_classes: int | None
) -> tuple[str, ...] | None:
    """The class folders that a checkpoint was trained on, where it says so."""
    labels = metadata.get("labels")
    if labels is None:
        return None
    is_list = isinstance(labels, list) and all(isinstance(name, str) for name in labels)
    if not is_list or num_classes not in (None, len(labels)):
        raise CheckpointError(
            f"{file} states labels that are no {num_classes or 'list of'} names; export it again"
        )
    return tuple(labels)


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


def load_model(text: str, device: str | torch.device | None = None) -> ZooModel:
    """A model by its name, with its checkpoint, or by the path of weights that say what they are.

    A path is a run's folder, a safetensors file or hf://ORG/REPO; a name goes before a folder.
    """
    if not is_path(text):
        return create(text, pretrained=True, device=device)
    from deit_zoo.weights.load import open_local

    local = open_local(text)
    if "name" not in local.metadata:
        raise CheckpointError(
            f"{local.path} does not say which model it is; give create(NAME, checkpoint={text!r})"
        )
    return create(str(local.metadata["name"]), checkpoint=text, device=device)


def is_path(text: str) -> bool:
    """Whether a model is meant by a file, a folder or an address, not by its name."""
    if text.startswith(("hf://", "/", "./", "../", "~")) or text.endswith(".safetensors"):
        return True
    return lookup(text) is None and Path(text).exists()


def _matches(name: str, pattern: str) -> bool:
    pattern = pattern.lower().replace("-", "_")
    if not any(sign in pattern for sign in "*?["):
        pattern = f"*{pattern}*"
    return fnmatchcase(name, pattern)


def _top1(record: Checkpoint | None) -> float | None:
    return record.metric.top1 if record and record.metric else None


def resolve_model(name_or_model: Any, device: Any) -> ZooModel:
    """The model that is meant: by name with its checkpoint, or as it is.

    On the device; without one a name's is on the best that is there, and a model where it is.
    """
    from deit_zoo.models.layers import spec_of

    if isinstance(name_or_model, str):
        return load_model(name_or_model, "auto" if device is None else device)
    spec_of(name_or_model)
    model: ZooModel = name_or_model
    return model if device is None else model.to(usable_device(device))


def resolve_classifier(name_or_model: Any, device: Any) -> ZooModel:
    model = resolve_model(name_or_model, device)
    if model.num_classes == 0:
        raise ZooError("the model has no head (num_classes=0), so it has no classes to tell apart")
    return model
