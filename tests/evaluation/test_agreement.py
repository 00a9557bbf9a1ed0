"""Heads and models beside each other: figures and disagreement, against counts by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import deit_zoo
from deit_zoo.api import compare_answers
from deit_zoo.data.digits import write_folder
from deit_zoo.errors import ZooError
from deit_zoo.evaluation.accuracy import EvalDataset, validation_set
from deit_zoo.evaluation.agreement import LABELS, Comparing
from deit_zoo.inference.classify import class_names, reading_for
from deit_zoo.models.model import ZooModel
from support.command import deit_zoo as typed
from support.command import sentence

DISTILLED, PLAIN, CONVNET = "deit_pico_distilled_digits", "deit_pico_digits", "convnet_pico_digits"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agreement") / "digits"
    write_folder(folder)
    return folder


def dataset_for(model: ZooModel, digits: Path) -> EvalDataset:
    folders = [label.folder for label in class_names(model)]
    images = validation_set(digits, folders, reading=reading_for(model))
    return EvalDataset(images, deit_zoo.transform(model))


@torch.inference_mode()
def answers_of(model: ZooModel, digits: Path) -> tuple[list[Tensor], Tensor]:
    """What the heads and both together say of every image in turn, and the labels."""
    dataset = dataset_for(model, digits)
    said, labels = [], []
    for number in range(len(dataset)):
        image, label = dataset[number]
        tokens = model.forward_features(image[None])
        logits = model.head(tokens[:, 0]), model.head_dist(tokens[:, 1])  # type: ignore[operator]
        said.append([head.argmax().item() for head in (*logits, logits[0] + logits[1])])
        labels.append(label)
    return list(torch.tensor(said).T), torch.tensor(labels)


def noisy() -> ZooModel:
    """The distilled model with a distillation head that knows less, so that the heads differ."""
    model = deit_zoo.create(DISTILLED, pretrained=True)
    torch.manual_seed(0)
    with torch.no_grad():
        weight = model.head_dist.weight  # type: ignore[union-attr]
        weight += 0.3 * torch.randn_like(weight)  # type: ignore[arg-type, operator]
    return model


def test_each_head_has_its_figures_and_two_disagree_as_counted(digits: Path) -> None:
    model = noisy()
    (first, second, both), labels = answers_of(model, digits)
    comparing = Comparing(batch_size=50)
    comparing.add("it", model, dataset_for(model, digits), workers=0, heads=True)
    found = comparing.result()
    assert list(found.figures) == ["class", "distillation", "both"]
    for name, answers in (("class", first), ("distillation", second), ("both", both)):
        right = (answers == labels).double().mean().item()
        assert found.figures[name].top1 == pytest.approx(100 * right)
        assert found.disagreement[LABELS][name] == pytest.approx(1 - right)
    between = (first != second).double().mean().item()
    assert between > 0.05  # or it would not tell one from another
    assert found.disagreement["class"]["distillation"] == pytest.approx(between)
    assert found.disagreement["distillation"]["class"] == pytest.approx(between)


def test_both_heads_together_are_what_the_model_is_measured_by(digits: Path) -> None:
    found = compare_answers(DISTILLED, digits, heads=True, beside=[CONVNET])
    assert found.figures["both"] == deit_zoo.evaluate(DISTILLED, digits)
    assert found.figures[CONVNET] == deit_zoo.evaluate(CONVNET, digits)
    assert list(found.disagreement) == [LABELS, CONVNET, "class", "distillation", "both"]
    assert all(found.disagreement[name][name] == 0.0 for name in found.disagreement)


def test_a_model_of_one_head_is_refused_and_so_are_other_classes(digits: Path) -> None:
    with pytest.raises(ZooError) as caught:
        compare_answers(PLAIN, digits, heads=True)
    assert str(caught.value) == (
        f"{PLAIN} has one head; --heads is for a distilled model, such as deit_small_distilled"
    )
    with pytest.raises(ZooError) as caught:
        compare_answers(deit_zoo.optimize(DISTILLED, compile=False), digits, heads=True)
    assert str(caught.value) == (
        "the model is an optimized copy, whose heads cannot be told apart; give the model that it "
        "was made of"
    )
    model = deit_zoo.create(PLAIN, num_classes=7)
    model.labels = [str(number) for number in range(7)]
    with pytest.raises(ZooError, match="tells other classes apart than the model"):
        compare_answers(model, digits, beside=[CONVNET])


def test_both_tables_are_printed(digits: Path) -> None:
    done = typed("evaluate", DISTILLED, "--data", digits, "--heads", "--beside", CONVNET, PLAIN)
    assert done.status == 0
    rows = [line.split() for line in done.out.splitlines()]
    assert ["class", "98.611", "100.000", "0.2328", "–"] in rows
    assert ["distillation", "98.611", "100.000", "0.0667", "–"] in rows
    assert ["both", "98.611", "100.000", "0.1009", "98.611"] in rows
    assert ["disagreement", "in", "%", "1", "2", "3", "4", "5"] in rows
    assert ["6", "both", "1.4", "1.9", "0.8", "0.0", "0.0"] in rows


def test_a_comparison_is_json_too(digits: Path) -> None:
    done = typed("evaluate", PLAIN, "--data", digits, "--beside", CONVNET, "--json")
    report = json.loads(done.out)
    assert report["top1"]["measured"] == pytest.approx(98.333, abs=1e-3)
    assert report["disagreement"][PLAIN][CONVNET] == report["disagreement"][CONVNET][PLAIN]
    assert report["figures"][CONVNET]["num_images"] == 360


def test_answers_are_compared_in_one_process(digits: Path) -> None:
    done = typed("evaluate", DISTILLED, "--data", digits, "--heads", "--processes", "2")
    assert sentence(done) == (
        "--heads and --beside compare answers in one process and write no page; leave out --gpus, "
        "--processes, --report and --parquet"
    )
