"""The public functions: what they give, what they refuse, and what they leave unimported."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import deit_zoo
from deit_zoo import api
from deit_zoo.errors import (
    CheckpointError,
    DataError,
    ImageSizeError,
    RecipeError,
    UnknownModelError,
    ZooError,
)
from deit_zoo.labels import folders
from deit_zoo.manifest import manifest_path
from deit_zoo.models.model import ZooModel
from deit_zoo.registry import MODELS
from support.tables import each_row

ROOT = Path(__file__).resolve().parents[1]

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Images of a few patches go faster without a second thread to wait for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeiT-Ti for small images whose weights tell red (class 0), green (1) and blue (2) apart.

    Patches embed as their mean colour, one uniform attention takes it to the class token, and the
    head reads it there.
    """
    plan = deit_zoo.create("deit_tiny", img_size=32, num_classes=3, device="meta")
    state = {key: torch.zeros(value.shape) for key, value in plan.state_dict().items()}
    for channel in range(3):
        state["patch_embed.proj.weight"][channel, channel] = 1 / 256
        state["head.weight"][channel, channel] = 1.0
    state["blocks.0.norm1.weight"].fill_(1.0)
    state["blocks.0.attn.qkv.weight"][2 * 192 :] = torch.eye(192)
    state["blocks.0.attn.proj.weight"] = torch.eye(192)
    state["norm.weight"].fill_(1.0)
    file = tmp_path_factory.mktemp("colours") / "model.safetensors"
    save_file(state, file)
    return file


@pytest.fixture
def colours(weights: Path) -> ZooModel:
    """The model that tells colours apart."""
    return deit_zoo.create("deit_tiny", checkpoint=weights)


@pytest.fixture
def biased(weights: Path) -> Callable[[list[float]], ZooModel]:
    """Makes a model that sees nothing: its logits are the given ones, whatever the image."""

    def made(logits: list[float]) -> ZooModel:
        model = deit_zoo.create("deit_tiny", checkpoint=weights, num_classes=len(logits))
        model.load_state_dict(
            model.state_dict()
            | {"head.weight": torch.zeros(len(logits), 192), "head.bias": torch.tensor(logits)}
        )
        return model

    return made


def photo(colour: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, colour)


def png(colour: tuple[int, int, int]) -> bytes:
    stream = BytesIO()
    photo(colour).save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Seven images in three class folders: of red two and a green, two greens, blue and a red."""
    content = {"0": (RED, RED, GREEN), "1": (GREEN, GREEN), "2": (BLUE, RED)}
    for folder, images in content.items():
        (tmp_path / "data" / folder).mkdir(parents=True)
        for number, colour in enumerate(images):
            photo(colour).save(tmp_path / "data" / folder / f"{number}.png")
    return tmp_path / "data"


def loaded(code: str) -> set[str]:
    """The packages that a new Python has imported after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return {name.split(".")[0] for name in done.stdout.split()}


HEAVY = {"torch", "torchvision", "timm", "numpy", "PIL", "safetensors", "huggingface_hub", "rich"}


@pytest.mark.parametrize(
    "code",
    [
        "import deit_zoo",
        "import deit_zoo; deit_zoo.list_models('cait', pretrained=True, sort='top1')",
        "import deit_zoo; deit_zoo.info('deit_s').to_dict()",
    ],
    ids=["import", "list_models", "info"],
)
def test_names_and_facts_cost_no_torch(code: str) -> None:
    assert loaded(code) & HEAVY == set()


def test_building_a_model_costs_no_timm() -> None:
    code = "import deit_zoo; deit_zoo.create('deit_tiny', device='meta')"
    assert loaded(code) & {"torch", "torchvision", "timm"} == {"torch"}


def test_the_version_is_a_number() -> None:
    assert [part.isdigit() for part in deit_zoo.__version__.split(".")] == [True, True, True]


PUBLISHED = [
    "cait_m36_384",
    "cait_m48_448",
    "cait_s24_224",
    "cait_s24_384",
    "cait_s36_384",
    "cait_xs24_384",
    "cait_xxs24_224",
    "cait_xxs24_384",
    "cait_xxs36_224",
    "cait_xxs36_384",
    "deit3_base",
    "deit3_base_384",
    "deit3_base_384_in21k",
    "deit3_base_in21k",
    "deit3_huge",
    "deit3_huge_in21k",
    "deit3_large",
    "deit3_large_384",
    "deit3_large_384_in21k",
    "deit3_large_in21k",
    "deit3_medium",
    "deit3_medium_in21k",
    "deit3_small",
    "deit3_small_384",
    "deit3_small_384_in21k",
    "deit3_small_in21k",
    "deit_base",
    "deit_base_384",
    "deit_base_distilled",
    "deit_base_distilled_384",
    "deit_small",
    "deit_small_distilled",
    "deit_tiny",
    "deit_tiny_distilled",
]


def test_percent_of_digits_are_not_percent_of_imagenet() -> None:
    names = deit_zoo.list_models(sort="top1", pretrained=True)
    labels = [MODELS[name].labels for name in names]
    assert labels == sorted(labels, reverse=True)
    assert (labels[0], labels[-1]) == ("imagenet1k", "digits")


def test_names_are_sorted() -> None:
    assert deit_zoo.list_models(exclude="pico") == [*PUBLISHED, "regnety_160_deit"]


@each_row(
    ("filters", "names"),
    [
        (
            {"pattern": "cait", "img_size": 224},
            ["cait_s24_224", "cait_xxs24_224", "cait_xxs36_224"],
        ),
        ({"pattern": "deit_base"}, [name for name in PUBLISHED if "deit_base" in name]),
        ({"pattern": "DeiT-Base"}, [name for name in PUBLISHED if "deit_base" in name]),
        ({"pattern": "*_384"}, [name for name in PUBLISHED if name.endswith("_384")]),
        ({"pattern": "cait_?36_*"}, ["cait_m36_384", "cait_s36_384"]),
        ({"pattern": "cait_x[s]*"}, ["cait_xs24_384"]),
        ({"pattern": "CaiT-[l-n]*"}, ["cait_m36_384", "cait_m48_448"]),
        ({"pattern": "resmlp"}, []),
        ({"pattern": ["deit_t*", "cait_m"], "exclude": "dist"}, [*PUBLISHED[:2], "deit_tiny"]),
        ({"pattern": "deit_b", "exclude": "distilled"}, ["deit_base", "deit_base_384"]),
        ({"pattern": "deit_b", "exclude": ["distilled", "*_384"]}, ["deit_base"]),
        ({"family": "cait", "exclude": "xs"}, PUBLISHED[:5]),
        ({"img_size": 448}, ["cait_m48_448"]),
        ({"min_top1": 85.4, "family": "cait"}, ["cait_m36_384", "cait_m48_448", "cait_s36_384"]),
        ({"max_params": 6e6, "exclude": "pico"}, ["deit_tiny", "deit_tiny_distilled"]),
        ({"max_params": 5_717_416, "exclude": "pico"}, ["deit_tiny"]),
        ({"license": "Apache-2.0", "pattern": "deit_t"}, ["deit_tiny", "deit_tiny_distilled"]),
        ({"license": "mit"}, []),
        ({"pretrained": True, "exclude": ["pico", "regnet"]}, PUBLISHED),
        ({"pretrained": False, "exclude": "pico"}, []),
    ],
)
def test_filters_leave_what_passes_them_all(filters: dict[str, object], names: list[str]) -> None:
    assert deit_zoo.list_models(**filters) == names


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("name", ["deit_base", "deit_base_distilled", "deit_small", "deit_small_distilled"]),
        ("top1", ["deit_base_distilled", "deit_base", "deit_small_distilled", "deit_small"]),
        ("params", ["deit_small", "deit_small_distilled", "deit_base", "deit_base_distilled"]),
        ("gmacs", ["deit_small", "deit_small_distilled", "deit_base", "deit_base_distilled"]),
        ("img_size", ["deit_base", "deit_base_distilled", "deit_small", "deit_small_distilled"]),
    ],
)
def test_each_key_sorts(sort: str, names: list[str]) -> None:
    assert deit_zoo.list_models("deit_[bs]*", exclude=["384", "pico"], sort=sort) == names


def test_the_smallest_images_come_first() -> None:
    names = deit_zoo.list_models("cait_xxs*", sort="img_size")
    assert names == ["cait_xxs24_224", "cait_xxs36_224", "cait_xxs24_384", "cait_xxs36_384"]


def test_numbers_in_names_sort_as_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = replace(MODELS["cait_s24_384"], name="cait_s24_96")
    monkeypatch.setitem(MODELS, "cait_s24_96", earlier)
    assert deit_zoo.list_models("cait_s24") == ["cait_s24_96", "cait_s24_224", "cait_s24_384"]


@each_row(
    ("filters", "message"),
    [
        ({"sort": "size"}, "sort is 'size'; give one of name, top1, params, gmacs, img_size"),
        (
            {"family": ["deit", "cait"]},
            "family is ['deit', 'cait']; give one of cait, convnet, deit, deit3, regnet",
        ),
        ({"pretrained": "yes"}, "pretrained is 'yes'; give one of True, False"),
        (
            {"img_size": "224"},
            "img_size is '224' (str); give the pixels along one side, such as 224",
        ),
        ({"max_params": "5M"}, "max_params is '5M'; give a number, such as 22e6"),
        (
            {"pattern": 5},
            "pattern is 5 (int); give a pattern such as 'deit3_*', or a list of them",
        ),
    ],
)
def test_a_filter_that_no_model_could_pass_is_refused(
    filters: dict[str, Any], message: str
) -> None:
    with pytest.raises(ZooError) as caught:
        deit_zoo.list_models(**filters)
    assert str(caught.value) == message


def test_numbers_of_numpy_are_numbers_and_a_dtype_may_be_named() -> None:
    model = deit_zoo.create(
        "deit_tiny",
        num_classes=np.int64(3),
        img_size=(np.int32(32), 64),
        drop_path_rate=np.float32(0.1),
        dtype="bfloat16",
        device="meta",
    )
    assert (model.num_classes, model.img_size) == (3, (32, 64))
    assert model.head.weight.dtype == torch.bfloat16


def test_info_is_ready_for_json() -> None:
    plain = json.loads(json.dumps(deit_zoo.info("DeiT-S").to_dict()))
    assert {key: plain[key] for key in ("name", "family", "num_params", "gmacs", "img_size")} == {
        "name": "deit_small",
        "family": "deit",
        "num_params": 22_050_664,
        "gmacs": 4.61,
        "img_size": 224,
    }
    assert plain["checkpoint"]["metrics"]["imagenet1k_val"]["top5"] == 94.968


def test_who_changes_an_info_does_not_change_the_registry() -> None:
    deit_zoo.info("deit_small").arch["mine"] = 1
    assert "mine" not in MODELS["deit_small"].arch


def test_info_of_a_file_is_of_the_network_in_it(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    deit_zoo.save(deit_zoo.create("deit3_small", blocks="1", img_size=32), file)
    found = deit_zoo.info(str(file))
    assert (found.arch["depth"], found.arch["patch_size"], found.img_size) == (1, 16, 32)
    # Of 4 patches, 5 tokens, width 384: the patches, a block (12 N D^2 + 2 N^2 D), the head.
    counted = 4 * 768 * 384 + 12 * 5 * 384**2 + 2 * 5**2 * 384 + 384 * 1000
    assert found.gmacs == pytest.approx(counted / 1e9)
    deit_zoo.save(deit_zoo.create("deit_pico_digits", pretrained=True, patch_size=2), file)
    assert deit_zoo.info(str(file)).arch["patch_size"] == 2
    deit_zoo.save(deit_zoo.create("deit_pico_digits", pretrained=True), file)
    assert deit_zoo.info(str(file)).gmacs == MODELS["deit_pico_digits"].gmacs


def test_info_says_what_of_a_recipe_nobody_published() -> None:
    # Upstream's issue #108 names no schedule.
    found = deit_zoo.info("cait_M48").to_dict()
    assert found["recipe"].startswith("upstream's issue #108; ")
    assert found["recipe_assumed"]["schedule"] == (
        "issue #108 gives decay epochs and rate and names no schedule; timm's step"
    )


def test_info_assumes_nothing_of_a_published_recipe_or_of_none() -> None:
    assert deit_zoo.info("deit_b").recipe_assumed == {}
    assert deit_zoo.info("deit_teacher").recipe is None
    assert deit_zoo.info("deit_teacher").recipe_assumed == {}


@each_row("name", deit_zoo.list_models())
def test_every_model_has_an_info_for_json(name: str) -> None:
    assert json.loads(json.dumps(deit_zoo.info(name).to_dict()))["name"] == name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("deit_s", "EvalTransform(img_size=(224, 224), crop_pct=0.875)"),
        ("deit_base_384", "EvalTransform(img_size=(384, 384), crop_pct=0.875)"),
        ("cait_S24", "EvalTransform(img_size=(384, 384), crop_pct=1.0)"),
        ("cait_m48_448", "EvalTransform(img_size=(448, 448), crop_pct=1.0)"),
    ],
)
def test_a_transform_is_that_of_the_published_figures(name: str, text: str) -> None:
    assert repr(deit_zoo.transform(name)) == text


def test_a_models_transform_has_the_models_size() -> None:
    model = deit_zoo.create("deit_tiny", img_size=(32, 64), device="meta")
    assert repr(deit_zoo.transform(model)) == "EvalTransform(img_size=(32, 64), crop_pct=0.875)"


def test_ones_own_weights_have_the_transform_that_they_state(tmp_path: Path) -> None:
    file = tmp_path / "cats.safetensors"
    deit_zoo.save(deit_zoo.create("deit_pico_digits", True, img_size=32), file, crop_pct=0.95)
    assert deit_zoo.info(file).img_size == 32
    for path in (file, str(file)):
        assert repr(deit_zoo.transform(path)) == "EvalTransform(img_size=(32, 32), crop_pct=0.95)"
    assert deit_zoo.transform(file, img_size=16).img_size == (16, 16)


def test_a_transform_takes_another_size_and_crop() -> None:
    changed = deit_zoo.transform("deit_tiny", img_size=(192, 256), crop_pct=1)
    assert changed(photo(RED)).shape == (3, 192, 256)


def test_a_transform_says_how_pixels_are_normalised_for_other_libraries() -> None:
    # torchvision says them of ImageNet, by which the authors normalise.
    changed = deit_zoo.transform("cait_s24_224")
    assert (changed.mean, changed.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert changed.interpolation == "bicubic"


def test_a_model_without_a_head_has_a_transform() -> None:
    model = deit_zoo.create("deit_tiny", num_classes=0, device="meta")
    assert deit_zoo.transform(model).img_size == (224, 224)


def test_a_result_is_a_class_with_its_probability(colours: ZooModel) -> None:
    [[best, *_]] = deit_zoo.classify(photo(GREEN), colours)
    assert (best.label, best.index, best.folder) == ("1", 1, "1")
    assert best.probability > 0.9


def test_probabilities_are_the_softmax_best_first(
    biased: Callable[[list[float]], ZooModel],
) -> None:
    model = biased([0.0, math.log(2), math.log(5)])
    [result] = deit_zoo.classify(photo(RED), model)
    assert [(p.label, p.probability) for p in result] == [
        ("2", pytest.approx(5 / 8)),
        ("1", pytest.approx(2 / 8)),
        ("0", pytest.approx(1 / 8)),
    ]


def test_a_single_class_has_a_probability_of_its_own(
    biased: Callable[[list[float]], ZooModel],
) -> None:
    # The sigmoid; a softmax over one class is 1 whatever the image.
    [[only]] = deit_zoo.classify(photo(RED), biased([math.log(3)]))
    assert (only.label, only.probability) == ("0", pytest.approx(3 / 4))


def test_a_thousand_classes_have_their_names(biased: Callable[[list[float]], ZooModel]) -> None:
    model = biased([0.0] * 281 + [1.0] + [0.0] * 718)
    model.labels = folders("imagenet1k")
    [[best]] = deit_zoo.classify(photo(RED), model, topk=1)
    assert (best.label, best.folder) == ("tabby, tabby cat", "n02123045")


@pytest.mark.parametrize(("topk", "shown"), [(1, 1), (2, 2), (3, 3), (5, 3), (1000, 3)])
def test_topk_is_at_most_the_number_of_classes(topk: int, shown: int, colours: ZooModel) -> None:
    assert [len(result) for result in deit_zoo.classify(photo(RED), colours, topk=topk)] == [shown]


def test_an_image_may_be_a_path_bytes_or_a_pil_image(colours: ZooModel, tmp_path: Path) -> None:
    photo(GREEN).save(tmp_path / "green.png")
    photo(BLUE).save(tmp_path / "blue.jpg")
    images = [tmp_path / "green.png", str(tmp_path / "blue.jpg"), png(RED), photo(GREEN)]
    results = deit_zoo.classify(images, colours, topk=1)
    assert [best.label for [best] in results] == ["1", "2", "0", "1"]


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "PIL"])
def test_one_image_needs_no_list(kind: str, colours: ZooModel, tmp_path: Path) -> None:
    path = tmp_path / "blue.png"
    path.write_bytes(png(BLUE))
    image = {"path": path, "text": str(path), "bytes": png(BLUE), "PIL": photo(BLUE)}[kind]
    [[best, *_]] = deit_zoo.classify(image, colours)
    assert best.label == "2"


def test_many_images_come_back_in_their_order(colours: ZooModel) -> None:
    # More than a batch, from a generator.
    results = deit_zoo.classify((photo((RED, GREEN, BLUE)[n % 3]) for n in range(70)), colours)
    assert [result[0].index for result in results] == [n % 3 for n in range(70)]


def seen_by(model: ZooModel) -> list[int]:
    """The sizes of the batches that a model gets, as it gets them."""
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    return sizes


def test_the_batches_are_as_large_as_asked(colours: ZooModel) -> None:
    sizes = seen_by(colours)
    deit_zoo.classify([photo(RED)] * 10, colours, batch_size=4, workers=3)
    assert sizes == [4, 4, 2]


def test_a_generator_is_taken_as_it_is_needed(colours: ZooModel) -> None:
    given: list[int] = []
    taken: list[int] = []
    colours.register_forward_pre_hook(lambda *_: taken.append(len(given)))

    def images() -> Iterator[Image.Image]:
        for number in range(40):
            given.append(number)
            yield photo(GREEN)

    assert len(deit_zoo.classify(images(), colours, batch_size=4)) == 40
    # The last of each batch waits with the eight from its own on: two batches ahead.
    assert taken[:3] == [11, 15, 19]


class Noted(PathLike[str]):
    """A path that tells when a thread asks for it, to read it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked = threading.Event()

    def __fspath__(self) -> str:
        self.asked.set()
        return str(self.path)


def test_images_are_read_while_the_model_works(colours: ZooModel, tmp_path: Path) -> None:
    photo(BLUE).save(tmp_path / "blue.png")
    files = [Noted(tmp_path / "blue.png") for _ in range(6)]
    met: list[bool] = []
    # One thread reads one after the other: asked for the fifth, it has read the fourth.
    colours.register_forward_pre_hook(lambda *_: met.append(files[4].asked.wait(30)))
    results = deit_zoo.classify(files, colours, topk=1, batch_size=2, workers=1)
    assert met == [True, True, True]
    assert [best.label for [best] in results] == ["2"] * 6


def test_one_image_that_is_not_decoded_yet_may_be_given_many_times(
    colours: ZooModel, tmp_path: Path
) -> None:
    photo(GREEN, (600, 400)).save(tmp_path / "green.jpg")
    with Image.open(tmp_path / "green.jpg") as image:
        results = deit_zoo.classify([image] * 40, colours, topk=1, workers=8)
    assert [best.label for [best] in results] == ["1"] * 40


def test_a_broken_image_is_an_entry_and_the_others_have_theirs(
    colours: ZooModel, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(png(RED)[:50])
    images = [*[photo(RED)] * 5, tmp_path / "bad.png", *[photo(GREEN)] * 5, 7]
    sizes = seen_by(colours)
    results = deit_zoo.classify(images, colours, topk=1, batch_size=4)
    assert sizes == [4, 3, 3]
    bad, unknown = results.pop(5), results.pop(-1)
    assert [best.index for [best] in results] == [0] * 5 + [1] * 5
    assert isinstance(bad, DataError)
    assert str(bad).startswith(f"{tmp_path / 'bad.png'} cannot be read as an image")
    assert str(unknown).startswith("int is no image; give a path, a URL, the bytes of")


def test_a_folder_is_all_its_images(colours: ZooModel, tmp_path: Path) -> None:
    for name, colour in (("b.png", RED), ("a/z.png", GREEN), ("c.png", BLUE)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(colour))
    (tmp_path / "empty").mkdir()
    (tmp_path / "cc.png").write_bytes(b"")
    results = deit_zoo.classify(tmp_path, colours, topk=1)
    assert isinstance(results[3], DataError)
    assert [best.index for [best] in results[:3]] == [1, 0, 2]
    [none] = deit_zoo.classify([tmp_path / "empty"], colours)
    assert (
        str(none) == f"{tmp_path / 'empty'} holds no image; give a folder of JPEG, PNG, ... files"
    )


def test_no_images_give_no_results(colours: ZooModel) -> None:
    assert deit_zoo.classify([], colours) == []


def test_images_of_different_sizes_go_together(colours: ZooModel) -> None:
    images = [photo(RED, (1, 1)), photo(GREEN, (500, 20)), photo(BLUE, (33, 700))]
    results = deit_zoo.classify(images, colours, topk=1)
    assert [best.index for [best] in results] == [0, 1, 2]


def test_a_distilled_model_in_train_mode_classifies_too(tmp_path: Path) -> None:
    plan = deit_zoo.create("deit_tiny_distilled", num_classes=3, img_size=32, device="meta")
    state = {key: torch.zeros(value.shape) for key, value in plan.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    model = deit_zoo.create("deit_tiny_distilled", checkpoint=tmp_path).train()
    [result] = deit_zoo.classify(photo(RED), model)
    assert [prediction.probability for prediction in result] == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("training", [True, False])
def test_classify_leaves_the_mode_as_it_was(training: bool, colours: ZooModel) -> None:
    colours.train(training)
    deit_zoo.classify(photo(RED), colours)
    assert colours.training == training
    with pytest.raises(DataError):
        deit_zoo.classify(b"broken", colours)
    assert colours.training == training


def test_weights_that_are_no_numbers_give_no_answer(data: Path, tmp_path: Path) -> None:
    model = deit_zoo.create("deit_pico_digits")
    model.get_parameter("head.weight").data[2] = float("nan")
    remarks: list[str] = []
    for answer in (
        lambda: deit_zoo.classify(photo(RED), model),
        lambda: deit_zoo.classify(photo(RED), model, fast=True),
        lambda: deit_zoo.export(model, tmp_path / "model.pt2"),
        lambda: deit_zoo.evaluate(model, data, say=remarks.append),
        lambda: api.compare_answers(model, data, beside=["deit_pico_digits"], say=remarks.append),
    ):
        with pytest.raises(ZooError, match="are not finite; its weights are broken"):
            answer()


def test_an_image_of_extreme_shape_is_named(colours: ZooModel, tmp_path: Path) -> None:
    photo(RED, (1, 200_000)).save(tmp_path / "line.png")
    with pytest.raises(DataError) as caught:
        deit_zoo.classify(tmp_path / "line.png", colours)
    # 32 pixels at crop 0.875 are cut from 36.
    assert str(caught.value) == (
        f"{tmp_path / 'line.png'}: an image of 1x200000 pixels would be resized to 36x7200000; "
        "crop it to a less extreme shape first, or set DEIT_ZOO_MAX_PIXELS to a larger number"
    )


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_every_image_counts_once(batch_size: int, colours: ZooModel, data: Path) -> None:
    result = deit_zoo.evaluate(colours, data, batch_size=batch_size)
    # A green among the reds and a red among the blues are wrong.
    assert (result.num_images, result.top1, result.top5) == (7, pytest.approx(500 / 7), 100.0)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_loss_is_the_mean_over_images(
    batch_size: int, biased: Callable[[list[float]], ZooModel], data: Path
) -> None:
    # Probabilities 1/4, 1/2, 1/4: three and two images at log 4, two at log 2.
    model = biased([0.0, math.log(2), 0.0])
    result = deit_zoo.evaluate(model, data, batch_size=batch_size)
    assert result.loss == pytest.approx((5 * math.log(4) + 2 * math.log(2)) / 7, rel=1e-6)


def test_top5_looks_at_five_classes(
    biased: Callable[[list[float]], ZooModel], tmp_path: Path
) -> None:
    # Seven classes, one image each; the logits fall, so classes 0 to 4 are the best five.
    for number in range(7):
        (tmp_path / str(number)).mkdir()
        photo(RED).save(tmp_path / str(number) / "a.png")
    model = biased([7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    result = deit_zoo.evaluate(model, tmp_path)
    assert (result.top1, result.top5) == (pytest.approx(100 / 7), pytest.approx(500 / 7))


def test_worker_processes_change_nothing(colours: ZooModel, data: Path) -> None:
    alone = deit_zoo.evaluate(colours, data, batch_size=3)
    assert deit_zoo.evaluate(colours, data, batch_size=3, workers=2) == alone


def test_progress_of_classify_tells_images_done_and_in_all_where_that_is_known(
    colours: ZooModel, data: Path
) -> None:
    files = sorted(data.glob("**/*.png"))
    cases: list[tuple[Any, int | None]] = [
        (files, 7),
        (iter(files), None),
        (data, None),
        ([data], None),
    ]
    for images, total in cases:
        calls: list[tuple[int, int | None]] = []
        deit_zoo.classify(
            images,
            colours,
            topk=1,
            batch_size=3,
            progress=lambda done, total, calls=calls: calls.append((done, total)),  # type: ignore[misc]
        )
        assert calls == [(3, total), (6, total), (7, total)]


def test_progress_tells_images_done_and_in_all(colours: ZooModel, data: Path) -> None:
    told: list[tuple[int, int]] = []
    deit_zoo.evaluate(
        colours, data, batch_size=3, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(3, 7), (6, 7), (7, 7)]


def test_evaluate_takes_the_validation_folder_of_a_data_set(
    colours: ZooModel, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "set" / "train").mkdir(parents=True)
    data.rename(tmp_path / "set" / "val")
    assert deit_zoo.evaluate(colours, str(tmp_path / "set")).num_images == 7


def test_evaluate_looks_into_folders_of_a_class_and_past_other_files(
    colours: ZooModel, data: Path
) -> None:
    (data / "1" / "more").mkdir()
    photo(GREEN).save(data / "1" / "more" / "green.JPG", format="JPEG")
    (data / "1" / "notes.txt").write_text("two greens")
    with pytest.warns(UserWarning, match=rf"^1 other file \(\.txt\) is ignored in {data}$"):
        assert deit_zoo.evaluate(colours, data).num_images == 8


def test_a_remark_on_the_images_is_a_warning_unless_the_caller_takes_it(
    colours: ZooModel, data: Path
) -> None:
    (data / "1" / "notes.txt").write_text("two greens")
    for measure in (deit_zoo.evaluate, api.compare_answers):
        said: list[str] = []
        measure(colours, data, say=said.append)
        with pytest.warns(UserWarning, match="is ignored in") as caught:
            measure(colours, data)
        assert said == [str(one.message) for one in caught]
        assert said == [f"1 other file (.txt) is ignored in {data}"]
        assert [one.filename for one in caught] == [__file__]
    with pytest.warns(UserWarning, match="is ignored in") as caught:
        assert len(deit_zoo.classify(data, colours)) == 7
    assert [(str(one.message), one.filename) for one in caught] == [(said[0], __file__)]


def test_the_default_device_of_the_caller_changes_nothing(colours: ZooModel, data: Path) -> None:
    expected = deit_zoo.evaluate(colours, data), deit_zoo.classify(data, colours)
    with torch.device("meta"):
        assert (deit_zoo.evaluate(colours, data), deit_zoo.classify(data, colours)) == expected
        comparison = api.compare_answers(colours, data)
        deit_zoo.attention_map(photo(RED), colours)
    assert comparison.figures == {"the model": expected[0]}


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_leaves_the_mode_as_it_was(training: bool, colours: ZooModel, data: Path) -> None:
    colours.train(training)
    deit_zoo.evaluate(colours, data)
    assert colours.training == training
    (data / "2" / "9.png").write_bytes(png(BLUE)[:50])
    with pytest.raises(DataError, match=rf"^{data / '2' / '9.png'} cannot be read as an image \("):
        deit_zoo.evaluate(colours, data)
    assert colours.training == training


def test_evaluate_names_an_image_of_extreme_shape(colours: ZooModel, data: Path) -> None:
    photo(RED, (1, 200_000)).save(data / "0" / "line.png")
    with pytest.raises(DataError, match=rf"^{data / '0' / 'line.png'}: an image of 1x200000 pixel"):
        deit_zoo.evaluate(colours, data)


def emptied(folder: Path) -> None:
    for image in folder.iterdir():
        image.unlink()


OTHERS = "the class folders of DATA are not the model's 3 classes: 1 that are no class of the model"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda data: (data / "cat").mkdir(),
            f"{OTHERS} (such as 'cat'); give images of each class, from '0' to '2'",
        ),
        (
            lambda data: (data / "2").rename(data / "two"),
            f"{OTHERS} (such as 'two') and 1 missing (such as '2'); give images of each class, "
            "from '0' to '2'",
        ),
        (
            lambda data: emptied(data / "1"),
            "1 of the 3 classes of DATA has no image (such as '1'); give images of every class",
        ),
        (
            lambda data: data.rename(data.parent / "away") and data.mkdir(),
            "DATA is empty; it must hold one folder of images per class, as in DATA/cat/1.jpg",
        ),
    ],
)
def test_evaluate_names_the_class_folders_that_are_wrong(
    colours: ZooModel, data: Path, change: Callable[[Path], object], sentence: str
) -> None:
    change(data)
    with pytest.raises(DataError) as caught:
        deit_zoo.evaluate(colours, data)
    assert str(caught.value) == sentence.replace("DATA", str(data))


def test_a_model_without_labels_of_its_own_is_given_those_of_the_folders(
    colours: ZooModel, data: Path
) -> None:
    for old, new in (("0", "ape"), ("1", "bee"), ("2", "cat")):
        (data / old).rename(data / new)
    with pytest.raises(DataError) as caught:
        deit_zoo.evaluate(colours, data)
    cure = "model.labels = ['ape', 'bee', 'cat']"
    assert str(caught.value).endswith(
        f"; give images of each class, from '0' to '2', or type {cure} if these are what the model "
        "learned, in this order"
    )
    exec(cure, {"model": colours})
    assert deit_zoo.evaluate(colours, data).num_images == 7


def test_the_home_of_a_path_is_filled_in_by_every_function(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(manifest_path(), home / "manifest.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("DEIT_ZOO_MANIFEST", "~/manifest.json")
    assert deit_zoo.fetch("deit_pico_digits", "~/carried") == home / "carried"
    assert {result.problem for result in deit_zoo.verify("~/carried")} == {None}
    deit_zoo.save(deit_zoo.create("deit_pico_digits"), "~/a.safetensors")
    assert (home / "a.safetensors").is_file()
    with pytest.raises(DataError, match=f"^{home}/carried holds other files"):
        deit_zoo.evaluate("deit_pico_digits", data, report="~/carried")
    pytest.importorskip("matplotlib")
    deit_zoo.attention_map(photo(RED), "deit_pico_digits").save("~/a.png")
    assert (home / "a.png").is_file()


def test_a_missing_folder_is_named(colours: ZooModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^{tmp_path}/none does not exist; give a folder"):
        deit_zoo.evaluate(colours, tmp_path / "none")


@each_row(
    ("call", "message"),
    [
        (lambda: deit_zoo.classify("no.jpg"), "no.jpg does not exist; give an image file"),
        (lambda: deit_zoo.evaluate("deit_small", "nowhere"), "nowhere does not exist; give a "),
        (lambda: deit_zoo.evaluate("deit_small", ".", labels="b"), "labels is 'b'; give one of "),
        (
            lambda: deit_zoo.evaluate("deit_small", ".", labels="a", label_file="no.txt"),
            "the label file no.txt cannot be read (no such file",
        ),
        (
            lambda: deit_zoo.attention_map(Image.new("RGB", (9, 9)), "deit_small", layer=12),
            "layer is 12, but deit_small has 12 layers; give a number from 0 to 11",
        ),
        (
            lambda: deit_zoo.create("deit_small", pretrained=True, img_size=65),
            "images of 65x65 pixels cannot be cut into patches of 16x16; the nearest size",
        ),
        (
            lambda: deit_zoo.export("deit_small", "small.pt2", images=["no.jpg"]),
            "no.jpg does not exist; give an image file",
        ),
    ],
)
def test_a_slip_is_told_before_the_weights_are_fetched(
    call: Callable[[], object], message: str
) -> None:
    with pytest.raises(ZooError) as caught:  # there is no network, so weights raise another
        call()
    assert str(caught.value).startswith(message)


@each_row(
    ("call", "kind", "message"),
    [
        (
            lambda model: deit_zoo.create("deit_smal"),
            UnknownModelError,
            "no model is named 'deit_smal'; did you mean deit_small, ",
        ),
        (
            lambda model: deit_zoo.create("deit_tiny", pretrained="yes"),  # type: ignore[arg-type]
            ZooError,
            "pretrained is 'yes'; give True or False, or checkpoint=FILE",
        ),
        (
            lambda model: deit_zoo.create("deit_tiny", drop_path_rate=1.0),
            ZooError,
            "drop_path_rate is 1.0; give a share from 0 to below 1",
        ),
        (
            lambda model: deit_zoo.create("deit_tiny", drop_path_rate=float("nan")),
            ZooError,
            "drop_path_rate is nan; give a share from 0 to below 1",
        ),
        (
            lambda model: deit_zoo.create("deit_tiny", drop_path_rate="0.1"),
            ZooError,
            "drop_path_rate is '0.1'; give a share from 0 to below 1",
        ),
        (
            lambda model: deit_zoo.create("deit_tiny", num_classes=2.0),
            ZooError,
            "num_classes is 2.0 (float); give the number of classes, or 0 for none",
        ),
        (
            lambda model: deit_zoo.create("deit_pico_digits", True, patch_size=0),
            ZooError,
            "patch_size is 0; give the pixels along one side of a patch, such as 16",
        ),
        (
            lambda model: deit_zoo.create("deit_tiny", dtype="half-float"),
            ZooError,
            "dtype is 'half-float'; give a floating one of torch, such as bfloat16",
        ),
        (
            deit_zoo.create,
            UnknownModelError,
            "name is of type VisionTransformer; give a model's name, or the path of a run or of ",
        ),
        (
            lambda model: deit_zoo.info(b"deit_tiny"),
            UnknownModelError,
            "name is b'deit_tiny' (bytes); give a model's name, or the path of a run or of weights",
        ),
        (
            lambda model: deit_zoo.reproduce(5),
            UnknownModelError,
            "name is 5 (int); give the name of a model or of a recipe",
        ),
        (
            lambda model: deit_zoo.reproduce("deit_pico_digits", gpus="1"),
            RecipeError,
            "--gpus is '1' (str); give a number of GPUs, or 0 for the CPU",
        ),
        (
            lambda model: deit_zoo.evaluate(model, ["digits"]),
            DataError,
            "data is ['digits'] (list); give a folder of class folders, or another form in docs/",
        ),
        (
            lambda model: deit_zoo.save(model, 5),
            DataError,
            "file is 5 (int); give a path",
        ),
        (
            lambda model: deit_zoo.classify([], model, topk="3"),
            ZooError,
            "topk is '3' (str); give the number of classes to show, 1 or more",
        ),
        (
            lambda model: deit_zoo.transform("deit_tiny", crop_pct="0.9"),
            ImageSizeError,
            "crop_pct is '0.9'; give a share above 0 and up to 1, such as 0.875",
        ),
        (
            lambda model: deit_zoo.create("deit_tiny", device=0.5),
            ZooError,
            "device '0.5' cannot be used here (",
        ),
        (
            lambda model: deit_zoo.create("deit_tiny", weights="ema"),
            ZooError,
            "weights is 'ema', but there is no checkpoint; give checkpoint=",
        ),
        (
            lambda model: deit_zoo.create("deit_tiny", img_size=224.0),
            ImageSizeError,
            "img_size is 224.0; give one number of pixels or (height, width), for example ",
        ),
        (
            lambda model: deit_zoo.create("x" * 5000),
            UnknownModelError,
            "no model is named 'xxx",
        ),
        (
            lambda model: deit_zoo.create("deit_tiny", checkpoint="x" * 5000),
            CheckpointError,
            "checkpoint 'xxx",
        ),
        (
            lambda model: deit_zoo.create("deit_tiny", checkpoint=""),
            CheckpointError,
            "checkpoint '' does not exist; give a .safetensors or .pth file, a folder ",
        ),
        (
            lambda model: deit_zoo.create("deit_tiny", in_chans=0),
            ZooError,
            "in_chans is 0; give the number of channels of an image, such as 3",
        ),
        (
            lambda model: deit_zoo.create("deit_tiny", num_classes=-1, device="meta"),
            ZooError,
            "num_classes is -1; give the number of classes, or 0 for none",
        ),
        (
            lambda model: deit_zoo.create("deit_tiny", img_size=225),
            ImageSizeError,
            "images of 225x225 pixels cannot be cut into patches of 16x16; the nearest size that "
            "can is img_size=224",
        ),
        (
            lambda model: deit_zoo.create("deit_tiny", img_size=(224,)),
            ImageSizeError,
            "img_size is (224,); give one number of pixels or (height, width), for example ",
        ),
        (
            lambda model: deit_zoo.create("deit_tiny", device="gpu"),
            ZooError,
            "device 'gpu' cannot be used here (",
        ),
        (
            lambda model: deit_zoo.classify([], model, device="cuda:99"),
            ZooError,
            "device 'cuda:99' cannot be used here (",
        ),
        (
            lambda model: deit_zoo.classify([], model, topk=0),
            ZooError,
            "topk is 0; give the number of classes to show, 1 or more",
        ),
        (
            lambda model: deit_zoo.classify([], model, batch_size=0),
            ZooError,
            "batch_size is 0; give 1 image or more",
        ),
        (
            lambda model: deit_zoo.classify([], model, workers=0),
            ZooError,
            "workers is 0; give 1 thread or more",
        ),
        (
            lambda model: deit_zoo.classify([], model.reset_classifier(0) or model),
            ZooError,
            "the model has no head (num_classes=0), so it has no classes to tell apart",
        ),
        (
            lambda model: deit_zoo.evaluate(model.reset_classifier(0) or model, "."),
            ZooError,
            "the model has no head (num_classes=0), so it has no classes to tell apart",
        ),
        (
            lambda model: deit_zoo.evaluate(model, "data", batch_size=0),
            ZooError,
            "batch_size is 0; give 1 image or more",
        ),
        (
            lambda model: deit_zoo.evaluate(model, "data", workers=-1),
            ZooError,
            "workers is -1; give 0 processes or more that read images, or None",
        ),
        (
            lambda model: deit_zoo.classify([], nn.Linear(1, 1)),
            CheckpointError,
            "Linear was not made by deit_zoo.create, so its classes and transform are not known; ",
        ),
        (
            lambda model: deit_zoo.classify([], nn.ModuleDict({"net": model})),
            CheckpointError,
            "ModuleDict was not made by deit_zoo.create, so its classes and transform are not "
            "known; give the model inside it, which is the ModuleDict's .net",
        ),
        (
            lambda model: deit_zoo.transform(None),
            CheckpointError,
            "NoneType was not made by deit_zoo.create, so its classes and transform are not known",
        ),
        (
            lambda model: deit_zoo.classify([], torch.jit.ScriptModule()),  # as a traced one is
            CheckpointError,
            "ScriptModule was not made by deit_zoo.create, so its classes and transform are not ",
        ),
        (
            lambda model: deit_zoo.classify([], deit_zoo.create("deit_pico_digits", in_chans=4)),
            ImageSizeError,
            "the model has in_chans=4, and files are read as RGB: give model(x) tensors of shape ",
        ),
        (
            lambda model: deit_zoo.transform("deit_tiny", crop_pct=0),
            ImageSizeError,
            "crop_pct is 0; give a share above 0 and up to 1, such as 0.875",
        ),
    ],
)
def test_nonsense_is_refused_in_one_sentence(
    call: Callable[[ZooModel], object], kind: type[ZooError], message: str
) -> None:
    model = deit_zoo.create("deit_tiny", img_size=16, num_classes=3, device="meta")
    with pytest.raises(kind) as caught:
        call(model)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
