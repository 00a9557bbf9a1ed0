"""What says which bytes a folder should hold: the manifest, the folder's record, its sums."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

import deit_zoo
from deit_zoo import files
from deit_zoo.errors import CheckpointError, FormatError, IntegrityError
from deit_zoo.files import ASSETS, digest, is_inside, read_sums
from deit_zoo.hub.verify import listed_files, verify_file
from deit_zoo.weights import cache, load
from deit_zoo.weights.config import read_config

NAME = "deit_pico_digits"
RIGHT = (ASSETS / f"{NAME}.safetensors").read_bytes()
WRONG = RIGHT[:-1000] + bytes([RIGHT[-1000] ^ 255]) + RIGHT[-999:]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `weights fetch --to` made."""
    monkeypatch.setenv("DEIT_ZOO_CACHE", str(tmp_path / "zoo"))
    return deit_zoo.fetch(NAME, to=tmp_path / "carried")


def state(sums: Path, name: str, data: bytes) -> None:
    sums.write_text(f"{sha256(data)}  {name}\n")


def expect(error: type[Exception], message: str, checkpoint: Path) -> None:
    with pytest.raises(error, match=message):
        deit_zoo.create(NAME, checkpoint=checkpoint)
    with pytest.raises(error, match=message):
        list(listed_files(checkpoint))


def test_a_carried_folder_is_proved_by_the_manifest(folder: Path) -> None:
    model = deit_zoo.create(NAME, checkpoint=folder)
    assert (model.checkpoint.proof, model.checkpoint.sha256) == ("pinned", sha256(RIGHT))
    proofs = {file.path.name: file.proof for file in listed_files(folder)}
    assert proofs == dict.fromkeys(("LICENSE", "README.md", "checkpoint.json"), "SHA256SUMS") | {
        "model.safetensors": "pinned"
    }


def test_a_byte_and_the_sums_that_are_changed_together_contradict_the_manifest(
    folder: Path,
) -> None:
    (folder / "model.safetensors").write_bytes(WRONG)
    state(folder / "SHA256SUMS", "model.safetensors", WRONG)
    record = json.loads((folder / "checkpoint.json").read_text())
    expect(IntegrityError, f"states SHA-256 {sha256(WRONG)} .*checkpoint.json pins", folder)
    record[NAME]["sources"][0]["sha256"] = sha256(WRONG)
    (folder / "checkpoint.json").write_text(json.dumps(record))
    expect(IntegrityError, f"weights_manifest.json pins {sha256(RIGHT)}", folder)


@pytest.mark.parametrize("where", ["the manifest", "checkpoint.json"])
def test_a_record_proves_weights_without_sums(
    where: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    proof, by = "pinned", "checkpoint.json"
    if where == "checkpoint.json":
        (tmp_path / "m.json").write_text('{"schema_version": 1, "checkpoints": {}}')
        monkeypatch.setenv("DEIT_ZOO_MANIFEST", str(tmp_path / "m.json"))
        proof = "checkpoint.json"
    else:  # one that pins nothing
        record = json.loads((folder / "checkpoint.json").read_text())
        record[NAME]["sources"] = []
        (folder / "checkpoint.json").write_text(json.dumps(record))
        by = "weights_manifest.json"
    (folder / "SHA256SUMS").unlink()
    model = deit_zoo.create(NAME, checkpoint=folder)
    assert (model.checkpoint.proof, model.checkpoint.sha256) == (proof, sha256(RIGHT))
    (folder / "model.safetensors").write_bytes(WRONG)
    with pytest.raises(IntegrityError, match=f"has SHA-256 {sha256(WRONG)} .*{by} pins"):
        deit_zoo.create(NAME, checkpoint=folder)


def test_a_carried_folder_without_sums_that_nothing_pins_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    records = json.loads((folder / "checkpoint.json").read_text())
    source = {"kind": "url", "url": "http://a/b", "sha256_prefix": None, "format": "upstream_pth"}
    records[NAME]["sources"] = [source]
    (folder / "checkpoint.json").write_text(json.dumps(records))
    (tmp_path / "m.json").write_text(json.dumps({"schema_version": 1, "checkpoints": records}))
    monkeypatch.setenv("DEIT_ZOO_MANIFEST", str(tmp_path / "m.json"))
    monkeypatch.setenv("DEIT_ZOO_WEIGHTS", str(folder))
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match="nothing says what its files should be"):
        deit_zoo.create(NAME, pretrained=True)


def test_a_carried_folder_whose_weights_are_still_being_copied_is_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEIT_ZOO_WEIGHTS", str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors; if it is still being"):
        deit_zoo.create(NAME, pretrained=True)


def test_a_record_of_a_model_that_the_manifest_does_not_pin_is_the_next_best(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "m.json").write_text('{"schema_version": 1, "checkpoints": {}}')
    monkeypatch.setenv("DEIT_ZOO_MANIFEST", str(tmp_path / "m.json"))
    assert deit_zoo.create(NAME, checkpoint=folder).checkpoint.proof == "checkpoint.json"
    (folder / "checkpoint.json").unlink()
    assert deit_zoo.create(NAME, checkpoint=folder).checkpoint.proof == "SHA256SUMS"


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "[" * 100_000, '{"a": 5}', '{"a": {"sources": 5}}', "\xff"]
)
def test_a_record_that_is_none_is_one_sentence(content: str, folder: Path) -> None:
    (folder / "checkpoint.json").write_text(content, encoding="latin-1")
    expect(CheckpointError, "checkpoint.json is no record", folder)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../secret", "a/../../secret", "..", "a\\..\\..\\b", "C:\\x", "a\tb"]
)
def test_sums_name_files_within_their_folder(name: str, folder: Path) -> None:
    (folder.parent / "secret").write_bytes(b"secret")
    assert not is_inside(name)
    with (folder / "SHA256SUMS").open("a") as stream:
        stream.write(f"{sha256(b'secret')}  {name}\n")
    expect(CheckpointError, "line 5 of .* is not what sha256sum writes of this folder", folder)


def test_two_digests_of_one_file_are_refused(folder: Path) -> None:
    with (folder / "SHA256SUMS").open("a") as stream:
        stream.write(f"{'0' * 64}  model.safetensors\n")
    expect(CheckpointError, "line 5 of .*SHA256SUMS", folder)


@pytest.mark.parametrize("mark", ["  ", " *", "  ./"])
def test_every_form_that_sha256sum_writes_is_read(mark: str, folder: Path) -> None:
    (folder / "SHA256SUMS").write_text(f"{sha256(RIGHT)}{mark}model.safetensors\n")
    assert read_sums(folder / "SHA256SUMS") == {"model.safetensors": sha256(RIGHT)}
    assert deit_zoo.create(NAME, checkpoint=folder).checkpoint.proof == "pinned"


def test_a_folder_whose_sums_leave_out_the_weights_is_not_whole(folder: Path) -> None:
    (folder / "README.md").write_text("weights")
    state(folder / "SHA256SUMS", "README.md", b"weights")
    with pytest.raises(CheckpointError, match=r"has no digest of model\.safetensors"):
        list(listed_files(folder))
    with pytest.raises(CheckpointError, match=r"states no SHA-256 for model\.safetensors"):
        deit_zoo.create(NAME, checkpoint=folder)


def test_a_second_file_of_weights_that_is_not_listed_is_named(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"no digest of pytorch_model\.bin"):
        list(listed_files(folder))


@pytest.mark.parametrize("name", ["weights.safetensors", "pytorch_model.bin"])
def test_weights_of_another_name_are_proved_by_the_record_too(name: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(WRONG)
    state(folder / "SHA256SUMS", name, WRONG)
    expect(IntegrityError, f"states SHA-256 {sha256(WRONG)} for {name}, but", folder)


def test_a_record_of_a_model_that_nobody_knows_proves_nothing(folder: Path) -> None:
    (folder / "checkpoint.json").write_text('{"x": {"sources": []}}')
    expect(CheckpointError, "checkpoint.json is of 'x', and no model has this name", folder)


def test_a_configuration_is_believed_as_far_as_sums_state_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "m.json").write_text('{"schema_version": 1, "checkpoints": {}}')
    monkeypatch.setenv("DEIT_ZOO_MANIFEST", str(tmp_path / "m.json"))
    data = to_bytes(load_file(folder / "model.safetensors"))  # says nothing of itself
    (folder / "model.safetensors").write_bytes(data)
    sums, record = folder / "SHA256SUMS", folder / "checkpoint.json"
    state(sums, "model.safetensors", data)
    record.write_text(json.dumps({NAME: {"sources": [{"sha256": sha256(data)}]}}))
    config = json.dumps({"architecture": NAME, "label_names": list("9876543210")}).encode()
    (folder / "config.json").write_bytes(config)
    with pytest.raises(CheckpointError, match=r"SHA256SUMS has no digest of config\.json"):
        list(listed_files(folder))
    assert "labels" not in deit_zoo.create(folder).checkpoint.metadata  # the record says enough
    record.unlink()
    expect(CheckpointError, r"(states no SHA-256 for|has no digest of) config\.json", folder)
    listed = sums.read_text()
    sums.write_text(f"{listed}{sha256(b'another')}  config.json\n")
    with pytest.raises(IntegrityError, match=r"config\.json has SHA-256"):
        deit_zoo.create(NAME, checkpoint=folder)
    sums.write_text(f"{listed}{sha256(config)}  config.json\n")
    assert deit_zoo.create(NAME, checkpoint=folder).labels == tuple("9876543210")
    (folder / "preprocessor_config.json").write_text("{}")
    expect(CheckpointError, r"(states no SHA-256 for|has no digest of) preprocessor_co", folder)


def test_a_listed_name_that_links_out_of_the_folder_is_not_read(folder: Path) -> None:
    (folder.parent / "secret").write_bytes(b"secret")
    (folder / "notes").symlink_to(folder.parent / "secret")
    with (folder / "SHA256SUMS").open("a") as stream:
        stream.write(f"{'0' * 64}  notes\n")
    with pytest.raises(CheckpointError, match="notes leads out of ") as caught:
        list(listed_files(folder))
    assert sha256(b"secret") not in str(caught.value)


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000 + "b", "circle"])
def test_a_listed_name_that_no_file_has_is_told(name: str, folder: Path) -> None:
    (folder / "circle").symlink_to("circle")
    with (folder / "SHA256SUMS").open("a") as stream:
        stream.write(f"{'0' * 64}  {name}\n")
    problem = verify_file(list(listed_files(folder))[-1], lambda count: None).problem
    assert problem is not None
    assert "cannot be read (" in problem


def test_a_fifo_or_a_device_among_the_files_does_not_hang(folder: Path) -> None:
    os.mkfifo(folder / "notes")
    with (folder / "SHA256SUMS").open("a") as stream:
        stream.write(f"{'0' * 64}  notes\n")
    with pytest.raises(CheckpointError, match="notes is no regular file"):
        list(listed_files(folder))
    (folder / "SHA256SUMS").unlink()
    (folder / "SHA256SUMS").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=r"SHA256SUMS is a device; give a regular file"):
        list(listed_files(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "receipt.json"])
def test_weights_or_a_receipt_that_are_a_fifo_are_refused_at_once(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes(RIGHT)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"does not exist|is a FIFO"):
        deit_zoo.create(NAME, checkpoint=tmp_path)


# The mapped file is the verified file.


def swap_after(monkeypatch: pytest.MonkeyPatch, swap: Any) -> None:
    """Call `swap` each time that bytes were hashed and found right, before they are mapped."""
    verify = cache.verify

    def verified(file: Any, expected: str) -> None:
        verify(file, expected)
        swap()

    monkeypatch.setenv("DEIT_ZOO_VERIFY", "always")
    monkeypatch.setattr(cache, "verify", verified)


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


def test_a_file_that_is_replaced_after_it_was_hashed_is_not_the_one_that_is_mapped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = weights_of(deit_zoo.create(NAME, checkpoint=folder))
    file = folder / "model.safetensors"
    (folder / "good").write_bytes(RIGHT)
    (folder / "bad").write_bytes(WRONG)
    known = load.open_local(folder)

    def swap() -> None:
        shutil.copyfile(folder / "bad", folder / "new")
        (folder / "new").replace(file)

    swap_after(monkeypatch, swap)
    tensors = load.read_state(known.path, sha256=known.sha256).tensors
    assert all(torch.equal(tensors[key], value) for key, value in right.items())
    assert digest(file) == sha256(WRONG)
    with pytest.raises(IntegrityError):
        load.read_state(known.path, sha256=known.sha256)


def test_a_configuration_that_is_replaced_after_it_was_hashed_is_not_the_one_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, bad = tmp_path / "config.json", tmp_path / "bad"
    for path, classes in ((file, '["cat", "dog"]'), (bad, '["dog", "cat"]')):
        path.write_text(f'{{"architecture": "x", "label_names": {classes}}}')
    (tmp_path / "SHA256SUMS").write_text(f"{digest(file)}  config.json\n")

    def digest_and_swap(path: Any) -> str:
        found = digest(path)
        if bad.exists():
            bad.replace(file)
        return found

    monkeypatch.setattr(files, "digest", digest_and_swap)
    monkeypatch.setenv("DEIT_ZOO_VERIFY", "always")
    assert read_config(tmp_path)["labels"] == ["cat", "dog"]


def test_a_link_that_is_swapped_to_and_fro_never_gives_wrong_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEIT_ZOO_VERIFY", "always")
    right = weights_of(deit_zoo.create(NAME, checkpoint=folder))
    (folder / "good").write_bytes(RIGHT)
    (folder / "bad").write_bytes(WRONG)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for target in ("bad", "good"):
                (folder / "link").unlink(missing_ok=True)
                (folder / "link").symlink_to(target)
                (folder / "link").replace(folder / "model.safetensors")

    thread = threading.Thread(target=swap)
    thread.start()
    loaded = refused = 0
    try:
        for _ in range(20):
            try:
                model = deit_zoo.create(NAME, checkpoint=folder)
            except IntegrityError:
                refused += 1
            else:
                loaded += 1
                assert all(torch.equal(right[k], v) for k, v in model.state_dict().items())
    finally:
        stop.set()
        thread.join()
    assert loaded + refused == 20


def test_a_pickle_that_is_replaced_after_it_was_hashed_is_not_the_one_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEIT_ZOO_CACHE", str(tmp_path / "zoo"))
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth")
    torch.save({"a": torch.ones(3)}, tmp_path / "b.pth")
    sha = digest(tmp_path / "a.pth")

    def swap() -> None:
        shutil.copyfile(tmp_path / "b.pth", tmp_path / "new")
        (tmp_path / "new").replace(tmp_path / "a.pth")

    swap_after(monkeypatch, swap)
    tensors = load.read_state(tmp_path / "a.pth", sha256=sha).tensors
    assert tensors["a"].tolist() == [0, 0, 0]


def test_an_empty_sums_file_states_nothing(tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text("")
    with pytest.raises(FormatError, match="is empty, so it states no digests"):
        read_sums(tmp_path / "SHA256SUMS")
