"""The weights of the best epoch, beside those of the last: which of the two a run ends on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from deit_zoo.files import LOG_FILE, MODEL_FILE, digest, write_whole
from deit_zoo.models.layers import ZooModel
from deit_zoo.results import Evaluation
from deit_zoo.runs.reference import read_log
from deit_zoo.weights.load import METADATA_KEY, save_model

BEST_FOLDER, LAST_FOLDER = "best", "last"
_FIGURES = ("top1", "top5", "loss")


def best_epoch(output: Path) -> dict[str, Any] | None:
    """Number (from 0) and figures of the epoch whose weights are kept as the best."""
    file = output / BEST_FOLDER / MODEL_FILE
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as stored:
        epoch: dict[str, Any] = json.loads(stored.metadata()[METADATA_KEY])["epoch"]
    return epoch


def keep_best(
    output: Path,
    model: ZooModel,
    number: int,
    reached: Evaluation,
    facts: dict[str, Any],
    tell: Callable[[str], None],
) -> None:
    """Keep the weights after an epoch that is better than all before, by top-1, then by loss."""
    before = best_epoch(output)
    better = before is None or (reached.top1, -reached.loss) > (before["top1"], -before["loss"])
    if not better or not math.isfinite(reached.loss):
        return
    epoch = {"number": number, **{key: getattr(reached, key) for key in _FIGURES}}
    try:
        (output / BEST_FOLDER).mkdir(exist_ok=True)
        save_model(model, output / BEST_FOLDER / MODEL_FILE, **facts, epoch=epoch)
    except OSError as error:
        tell(
            f"the best weights so far, of epoch {number + 1}, could not be written "
            f"({error.strerror}); those before stay, and the run goes on"
        )


def export(output: Path, model: ZooModel, facts: dict[str, Any], final: str) -> str:
    """Write `model.safetensors`, of the best epoch or of the last. Returns its SHA-256.

    Where it is the best, the last is in a folder of its own.
    """
    best = output / BEST_FOLDER / MODEL_FILE
    if final == "last" or not best.is_file():
        return save_model(model, output / MODEL_FILE, **facts)
    (output / LAST_FOLDER).mkdir(exist_ok=True)
    save_model(model, output / LAST_FOLDER / MODEL_FILE, **facts)
    write_whole(output / MODEL_FILE, best.read_bytes())
    return digest(output / MODEL_FILE)


def epochs_of(output: Path, sha256: str) -> dict[str, Any]:
    """For the receipt: the last epoch and the best, each with its figures, and what was exported.

    The figures are those of the log, measured while the run went on.
    """
    row = read_log(output / LOG_FILE)[-1]
    last = {"number": row["epoch"], **{key: row[f"val_{key}"] for key in _FIGURES}}
    best = best_epoch(output)
    if best is None:
        return {"exported": "last", "last": last, "best": None}
    best_sha256 = digest(output / BEST_FOLDER / MODEL_FILE)
    exported = "best" if sha256 == best_sha256 else "last"
    return {"exported": exported, "last": last, "best": best | {"sha256": best_sha256}}


def sentence(epochs: dict[str, Any]) -> str:
    """Which epoch was exported and what the other reached, for people."""
    best, last = epochs["best"], epochs["last"]
    if best is None or best["number"] == last["number"]:
        return f"the last epoch, {last['number'] + 1}, is the best"
    if epochs["exported"] == "best":
        return (
            f"{MODEL_FILE} is of the best epoch, {best['number'] + 1}: top-1 {best['top1']:.2f} %; "
            f"the last, {last['number'] + 1}, reached {last['top1']:.2f} % and is in {LAST_FOLDER}/"
        )
    return (
        f"{MODEL_FILE} is of the last epoch, {last['number'] + 1}; the best, {best['number'] + 1}, "
        f"reached top-1 {best['top1']:.2f} % and is in {BEST_FOLDER}/"
    )
