"""`weights publish`: a repository that deit_zoo, timm, sha256sum and the Hub's card reader read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard

import deit_zoo as zoo
from deit_zoo.files import ASSETS, digest
from deit_zoo.hub import publish
from deit_zoo.hub.publish import model_card
from deit_zoo.manifest import Source, manifest_record
from deit_zoo.registry import MODELS
from deit_zoo.weights.formats import to_file_keys
from support.command import deit_zoo, python, sentence
from support.hub_server import TOKEN, HubServer
from support.tables import each_row

NAME = "deit_pico_distilled_digits"
REPO = "org/pico"
TIMM_LOADS = [name for name, spec in MODELS.items() if spec.family != "convnet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a dry run of the distilled embedded model leaves."""
    cwd = tmp_path_factory.mktemp("publish")
    arguments = ("weights", "publish", NAME, "--repo", REPO, "--dry-run")
    done = deit_zoo(*arguments, env={"DEIT_ZOO_CACHE": str(cwd / "zoo")}, cwd=cwd)
    assert done.status == 0, done.err
    files = sorted((cwd / "publish" / NAME).iterdir())
    assert done.out.splitlines() == [str(file.relative_to(cwd)) for file in files]
    return cwd / "publish" / NAME


def test_a_dry_run_leaves_every_file_of_the_repository(folder: Path) -> None:
    assert {file.name for file in folder.iterdir()} == {
        "README.md",
        "SHA256SUMS",
        "config.json",
        "curve.png",
        "log.jsonl",
        "model.safetensors",
        "receipt.json",
    }
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_weights_are_the_very_bytes(folder: Path) -> None:
    assert digest(folder / "model.safetensors") == manifest_record(NAME).sha256
    for ours, theirs in (("log.jsonl", "log.jsonl"), ("receipt.json", "receipt.json")):
        assert (folder / theirs).read_bytes() == (ASSETS / f"{NAME}.{ours}").read_bytes()


def test_sha256sums_lists_every_other_file_with_its_digest(folder: Path) -> None:
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    listed = dict(reversed(line.split("  ")) for line in lines)
    others = {file.name: digest(file) for file in folder.iterdir() if file.name != "SHA256SUMS"}
    assert listed == others


def test_the_receipt_vouches_for_the_weights_and_the_log_beside_it(folder: Path) -> None:
    stated = json.loads((folder / "receipt.json").read_text())["sha256"]
    assert stated == {name: digest(folder / name) for name in ("model.safetensors", "log.jsonl")}


def test_timm_loads_it_strictly_with_equal_logits(folder: Path) -> None:
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    ours = zoo.create(NAME, checkpoint=folder)
    x = torch.randn(4, 3, 16, 16)
    with torch.inference_mode():
        assert torch.allclose(theirs(x), ours(x), atol=1e-5)
    assert theirs.pretrained_cfg["classifier"] == ["head", "head_dist"]
    data = timm.data.resolve_model_data_config(theirs)
    assert (data["input_size"], data["crop_pct"]) == ((3, 16, 16), 1.0)


@pytest.mark.slow
@each_row("name", TIMM_LOADS)
def test_timm_builds_every_published_model_from_its_configuration(
    name: str, tmp_path: Path
) -> None:
    spec = MODELS[name]
    text = json.dumps(publish.config(spec, manifest_record(name)))
    config = json.loads(text)
    (tmp_path / "config.json").write_text(text)
    with torch.device("meta"):
        theirs = timm.create_model(f"local-dir:{tmp_path}")
        ours = spec.build(in_chans=3, drop_path_rate=0.0)
    assert theirs.num_features == config["num_features"]
    assert {key: value.shape for key, value in theirs.state_dict().items()} == {
        key: value.shape for key, value in to_file_keys(ours.state_dict(), spec).items()
    }
    assert config["pretrained_cfg"]["input_size"] == [3, spec.img_size, spec.img_size]


def test_the_front_matter_is_what_the_hub_reads(folder: Path) -> None:
    data = ModelCard.load(folder / "README.md").data
    assert data.license == "apache-2.0"
    assert data.library_name == "timm"
    assert data.pipeline_tag == "image-classification"
    assert {"deit_zoo", "deit", "vision-transformer"} <= set(data.tags)
    assert (data.datasets, data.metrics) == (["digits"], ["accuracy"])
    # The manifest's record.
    assert [(result.metric_name, result.metric_value) for result in data.eval_results] == [
        ("Top-1 accuracy (%)", 98.611),
        ("Top-5 accuracy (%)", 100.0),
    ]


def test_the_card_has_its_sections_and_no_other_links_than_true_ones(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
        "Figures",
        "Recipe",
        "Provenance",
        "Limits",
        "Licence",
        "Citation",
    ]
    assert f'deit_zoo.create("{NAME}", checkpoint="hf://{REPO}")' in text
    assert str(manifest_record(NAME).sha256) in text
    assert "| `teacher` | convnet_pico_digits |" in text
    assert all((folder / link).is_file() for link in re.findall(r"\]\(([^):]+)\)", text))


@each_row("name", MODELS)
def test_a_card_can_be_written_for_every_record(name: str) -> None:
    record = manifest_record(name)
    context = dict(
        spec=MODELS[name],
        record=record,
        repo_id=f"org/{name}",
        sha256="0" * 64,
        timm_name=publish.timm_name(MODELS[name]),
        recipe=None,
        receipt=None,
        curve=False,
    )
    card = ModelCard(model_card(context))
    assert card.data.model_name == name
    assert record.metric is not None
    assert card.data.eval_results[0].metric_value == record.metric.top1
    for source in record.sources:
        assert (source.url or source.repo_id or source.filename or "") in card.text
    assert ("```bibtex" in card.text) == (record.paper is not None)


def test_a_card_of_deit_iii_says_so() -> None:
    record = manifest_record("deit3_small")
    context = dict(spec=MODELS["deit3_small"], record=record, repo_id="org/a", sha256="0" * 64)
    card = model_card(context | dict(timm_name=None, recipe=None, receipt=None, curve=False))
    assert "\n\nDeiT III ([arXiv:2204.07118]" in card


def test_a_card_shows_no_password_and_no_key() -> None:
    record = manifest_record(NAME)
    url = "https://me:PASSWORD@host/pico.pth?X-Amz-Signature=SIGNATURE"
    source = Source(kind="url", url=url, sha256_prefix="0" * 8, format="upstream_pth")
    context = dict(
        spec=MODELS[NAME],
        record=replace(record, sources=(source,)),
        repo_id="org/pico",
        sha256="0" * 64,
        timm_name=None,
        recipe=None,
        receipt=None,
        curve=False,
    )
    card = model_card(context)
    assert "https://***@host/pico.pth?***" in card
    assert not any(secret in card for secret in ("PASSWORD", "SIGNATURE"))


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A Hub with nothing on it."""
    with HubServer() as server:
        yield server


def test_an_upload_is_a_commit_that_deit_zoo_and_timm_load(hub: HubServer, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path) | {"HF_TOKEN": TOKEN}
    arguments = ("weights", "publish", NAME, "--repo", REPO, "--output", tmp_path / "kept")
    done = deit_zoo(*arguments, env=environment)
    commit = hub.repositories[REPO].refs["main"]
    assert (done.status, done.out) == (0, f"{hub.endpoint}/{REPO}/commit/{commit}\n"), done.err
    uploaded = hub.repositories[REPO].commits[commit]
    kept = {file.name: file.read_bytes() for file in (tmp_path / "kept").iterdir()}
    assert {name: data for name, data in uploaded.items() if name != ".gitattributes"} == kept
    code = (
        "import deit_zoo, timm, torch\n"
        f"ours = deit_zoo.create({NAME!r}, checkpoint='hf://{REPO}')\n"
        f"theirs = timm.create_model('hf-hub:{REPO}', pretrained=True).eval()\n"
        "x = torch.randn(2, 3, 16, 16)\n"
        "print(torch.allclose(ours(x), theirs(x), atol=1e-5), ours.checkpoint.sha256)\n"
    )
    assert python(code, env=environment).split() == ["True", manifest_record(NAME).sha256]


@pytest.mark.parametrize("private", [False, True])
def test_a_dry_run_says_whether_a_new_repository_is_public(private: bool, tmp_path: Path) -> None:
    words = ("weights", "publish", NAME, "--repo", REPO, "--dry-run", *["--private"][:private])
    done = deit_zoo(*words, env={"DEIT_ZOO_CACHE": str(tmp_path / "zoo")}, cwd=tmp_path)
    kind = "private" if private else "public unless your organization has set otherwise"
    assert done.err.endswith(f"these files become {REPO}; a new repository is {kind}\n")


def test_a_private_repository_is_made_so_and_none_that_is_public_is_filled(
    hub: HubServer, tmp_path: Path
) -> None:
    environment = hub.environment(tmp_path) | {"HF_TOKEN": TOKEN}
    words = ("weights", "publish", NAME, "--repo", REPO, "--private")
    assert deit_zoo(*words, env=environment).status == 0
    assert hub.repositories[REPO].private
    assert deit_zoo(*words, env=environment).status == 0  # again, into the same
    hub.repositories[REPO].private = False
    before = dict(hub.repositories[REPO].refs)
    assert sentence(deit_zoo(*words, env=environment)) == (
        f"{REPO} is there and public, so nothing was uploaded; make it private in its settings, or "
        "give another --repo"
    )
    assert hub.repositories[REPO].refs == before


def test_without_a_token_nothing_is_sent(hub: HubServer, tmp_path: Path) -> None:
    done = deit_zoo("weights", "publish", NAME, "--repo", REPO, env=hub.environment(tmp_path))
    assert sentence(done) == (
        f"there is no Hub token to publish {REPO} with; type `hf auth login`, or set HF_TOKEN to "
        "one that may write there (--dry-run needs none)"
    )
    assert hub.requests == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_without_rights_is_one_sentence(
    hub: HubServer, tmp_path: Path, status: int
) -> None:
    hub.fail("POST", "/api/repos/create", times=9, status=status)
    environment = hub.environment(tmp_path) | {"HF_TOKEN": "hf_reads_only"}
    arguments = ("weights", "publish", NAME, "--repo", REPO, "--output", tmp_path / "kept")
    assert sentence(deit_zoo(*arguments, env=environment)) == (
        f"the Hub refused to write {REPO} ({status}); set HF_TOKEN to a token with write access "
        "to org, or give another --repo"
    )
    assert hub.repositories == {}
    assert not (tmp_path / "kept").exists()  # so that the same may be typed again


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--repo", "pico"], "--repo is 'pico'; give ORG/NAME"),
        (["--repo", REPO, "--output", "full"], "full exists already; remove it"),
        (["--repo", REPO, "--output", "a", "--sign", "no.pem"], "could not be signed with no.pem"),
    ],
)
def test_a_wrong_word_is_answered_in_one_sentence(
    arguments: list[str], told: str, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    done = deit_zoo("weights", "publish", NAME, "--dry-run", *arguments, env={}, cwd=tmp_path)
    assert told in sentence(done)
    assert [file.name for file in tmp_path.rglob("*")] == ["full", "file"]
