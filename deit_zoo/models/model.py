"""A model: the methods that every family shares, and what is read of any model from outside.

Shapes: B batch, N tokens, D embedding, (h, w) the grid of patches.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deit_zoo.errors import CheckpointError, ZooError, whole_number
from deit_zoo.labels import as_names
from deit_zoo.manifest import manifest_record, timm_images
from deit_zoo.models.layers import PatchEmbed, as_pair, new_head, num_outputs, resize_pos_embed

if TYPE_CHECKING:
    from deit_zoo.manifest import Checkpoint, Reading
    from deit_zoo.registry import ModelSpec


class ZooModel(nn.Module):
    """A classifier that knows what it is (`spec`) and where its weights are from (`checkpoint`).

    `labels` are the folders of its classes, where they are known; a new head knows others.
    `reading` is how its checkpoint says that images are decoded for it, and `adapted` what of the
    checkpoint was computed anew to fit. `problem_type` is SEVERAL_LABELS where a class is given by
    a sigmoid of its own. `crop_pct` is its evaluation crop where it is not the published one.
    """

    __jit_unused_properties__ = ("labels", "num_classes", "num_features", "pretrained_cfg")
    spec: ModelSpec | None = None
    checkpoint: Checkpoint | None = None
    _labels: tuple[str, ...] | None = None
    reading: Reading | None = None
    problem_type: str | None = None
    crop_pct: float | None = None
    adapted: tuple[str, ...] = ()
    grad_checkpointing = False
    num_prefix_tokens = 1
    global_pool = "token"  # as timm calls what the head reads; a convnet's is "avg"
    embed_dim: int
    img_size: tuple[int, int]
    patch_size: int
    patch_embed: PatchEmbed
    cls_token: nn.Parameter
    pos_embed: nn.Parameter
    blocks: nn.ModuleList
    norm: nn.Module
    head: nn.Module

    @property
    def num_classes(self) -> int:
        """As many as the head tells apart, whoever put it there; 0 without a head."""
        return num_outputs(self.head)

    @num_classes.setter
    def num_classes(self, number: int) -> None:
        if number != self.num_classes:
            raise ZooError(
                f"num_classes is {number}, but the head tells {self.num_classes} classes apart; "
                f"give model.reset_classifier({number}) or put a head of that width first"
            )

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The folders or names of the classes, in their order, where they are known."""
        return self._labels

    @labels.setter
    def labels(self, names: Sequence[str] | None) -> None:
        self._labels = None if names is None else as_names(names, self.num_classes)

    @property
    def num_features(self) -> int:
        """The width of the pooled features, as timm calls it."""
        return self.embed_dim

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """How its images are prepared, where timm looks for it; no attribute while not known."""
        try:
            crop_pct = self.crop_pct or manifest_record(spec_of(self).name).crop_pct
        except CheckpointError as error:  # torch's tracer asks for all attributes
            raise AttributeError(*error.args) from error
        return timm_images((in_chans_of(self), *self.img_size), crop_pct)

    def cut_patches(
        self, img_size: int | Sequence[int], patch_size: int, in_chans: int, embed_dim: int
    ) -> PatchEmbed:
        """The layer that makes patches; the model's sizes are its."""
        self.img_size, self.patch_size, self.embed_dim = as_pair(img_size), patch_size, embed_dim
        return PatchEmbed(
            img_size=self.img_size, patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim
        )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images (B, C, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images to all tokens after the last norm (B, prefix + N, D)."""
        x = self.embed(x)
        for block in self.blocks:
            x = self._run(block, x)
        return self.finish(x)

    def embed(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to what the first block takes."""
        raise NotImplementedError

    def finish(self, x: Tensor) -> Tensor:
        """What the last block gives to all tokens after the last norm."""
        return cast(Tensor, self.norm(x))

    def finish_early(self, x: Tensor) -> Tensor:
        """The same of what another block gives."""
        return self.finish(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """What blocks give (all, the last n, or those listed), and `forward_features`; as in timm.

        Patches are maps (B, D, h, w), or tokens (B, N, D) as `NLC`; with `return_prefix_tokens` in
        pairs with the tokens before them. `stop_early` skips the blocks that come after.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ZooError(f"output_fmt is {output_fmt!r}; give NCHW or NLC")
        layers = pick_layers(len(self.blocks) if indices is None else indices, len(self.blocks))
        last = max(layers) if stop_early or intermediates_only else len(self.blocks) - 1
        outputs = self._block_outputs(self.embed(x), [*layers, last])
        shown = [(self.normed(y, i) if norm else y) for i, y in outputs.items() if i in layers]
        split = [self.split_prefix(output, output_fmt == "NCHW") for output in shown]
        pairs = [(patches, prefix) for prefix, patches in split]
        intermediates = pairs if return_prefix_tokens else [patches for patches, _ in pairs]
        if intermediates_only:
            return intermediates
        finish = self.finish if last == len(self.blocks) - 1 else self.finish_early
        return finish(outputs[last]), intermediates

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Any, ...]:
        """Patches (B, N, D) of the last n blocks or of the listed ones, as in DINOv2.

        `reshape` gives (B, D, h, w); `return_class_token` gives pairs with the `class_token`.
        """
        layers = pick_layers(n, len(self.blocks))
        outputs = self._block_outputs(self.embed(x), layers)
        normed = [self.normed(outputs[i], i) if norm else outputs[i] for i in layers]
        patches = [self.split_prefix(output, reshape)[1] for output in normed]
        if not return_class_token:
            return tuple(patches)
        tokens = [self.class_token(outputs[number], number, norm) for number in layers]
        return tuple(zip(patches, tokens, strict=True))

    def class_token(self, output: Tensor, number: int, norm: bool) -> Tensor:
        """The class token (B, D) of what a block gives; `norm` puts it under the last norm."""
        token = output[:, 0]
        return cast(Tensor, self.norm(token)) if norm else token

    def attention(self, x: Tensor, layers: Sequence[int] = (-1,)) -> list[Tensor]:
        """Softmax maps (B, H, prefix + N, prefix + N) of the listed blocks; the rest stay fused.

        A CaiT's are of patches alone (B, H, N, N), after the first mixing of heads; its last
        layers, `depth_token_only` of them, are of the class token (B, H, 1, 1 + N).
        """
        depth = len(self.blocks) + len(getattr(self, "blocks_token_only", ()))
        numbers = pick_layers(layers, depth)
        entered = islice(self._entered(x), max(numbers) + 1)
        maps = {
            number: cast(Any, layer).attention(*tokens)
            for number, (layer, tokens) in enumerate(entered)
            if number in numbers
        }
        return [maps[number] for number in numbers]

    def _entered(self, x: Tensor) -> Generator[tuple[nn.Module, tuple[Tensor, ...]], None, Tensor]:
        """Each layer with what enters it; in the end what the last block gives."""
        x = self.embed(x)
        for block in self.blocks:
            yield block, (x,)
            x = self._run(block, x)
        return x

    def normed(self, output: Tensor, number: int) -> Tensor:
        """What a block gives, under the last norm."""
        return cast(Tensor, self.norm(output))

    def split_prefix(self, output: Tensor, as_map: bool) -> tuple[Tensor, Tensor]:
        """What a block gives, as the tokens before the patches, and the patches."""
        num_prefix = output.shape[1] - self.patch_embed.num_patches
        prefix, patches = output[:, :num_prefix], output[:, num_prefix:]
        if as_map:
            shape = (output.shape[0], -1, *self.patch_embed.grid_size)
            patches = patches.transpose(1, 2).reshape(shape).contiguous()
        return prefix, patches

    def set_input_size(
        self, img_size: int | Sequence[int] | None = None, patch_size: int | None = None
    ) -> None:
        """Take images of another size from now on: positions are resampled as in fine-tuning.

        They are a new parameter, so this comes before an optimizer is made. As timm calls it.
        """
        if patch_size not in (None, self.patch_size):
            raise ZooError(
                f"patch_size is {patch_size}, and this model cuts patches of {self.patch_size}; "
                f"create(name, patch_size={patch_size}) resamples its filters"
            )
        size = self.img_size if img_size is None else as_pair(img_size)
        former = self.patch_embed.grid_size
        num_prefix = self.pos_embed.shape[1] - self.patch_embed.num_patches
        self.patch_embed.set_img_size(size, self.patch_size)
        self.img_size = size
        table = self.pos_embed.detach()
        new = resize_pos_embed(table.float(), former, self.patch_embed.grid_size, num_prefix)
        self.pos_embed = nn.Parameter(new.to(table.dtype), self.pos_embed.requires_grad)

    def forward_head(
        self, tokens: Tensor, pre_logits: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Tokens to logits; with `pre_logits` to the class token (B, D)."""
        return tokens[:, 0] if pre_logits else cast(Tensor, self.head(tokens[:, 0]))

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The head, or both heads of a distilled model."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one; 0 classes leaves the pooled features.

        `global_pool`, which timm's callers give, can only be what the model's already is.
        """
        if global_pool not in (None, self.global_pool):
            raise ZooError(
                f"global_pool is {global_pool!r}, but the head of {type(self).__name__} reads "
                f"{self.global_pool!r}; leave it out"
            )
        self.head = new_head(self.embed_dim, num_classes, like=self)
        self.labels = self.problem_type = self.reading = None

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` compiles: a trace, since scripts know but a part of Python."""
        if self.training:
            raise ZooError("torch.jit.script takes a model that predicts; call model.eval() first")
        shape, where = (2, in_chans_of(self), *self.img_size), next(self.parameters())
        image = torch.zeros(shape, device=where.device, dtype=where.dtype)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of checks that a trace leaves out
            return nn.Sequential(torch.jit.trace(self, image))  # type: ignore[no-untyped-call]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of storing it: memory for time."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names beyond biases and norms that upstream did not decay (`dist_token` it did)."""
        return {"cls_token", "pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort parameters by depth, in timm's form; blocks are as coarse
        as it gets."""
        blocks = [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^(?:cls_token|dist_token|pos_embed|patch_embed|stem)", "blocks": blocks}

    def _run(self, block: nn.Module, *tokens: Tensor) -> Tensor:
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(block, *tokens, use_reentrant=False))
        return cast(Tensor, block(*tokens))

    def _block_outputs(self, x: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """What the listed blocks give when the first one is given x, in their order."""
        outputs: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks[: max(layers) + 1]):
            x = self._run(block, x)
            if number in layers:
                outputs[number] = x
        return outputs


def pick_layers(layers: int | Sequence[int], depth: int) -> list[int]:
    """Layer numbers from `n` (the last n) or from a list in which -1 is the last."""
    numbers: list[int | None]
    if isinstance(layers, Iterable):
        numbers = [whole_number(layer) for layer in layers]
    else:
        last = whole_number(layers) or 0
        numbers = [*range(depth - last, depth)] if last <= depth else []
    picked = [layer % depth for layer in numbers if layer is not None and -depth <= layer < depth]
    if not 0 < len(picked) == len(numbers):
        raise ZooError(
            f"layers is {layers!r}, but the model has {depth} blocks; give a number from 1 to "
            f"{depth} for the last ones, or a list of numbers from {-depth} to {depth - 1}"
        )
    return picked


def unwrapped(model: Any) -> Any:
    """The model inside what torch.compile, DataParallel, DDP or an average put around it."""
    while isinstance(model, nn.Module):
        children = dict(model.named_children())  # a traced model's _modules is no dict
        if (inner := children.get("_orig_mod") or children.get("module")) is None:
            break
        model = inner
    return model


def spec_of(model: Any) -> ModelSpec:
    if (spec := getattr(model, "spec", None)) is None:
        kind, cure = type(model).__name__, "make it with create(name)"
        parts = model.named_modules() if isinstance(model, nn.Module) else ()
        inside = [name for name, part in parts if name and isinstance(part, ZooModel)]
        if len(inside) == 1:
            cure = f"give the model inside it, which is the {kind}'s .{inside[0]}"
        raise CheckpointError(
            f"{kind} was not made by deit_zoo.create, so its classes and transform are not known; "
            f"{cure}"
        )
    return cast("ModelSpec", spec)


def num_classes_of(model: Any) -> int:
    """The same of any model: timm's, whose head may have been changed, or a copy without one."""
    head = getattr(model, "head", None)
    return int(model.num_classes) if head is None else num_outputs(head)


def check_heads(model: Any) -> None:
    """Raises ZooError where the two heads of a model tell other numbers of classes apart."""
    num_classes, second = num_classes_of(model), getattr(model, "head_dist", None)
    if second is not None and num_outputs(second) not in (0, num_classes):
        raise ZooError(
            f"the model's two heads tell {num_classes} and {num_outputs(second)} classes apart; "
            f"give both one number: model.reset_classifier({num_classes})"
        )


def in_chans_of(model: Any) -> int:
    """The channels of the images that a model takes; a RegNet from timm takes three."""
    return int(getattr(getattr(model, "patch_embed", model), "in_chans", 3))
