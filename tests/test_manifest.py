"""The manifest: the published figures, typed from the facts, and a schema that nothing slips by."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import deit_zoo
from deit_zoo.cli.evaluate import HEAD_KEY
from deit_zoo.errors import CheckpointError
from deit_zoo.evaluation.agreement import HEADS
from deit_zoo.manifest import Checkpoint, Metric, manifest_path, manifest_record, read_manifest
from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.recipe import Recipe
from deit_zoo.registry import MODELS
from support.tables import each_row

ROOT = Path(__file__).resolve().parents[1]


class Facts(NamedTuple):
    """One row of facts/models.json; None is what nobody has published."""

    num_params: int
    published: tuple[float | None, ...]  # top-1, top-5, loss
    crop_pct: float
    repo_id: str
    file: str
    sha256_prefix: str | None
    revision: str | None
    bytes: int | None
    sha256: str | None


# Of each model: its name, parameters, top-1, top-5, loss and crop; timm's repository; the authors'
# file; revision, bytes and SHA-256 of timm's file. `-` is what nobody has published.
TABLE = """
deit_tiny 5717416 72.202 91.124 1.219 0.875 deit_tiny_patch16_224.fb_in1k
    deit_tiny_patch16_224-a1311bcf.pth 80e968688553f219e4a86f940ed945a23709c16f 22883348
    21d4764d94f6c3ffdb6da3581115a0a1ee2d505537d96883b540e54766407c9e
deit_small 22050664 79.854 94.968 0.881 0.875 deit_small_patch16_224.fb_in1k
    deit_small_patch16_224-cd65a155.pth 91327a9c99f98fe6b524cd4d397b7226b80e1365 88216496
    1e747b4a8d0df2cfbd3c450e8c97685d867448ab0c2ddbfb34b6885f5cb23e5b
deit_base 86567656 81.846 95.594 0.82 0.875 deit_base_patch16_224.fb_in1k
    deit_base_patch16_224-b5f2ef4d.pth b78cc5532a69df6bcad9c3a8d76653fd20b31ac6 346284714
    cd2da27b74ed7f68b599f16c77af3e1e80f01c75f9ad96029d22ce747a247e8e
deit_tiny_distilled 5910800 74.476 91.92 1.021 0.875 deit_tiny_distilled_patch16_224.fb_in1k
    deit_tiny_distilled_patch16_224-b40b3cf7.pth 4decab5416aad52836ffd48b5b7e5cfb78641d8d - -
deit_small_distilled 22436432 81.164 95.376 0.752 0.875 deit_small_distilled_patch16_224.fb_in1k
    deit_small_distilled_patch16_224-649709d9.pth 4150668d0839f2da591b2fc5659764c796148243 - -
deit_base_distilled 87338192 83.372 96.482 0.685 0.875 deit_base_distilled_patch16_224.fb_in1k
    deit_base_distilled_patch16_224-df68dfff.pth - 349367122
    ccc9d1bbeede1fc8609a7a7482773a35057e9f38035b9b804bced9126c5a70dc
deit_base_384 86859496 82.89 96.222 0.764 0.875 deit_base_patch16_384.fb_in1k
    deit_base_patch16_384-8de9b5d1.pth f3343093d6d86e5a644980dfde086eadd708cdf4 - -
deit_base_distilled_384 87630032 85.224 97.186 0.636 0.875 deit_base_distilled_patch16_384.fb_in1k
    deit_base_distilled_patch16_384-d0272ac0.pth cb8f6fe63da08d7410513f9dac2f8a994eda0adc 350534482
    f739dfae2bf3fdd4ef415fdb015966c515b9adca7de703a08365fb349fea82ca
cait_xxs24_224 11956264 - - - 1.0 cait_xxs24_224.fb_dist_in1k
    XXS24_224.pth 996bf1472d408b5685c6ec0b2f06eccaac230702 -
    396b92244e28808d4bd719d7e7a9d7ca13ac903686ed4d218504a40a4d70080c
cait_xxs24_384 12029224 - - - 1.0 cait_xxs24_384.fb_dist_in1k
    XXS24_384.pth - - -
cait_xxs36_224 17299720 - - - 1.0 cait_xxs36_224.fb_dist_in1k
    XXS36_224.pth b7e71fad1cbdb257f9d2fbd41a9ffbea94a8bcc5 - -
cait_xxs36_384 17372680 82.2 - - 1.0 cait_xxs36_384.fb_dist_in1k
    XXS36_384.pth - - -
cait_xs24_384 26670088 84.1 - - 1.0 cait_xs24_384.fb_dist_in1k
    XS24_384.pth - - -
cait_s24_224 46916200 83.5 - - 1.0 cait_s24_224.fb_dist_in1k
    S24_224.pth - 187709078
    ec4c0b0e1851c9b1850709caf5cbbcb0ecf121efb4317eedd99ceb0e0e0f4ddb
cait_s24_384 47062120 85.1 97.3 - 1.0 cait_s24_384.fb_dist_in1k
    S24_384.pth - - -
cait_s36_384 68366632 85.4 - - 1.0 cait_s36_384.fb_dist_in1k
    S36_384.pth - - -
cait_m36_384 271221352 86.1 - - 1.0 cait_m36_384.fb_dist_in1k
    M36_384.pth 94bad84851df174a11626613da00c83728703721 - -
cait_m48_448 356460520 86.5 97.7 - 1.0 cait_m48_448.fb_dist_in1k
    M48_448.pth 99963f53b552bec7fd33abe2d8d555c60c22f9f3 1425928240
    460cbe2667f0208bd39ea38f981e5d83b41bfec33ed8cefab3460ae65f4788ed
deit3_small 22059496 81.4 - - 1.0 deit3_small_patch16_224.fb_in1k
    deit_3_small_224_1k.pth - - -
deit3_small_384 22205416 83.4 - - 1.0 deit3_small_patch16_384.fb_in1k
    deit_3_small_384_1k.pth - - -
deit3_medium 38849512 83.0 - - 1.0 deit3_medium_patch16_224.fb_in1k
    deit_3_medium_224_1k.pth - - -
deit3_base 86585320 83.8 - - 1.0 deit3_base_patch16_224.fb_in1k
    deit_3_base_224_1k.pth 82eac7cae20c76230ca81f9f62c61963beeb2ab4 -
    9a6f0f93c19c3f6b05836231b9de6b07cc9eca1b002b30c3b5b0b77411687650
deit3_base_384 86877160 85.0 - - 1.0 deit3_base_patch16_384.fb_in1k
    deit_3_base_384_1k.pth - - -
deit3_large 304374760 84.9 - - 1.0 deit3_large_patch16_224.fb_in1k
    deit_3_large_224_1k.pth - - -
deit3_large_384 304763880 85.8 - - 1.0 deit3_large_patch16_384.fb_in1k
    deit_3_large_384_1k.pth - - -
deit3_huge 632126440 85.2 - - 1.0 deit3_huge_patch14_224.fb_in1k
    deit_3_huge_224_1k.pth - - -
deit3_small_in21k 22059496 83.1 - - 1.0 deit3_small_patch16_224.fb_in22k_ft_in1k
    deit_3_small_224_21k.pth - - -
deit3_small_384_in21k 22205416 84.8 - - 1.0 deit3_small_patch16_384.fb_in22k_ft_in1k
    deit_3_small_384_21k.pth - - -
deit3_medium_in21k 38849512 84.5 - - 1.0 deit3_medium_patch16_224.fb_in22k_ft_in1k
    deit_3_medium_224_21k.pth 272cf8f22418e09b383da0c05b254c809bbfff30 - -
deit3_base_in21k 86585320 85.7 - - 1.0 deit3_base_patch16_224.fb_in22k_ft_in1k
    deit_3_base_224_21k.pth - - -
deit3_base_384_in21k 86877160 86.7 - - 1.0 deit3_base_patch16_384.fb_in22k_ft_in1k
    deit_3_base_384_21k.pth - - -
deit3_large_in21k 304374760 87.0 - - 1.0 deit3_large_patch16_224.fb_in22k_ft_in1k
    deit_3_large_224_21k.pth 51971edc9c4b1a58901ac0c441592a6e98f2b713 - -
deit3_large_384_in21k 304763880 87.7 - - 1.0 deit3_large_patch16_384.fb_in22k_ft_in1k
    deit_3_large_384_21k.pth - - -
deit3_huge_in21k 632126440 87.2 - - 1.0 deit3_huge_patch14_224.fb_in22k_ft_in1k
    deit_3_huge_224_21k_v1.pth - - -
"""


def facts() -> Iterator[tuple[str, Facts]]:
    cells = iter([None if cell == "-" else cell for cell in TABLE.split()])
    for name in cells:
        num_params, top1, top5, loss, crop_pct, repo, file, *pinned = islice(cells, 10)
        published = tuple(figure and float(figure) for figure in (top1, top5, loss))
        prefix = Path(file).stem.partition("-")[2] or None
        revision, size, sha256 = pinned
        of_timm = (revision, size and int(size), sha256)
        own = (int(num_params), published, float(crop_pct), f"timm/{repo}", file, prefix)
        yield name, Facts(*own, *of_timm)


FACTS = dict(facts())
# The one file of the authors whose whole digest is known: facts/models.json, origin_sha256_full.
FACTS["deit3_base_in21k"] = FACTS["deit3_base_in21k"]._replace(
    sha256_prefix="79d5ec0c4ae73dc6810aff18efae8cb50de05523d16ca904bf42975a65b39271"
)

# facts/models.json, timm_measured_acc1 and acc5 at crop 1.0, which is the authors' for CaiT only.
MEASURED_BY_TIMM = {
    "cait_xxs24_224": (78.4, 94.326),
    "cait_xxs24_384": (80.954, 95.638),
    "cait_xxs36_224": (79.75, 94.866),
    "cait_xxs36_384": (82.204, 96.148),
    "cait_xs24_384": (84.064, 96.888),
    "cait_s24_224": (83.484, 96.586),
    "cait_s24_384": (85.048, 97.35),
    "cait_s36_384": (85.458, 97.48),
    "cait_m36_384": (86.06, 97.732),
    "cait_m48_448": (86.48, 97.748),
    "deit3_small_384": (83.432, 96.674),
    "deit3_base_384": (85.088, 97.252),
    "deit3_large_384": (85.82, 97.602),
    "deit3_small_in21k": (83.082, 96.774),
    "deit3_small_384_in21k": (84.846, 97.486),
    "deit3_medium_in21k": (84.55, 97.18),
    "deit3_base_in21k": (85.728, 97.746),
    "deit3_base_384_in21k": (86.742, 98.11),
    "deit3_large_in21k": (86.99, 98.246),
    "deit3_large_384_in21k": (87.736, 98.508),
    "deit3_huge_in21k": (87.18, 98.264),
}

# DeiT, Table 5: top-1 on ImageNet's validation set, on ReaL and on V2, by the row.
TABLE_5 = {
    "DeiT-Ti, 224 px, 300 epochs": (72.2, 80.1, 60.4),
    "DeiT-S, 224 px, 300 epochs": (79.8, 85.7, 68.5),
    "DeiT-B, 224 px, 300 epochs": (81.8, 86.7, 71.5),
    "DeiT-B, 384 px, 300 epochs": (83.1, 87.7, 72.4),
    "DeiT-Ti distilled, 224 px, 300 epochs": (74.5, 82.1, 62.9),
    "DeiT-S distilled, 224 px, 300 epochs": (81.2, 86.8, 70.0),
    "DeiT-B distilled, 224 px, 300 epochs": (83.4, 88.3, 73.2),
    "DeiT-Ti distilled, 224 px, 1000 epochs": (76.6, 83.9, 65.4),
    "DeiT-S distilled, 224 px, 1000 epochs": (82.6, 87.8, 71.7),
    "DeiT-B distilled, 224 px, 1000 epochs": (84.2, 88.7, 73.9),
    "DeiT-B distilled, 384 px, 300 epochs": (84.5, 89.0, 74.8),
    "DeiT-B distilled, 384 px, 1000 epochs": (85.2, 89.3, 75.2),
}
# timm's result tables, at the crop of the record: ReaL, V2, A, R, Sketch.
TIMM_ELSEWHERE = {
    "cait_xxs24_224": (85.240, 67.290, 14.880, 41.430, 29.309),
    "cait_xxs24_384": (87.414, 70.550, 29.653, 42.153, 29.386),
    "cait_xxs36_224": (86.323, 68.370, 18.080, 43.800, 31.272),
    "cait_xxs36_384": (88.161, 72.140, 36.093, 44.757, 32.549),
    "cait_xs24_384": (89.169, 74.110, 43.627, 49.507, 36.409),
    "cait_s24_224": (88.447, 73.010, 31.187, 50.243, 37.153),
    "cait_s24_384": (89.510, 75.380, 49.413, 51.730, 37.908),
    "cait_s36_384": (89.829, 76.010, 54.213, 53.520, 39.767),
    "cait_m36_384": (90.049, 76.370, 57.667, 57.417, 42.392),
    "cait_m48_448": (90.181, 76.840, 62.067, 57.433, 44.251),
    "deit3_small_384": (88.308, 73.010, 40.227, 48.607, 36.163),
    "deit3_base_384": (88.940, 74.760, 53.293, 53.440, 39.417),
    "deit3_large_384": (89.692, 76.730, 60.227, 58.323, 44.181),
    "deit3_small_in21k": (88.343, 73.850, 41.080, 52.770, 40.184),
    "deit3_small_384_in21k": (89.372, 75.130, 57.133, 54.590, 41.964),
    "deit3_medium_in21k": (88.921, 74.680, 48.267, 56.687, 43.267),
    "deit3_base_in21k": (89.472, 76.530, 57.147, 61.917, 47.370),
    "deit3_base_384_in21k": (89.888, 77.980, 71.293, 62.677, 47.684),
    "deit3_large_in21k": (90.008, 78.640, 68.573, 69.727, 54.385),
    "deit3_large_384_in21k": (90.247, 79.220, 79.320, 70.620, 54.912),
    "deit3_huge_in21k": (90.215, 79.210, 70.187, 70.843, 55.784),
}
# README_revenge.md, model zoo: top-1 on V2.
REVENGE_V2 = {
    "deit3_small": 70.5,
    "deit3_small_384": 73.1,
    "deit3_medium": 72.3,
    "deit3_base": 73.6,
    "deit3_base_384": 74.8,
    "deit3_large": 75.1,
    "deit3_large_384": 76.7,
    "deit3_huge": 75.9,
    "deit3_small_in21k": 73.8,
    "deit3_small_384_in21k": 75.1,
    "deit3_medium_in21k": 74.7,
    "deit3_base_in21k": 76.5,
    "deit3_base_384_in21k": 77.9,
    "deit3_large_in21k": 78.6,
    "deit3_large_384_in21k": 79.1,
    "deit3_huge_in21k": 79.2,
}

# A record of either origin, as the schema wants it; each broken one below changes one thing.
UPSTREAM: dict[str, Any] = {
    "sources": [
        {
            "kind": "hub",
            "repo_id": "group/deit",
            "filename": "model.safetensors",
            "revision": "80e968688553f219e4a86f940ed945a23709c16f",
            "sha256": None,
            "bytes": 88216496,
        },
        {
            "kind": "url",
            "url": "https://example.org/deit-cd65a155.pth",
            "sha256_prefix": "cd65a155",
            "format": "upstream_pth",
        },
    ],
    "num_params": 22050664,
    "num_classes": 1000,
    "labels": "imagenet1k",
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "metrics": {
        "imagenet1k_val": {"top1": 79.854, "top5": 94.968, "loss": None, "source": "README"}
    },
    "origin": "upstream",
    "license": "apache-2.0",
    "paper": None,
}
REPRODUCED: dict[str, Any] = UPSTREAM | {
    "sources": [{"kind": "builtin", "filename": "small.safetensors", "sha256": 64 * "a"}],
    "origin": "reproduced",
    "log": "small.jsonl",
}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a manifest of `deit_small` with one place changed, given as keys and a value."""

    def written(*change: Any, record: dict[str, Any] = UPSTREAM) -> Path:
        record = copy.deepcopy(record)
        if change:
            *path, key, value = change
            place: Any = record
            for step in path:
                place = place[step]
            place[key] = value
        file = tmp_path / "manifest.json"
        content = {"schema_version": 1, "checkpoints": {"deit_small": record}}
        file.write_text(json.dumps(content), encoding="utf-8")
        return file

    return written


@pytest.fixture(scope="module")
def records() -> dict[str, Checkpoint]:
    """The manifest of this checkout, whatever the environment says."""
    return read_manifest(ROOT / "weights_manifest.json")


def fails(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_manifest(path)


def test_every_model_has_a_record_and_every_record_a_model(records: dict[str, Checkpoint]) -> None:
    assert set(records) == set(MODELS)


def test_the_published_checkpoints_are_upstreams(records: dict[str, Checkpoint]) -> None:
    upstream = {name for name, held in records.items() if held.origin == "upstream"}
    assert upstream - {"regnety_160_deit"} == set(FACTS)


def test_the_teachers_record_holds_what_is_known_of_it(records: dict[str, Checkpoint]) -> None:
    held = records["regnety_160_deit"]
    hub, url = held.sources
    assert (hub.repo_id, hub.revision, hub.sha256) == ("timm/regnety_160.deit_in1k", None, None)
    assert url.url == "https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth"
    assert url.sha256_prefix == "a5fe301d"
    assert held.metrics["imagenet1k_val"].top1 == 82.9
    assert held.metrics["imagenet1k_val_timm"].top1 == 83.0
    assert held.crop_pct == 0.95


@each_row("name", MODELS)
def test_num_params_is_that_of_the_built_model(name: str) -> None:
    with torch.device("meta"):
        model = MODELS[name].build()
    assert MODELS[name].num_params == sum(parameter.numel() for parameter in model.parameters())


@each_row("name", MODELS)
def test_a_record_agrees_with_its_row(name: str, records: dict[str, Checkpoint]) -> None:
    held, spec = records[name], MODELS[name]
    assert (held.num_params, held.num_classes, held.labels) == (
        spec.num_params,
        spec.num_classes,
        spec.labels,
    )


@each_row("name", FACTS)
def test_the_parameter_count_is_the_published_one(
    name: str, records: dict[str, Checkpoint]
) -> None:
    assert records[name].num_params == FACTS[name].num_params


@each_row("name", FACTS)
def test_the_figures_are_the_authors(name: str, records: dict[str, Checkpoint]) -> None:
    metric = records[name].metrics["imagenet1k_val"]
    assert (metric.top1, metric.top5, metric.loss) == FACTS[name].published


@each_row("name", FACTS)
def test_a_figure_names_its_source_and_a_null_has_none(
    name: str, records: dict[str, Checkpoint]
) -> None:
    metric = records[name].metrics["imagenet1k_val"]
    assert (metric.source is None) == (metric.top1 is None)


@each_row("name", FACTS)
def test_timms_figures_stand_beside_them_where_the_transform_is_the_same(
    name: str, records: dict[str, Checkpoint]
) -> None:
    metric = records[name].metrics.get("imagenet1k_val_timm")
    assert (metric and (metric.top1, metric.top5)) == MEASURED_BY_TIMM.get(name)


def first_stage(recipe: Recipe) -> Recipe:
    """The stage that began at random."""
    while recipe.init_from is not None:
        recipe = RECIPES[recipe.init_from]
    return recipe


@each_row("name", [name for name in FACTS if name.startswith("deit_")])
def test_an_accuracy_is_that_of_the_row_with_its_epochs_and_its_size(
    name: str, records: dict[str, Checkpoint]
) -> None:
    letters = {"tiny": "Ti", "small": "S", "base": "B"}[name.split("_")[1]]
    distilled = " distilled" if "distilled" in name else ""
    epochs = first_stage(RECIPES[name]).epochs
    row = f"DeiT-{letters}{distilled}, {MODELS[name].img_size} px, {epochs} epochs"
    metrics = records[name].metrics
    top1, real, v2 = TABLE_5[row]
    # The README's figure is that of the released file: at 384 pixels by another crop.
    assert metrics["imagenet1k_val"].top1 == pytest.approx(top1, abs=0.22)
    for key, figure in {"imagenet_real": real, "imagenet_v2": v2}.items():
        source = f"arXiv:2012.12877, Table 5 ({row})"
        assert metrics[key] == Metric(top1=figure, top5=None, loss=None, source=source)


@each_row(
    ("name", "heads"),
    [
        # DeiT, Table 3: the class embedding, the distillation embedding.
        ("deit_tiny_distilled", (73.9, 74.6)),
        ("deit_small_distilled", (80.9, 81.1)),
        ("deit_base_distilled", (83.0, 83.1)),
        ("deit_base_distilled_384", ()),  # Table 3 has the 300-epoch model
        ("deit_tiny", ()),
    ],
)
def test_each_head_of_a_distilled_model_has_its_figure(
    name: str, heads: tuple[float, ...], records: dict[str, Checkpoint]
) -> None:
    keys = (f"{HEAD_KEY}{head}" for head in HEADS)
    found = [records[name].metrics[key] for key in keys if key in records[name].metrics]
    assert tuple(metric.top1 for metric in found) == heads
    assert {metric.source for metric in found} <= {"arXiv:2012.12877, Table 3"}


@each_row("name", FACTS)
def test_timms_figures_on_other_sets_stand_where_the_transform_is_the_same(
    name: str, records: dict[str, Checkpoint]
) -> None:
    kinds = ("real", "v2", "a", "r", "sketch")
    found = [records[name].metrics.get(f"imagenet_{kind}_timm") for kind in kinds]
    figures = tuple(metric.top1 for metric in found if metric is not None)
    assert figures == TIMM_ELSEWHERE.get(name, ())


@each_row("name", REVENGE_V2)
def test_the_authors_figure_of_a_deit_iii_on_v2_stands_beside_that_on_imagenet(
    name: str, records: dict[str, Checkpoint]
) -> None:
    source = "README_revenge.md model zoo"
    expected = Metric(top1=REVENGE_V2[name], top5=None, loss=None, source=source)
    assert records[name].metrics["imagenet_v2"] == expected


def test_the_authors_figure_goes_before_timms(records: dict[str, Checkpoint]) -> None:
    deit, cait = records["deit_tiny"], records["cait_s24_224"]
    assert (deit.metric_on("v2"), deit.metric_on("a")) == (deit.metrics["imagenet_v2"], None)
    assert cait.metric_on("a") is cait.metrics["imagenet_a_timm"]
    assert [deit.is_timms(deit.metric_on("v2")), cait.is_timms(cait.metric_on("a"))] == [0, 1]


def test_a_figure_on_another_set_is_none_of_the_own_validation_set(
    records: dict[str, Checkpoint],
) -> None:
    others = {k: v for k, v in records["deit_tiny"].metrics.items() if k != "imagenet1k_val"}
    assert replace(records["deit_tiny"], metrics=others).metric is None


def test_fourteen_commits_are_pinned(records: dict[str, Checkpoint]) -> None:
    hub = [held.sources[0] for held in records.values() if held.sources[0].kind == "hub"]
    assert (len([source for source in hub if source.revision]), len(hub)) == (14, 35)


@each_row("name", FACTS)
def test_the_crop_is_that_of_the_published_evaluation(
    name: str, records: dict[str, Checkpoint]
) -> None:
    assert records[name].crop_pct == FACTS[name].crop_pct


@each_row("name", FACTS)
def test_the_first_source_is_timms_file_and_pins_what_is_known(
    name: str, records: dict[str, Checkpoint]
) -> None:
    source, facts = records[name].sources[0], FACTS[name]
    assert (source.kind, source.repo_id, source.filename) == (
        "hub",
        facts.repo_id,
        "model.safetensors",
    )
    assert (source.revision, source.sha256, source.bytes) == (
        facts.revision,
        facts.sha256,
        facts.bytes,
    )


@each_row("name", FACTS)
def test_the_second_source_is_the_authors_file(name: str, records: dict[str, Checkpoint]) -> None:
    source, facts = records[name].sources[1], FACTS[name]
    assert (source.url, source.sha256_prefix, source.format) == (
        f"https://dl.fbaipublicfiles.com/deit/{facts.file}",
        facts.sha256_prefix,
        "upstream_pth",
    )


@each_row("name", FACTS)
def test_the_licence_is_the_authors(name: str, records: dict[str, Checkpoint]) -> None:
    papers = {"deit": "2012.12877", "cait": "2103.17239", "deit3": "2204.07118"}
    paper = f"arXiv:{papers[name.split('_')[0]]}"
    assert (records[name].license, records[name].paper) == ("apache-2.0", paper)


def test_a_reproduced_checkpoint_lies_in_the_package_with_its_log(
    records: dict[str, Checkpoint],
) -> None:
    embedded = ROOT / "deit_zoo" / "assets"
    files = [
        embedded / name
        for held in records.values()
        if held.origin == "reproduced"
        for name in (held.sources[0].filename, held.log)
        if name
    ]
    assert [file.name for file in files if not file.is_file()] == []


def test_the_best_figure_known_stands_for_a_model_without_a_published_one(
    records: dict[str, Checkpoint],
) -> None:
    metric = records["cait_xxs24_224"].metric
    assert metric is not None
    assert metric.top1 == 78.4


@pytest.mark.parametrize("record", [UPSTREAM, REPRODUCED], ids=["upstream", "reproduced"])
def test_a_whole_record_is_read(record: dict[str, Any], write: Write) -> None:
    assert read_manifest(write(record=record))["deit_small"].origin == record["origin"]


@each_row(
    ("change", "message"),
    [
        (("accuracy", 80), " has unknown fields ['accuracy']; it must"),
        (("log", "x"), " has unknown fields ['log']"),
        (("sources", 0, "url", "https://x"), ": source 0 has unknown fields ['url']"),
        (("sources", 1, "sha256", None), ": source 1 has unknown fields ['sha256']"),
        (
            ("metrics", "imagenet1k_val", "top10", 99),
            ": metric 'imagenet1k_val' has unknown fields ['top10']",
        ),
        *(
            (("sources", 0, "filename", name), ": source 0: filename is '")
            for name in ("../x.safetensors", "/etc/passwd", "a/../../b", "", "C:x", "..\\x", "a\nb")
        ),
        *(
            (("sources", 0, "repo_id", name), ": source 0: repo_id is '")
            for name in ("../../x", "/x", "a/b/c", "-a/b", "a--b/c", "a/b.git", "a b/c", 97 * "a")
        ),
        *(
            (("sources", 1, "url", name), ": source 1: url is '")
            for name in ("file:///etc/passwd", "https://x", "https://x/..", "https://x/a/", "x.pth")
        ),
        (("num_params", "22M"), ": num_params is '22M'; it must be of type int"),
        (("num_params", True), ": num_params is True; it must be of type int"),
        (("num_params", 0), ": num_params is 0; it must be above 0"),
        (("num_classes", 1000.0), ": num_classes is 1000.0; it must be of type"),
        (("crop_pct", None), ": crop_pct is None; it must be of type int or"),
        (("crop_pct", 0), ": crop_pct is 0; it must be above 0"),
        (("crop_pct", 87.5), ": crop_pct is 87.5; it must be at most 1"),
        (("license", None), ": license is None; it must be of type str"),
        (("paper", 2012.12877), ": paper is 2012.12877; it must be of type str"),
        (("origin", "found"), ": origin is 'found'; it must be one of upstream"),
        (("labels", "cifar"), ": labels is 'cifar'; it must be one of"),
        (("interpolation", "area"), ": interpolation is 'area'; it must be one"),
        (("sources", {}), ": sources is {}; it must be of type list"),
        (("sources", []), ": sources is empty; give at least one"),
        (("metrics", []), ": metrics is []; it must be of type dict"),
        (("sources", 0, "x"), ": source 0 is 'x'; it must be of type dict"),
        (
            ("sources", 0, "kind", "torrent"),
            ": source 0: kind is 'torrent'; it must be one of builtin, hub, url",
        ),
        (
            ("sources", 0, "sha256", 63 * "a"),
            f": source 0: sha256 is '{63 * 'a'}'; it must be 64 hexadecimal",
        ),
        (
            ("sources", 0, "sha256", 64 * "A"),
            f": source 0: sha256 is '{64 * 'A'}'; it must be 64 hexadecimal",
        ),
        (
            ("sources", 0, "revision", "main"),
            ": source 0: revision is 'main'; it must be 40 hexadecimal digits",
        ),
        (
            ("sources", 1, "sha256_prefix", "cd65a15"),
            ": source 1: sha256_prefix is 'cd65a15'; it must be 8 or more",
        ),
        (
            ("sources", 0, "bytes", "88 MB"),
            ": source 0: bytes is '88 MB'; it must be of type int or null",
        ),
        (("sources", 1, "url", None), ": source 1: url is None; it must be of type str"),
        (
            ("metrics", "imagenet1k_val", "top1", "79.9"),
            ": metric 'imagenet1k_val': top1 is '79.9'; it must be of type int",
        ),
        (
            ("metrics", "imagenet1k_val", 79.9),
            ": metric 'imagenet1k_val' is 79.9; it must be of type dict",
        ),
    ],
)
def test_a_wrong_field_is_an_error_that_names_record_and_field(
    change: tuple[Any, ...], message: str, write: Write
) -> None:
    fails(write(*change), f"manifest record 'deit_small'{message}")


@each_row("field", UPSTREAM)
def test_a_missing_field_is_an_error_that_names_record_and_field(field: str, write: Write) -> None:
    record = {key: value for key, value in UPSTREAM.items() if key != field}
    fails(write(record=record), f"manifest record 'deit_small' has missing fields ['{field}']")


@pytest.mark.parametrize("field", ["repo_id", "filename", "revision", "sha256", "bytes"])
def test_a_source_without_a_field_is_an_error_even_where_null_would_do(
    field: str, write: Write
) -> None:
    source = {key: value for key, value in UPSTREAM["sources"][0].items() if key != field}
    fails(
        write("sources", 0, source),
        f"manifest record 'deit_small': source 0 has missing fields ['{field}']",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("log", None), "record 'deit_small': log is None; it must be of type str"),
        (("log", "../x.log.jsonl"), "log is '../x.log.jsonl'; it must be a file's name without"),
        (
            ("sources", 0, "filename", "../x.safetensors"),
            "source 0: filename is '../x.safetensors'; it must be a file's name",
        ),
        (
            ("sources", 0, "filename", "a/x.safetensors"),
            "source 0: filename is 'a/x.safetensors'; it must be a file's name without a folder",
        ),
        (
            ("sources", 0, "sha256", None),
            "record 'deit_small': source 0: sha256 is null, but a builtin file's digest is known",
        ),
    ],
)
def test_a_reproduced_record_states_its_digest_and_its_log(
    change: tuple[Any, ...], message: str, write: Write
) -> None:
    fails(write(*change, record=REPRODUCED), message)


def test_a_reproduced_record_without_a_log_is_an_error(write: Write) -> None:
    record = {key: value for key, value in REPRODUCED.items() if key != "log"}
    fails(write(record=record), "manifest record 'deit_small' has missing fields ['log']")


@each_row(
    ("content", "message"),
    [
        ("", "is not JSON (Expecting value"),
        ("{", "is not JSON"),
        ("schema_version: 1", "is not JSON"),
        ("[" * 100_000, "is nested deeper than 64 levels, so it was not read"),
        ('{"schema_version": 1, "schema_version": 1}', "it names 'schema_version' twice"),
        ("[]", "is []; it must be of type dict"),
        ('{"checkpoints": {}}', "has missing fields ['schema_version']"),
        ('{"schema_version": 1}', "has missing fields ['checkpoints']"),
        ('{"schema_version": 1, "checkpoints": {}, "x": 1}', "has unknown fields ['x']"),
        ('{"schema_version": 1, "checkpoints": []}', "checkpoints is []; it must be of type dict"),
        (
            '{"schema_version": 2, "checkpoints": {}}',
            "has schema_version 2, this deit_zoo reads 1; install the deit_zoo it was written for",
        ),
        (
            '{"schema_version": 1, "checkpoints": {"deit_s": {}}}',
            "manifest record 'deit_s': no model of the registry has this canonical name",
        ),
        (
            '{"schema_version": 1, "checkpoints": {"deit_small": null}}',
            "manifest record 'deit_small' is None; it must be of type dict",
        ),
    ],
)
def test_a_file_that_is_no_manifest_is_an_error(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    file.write_text(content, encoding="utf-8")
    fails(file, message)


def test_a_binary_file_is_no_manifest(tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    file.write_bytes(b"\x80\x02}q\x00")
    fails(file, f"the weights manifest {file} is not JSON")


def test_a_missing_manifest_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_manifest(tmp_path / "none.json")
    assert str(caught.value) == (
        f"the weights manifest {tmp_path / 'none.json'} cannot be read (No such file or "
        "directory); reinstall deit_zoo, or set DEIT_ZOO_MANIFEST to a manifest file"
    )


def test_a_chosen_manifest_that_is_missing_is_said_to_be_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEIT_ZOO_MANIFEST", str(tmp_path / "none.json"))
    with pytest.raises(CheckpointError) as caught:
        read_manifest()
    assert str(caught.value) == (
        f"the weights manifest {tmp_path / 'none.json'} cannot be read (No such file or "
        "directory); unset DEIT_ZOO_MANIFEST, which names it, or set DEIT_ZOO_MANIFEST to a "
        "manifest file"
    )


def test_a_folder_is_no_manifest(tmp_path: Path) -> None:
    fails(tmp_path, f"the weights manifest {tmp_path} cannot be read")


def test_a_manifest_that_changes_is_read_again(write: Write) -> None:
    before = read_manifest(write())["deit_small"].license
    after = read_manifest(write("license", "mit"))["deit_small"].license
    assert (before, after) == ("apache-2.0", "mit")


def test_the_environment_chooses_another_manifest(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEIT_ZOO_MANIFEST", str(write("license", "cc-by-nc-4.0")))
    assert manifest_record("deit_small").license == "cc-by-nc-4.0"


def test_the_chosen_manifest_is_the_only_one(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write()
    monkeypatch.setenv("DEIT_ZOO_MANIFEST", str(file))
    with pytest.raises(CheckpointError) as caught:
        manifest_record("deit_base")
    assert str(caught.value) == (
        f"{file} has no checkpoint for 'deit_base'; create('deit_base') without pretrained=True "
        "gives random weights, and docs/adding.md says what a record of it is"
    )


def test_the_public_functions_honour_the_chosen_manifest(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEIT_ZOO_MANIFEST", str(write()))
    assert deit_zoo.list_models(pretrained=True) == ["deit_small"]


def test_an_empty_variable_chooses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIT_ZOO_MANIFEST", "")
    assert manifest_path().name == "weights_manifest.json"


def test_a_record_becomes_plain_data(records: dict[str, Checkpoint]) -> None:
    plain = json.loads(json.dumps(records["deit_small"].to_dict()))
    assert plain["metrics"]["imagenet1k_val"]["top1"] == 79.854
