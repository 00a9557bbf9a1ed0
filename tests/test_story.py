"""The story of docs/finetune.md, typed as it stands there: photographs to a published model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from support.photo_story import BROKEN, PICTURES, WRONG, tell


@pytest.mark.slow
def test_photographs_of_a_phone_become_a_model_that_others_load(tmp_path: Path) -> None:
    said = {}
    for step, done in tell(tmp_path):
        # The check says no of the broken photograph.
        assert done.returncode == (1 if "data check" in step else 0), (step, done.stderr)
        said[step.split("--")[0].strip()] = done.stdout + done.stderr
    run, photos = tmp_path / "runs" / "photos", tmp_path / "photos"

    assert f"photos/{BROKEN}\ttruncated" in said["deit-zoo data check photos"]
    started = said["deit-zoo finetune deit_pico_digits"]
    assert f"1 of 60 images cannot be read ({photos / BROKEN}: truncated); left out" in started
    assert "3 classes: flower, portrait, temple" in started
    assert "hidden files or folders are ignored" in started

    reached = json.loads((run / "receipt.json").read_text())["reached"]
    assert reached["top1"] > 60  # of three classes; by chance it were a third
    for name in ("confusion.png", "mistakes-train.png"):
        with Image.open(run / "results" / name) as picture:
            assert min(picture.size) > 200
    with (run / "results" / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        rows = {row["file"]: row for row in csv.DictReader(stream)}
    assert len(rows) == 59
    wrong = rows[str(photos / WRONG)]
    assert (wrong["class"], wrong["predicted"], wrong["right"]) == ("temple", "flower", "0")

    assert f"photos/{WRONG}\n" in said["deit-zoo classify photos/temple"]
    evaluated = said["deit-zoo evaluate runs/photos"]
    assert f"top1  {reached['top1']:.3f}" in evaluated
    card = (tmp_path / "publish" / "photos" / "README.md").read_text(encoding="utf-8")
    assert "| class | images | right | accuracy | precision |" in card
    for name in PICTURES:
        assert f"| {name} | 5 |" in card
    assert not list((tmp_path / "publish" / "photos").glob("*.jpg"))
    [loaded] = [text for step, text in said.items() if step.startswith("import deit_zoo")]
    assert "portrait {0: 'flower', 1: 'portrait', 2: 'temple'}" in loaded
