"""The public functions. torch is imported inside them, so that names and facts cost nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from deit_zoo.errors import CheckpointError, ZooError
from deit_zoo.manifest import Checkpoint, find, read
from deit_zoo.manifest import checkpoint as record
from deit_zoo.registry import MODELS, ModelSpec, normalize, resolve, spellings
from deit_zoo.results import Evaluation, Prediction

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from deit_zoo.attention import AttentionMap, Method
    from deit_zoo.inference import OptimizedModel
    from deit_zoo.label_sets import Labelled
    from deit_zoo.models.layers import ZooModel
    from deit_zoo.preprocess import EvalTransform
    from deit_zoo.training.group import Group

    ImageLike = str | os.PathLike[str] | bytes | Image.Image

CHUNK = 32  # images classified at once
_DECODING = Lock()

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
        held = self.checkpoint.to_dict() if self.checkpoint else None
        return asdict(self) | {"checkpoint": held}


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
    records = read(find())
    excluded = (exclude,) if isinstance(exclude, str) else tuple(exclude)

    def passes(spec: ModelSpec) -> bool:
        held = records.get(spec.name)
        return (
            _matches(spec.name, pattern)
            and not any(_matches(spec.name, other) for other in excluded)
            and (family is None or spec.family == family)
            and (pretrained is None or (held is not None) == pretrained)
            and (img_size is None or spec.img_size == img_size)
            and (min_top1 is None or (_top1(held) or 0.0) >= min_top1)
            and (max_params is None or spec.num_params <= max_params)
            and (license is None or (held is not None and held.license.lower() == license.lower()))
        )

    def order(spec: ModelSpec) -> tuple[Any, ...]:
        by_name = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", spec.name)]
        first: dict[str, float] = {
            "name": 0.0,
            "top1": -(_top1(records.get(spec.name)) or 0.0),
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
    from deit_zoo.training.recipes import RECIPES

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
        checkpoint=read(find()).get(spec.name),
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
        device, dtype: where the parameters live and how they are stored; float32 on the CPU.

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
    place = usable_device("cpu" if device is None else device)
    kind = torch.float32 if dtype is None else dtype
    if checkpoint is None and not pretrained:
        size = spec.img_size if img_size is None else img_size
        classes = spec.num_classes if num_classes is None else num_classes
        with place:
            fresh: ZooModel = spec.build(
                num_classes=classes, img_size=size, in_chans=in_chans, drop_path_rate=drop_path_rate
            )
        return fresh.to(dtype=kind)

    from deit_zoo import weights

    if checkpoint is not None:
        held = weights.local(checkpoint)
        origin: Any = held
        file, metadata = held.path, held.metadata
    else:
        origin = record(spec.name)
        file, metadata = weights.locate(origin), {}
    model = weights.load(
        spec,
        file,
        metadata,
        num_classes=num_classes,
        img_size=img_size,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
    )
    model.checkpoint = origin
    model.labels = _own_labels(metadata, file, model.num_classes if num_classes is None else None)
    # As loaded, it is in float32 on the CPU.
    asked = (place.type, kind) != ("cpu", torch.float32)
    return model.to(device=place, dtype=kind) if asked else model


def transform(
    name_or_model: str | nn.Module,
    *,
    img_size: int | tuple[int, int] | None = None,
    crop_pct: float | None = None,
) -> EvalTransform:
    """The evaluation transform: a PIL image to a normalised float32 tensor (3, H, W).

    For a name it is the one the checkpoint's figures were measured with; for a model also at the
    image size that the model was built for.

    >>> deit_zoo.transform("deit_base_384")
    EvalTransform(img_size=(384, 384), crop_pct=0.875)
    """
    from deit_zoo.models.layers import as_pair
    from deit_zoo.preprocess import EvalTransform

    if isinstance(name_or_model, str):
        spec = resolve(name_or_model)
        own_size: int | tuple[int, int] = spec.img_size
    else:
        network = _model_of(name_or_model, None)
        spec, own_size = _spec_of(network), network.img_size
    if crop_pct is None:
        crop_pct = float(record(spec.name).crop_pct)
    return EvalTransform(
        img_size=as_pair(own_size if img_size is None else img_size), crop_pct=crop_pct
    )


def classify(
    images: ImageLike | Iterable[ImageLike],
    model: str | nn.Module = "deit_small",
    *,
    topk: int = 5,
    device: str | torch.device | None = None,
    batch_size: int = CHUNK,
    workers: int | None = None,
) -> list[list[Prediction]]:
    """The `topk` most probable classes of each image, best first.

    Args:
        images: one image or many: paths, bytes of an encoded image, or PIL images. Of many, only
            some batches are held in memory, whatever gives them.
        model: a name (its checkpoint is loaded) or a model from `create`.
        topk: classes per image.
        device: where the model runs.
        batch_size: images that the model looks at together.
        workers: threads that read images meanwhile; one for each core, at most 16, unless given.

    Raises:
        DataError: an image, which is named, cannot be read.

    >>> [[best]] = deit_zoo.classify("seven.png", "deit_pico_digits", topk=1)
    >>> best.label
    '7'
    """
    from deit_zoo.reading_ahead import reading_ahead

    single = isinstance(images, str | bytes | os.PathLike) or hasattr(images, "convert")
    many: Iterable[Any] = [images] if single else images  # type: ignore[assignment]
    if topk < 1:
        raise ZooError(f"topk is {topk}; give the number of classes to show, 1 or more")
    if batch_size < 1 or (workers is not None and workers < 1):
        raise ZooError(
            f"batch_size is {batch_size} and workers is {workers}; give a batch of 1 or more and "
            "1 or more threads"
        )
    network = _classifier_of(model, device)
    prepare = transform(network)
    results: list[list[Prediction]] = []
    with reading_ahead(
        many,
        lambda image: _as_tensor(image, prepare.pixels),
        batch_size=batch_size,
        threads=workers,
    ) as batches:
        for batch in batches:
            results += predictions(network, batch, topk)
    return results


def predictions(network: ZooModel, images: list[Tensor], topk: int) -> list[list[Prediction]]:
    """The `topk` most probable classes of uint8 pixels (3, H, W), in one batch."""
    import torch

    from deit_zoo.evaluation import evaluating, fitting
    from deit_zoo.preprocess import normalized

    names = class_names(network)
    where = next(network.parameters())
    with evaluating(network), fitting(len(images), where.device), torch.inference_mode():
        pixels = torch.stack(images)
        if where.device.type == "cuda":
            pixels = pixels.pin_memory().to(where.device, non_blocking=True)
        # An optimized model normalises by itself.
        own = getattr(network, "takes_pixels", False)
        ready = pixels if own else normalized(pixels).to(where.dtype)
        logits: Tensor = network(ready.to(where.device))
        best = logits.float().softmax(dim=-1).topk(min(topk, network.num_classes))
    return [
        [
            Prediction(names[number].name, share, number, names[number].folder)
            for share, number in zip(shares, numbers, strict=True)
        ]
        for shares, numbers in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def optimize(
    model: str | nn.Module, dtype: str | torch.dtype = "bfloat16", compile: bool = True
) -> OptimizedModel:
    """A copy that only predicts, and does so faster: the same function by fewer operations.

    It takes uint8 pixels (B, 3, H, W) as well as normalised images and gives logits
    (B, num_classes) in float32, of a distilled model the mean of both heads.

    Args:
        model: a name (its checkpoint is loaded) or a model from `create`, which stays as it is.
        dtype: bfloat16, float32, float16, int8 (with torchao), or float64, in which the copy
            equals the model to 1e-10.
        compile: make machine code for each batch size that comes, at its first call; that takes
            some seconds to minutes. Batches near one that is there are padded to it.

    Raises:
        ZooError: the model is no DeiT or CaiT; there is no such dtype; 8 bits would be slower on
            this device; or there is no compiler.
        MissingExtraError: int8 without torchao.

    >>> fast = deit_zoo.optimize(deit_zoo.create("deit_pico_digits", pretrained=True))
    """
    from deit_zoo import inference

    network = _model_of(model, None)
    return inference.optimize(network, dtype, compile)


def attention_map(
    image: ImageLike,
    model: str | nn.Module = "deit_small",
    *,
    layer: int = -1,
    method: Method = "heads",
    img_size: int | tuple[int, int] | None = None,
    device: str | torch.device | None = None,
) -> AttentionMap:
    """What the class token looks at (and the distillation token): its attention to each patch.

    Args:
        image: a path, the bytes of an encoded image, or a PIL image.
        model: a name (its checkpoint is loaded) or a model from `create`.
        layer: counted from 0, or from the last with -1; in CaiT one of class-attention.
        method: "heads" gives a map for each head, "mean" their mean, "rollout" the attention that
            flows through all layers up to this one (arXiv 2005.00928), "all" these in this order.
        img_size: an int or (height, width), for a model that is given by its name.
        device: where the model runs.

    Raises:
        ZooError: the model has no attention, or no class token in this layer.
        DataError: the image cannot be read.

    >>> found = deit_zoo.attention_map("seven.png", "deit_pico_digits")
    >>> found.maps.shape  # tokens, heads, rows, columns
    torch.Size([1, 4, 4, 4])
    >>> found.save("attention.png")
    """
    from deit_zoo import attention

    if isinstance(model, str):
        attention.check_attentive(resolve(model))
        network = create(model, pretrained=True, img_size=img_size, device=device)
    else:
        network = _model_of(model, device)
        attention.check_attentive(_spec_of(network))
        attention.check_size(network, img_size)
    pixels = _as_tensor(image, transform(network))
    return attention.look(network, pixels, layer=layer, method=method)


def evaluate(
    name_or_model: str | nn.Module,
    data: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    workers: int | None = 0,
    device: str | torch.device | None = None,
    gpus: int | None = None,
    processes: int | None = None,
    labels: str | None = None,
    label_file: str | os.PathLike[str] | None = None,
    group: Group | None = None,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Evaluation:
    """Top-1, top-5 and loss over a folder of class folders (or its `val/`), every image once.

    Args:
        name_or_model: a name (its checkpoint is loaded), the folder of a run, or a model from
            `create`.
        data: the folder, or `hfds:NAME`.
        batch_size: images that a process looks at together.
        workers: processes that read images, beside each that looks at them; None chooses.
        device: where the model runs, in this process.
        gpus: the number of GPUs to share the images between, one process each; 0 is the CPU.
        processes: the same on the CPU. The figures are those of one process.
        labels: None for the model's own classes; for one of ImageNet-1k also `real`, `v2`, `a`,
            `r` or `sketch`, as label_sets.py describes them.
        label_file: ReaL's `real.json`, or the 200 synsets of A or R, one on a line.
        group: processes that evaluate together, from `deit_zoo.training.group.joined`.
        progress: called with the images done and the images in all.
        say: called with a sentence that is worth knowing of the classes.

    Raises:
        DataError: the folders, an image or the label file are not what they must be.

    >>> deit_zoo.evaluate("deit_pico_digits", "digits/")
    """
    from deit_zoo import sharing
    from deit_zoo.evaluation import IN_PROCESS, Prepared, accuracy
    from deit_zoo.label_sets import labelled
    from deit_zoo.training.plan import default_workers

    if batch_size < 1 or (workers or 0) < 0:
        raise ZooError(
            f"batch_size is {batch_size} and workers is {workers}; give a batch of 1 or more and "
            "0 or more worker processes"
        )
    devices = sharing.devices_for(device, gpus, processes)
    if group is not None:
        devices = [group.device] * group.size
        if isinstance(name_or_model, str):  # one process fetches; the others find the file
            name = name_or_model
            group.from_first(lambda: bool(named(name)))
    alone = len(devices) == 1 or group is not None
    model = _classifier_of(name_or_model, devices[0] if alone else None)

    def found() -> Labelled:
        folders = [label.folder for label in class_names(model)]
        file = None if label_file is None else Path(label_file)
        return labelled(os.fspath(data), folders, labels, file)

    held = found() if group is None else group.from_first(found)
    if held.images.note:
        say(held.images.note)
    if workers is None:
        workers = 0 if len(held.images) < IN_PROCESS else default_workers(len(devices))
    images = Prepared(held.images, transform(model), columns=held.columns, answers=held.answers)
    work = sharing.Work(model=model, images=images, batch_size=batch_size, workers=workers)
    if group is not None:
        return sharing.evaluate_in_group(work, group, progress)
    if not alone:
        return sharing.evaluate_in_processes(work, devices, progress)
    return accuracy(model, images, batch_size=batch_size, workers=workers, progress=progress)


def class_names(model: ZooModel) -> tuple[Any, ...]:
    """The labels of a model's classes; numbers where only their count is known."""
    from deit_zoo.labels import Label, labels

    own = getattr(model, "labels", None)  # a RegNet from timm has none
    if own is not None and len(own) == model.num_classes:
        return tuple(Label(folder, folder) for folder in own)
    known = labels(_spec_of(model).labels)
    if len(known) == model.num_classes:
        return known
    return tuple(Label(str(number), str(number)) for number in range(model.num_classes))


def _own_labels(
    metadata: dict[str, Any], file: Path, num_classes: int | None
) -> tuple[str, ...] | None:
    """The class folders that a checkpoint was trained on, where it says so."""
    held = metadata.get("labels")
    if held is None:
        return None
    sound = isinstance(held, list) and all(isinstance(name, str) for name in held)
    if not sound or num_classes not in (None, len(held)):
        raise CheckpointError(
            f"{file} states labels that are no {num_classes or 'list of'} names; export it again"
        )
    return tuple(held)


def named(text: str, device: str | torch.device | None = None) -> ZooModel:
    """A model by its name, with its checkpoint, or by the place of weights that say what they are.

    A place is a run's folder, a safetensors file or hf://ORG/REPO; a name goes before a folder.
    """
    if not is_place(text):
        return create(text, pretrained=True, device=device)
    from deit_zoo import weights

    held = weights.local(text)
    if "name" not in held.metadata:
        raise CheckpointError(
            f"{held.path} does not say which model it is; give create(NAME, checkpoint={text!r})"
        )
    return create(str(held.metadata["name"]), checkpoint=text, device=device)


def is_place(text: str) -> bool:
    """Whether a model is meant by a file, a folder or an address, not by its name."""
    if text.startswith(("hf://", "/", "./", "../", "~")) or text.endswith(".safetensors"):
        return True
    return normalize(text) not in spellings() and Path(text).exists()


def _matches(name: str, pattern: str) -> bool:
    pattern = pattern.lower().replace("-", "_")
    if not any(sign in pattern for sign in "*?["):
        pattern = f"*{pattern}*"
    return fnmatchcase(name, pattern)


def _top1(held: Checkpoint | None) -> float | None:
    return held.metric.top1 if held and held.metric else None


def _model_of(name_or_model: Any, device: Any) -> ZooModel:
    """The model that was meant: by name with its checkpoint, or as it is; on the device."""

    if isinstance(name_or_model, str):
        return named(name_or_model, device)
    _spec_of(name_or_model)
    model: ZooModel = name_or_model
    return model if device is None else model.to(usable_device(device))


def _classifier_of(name_or_model: Any, device: Any) -> ZooModel:
    model = _model_of(name_or_model, device)
    if model.num_classes == 0:
        raise ZooError("the model has no head (num_classes=0), so it has no classes to tell apart")
    return model


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


def _spec_of(model: Any) -> ModelSpec:
    spec = getattr(model, "spec", None)
    if spec is None:
        raise CheckpointError(
            f"{type(model).__name__} was not made by deit_zoo.create, so its classes and transform "
            "are not known; make it with create(name)"
        )
    known: ModelSpec = spec
    return known


def _as_tensor(image: ImageLike, prepare: Callable[[Image.Image], Tensor]) -> Tensor:
    from deit_zoo.preprocess import naming, open_photo

    if isinstance(image, bytes):
        return prepare(open_photo(image))
    if not isinstance(image, str | os.PathLike):
        # The same image may be given twice, and no image is decoded by two threads at once.
        with _DECODING:
            image.load()
        return prepare(image)
    photo = open_photo(Path(image))
    with naming(image):
        return prepare(photo)
