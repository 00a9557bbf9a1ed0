"""Two hundred real photographs in ten classes, through every step of DeiT's real recipe.

They are cut from the two photographs that scikit-learn ships; a class is a region of one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import sklearn.datasets
import torch
from PIL import Image

import deit_zoo
from support.command import Process, run_python

SOURCES = ("china.jpg", "flower.jpg")
TRAIN, VAL = 20, 4
# At a smaller side the same is done to fewer pixels.
CHANGES = (
    *("data=folder", "img_size=64", "batch_size=32", "replicas=2"),
    *("epochs=2", "warmup_epochs=1"),
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train/` with 200 JPEG files of many sizes and `val/` with 40."""
    folder = tmp_path_factory.mktemp("photographs")
    shipped = Path(sklearn.datasets.__file__).parent / "images"
    whole = [Image.open(shipped / name).convert("RGB") for name in SOURCES]
    draw = random.Random(0)
    for label in range(10):
        image = whole[label % 2]
        for number in range(TRAIN + VAL):
            width, height = draw.randint(160, 300), draw.randint(150, 260)
            left = label // 2 * (image.width - width) // 5 + draw.randint(0, 20)
            top = draw.randint(0, image.height - height)
            place = folder / ("train" if number < TRAIN else "val") / f"region{label}"
            place.mkdir(parents=True, exist_ok=True)
            cut = image.crop((left, top, left + width, top + height))
            cut.save(place / f"{number:02d}.jpg", quality=90)
    return folder


def command(data: Path, output: Path) -> list[str]:
    """The run as typed: the recipe of DeiT-Ti, sized for 200 images."""
    typed = ["reproduce", "deit_tiny", "--gpus", "0", "--data", str(data), "--output", str(output)]
    return ["-m", "deit_zoo", *typed, *(w for c in CHANGES for w in ("--set", c))]


@pytest.mark.slow
def test_the_recipe_of_deit_trains_resumes_and_exports_on_200_photographs(
    photographs: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    begun = Process(
        command(photographs, output), server="training", stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    while not list(output.glob("state/epoch-00001-*")):  # the first epoch is over
        assert begun.poll() is None, begun.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(begun.pid, signal.SIGTERM)
    told = begun.communicate(timeout=120)[1]
    assert begun.returncode == 75, told
    plan = json.loads((output / "plan.json").read_text())
    assert {key: plan["recipe"][key] for key in ("rand_augment", "random_erasing", "mixup")} == {
        "rand_augment": "rand-m9-mstd0.5-inc1",
        "random_erasing": 0.25,
        "mixup": 0.8,
    }
    assert [plan["recipe"][k] for k in ("cutmix", "repeated_aug", "drop_path_rate")] == [
        1.0,
        3,
        0.1,
    ]

    done = run_python(command(photographs, output), server="training", timeout=300)
    assert done.returncode == 0, done.stderr
    assert "continuing after epoch 1" in done.stderr
    assert done.stdout.startswith("no verdict: top-1 ")
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in log] == [0, 1]
    model = deit_zoo.create("deit_tiny", checkpoint=output)
    assert (model.num_classes, model.img_size) == (10, (64, 64))
    assert torch.isfinite(model(torch.zeros(1, 3, 64, 64))).all()
