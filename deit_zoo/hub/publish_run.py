"""A run of one's own as a repository of the Hub, which deit_zoo, timm and transformers load.

None of the images goes with it. The words of its card are in `assets/run_card.md.jinja`.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deit_zoo.data.transforms import eval_transform
from deit_zoo.errors import CheckpointError, FormatError, redact
from deit_zoo.files import (
    CONFIG_FILE,
    LOG_FILE,
    MODEL_FILE,
    RECEIPT_FILE,
    as_record,
    new_folder,
    read_json,
    write_sums,
    write_whole,
)
from deit_zoo.hub.config import start_of, start_record, timm_name, write_run_config
from deit_zoo.hub.publish import check_arguments, eval_result, fill_card
from deit_zoo.hub.verify import copy_checked
from deit_zoo.labels import Label, labels
from deit_zoo.models.layers import as_pair
from deit_zoo.runs.receipt import without_paths
from deit_zoo.weights.cache import Sha256
from deit_zoo.weights.load import open_local, spec_of_file

_CURVE = "curve.png"
CLASSES_FILE = Path("results", "classes.csv")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reached:
    top1: float
    num_images: int
    mean_ap: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Recipe:
    epochs: int
    source: str
    init_from: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    num_images: int
    recipe: _Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class _Start:
    published: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Receipt:
    """What a receipt must say for a card."""

    reached: _Reached
    plan: _Plan
    sha256: dict[str, Sha256]
    start: _Start | None = None


def build_run(run: Path, repo_id: str, folder: Path, license: str | None = None) -> list[Path]:
    """Leave the files of a repository in a new folder, all or none. Returns them.

    The licence is that of the weights that the run began from, unless given.
    Raises CheckpointError where the folder is not that of a run that ended.
    """
    check_arguments(repo_id, folder)
    receipt = _receipt(run)
    local = open_local(run)
    built = local.metadata.get("blocks"), local.metadata.get("stem", "linear")
    spec = spec_of_file(local, run).variant(*built)
    start = start_record(start_of(receipt))
    names = local.metadata.get("labels")
    known = {label.folder: label for label in labels(spec.labels)}
    classes = [known.get(name, Label(name, name)) for name in names] if names else [*known.values()]
    size = as_pair(local.metadata["img_size"])
    public = without_paths(receipt)
    license = license or (start.license if start else _stated_license(run))
    with new_folder(folder) as temporary:
        remedy = f"type `deit-zoo weights verify {run}`"
        sha256 = copy_checked(local.path, temporary / MODEL_FILE, local.sha256, remedy)
        for name in (RECEIPT_FILE, LOG_FILE, _CURVE):
            if (run / name).is_file():
                copy_checked(run / name, temporary / name, receipt["sha256"].get(name), remedy)
        if public != receipt:
            text = json.dumps(public, indent=2, sort_keys=True)
            write_whole(temporary / RECEIPT_FILE, f"{redact(text)}\n".encode())
        crop_pct = local.metadata.get("crop_pct")
        write_run_config(temporary, spec, classes, size, license, crop_pct)
        card = dict(
            spec=spec,
            start=start,
            repo_id=repo_id,
            sha256=sha256,
            classes=classes,
            img_size=size,
            crop_pct=eval_transform(spec, size, crop_pct).crop_pct,
            timm_name=timm_name(spec),
            license=license,
            receipt=public,
            curve=(temporary / _CURVE).is_file(),
            of_classes=_figures_of_classes(run),  # a heading, and a row for each class
        )
        write_whole(temporary / "README.md", run_card(card).encode())
        write_sums(temporary)
    return sorted(folder.iterdir())


def run_card(card: dict[str, Any]) -> str:
    """README.md of a run, from what the sections of its template name; `start` is the published
    checkpoint that it began from."""
    start, reached = card["start"], card["receipt"]["reached"]
    hub = [source.repo_id for source in start.sources if source.repo_id] if start else []
    metric, title, value = "accuracy", "Top-1 accuracy (%)", reached["top1"]
    if (mean_ap := reached.get("mean_ap")) is not None:
        metric, title, value = "mean_average_precision", "Mean average precision (%)", mean_ap
    return fill_card(
        "run_card.md.jinja",
        card,
        license=card["license"],
        base_model=hub[0] if hub else None,
        metrics=[metric],
        model_name=card["repo_id"].split("/")[-1],
        eval_results=[eval_result(("imagefolder", "a folder of images"), metric, title, value)],
    )


def _figures_of_classes(run: Path) -> list[list[str]]:
    """What the results page of a run says of each class; nothing where there is none."""
    try:
        with (run / CLASSES_FILE).open(encoding="utf-8", newline="") as stream:
            rows = list(csv.reader(stream))
    except (OSError, ValueError):
        return []
    columns = [n for n, name in enumerate(rows[0]) if n == 0 or name.startswith("val_")]
    heading = [rows[0][n].removeprefix("val_").replace("_", " ") for n in columns]
    return [heading, *([row[n] for n in columns] for row in rows[1:])]


def _stated_license(run: Path) -> str | None:
    """The licence in the run's own configuration, of weights that are no longer where they were."""
    try:
        config = read_json(run / CONFIG_FILE)
        return str(config["pretrained_cfg"]["license"] or "") or None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _receipt(run: Path) -> dict[str, Any]:
    file = run / RECEIPT_FILE
    try:
        receipt: dict[str, Any] = read_json(file)
        as_record(receipt, _Receipt, str(file))
    except (OSError, FormatError) as error:
        raise CheckpointError(
            f"{run} is no run that ended: it has no whole {RECEIPT_FILE}; give the --output of "
            "deit-zoo finetune or reproduce"
        ) from error
    return receipt
