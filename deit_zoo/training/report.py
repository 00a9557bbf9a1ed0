"""The verdict on a run, and the receipt that lets others check it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deit_zoo.files import write_whole
from deit_zoo.manifest import Metric, find, read
from deit_zoo.results import Evaluation
from deit_zoo.training.plan import Plan
from deit_zoo.training.recipe import Recipe

RECEIPT_FILE, CURVE_FILE = "receipt.json", "curve.png"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a run reached beside what was published; `reproduced` is None where nothing was."""

    reached: Evaluation
    published: Metric | None
    band: float
    band_source: str
    reproduced: bool | None
    identical: bool = False

    def sentence(self) -> str:
        """The verdict in one line."""
        reached = f"top-1 {self.reached.top1:.2f} % on {self.reached.num_images:,} images"
        if self.published is None or self.published.top1 is None:
            return f"no verdict: {reached}, and no published figure to compare with"
        difference = self.reached.top1 - self.published.top1
        against = f"published {self.published.top1:.2f} %, {difference:+.2f}, band {self.band:g}"
        bytes_ = "; the weights are the published file, byte for byte" if self.identical else ""
        word = "reproduced" if self.reproduced else "not reproduced"
        return f"{word}: {reached} ({against}){bytes_}"


def judge(recipe: Recipe, reached: Evaluation, sha256: str | None = None) -> Verdict:
    """Compare with the manifest: at most `band` points below the published top-1 is reproduced.

    `sha256` is the digest of the weights that were measured.
    """
    record = read(find()).get(recipe.name)
    published = record.metric if record else None
    reproduced = None
    if published is not None and published.top1 is not None:
        reproduced = reached.top1 >= published.top1 - recipe.band - 1e-9
    return Verdict(
        reached=reached,
        published=published,
        band=recipe.band,
        band_source=recipe.band_source,
        reproduced=reproduced,
        identical=record is not None and sha256 is not None and sha256 == record.sha256,
    )


def write_receipt(
    output: Path,
    plan: Plan,
    verdict: Verdict,
    *,
    environment: dict[str, Any],
    data: dict[str, Any],
    sha256: dict[str, str],
) -> None:
    """Leave `receipt.json`: what was run, on what, with which data, and what came of it."""
    receipt = {
        "model": plan.recipe.name,
        "verdict": verdict.sentence(),
        "reproduced": verdict.reproduced,
        "identical": verdict.identical,
        "reached": asdict(verdict.reached),
        "published": asdict(verdict.published) if verdict.published else None,
        "band": verdict.band,
        "band_source": verdict.band_source,
        "modified": plan.modified,
        "seed": plan.recipe.seed,
        "plan": plan.to_dict(),
        "environment": environment,
        "data": data,
        "sha256": sha256,
    }
    text = json.dumps(receipt, indent=2, sort_keys=True) + "\n"
    write_whole(output / RECEIPT_FILE, text.encode())


def fingerprint(data: Path) -> dict[str, Any]:
    """Files, bytes and a digest of the listing (paths and sizes) of train/ and val/."""
    found: dict[str, Any] = {}
    for split in ("train", "val"):
        root = data / split
        files = sorted(path for path in root.rglob("*") if path.is_file())
        sizes = [path.stat().st_size for path in files]
        listing = "".join(
            f"{path.relative_to(root).as_posix()} {size}\n"
            for path, size in zip(files, sizes, strict=True)
        )
        found[split] = {
            "files": len(files),
            "bytes": sum(sizes),
            "listing_sha256": hashlib.sha256(listing.encode()).hexdigest(),
        }
    return found


def draw_curve(output: Path, title: str) -> None:
    """Draw loss and top-1 by epoch from `log.jsonl` into `curve.png`."""
    from matplotlib.figure import Figure

    lines = (output / "log.jsonl").read_text(encoding="utf-8").splitlines()
    log = [json.loads(line) for line in lines]
    epochs = [row["epoch"] + 1 for row in log]
    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.add_subplot()
    left.plot(epochs, [row["train_loss"] for row in log], color="tab:blue", label="training loss")
    left.set_xlabel("epoch")
    left.set_ylabel("training loss", color="tab:blue")
    right = left.twinx()
    right.plot(epochs, [row["val_top1"] for row in log], color="tab:orange", label="top-1")
    right.set_ylabel("validation top-1 (%)", color="tab:orange")
    right.set_ylim(top=100)
    left.set_title(f"{title}: {log[-1]['val_top1']:.2f} % after {epochs[-1]} epochs")
    figure.savefig(output / CURVE_FILE, dpi=120)
