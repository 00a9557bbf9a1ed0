"""`weights pin`: what the Hub says is written down, what is pinned stays, contradictions stop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from deit_zoo.manifest import manifest_path, read_manifest
from support.command import deit_zoo, hub_source, sentence, sha256, write_manifest
from support.hub_server import HubServer

DATA = b"weights " * 100
REPO = "org/deit_tiny"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A Hub with one file in one repository."""
    with HubServer() as server:
        server.commit(REPO, {"model.safetensors": DATA, "config.json": b"{}"})
        yield server


def test_pin_writes_commit_digest_and_size_one_line_each(hub: HubServer, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.json", {"deit_tiny": [hub_source(REPO)]})
    before = manifest.read_text().splitlines()
    done = deit_zoo("weights", "pin", "--manifest", manifest, env=hub.environment(tmp_path))
    commit = hub.repositories[REPO].refs["main"]
    assert done == (
        0,
        f"deit_tiny: revision null -> {commit}\n"
        f"deit_tiny: sha256 null -> {sha256(DATA)}\n"
        f"deit_tiny: bytes null -> {len(DATA)}\n",
        f"3 facts changed in {manifest}\n",
    )
    after = manifest.read_text().splitlines()
    changed = [new.strip() for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [
        f'"revision": "{commit}",',
        f'"sha256": "{sha256(DATA)}",',
        f'"bytes": {len(DATA)}',
    ]
    [source] = read_manifest(manifest)["deit_tiny"].sources
    assert (source.revision, source.proof) == (commit, "pinned")


def test_a_second_pin_changes_nothing(hub: HubServer, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.json", {"deit_tiny": [hub_source(REPO)]})
    environment = hub.environment(tmp_path) | {"DEIT_ZOO_MANIFEST": str(manifest)}
    deit_zoo("weights", "pin", env=environment)
    pinned = manifest.read_bytes()
    done = deit_zoo("weights", "pin", "deit-ti", env=environment)
    assert done == (0, "", f"{manifest} says what the Hub says\n")
    assert manifest.read_bytes() == pinned


def test_a_pinned_commit_stays_when_main_moves_on(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.repositories[REPO].refs["main"]
    hub.commit(REPO, {"model.safetensors": b"other weights"})
    source = hub_source(REPO, revision=commit)
    manifest = write_manifest(tmp_path / "m.json", {"deit_tiny": [source]})
    assert deit_zoo("weights", "pin", "--manifest", manifest, env=hub.environment(tmp_path))[0] == 0
    [pinned] = read_manifest(manifest)["deit_tiny"].sources
    assert (pinned.revision, pinned.sha256, pinned.bytes) == (commit, sha256(DATA), len(DATA))


def test_a_contradiction_stops_it_before_anything_is_written(
    hub: HubServer, tmp_path: Path
) -> None:
    sources = {
        "deit_small": [hub_source(REPO)],
        "deit_tiny": [hub_source(REPO, sha256="0" * 64)],
    }
    manifest = write_manifest(tmp_path / "m.json", sources)
    before = manifest.read_bytes()
    done = deit_zoo("weights", "pin", "--manifest", manifest, env=hub.environment(tmp_path))
    assert sentence(done) == (
        f"deit_tiny is pinned to sha256 {'0' * 64}, but the Hub's {REPO} states {sha256(DATA)}; "
        "nothing was written: find out which is right, and edit the record"
    )
    assert manifest.read_bytes() == before


def test_what_the_hub_has_not_is_told_record_by_record(hub: HubServer, tmp_path: Path) -> None:
    hub.commit("org/empty", {"README.md": b""})
    sources = {
        "deit_tiny": [hub_source(REPO)],
        "deit_small": [hub_source("org/absent")],
        "deit_base": [hub_source("org/empty")],
    }
    manifest = write_manifest(tmp_path / "m.json", sources)
    before = manifest.read_bytes()
    told = sentence(
        deit_zoo("weights", "pin", "--manifest", manifest, env=hub.environment(tmp_path))
    )
    assert "deit_small: no such repository" in told
    assert "deit_base: the Hub's org/empty has no file model.safetensors" in told
    assert "deit_tiny" not in told
    assert manifest.read_bytes() == before


def test_one_reason_of_several_records_is_told_once(hub: HubServer, tmp_path: Path) -> None:
    names = ("deit_tiny", "deit_small", "deit_base")
    sources = {name: [hub_source("org/absent")] for name in names}
    manifest = write_manifest(tmp_path / "m.json", sources)
    told = sentence(
        deit_zoo("weights", "pin", "--manifest", manifest, env=hub.environment(tmp_path))
    )
    assert f"({', '.join(names)}: no such repository, or a private one: set HF_TOKEN)" in told


def test_a_file_that_the_hub_keeps_in_git_has_no_digest_to_pin(
    hub: HubServer, tmp_path: Path
) -> None:
    # Only LFS and Xet files have a SHA-256 on the Hub.
    source = hub_source(REPO, filename="config.json")
    manifest = write_manifest(tmp_path / "m.json", {"deit_tiny": [source]})
    deit_zoo("weights", "pin", "--manifest", manifest, env=hub.environment(tmp_path))
    [pinned] = read_manifest(manifest)["deit_tiny"].sources
    assert (pinned.sha256, pinned.bytes) == (None, 2)


def test_pin_without_a_network_says_so(tmp_path: Path) -> None:
    told = sentence(deit_zoo("weights", "pin", env={"HF_HUB_OFFLINE": "1"}))
    assert told == "pin asks the Hub, but HF_HUB_OFFLINE is set; unset it"


def test_the_bundled_manifest_is_written_as_pin_writes_it() -> None:
    text = manifest_path().read_text(encoding="utf-8")
    assert json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n" == text


def hub_that_states(server: HubServer, **facts: object) -> None:
    """Every question after a repository is answered with these facts of it."""
    lfs = {"sha256": facts.pop("sha256"), "size": 5, "pointerSize": 1}
    file = {"rfilename": "model.safetensors", "size": facts.pop("size"), "lfs": lfs}
    answer = {"id": REPO, "siblings": [file]} | facts
    server.fail("GET", "/api/models/", body=json.dumps(answer).encode(), times=float("inf"))


@pytest.mark.parametrize(
    "wrong", [{"sha256": "zz"}, {"size": "5"}, {"size": -1}, {"sha": "../../x"}, {"sha": None}]
)
def test_a_hub_that_states_no_digest_commit_or_size_is_not_believed(
    wrong: dict[str, object], hub: HubServer, tmp_path: Path
) -> None:
    manifest = write_manifest(tmp_path / "m.json", {"deit_tiny": [hub_source(REPO)]})
    before = manifest.read_bytes()
    hub_that_states(hub, **({"sha256": "a" * 64, "size": 5, "sha": "b" * 40} | wrong))
    done = deit_zoo("weights", "pin", "--manifest", manifest, env=hub.environment(tmp_path))
    assert "deit_tiny: what it states is not as it should be (" in sentence(done)
    assert manifest.read_bytes() == before


def test_a_hub_that_answers_with_a_list_is_no_hub(hub: HubServer, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.json", {"deit_tiny": [hub_source(REPO)]})
    before = manifest.read_bytes()
    hub.fail("GET", "/api/models/", body=b"[]", times=float("inf"))
    done = deit_zoo("weights", "pin", "--manifest", manifest, env=hub.environment(tmp_path))
    assert "deit_tiny: it does not answer as a Hub does: check HF_ENDPOINT" in sentence(done)
    assert manifest.read_bytes() == before
