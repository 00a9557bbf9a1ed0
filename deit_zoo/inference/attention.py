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
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from PIL import Image
from torch import Tensor

from deit_zoo.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from deit_zoo.errors import DataError, ImageSizeError, MissingExtraError, ZooError
from deit_zoo.evaluation.accuracy import eval_mode
from deit_zoo.files import write_whole
from deit_zoo.models.layers import ZooModel, as_pair
from deit_zoo.registry import ModelSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Method = Literal["all", "heads", "mean", "rollout"]
METHODS = ("all", "heads", "mean", "rollout")
TOKENS = ("class", "distillation")
WITHOUT = ("convnet", "regnet")  # families

# Perceptually even and safe for the colour-blind; over a grey image hue is the map's alone.
COLOURS, OPACITY = "viridis", 0.65
# Inches: a square panel's side and the sheet's bounds; then what titles, bars and labels need.
SIDE, NARROWEST, WIDEST = 1.65, 5.6, 13.2
MARGIN, GAP, HEADING, ABOVE, BELOW, LABEL = 0.15, 0.2, 0.2, 0.26, 0.32, 0.4
LETTERS = 10  # of a title, in an inch
DPI = 120


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
        draw(self, Path(file), title=title)

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


def check_size(network: ZooModel, img_size: int | tuple[int, int] | None) -> None:
    """Raises ImageSizeError where a model that is built already has another image size."""
    if img_size is not None and as_pair(img_size) != network.img_size:
        height, width = network.img_size
        raise ImageSizeError(
            f"img_size is {img_size}, but the model is built for {height}x{width} pixels; leave "
            "img_size out, or build the model with deit_zoo.create(name, img_size=)"
        )


def look(
    network: ZooModel, pixels: Tensor, *, layer: int = -1, method: Method = "heads"
) -> AttentionMap:
    """The attention of a model's prefix tokens on one prepared image (3, height, width)."""
    if method not in METHODS:
        raise ZooError(f"method is {method!r}; give one of {', '.join(METHODS)}")
    assert network.spec is not None, "a model without a spec came this far"
    name = network.spec.name
    number = _layer_number(network, name, layer)
    rolled = method in ("all", "rollout")
    attend: Any = network
    where = next(network.parameters())
    batch = pixels[None].to(where.device, where.dtype)
    with eval_mode(network), torch.no_grad():
        found = attend.attention(batch, range(number + 1) if rolled else [number])
        layers = [one[0].float() for one in found]
        prefix: int = attend.num_prefix_tokens
        heads = layers[-1][:, :prefix]  # (H, prefix, T)
        parts = {
            "heads": heads,
            "mean": heads.mean(dim=0, keepdim=True),
            "rollout": rollout(layers, prefix)[None] if rolled else heads[:0],
        }
    asked = ("heads", "mean", "rollout") if method == "all" else (method,)
    rows = torch.cat([parts[part] for part in asked]).transpose(0, 1).cpu()  # (prefix, panels, T)
    if not rows.isfinite().all():
        raise ZooError(f"the attention of {name} is not finite; its weights are broken")
    heads_named = [f"head {head}" for head in range(len(heads))]
    grid = attend.patch_embed.grid_size
    return AttentionMap(
        model=name,
        layer=number,
        tokens=TOKENS[:prefix],
        panels=tuple(n for part in asked for n in (heads_named if part == "heads" else [part])),
        maps=rows[..., prefix:].reshape(*rows.shape[:2], *grid),
        on_tokens=rows[..., :prefix].contiguous(),
        image=as_image(pixels),
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


def as_image(pixels: Tensor) -> Image.Image:
    """A normalised tensor (3, height, width) as the 8-bit picture that it was made of."""
    mean = torch.tensor(IMAGENET_MEAN)[:, None, None]
    std = torch.tensor(IMAGENET_STD)[:, None, None]
    scaled = (pixels.float().cpu() * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)
    values = scaled.permute(1, 2, 0).flatten().tolist()
    return Image.frombytes("RGB", (pixels.shape[2], pixels.shape[1]), bytes(values))


def draw(attention: AttentionMap, file: Path, *, title: str | None = None) -> None:
    """Write a PNG: for each token the image, then each map over it with a scale of its own."""
    if file.suffix.lower() != ".png":
        raise DataError(f"{file} is no name of a PNG; give a file that ends in .png")
    require_matplotlib()
    sheet = _Sheet(attention, _title(attention) if title is None else title)
    for number in range(len(attention.tokens)):
        sheet.draw_token(number)
    data = BytesIO()
    sheet.figure.savefig(data, format="png", dpi=DPI)
    write_whole(file, data.getvalue())


def require_matplotlib() -> None:
    """Raises MissingExtraError where no picture can be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "a picture needs matplotlib; type: pip install 'deit_zoo[train]'"
        ) from error


class _Sheet:
    """The picture as it is drawn: a block of lines for each token; places in inches, from above."""

    def __init__(self, attention: AttentionMap, title: str) -> None:
        from matplotlib.figure import Figure

        self.attention = attention
        self.side = _panel_size(attention.image)
        count = 1 + len(attention.panels)
        most = max(1, int((WIDEST - 2 * MARGIN + GAP) / (self.side[0] + GAP)))
        self.lines = ceil(count / most)
        self.columns = ceil(count / self.lines)
        self.line = ABOVE + self.side[1] + BELOW
        self.block = self.lines * self.line + LABEL
        width = max(NARROWEST, 2 * MARGIN + self.columns * (self.side[0] + GAP) - GAP)
        titles = wrap(title, int(width * LETTERS))
        self.heading = MARGIN + len(titles) * HEADING + MARGIN
        self.size = (width, self.heading + len(attention.tokens) * self.block)
        self.figure = Figure(figsize=self.size)
        for number, line in enumerate(titles):
            self.write(MARGIN, MARGIN + (number + 0.5) * HEADING, line, size=11)

    def draw_token(self, number: int) -> None:
        """One token's panels: the image and every map over it."""
        attention = self.attention
        image = self.panel(number, 0, "image")
        image.imshow(attention.image)
        for place, name in enumerate(attention.panels):
            self.draw_map(number, place + 1, name, attention.maps[number, place])
        bottom = self.heading + number * self.block + self.lines * self.line
        said = f"colours: attention, share of the {attention.tokens[number]} token"
        self.write(MARGIN, bottom + 0.06, said, size=9)

    def draw_map(self, number: int, place: int, name: str, shares: Tensor) -> None:
        """Shares over a faint image, one flat square per patch, from 0 to the panel's largest."""
        panel = self.panel(number, place, name)
        image, peak = self.attention.image, float(shares.max())
        edges = (-0.5, image.width - 0.5, image.height - 0.5, -0.5)
        # Greys from a third to two thirds: what is bright in the image must not pass for attention.
        panel.imshow(image.convert("L"), cmap="gray", vmin=-255, vmax=510, extent=edges)
        drawn = panel.imshow(
            shares.numpy(),
            cmap=COLOURS,
            alpha=OPACITY,
            vmin=0,
            vmax=peak or 1.0,
            extent=edges,
            interpolation="nearest",
        )
        left, top = self.place(number, place)
        width, below = self.side[0], top + ABOVE + self.side[1]
        bar = self.axes(left, below + 0.05, width, 0.07)
        bar.set_facecolor("0.5")
        self.figure.colorbar(drawn, cax=bar, orientation="horizontal", ticks=[])
        self.write(left, below + 0.2, "0", size=7)
        self.write(left + width, below + 0.2, f"{100 * peak:.3g} %", size=7, align="right")

    def panel(self, number: int, place: int, name: str) -> Axes:
        """Empty axes in a token's block, with a title."""
        left, top = self.place(number, place)
        self.write(left + self.side[0] / 2, top + 0.13, name, size=9, align="center")
        panel = self.axes(left, top + ABOVE, *self.side)
        panel.set_axis_off()
        return panel

    def place(self, number: int, place: int) -> tuple[float, float]:
        """Where a panel with its title begins."""
        line, column = divmod(place, self.columns)
        left = MARGIN + column * (self.side[0] + GAP)
        return left, self.heading + number * self.block + line * self.line

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes at a place of the sheet."""
        across, down = self.size
        return self.figure.add_axes(
            (left / across, 1 - (top + height) / down, width / across, height / down)
        )

    def write(
        self, left: float, middle: float, text: str, *, size: int, align: str = "left"
    ) -> None:
        """Text at a place of the sheet."""
        across, down = self.size
        self.figure.text(
            left / across, 1 - middle / down, text, fontsize=size, ha=align, va="center"
        )


def _layer_number(network: ZooModel, name: str, layer: int) -> int:
    """The layer counted from 0. Raises ZooError where there is none, or no class token in it."""
    blocks = len(cast(Sequence[Any], network.blocks))
    depth = blocks + len(getattr(network, "blocks_token_only", ()))
    if not -depth <= layer < depth:
        raise ZooError(
            f"layer is {layer}, but {name} has {depth} layers; give a number from 0 to "
            f"{depth - 1}, or from {-depth} to -1 to count from the last"
        )
    if depth > blocks > layer % depth:
        raise ZooError(
            f"layer is {layer}, but in {name} the class token enters with layer {blocks}; give a "
            f"number from {blocks} to {depth - 1}, or from {blocks - depth} to -1"
        )
    return layer % depth


def _figures(shares: Tensor, on_tokens: Tensor) -> dict[str, Any]:
    """One map's spread and peak; the entropy is that of the whole row, prefix tokens included."""
    row, column = divmod(int(shares.argmax()), shares.shape[1])
    whole = torch.cat((on_tokens, shares.flatten()))
    return {
        "entropy": float(torch.special.entr(whole).sum()),
        "on_patches": float(shares.sum()),
        "largest": {"row": row, "column": column, "share": float(shares.max())},
    }


def _panel_size(image: Image.Image) -> tuple[float, float]:
    """Width and height in inches: of one area for every shape of image, as far as it is legible."""
    ratio = image.width / image.height
    width = min(max(SIDE * sqrt(ratio), 1.0), WIDEST / 2)
    return width, max(width / ratio, 0.3)


def _title(attention: AttentionMap) -> str:
    rolled = attention.panels == ("rollout",)
    layers = f"layers 0 to {attention.layer}" if rolled else f"layer {attention.layer}"
    height, width = attention.maps.shape[-2:]
    return f"{attention.model}, {layers}, {height}x{width} patches"
