"""Every file that came from a Hub has a digest, which is checked at every use, also offline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from support.hub_server import LARGE
from support.machine import FILE, PTH, REPO, Machine, hub_source, sha256, told, url_source

# Prints what `checkpoint=ADDRESS` gives.
ADDRESS = """
import json, time
time.sleep = lambda seconds: None
from deit_zoo.errors import ZooError
from deit_zoo.weights import fetch
from deit_zoo.files import digest
try:
    file = fetch.fetch_address({address!r})
    told = {{"sha256": digest(file.path), "stated": file.sha256, "proof": file.proof}}
except ZooError as error:
    told = {{"error": type(error).__name__, "message": str(error)}}
print(json.dumps(told))
"""


def at(machine: Machine, address: str, **environment: str) -> dict[str, Any]:
    return told(machine.start(ADDRESS.format(address=address), **environment))


def commit_of(machine: Machine) -> str:
    return machine.hub.repositories[REPO].refs["main"]


def blob_of(machine: Machine) -> Path:
    """The file behind the Hub's cache."""
    [blob] = (machine.hf_cache / "models--org--pico" / "blobs").iterdir()
    return blob


def flipped(data: bytes) -> bytes:
    return data[:-1000] + bytes([data[-1000] ^ 255]) + data[-999:]


def replace_blob(machine: Machine) -> None:
    """Other bytes of the same length in the Hub's cache, as a disk or a program leaves them."""
    blob = blob_of(machine)
    blob.chmod(0o644)
    blob.write_bytes(flipped(blob.read_bytes()))


def test_a_pinned_commit_without_a_digest_is_checked_against_what_the_hub_states(
    machine: Machine, weights: bytes
) -> None:
    machine.publish(hub_source(revision=commit_of(machine)))
    machine.hub.fail("GET", "/cdn/", body=flipped(weights), times=2)
    answer = machine.fetch()
    assert answer["error"] == "IntegrityError"
    assert (
        f"{sha256(flipped(weights))} twice, but {sha256(weights)} is expected" in answer["message"]
    )
    assert machine.fetch()["sha256"] == sha256(weights)


def test_a_pinned_commit_without_a_digest_is_checked_again_in_the_cache(
    machine: Machine, weights: bytes
) -> None:
    machine.publish(hub_source(revision=commit_of(machine)))
    machine.fetch()
    replace_blob(machine)
    assert machine.fetch(HF_HUB_OFFLINE="1")["error"] == "IntegrityError"
    assert machine.fetch()["sha256"] == sha256(weights)


@pytest.mark.parametrize("policy", ["once", "always"])
def test_an_address_with_a_commit_is_checked_again_in_the_cache(
    policy: str, machine: Machine, weights: bytes
) -> None:
    address = f"hf://{REPO}@{commit_of(machine)}"
    first = at(machine, address)
    assert first == {"sha256": sha256(weights), "stated": sha256(weights), "proof": "hub digest"}
    machine.hub.requests.clear()
    assert at(machine, address) == first
    assert machine.hub.requests == []
    replace_blob(machine)
    offline = at(machine, address, HF_HUB_OFFLINE="1", DEIT_ZOO_VERIFY=policy)
    assert offline["error"] == "IntegrityError"
    assert at(machine, address, DEIT_ZOO_VERIFY=policy) == first


def test_the_name_of_a_blob_is_its_digest_where_another_program_fetched_it(
    machine: Machine, weights: bytes
) -> None:
    address = f"hf://{REPO}@{commit_of(machine)}"
    at(machine, address)
    shutil.rmtree(machine.zoo_cache)
    assert at(machine, address, HF_HUB_OFFLINE="1")["stated"] == sha256(weights)
    shutil.rmtree(machine.zoo_cache)
    replace_blob(machine)
    assert at(machine, address, HF_HUB_OFFLINE="1")["error"] == "IntegrityError"


@pytest.mark.parametrize("name", ["epoch=9-step=100.ckpt", "a b/50% #1?~é.bin.txt"])
def test_a_file_has_any_name_that_stays_in_its_repository(name: str, machine: Machine) -> None:
    machine.hub.commit(REPO, {name: b"few bytes"})
    address = f"hf://{REPO}@{commit_of(machine)}/{name}"
    right = {"sha256": sha256(b"few bytes"), "stated": sha256(b"few bytes"), "proof": "hub digest"}
    assert at(machine, address) == right
    assert at(machine, address, HF_HUB_OFFLINE="1") == right


def test_an_address_that_was_fetched_is_found_offline(machine: Machine, weights: bytes) -> None:
    first = at(machine, f"hf://{REPO}")
    assert first["sha256"] == sha256(weights)
    assert at(machine, f"hf://{REPO}", HF_HUB_OFFLINE="1") == first
    shutil.rmtree(machine.zoo_cache)  # huggingface_hub's own can be carried alone
    assert at(machine, f"hf://{REPO}", HF_HUB_OFFLINE="1") == first
    replace_blob(machine)
    assert at(machine, f"hf://{REPO}", HF_HUB_OFFLINE="1")["error"] == "IntegrityError"


def test_an_address_follows_its_branch_and_offline_the_last_one_seen(
    machine: Machine, weights: bytes
) -> None:
    at(machine, f"hf://{REPO}")
    machine.hub.commit(REPO, {FILE: flipped(weights)})
    assert at(machine, f"hf://{REPO}", HF_HUB_OFFLINE="1")["sha256"] == sha256(weights)
    assert at(machine, f"hf://{REPO}")["sha256"] == sha256(flipped(weights))
    assert at(machine, f"hf://{REPO}", HF_HUB_OFFLINE="1")["sha256"] == sha256(flipped(weights))


def test_a_small_file_has_the_digest_that_it_had_when_it_came(machine: Machine) -> None:
    machine.hub.commit(REPO, {"tiny.bin.txt": b"few bytes"})
    address = f"hf://{REPO}@main/tiny.bin.txt"
    assert at(machine, address)["stated"] == sha256(b"few bytes")
    blob_of(machine).chmod(0o644)
    blob_of(machine).write_bytes(b"new bytes")
    assert at(machine, address, HF_HUB_OFFLINE="1")["error"] == "IntegrityError"


SMALL, SPOILED = "tiny.bin.txt", b"new bytes"


def spoil_small(machine: Machine) -> str:
    """A small file at its commit, fetched, and then other bytes of its length in the cache."""
    machine.hub.commit(REPO, {SMALL: b"few bytes"})
    address = f"hf://{REPO}@{commit_of(machine)}/{SMALL}"
    at(machine, address)
    blob_of(machine).chmod(0o644)
    blob_of(machine).write_bytes(SPOILED)
    return address


@pytest.mark.parametrize("record", ["kept", "removed"])
def test_a_small_file_that_was_changed_in_the_cache_is_fetched_again(
    record: str, machine: Machine
) -> None:
    address = spoil_small(machine)
    if record == "removed":  # as where another program fetched it
        shutil.rmtree(machine.zoo_cache)
    assert at(machine, address, HF_HUB_OFFLINE="1")["error"] == "IntegrityError"
    right = {"sha256": sha256(b"few bytes"), "stated": sha256(b"few bytes"), "proof": "hub digest"}
    assert at(machine, address, DEIT_ZOO_VERIFY="always") == right
    assert at(machine, address, HF_HUB_OFFLINE="1") == right


def test_a_small_file_is_not_what_the_hub_names_by_its_sha1(machine: Machine) -> None:
    machine.hub.commit(REPO, {SMALL: b"few bytes"})
    machine.hub.fail("GET", SMALL, body=SPOILED, times=2)
    answer = at(machine, f"hf://{REPO}@main/{SMALL}")
    assert answer["error"] == "IntegrityError"
    assert (
        "twice, but one that git names 2fcb5efe6f082dc0c5ca5cba647ff7a28fd44753"
        in (answer["message"])
    )


@pytest.mark.parametrize("first", [LARGE, ()], ids=["a SHA-256", "git's SHA-1"])
def test_other_bytes_than_the_manifests_file_had_are_refused_whatever_names_them(
    first: tuple[str, ...], machine: Machine, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("support.hub_server.LARGE", first)
    assert machine.fetch()["sha256"] == sha256(weights)
    shutil.rmtree(machine.hf_cache)
    monkeypatch.setattr("support.hub_server.LARGE", ())
    machine.hub.commit(REPO, {FILE: flipped(weights)})
    answer = machine.fetch()
    assert answer["error"] == "IntegrityError"
    assert f"{sha256(weights)} is expected; try another network or mirror" in answer["message"]
    assert answer["message"].endswith(f"if the change is meant, remove {machine.zoo_cache}/stated")
    machine.hub.commit(REPO, {FILE: weights})
    assert machine.fetch()["sha256"] == sha256(weights)


def test_a_commit_keeps_its_bytes_though_the_hub_states_others(
    machine: Machine, weights: bytes
) -> None:
    address = f"hf://{REPO}@{commit_of(machine)}"
    at(machine, address)
    shutil.rmtree(machine.hf_cache)
    machine.hub.repositories[REPO].commits[commit_of(machine)][FILE] = SPOILED
    answer = at(machine, address)
    assert answer["error"] == "IntegrityError"
    assert f"{address} now states SHA-256 {sha256(SPOILED)} for {FILE}, but" in answer["message"]


def test_a_hub_that_answers_a_pinned_commit_with_another_is_refused(machine: Machine) -> None:
    pinned = commit_of(machine)
    other = machine.hub.commit(REPO, {FILE: SPOILED})
    machine.publish(hub_source(revision=pinned))
    machine.hub.fail("HEAD", "/resolve/", headers={"X-Repo-Commit": other}, times=9)
    message = f"it answers commit {pinned} with {other}: check HF_ENDPOINT"
    assert message in machine.fetch()["message"]


# Records of the zoo's cache.


def record_of(machine: Machine, kind: str) -> Path:
    [record] = (machine.zoo_cache / kind).glob("*.json")
    return record


def test_a_record_that_names_another_file_is_not_believed(
    by_url: Machine, weights: bytes, tmp_path: Path
) -> None:
    right = by_url.fetch()
    evil = tmp_path / "evil.safetensors"
    evil.write_bytes(flipped(weights))
    record = record_of(by_url, "converted")
    forged = {"file": str(evil), "sha256": sha256(evil.read_bytes())}
    record.write_text(json.dumps(json.loads(record.read_text()) | forged))
    assert by_url.fetch()["sha256"] == right["sha256"]


def test_a_record_of_an_original_with_another_prefix_is_not_believed(by_url: Machine) -> None:
    right = by_url.fetch()
    record = record_of(by_url, "converted")
    forged = json.loads(record.read_text()) | {"original_sha256": "0" * 64}
    record.write_text(json.dumps(forged))
    assert by_url.fetch()["sha256"] == right["sha256"]
    assert by_url.hub.count("GET", PTH) == 2


@pytest.mark.parametrize("kind", ["converted", "stated"])
def test_a_record_without_a_field_or_of_another_type_is_made_anew(
    kind: str, machine: Machine, weights: bytes, pth: bytes
) -> None:
    if kind == "converted":
        machine.publish(url_source(machine.hub.endpoint + PTH, sha256(pth)[:8]))
    right = machine.fetch()
    files = list((machine.zoo_cache / kind).glob("*.json"))
    whole = {file: json.loads(file.read_text()) for file in files}
    fields = {field for record in whole.values() for field in record}
    for spoiled in (
        *({field: None} for field in sorted(fields)),
        *({field: "../../x"} for field in sorted(fields - {"key"})),
    ):
        for file, record in whole.items():
            file.write_text(json.dumps(record | spoiled))
        assert machine.fetch() == right


def test_a_link_of_the_cache_to_a_file_elsewhere_is_dropped_and_that_file_is_not(
    machine: Machine, weights: bytes
) -> None:
    machine.publish(hub_source(revision=commit_of(machine), sha256=sha256(weights)))
    file = Path(machine.fetch()["file"])
    (machine.folder / "mine").write_bytes(flipped(weights))
    file.unlink()
    file.symlink_to(machine.folder / "mine")
    assert machine.fetch()["sha256"] == sha256(weights)
    assert (machine.folder / "mine").read_bytes() == flipped(weights)


@pytest.mark.parametrize(
    "etag", ['"../../../../evil"', '"{folder}/evil"', '""', "W..", '"' + "a" * 5000 + '"']
)
def test_a_name_of_the_hub_that_leads_out_of_its_cache_is_refused(
    etag: str, machine: Machine, weights: bytes
) -> None:
    machine.publish(hub_source(revision=commit_of(machine), sha256=sha256(weights)))
    named = etag.format(folder=machine.folder)
    machine.hub.fail("HEAD", "/resolve/", headers={"X-Linked-ETag": named}, times=9)
    assert "which is no name: check HF_ENDPOINT" in machine.fetch()["message"]
    assert not any(machine.folder.rglob("evil*"))


# As the library does after a connection that failed.
CLOSING = """
import huggingface_hub
def pause(seconds):
    pauses.append(seconds)
    huggingface_hub.close_session()
time.sleep = pause
"""


def test_such_a_name_is_refused_by_a_session_that_was_opened_meanwhile(
    machine: Machine, weights: bytes
) -> None:
    machine.publish(hub_source(revision=commit_of(machine), sha256=sha256(weights)))
    machine.hub.fail("HEAD", "/resolve/", status=503, times=2)
    machine.hub.fail("HEAD", "/resolve/", headers={"X-Linked-ETag": '"../../../../evil"'}, times=9)
    answer = machine.fetch(before=CLOSING)
    assert answer["error"] == "DownloadError"  # an old huggingface_hub keeps the closed session
    assert len(answer["pauses"]) >= 1
    assert not any(machine.folder.rglob("evil*"))


# A later version may call what makes its clients otherwise.
RENAMED = """
import sys
from huggingface_hub import get_session
get_session()
del sys.modules[get_session.__module__]._GLOBAL_CLIENT_FACTORY
"""


def test_such_a_name_is_refused_also_by_a_library_of_other_private_names(
    machine: Machine, weights: bytes
) -> None:
    machine.publish(hub_source(revision=commit_of(machine), sha256=sha256(weights)))
    machine.hub.fail("HEAD", "/resolve/", headers={"X-Linked-ETag": '"../../../../evil"'})
    assert "which is no name: check HF_ENDPOINT" in machine.fetch(before=RENAMED)["message"]
    assert machine.fetch(before=RENAMED)["sha256"] == sha256(weights)


THREADS = """
import json
from concurrent.futures import ThreadPoolExecutor
import huggingface_hub
from deit_zoo.weights import hub_answers
def ask(number):
    huggingface_hub.close_session()
    try:
        return str(huggingface_hub.get_session().get("{endpoint}/any"))
    except ValueError as error:
        return str(error)
hub_answers.check_from_now_on()
with ThreadPoolExecutor(4) as threads:
    print(json.dumps(list(threads.map(ask, range(4)))))
"""


def test_such_a_name_is_refused_in_every_thread_that_opens_a_session(machine: Machine) -> None:
    machine.hub.fail("GET", "/any", headers={"X-Repo-Commit": ".."}, times=9)
    answers = told(machine.start(THREADS.format(endpoint=machine.hub.endpoint)))
    assert all("'..', which is no name: check HF_ENDPOINT" in answer for answer in answers), answers


def test_a_hub_that_states_no_digest_is_refused(machine: Machine) -> None:
    machine.publish(hub_source())
    machine.hub.fail("HEAD", "/resolve/", headers={"X-Linked-ETag": '"latest"'}, times=9)
    assert "it states no digest ('latest'): check HF_ENDPOINT" in machine.fetch()["message"]
