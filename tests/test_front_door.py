"""Training, saving and verifying from Python, and what the caller finds unchanged after it."""

from __future__ import annotations

import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deit_zoo
from deit_zoo.data.digits import write_folder
from deit_zoo.errors import ZooError

PICO = "deit_pico_digits"


def state() -> list[Any]:
    """What a call might change of this process."""
    return [
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        dict(os.environ),
        logging.getLogger("torch.distributed.elastic").level,
    ]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits of two classes, 24 to train on and 6 to measure."""
    whole, few = (tmp_path_factory.mktemp("digits") / name for name in ("whole", "few"))
    write_folder(whole)
    for split, count in (("train", 24), ("val", 6)):
        for label in ("3", "7"):
            (few / split / label).mkdir(parents=True)
            for file in sorted((whole / split / label).iterdir())[:count]:
                shutil.copy(file, few / split / label)
    return few


def test_a_model_is_fine_tuned_and_used_in_one_program(digits: Path, tmp_path: Path) -> None:
    sentences: list[str] = []
    before = state()
    verdict = deit_zoo.finetune(
        PICO, digits, tmp_path / "run", epochs=2, workers=0, say=sentences.append
    )
    assert state() == before
    assert verdict.reached.num_images == 12
    assert sentences[0] == "2 classes: 3, 7"
    model = deit_zoo.create(PICO, checkpoint=tmp_path / "run")
    assert deit_zoo.evaluate(model, digits) == verdict.reached
    deit_zoo.save(model, str(tmp_path / "mine.safetensors"), labels=["three", "seven"])
    again = deit_zoo.create(PICO, checkpoint=tmp_path / "mine.safetensors")
    assert again.labels == ("three", "seven")


def test_what_the_caller_has_set_of_torch_changes_no_bit_of_a_training(
    digits: Path, tmp_path: Path
) -> None:
    few = {"epochs": 1, "workers": 0, "device": "cpu"}
    deit_zoo.finetune(PICO, digits, tmp_path / "plain", **few)
    torch.set_default_dtype(torch.float64)
    try:
        before = state()
        with torch.inference_mode(), torch.autocast("cpu"), torch.device("meta"):
            deit_zoo.finetune(PICO, digits, tmp_path / "other", **few)
        assert state() == before
    finally:
        torch.set_default_dtype(torch.float32)
    plain, other = (tmp_path / name / "model.safetensors" for name in ("plain", "other"))
    assert plain.read_bytes() == other.read_bytes()


def test_remarks_on_a_training_are_on_stderr_unless_the_caller_takes_them(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deit_zoo.finetune(PICO, digits, tmp_path / "run", epochs=1, workers=0)
    assert capsys.readouterr().err.splitlines().count("2 classes: 3, 7") == 1


def test_a_recipe_is_reproduced_by_a_call(tmp_path: Path) -> None:
    before = state()
    verdict = deit_zoo.reproduce(
        PICO, tmp_path / "run", epochs=1, warmup_epochs=0, deterministic=True, workers=0
    )
    assert state() == before
    assert verdict.modified == ("epochs", "warmup_epochs")
    assert (tmp_path / "run" / "receipt.json").is_file()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda folder: deit_zoo.reproduce(PICO, folder, epoch=3), "did you mean epochs"),
        (lambda folder: deit_zoo.finetune(PICO, folder, epoch=3), "did you mean epochs"),
        (
            lambda folder: deit_zoo.finetune(deit_zoo.create(PICO), folder),
            "is of type VisionTransformer",
        ),
        (lambda folder: deit_zoo.finetune(folder / "none", folder), "none. does not exist"),
        # Whose patches are of 14 pixels: only the size of the caller lets it be built.
        (
            lambda folder: deit_zoo.finetune(
                "deit3_huge", folder / "none", folder, recipe="imagenet384", img_size=378
            ),
            "none does not exist",
        ),
    ],
)
def test_what_is_no_field_and_no_model_is_refused(
    call: Callable[[Path], Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ZooError, match=sentence):
        call(tmp_path)


def test_measuring_leaves_the_callers_generators_as_they_are(tmp_path: Path) -> None:
    write_folder(tmp_path / "digits")
    model = deit_zoo.create(PICO, pretrained=True)
    before = state()
    deit_zoo.evaluate(model, tmp_path / "digits", workers=1)
    assert state() == before


def test_a_checkpoint_is_fetched_and_verified(tmp_path: Path) -> None:
    assert deit_zoo.fetch(PICO).name == f"{PICO}.safetensors"
    folder = deit_zoo.fetch(PICO, tmp_path / "carried")
    assert [result.problem for result in deit_zoo.verify(PICO)] == [None]
    assert [result.problem for result in deit_zoo.verify(folder)] == [None] * 4  # and licence, card
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")
    [wrong] = [result for result in deit_zoo.verify(folder) if result.problem is not None]
    assert "is expected" in str(wrong.problem)
