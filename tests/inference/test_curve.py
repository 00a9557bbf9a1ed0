"""Accuracy against speed: which models, in which series, and a picture that shows them."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from deit_zoo.facts import speed
from deit_zoo.inference import curve
from deit_zoo.registry import MODELS
from support.command import deit_zoo, sentence

PICO = ("deit_pico_digits", "deit_pico_distilled_digits")


def test_every_published_model_of_imagenet_is_on_the_curve_but_the_teacher() -> None:
    names = curve.models_on_curve([])
    assert len(names) == 34
    assert names[0] == "deit_tiny"
    assert names[-1] == "cait_m48_448"


def test_what_others_measured_is_of_models_of_the_zoo() -> None:
    for speeds in speed.PUBLISHED.values():
        assert set(speeds) <= set(curve.models_on_curve([]))


def test_sizes_are_joined_that_differ_in_nothing_else() -> None:
    of = {name: speed.series_of(MODELS[name]) for name in curve.models_on_curve([])}
    assert of["deit_tiny"] == of["deit_base"] == "DeiT, 224 px"
    assert of["deit_base_distilled_384"] == "DeiT, distilled, 384 px"
    assert of["deit3_large_384_in21k"] == "DeiT III, 384 px, after ImageNet-21k"
    assert of["cait_s24_384"] == of["cait_m36_384"] != of["cait_m48_448"]


def test_the_curve_is_measured_written_and_drawn(tmp_path: Path) -> None:
    file, picture = tmp_path / "curve.json", tmp_path / "curve.png"
    words = (
        "benchmark",
        "--curve",
        *PICO,
        "--quick",
        "--output",
        str(file),
        "--plot",
        str(picture),
    )
    done = deit_zoo(*words, env={})
    assert done.status == 0, done.err
    assert [line.split()[0] for line in done.out.splitlines()] == ["model", *PICO]
    points = json.loads(file.read_text())["points"]
    assert [point["top1"] for point in points] == [98.333, 98.611]
    assert all(point["images_per_second"] > 0 for point in points)
    assert Image.open(BytesIO(picture.read_bytes())).size[0] > 800


def test_a_model_without_a_figure_has_no_place_on_the_curve(tmp_path: Path) -> None:
    manifest = json.loads(Path("weights_manifest.json").read_text())
    manifest["checkpoints"][PICO[0]]["metrics"] = {}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    environment = {"DEIT_ZOO_MANIFEST": str(tmp_path / "manifest.json")}
    done = deit_zoo("benchmark", "--curve", PICO[0], env=environment)
    assert sentence(done) == f"no top-1 of {PICO[0]} is known, so it has no place on the curve"


@pytest.mark.parametrize("names", [(), PICO, ("convnet_pico_digits",)])
def test_the_picture_takes_models_of_either_data_set_and_of_any_family(
    names: tuple[str, ...],
) -> None:
    top1 = speed.top1_of_models()
    points = [
        curve.Point(
            model=name,
            family=MODELS[name].family,
            series=speed.series_of(MODELS[name]),
            top1=top1[name],
            images_per_second=50 / MODELS[name].gmacs,
            round_ms=[1.0],
        )
        for name in curve.models_on_curve(names)
    ]
    assert curve.draw(points, "here").startswith(b"\x89PNG")
