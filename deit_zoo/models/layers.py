"""What the families share: patch embedding, MLP, stochastic depth, initialisation, positions.

Shapes: B batch, N tokens, D embedding, (h, w) the grid of patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.checkpoint import checkpoint

from deit_zoo.errors import CheckpointError, ImageSizeError, ZooError

if TYPE_CHECKING:
    from deit_zoo.manifest import Checkpoint
    from deit_zoo.registry import ModelSpec

LAYER_NORM_EPS = 1e-6
INIT_STD = 0.02
OUR_PARTS = ("torch.nn.modules.", "deit_zoo.models.")  # an adapter makes a module another one


class ZooModel(nn.Module):
    """A classifier that knows what it is (`spec`) and where its weights are from (`checkpoint`).

    `labels` are the folders of its classes, where its checkpoint names them.
    """

    spec: ModelSpec | None = None
    checkpoint: Checkpoint | None = None
    labels: tuple[str, ...] | None = None
    grad_checkpointing = False
    embed_dim: int
    num_classes: int
    img_size: tuple[int, int]
    head: nn.Module

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images (B, C, H, W) to logits (B, num_classes)."""
        features = self.forward_prefix if self.may_skip() else self.forward_features
        return self.forward_head(features(x))

    def may_skip(self) -> bool:
        """Whether `forward` may leave out what never reaches the head: in eval mode, without
        gradients, and while nobody watches or has replaced a part of what it goes around."""
        return False

    def answers_as(self, family: type[ZooModel]) -> bool:
        """Whether features and head are the family's: neither overridden nor replaced."""
        return all(
            getattr(type(self), name) is getattr(family, name) and name not in self.__dict__
            for name in ("forward_features", "forward_head")
        )

    def forward_prefix(self, x: Tensor) -> Tensor:
        """Images to the tokens that the head reads, after the last norm (B, prefix, D)."""
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        """Images to all tokens after the last norm."""
        raise NotImplementedError

    def forward_head(
        self, tokens: Tensor, pre_logits: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Tokens to logits, or to the pooled features (B, D) that the head would read."""
        raise NotImplementedError

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The head, or both heads of a distilled model."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a fresh one; 0 classes leaves the pooled features."""
        self.num_classes = num_classes
        self.head = new_head(self.embed_dim, num_classes, like=self)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of storing it: memory for time."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names beyond biases and norms that upstream did not decay (`dist_token` it did)."""
        return {"cls_token", "pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort parameters by depth, in timm's form."""
        raise NotImplementedError

    def _run(self, block: nn.Module, *tokens: Tensor) -> Tensor:
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            out: Tensor = checkpoint(block, *tokens, use_reentrant=False)
            return out
        result: Tensor = block(*tokens)
        return result


class PatchEmbed(nn.Module):
    """Square patches, each projected to one token: (B, C, H, W) -> (B, h·w, D)."""

    def __init__(
        self, *, img_size: tuple[int, int], patch_size: int, in_chans: int, embed_dim: int
    ) -> None:
        super().__init__()
        check_divisible(img_size, patch_size)
        self.img_size = img_size
        self.grid_size = (img_size[0] // patch_size, img_size[1] // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.img_size, self.proj.in_channels)
        return self.proj(x).flatten(2).transpose(1, 2)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        if predicting(self) and overwritable(self, "fc1"):
            # A large tensor is new memory from the system, which costs more than its numbers do.
            return self.fc2(torch.ops.aten.gelu_(hidden))
        return self.fc2(F.gelu(hidden))


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drop a residual branch per sample, in training only."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def keep_mask(self, x: Tensor) -> Tensor:
        """Draw 1 (keep) or 0 (drop) for every sample: (B, 1, ..., 1)."""
        return x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1.0 - self.rate)

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        return x * (self.keep_mask(x) / (1.0 - self.rate))

    def extra_repr(self) -> str:
        return f"rate={self.rate:.4g}"


def attend(query: Tensor, tokens: Tensor, key: Tensor, value: Tensor, value_bias: Tensor) -> Tensor:
    """Attention of a few queries (B, Q, D) over tokens (B, N, D), whose keys and values are never
    formed: the projections `key` and `value` (H, D/H, D) act on the side of the queries.

    Equal to softmax(q (K x)^T) (V x + b), since a row of the softmax sums to 1 and a bias of the
    keys moves all scores of a row alike. Worth it while Q is small against N.
    """
    num_heads, head_dim, dim = key.shape
    batch, asked, _ = query.shape
    query = (query * head_dim**-0.5).view(batch * asked, num_heads, head_dim).transpose(0, 1)
    wanted = (query @ key).transpose(0, 1).reshape(batch, asked * num_heads, dim)
    read = (wanted @ tokens.transpose(1, 2)).softmax(dim=-1) @ tokens  # (B, Q·H, D)
    read = read.view(batch * asked, num_heads, dim).transpose(0, 1) @ value.transpose(1, 2)
    return read.transpose(0, 1).reshape(batch, asked, dim) + value_bias


def predicting(module: nn.Module) -> bool:
    """Whether only the result is wanted: eval mode, no gradients, and no hook on all modules."""
    watched: bool = _has_any_global_hook()  # type: ignore[no-untyped-call]
    return not (module.training or torch.is_grad_enabled() or watched)


def runs_at_once() -> bool:
    """Whether operations run as they are called: no graph is being made of them, by torch.compile,
    torch.export or a trace, and no transform of torch.func, such as vmap, stands in between."""
    written = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    return not written and torch._C._functorch.peek_interpreter_stack() is None


def overwritable(module: nn.Module, last: str) -> bool:
    """Whether the result of the linear layer `last` of a module, which is or becomes the module's
    own, is nobody else's, so that the next operation may take its memory: nothing has replaced
    either, no hook has seen it, and operations run at once."""
    layer = getattr(module, last, None)
    own = type(layer) is nn.Linear and all(
        type(part).__module__.startswith(OUR_PARTS)
        and not ("forward" in part.__dict__ or part._forward_hooks)
        for part in (module, layer)
    )
    return own and runs_at_once()


def untouched(*modules: nn.Module) -> bool:
    """Whether a forward may go around these modules: plain ones, and no hook waits in them.

    An adapter (LoRA), a parametrization or a quantized weight makes a module another one.
    """
    return all(
        type(part).__module__.startswith(OUR_PARTS)
        and "forward" not in part.__dict__
        and not hasattr(getattr(part, "weight", None), "__tensor_flatten__")
        and not (part._forward_hooks or part._forward_pre_hooks)
        and not (part._backward_hooks or part._backward_pre_hooks)
        for module in modules
        for part in module.modules()
    )


def readable(*layers: nn.Module) -> bool:
    """Whether a forward may read the weights of these layers instead of calling them."""
    plain = all(type(layer) is nn.Linear and layer.bias is not None for layer in layers)
    return plain and untouched(*layers)


def layer_norm(dim: int) -> nn.LayerNorm:
    """LayerNorm with the papers' epsilon."""
    return nn.LayerNorm(dim, eps=LAYER_NORM_EPS)


def new_token(*shape: int) -> nn.Parameter:
    """A learned token or position table, started as upstream starts it."""
    return nn.Parameter(trunc_normal(torch.empty(shape)))


def new_head(dim: int, num_classes: int, *, like: nn.Module | None = None) -> nn.Module:
    """A fresh classifier on the device and of the dtype of `like`; for 0 classes the identity."""
    if num_classes < 0:
        raise ZooError(f"num_classes is {num_classes}; give the number of classes, or 0 for none")
    if num_classes == 0:
        return nn.Identity()
    reference = None if like is None else next(like.parameters())
    place: dict[str, Any] = (
        {} if reference is None else {"device": reference.device, "dtype": reference.dtype}
    )
    head = nn.Linear(dim, num_classes, **place)
    init_linear(head)
    return head


def trunc_normal(tensor: Tensor) -> Tensor:
    """Fill with a normal of std 0.02; the cut at ±2 never bites, as in timm 0.3.2."""
    # A tensor on the meta device is about to be replaced by a checkpoint's.
    return tensor if tensor.is_meta else nn.init.trunc_normal_(tensor, std=INIT_STD)


def init_linear(module: nn.Module) -> None:
    """Linear layers: normal weights, zero bias. Convolutions keep torch's default (as upstream)."""
    if isinstance(module, nn.Linear) and not module.weight.is_meta:
        trunc_normal(module.weight)
        nn.init.zeros_(module.bias)


def as_pair(img_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from an int or a pair."""
    pair = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if len(pair) != 2 or any(not isinstance(side, int) or side < 1 for side in pair):
        raise ImageSizeError(
            f"img_size is {img_size!r}; give one number of pixels or (height, width), "
            "for example img_size=(192, 256)"
        )
    return pair[0], pair[1]


def check_divisible(img_size: tuple[int, int], patch_size: int) -> None:
    """Refuse an image size that patches do not tile, naming the nearest one that they do."""
    nearest = tuple(max(1, round(side / patch_size)) * patch_size for side in img_size)
    if nearest != img_size:
        raise ImageSizeError(
            f"images of {img_size[0]}x{img_size[1]} pixels cannot be cut into patches of "
            f"{patch_size}x{patch_size}; the nearest size that can is img_size={nearest}"
        )


def check_input(x: Tensor, img_size: tuple[int, int], in_chans: int) -> None:
    """Refuse a batch that the model was not built for, saying how to build one that was."""
    if x.ndim != 4 or x.shape[1] != in_chans:
        raise ImageSizeError(
            f"the model takes a batch of shape (B, {in_chans}, {img_size[0]}, {img_size[1]}), "
            f"not {tuple(x.shape)}; add a batch dimension with x[None], or build it with in_chans="
        )
    if x.shape[2] != img_size[0] or x.shape[3] != img_size[1]:
        raise ImageSizeError(
            f"the model takes images of {img_size[0]}x{img_size[1]} pixels, not "
            f"{x.shape[2]}x{x.shape[3]}; resize them with deit_zoo.transform(model), or build it "
            f"with deit_zoo.create(name, img_size=({x.shape[2]}, {x.shape[3]}))"
        )


def resize_pos_embed(
    pos_embed: Tensor, grid_size: tuple[int, int], new_grid_size: tuple[int, int], num_prefix: int
) -> Tensor:
    """Resample a position table (1, prefix + h·w, D) to another grid, as upstream's fine-tuning.

    Bicubic with a = -0.75, half-pixel centres and no antialiasing; prefix rows stay as they are.
    """
    if grid_size == new_grid_size:
        return pos_embed
    prefix, patches = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    table = patches.reshape(1, *grid_size, -1).permute(0, 3, 1, 2)  # (1, D, h, w)
    table = F.interpolate(table, size=new_grid_size, mode="bicubic", align_corners=False)
    return torch.cat((prefix, table.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)


def pick_layers(layers: int | Sequence[int], depth: int) -> list[int]:
    """Layer numbers from `n` (the last n) or from a list in which -1 is the last."""
    if isinstance(layers, int):
        asked: Sequence[int] = range(depth - layers, depth)
        valid = 1 <= layers <= depth
    else:
        asked = layers
        valid = len(layers) > 0 and all(-depth <= layer < depth for layer in layers)
    if not valid:
        raise ZooError(
            f"layers is {layers!r}, but the model has {depth} blocks; give a number from 1 to "
            f"{depth} for the last ones, or a list of numbers from {-depth} to {depth - 1}"
        )
    return [layer % depth for layer in asked]


def to_grid(tokens: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Patch tokens (B, h·w, D) as a feature map (B, D, h, w)."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *grid_size).contiguous()


def spec_of(model: Any) -> ModelSpec:
    spec = getattr(model, "spec", None)
    if spec is None:
        raise CheckpointError(
            f"{type(model).__name__} was not made by deit_zoo.create, so its classes and transform "
            "are not known; make it with create(name)"
        )
    known: ModelSpec = spec
    return known
