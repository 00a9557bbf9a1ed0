"""The table of models: in the terminal, in a notebook, and as a page of docs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deit_zoo.facts.model import ModelInfo

HEADING = ("name", "top-1", "params", "GMACs", "px", "data", "proof", "here")
NUMBERS = range(1, 5)  # columns
DATA = {"imagenet1k": "in1k", "digits": "digits"}
PROOF = {"pinned": "pinned", "hub digest": "hub", "prefix": "prefix", "none": "none"}
OF_TIMM = "measured by timm with this transform, for which the authors published no figure"
LEGEND = (
    "proof: SHA-256 pinned, stated by the Hub, known by its prefix, or none",
    "here: weights embedded in the package, cached, or carried to this machine",
)


class ModelTable(list[str]):
    """Names of models, as `list_models(as_table=True)` gives them; `models` is what is known."""

    def __init__(self, models: Iterable[ModelInfo]) -> None:
        self.models = tuple(models)
        super().__init__(model.name for model in self.models)

    def __repr__(self) -> str:
        rows = [HEADING, *self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if number in NUMBERS else cell.ljust(width)
                for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *self._notes()])

    def _repr_html_(self) -> str:
        from deit_zoo.notebook import table

        return table(self._rows(), heading=HEADING, right=NUMBERS, notes=self._notes())

    def _rows(self) -> list[tuple[str, ...]]:
        """Of the names in the list by now, whatever was done to it."""
        known = {row[0]: row for row in rows_of_models(self.models)}
        return [known.get(name, (name, *["–"] * (len(HEADING) - 1))) for name in self]

    def _notes(self) -> list[str]:
        return notes_of_models([model for model in self.models if model.name in self])


def rows_of_models(models: Iterable[ModelInfo]) -> list[tuple[str, ...]]:
    """The cells below HEADING."""
    rows: list[tuple[str, ...]] = []
    for model in models:
        record = model.checkpoint
        known = ("–", "–", "–")
        if record is not None:
            known = (DATA[record.labels], PROOF[record.proof], model.place or "–")
        size = str(model.img_size)
        rows.append((model.name, top1(model), params(model), gmacs(model), size, *known))
    return rows


def notes_of_models(models: Sequence[ModelInfo]) -> list[str]:
    """What the signs of the table mean; of no models there are none."""
    if not models:
        return []
    return [f"* {OF_TIMM}", *LEGEND] if any(map(is_timms, models)) else [*LEGEND]


def models_page(models: Iterable[ModelInfo]) -> str:
    """What `deit-zoo list --markdown` prints and `docs/models.md` holds."""
    lines = [
        "# Models",
        "",
        "Made by `deit-zoo list --markdown`. Accuracy in percent, on ImageNet-1k's validation set",
        "with the crop shown, or on the embedded digits. `*`: measured by timm with this crop,",
        "for which the authors published no figure. GMACs are multiply-accumulates per image.",
        "",
        "`--html` writes the same for a browser, in one file that needs no network: to sort, to",
        "filter, drawn against speed, and with all that is known of each model, its checkpoint and",
        "its recipe. `--curve` adds the speeds of your machine.",
        "",
        "```sh",
        "deit-zoo list --html zoo.html",
        "deit-zoo benchmark --curve deit_pico_digits --quick --output curve.json",
        "deit-zoo list --html zoo.html --curve curve.json",
        "```",
        "",
        "![The page: accuracy against speed, filters and the table](images/zoo.png)",
        "",
        "| name | top-1 | top-5 | parameters | GMACs | pixels | crop | also called |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for model in models:
        record = model.checkpoint
        metric = record.metric if record else None
        cells = (
            f"`{model.name}`",
            top1(model),
            "–" if metric is None or metric.top5 is None else f"{metric.top5:.2f}",
            f"{model.num_params:,}",
            f"{model.gmacs:.2f}" if model.gmacs >= 0.1 else f"{model.gmacs:.4f}",
            str(model.img_size),
            f"{record.crop_pct:g}" if record else "–",
            ", ".join(f"`{alias}`" for alias in model.aliases[:2]) or "–",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def params(model: ModelInfo) -> str:
    """Millions of parameters."""
    millions = model.num_params / 1e6
    return f"{millions:.1f}M" if millions >= 1 else f"{millions:.2f}M"


def gmacs(model: ModelInfo) -> str:
    """Billions of multiply-accumulates for an image."""
    decimals = 3 if model.gmacs < 1 else 2 if model.gmacs < 10 else 1
    return f"{model.gmacs:.{decimals}f}"


def top1(model: ModelInfo) -> str:
    """Percent, with a star where timm measured it."""
    metric = model.checkpoint.metric if model.checkpoint else None
    if metric is None or metric.top1 is None:
        return "–"
    return f"{metric.top1:.2f}{'*' if is_timms(model) else ''}"


def is_timms(model: ModelInfo) -> bool:
    """Whether timm measured the figure, for which the authors published none."""
    record = model.checkpoint
    return record is not None and record.is_timms(record.metric)
