"""The one door to timm: augmentation, mixing and teachers, used as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image, ImageOps
from timm.data import Mixup, create_transform
from timm.data import auto_augment as timm_operations
from timm.data.auto_augment import AutoAugment, RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import MaybeToTensor, RandomResizedCropAndInterpolation
from timm.models import group_parameters
from timm.optim import Lamb
from torch import Tensor, nn
from torch.optim import Optimizer

from deit_zoo.augment.draws import Augment, Draws, Operation
from deit_zoo.augment.record import NO_OPERATION, OPERATIONS, Box, Layer
from deit_zoo.augment.three_augment import ThreeAugment
from deit_zoo.data.transforms import resize
from deit_zoo.errors import CheckpointError, DownloadError, OfflineError, RecipeError, first_of
from deit_zoo.files import MODEL_FILE
from deit_zoo.manifest import IMAGENET_MEAN, IMAGENET_STD, Source
from deit_zoo.models.layers import as_pair
from deit_zoo.models.model import ZooModel
from deit_zoo.recipes.recipe import Recipe
from deit_zoo.weights.download import UnavailableError
from deit_zoo.weights.hub_files import hub_error_context


def regnety_160(
    *,
    img_size: int | Sequence[int] = 224,
    in_chans: int = 3,
    num_classes: int = 1000,
    drop_path_rate: float = 0.0,
) -> nn.Module:
    """RegNetY-16GF (arXiv 2003.13678), DeiT's teacher, as timm builds it."""
    network: Any = timm.create_model(
        "regnety_160", in_chans=in_chans, num_classes=num_classes, drop_path_rate=drop_path_rate
    )
    network.img_size = as_pair(img_size)
    network.embed_dim = network.num_features
    return network


@dataclass(frozen=True, kw_only=True, slots=True)
class TimmModel:
    """A network of timm's, in eval mode, and the images that it was trained on.

    `img_size` is the only size that it takes; None where any will do.
    """

    network: nn.Module
    name: str  # with timm's tag of its weights
    source: str  # where timm's weights are from
    file: Path | None
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    img_size: tuple[int, int] | None


def is_known(name: str) -> bool:
    """Whether timm has an architecture of this name, whatever the tag behind it."""
    return bool(timm.is_model(name))


def nearest(name: str, count: int) -> list[str]:
    """The architectures whose names look most like `name`."""
    return get_close_matches(name.lower(), timm.list_models(), n=count)


def pretrained(name: str) -> TimmModel:
    """A network with timm's own weights, by its name or as `hf-hub:ORG/REPO[@REVISION]`."""
    from huggingface_hub import constants

    on_the_hub = name.startswith("hf-hub:")
    if not on_the_hub and not timm.is_model_pretrained(name):
        raise RecipeError(_no_weights(name))
    filename = "config.json" if on_the_hub else MODEL_FILE
    try:
        with hub_error_context(Source(kind="hub", filename=filename), name.partition("@")[2]):
            network = timm.create_model(name, pretrained=True)
    except UnavailableError as error:
        cause = error.__cause__
        if isinstance(cause, KeyError | TypeError):  # a config.json that is not timm's own
            raise RecipeError(
                f"timm cannot build {name} from its config.json ({cause}); give a repository that "
                "timm or this zoo wrote, or NAME@FILE"
            ) from error
        if constants.HF_HUB_OFFLINE:
            raise OfflineError(
                f"timm's weights of {name} are not on this machine and HF_HUB_OFFLINE is set; "
                "fetch them where there is a network, or give yours as NAME@FILE"
            ) from error
        raise DownloadError(
            f"timm's weights of {name} could not be had ({error}); mend it and try again, or give "
            "yours as NAME@FILE"
        ) from error
    return _described(network, _cached(network))


def with_weights(name: str, tensors: Mapping[str, Tensor], file: Path) -> TimmModel:
    """A network with the tensors of `file`, whose head says how many classes there are."""
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise RecipeError(_no_weights(name)) from error
    heads = config.classifier if config and config.classifier else "head"
    head = tensors.get(f"{heads if isinstance(heads, str) else heads[0]}.weight")
    network = timm.create_model(name, num_classes=None if head is None else len(head))
    state = network.state_dict()
    wrong = sorted(
        key
        for key in state.keys() | tensors.keys()
        if key not in state or key not in tensors or state[key].shape != tensors[key].shape
    )
    if wrong:
        raise CheckpointError(
            f"{file} does not fit timm's {name}: {first_of(wrong, 4)} are missing, unexpected or "
            "of another shape; give the architecture that it was saved of"
        )
    network.load_state_dict(dict(tensors), strict=True)
    return _described(network, file)


def depths_of(model: ZooModel) -> dict[str, int]:
    """How deep each parameter lies, as layer-wise learning rates count it: 0 is the stem."""
    return group_parameters(model, model.group_matcher(), reverse=True)


def train_transform(recipe: Recipe) -> Callable[[Image.Image], Tensor]:
    """Random resized crop, flip, RandAugment, normalisation and erasing (DeiT, Table 9)."""
    height, width = as_pair(recipe.img_size)
    pipeline = create_transform(
        input_size=(height, width),
        is_training=True,
        scale=recipe.crop_scale,
        ratio=_ratio_of(recipe),
        hflip=recipe.hflip,
        color_jitter=None,  # inactive upstream too: timm drops it when RandAugment is on
        auto_augment=recipe.rand_augment,
        interpolation="bicubic",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        re_prob=recipe.random_erasing,
        re_mode="pixel",
    )
    for number, part in enumerate(pipeline.transforms):
        if isinstance(part, RandomResizedCropAndInterpolation):
            pipeline.transforms[number] = _RandomResizedCrop(part.size, part.scale, part.ratio)
        for operation in _operations_of(part):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize
    return pipeline


def train_augment(recipe: Recipe) -> Augment:
    """How a recipe augments images, with its draws apart from its pixels."""
    if not recipe.three_augment:
        return TrainAugment(recipe)
    return ThreeAugment(
        img_size=as_pair(recipe.img_size),
        hflip=recipe.hflip,
        color_jitter=recipe.color_jitter,
        box_of=None if recipe.random_crop == "simple" else partial(_random_box, recipe),
    )


def _random_box(recipe: Recipe, width: int, height: int) -> Box:
    image = _Sized((width, height))
    return Box(*_RandomResizedCrop.get_params(image, recipe.crop_scale, _ratio_of(recipe)))


def lamb(groups: list[dict[str, Any]], recipe: Recipe) -> Optimizer:
    """LAMB (arXiv:1904.00962) as apex's, with which DeiT III was trained: what does not decay takes
    Adam's step. Gradients are clipped before, as for every optimizer."""
    return _Lamb(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, max_grad_norm=None)


class _Lamb(Lamb):  # type: ignore[misc]
    """timm's, with the number of its steps among what is kept of each parameter."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            states = [self.state[p] for p in group["params"] if p in self.state]
            group["step"] = next((state["step"] for state in states), torch.tensor(0.0))
        loss = super().step(closure)
        for group in self.param_groups:
            for state in (self.state[p] for p in group["params"] if p in self.state):
                state["step"] = group["step"]
        return loss


class TrainAugment:
    """The parts of `train_transform`: what is drawn, by timm itself, and what is done to pixels.

    A draw depends on the generators and on the image's size alone. So timm's own objects are
    called with a `_Recorder` in the image's place, in the order of the transform.
    """

    def __init__(self, recipe: Recipe) -> None:
        pipeline: Any = train_transform(recipe)
        self._crop, *parts = pipeline.transforms
        self._of_pixels = parts[: [type(part) for part in parts].index(MaybeToTensor)]
        self._erasing = next((part for part in parts if isinstance(part, RandomErasing)), None)
        self.img_size = as_pair(recipe.img_size)
        self.layers = 0
        self.on_device = True
        for part in self._of_pixels:
            operations = _operations_of(part)
            self.on_device &= all(operation.aug_fn in _ON_DEVICE for operation in operations)
            for operation in operations:
                operation.aug_fn = partial(_Recorder.add_operation, function=operation.aug_fn)
            if isinstance(part, AutoAugment):
                self.layers = max(map(len, part.policy))
            if isinstance(part, RandAugment):
                self.layers = part.num_layers
                # NumPy would make an array of a list for every image.
                part.ops = np.array(part.ops, dtype=object)

    def draw(self, width: int, height: int) -> Draws:
        image = _Recorder((width, height))
        box = Box(*self._crop.get_params(image, self._crop.scale, self._crop.ratio))
        for part in self._of_pixels:
            part(image)
        if self._erasing is not None:
            self._erasing._erase(image, 3, *self.img_size, torch.float32)
        return Draws(box, image.flip, tuple(image.operations), image.erase, image.noise)

    def layers_of(self, draws: Draws) -> list[Layer]:
        """RandAugment's layers as a device takes them; those that are skipped come last."""
        applied = [self._layer(operation) for operation in draws.operations]
        return applied + [Layer(NO_OPERATION, ())] * (self.layers - len(applied))

    def by_pillow(self, crop: Image.Image, draws: Draws) -> Image.Image:
        image = resize(crop, self.img_size[::-1])
        if draws.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for operation in draws.operations:
            image = operation(image)
        return image

    def _layer(self, operation: Operation) -> Layer:
        number = OPERATIONS.index(_ON_DEVICE[operation.function])
        if operation.function not in _MOVING:
            return Layer(number, tuple(float(value) for value in operation.arguments))
        moved: Any = operation(_AffineMap(self.img_size[::-1]))
        return Layer(number, moved)


def _operations_of(part: Any) -> list[Any]:
    """The operations that a part of the pipeline may apply: RandAugment's, or AutoAugment's."""
    if isinstance(part, AutoAugment):
        return [operation for policy in part.policy for operation in policy]
    return list(part.ops) if isinstance(part, RandAugment) else []


def _ratio_of(recipe: Recipe) -> tuple[float, ...]:
    """That of a crop to the model's images: timm squeezes squares into a rectangle."""
    height, width = as_pair(recipe.img_size)
    return tuple(ratio * width / height for ratio in recipe.crop_ratio)


def mixer(recipe: Recipe, num_classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images and labels to mixed images and soft targets: one draw of lambda per call."""
    if recipe.mixup or recipe.cutmix:
        return Mixup(
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            prob=recipe.mixup_prob,
            switch_prob=recipe.mixup_switch_prob,
            mode="batch",
            label_smoothing=recipe.label_smoothing,
            num_classes=num_classes,
        )

    def smoothed(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        spread = recipe.label_smoothing / num_classes
        targets = torch.full((len(labels), num_classes), spread, device=images.device)
        return images, targets.scatter_(1, labels[:, None], 1.0 - recipe.label_smoothing + spread)

    return smoothed


def _described(network: Any, file: Path | None) -> TimmModel:
    config = network.pretrained_cfg
    return TimmModel(
        network=network.eval(),
        name=".".join(filter(None, (config["architecture"], config.get("tag")))),
        source=config.get("hf_hub_id") or config.get("url") or "timm",
        file=file,
        num_classes=network.num_classes,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        img_size=tuple(config["input_size"][1:]) if config.get("fixed_input_size") else None,
    )


def _cached(network: Any) -> Path | None:
    """The file of the Hub's cache that timm has just read, where it was one.

    timm reads the commit that the cache itself has for a branch, not the one the zoo last saw.
    """
    from huggingface_hub import try_to_load_from_cache

    hub_id, _, revision = (network.pretrained_cfg.get("hf_hub_id") or "").partition("@")
    file = try_to_load_from_cache(hub_id, MODEL_FILE, revision=revision or None) if hub_id else None
    return Path(file) if isinstance(file, str) else None


def _no_weights(name: str) -> str:
    architecture = name.split(".")[0]
    tagged = timm.list_models(f"{architecture}.*", pretrained=True)
    offer = f"its weights are {', '.join(tagged)}; give one, or yours" if tagged else "give yours"
    return f"timm has no weights of the name {name!r}; {offer} as {architecture}@FILE"


class _RandomResizedCrop(RandomResizedCropAndInterpolation):  # type: ignore[misc]
    """timm's draws and crop, with the same pixels under every Pillow."""

    def __call__(self, image: Image.Image) -> Image.Image:
        top, left, height, width = self.get_params(image, self.scale, self.ratio)
        crop = image.crop((left, top, left + width, top + height))
        return resize(crop, self.size[::-1])


class _Sized(Image.Image):
    """No image, but of an image's size."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self._pixels = size

    @property
    def size(self) -> tuple[int, int]:
        return self._pixels


class _Recorder(_Sized):
    """Notes what timm would do to an image."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__(size)
        self.flip = False
        self.operations: list[Operation] = []
        self.erase: Box | None = None
        self.noise: Tensor | None = None

    def transpose(self, method: Image.Transpose) -> _Recorder:
        self.flip = True
        return self

    def add_operation(
        self, *arguments: float, function: Callable[..., Image.Image], **options: Any
    ) -> _Recorder:
        self.operations.append(Operation(function, arguments, options))
        return self

    def __setitem__(self, place: tuple[slice, slice, slice], noise: Tensor) -> None:
        _, rows, columns = place
        self.erase = Box(rows.start, columns.start, *noise.shape[1:])
        self.noise = noise


class _AffineMap(_Sized):
    """Answers with the map by which Pillow would move pixels; by 90 degrees those of a square."""

    def transform(  # type: ignore[override]
        self, size: tuple[int, int], method: Any, data: Sequence[float], *_: Any, **__: Any
    ) -> tuple[float, ...]:
        return tuple(float(value) for value in data)

    def copy(self) -> tuple[float, ...]:  # type: ignore[override]
        return (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # a rotation by 0 degrees

    def transpose(self, method: Image.Transpose) -> tuple[float, ...]:  # type: ignore[override]
        side, height = map(float, self.size)
        return {
            Image.Transpose.ROTATE_90: (0.0, -1.0, side, 1.0, 0.0, 0.0),
            Image.Transpose.ROTATE_180: (-1.0, 0.0, side, 0.0, -1.0, height),
            Image.Transpose.ROTATE_270: (0.0, 1.0, 0.0, -1.0, 0.0, side),
        }[method]


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the highest bits of each channel; timm may ask for 0, which Pillow 13 refuses.

    Older Pillow, with which the published models were trained, answered with a black image.
    """
    if bits >= 8:
        return image
    if bits < 1:
        return Image.new(image.mode, image.size)
    return ImageOps.posterize(image, bits)


# timm's functions by the names under which devices do the same.
_MOVING: dict[Callable[..., Image.Image], str] = {
    timm_operations.rotate: "Rotate",
    timm_operations.shear_x: "ShearX",
    timm_operations.shear_y: "ShearY",
    timm_operations.translate_x_rel: "TranslateX",
    timm_operations.translate_y_rel: "TranslateY",
}
_ON_DEVICE: dict[Callable[..., Image.Image], str] = {
    timm_operations.auto_contrast: "AutoContrast",
    timm_operations.equalize: "Equalize",
    timm_operations.invert: "Invert",
    _posterize: "Posterize",
    timm_operations.solarize: "Solarize",
    timm_operations.solarize_add: "SolarizeAdd",
    timm_operations.color: "Color",
    timm_operations.contrast: "Contrast",
    timm_operations.brightness: "Brightness",
    timm_operations.sharpness: "Sharpness",
    **_MOVING,
}
