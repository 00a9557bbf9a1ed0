"""What is known of a model, in labelled rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from deit_zoo.errors import first_of, redact
from deit_zoo.files import ASSETS
from deit_zoo.manifest import Checkpoint, LocalCheckpoint

if TYPE_CHECKING:
    from deit_zoo.weights.places import Place

Row = tuple[str, str]
PROOFS = {
    "pinned": "{}",
    "hub digest": "not known beforehand: the digest that the Hub states is checked and recorded",
    "prefix": "{} (prefix only)",
    "none": "none is published",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """What is known of a model. `checkpoint` and `recipe` are None where there is none.

    Weights that were given by their path are `file`, their classes `labels`.
    `recipe_assumed` names the recipe's values that nobody published, each with a reason.
    """

    name: str
    family: str
    aliases: tuple[str, ...]
    arch: dict[str, Any]
    num_params: int
    gmacs: float
    img_size: int | tuple[int, int]
    source: str
    checkpoint: Checkpoint | None
    recipe: str | None
    recipe_assumed: dict[str, str]
    file: LocalCheckpoint | None = None
    labels: tuple[str, ...] | None = None

    @property
    def place(self) -> Place | None:
        """Where its weights are taken from without a network: carried, embedded, cached, or None.

        Found by their names; what the files hold is checked where they are loaded.
        """
        from deit_zoo.weights.places import place_of

        return None if self.checkpoint is None else place_of(self.checkpoint)

    def _repr_html_(self) -> str:
        from deit_zoo.notebook import table

        return table(rows_of_model(self))

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, ready for JSON."""
        facts = asdict(self) | {"checkpoint": self.checkpoint and self.checkpoint.to_dict()}
        own = {"file": self.file.to_dict(), "labels": self.labels} if self.file else {}
        return {key: facts[key] for key in facts if key not in ("file", "labels")} | own


def rows_of_model(model: ModelInfo) -> list[Row]:
    """Labels and values, as `deit-zoo info` prints them."""
    if model.file is not None:
        return list(_of_file(model, model.file))
    rows = [("name", model.name), *architecture(model), *_of_recipe(model)]
    record = model.checkpoint
    if record is None:
        return [*rows, ("checkpoint", "none")]
    rows += [*figures(model, record), *sources(record)]
    here = model.place or f"not on this machine: deit-zoo weights fetch {model.name}"
    rows.append(("weights", here))
    if record.log is not None:
        rows.append(("log", str(ASSETS / record.log)))
        rows.append(("receipt", str(ASSETS / f"{record.name}.receipt.json")))
    return rows


def architecture(model: ModelInfo) -> Iterator[Row]:
    """What the network is."""
    if model.aliases:
        yield "also called", ", ".join(model.aliases)
    arch = ", ".join(f"{key} {value}" for key, value in model.arch.items())
    yield "architecture", f"{model.family}: {arch}" if arch else model.family
    yield "from", model.source
    yield "size", f"{model.num_params:,} parameters, {model.gmacs:g} GMACs at {model.img_size} px"


def _of_recipe(model: ModelInfo) -> Iterator[Row]:
    more = f"; deit-zoo info {model.name} --recipe shows every value"
    yield "recipe", "none" if model.recipe is None else model.recipe + more
    for number, reason in enumerate(dict.fromkeys(model.recipe_assumed.values())):
        fields = [key for key, why in model.recipe_assumed.items() if why == reason]
        yield "" if number else "partly assumed", f"{', '.join(fields)}: {reason}"


def figures(model: ModelInfo, record: Checkpoint) -> Iterator[Row]:
    """How good the checkpoint is, each figure with its source, and the transform that it is of."""
    yield "transform", f"crop_pct {record.crop_pct:g}, {record.interpolation}, {model.img_size} px"
    for key, metric in record.metrics.items():
        known = [
            f"{figure} {value:g}"
            for figure in ("top1", "top5", "loss")
            if (value := getattr(metric, figure)) is not None
        ]
        yield key, f"{', '.join(known)} ({metric.source})" if known else "no figure published"


def sources(record: Checkpoint) -> Iterator[Row]:
    """Where the checkpoint's bytes are, how they are proved, and on which terms they are given."""
    for source in record.sources:
        url = redact(source.url or "")  # a manifest of one's own may hold a key
        address = url or source.repo_id or f"{source.filename}, inside the package"
        yield f"from {source.kind}", address
        if source.kind == "hub":
            yield "  commit", source.revision or "not known: the newest is taken"
        prefix = source.sha256_prefix or ""
        whole = source.sha256 or (prefix if len(prefix) == 64 else None)
        yield "  SHA-256", whole or PROOFS[source.proof].format(f"{prefix}…")
    yield "licence", record.license
    yield "origin", record.origin + (f", {record.paper}" if record.paper else "")


def _of_file(model: ModelInfo, local: LocalCheckpoint) -> Iterator[Row]:
    yield "weights", str(local.path)
    yield "  SHA-256", local.sha256 or "stated nowhere"
    yield "of", f"{model.name} ({model.source})"
    yield "size", f"{model.num_params:,} parameters"
    size = model.img_size
    yield "images", f"{size} px" if isinstance(size, int) else f"{size[0]}x{size[1]} px"
    if model.labels is not None:
        yield "classes", f"{len(model.labels):,}: {first_of(model.labels)}"
