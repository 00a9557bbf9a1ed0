"""Attention as maps over the patches, and as a picture: what the class token looks at.

  Rollout  https://arxiv.org/abs/2005.00928

Shapes: H heads, T tokens (prefix and patches), (h, w) the grid of patches.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from math import ceil, sqrt
from textwrap import wrap
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from PIL import Image, ImageOps
from torch import Tensor

from deit_zoo.data.transforms import normalized
from deit_zoo.errors import ImageSizeError, ZooError, whole_number
from deit_zoo.evaluation.accuracy import eval_mode
from deit_zoo.files import check_new_file, expand_user, write_whole
from deit_zoo.machine import require_matplotlib
from deit_zoo.models.layers import as_pair
from deit_zoo.models.model import ZooModel
from deit_zoo.registry import ModelSpec
from deit_zoo.registry.names import is_path, resolve
from deit_zoo.results import Method
from deit_zoo.runs.picture import png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METHODS = get_args(Method)
TOKENS = ("class", "distillation")
WITHOUT = ("convnet", "regnet")  # families

# Perceptually even and safe for the colour-blind; over a grey image hue is the map's alone.
COLOURS, OPACITY = "viridis", 0.65
# Inches: a square panel's side and the sheet's bounds; then what titles, bars and labels need.
SIDE, NARROWEST, WIDEST = 1.65, 5.6, 13.2
GAP, PAD, HEADING, AROUND, LABEL, BAR = 0.2, 0.07, 0.2, 0.62, 0.42, 0.07
LETTERS = 10  # of a title, in an inch
THUMBNAIL = 112  # pixels of the longer side, in a notebook


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AttentionMap:
    """The share of attention that each prefix token gives to each patch.

    `maps` and `on_tokens` are one softmax row in two parts: over the patches and the prefix tokens
    together every row of `maps[t, p]` and `on_tokens[t, p]` sums to 1 (for a mean over heads and
    for rollout as well).
    """

    model: str
    layer: int  # counted from 0; rollout goes from layer 0 to this one
    tokens: tuple[str, ...]  # who looks: ("class",) or ("class", "distillation")
    panels: tuple[str, ...]  # "head 0", ..., "mean", "rollout": those asked for
    maps: Tensor  # (tokens, panels, h, w), float32 on the CPU
    on_tokens: Tensor  # (tokens, panels, tokens), float32 on the CPU
    image: Image.Image  # the crop that the model saw

    def save(self, file: str | os.PathLike[str], *, title: str | None = None) -> None:
        """Draw the maps over the image into a PNG. Raises MissingExtraError without matplotlib."""
        file = expand_user(file)
        check_new_file(file, (".png",), "name")
        require_matplotlib()
        write_whole(file, png_of(figure(self, _title(self) if title is None else title)))

    def _repr_html_(self) -> str:
        from deit_zoo.notebook import Html, picture, table

        def shown(image: Image.Image, words: str) -> Html:
            file, scale = BytesIO(), THUMBNAIL / max(image.size)
            size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
            image.resize(size, Image.Resampling.NEAREST).save(file, "PNG")
            return Html(picture(file.getvalue(), "png", description=words) + f"<br>{words}")

        rows = []
        for token, maps in zip(self.tokens, self.maps, strict=True):
            cells: list[str] = [f"{token} token", shown(self.image, "image")]
            for name, shares in zip(self.panels, maps, strict=True):
                words = f"{name}, {100 * float(shares.max()):.3g}\u00a0%"
                cells.append(shown(overlay(self.image, shares), words))
            rows.append(cells)
        return table(rows, notes=[f"{_title(self)}; beside each map its largest share"])

    def to_dict(self) -> dict[str, Any]:
        """The maps in figures, ready for JSON; entropy in nats, rows and columns from 0."""
        height, width = self.maps.shape[-2:]
        return {
            "model": self.model,
            "layer": self.layer,
            "img_size": [self.image.height, self.image.width],
            "grid": [height, width],
            "maps": [
                {"token": token, "map": panel} | _figures(self.maps[t, p], self.on_tokens[t, p])
                for t, token in enumerate(self.tokens)
                for p, panel in enumerate(self.panels)
            ],
        }


def check_attentive(spec: ModelSpec) -> None:
    """Raises ZooError for a model that has no attention."""
    if spec.family in WITHOUT:
        raise ZooError(
            f"{spec.name} is a convnet and has no attention; give a deit or cait model, such as "
            "deit_small or cait_s24_224"
        )


def check_layer(name: str, layer: int) -> None:
    """Raises ZooError where a model has no such layer, before its weights are fetched."""
    if not is_path(name):
        spec = resolve(name)
        with torch.device("meta"):
            _layer_number(spec.build(), spec.name, layer)


def check_size(network: ZooModel, img_size: int | tuple[int, int] | None) -> None:
    """Raises ImageSizeError where a model that is built already has another image size."""
    if img_size is not None and as_pair(img_size) != network.img_size:
        height, width = network.img_size
        raise ImageSizeError(
            f"img_size is {img_size}, but the model is built for {height}x{width} pixels; leave "
            "img_size out, or build the model with deit_zoo.create(name, img_size=)"
        )


def attention_map(
    network: ZooModel, pixels: Tensor, *, layer: int = -1, method: Method = "heads"
) -> AttentionMap:
    """The attention of a model's prefix tokens on uint8 pixels (3, height, width)."""
    if method not in METHODS:
        raise ZooError(f"method is {method!r}; give one of {', '.join(METHODS)}")
    if not hasattr(network, "attention"):
        raise ZooError("an optimized copy forms no attention; give the model that it was made of")
    assert network.spec is not None, "a model without a spec came this far"
    name = network.spec.name
    number = _layer_number(network, name, layer)
    through = method in ("all", "rollout")
    transformer: Any = network
    num_prefix: int = transformer.num_prefix_tokens
    weight = next(network.parameters())
    batch = normalized(pixels)[None].to(weight.device, weight.dtype)
    with eval_mode(network), torch.no_grad():
        maps = transformer.attention(batch, range(number + 1) if through else [number])
    layers = [layer_map[0].float() for layer_map in maps]
    heads = layers[-1][:, :num_prefix]  # (H, prefix, T)
    kinds = {
        "heads": ([f"head {head}" for head in range(len(heads))], heads),
        "mean": (["mean"], heads.mean(dim=0, keepdim=True)),
        "rollout": (["rollout"], rollout(layers, num_prefix)[None] if through else heads[:0]),
    }
    shown = [kinds[kind] for kind in kinds if method in ("all", kind)]
    rows = torch.cat([part for _, part in shown]).transpose(0, 1).cpu()  # (prefix, panels, T)
    if not rows.isfinite().all():
        raise ZooError(f"the attention of {name} is not finite; its weights are broken")
    rgb = bytes(pixels.permute(1, 2, 0).flatten().tolist())
    return AttentionMap(
        model=name,
        layer=number,
        tokens=TOKENS[:num_prefix],
        panels=tuple(panel for panels, _ in shown for panel in panels),
        maps=rows[..., num_prefix:].reshape(*rows.shape[:2], *transformer.patch_embed.grid_size),
        on_tokens=rows[..., :num_prefix].contiguous(),
        image=Image.frombytes("RGB", (pixels.shape[2], pixels.shape[1]), rgb),
    )


def rollout(layers: Sequence[Tensor], num_prefix: int) -> Tensor:
    """Attention rollout of the prefix tokens (prefix, T) through maps (H, rows, columns).

    Abnar and Zuidema, section 3: heads are averaged, the residual counts as much as attention
    (0.5 A + 0.5 I, rows renormalised), and the layers are multiplied. A token that takes no part
    in a layer stays what it is there: CaiT's class token among the patches, and its patches under
    class-attention.
    """
    num_tokens = layers[-1].shape[-1]
    flow = torch.eye(num_tokens, device=layers[-1].device)[:num_prefix]
    for heads in layers[::-1]:
        flow = flow @ _step(heads.mean(dim=0), num_tokens)
    return flow


def _step(attention: Tensor, num_tokens: int) -> Tensor:
    """0.5 A + 0.5 I over all tokens (T, T); A stands at the end of those it is about."""
    step = torch.eye(num_tokens, device=attention.device)
    first = num_tokens - attention.shape[1]
    rows = slice(first, first + attention.shape[0])
    step[rows, first:] = 0.5 * attention + 0.5 * step[rows, first:]
    return step / step.sum(dim=-1, keepdim=True)


def figure(attention: AttentionMap, title: str) -> Figure:
    """The picture: for each token a block of panels, the image and each map over it with a scale of
    its own, all of one size."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # Inches of a panel: of one area for every shape of image, as far as it is legible.
    ratio = attention.image.width / attention.image.height
    width = min(max(SIDE * sqrt(ratio), 1.0), WIDEST / 2)
    height = max(width / ratio, 0.3)
    num_tokens, num_panels = len(attention.tokens), 1 + len(attention.panels)
    lines = ceil(num_panels / max(1, int(WIDEST / (width + GAP))))
    columns = ceil(num_panels / lines)
    across = max(NARROWEST, columns * (width + GAP))
    titles = wrap(title, int(across * LETTERS))
    down = HEADING * (1 + len(titles)) + num_tokens * (lines * (height + AROUND) + LABEL)
    space = GAP / 2 / height
    layout = ConstrainedLayoutEngine(w_pad=GAP / 2, h_pad=PAD, wspace=0, hspace=space)
    sheet = Figure(figsize=(across, down), layout=layout)
    left = GAP / 2 / across
    sheet.suptitle("\n".join(titles), x=left, ha="left", fontsize=11)
    blocks = sheet.subfigures(num_tokens, squeeze=False)[:, 0]
    for block, token, maps in zip(blocks, attention.tokens, attention.maps, strict=True):
        label = f"colours: attention, share of the {token} token"
        block.supxlabel(label, x=left, ha="left", fontsize=9)
        panels = block.subplots(lines, columns, squeeze=False).flatten()
        for panel in panels:
            panel.set_axis_off()
        panels[0].imshow(attention.image)
        panels[0].set_title("image", fontsize=9)
        used = panels[1 : 1 + len(maps)]  # the last line may have more
        for panel, name, weights in zip(used, attention.panels, maps, strict=True):
            panel.set_title(name, fontsize=9)
            _plot_map(panel, attention.image, weights, bar_height=BAR / height)
    return sheet


def overlay(image: Image.Image, shares: Tensor) -> Image.Image:
    """A map over a faint grey image, one flat square per patch, dark where it has no attention."""
    scaled = (255 * shares / max(float(shares.max()), 1e-12)).round().to(torch.uint8)
    patches = Image.frombytes("L", (shares.shape[1], shares.shape[0]), bytes(scaled.flatten()))
    # Three of viridis' colours, by which no matplotlib is needed.
    colours = ImageOps.colorize(patches, black="#440154", mid="#21918c", white="#fde725")
    grey = image.convert("L").point(lambda value: (value + 255) // 3).convert("RGB")
    return Image.blend(grey, colours.resize(image.size, Image.Resampling.NEAREST), OPACITY)


def _plot_map(panel: Axes, image: Image.Image, weights: Tensor, bar_height: float) -> None:
    """A map over a faint image, one flat square per patch, coloured from 0 to its largest share."""
    peak = float(weights.max())
    edges = (-0.5, image.width - 0.5, image.height - 0.5, -0.5)
    # Greys from a third to two thirds: what is bright in the image must not pass for attention.
    panel.imshow(image.convert("L"), cmap="gray", vmin=-255, vmax=510, extent=edges)
    colours = panel.imshow(
        weights.numpy(),
        cmap=COLOURS,
        alpha=OPACITY,
        vmin=0,
        vmax=peak or 1.0,
        extent=edges,
        interpolation="nearest",
    )
    bar = panel.inset_axes((0, -1.7 * bar_height, 1, bar_height))
    bar.set_facecolor("0.5")
    panel.figure.colorbar(colours, cax=bar, orientation="horizontal", ticks=[])
    bar.annotate("0", (0, -0.5), xycoords="axes fraction", va="top", fontsize=7)
    share = f"{100 * peak:.3g} %"
    bar.annotate(share, (1, -0.5), xycoords="axes fraction", ha="right", va="top", fontsize=7)


def _layer_number(network: ZooModel, name: str, layer: int) -> int:
    """The layer counted from 0. Raises ZooError where there is none, or no class token in it."""
    blocks = len(cast(Sequence[Any], network.blocks))
    depth = blocks + len(getattr(network, "blocks_token_only", ()))
    number = whole_number(layer)
    if number is None or not -depth <= number < depth:
        raise ZooError(
            f"layer is {layer!r}, but {name} has {depth} layers; give a number from 0 to "
            f"{depth - 1}, or from {-depth} to -1 to count from the last"
        )
    if depth > blocks > number % depth:
        raise ZooError(
            f"layer is {layer}, but in {name} the class token enters with layer {blocks}; give a "
            f"number from {blocks} to {depth - 1}, or from {blocks - depth} to -1"
        )
    return number % depth


def _figures(shares: Tensor, on_tokens: Tensor) -> dict[str, Any]:
    """One map's spread and peak; the entropy is that of the whole row, prefix tokens included."""
    row, column = divmod(int(shares.argmax()), shares.shape[1])
    whole = torch.cat((on_tokens, shares.flatten()))
    return {
        "entropy": float(torch.special.entr(whole).sum()),
        "on_patches": float(shares.sum()),
        "largest": {"row": row, "column": column, "share": float(shares.max())},
    }


def _title(attention: AttentionMap) -> str:
    rolled = attention.panels == ("rollout",)
    layers = f"layers 0 to {attention.layer}" if rolled else f"layer {attention.layer}"
    height, width = attention.maps.shape[-2:]
    return f"{attention.model}, {layers}, {height}x{width} patches"
