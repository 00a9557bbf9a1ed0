"""Whatever can teach: found, checked before the first batch, and shown the student's images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import deit_zoo
from deit_zoo.errors import CheckpointError, OfflineError, RecipeError
from deit_zoo.files import ASSETS, digest
from deit_zoo.manifest import IMAGENET_MEAN, IMAGENET_STD
from deit_zoo.models.deit import VisionTransformer
from deit_zoo.recipes.digits import DEIT_PICO_DISTILLED
from deit_zoo.recipes.recipe import Recipe
from deit_zoo.training.losses import criterion_for
from deit_zoo.training.optim import optimizer_for
from deit_zoo.training.teacher import Teacher, teacher_for
from deit_zoo.weights import cache
from deit_zoo.weights.load import save_model

CPU = torch.device("cpu")
IMAGES = torch.linspace(-2, 2, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
# timm's smallest: a convnet of ImageNet's normalisation, one of another, and a ViT of 160 pixels.
SAME, OTHER, FIXED = "test_efficientnet", "test_resnet", "test_vit"


def recipe_of(teacher: str, **changes: Any) -> Recipe:
    return replace(DEIT_PICO_DISTILLED, teacher=teacher, **changes)


def found(teacher: str, num_classes: int = 10, **changes: Any) -> Teacher:
    return teacher_for(recipe_of(teacher, **changes), num_classes, CPU)


def refused(kind: type[Exception], teacher: str, num_classes: int = 10, **changes: Any) -> str:
    with pytest.raises(kind) as caught:
        found(teacher, num_classes, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(teacher: Teacher, network: torch.nn.Module) -> None:
    """Both say the same of the images, to the bit."""
    with torch.no_grad():
        assert torch.equal(teacher(IMAGES), network.eval()(IMAGES))


def seen_by(teacher: Teacher) -> list[Tensor]:
    """What its network is shown from now on."""
    seen: list[Tensor] = []
    teacher.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    return seen


def written(folder: Path, name: str, num_classes: int = 10) -> tuple[torch.nn.Module, Path]:
    """A network of timm's with random weights, and the file that holds them."""
    network = timm.create_model(name, num_classes=num_classes).eval()
    file = folder / f"{name}.safetensors"
    save_file(network.state_dict(), file)
    return network, file


@pytest.fixture
def on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub, read at its places in huggingface_hub's code."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def cached(folder: Path, repo: str) -> Path:
    """The folder of the one snapshot that a repository has in the cache."""
    held = folder / f"models--{repo.replace('/', '--')}"
    snapshot = held / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (held / "refs").mkdir()
    (held / "refs" / "main").write_text("a" * 40)
    return snapshot


def repository(folder: Path, name: str, **changes: Any) -> tuple[torch.nn.Module, Path]:
    """someone/teacher as timm publishes it, of ImageNet's normalisation: network and file."""
    snapshot = cached(folder, "someone/teacher")
    network, file = written(snapshot, name)
    images = {"input_size": [3, 160, 160], "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    facts: dict[str, Any] = {"architecture": name, "num_classes": 10, "pretrained_cfg": images}
    facts["pretrained_cfg"] |= {"num_classes": 10, "fixed_input_size": False}
    facts["pretrained_cfg"] |= {k: v for k, v in changes.items() if k != "model_args"}
    facts["model_args"] = changes.get("model_args", {})
    (snapshot / "config.json").write_text(json.dumps(facts))
    return network, file.rename(snapshot / "model.safetensors")


@pytest.mark.parametrize("spelling", ["convnet_pico_digits", "ConvNet-Pico-Digits"])
def test_a_name_of_the_zoo_is_its_verified_checkpoint(spelling: str) -> None:
    teacher = found(spelling)
    reference = deit_zoo.create("convnet_pico_digits", pretrained=True)
    assert_same(teacher, reference)
    assert teacher.facts == {
        "name": "convnet_pico_digits",
        "source": "manifest",
        "sha256": digest(ASSETS / "convnet_pico_digits.safetensors"),
    }


def test_a_teacher_is_frozen_and_in_eval_mode() -> None:
    teacher = found("deit_pico_distilled_digits")
    assert not teacher.network.training
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    assert not teacher(IMAGES.clone().requires_grad_()).requires_grad
    assert teacher(IMAGES).shape == (2, 10)


def test_a_teacher_sees_the_very_tensor_of_the_student() -> None:
    teacher = found("convnet_pico_digits")
    seen = seen_by(teacher)
    teacher(IMAGES)
    assert seen[0] is IMAGES


def test_a_teacher_of_the_zoo_is_built_at_the_student_s_image_size() -> None:
    teacher = found("deit_pico_digits", img_size=24)
    assert teacher(torch.zeros(2, 3, 24, 24)).shape == (2, 10)


def test_a_teacher_of_the_zoo_may_keep_its_own_image_size() -> None:
    teacher = found("deit_pico_digits", img_size=24, teacher_input="own")
    assert teacher.img_size == (16, 16)
    assert teacher(torch.zeros(2, 3, 24, 24)).shape == (2, 10)


@pytest.mark.parametrize("as_folder", [True, False], ids=["folder", "file"])
def test_what_a_run_left_is_a_teacher(tmp_path: Path, as_folder: bool) -> None:
    model = deit_zoo.create("convnet_pico_digits", num_classes=3)
    file = tmp_path / "model.safetensors"
    sha256 = save_model(model, file)
    place = str(tmp_path if as_folder else file)
    teacher = found(place, num_classes=3)
    assert_same(teacher, model)
    assert teacher.facts == {"name": "convnet_pico_digits", "source": place, "sha256": sha256}


def test_a_relative_folder_is_a_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "first").mkdir(parents=True)
    save_model(
        deit_zoo.create("deit_pico_digits"), tmp_path / "runs" / "first" / "model.safetensors"
    )
    monkeypatch.chdir(tmp_path)
    assert found("runs/first").facts["name"] == "deit_pico_digits"


def test_a_folder_called_like_a_model_is_meant_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "convnet_pico_digits"
    folder.mkdir()
    save_model(deit_zoo.create("deit_pico_digits"), folder / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    assert found("./convnet_pico_digits").facts["name"] == "deit_pico_digits"
    assert found("convnet_pico_digits").facts["source"] == "manifest"


def test_a_name_of_the_zoo_with_a_file_is_that_model_with_those_weights(tmp_path: Path) -> None:
    model = deit_zoo.create("deit_pico_digits", num_classes=4).eval()
    file = tmp_path / "mine.safetensors"
    save_file(model.state_dict(), file)  # no metadata: the file does not say what it is
    teacher = found(f"deit-pico-digits@{file}", num_classes=4)
    assert_same(teacher, model)
    assert teacher.facts["sha256"] == digest(file)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_name_of_timm_with_a_file_is_that_network_with_those_weights(
    tmp_path: Path, suffix: str
) -> None:
    network, file = written(tmp_path, SAME, num_classes=7)
    if suffix == "pth":
        file = tmp_path / "model.pth"
        torch.save({"state_dict": network.state_dict(), "epoch": 3}, file)
    teacher = found(f"{SAME}@{file}", num_classes=7)
    assert_same(teacher, network)
    assert teacher.facts == {
        "name": "test_efficientnet.r160_in1k",
        "source": str(file),
        "sha256": digest(file),
    }


def test_a_repository_of_timm_s_is_a_teacher(on_the_hub: Path) -> None:
    network, file = repository(on_the_hub, SAME)
    for spelling in ("someone/teacher", "hf://someone/teacher", "hf_hub:someone/teacher"):
        teacher = found(spelling)
        assert_same(teacher, network)
        assert teacher.facts == {
            "name": SAME,
            "source": "someone/teacher",
            "sha256": digest(file),
        }


def test_a_repository_of_the_zoo_s_is_a_teacher(on_the_hub: Path) -> None:
    snapshot = cached(on_the_hub, "someone/first_run")
    model = deit_zoo.create("deit_pico_digits").eval()
    save_model(model, snapshot / "model.safetensors")
    teacher = found("hf-hub:someone/first_run")
    assert_same(teacher, model)
    assert teacher.facts["source"] == "hf://someone/first_run"


def test_a_repository_that_neither_wrote_is_refused(on_the_hub: Path) -> None:
    snapshot = cached(on_the_hub, "someone/transformer")
    _, file = written(snapshot, SAME)
    file.rename(snapshot / "model.safetensors")
    (snapshot / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    assert refused(RecipeError, "someone/transformer") == (
        "timm cannot build hf-hub:someone/transformer from its config.json ('architecture'); give "
        "a repository that timm or this zoo wrote, or NAME@FILE"
    )


def test_a_name_of_timm_is_its_own_weights(on_the_hub: Path) -> None:
    snapshot = cached(on_the_hub, "timm/test_efficientnet.r160_in1k")
    network, file = written(snapshot, SAME, num_classes=1000)
    file = file.rename(snapshot / "model.safetensors")
    teacher = found(SAME, num_classes=1000)
    assert_same(teacher, network)
    assert teacher.facts == {
        "name": "test_efficientnet.r160_in1k",
        "source": "timm/test_efficientnet.r160_in1k",
        "sha256": digest(file),
    }


def test_the_digest_is_that_of_the_file_that_timm_reads(
    on_the_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEIT_ZOO_CACHE", str(tmp_path / "zoo"))
    repo = "timm/test_efficientnet.r160_in1k"
    snapshot = cached(on_the_hub, repo)
    _, file = written(snapshot, SAME, num_classes=1000)
    file = file.rename(snapshot / "model.safetensors")
    # The zoo fetched `main` when that was another commit.
    earlier = snapshot.with_name("b" * 40)
    earlier.mkdir()
    (earlier / "model.safetensors").write_bytes(b"other weights")
    record = {"commit": "b" * 40, "sha256": digest(earlier / "model.safetensors")}
    cache.write_record("stated", f"{repo}@main/model.safetensors", record)
    assert found(SAME, num_classes=1000).facts["sha256"] == digest(file)


def test_other_normalisation_is_refused_unless_the_teacher_sees_its_own(tmp_path: Path) -> None:
    _, file = written(tmp_path, OTHER)
    assert refused(RecipeError, f"{OTHER}@{file}") == (
        f"the teacher test_resnet@{file} takes images of mean (0.5, 0.5, 0.5) and std "
        "(0.5, 0.5, 0.5), the student those of (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225); "
        "type --set teacher_input=own"
    )


def test_a_teacher_s_own_images_have_its_normalisation(tmp_path: Path) -> None:
    # A pixel p is (p - 0.485) / 0.229 in red to the student and (p - 0.5) / 0.5 to the teacher.
    _, file = written(tmp_path, OTHER)
    teacher = found(f"{OTHER}@{file}", teacher_input="own")
    seen = seen_by(teacher)
    pixels = torch.tensor([0.0, 0.5, 1.0])
    means, stds = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    teacher(((pixels - means) / stds)[None, :, None, None].expand(1, 3, 16, 16))
    expected = torch.tensor([-1.0, 0.0, 1.0])[None, :, None, None].expand(1, 3, 16, 16)
    torch.testing.assert_close(seen[0], expected, atol=1e-6, rtol=0.0)


def test_a_teacher_s_own_images_have_the_one_size_that_it_takes(tmp_path: Path) -> None:
    # Constant images stay constant, whatever the size.
    _, file = written(tmp_path, FIXED)
    teacher = found(f"{FIXED}@{file}", teacher_input="own")
    seen = seen_by(teacher)
    logits = teacher(torch.zeros(2, 3, 16, 16))
    assert logits.shape == (2, 10)
    expected = torch.tensor([-0.03, -0.088, -0.188])[None, :, None, None].expand(2, 3, 160, 160)
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=0.0)


def test_own_images_are_made_smaller_as_pillow_does() -> None:
    # Bicubic over all the pixels that a smaller one stands for, as in the evaluation transform.
    teacher = found("deit_pico_digits", img_size=64, teacher_input="own")
    seen = seen_by(teacher)
    noise = torch.randn(64, 64)
    teacher(noise.expand(1, 3, 64, 64))
    small = Image.fromarray(noise.numpy()).resize((16, 16), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(small)).expand(1, 3, 16, 16)
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=0.0)


def test_own_images_of_the_same_kind_are_the_student_s_bit_for_bit() -> None:
    same = found("convnet_pico_digits")(IMAGES)
    own = found("convnet_pico_digits", teacher_input="own")(IMAGES)
    assert torch.equal(same, own)


def test_another_fixed_size_is_refused_unless_the_teacher_sees_its_own(on_the_hub: Path) -> None:
    repository(on_the_hub, FIXED, fixed_input_size=True)
    assert refused(RecipeError, "someone/teacher") == (
        "the teacher someone/teacher takes images of 160x160 pixels alone, the student those of "
        "16x16; type --set teacher_input=own"
    )
    assert found("someone/teacher", teacher_input="own")(IMAGES).shape == (2, 10)


def test_another_number_of_classes_is_refused() -> None:
    assert refused(RecipeError, "convnet_pico_digits", num_classes=37) == (
        "the teacher convnet_pico_digits knows 10 classes, the student 37; fine-tune it on these "
        "classes first, or choose another"
    )


def test_a_network_without_a_head_is_refused(tmp_path: Path) -> None:
    network = timm.create_model(SAME, num_classes=0)
    save_file(network.state_dict(), tmp_path / "headless.safetensors")
    message = refused(CheckpointError, f"{SAME}@{tmp_path / 'headless.safetensors'}")
    assert message == (
        f"{tmp_path / 'headless.safetensors'} does not fit timm's test_efficientnet: "
        "classifier.bias, classifier.weight are missing, unexpected or of another shape; give "
        "the architecture that it was saved of"
    )


def test_a_file_that_does_not_say_what_it_is_is_refused(tmp_path: Path) -> None:
    _, file = written(tmp_path, SAME)
    assert refused(CheckpointError, str(file)) == (
        f"{file} does not say which model it is; give the teacher as NAME@{file}"
    )


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing.safetensors"
    for teacher in (str(missing), f"deit_pico_digits@{missing}", f"{SAME}@{missing}"):
        message = refused(CheckpointError, teacher)
        assert message.startswith(f"checkpoint '{missing}' does not exist; give ")


def test_what_nobody_knows_is_refused_with_what_a_teacher_can_be() -> None:
    message = refused(RecipeError, "regnety_16O")
    assert message.startswith(
        "teacher is 'regnety_16O', which neither the zoo nor timm knows; give a name such as "
        "regnety_160_deit, "
    )
    assert ", regnety_160, " in message
    assert message.endswith(", NAME@FILE for weights of yours, a folder of a run, or hf://ORG/REPO")


@pytest.mark.parametrize("teacher", ["convnet_pico_digits@", "test_vit@", "@", ""])
def test_half_a_teacher_is_refused(teacher: str) -> None:
    message = refused(RecipeError, teacher)
    assert message.startswith(f"teacher is {teacher!r}, which neither the zoo nor timm knows; ")


def test_an_architecture_without_weights_is_refused() -> None:
    assert refused(RecipeError, "test_mambaout") == (
        "timm has no weights of the name 'test_mambaout'; give yours as test_mambaout@FILE"
    )


def test_a_name_of_timm_without_a_network_is_one_sentence() -> None:
    assert refused(OfflineError, OTHER, num_classes=1000) == (
        "timm's weights of test_resnet are not on this machine and HF_HUB_OFFLINE is set; fetch "
        "them where there is a network, or give yours as NAME@FILE"
    )


@pytest.mark.parametrize("teacher", ["hf://nobody/nothing", "nobody/nothing", "deit_small"])
def test_what_is_not_on_this_machine_is_one_sentence_without_a_network(teacher: str) -> None:
    message = refused(OfflineError, teacher, num_classes=1000)
    assert "is not on this machine" in message or "are not on this machine" in message


def test_images_that_a_network_cannot_read_are_refused_before_the_first_batch(
    on_the_hub: Path,
) -> None:
    repository(on_the_hub, "test_convnext")  # its last stage halves one pixel
    message = refused(RecipeError, "someone/teacher")
    assert message.startswith("the teacher someone/teacher cannot read images of 16x16 pixels (")
    assert message.endswith("); choose another")


def test_a_network_that_gives_no_logits_is_refused_before_the_first_batch(on_the_hub: Path) -> None:
    # Without pooling timm's ViT answers for each of its 100 patches and its class token.
    args = {"global_pool": ""}
    repository(on_the_hub, FIXED, fixed_input_size=True, model_args=args)
    message = refused(RecipeError, "someone/teacher", teacher_input="own")
    assert message.startswith("the teacher someone/teacher answers an image with a tensor of (1, ")
    assert message.endswith(", 10), not with 10 logits; choose a classifier")


def test_a_student_with_a_fresh_head_learns_from_a_teacher_of_its_classes(tmp_path: Path) -> None:
    # Fine-tuning with distillation: both heads are new, and both move.
    save_model(
        deit_zoo.create("convnet_pico_digits", num_classes=3), tmp_path / "model.safetensors"
    )
    student = deit_zoo.create("deit_pico_distilled_digits", pretrained=True, num_classes=3)
    assert isinstance(student, VisionTransformer)
    recipe = recipe_of(str(tmp_path), lr=1e-3)
    taught = teacher_for(recipe, 3, CPU)(IMAGES).argmax(dim=1)
    optimizer = optimizer_for(student.train(), recipe)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    targets = torch.eye(3)[:2]
    torch.autograd.backward(criterion_for(recipe)(student(IMAGES), taught, targets))
    optimizer.step()
    after = student.state_dict()
    for key in ("head.weight", "head_dist.weight", "dist_token", "blocks.0.attn.qkv.weight"):
        assert not torch.equal(before[key], after[key]), key
