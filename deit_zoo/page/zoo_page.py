"""`deit-zoo list --html`: the page, made from the registry, the manifest and the recipes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from deit_zoo.facts.model import architecture, figures, sources
from deit_zoo.facts.recipe import fields_of_recipe, rows_of_recipe
from deit_zoo.facts.speed import COLOURS, OTHER, TITLES, series_of, size_of
from deit_zoo.facts.table import OF_TIMM, gmacs, params, top1
from deit_zoo.page.speeds import SPEED, Axis, axes_of
from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.sources import ASSUMED
from deit_zoo.registry import MODELS
from deit_zoo.runs.reference import published_curve
from deit_zoo.version import __version__

if TYPE_CHECKING:
    from deit_zoo.facts.model import ModelInfo

FOLDER = Path(__file__).parent
BEGINS = b"<!doctype html>\n<!-- deit-zoo list --html -->"  # the template's first lines
VENDORED = FOLDER / "vendored"
DATA_SETS = {"imagenet1k": "ImageNet-1k", "digits": "digits"}
# An article that is quoted, an address, and a digest or a commit.
_MARKED = re.compile(
    r"arXiv:(?P<paper>\d{4}\.\d{5})|(?P<address>https://[^\s,;)]*[^\s,;).])|(?P<digest>\b[0-9a-f]{40,64}\b)"
)
_LINK = Markup('<a href="{}">{}</a>')
_DIGEST = Markup('<code class="digest">{}</code>')


def zoo_page(models: Sequence[ModelInfo], measured: Sequence[Axis] = ()) -> str:
    """The page of these models, in their order. It holds all that it shows and asks no network.

    `measured` are speeds of a machine, as `read_curve` has them. Text is escaped wherever it is
    from, and only the scripts that are written here run: the page says their SHA-256.
    """
    libraries = json.loads((VENDORED / "sources.json").read_text())
    files = [*(VENDORED / library["file"] for library in libraries), FOLDER / "page.js"]
    scripts = [_script(file) for file in files]
    style = Markup((FOLDER / "page.css").read_text(encoding="utf-8"))
    axes = axes_of(models, measured)
    numbers = {name: number for number, name in enumerate(sorted(MODELS, key=_natural))}
    facts = {model.name: _facts(model, numbers[model.name]) for model in models}
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["linked"] = linked
    return environment.get_template("page.html.jinja").render(
        version=__version__,
        policy=_policy(scripts, style),
        style=style,
        scripts=scripts,
        models=[(facts[model.name], _details(model, axes)) for model in models],
        assumed=ASSUMED,
        of_timm=OF_TIMM,
        choices={
            label: sorted({fact[label] for fact in facts.values()})
            for label in ("family", "dataset", "pixels", "licence", "proof", "recipe")
        },
        axes=axes,
        speeds=[axis for axis in axes if axis.unit == SPEED],
        data={"models": facts, "axes": [asdict(axis) for axis in axes]},
        libraries=libraries,
        licences=[(VENDORED / name).read_text() for lib in libraries for name in lib["licences"]],
    )


def linked(text: str) -> Markup:
    """Text in which papers and addresses are links and digests are code; the rest is escaped."""
    parts, end = [], 0
    for match in _MARKED.finditer(text):
        parts.append(escape(text[end : match.start()]))
        if match["digest"]:
            parts.append(_DIGEST.format(match[0]))
        else:
            paper = f"https://arxiv.org/abs/{match['paper']}"
            parts.append(_LINK.format(match["address"] or paper, match[0]))
        end = match.end()
    return Markup("").join([*parts, escape(text[end:])])


def _script(file: Path) -> Markup:
    # A debugger would ask for the map of what was minified, which is not here.
    return Markup(file.read_text(encoding="utf-8").partition("//# sourceMappingURL=")[0])


def _policy(scripts: Sequence[str], style: str) -> str:
    """The Content-Security-Policy: nothing is loaded, and only what is written here is run."""

    def hashed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {' '.join(map(hashed, scripts))}; "
        f"style-src {hashed(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part or 0), word) for word, part in re.findall(r"(\D+)(\d*)", name)]


def _facts(model: ModelInfo, number: int) -> dict[str, Any]:
    """What the table is sorted and filtered by and the chart draws; `number` is the name's place
    in the order of names."""
    record, recipe = model.checkpoint, RECIPES.get(model.name)
    metric = record.metric if record else None
    curve = published_curve(recipe) if recipe else None
    kind = "none" if model.recipe is None else "assumed" if model.recipe_assumed else "complete"
    return {
        "name": model.name,
        "number": number,
        "names": " ".join([model.name, *model.aliases]).lower(),
        "family": TITLES.get(model.family, model.family),
        "dataset": DATA_SETS[MODELS[model.name].labels],
        "pixels": model.img_size,
        "top1": metric.top1 if metric else None,
        "params": model.num_params / 1e6,
        "gmacs": model.gmacs,
        "licence": record.license if record else "none",
        "proof": record.proof if record else "none",
        "recipe": kind,
        "colour": COLOURS.get(model.family, OTHER),
        "series": series_of(MODELS[model.name]),
        "size": size_of(model.name),
        "curve": sorted(curve.points.items()) if curve else [],
    }


def _details(model: ModelInfo, axes: Sequence[Axis]) -> dict[str, Any]:
    """What the fold-out of a model says beside."""
    record, recipe = model.checkpoint, RECIPES.get(model.name)
    curve = published_curve(recipe) if recipe else None
    return {
        "cells": (top1(model), params(model), gmacs(model)),
        "architecture": list(architecture(model)),
        "figures": list(figures(model, record)) if record else [],
        "sources": list(sources(record)) if record else [],
        "recipe_rows": list(rows_of_recipe(recipe)) if recipe else [],
        "recipe_fields": fields_of_recipe(recipe) if recipe else [],
        "num_assumed": len(recipe.assumed) if recipe else 0,
        "curve_source": curve.source if curve else None,
        "speeds": [
            (axis.title, f"{axis.values[model.name]:,g} images/s ({axis.source})")
            for axis in axes
            if axis.unit == SPEED and model.name in axis.values
        ],
    }
