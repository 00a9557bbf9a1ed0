"""The best epoch's weights lie beside the last's, and a fine-tune ends on them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import deit_zoo
from deit_zoo.files import digest
from deit_zoo.results import Evaluation
from deit_zoo.runs.json_lines import append_line
from deit_zoo.training.best import best_epoch, keep_best
from deit_zoo.training.finetune import finetune, make_plan
from deit_zoo.training.launch import make_plan as plan_to_reproduce
from support.runs import log_of, receipt_of

PICO = "deit_pico_digits"
# The rate grows until it spoils what was there: the first epochs are the best.
SPOILING = ["epochs=4", "lr=0.05", "min_lr=0.05", "warmup_epochs=3", "mixup=0", "cutmix=0"]


def tune(output: Path, data: Path, *changes: str) -> Path:
    finetune(PICO, data=data, output=output, changes=[*SPOILING, *changes], workers=0)
    return output


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, digits_folder: Path) -> Path:
    """A run whose last epoch is not its best."""
    return tune(tmp_path_factory.mktemp("best") / "run", digits_folder)


def test_a_fine_tune_ends_on_the_best_epoch(finished: Path, digits_folder: Path) -> None:
    tops = [row["val_top1"] for row in log_of(finished)]
    assert max(tops) > tops[-1] + 5
    assert digest(finished / "model.safetensors") == digest(finished / "best" / "model.safetensors")
    model = deit_zoo.create(PICO, checkpoint=finished)
    reached = deit_zoo.evaluate(model, digits_folder).top1
    assert reached == pytest.approx(max(tops))
    assert receipt_of(finished)["reached"]["top1"] == pytest.approx(max(tops))


def test_its_picture_is_told_which_epoch_that_is(
    tmp_path: Path, digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr("deit_zoo.runs.plot.draw_run", lambda *words: told.append(words[2]))
    output = tune(tmp_path / "run", digits_folder)
    assert told == [receipt_of(output)["epochs"]["best"]["number"]]


def test_the_last_epoch_is_kept_too(finished: Path, digits_folder: Path) -> None:
    last = deit_zoo.create(PICO, checkpoint=finished / "last" / "model.safetensors")
    assert deit_zoo.evaluate(last, digits_folder).top1 == pytest.approx(
        log_of(finished)[-1]["val_top1"]
    )


def test_the_receipt_has_both(finished: Path) -> None:
    log, epochs = log_of(finished), receipt_of(finished)["epochs"]
    tops = [row["val_top1"] for row in log]
    assert epochs["exported"] == "best"
    assert (epochs["last"]["number"], epochs["last"]["top1"]) == (3, tops[-1])
    assert (epochs["best"]["number"], epochs["best"]["top1"]) == (tops.index(max(tops)), max(tops))
    assert epochs["best"]["sha256"] == digest(finished / "model.safetensors")


def test_a_finished_run_may_be_exported_from_its_last_epoch(
    finished: Path, tmp_path: Path, digits_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(shutil.copytree(finished, tmp_path / "run"))
    tune(output, digits_folder, "final=last")
    receipt = receipt_of(output)
    assert receipt["epochs"]["exported"] == "last"
    assert receipt["reached"]["top1"] == pytest.approx(log_of(output)[-1]["val_top1"])
    assert "is of the last epoch, 4; the best, " in capsys.readouterr().err


def test_fine_tuning_ends_on_the_best_and_a_reproduction_on_the_last_unless_told() -> None:
    assert make_plan(PICO).final == "best"
    assert make_plan(PICO, changes=["final=last"]).final == "last"
    assert plan_to_reproduce(PICO, gpus=0).final == "last"
    assert plan_to_reproduce(PICO, gpus=0, changes=["final=best"]).final == "best"


def test_of_epochs_as_good_the_one_with_the_lower_loss_is_the_best_then_the_first(
    tmp_path: Path,
) -> None:
    model = deit_zoo.create(PICO)
    told: list[str] = []

    def keep(number: int, top1: float, loss: float) -> int:
        torch.nn.init.constant_(model.head.bias, number)
        reached = Evaluation(top1=top1, top5=100.0, loss=loss, num_images=9)
        figures = {"val_top1": top1, "val_top5": 100.0, "val_loss": loss}
        append_line(tmp_path / "log.jsonl", {"epoch": number, "train_loss": loss} | figures)
        keep_best(tmp_path, model, number, reached, {}, told.append)
        best = best_epoch(tmp_path)
        assert best is not None
        kept = deit_zoo.create(PICO, checkpoint=tmp_path / "best" / "model.safetensors")
        assert kept.head.bias[0] == best["number"]
        return int(best["number"])

    assert keep(0, 50.0, 2.0) == 0
    assert keep(1, 60.0, 2.0) == 1
    assert keep(2, 60.0, 1.9) == 2
    assert keep(3, 60.0, 1.9) == 2
    assert keep(4, 99.0, float("nan")) == 2
    assert told == []


def test_best_weights_that_are_torn_are_none_and_the_next_take_their_place(
    tmp_path: Path, finished: Path
) -> None:
    output = shutil.copytree(finished, tmp_path / "run")
    file = output / "best" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    assert best_epoch(output) is None
    file.write_bytes(whole)
    assert best_epoch(output) is not None
    (file.parent / "SHA256SUMS").unlink()  # as older runs are
    assert best_epoch(output) is not None
    file.write_bytes(whole[:1000])
    assert best_epoch(output) is None
    file.write_bytes(b"\xff" * 100)
    assert best_epoch(output) is None


def test_best_weights_of_an_epoch_that_the_log_has_not_are_none_and_the_next_take_their_place(
    tmp_path: Path, finished: Path
) -> None:
    # As a run leaves them whose folder another begins in, and an epoch that was trained again.
    output = Path(shutil.copytree(finished, tmp_path / "run"))
    number, rows = receipt_of(output)["epochs"]["best"]["number"], log_of(output)
    rows[number]["val_loss"] += 0.5
    (output / "log.jsonl").unlink()
    for row in rows[: number + 1]:
        append_line(output / "log.jsonl", row)
    assert best_epoch(output) is None
    names = ("top1", "top5", "loss")
    reached = Evaluation(**{key: rows[number][f"val_{key}"] for key in names}, num_images=360)
    told: list[str] = []
    keep_best(output, deit_zoo.create(PICO), number, reached, {}, told.append)
    [sentence], best = told, best_epoch(output)
    assert sentence.endswith(
        "is gone, torn or altered, or of no epoch in log.jsonl: the best of those before is lost"
    )
    assert best is not None
    assert best["loss"] == reached.loss
    shutil.rmtree(output / "best")
    keep_best(output, deit_zoo.create(PICO), number + 1, reached, {}, told.append)
    assert told == [sentence, sentence]
