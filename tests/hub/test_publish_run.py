"""A run is a model wherever one is asked for, and can be given to others as it is."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelCard

import deit_zoo as zoo
from deit_zoo.data.digits import digits
from deit_zoo.errors import CheckpointError, IntegrityError, UnknownModelError, ZooError
from deit_zoo.files import digest
from deit_zoo.hub.config import start_record
from deit_zoo.hub.publish_run import build_run
from deit_zoo.registry.names import resolve
from support.command import deit_zoo, python, sentence
from support.hub_server import TOKEN, HubServer

REPO = "me/photos"
NAME = "deit_pico_digits"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of two digits, under names of their own."""
    folder = tmp_path_factory.mktemp("photos")
    names = {"3": "drei", "7": "sieben"}
    count = dict.fromkeys(names, 0)
    for image, label in digits():
        if label in names and count[label] < 16:
            place = folder / ("val" if count[label] % 4 == 0 else "train") / names[label]
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{count[label]}.png")
            count[label] += 1
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned model of the two."""
    cwd = tmp_path_factory.mktemp("run")
    words = ("finetune", NAME, "--data", photos, "--gpus", 0, "--epochs", 1, "--workers", 0)
    done = deit_zoo(*map(str, words), "--output", "photos", env={}, cwd=cwd)
    assert done.status == 0, done.err
    return cwd / "photos"


@pytest.fixture(scope="module")
def published(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a dry run of publishing it leaves."""
    folder = tmp_path_factory.mktemp("published")
    words = (
        "weights",
        "publish",
        "./photos",
        "--repo",
        REPO,
        "--dry-run",
        "--output",
        folder / "a",
    )
    done = deit_zoo(*map(str, words), env={}, cwd=run.parent)
    assert done.status == 0, done.err
    return folder / "a"


def test_a_run_needs_no_name(run: Path) -> None:
    for model in (zoo.create(run), zoo.create(str(run)), zoo.create(checkpoint=run)):
        assert model.spec is not None
        assert (model.spec.name, model.labels) == (NAME, ("drei", "sieben"))


def test_timm_loads_a_run(run: Path) -> None:
    theirs = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
    x = torch.randn(4, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(x), zoo.create(run)(x), atol=1e-5, rtol=0)
    assert theirs.pretrained_cfg["label_names"] == ["drei", "sieben"]


def test_transformers_loads_a_run(run: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(run).eval()
    x = torch.randn(4, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(x).logits, zoo.create(run)(x), atol=1e-5, rtol=0)
    assert theirs.config.id2label == {0: "drei", 1: "sieben"}


def test_info_tells_of_a_run(run: Path) -> None:
    known = zoo.info(str(run))
    assert (known.name, known.labels, known.img_size) == (NAME, ("drei", "sieben"), 16)
    assert known.file is not None
    assert known.file.sha256 == digest(run / "model.safetensors")
    assert known.num_params == 317_690 - 8 * 81  # eight classes fewer
    done = deit_zoo("info", str(run), env={})
    assert "classes    2: drei, sieben" in done.out
    facts = json.loads(deit_zoo("info", str(run), "--json", env={}).out)
    assert facts["labels"] == ["drei", "sieben"]


def test_verify_reads_a_run_by_its_receipt(run: Path, tmp_path: Path) -> None:
    rows = json.loads(deit_zoo("weights", "verify", str(run), "--json", env={}).out)
    assert [(row["status"], row["proof"]) for row in rows] == 2 * [("whole", "receipt.json")]
    broken = shutil.copytree(run, tmp_path / "broken")
    with (broken / "model.safetensors").open("ab") as stream:
        stream.write(b"\0")
    done = deit_zoo("weights", "verify", str(broken), env={})
    assert done.status == 1
    assert "is expected; train it again" in done.err


def test_attention_and_benchmark_take_a_run(run: Path, photos: Path, tmp_path: Path) -> None:
    image = next((photos / "val" / "drei").iterdir())
    assert zoo.attention_map(image, str(run)).maps.shape == (1, 4, 4, 4)
    words = ("attention", image, "--model", run, "--json")
    assert deit_zoo(*map(str, words), env={}, cwd=tmp_path).status == 0
    words = ("benchmark", run, "--quick", "--precision", "float32", "-b", 1, "--json")
    done = deit_zoo(*map(str, words), env={}, cwd=tmp_path)
    assert done.status == 0, done.err
    assert str(run) in done.out


def test_a_run_is_trained_further_and_its_descent_is_known(run: Path, photos: Path) -> None:
    words = ("finetune", run, "--data", photos, "--gpus", 0, "--epochs", 1, "--workers", 0)
    done = deit_zoo(*map(str, words), "--set", "lr=0", env={}, cwd=run.parent)
    assert done.status == 0, done.err
    further = run.parent / "runs" / "photos_custom"
    text = (further / "receipt.json").read_text()
    recipe, began = json.loads(text)["plan"]["recipe"], json.loads(text)["start"]
    assert str(run.parent) not in text
    sha256 = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    assert began == {"name": NAME, "published": NAME, "sha256": sha256}
    assert (recipe["model"], recipe["init_from"]) == (NAME, f".../{run.name}")
    # With the same classes the head goes on, too; at a rate of almost 0 nothing changes much.
    before, after = zoo.create(run), zoo.create(further)
    assert (before.head.weight - after.head.weight).abs().max() < 1e-3
    start = start_record(str(further))
    assert start is not None
    assert start.name == NAME


def test_a_run_that_goes_on_without_data_has_its_own(run: Path, photos: Path) -> None:
    words = ("finetune", "./photos", "--gpus", 0, "--epochs", 1, "--workers", 0, "--dry-run")
    done = deit_zoo(*map(str, words), env={}, cwd=run.parent)
    assert done.status == 0, done.err
    assert "folder, 24 training images of 16 px" in done.out
    assert f"output        {Path('runs', 'photos_custom')}" in done.out
    for name in (NAME, "runs/none"):
        done = deit_zoo("finetune", name, "--gpus", 0, env={}, cwd=run.parent)
        assert sentence(done) == (
            f"{name} is no run that is here, with images of its own; type --data DIR with a folder "
            "of class folders, or give such a run"
        )


def test_a_run_may_begin_from_weights_without_a_head(photos: Path, tmp_path: Path) -> None:
    state = zoo.create(NAME, pretrained=True, num_classes=0).state_dict()
    file = tmp_path / "dino.pth"
    torch.save({"model": {f"backbone.{key}": value for key, value in state.items()}}, file)
    words = ("finetune", NAME, "--data", photos, "--gpus", 0, "--epochs", 1, "--workers", 0)
    done = deit_zoo(
        *map(str, words), "--set", "init_from=dino.pth", "--output", "run", env={}, cwd=tmp_path
    )
    assert done.status == 0, done.err
    assert zoo.create(tmp_path / "run").labels == ("drei", "sieben")


# Publishing.


def test_every_file_of_the_repository_is_there_and_none_of_the_images(
    published: Path, run: Path
) -> None:
    assert {file.name for file in published.iterdir()} == {
        "README.md",
        "SHA256SUMS",
        "config.json",
        "curve.png",
        "log.jsonl",
        "model.safetensors",
        "receipt.json",
    }
    for name in ("model.safetensors", "receipt.json", "log.jsonl", "config.json"):
        assert (published / name).read_bytes() == (run / name).read_bytes()


def test_a_receipt_of_an_older_version_is_published_without_its_paths(
    run: Path, tmp_path: Path
) -> None:
    former = Path(shutil.copytree(run, tmp_path / "run"))
    receipt = json.loads((run / "receipt.json").read_text())
    receipt["plan"]["recipe"]["init_from"] = "deit_pico_digits@/home/me/start.safetensors"
    receipt["teacher"] = {"checkpoint": "/home/me/teacher"}
    (former / "receipt.json").write_text(json.dumps(receipt))
    build_run(former, REPO, tmp_path / "published")
    text = (tmp_path / "published" / "receipt.json").read_text()
    assert "/home/me" not in text
    assert "deit_pico_digits@.../start.safetensors" in text


@pytest.mark.parametrize(
    "change", [{"reached": {"top1": "x", "num_images": 8}}, {"plan": None}, {"start": 5}]
)
def test_a_forged_receipt_is_one_sentence(
    change: dict[str, Any], run: Path, tmp_path: Path
) -> None:
    former = Path(shutil.copytree(run, tmp_path / "run"))
    receipt = json.loads((run / "receipt.json").read_text())
    (former / "receipt.json").write_text(json.dumps(receipt | change))
    with pytest.raises(CheckpointError, match="it has no whole receipt"):
        build_run(former, REPO, tmp_path / "published")


def test_a_run_of_another_build_is_no_model_of_timms(tmp_path: Path) -> None:
    model = zoo.create("deit3_small", blocks="1x2", stem="hmlp", img_size=32, num_classes=2)
    (tmp_path / "run").mkdir()
    sha256 = zoo.save(model, tmp_path / "run" / "model.safetensors", labels=["cat", "dog"])
    receipt = {
        "reached": {"top1": 50.0, "loss": 0.7, "num_images": 8},
        "plan": {"num_images": 24, "recipe": {"epochs": 1, "source": "a test"}},
        "sha256": {"model.safetensors": sha256},
    }
    (tmp_path / "run" / "receipt.json").write_text(json.dumps(receipt))
    build_run(tmp_path / "run", REPO, tmp_path / "published")
    card = ModelCard.load(tmp_path / "published" / "README.md")
    assert (card.data.library_name, "import timm" in card.text) == ("deit_zoo", False)
    assert "DeiT III (deit3_small)" in card.text
    config = json.loads((tmp_path / "published" / "config.json").read_text())
    assert config["architecture"] == "deit3_small"  # which timm has not


def test_a_log_that_is_not_the_one_of_the_receipt_is_not_published(
    run: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "run"))
    log = (other / "log.jsonl").read_bytes()
    (other / "log.jsonl").write_bytes(log[:-40])
    with pytest.raises(
        IntegrityError, match=r"log\.jsonl has SHA-256 .* expected; type `deit-zoo "
    ):
        build_run(other, REPO, tmp_path / "published")
    assert not (tmp_path / "published").exists()


def test_the_card_tells_classes_figures_start_and_its_licence(published: Path, run: Path) -> None:
    card = ModelCard.load(published / "README.md")
    reached = json.loads((run / "receipt.json").read_text())["reached"]
    assert (card.data.license, card.data.model_name) == ("apache-2.0", "photos")
    assert card.data.eval_results[0].metric_value == reached["top1"]
    assert "for 2 classes: drei, sieben." in card.text
    assert f'deit_zoo.create("hf://{REPO}")' in card.text
    assert f"| validation images | 8 | {reached['top1']:.2f} |" in card.text
    assert f"It began from {NAME}, [arXiv:2012.12877]" in card.text
    assert digest(published / "model.safetensors") in card.text
    assert "top-5" not in card.text  # of two classes it says nothing


def test_the_licence_may_be_given(run: Path, tmp_path: Path) -> None:
    build_run(run, REPO, tmp_path / "a", license="cc-by-4.0")
    assert ModelCard.load(tmp_path / "a" / "README.md").data.license == "cc-by-4.0"
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["pretrained_cfg"]["license"] == "cc-by-4.0"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A Hub with nothing on it."""
    with HubServer() as server:
        yield server


def test_what_was_uploaded_is_created_by_its_address(
    run: Path, hub: HubServer, tmp_path: Path
) -> None:
    environment = hub.environment(tmp_path) | {"HF_TOKEN": TOKEN}
    done = deit_zoo("weights", "publish", str(run), "--repo", REPO, env=environment)
    assert done.status == 0, done.err
    code = (
        "import deit_zoo, timm, torch\n"
        f"ours = deit_zoo.create('hf://{REPO}')\n"
        f"theirs = timm.create_model('hf-hub:{REPO}', pretrained=True).eval()\n"
        "x = torch.randn(2, 3, 16, 16)\n"
        "print(torch.allclose(ours(x), theirs(x), atol=1e-5), *ours.labels)\n"
    )
    assert python(code, env=environment).split() == ["True", "drei", "sieben"]


def test_what_is_no_run_is_one_sentence(tmp_path: Path) -> None:
    done = deit_zoo("weights", "publish", "runs/none", "--repo", REPO, "--dry-run", env={})
    assert sentence(done) == (
        "runs/none is no run that ended: it has no whole receipt.json; give the --output of "
        "deit-zoo finetune or reproduce"
    )
    with pytest.raises(CheckpointError, match="is no run that ended"):
        build_run(tmp_path, REPO, tmp_path / "a")


def test_the_licence_of_a_published_model_is_its_own() -> None:
    words = ("weights", "publish", NAME, "--repo", REPO, "--dry-run", "--license", "mit")
    assert "--license is of a run" in sentence(deit_zoo(*words, env={}))


@pytest.mark.parametrize("word", ["runs/none", "./none", "a\\b", "none.safetensors"])
def test_where_only_a_name_will_do_a_path_is_called_a_path(word: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        resolve(word)
    assert str(caught.value) == (
        f"{word!r} is a path, and here a model's name is wanted; `deit-zoo list` shows all 38"
    )


@pytest.mark.parametrize("word", ["timm/vit_nothing", "facebook/deit-huge", "deit_smal"])
def test_a_word_that_others_give_models_is_still_a_name(word: str) -> None:
    with pytest.raises(UnknownModelError, match=r"no model is named .*; did you mean"):
        resolve(word)


def test_a_run_that_is_not_there_is_a_path_everywhere() -> None:
    for call in (zoo.info, zoo.create, lambda path: zoo.attention_map("a.png", path)):
        with pytest.raises(ZooError, match=r"^checkpoint 'runs/none' does not exist; give a"):
            call("runs/none")
