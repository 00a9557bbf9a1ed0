"""The weights of the best epoch, beside those of the last: which of the two a run ends on."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from deit_zoo.files import (
    LOG_FILE,
    MODEL_FILE,
    SUMS_FILE,
    digest,
    parse_json,
    read_sums,
    write_sums,
    write_whole,
)
from deit_zoo.models.model import ZooModel
from deit_zoo.results import Evaluation
from deit_zoo.runs.reference import read_log
from deit_zoo.weights.load import save_model
from deit_zoo.weights.metadata import METADATA_KEY

BEST_FOLDER, LAST_FOLDER = "best", "last"


def best_epoch(output: Path) -> dict[str, Any] | None:
    """Number (from 0) and figures of the epoch whose weights are kept as the best.

    None where there are none, where the file is torn or altered, and where the log has its epoch
    with other figures or not at all: it is of another run, or was given up. The next epoch's
    weights take its place.
    """
    file, sums = output / BEST_FOLDER / MODEL_FILE, output / BEST_FOLDER / SUMS_FILE
    if not file.is_file():
        return None
    try:
        if sums.exists() and read_sums(sums).get(MODEL_FILE) != digest(file):
            return None
        with safe_open(file, framework="pt") as stored:
            best: dict[str, Any] = parse_json(stored.metadata()[METADATA_KEY], "it")["epoch"]
        logged = next(row for row in _epochs(output) if row["number"] == best["number"])
        return best if best == logged else None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, StopIteration):
        return None


def keep_best(
    output: Path,
    model: ZooModel,
    number: int,
    reached: Evaluation,
    facts: dict[str, Any],
    tell: Callable[[str], None],
) -> None:
    """Keep the weights after an epoch that is better than all before.

    By top-1, or by mean average precision where images have several labels; then by loss.
    """
    file, sums = output / BEST_FOLDER / MODEL_FILE, output / BEST_FOLDER / SUMS_FILE
    before = best_epoch(output)
    finite = [e["number"] for e in _epochs(output) if e["loss"] is not None]
    if before is None and (file.exists() or any(earlier < number for earlier in finite)):
        tell(
            f"{file} is gone, torn or altered, or of no epoch in {LOG_FILE}: the best of those "
            "before is lost"
        )
    epoch = {"number": number, **{key: getattr(reached, key) for key in reached.names}}
    better = before is None or _worth(epoch) > _worth(before)
    if not better or not math.isfinite(reached.loss):
        return
    try:
        file.parent.mkdir(exist_ok=True)
        sums.unlink(missing_ok=True)  # first, or a run that is killed here would contradict itself
        save_model(model, file, **facts, epoch=epoch)
        write_sums(file.parent)
    except OSError as error:
        tell(
            f"the best weights so far, of epoch {number + 1}, could not be written "
            f"({error.strerror}); those before stay, and the run goes on"
        )


def export(output: Path, model: ZooModel, facts: dict[str, Any], final: str) -> str:
    """Write `model.safetensors`, of the best epoch or of the last. Returns its SHA-256."""
    best = output / BEST_FOLDER / MODEL_FILE
    if final == "last" or best_epoch(output) is None:
        return save_model(model, output / MODEL_FILE, **facts)
    (output / LAST_FOLDER).mkdir(exist_ok=True)
    save_model(model, output / LAST_FOLDER / MODEL_FILE, **facts)
    write_whole(output / MODEL_FILE, best.read_bytes())
    return digest(output / MODEL_FILE)


def epochs_of(output: Path, sha256: str) -> dict[str, Any]:
    """For the receipt: the last epoch and the best, with their figures, and what was exported."""
    last, best = _epochs(output)[-1], best_epoch(output)
    if best is None:
        return {"exported": "last", "last": last, "best": None}
    best_sha256 = digest(output / BEST_FOLDER / MODEL_FILE)
    exported = "best" if sha256 == best_sha256 else "last"
    return {"exported": exported, "last": last, "best": best | {"sha256": best_sha256}}


def sentence(epochs: dict[str, Any]) -> str:
    """Which epoch was exported and what the other reached, for people."""
    best, last = epochs["best"], epochs["last"]
    if best is None:
        return (
            f"{MODEL_FILE} is of the last epoch, {last['number'] + 1}: {BEST_FOLDER}/ has no other"
        )
    if best["number"] == last["number"]:
        return f"the last epoch, {last['number'] + 1}, is the best"
    if epochs["exported"] == "best":
        return (
            f"{MODEL_FILE} is of the best epoch, {best['number'] + 1}: {_figure(best)}; "
            f"the last, {last['number'] + 1}, reached {_figure(last)} and is in {LAST_FOLDER}/"
        )
    return (
        f"{MODEL_FILE} is of the last epoch, {last['number'] + 1}; the best, {best['number'] + 1}, "
        f"reached {_figure(best)} and is in {BEST_FOLDER}/"
    )


def _epochs(output: Path) -> list[dict[str, Any]]:
    """The epochs in the log, each by its number and its figures on the validation images."""
    return [
        {"number": row["epoch"]}
        | {key.removeprefix("val_"): row[key] for key in row if key.startswith("val_")}
        for row in read_log(output / LOG_FILE)
    ]


def _worth(epoch: dict[str, Any]) -> tuple[float, float]:
    return epoch.get("mean_ap", epoch["top1"]), -epoch["loss"]


def _figure(epoch: dict[str, Any]) -> str:
    if "mean_ap" in epoch:
        return f"mean average precision {epoch['mean_ap']:.2f} %"
    return f"top-1 {epoch['top1']:.2f} %"
