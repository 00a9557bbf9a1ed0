"""A model made ready to predict: the same function by fewer operations, and in another precision.

What is folded changes no result beyond rounding:

- the last block computes only the tokens that reach a head;
- the normalisation of pixels moves into the patch projection, which then takes uint8 as it is;
- positions, the projection's bias and the prefix tokens become one table;
- LayerScale moves into the projections before it, the score's scale into the mixing of heads;
- keys and values are padded to whole vector registers, and the padding is masked.

Shapes: B batch, N tokens, D embedding, H heads.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit_zoo.data.transforms import normalized
from deit_zoo.errors import MissingExtraError, ZooError
from deit_zoo.evaluation.accuracy import eval_mode
from deit_zoo.inference.compiled import CompiledSizes
from deit_zoo.inference.talking_heads import runs_at_once, talk
from deit_zoo.machine import (
    fast_dtypes,
    fastest_dtype,
    has_compiler,
    missing_compiler,
    require_compiler,
)
from deit_zoo.manifest import IMAGENET_MEAN, IMAGENET_STD
from deit_zoo.models import cait, deit, deit3
from deit_zoo.models.layers import Mlp, check_input, split_heads

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
METHODS = ("forward", "forward_features", "forward_head")  # which may be replaced on one module
LANES = 16  # float32 numbers in the widest vector register of a CPU
TRIAL_BATCH, TRIAL_ROUNDS = 8, 5  # on which int8 must prove faster


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How near a copy is to its model on real images.

    `top1` is the share of images of the same first class, `largest` the largest difference of a
    logit.
    """

    top1: float
    largest: float
    num_images: int


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
    if not untouched(model):
        raise ZooError(
            "the model has hooks, adapters or overridden parts, which a copy would leave out; "
            "remove the hooks, and merge adapters into the weights"
        )
    if compile not in (False, "auto"):
        check_compiler(device)
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


def loses(model: OptimizedModel) -> bool:
    """Whether a copy is of a type of 16 bits that its device has no units for."""
    fast = fast_dtypes(model.network.patches.weight.device)
    half = model.precision in ("bfloat16", "float16")
    return half and fast is not None and model.precision not in fast


def untouched(model: deit.Transformer | cait.CaiT) -> bool:
    """Whether a copy would compute what the model does: it consists of the family's own parts,
    none of which is replaced, adapted or watched by a hook.

    An adapter (LoRA), a parametrization or a quantized weight makes a module another one.
    """
    if not len(model.blocks):
        return False
    with torch.device("meta"):
        twin = build_like(model)
    own, same = (
        {name: type(part) for name, part in network.named_modules()} for network in (model, twin)
    )
    return (
        own == same
        and model.state_dict().keys() == twin.state_dict().keys()
        and not any(map(_touched, model.modules()))
    )


def build_like(model: deit.Transformer | cait.CaiT) -> nn.Module:
    """A network with the parts of a model, whatever their sizes."""
    depth, classes = len(model.blocks), model.num_classes
    if isinstance(model, cait.CaiT):
        few = len(model.blocks_token_only)
        return cait.CaiT(depth=depth, num_classes=classes, depth_token_only=few)
    if isinstance(model, deit.VisionTransformer):
        return deit.VisionTransformer(depth=depth, num_classes=classes, distilled=model.distilled)
    return deit3.LayerScaleTransformer(depth=depth, num_classes=classes)


def _touched(part: nn.Module) -> bool:
    forward_hooks = (part._forward_hooks, part._forward_pre_hooks)
    backward_hooks = (part._backward_hooks, part._backward_pre_hooks)
    methods = [name for name in METHODS if hasattr(part, name)]
    return (
        any((*forward_hooks, *backward_hooks))
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


def agreement(
    plain: nn.Module, fast: nn.Module, images: Iterable[Tensor], *, batch_size: int = 32
) -> Agreement:
    """Compare a copy with its model on uint8 pixels, or normalised images, (3, H, W)."""
    images = list(images)
    if not images:
        raise ZooError("there is no image to compare on; give one or more")
    same, largest = 0, 0.0
    weight = next(plain.parameters())
    with eval_mode(plain), torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = torch.stack(images[start : start + batch_size]).to(weight.device)
            floats = normalized(batch) if batch.dtype == torch.uint8 else batch
            expected, logits = plain(floats.to(weight.dtype)).double(), fast(batch).double()
            same += int((logits.argmax(dim=-1) == expected.argmax(dim=-1)).sum())
            largest = max(largest, float((logits - expected).abs().max()))
    return Agreement(top1=same / len(images), largest=largest, num_images=len(images))


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
        self.img_size, self.num_classes = model.img_size, model.num_classes
        self.embed_dim = model.embed_dim
        self.precision = kind
        self.reasons = {"dtype": "", "compiled": ""}  # of what was chosen automatically
        self.in_chans = model.patch_embed.proj.in_channels
        self.network = Network(model, PRECISIONS[kind])
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


class Network(nn.Module):
    """What is computed, in straight lines."""

    def __init__(self, model: deit.Transformer | cait.CaiT, dtype: torch.dtype) -> None:
        super().__init__()
        self.patches = Patches(model, dtype)
        if isinstance(model, deit.Transformer):
            tokens = model.num_prefix_tokens + model.patch_embed.num_patches
            self.blocks = nn.ModuleList(
                DeiTBlock(cast(deit.Block, block), tokens, dtype) for block in model.blocks[:-1]
            )
            self.reader: nn.Module = LastBlock(model, dtype)
        else:
            self.blocks = nn.ModuleList(
                CaiTBlock(cast(cait.Block, block), dtype) for block in model.blocks
            )
            self.reader = ClassBlocks(model, dtype)
        self.norm = deepcopy(model.norm).to(dtype)
        # Heads cost nothing beside the blocks, so they stay in full precision.
        heads = model.get_classifier()
        full = torch.promote_types(dtype, torch.float32)
        self.heads = nn.ModuleList(
            deepcopy(head).to(full) for head in (heads if isinstance(heads, tuple) else (heads,))
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images)
        for block in self.blocks:
            x = block(x)
        tokens = self.norm(self.reader(x))  # (B, 1 or 2, D)
        logits = [
            head(tokens[:, number].to(torch.promote_types(tokens.dtype, torch.float32)))
            for number, head in enumerate(self.heads)
        ]
        return logits[0] if len(logits) == 1 else (logits[0] + logits[1]) / 2

    def bytes_of_scores(self) -> int:
        """Of one image in one block of a CaiT on a CPU; 0 where they do not matter."""
        positions = self.patches.positions  # (1, N, D)
        if not isinstance(self.reader, ClassBlocks) or not positions.is_cpu:
            return 0
        num_heads = cast(CaiTBlock, self.blocks[0]).attn.num_heads
        return int(num_heads * positions.shape[1] ** 2 * positions.dtype.itemsize)


class Patches(nn.Module):
    """Pixels, or normalised images, to tokens with positions (B, N, D)."""

    def __init__(self, model: deit.Transformer | cait.CaiT, dtype: torch.dtype) -> None:
        super().__init__()
        projection = model.patch_embed.proj
        self.patch_size = projection.kernel_size[0]
        weight, bias = projection.weight.double(), cast(Tensor, projection.bias).double()
        positions, prefix = model.pos_embed.double(), None
        if isinstance(model, deit.Transformer):
            prefix = torch.cat(model.prefix_tokens(), dim=1).double()
            # Of a DeiT III only patches have positions.
            if placed := positions.shape[1] - model.patch_embed.num_patches:
                prefix, positions = prefix + positions[:, :placed], positions[:, placed:]
            prefix = prefix.to(dtype)
        self.register_buffer("prefix", prefix)
        self.register_buffer("weight", weight.flatten(1).to(dtype, copy=True))
        self.register_buffer("positions", (positions + bias).to(dtype))
        if weight.shape[1] == len(IMAGENET_MEAN):
            mean = weight.new_tensor(IMAGENET_MEAN)[:, None, None]
            std = weight.new_tensor(IMAGENET_STD)[:, None, None]
            # (p / 255 - mean) / std of a pixel p, multiplied by the weight
            shift = (weight * (mean / std)).sum(dim=(1, 2, 3))
            self.register_buffer("pixel_weight", (weight / (255 * std)).flatten(1).to(dtype))
            self.register_buffer("pixel_positions", (positions + bias - shift).to(dtype))

    weight: Tensor
    positions: Tensor
    pixel_weight: Tensor
    pixel_positions: Tensor
    prefix: Tensor | None

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.dtype == torch.uint8
        weight = self.pixel_weight if pixels else self.weight
        positions = self.pixel_positions if pixels else self.positions
        batch, channels, height, width = images.shape
        side = self.patch_size
        # Numbers change type where they lie in order, and only then move.
        grid = images.to(weight.dtype).view(
            batch, channels, height // side, side, width // side, side
        )
        rows = grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, positions.shape[1], weight.shape[1])
        x = add(F.linear(rows, weight), positions)
        if self.prefix is None:
            return x
        return torch.cat((self.prefix.expand(batch, -1, -1), x), dim=1)


class FastBlock(nn.Module):
    """Norms, attention and MLP of a block: LayerScale is in their last projections, the scale of
    talking heads' scores in the heads' mixing."""

    def __init__(self, block: deit.Block | cait.Block, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm1, self.norm2 = (deepcopy(norm).to(dtype) for norm in (block.norm1, block.norm2))
        attn: Any = deepcopy(block.attn).double()
        mlp = deepcopy(block.mlp).double()
        if isinstance(block, deit3.Block | cait.Block):
            for linear, gamma in ((attn.proj, block.gamma_1), (mlp.fc2, block.gamma_2)):
                linear.weight.mul_(gamma.double()[:, None])
                linear.bias.mul_(gamma.double())
        if isinstance(block, cait.Block):
            attn.proj_l.weight.mul_((attn.proj.in_features // attn.num_heads) ** -0.5)
        self.attn, self.mlp = attn.to(dtype), FastMlp(mlp.to(dtype))


class FastMlp(nn.Module):
    """The model's MLP, with GELU in the memory of its input."""

    def __init__(self, mlp: Mlp) -> None:
        super().__init__()
        self.fc1, self.fc2 = mlp.fc1, mlp.fc2

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        # A large tensor is new memory from the system, which costs more than its numbers do.
        return self.fc2(torch.ops.aten.gelu_(hidden) if runs_at_once() else F.gelu(hidden))


def add(x: Tensor, branch: Tensor) -> Tensor:
    """x + branch, in the memory of x, which no one outside the network holds."""
    return x.add_(branch) if runs_at_once() else x + branch


class DeiTBlock(FastBlock):
    """Self-attention and MLP; keys and values are padded where that is faster."""

    def __init__(self, block: deit.Block, tokens: int, dtype: torch.dtype) -> None:
        super().__init__(block, dtype)
        device = block.attn.qkv.weight.device
        # Whole registers are worth their mask where these are wide and products are fast.
        wide = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"
        self.padding = -tokens % LANES if wide else 0
        mask = torch.zeros(1, 1, 1, tokens + self.padding, dtype=dtype, device=device)
        mask[..., tokens:] = -torch.inf
        self.register_buffer("mask", mask if self.padding else None)

    mask: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        attn = self.attn
        padded = self.norm1(x)
        if self.padding:
            padded = F.pad(padded, (0, 0, 0, self.padding))
        query, key, value = split_heads(attn.qkv(padded), attn.num_heads)
        query = query[:, :, : x.shape[1]]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask)
        x = add(x, attn.proj(out.transpose(1, 2).reshape(x.shape)))
        return add(x, self.mlp(self.norm2(x)))


def attend(query: Tensor, tokens: Tensor, key: Tensor, value: Tensor, value_bias: Tensor) -> Tensor:
    """Attention of a few queries (B, Q, D) over tokens (B, N, D), whose keys and values are never
    formed: the projections `key` and `value` (H, D/H, D) act on the side of the queries.

    Equal to softmax(q (K x)^T) (V x + b), since a row of the softmax sums to 1 and a bias of the
    keys moves all scores of a row alike. Worth it while Q is small against N.
    """
    num_heads, head_dim, dim = key.shape
    batch, queries, _ = query.shape
    query = (query * head_dim**-0.5).view(batch * queries, num_heads, head_dim).transpose(0, 1)
    wide = (query @ key).transpose(0, 1).reshape(batch, queries * num_heads, dim)
    read = (wide @ tokens.transpose(1, 2)).softmax(dim=-1) @ tokens  # (B, Q·H, D)
    read = read.view(batch * queries, num_heads, dim).transpose(0, 1) @ value.transpose(1, 2)
    return read.transpose(0, 1).reshape(batch, queries, dim) + value_bias


class LastBlock(FastBlock):
    """The last block of a DeiT, for the tokens that reach a head (B, 1 or 2, D)."""

    def __init__(self, model: deit.Transformer, dtype: torch.dtype) -> None:
        super().__init__(cast(deit.Block, model.blocks[-1]), dtype)
        self.num_prefix_tokens = model.num_prefix_tokens

    def forward(self, x: Tensor) -> Tensor:
        attn, tokens = self.attn, self.norm1(x)
        weights = attn.qkv.weight.view(3, attn.num_heads, -1, x.shape[-1])
        query, key, value = weights.unbind(0)  # each (H, D/H, D)
        query_bias, _, value_bias = attn.qkv.bias.chunk(3)
        prefix = tokens[:, : self.num_prefix_tokens]
        queries = F.linear(prefix, query.flatten(0, 1), query_bias)
        out = attn.proj(attend(queries, tokens, key, value, value_bias))
        x = x[:, : self.num_prefix_tokens] + out
        return x + self.mlp(self.norm2(x))


class CaiTBlock(FastBlock):
    """Talking-heads attention and MLP."""

    def forward(self, x: Tensor) -> Tensor:
        attn = self.attn
        query, key, value = split_heads(attn.qkv(self.norm1(x)), attn.num_heads)
        first, second, bias = attn.proj_l.weight, attn.proj_w.weight, attn.proj_w.bias
        out = talk(query, key, value, first, second, bias)
        x = add(x, attn.proj(out.transpose(1, 2).reshape(x.shape)))
        return add(x, self.mlp(self.norm2(x)))


class ClassBlocks(nn.Module):
    """Class-attention of a CaiT: patches to the class token (B, 1, D)."""

    def __init__(self, model: cait.CaiT, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("cls_token", model.cls_token.detach().to(dtype, copy=True))
        self.blocks = deepcopy(model.blocks_token_only).to(dtype)

    cls_token: Tensor

    def forward(self, x: Tensor) -> Tensor:
        cls = self.cls_token.expand(x.shape[0], -1, -1)
        for block in cast("list[cait.ClassBlock]", self.blocks):
            attn, tokens = block.attn, block.norm1(torch.cat((cls, x), dim=1))
            shape = (attn.num_heads, -1, x.shape[-1])
            key, value = attn.k.weight.view(shape), attn.v.weight.view(shape)
            out = attn.proj(attend(attn.q(tokens[:, :1]), tokens, key, value, attn.v.bias))
            cls = cls + block.gamma_1 * out
            cls = cls + block.gamma_2 * block.mlp(block.norm2(cls))
        return cls


def check_compiler(device: torch.device) -> None:
    """Raises ZooError where a model cannot be compiled on this device."""
    if device.type == "cpu":
        require_compiler("compiling for the CPU", "give compile=False")
    if device.type == "cuda" and not has_compiler(device):
        raise ZooError("compiling for the GPU needs Triton; install triton, or give compile=False")


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
