"""A model made ready to predict: the same function by fewer operations, and in another precision.

What it computes, and what is folded for that, is `folded_network.py`'s.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deit_zoo.errors import MissingExtraError, ZooError
from deit_zoo.inference.compiled import CompiledSizes
from deit_zoo.inference.folded_network import FoldedNetwork
from deit_zoo.machine import (
    fast_dtypes,
    fastest_dtype,
    has_compiler,
    missing_compiler,
    require_compiler,
)
from deit_zoo.manifest import IMAGENET_MEAN
from deit_zoo.models import cait, deit, deit3
from deit_zoo.models.layers import check_input
from deit_zoo.models.model import check_heads

if TYPE_CHECKING:
    from deit_zoo.manifest import Checkpoint
    from deit_zoo.registry import ModelSpec

PRECISIONS = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.bfloat16,  # of what is not a weight of the blocks
}
SHORT = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
OUR_PARTS = ("torch.nn.modules.", "deit_zoo.models.")
# What a copy computes otherwise, and what may be replaced on one module.
METHODS: tuple[str, ...] = ("forward", "forward_features", "forward_head")
METHODS += ("embed", "finish", "read_class", "softmax_map")
TRIAL_BATCH, TRIAL_ROUNDS = 8, 5  # on which int8 must prove faster


def optimize(
    model: nn.Module, dtype: str | torch.dtype = "auto", compile: bool | str = "auto"
) -> OptimizedModel:
    """What `deit_zoo.optimize` says, without its warning."""
    if not isinstance(model, deit.Transformer | cait.CaiT):
        raise ZooError(
            f"{type(model).__name__} cannot be optimized; give a deit or cait model from create"
        )
    if model.spec is not None and (model.spec.blocks, model.spec.stem) != (None, "linear"):
        raise ZooError(
            f"{model.spec.name} with blocks={model.spec.blocks!r} and stem={model.spec.stem!r} "
            "cannot be optimized; use the model as it is"
        )
    if compile not in (True, False, "auto"):
        raise ZooError(f"compile is {compile!r}; give True, False or 'auto'")
    device = next(model.parameters()).device
    name = precision(dtype)
    fastest, reason = fastest_dtype(device)
    if model.num_classes == 0:
        raise ZooError("the model has no head (num_classes=0), so it has no logits to be fast at")
    check_heads(model)
    if is_modified(model):
        raise ZooError(
            "the model has hooks, adapters or overridden parts, which a copy would leave out; "
            "remove the hooks, and merge adapters into the weights"
        )
    if compile not in (False, "auto") and device.type == "cpu":
        require_compiler("compiling for the CPU", "give compile=False")
    if compile not in (False, "auto") and device.type == "cuda" and not has_compiler(device):
        raise ZooError("compiling for the GPU needs Triton; install triton, or give compile=False")
    with torch.no_grad():
        fast = OptimizedModel(model, fastest if name == "auto" else name).requires_grad_(False)
    if name == "auto":
        fast.reasons["dtype"] = f" (auto: {reason})"
    if name == "int8":
        _quantize(fast)
    if compile == "auto":
        compile = has_compiler(device)
        absent = missing_compiler() if device.type == "cpu" else "Triton"
        fast.reasons["compiled"] = "" if compile else f" (auto: no {absent or 'compiler'})"
    if compile:
        fast.compile_frozen()
    if name == "int8":
        _check_faster(fast, optimize(model, fastest, compile))
    return fast


def fast_copy(model: nn.Module) -> OptimizedModel:
    """A copy for one task, not compiled: that takes longer than most tasks do."""
    return model if isinstance(model, OptimizedModel) else optimize(model, compile=False)


def is_slower_than_float32(model: OptimizedModel) -> bool:
    """Whether a copy is of a type of 16 bits that its device has no units for."""
    fast = fast_dtypes(model.network.patches.weight.device)
    return fast is not None and model.precision in {"bfloat16", "float16"}.difference(fast)


def is_modified(model: deit.Transformer | cait.CaiT) -> bool:
    """Whether a copy might compute something else: a part is not the family's own, or is replaced,
    adapted or watched by a hook.

    An adapter (LoRA), a parametrization or a quantized weight makes a module another one.
    """
    with torch.device("meta"):
        twin = build_like(model)
    parts, unmodified = (
        {name: type(part) for name, part in network.named_modules()} for network in (model, twin)
    )
    return (
        not len(model.blocks)
        or parts != unmodified
        or model.state_dict().keys() != twin.state_dict().keys()
        or any(map(_is_modified_part, model.modules()))
    )


def build_like(model: deit.Transformer | cait.CaiT) -> nn.Module:
    """A network with the parts of a model, whatever their sizes."""
    sizes: dict[str, Any] = {"depth": len(model.blocks), "num_classes": model.num_classes}
    if isinstance(model, cait.CaiT):
        return cait.CaiT(**sizes, depth_token_only=len(model.blocks_token_only))
    if isinstance(model, deit.VisionTransformer):
        twin = deit.VisionTransformer(**sizes, distilled=model.distilled)
        twin.head_dist = twin.head_dist if model.head_dist else None
        return twin
    return deit3.LayerScaleTransformer(**sizes)


def _is_modified_part(part: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    methods = [name for name in METHODS if hasattr(part, name)]
    return (
        any(getattr(part, name) for name in hooks)
        or any(name in part.__dict__ for name in methods)
        or not all(getattr(type(part), name).__module__.startswith(OUR_PARTS) for name in methods)
        or hasattr(getattr(part, "weight", None), "__tensor_flatten__")
    )


def precision(dtype: str | torch.dtype) -> str:
    """The name of a precision, or `auto`. Raises ZooError for one that there is not."""
    name = str(dtype).removeprefix("torch.")
    name = SHORT.get(name, name)
    if name not in ("auto", *PRECISIONS):
        raise ZooError(f"dtype is {name!r}; give one of auto, {', '.join(PRECISIONS)}")
    return name


class OptimizedModel(nn.Module):
    """A classifier for prediction alone, from `deit_zoo.optimize`.

    Takes uint8 pixels or normalised images (B, 3, H, W); gives logits (B, num_classes) in float32,
    of a distilled model the mean of both heads. It has no training mode and no other methods.
    """

    spec: ModelSpec | None
    checkpoint: Checkpoint | None
    labels: Sequence[str] | None
    takes_pixels = True

    def __init__(self, model: deit.Transformer | cait.CaiT, kind: str) -> None:
        super().__init__()
        self.spec, self.checkpoint, self.labels = model.spec, model.checkpoint, model.labels
        self.problem_type, self.crop_pct = model.problem_type, model.crop_pct
        self.reading = model.reading
        self.img_size, self.num_classes = model.img_size, model.num_classes
        self.embed_dim = model.embed_dim
        self.precision = kind
        self.reasons = {"dtype": "", "compiled": ""}  # of what was chosen automatically
        self.in_chans = model.patch_embed.in_chans
        self.network = FoldedNetwork(model, PRECISIONS[kind])
        self.compiled: CompiledSizes | None = None
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        check_input(images, self.img_size, self.in_chans)
        if images.dtype != torch.uint8:
            if not images.is_floating_point():
                raise ZooError(f"images are {images.dtype}; give uint8 pixels, or floats")
            images = images.to(self.network.patches.weight.dtype)
        elif self.in_chans != len(IMAGENET_MEAN):
            raise ZooError(
                f"pixels of {self.in_chans} channels have no known mean; normalise them yourself "
                "and give floats"
            )
        images = images.contiguous()
        with torch.no_grad():
            return (self.compiled or self.network)(images)

    def train(self, mode: bool = True) -> OptimizedModel:
        """Only eval mode is there: raises ZooError."""
        if mode:
            raise ZooError("an optimized model only predicts; train the one it was made of")
        return super().train(False)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy gets, or a file: not the compiled code, which no copy can have."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return state | {"compiled": None}

    def compile_frozen(self) -> None:
        """Compile for the batch sizes that will come, with the weights as constants."""
        cpu = self.network.patches.weight.device.type == "cpu"
        self.network.compile(dynamic=False, options={"cpp_wrapper": True} if cpu else {})
        self.compiled = CompiledSizes(self.network, self.network.bytes_of_scores())

    def extra_repr(self) -> str:
        return f"{self.choices()}, img_size={self.img_size}"

    def choices(self) -> str:
        """The precision and whether it is compiled, and why where that was left to us."""
        dtype, compiled = self.reasons["dtype"], self.reasons["compiled"]
        return f"dtype={self.precision}{dtype}, compiled={self.compiled is not None}{compiled}"


def _quantize(model: OptimizedModel) -> None:
    """Weights and activations of the blocks' linear layers in 8 bits."""
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError as error:
        raise MissingExtraError(
            "dtype='int8' needs torchao; pip install 'deit_zoo[int8]', or give dtype='bfloat16'"
        ) from error
    quantize_(
        model.network.blocks,
        Int8DynamicActivationInt8WeightConfig(),
        filter_fn=lambda part, _name: isinstance(part, nn.Linear) and min(part.weight.shape) >= 64,
    )


def _check_faster(fast: OptimizedModel, other: OptimizedModel) -> None:
    """Raises ZooError where 8 bits lose against another precision on this device, by a trial."""
    device = fast.network.patches.weight.device
    pixels = torch.zeros(TRIAL_BATCH, fast.in_chans, *fast.img_size, device=device)
    best = {fast: float("inf"), other: float("inf")}
    for _ in range(TRIAL_ROUNDS):
        for model in best:
            started = time.perf_counter()
            model(pixels).sum().item()
            best[model] = min(best[model], time.perf_counter() - started)
    if best[fast] > best[other]:
        times = [f"{1000 * seconds / TRIAL_BATCH:.1f} ms" for seconds in best.values()]
        raise ZooError(
            f"int8 loses on this device: {times[0]} an image where {other.precision} takes "
            f"{times[1]}; give dtype={other.precision!r}"
        )
