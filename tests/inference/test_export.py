"""Exported files: what is in them, who can run them, and when none is written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

import deit_zoo
from deit_zoo.api import export
from deit_zoo.data.digits import digits
from deit_zoo.data.transforms import transform_of
from deit_zoo.errors import CheckpointError, DataError, DifferenceError, ImageSizeError, ZooError
from deit_zoo.inference import export as exports
from deit_zoo.inference.export import Export, compare
from deit_zoo.models.model import ZooModel
from deit_zoo.weights import load
from support.command import ROOT

DISTILLED, CONVNET = "deit_pico_distilled_digits", "convnet_pico_digits"

onnxruntime = pytest.importorskip("onnxruntime")

# Runs a .pt2 on saved images where this package cannot be imported.
ALONE = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        assert name.split(".")[0] != "deit_zoo", "the file needs deit_zoo"

sys.meta_path.insert(0, Forbidden())
import torch

images = torch.load("images.pt")
if sys.argv[2] == "aot":
    run = torch._inductor.aoti_load_package(sys.argv[1])
    labels = run.get_metadata()["labels"]
else:
    texts = {"labels": ""}
    run = torch.export.load(sys.argv[1], extra_files=texts).module()
    labels = texts["labels"]
with torch.inference_mode():
    torch.save([run(images[:1]), run(images[:5])], "logits.pt")
print(labels)
"""
LABELS = '["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def distilled() -> ZooModel:
    return deit_zoo.create(DISTILLED, pretrained=True)


@pytest.fixture(scope="module")
def as_onnx(folder: Path) -> Export:
    return export(DISTILLED, folder / "distilled.onnx")


@pytest.fixture(scope="module")
def as_pt2(folder: Path) -> Export:
    return export(DISTILLED, folder / "distilled.pt2")


def some(model: ZooModel, number: int) -> Tensor:
    """Real images, the last of the data set, as the model takes them."""
    prepare = deit_zoo.transform(model)
    return torch.stack([prepare(image) for image, _ in islice(digits(), 1700, 1700 + number)])


def by_onnxruntime(file: Path, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


@torch.inference_mode()
def largest_difference(model: ZooModel, run: Callable[[Tensor], Tensor]) -> float:
    """Over batches of 1 and 5."""
    images = some(model, 5)
    pairs = [(run(batch), model.eval()(batch)) for batch in (images[:1], images)]
    return max((found - wanted).abs().max().item() for found, wanted in pairs)


def alone(file: Path, model: ZooModel, kind: str, place: Path) -> tuple[str, float]:
    """The labels and the largest difference of a .pt2 where this package is not."""
    images = some(model, 5)
    torch.save(images, place / "images.pt")
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(file), kind],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = iter(torch.load(place / "logits.pt"))
    return done.stdout.strip(), largest_difference(model, lambda _: next(answers))


def test_an_export_says_what_it_wrote_and_how_near_it_is(as_onnx: Export, folder: Path) -> None:
    assert as_onnx.file == folder / "distilled.onnx"
    assert (as_onnx.model, as_onnx.format, as_onnx.compiled) == (DISTILLED, "onnx", False)
    assert (as_onnx.opset, as_onnx.img_size) == (18, (16, 16))
    assert as_onnx.bytes == as_onnx.file.stat().st_size
    assert (as_onnx.num_images, as_onnx.agreed, as_onnx.limit) == (8, 8, 1e-4)
    assert 0 < as_onnx.max_difference < 1e-5
    assert sorted(path.name for path in folder.iterdir() if "onnx" in path.name) == [
        "distilled.onnx"
    ]


def test_onnx_runtime_gives_the_mean_of_both_heads_for_any_batch(
    as_onnx: Export, distilled: ZooModel
) -> None:
    assert largest_difference(distilled, lambda x: by_onnxruntime(as_onnx.file, x)) < 1e-5


def test_openvino_gives_the_same_logits(as_onnx: Export, distilled: ZooModel) -> None:
    openvino = pytest.importorskip("openvino")
    # Without the hint it computes in bfloat16 where the processor can.
    compiled = openvino.Core().compile_model(
        str(as_onnx.file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    assert largest_difference(distilled, lambda x: torch.from_numpy(compiled(x.numpy())[0])) < 1e-5


def test_an_onnx_file_has_one_input_and_one_output_with_a_free_batch(as_onnx: Export) -> None:
    session = onnxruntime.InferenceSession(as_onnx.file, providers=["CPUExecutionProvider"])
    [images], [logits] = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape, images.type) == (
        "images",
        ["batch", 3, 16, 16],
        "tensor(float)",
    )
    assert (logits.name, logits.shape, logits.type) == ("logits", ["batch", 10], "tensor(float)")


def test_an_onnx_file_is_sound_and_whole(as_onnx: Export) -> None:
    import onnx

    model = onnx.load(as_onnx.file, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)]
    assert model.graph.name == DISTILLED
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_a_file_says_how_to_use_it_and_where_it_is_from(as_onnx: Export, as_pt2: Export) -> None:
    session = onnxruntime.InferenceSession(as_onnx.file, providers=["CPUExecutionProvider"])
    texts = session.get_modelmeta().custom_metadata_map
    assert json.loads(texts["preprocessing"]) == {
        "img_size": [16, 16],
        "resize": [16, 16],
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "color": "RGB",
        "scale": 1 / 255,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "layout": "NCHW",
        "dtype": "float32",
    }
    assert texts["labels"] == texts["folders"] == LABELS
    record = json.loads(Path(deit_zoo.manifest.manifest_path()).read_text())["checkpoints"][
        DISTILLED
    ]
    assert texts["source_sha256"] == record["sources"][0]["sha256"]
    assert texts["license"] == record["license"]
    assert (texts["name"], texts["opset"]) == (DISTILLED, "18")
    assert (texts["deit_zoo"], texts["torch"]) == (deit_zoo.__version__, str(torch.__version__))
    held = {key: "" for key in texts if key != "opset"}
    torch.export.load(as_pt2.file, extra_files=held)
    assert held == {key: text for key, text in texts.items() if key != "opset"}


def test_images_of_an_imagenet_model_are_resized_before_the_crop() -> None:
    network = deit_zoo.create("deit_tiny").eval()
    texts = exports.metadata(network, deit_zoo.transform(network))
    held = json.loads(texts["preprocessing"])
    assert (held["resize"], held["img_size"], held["crop_pct"]) == ([256, 256], [224, 224], 0.875)
    assert json.loads(texts["labels"])[0] == "tench, Tinca tinca"
    assert json.loads(texts["folders"])[0] == "n01440764"
    assert "source_sha256" not in texts  # random weights are from nowhere
    assert "license" not in texts


def test_a_file_names_no_folder_of_this_machine(as_onnx: Export, as_pt2: Export) -> None:
    here = str(Path(exports.__file__).parent).encode()
    assert here not in as_onnx.file.read_bytes()
    assert here not in as_pt2.file.read_bytes()


def test_the_same_model_gives_the_same_bytes(
    as_pt2: Export, distilled: ZooModel, tmp_path: Path
) -> None:
    again = export(distilled, tmp_path / "again.pt2")
    assert again.file.read_bytes() == as_pt2.file.read_bytes()
    assert again.sha256 == as_pt2.sha256


def test_a_program_runs_where_this_package_is_not(
    as_pt2: Export, distilled: ZooModel, tmp_path: Path
) -> None:
    labels, difference = alone(as_pt2.file, distilled, "export", tmp_path)
    assert labels == LABELS
    assert difference < 1e-5


@pytest.mark.slow
def test_a_compiled_program_runs_where_this_package_is_not(
    distilled: ZooModel, tmp_path: Path
) -> None:
    done = export(DISTILLED, tmp_path / "compiled.pt2", aot=True)
    assert (done.compiled, done.agreed) == (True, 8)
    labels, difference = alone(done.file, distilled, "aot", tmp_path)
    assert labels == LABELS
    assert difference < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_convnet_is_exported_too(kind: str, tmp_path: Path) -> None:
    done = export(CONVNET, tmp_path / f"convnet.{kind}")
    assert (done.num_images, done.agreed) == (8, 8)
    assert done.max_difference < 1e-5


@pytest.mark.slow
def test_a_model_of_imagenet_size_is_exported(tmp_path: Path) -> None:
    load.save_model(deit_zoo.create("deit_tiny"), tmp_path / "model.safetensors")
    done = export(str(tmp_path), tmp_path / "model.onnx")
    assert (done.model, done.num_images, done.img_size) == ("deit_tiny", 8, (224, 224))
    assert done.max_difference < 2e-5


def test_an_own_model_keeps_its_mode_and_precision(tmp_path: Path) -> None:
    model = deit_zoo.create(DISTILLED, pretrained=True, dtype=torch.bfloat16).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    done = export(model, tmp_path / "own.pt2")
    assert done.agreed == 8
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


def test_the_folder_of_a_fine_tuned_model_gives_its_own_classes(tmp_path: Path) -> None:
    model = deit_zoo.create("deit_pico_digits", num_classes=3, img_size=(8, 12))
    load.save_model(model, tmp_path / "model.safetensors", labels=["cat", "dog", "öwl"])
    done = export(str(tmp_path), tmp_path / "own.pt2")
    held = {"labels": "", "preprocessing": ""}
    program = torch.export.load(done.file, extra_files=held).module()
    assert held["labels"] == '["cat", "dog", "öwl"]'
    assert json.loads(held["preprocessing"])["img_size"] == [8, 12]
    assert program(torch.zeros(4, 3, 8, 12)).shape == (4, 3)


def test_images_of_ones_own_are_compared_on(digits_files: list[Path], tmp_path: Path) -> None:
    image = next(digits())[0]
    given = [digits_files[0], digits_files[1].read_bytes(), image, digits_files[0].parent]
    assert export(DISTILLED, tmp_path / "a.pt2", images=given).num_images == 3 + 11
    assert export(DISTILLED, tmp_path / "b.pt2", images=image).num_images == 1


@pytest.fixture
def digits_files(tmp_path: Path) -> list[Path]:
    (tmp_path / "photos").mkdir()
    files = [tmp_path / "photos" / f"{number}.png" for number in range(11)]
    for (image, _), file in zip(digits(), files, strict=False):
        image.save(file)
    return files


def batches() -> list[Tensor]:
    return [torch.zeros(1, 3), torch.stack([torch.ones(3), torch.full((3,), 2.0)])]


class Rising(torch.nn.Module):
    """Logits that are the pixels times 1, 2 and 3."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def test_a_comparison_finds_the_largest_difference_of_all_batches() -> None:
    found = compare(Rising(), lambda x: x * torch.tensor([1.0, 2.0, 2.5]), batches())
    assert found == (3, 3, 1.0)
    found = compare(Rising(), lambda x: x * torch.tensor([1.0, 9.0, 3.0]), batches())
    assert found == (3, 1, 14.0)


def test_a_comparison_with_what_is_no_number_passes_no_limit() -> None:
    answers = iter([torch.full((1, 3), float("nan")), torch.tensor([[1.0, 2, 3], [2, 4, 6]])])
    _, _, largest = compare(Rising(), lambda _: next(answers), batches())
    assert not largest <= float("inf")


def test_a_comparison_of_other_shapes_is_infinitely_far() -> None:
    # (1, 3) would spread over a batch of two.
    _, _, largest = compare(Rising(), lambda x: (x * torch.tensor([1.0, 2.0, 3.0]))[:1], batches())
    assert largest == float("inf")


def test_a_file_that_answers_otherwise_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "far.onnx"
    file.write_text("an older file", encoding="utf-8")
    with pytest.raises(DifferenceError) as raised:
        export(DISTILLED, file, limit=1e-9, overwrite=True)
    start, _, rest = str(raised.value).partition(" gives logits up to ")
    difference, _, rest = rest.partition(" ")
    assert start == f"{DISTILLED} as onnx"
    assert 1e-9 < float(difference) < 1e-5
    assert rest == (
        "from the model's on 8 images, and the limit is 1e-09; nothing was written, give another "
        "format or, if that is near enough, another limit"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["far.onnx"]
    assert file.read_text(encoding="utf-8") == "an older file"


def test_a_file_of_other_weights_is_not_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = exports._traced(deit_zoo.create(DISTILLED).eval())
    monkeypatch.setattr(exports, "_traced", lambda network: other)
    with pytest.raises(DifferenceError):
        export(DISTILLED, tmp_path / "wrong.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "options", "sentence"),
    [
        ("a.bin", {}, "no exported model is named a.bin; give FILE.onnx or FILE.pt2"),
        ("a", {"to": "pt2"}, "no exported model is named a; give FILE.pt2"),
        ("a.onnx", {"to": "pt2"}, "a.onnx is no pt2 file by its name; give FILE.pt2"),
        ("a.onnx", {"to": "tflite"}, "no export is named 'tflite'; give onnx or pt2"),
        (
            "a.onnx",
            {"limit": -1},
            "limit is -1; give the largest difference of a logit, such as 1e-4",
        ),
        (
            "a.onnx",
            {"limit": float("nan")},
            "limit is nan; give the largest difference of a logit, such as 1e-4",
        ),
        (
            "a.pt2",
            {"opset": 18},
            "a .pt2 file has no opset; give --to onnx, or leave out --opset",
        ),
        (
            "a.onnx",
            {"aot": True},
            "AOTInductor makes .pt2 files; give --to pt2, or leave out --aot",
        ),
        (
            "a.pt2",
            {"device": "moon"},
            "device 'moon' cannot be used here (torch knows none of this name)",
        ),
        (
            "a.onnx",
            {"device": "cuda"},
            "an ONNX file has no device; leave it out, the runtime chooses",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    file: str,
    options: dict[str, object],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZooError) as raised:
        export(DISTILLED, file, **options)  # type: ignore[arg-type]
    assert str(raised.value).startswith(sentence)
    assert list(tmp_path.iterdir()) == []


def test_a_trace_is_written_whatever_the_default_device_of_the_caller_is(tmp_path: Path) -> None:
    with torch.device("meta"):
        assert export(DISTILLED, tmp_path / "a.onnx", opset=17).agreed == 8


def test_a_single_class_is_said_to_have_a_probability_of_its_own() -> None:
    for num_classes, problem_type in ((1, "multi_label_classification"), (2, None)):
        model = deit_zoo.create(CONVNET, num_classes=num_classes)
        assert exports.metadata(model, transform_of(model)).get("problem_type") == problem_type


def test_the_path_of_ones_own_weights_is_exported_too(tmp_path: Path) -> None:
    deit_zoo.save(deit_zoo.create(CONVNET, pretrained=True), tmp_path / "mine.safetensors")
    assert export(tmp_path / "mine.safetensors", tmp_path / "a.pt2").agreed == 8


@pytest.mark.parametrize("opset", [15, 999])
def test_an_opset_that_cannot_be_is_refused(opset: int, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=rf"^opset is {opset}; give one from 16 to \d\d$"):
        export(DISTILLED, tmp_path / "a.onnx", opset=opset)


def small_cait() -> Any:
    torch.manual_seed(0)
    return deit_zoo.create("cait_xxs24_224", img_size=32, num_classes=10).eval()


@pytest.mark.parametrize(
    ("opset", "make"), [(16, small_cait), (17, lambda: DISTILLED), (20, lambda: DISTILLED)]
)
def test_other_runtimes_get_another_opset(
    opset: int, make: Callable[[], Any], tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    done = export(make(), tmp_path / "a.onnx", opset=opset)
    model = onnx.load(done.file)
    onnx.checker.check_model(model)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", opset)]
    assert (done.opset, done.agreed) == (opset, done.num_images)
    facts = {prop.key: prop.value for prop in model.metadata_props}
    assert json.loads(facts["labels"]) == list("0123456789")
    [shown] = [value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input]
    assert shown == "batch"


def test_weights_beyond_two_gigabytes_are_refused_for_onnx(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(exports, "ONNX_BYTES", 1_000_000)
    with pytest.raises(ZooError, match=r"an ONNX file holds 2; give --to pt2$"):
        export(DISTILLED, tmp_path / "a.onnx")


def test_a_place_where_nothing_can_be_put_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "b.pt2").mkdir()
    with pytest.raises(DataError, match=r"b\.pt2 is a folder; type --output FILE.pt2$"):
        export(DISTILLED, tmp_path / "b.pt2")
    with pytest.raises(DataError, match=r"^there is no folder .*none; make it"):
        export(DISTILLED, tmp_path / "none" / "a.pt2")


def test_models_without_logits_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.pt2"
    with pytest.raises(ZooError, match="has no head"):
        export(deit_zoo.create("deit_pico_digits", num_classes=0), file)
    odd = deit_zoo.create(DISTILLED)
    odd.head_dist = torch.nn.Linear(odd.embed_dim, 3)
    with pytest.raises(
        ZooError, match=r"two heads tell 10 and 3 classes apart; give both one number"
    ):
        export(odd, file)
    with pytest.raises(CheckpointError, match=r"was not made by deit_zoo\.create"):
        export(torch.nn.Linear(1, 1), file)
    with pytest.raises(
        ImageSizeError, match=r"has in_chans=1, and files are read as RGB: give model"
    ):
        export(deit_zoo.create("deit_pico_digits", in_chans=1), file)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png cannot be read as an image"):
        export(DISTILLED, tmp_path / "a.pt2", images=tmp_path / "photos")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no image"):
        export(DISTILLED, tmp_path / "a.pt2", images=tmp_path / "empty")
    with pytest.raises(DataError, match="there are no images to compare on"):
        export(DISTILLED, tmp_path / "a.pt2", images=[])


def test_a_compiled_program_needs_a_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ZooError) as raised:
        export(DISTILLED, tmp_path / "a.pt2", aot=True)
    assert str(raised.value) == (
        "AOTInductor needs a C++ compiler, and no-such-compiler is not on the PATH; install it, "
        "set CXX to another, or leave out --aot"
    )


def test_the_page_prepares_an_image_as_classify_does(distilled: ZooModel) -> None:
    transform = transform_of(distilled)
    how = json.loads(exports.metadata(distilled, transform)["preprocessing"])
    page = re.search(
        r"^def prepare.*?(?=\n\n\n)", (ROOT / "docs/export.md").read_text(), re.M | re.S
    )
    assert page is not None
    names: dict[str, Any] = {"how": how, "np": np, "Image": Image, "ImageOps": ImageOps}
    exec(page[0], names)
    pixels = np.random.default_rng(0).integers(0, 256, (328, 27, 3), np.uint8)
    image = Image.fromarray(pixels)  # so tall that Pillow 13 would take its rows first
    assert np.abs(names["prepare"](image) - transform(image).numpy()).max() < 1e-5
    image.getexif()[0x112] = 6
    assert np.abs(names["prepare"](image) - transform(image).numpy()).max() < 1e-5
