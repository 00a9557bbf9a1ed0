"""The zoo: which models there are, what is known of them, and how one is made.

torch is imported inside the functions, so that names and facts cost nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from deit_zoo.errors import UnknownModelError, ZooError, as_text, check_whole, is_real
from deit_zoo.facts.model import ModelInfo
from deit_zoo.machine import usable_device
from deit_zoo.manifest import Checkpoint, manifest_record, read_manifest
from deit_zoo.registry import MODELS, ModelSpec
from deit_zoo.registry.names import is_path, matches, resolve

if TYPE_CHECKING:
    import torch
    from torch import nn

    from deit_zoo.data.transforms import EvalTransform
    from deit_zoo.models.model import ZooModel

_SORT_KEYS = ("name", "top1", "params", "gmacs", "img_size")
NAME_OR_PATH = "a model's name, or the path of a run or of weights"
# Whole numbers that `create` takes: the least, and what is meant.
_WHOLE = (
    ("num_classes", 0, "the number of classes, or 0 for none"),
    ("patch_size", 1, "the pixels along one side of a patch, such as 16"),
    ("in_chans", 1, "the number of channels of an image, such as 3"),
)


def list_models(
    pattern: str | Sequence[str] = "*",
    *,
    exclude: str | Sequence[str] = (),
    family: str | None = None,
    pretrained: bool | None = None,
    img_size: int | None = None,
    min_top1: float | None = None,
    max_params: float | None = None,
    license: str | None = None,
    sort: str = "name",
    as_table: bool = False,
) -> list[str]:
    """Canonical names that pass every filter.

    `pattern` and `exclude` are shell patterns, one or several; a plain word matches anywhere in the
    name. `sort` is one of name, top1 (best first), params, gmacs, img_size. With `as_table` a
    terminal and a notebook show the list as a table; `.models` has the `info` of each.

    >>> deit_zoo.list_models("cait", img_size=224)
    ['cait_s24_224', 'cait_xxs24_224', 'cait_xxs36_224']
    """
    families = sorted({spec.family for spec in MODELS.values()})
    for key, value, choices in (
        ("sort", sort, _SORT_KEYS),
        ("family", family, (*families, None)),
        ("pretrained", pretrained, (True, False, None)),
    ):
        if value not in choices:
            named = [str(choice) for choice in choices if choice is not None]
            raise ZooError(f"{key} is {value!r}; give one of {', '.join(named)}")
    for key, number, such_as in (("min_top1", min_top1, "80"), ("max_params", max_params, "22e6")):
        if number is not None and not is_real(number):
            raise ZooError(f"{key} is {number!r}; give a number, such as {such_as}")
    if img_size is not None:
        check_whole("img_size", img_size, 1, "the pixels along one side, such as 224")
    records = read_manifest()
    patterns, excluded = _patterns("pattern", pattern), _patterns("exclude", exclude)

    def passes(spec: ModelSpec) -> bool:
        record = records.get(spec.name)
        return (
            any(matches(spec.name, one) for one in patterns)
            and not any(matches(spec.name, one) for one in excluded)
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

    names = [spec.name for spec in sorted(filter(passes, MODELS.values()), key=order)]
    if not as_table:
        return names
    from deit_zoo.facts.table import ModelTable

    return ModelTable(map(info, names))


def _patterns(key: str, given: Any) -> tuple[str, ...]:
    patterns = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else given
    expected = "a pattern such as 'deit3_*', or a list of them"
    return tuple(as_text(key, pattern, expected) for pattern in patterns)


def info(name: str | os.PathLike[str]) -> ModelInfo:
    """Everything known of a model by its name, or of weights by their path.

    >>> deit_zoo.info("deit_s").num_params
    22050664
    """
    from deit_zoo.recipes import RECIPES

    name = as_text("name", name, NAME_OR_PATH, UnknownModelError)
    if is_path(name):
        return _info_of_file(name)
    spec = resolve(name)
    recipe = RECIPES.get(spec.name)
    return ModelInfo(
        name=spec.name,
        family=spec.family,
        aliases=spec.aliases,
        arch=dict(spec.arch),
        num_params=spec.num_params,
        gmacs=spec.gmacs,
        img_size=spec.img_size,
        source=spec.source,
        checkpoint=read_manifest().get(spec.name),
        recipe=recipe.source if recipe else None,
        recipe_assumed=dict(recipe.assumed) if recipe else {},
    )


def _info_of_file(path: str) -> ModelInfo:
    from deit_zoo.models.model import spec_of
    from deit_zoo.weights.load import open_local, spec_of_file

    local = open_local(path)
    spec = spec_of_file(local, path)
    model = create(checkpoint=path)
    height, width = model.img_size
    arch = dict(spec_of(model).arch)
    if "patch_size" in arch:
        arch = arch | {"patch_size": model.patch_size}
    return ModelInfo(
        name=spec.name,
        family=spec.family,
        aliases=(),
        arch=arch,
        num_params=sum(value.numel() for value in model.parameters()),
        gmacs=_gmacs(model, arch, spec),
        img_size=height if height == width else (height, width),
        source=spec.source,
        checkpoint=None,
        recipe=None,
        recipe_assumed={},
        file=local,
        labels=None if model.labels is None else tuple(model.labels),
    )


def _gmacs(model: ZooModel, arch: dict[str, Any], row: ModelSpec) -> float:
    """The row's figure for the network of its name; what torch counts in another."""
    from deit_zoo.models.model import in_chans_of

    shape = (in_chans_of(model), *model.img_size)
    if (arch, shape) == (row.arch, (3, row.img_size, row.img_size)):
        return row.gmacs
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    # Without memory no fused kernel runs, so attention's products are counted too.
    network = model.to("meta").requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, *shape, device="meta"))
    return counter.get_total_flops() / 2e9


def create(
    name: str | os.PathLike[str] | None = None,
    pretrained: bool = False,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    weights: str | None = None,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    in_chans: int | None = None,
    blocks: str | None = None,
    stem: str = "linear",
    drop_path_rate: float = 0.0,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> ZooModel:
    """Build a model: random and in train mode, or with weights and in eval mode.

    Args:
        name: any spelling that `deit-zoo info` accepts. Not needed where the checkpoint says what
            it is of, as a run's does; then the checkpoint may stand in its place.
        pretrained: take the manifest's checkpoint, its SHA-256 checked.
        checkpoint: a file of safetensors or PyTorch's, the folder of a run or of transformers' or
            timm's, or hf://ORG/REPO; wins over the manifest.
        weights: which, where a checkpoint holds several: "ema" for averaged ones, or the key that
            they lie under.
        num_classes: another number than the checkpoint's gives a fresh head (both heads of a
            distilled model); 0 gives pooled features.
        img_size: an int or (height, width); positions are resampled bicubically, as upstream does.
        patch_size: another than the checkpoint's resamples its filters, an approximation:
            fine-tune such a model.
        in_chans: channels of the images, the checkpoint's unless given. Weights for three are
            fitted by timm's rule: their sum for one, else repeated and scaled. `model.adapted`
            says what was fitted.
        blocks, stem: of a DeiT III without weights, its authors' other builds: "36" blocks, or
            "18x2", where each has two branches; "hmlp" for patches made in three steps.
        drop_path_rate: stochastic depth, in training.
        device, dtype: where the parameters live ("auto" is the best that is there) and how they
            are stored; float32 on torch's default device.

    Raises:
        UnknownModelError: no model has this name.
        ImageSizeError: patches do not tile this image size.
        CheckpointError, IntegrityError, DownloadError: the weights do not fit, are not what their
            digest says, or cannot be had.

    >>> deit_zoo.create("deit_pico_digits", pretrained=True)
    """
    import torch

    if name is not None:
        name = as_text("name", name, NAME_OR_PATH, UnknownModelError)
    if checkpoint is not None:
        checkpoint = as_text("checkpoint", checkpoint, "the path of a run or of weights")
    elif name is not None and is_path(name):
        name, checkpoint = None, name
    spec = None if name is None else resolve(name)
    if pretrained not in (True, False):
        raise ZooError(f"pretrained is {pretrained!r}; give True or False, or checkpoint=FILE")
    if not (is_real(drop_path_rate) and 0.0 <= drop_path_rate < 1.0):
        raise ZooError(f"drop_path_rate is {drop_path_rate!r}; give a share from 0 to below 1")
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, dtype)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ZooError(f"dtype is {dtype!r}; give a floating one of torch, such as bfloat16")
    device = torch.get_default_device() if device is None else device
    device = torch.device("meta") if str(device) == "meta" else usable_device(device)
    dtype = torch.float32 if dtype is None else dtype
    shape: dict[str, Any] = {"num_classes": num_classes, "img_size": img_size}
    shape |= {"patch_size": patch_size, "in_chans": in_chans}
    for key, least, what in _WHOLE:
        if shape[key] is not None:
            check_whole(key, shape[key], least, what)
    if (blocks, stem) != (None, "linear"):
        if pretrained or checkpoint is not None:
            raise ZooError(
                f"blocks is {blocks!r} and stem {stem!r} beside weights, which say themselves how "
                "they are built, and none were published so; leave both out, or the weights"
            )
        spec = _named(spec).variant(blocks, stem)
    if checkpoint is None and not pretrained:
        if weights is not None:
            raise ZooError(f"weights is {weights!r}, but there is no checkpoint; give checkpoint=")
        spec = _named(spec)
        given = {key: value for key, value in shape.items() if value is not None}
        if patch_size is not None and "patch_size" not in spec.arch:
            raise ZooError(f"patch_size is {patch_size}, but {spec.name} has none; leave it out")
        with device:
            model: ZooModel = spec.build(drop_path_rate=drop_path_rate, **given)
        return model.to(dtype=dtype)

    from deit_zoo.models.layers import as_pair, check_divisible
    from deit_zoo.weights.load import load_checkpoint, open_local, resolve_file, spec_of_file

    record: Any
    file: Any
    if checkpoint is not None:
        file = record = open_local(checkpoint, weights)
        spec = spec or spec_of_file(record, checkpoint)
        metadata, weights = record.metadata, record.weights
    else:
        spec = _named(spec)
        if img_size is not None and (patch := patch_size or spec.arch.get("patch_size")):
            check_divisible(as_pair(img_size), patch)  # before the weights are fetched
        record = manifest_record(spec.name)
        file, metadata = resolve_file(record), {"input_size": spec.img_size}
        sources = sorted(record.sources, key=lambda source: source.proof != file.proof)
        record = replace(record, sources=tuple(sources))  # first the one that gave the file
    model = load_checkpoint(
        spec,
        file.path,
        metadata,
        sha256=file.sha256,
        proof=file.proof,
        weights=weights,
        drop_path_rate=drop_path_rate,
        dtype=torch.float64 if dtype == torch.float64 else torch.float32,
        **shape,
    )
    model.checkpoint = record
    # As loaded, it is on the CPU, and a fresh head was drawn in no narrower type than float32.
    if device.type == "cpu" and dtype in (torch.float32, torch.float64):
        return model
    return model.to(device=device, dtype=dtype)


def transform(
    name_or_model: str | os.PathLike[str] | nn.Module,
    *,
    img_size: int | tuple[int, int] | None = None,
    crop_pct: float | None = None,
) -> EvalTransform:
    """The evaluation transform: an image, of any kind that `classify` takes, to a normalised
    float32 tensor (3, H, W).

    For a name it is the one the checkpoint's figures were measured with; for a model, or the path
    of one's own weights, also at its image size, and with the crop that the weights state.

    >>> deit_zoo.transform("deit_base_384")
    EvalTransform(img_size=(384, 384), crop_pct=0.875)
    """
    from deit_zoo.data.transforms import eval_transform, transform_of

    if isinstance(name_or_model, str | os.PathLike):
        name = os.fspath(name_or_model)
        if not is_path(name):
            spec = resolve(name)
            return eval_transform(spec, spec.img_size if img_size is None else img_size, crop_pct)
        name_or_model = create(checkpoint=name)
    return transform_of(cast("ZooModel", name_or_model), img_size, crop_pct)


def _named(spec: ModelSpec | None) -> ModelSpec:
    if spec is None:
        raise ZooError("there is neither a name nor a checkpoint; give create(NAME)")
    return spec


def _top1(record: Checkpoint | None) -> float | None:
    return record.metric.top1 if record and record.metric else None


def resolve_model(name_or_model: Any, device: Any) -> ZooModel:
    """The model that is meant: by name with its checkpoint, or as it is.

    On the device, where a model that is given stays; without one a name's is on the best that is
    there, and a model where it is.
    """
    from deit_zoo.models.model import spec_of, unwrapped

    if isinstance(name_or_model, str | os.PathLike):
        device = "auto" if device is None else device
        return create(os.fspath(name_or_model), pretrained=True, device=device)
    model: ZooModel = unwrapped(name_or_model)
    spec_of(model)
    return model if device is None else model.to(usable_device(device))


def resolve_classifier(name_or_model: Any, device: Any) -> ZooModel:
    """The same of one that tells classes apart. Raises ZooError where it cannot."""
    from deit_zoo.models.model import check_heads, num_classes_of

    model = resolve_model(name_or_model, device)
    if num_classes_of(model) == 0:
        raise ZooError("the model has no head (num_classes=0), so it has no classes to tell apart")
    check_heads(model)
    return model
