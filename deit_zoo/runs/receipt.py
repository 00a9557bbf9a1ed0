"""The verdict on a run, and the receipt that lets others check it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deit_zoo.errors import redact
from deit_zoo.files import LOG_FILE, RECEIPT_FILE, write_whole
from deit_zoo.manifest import Metric, read_manifest
from deit_zoo.recipes.in_words import layout_in_words
from deit_zoo.recipes.plan import Plan, short_of
from deit_zoo.recipes.recipe import IMAGENET_VAL, Recipe
from deit_zoo.registry.names import is_path
from deit_zoo.results import Evaluation
from deit_zoo.runs.json_lines import finite
from deit_zoo.runs.reference import (
    compare_to_reference,
    plan_differences,
    published_curve,
    published_figure,
    read_log,
    recipe_differences,
)

_ROOT = r"(?:file:/+|[A-Za-z]:[\\/]|\\\\|~\w*[\\/]|\.{1,2}[\\/]|/)"  # how local paths begin
_PATH = re.compile(rf"([^@\s]*@|){_ROOT}(?:.*[\\/])?([^\\/]+)[\\/]?")
_PATH_IN_TEXT = re.compile(rf"(?<![^\s\"'=@(,]){_ROOT}(?:[^\s\"'()]*[\\/])?([^\s\"'()\\/]+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a run reached beside what was published; `reproduced` is None where nothing was.

    `band` is the recipe's tolerance.
    `modified` names the fields in which the recipe was not the shipped one, and `short` says where
    there were fewer images than it is for.
    """

    reached: Evaluation
    published: Metric | None
    band: float
    band_source: str
    reproduced: bool | None
    identical: bool = False
    modified: tuple[str, ...] = ()
    short: str = ""

    def sentence(self) -> str:
        """The verdict in one line."""
        reached = self.reached.words()
        modified = f"; {self.short}" if self.short else ""
        modified += f"; modified: {', '.join(self.modified)}" if self.modified else ""
        if self.published is None or self.published.top1 is None:
            return f"no verdict: {reached}, and no published figure to compare with{modified}"
        difference = self.reached.top1 - self.published.top1
        published = f"published {self.published.top1:.2f} %, {difference:+.2f}"
        bytes_ = "; the weights are the published file, byte for byte" if self.identical else ""
        word = "reproduced" if self.reproduced else "not reproduced"
        return f"{word}: {reached} ({published}, tolerance {self.band:g}){bytes_}{modified}"


def judge(
    recipe: Recipe,
    reached: Evaluation,
    sha256: str | None = None,
    changed_fields: Sequence[str] = (),
    num_images: int | None = None,
) -> Verdict:
    """Compare with what was published: reproduced is at most the tolerance below its top-1.

    `sha256` is the digest of the weights that were measured. A modified recipe is judged all the
    same, and the verdict says what was modified, `changed_fields` on the way among it, and where
    `num_images` to train on, or those it was measured on, are not all that there should be.
    """
    published = published_figure(recipe)
    record = None if recipe.data == "folder" else read_manifest().get(recipe.name)
    reproduced = None
    if published is not None and published.top1 is not None:
        reproduced = reached.top1 >= published.top1 - recipe.band - 1e-9
    modified = (name for name, _, _ in recipe_differences(recipe))
    return Verdict(
        reached=reached,
        published=published,
        band=recipe.band,
        band_source=recipe.band_source,
        reproduced=reproduced,
        identical=record is not None and sha256 is not None and sha256 == record.sha256,
        modified=tuple(dict.fromkeys((*modified, *changed_fields))),
        short=_short(recipe, reached, num_images),
    )


def _short(recipe: Recipe, reached: Evaluation, num_images: int | None) -> str:
    remarks = [short_of(recipe, num_images)] if num_images is not None else []
    if recipe.data == "imagenet1k" and reached.num_images < IMAGENET_VAL:
        remarks.append(f"only {reached.num_images:,} of {IMAGENET_VAL:,} images to measure on")
    return ", ".join(filter(None, remarks))


def times(
    environments: Sequence[dict[str, Any]], log: Sequence[dict[str, Any]]
) -> dict[str, float | None]:
    """How long the epochs' steps took, by the log, and the GPU-hours of that on each machine."""
    seconds = sum(row.get("seconds") or 0.0 for row in log)
    begins = [one["since"]["seconds"] for one in environments[1:]]  # the first has all before
    spans = zip(environments, [0.0, *begins], [*begins, seconds], strict=True)
    used = [(end - begin) * one["processes"] for one, begin, end in spans if one["gpu"]]
    return {"seconds": round(seconds, 1), "gpu_hours": round(sum(used) / 3600, 3) if used else None}


def _environment(environments: Sequence[dict[str, Any]], finished: str | None) -> dict[str, Any]:
    """The one that trained last, and when it ended; of several also the others, and since when."""
    *earlier, last = environments
    if not earlier:
        return {key: last[key] for key in last if key != "since"} | {"finished": finished}
    return last | {"earlier": earlier, "finished": finished}


def ema_figures(log: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """What the average of the weights reached in the last epoch, where one was kept."""
    last = log[-1] if log else {}
    figures = {key.removeprefix("ema_"): last[key] for key in last if key.startswith("ema_")}
    return figures or None


def write_receipt(
    output: Path,
    plan: Plan,
    verdict: Verdict,
    *,
    environments: Sequence[dict[str, Any]],
    finished: str | None,
    data: dict[str, Any],
    sha256: dict[str, str],
    teacher: dict[str, Any] | None = None,
    run: dict[str, Any] | None = None,
    epochs: dict[str, Any] | None = None,
    start: dict[str, Any] | None = None,
) -> None:
    """Leave `receipt.json`: what was run, on what, with which data, and what came of it.

    `environments` are those that trained, one after another, until `finished`.
    `teacher` says which weights taught; `run` what happened on the way: skipped steps, images that
    could not be read, returns to an earlier state, changes of the recipe. `epochs` has the last
    and the best one, and which of them was exported. `start` says which weights it began with.
    Of a local path the last part alone is told, after `.../`: it is nobody's published name.
    """
    recipe_sha256, public = plan.recipe.digest, _without_paths(plan)
    # Without its path a run of the first stage is not known as such.
    differs = plan_differences(public if recipe_differences(plan.recipe) else plan)
    plan = public
    status, log = None, read_log(output / LOG_FILE)
    if curve := published_curve(plan.recipe):
        status = compare_to_reference(curve, log, plan.recipe.band)
    receipt = {
        "model": plan.recipe.name,
        "verdict": verdict.sentence(),
        "reproduced": verdict.reproduced,
        "identical": verdict.identical,
        "reached": finite(asdict(verdict.reached)),
        "published": asdict(verdict.published) if verdict.published else None,
        "band": verdict.band,
        "band_source": verdict.band_source,
        "modified": plan.modified,
        "layout": layout_in_words(plan.recipe),
        "assumed": plan.recipe.assumed,
        "differs": differs,
        "standing": status.to_dict(differs) if status else None,
        "teacher": teacher and {key: _public(value) for key, value in teacher.items()},
        "start": start,
        "ema": ema_figures(log),
        "run": (run or {}) | times(environments, log),
        "epochs": epochs,
        "seed": plan.recipe.seed,
        "plan": plan.to_dict() | {"recipe_sha256": recipe_sha256},
        "environment": _environment(environments, finished),
        "data": data,
        "sha256": sha256,
    }
    text = json.dumps(receipt, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_whole(output / RECEIPT_FILE, redact(text).encode())


def without_paths(value: Any) -> Any:
    """What a receipt says, as others may read it: of a path `.../` and its last part."""
    if isinstance(value, dict):
        return {without_paths(key): without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    if path := _PATH.fullmatch(value):  # which may hold spaces
        return f"{path[1]}.../{path[2]}"
    return _PATH_IN_TEXT.sub(r".../\1", value)


def _without_paths(plan: Plan) -> Plan:
    """A plan as others may read it."""
    own = plan.recipe
    recipe = replace(own, init_from=_public(own.init_from), teacher=_public(own.teacher))
    return replace(plan, recipe=recipe, teacher_labels=_public(plan.teacher_labels))


def _public(source: str | None) -> Any:
    """Where weights or labels are, without a path; a relative one is known by what lies there."""
    name, at, path = (source or "").rpartition("@")
    if "/" not in name and is_path(path) and Path(path).exists():
        source = f"{name}{at}{Path(path).absolute()}"
    return without_paths(source)
