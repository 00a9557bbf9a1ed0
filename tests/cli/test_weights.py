"""`deit-zoo weights` as a user types it, the Hub on loopback.

Each command is run as a process; cases that need no machine of their own are typed in this one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import deit_zoo as zoo
from deit_zoo.cli import main
from deit_zoo.errors import IntegrityError
from deit_zoo.files import ASSETS, digest, temporary_in
from deit_zoo.hub import carry
from deit_zoo.manifest import manifest_path, manifest_record, read_manifest
from deit_zoo.weights.formats import read_state, write_tensors
from support.command import Done, deit_zoo, hub_source, python, sentence, sha256, write_manifest
from support.hub_server import HubServer

NAME, OTHER = "deit_pico_digits", "deit_pico_distilled_digits"
DATA = (ASSETS / f"{NAME}.safetensors").read_bytes()
REPO = "org/pico"


@pytest.fixture
def alone(tmp_path: Path) -> dict[str, str]:
    """A machine without a network whose caches are empty."""
    return {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "DEIT_ZOO_CACHE": str(tmp_path / "zoo"),
    }


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A Hub that holds an embedded model's weights."""
    with HubServer() as server:
        server.commit(REPO, {"model.safetensors": DATA})
        yield server


@pytest.fixture
def online(hub: HubServer, tmp_path: Path) -> dict[str, str]:
    """A machine whose manifest says that the weights are on that Hub, pinned."""
    commit = hub.repositories[REPO].refs["main"]
    source = hub_source(REPO, revision=commit, sha256=sha256(DATA), bytes=len(DATA))
    file = write_manifest(tmp_path / "manifest.json", {NAME: [source]})
    return hub.environment(tmp_path) | {"DEIT_ZOO_MANIFEST": str(file)}


@pytest.fixture
def typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Done]:
    """Run `deit-zoo weights` in this process, in an empty folder and with an empty zoo cache."""
    monkeypatch.setenv("DEIT_ZOO_CACHE", str(tmp_path / "zoo"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["deit-zoo", "weights", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return Done(int(end.value.code or 0), *capsys.readouterr())

    return run


def flip(file: Path, position: int) -> None:
    """Change one byte, and leave size and time as they were: a disk that forgets."""
    status = file.stat()
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_no_command_of_it_imports_torch_to_be_parsed() -> None:
    code = (
        "import sys\nfrom deit_zoo.cli import main\n"
        "sys.argv = ['deit-zoo', 'weights', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code in (0, None)\n"
        "heavy = {'torch', 'huggingface_hub', 'requests', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_fetch_tells_where_a_checkpoint_is_and_how_it_is_known(
    hub: HubServer, online: dict[str, str], tmp_path: Path
) -> None:
    rows = json.loads(deit_zoo("weights", "fetch", "DeiT-pico-digits", "--json", env=online).out)
    [row] = rows
    assert (row["name"], row["bytes"], row["proof"]) == (NAME, len(DATA), "pinned")
    assert Path(row["where"]).is_relative_to(tmp_path / "hf")
    assert Path(row["where"]).read_bytes() == DATA
    before = len(hub.requests)
    done = deit_zoo("weights", "fetch", NAME, env=online)
    assert done.out.splitlines()[0].split() == ["name", "MB", "proof", "where"]
    assert done.out.splitlines()[1].split() == [NAME, "1.3", "pinned", row["where"]]
    assert len(hub.requests) == before  # it is there


def test_a_fetched_folder_works_where_there_is_no_network(
    online: dict[str, str], alone: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "carried"
    assert deit_zoo("weights", "fetch", NAME, "--to", folder, env=online).status == 0
    shutil.rmtree(tmp_path / "hf")
    shutil.rmtree(tmp_path / "zoo")
    assert sorted(file.name for file in folder.iterdir()) == [
        "LICENSE",
        "README.md",
        "SHA256SUMS",
        "checkpoint.json",
        "model.safetensors",
    ]
    code = (
        "import socket\n"
        "socket.socket.connect = None\n"
        "import deit_zoo\n"
        f"model = deit_zoo.create({NAME!r}, checkpoint={str(folder)!r})\n"
        "print(model.checkpoint.sha256)\n"
    )
    assert python(code, env=alone).strip() == sha256(DATA)


def test_sha256sum_checks_a_fetched_folder(typed: Callable[..., Done], tmp_path: Path) -> None:
    typed("fetch", NAME, "--to", tmp_path / "a")
    done = subprocess.run(
        ["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=tmp_path / "a", capture_output=True
    )
    names = ("LICENSE", "README.md", "checkpoint.json", "model.safetensors")
    assert done.returncode == 0
    assert done.stdout == "".join(f"{name}: OK\n" for name in names).encode()


def test_a_folder_holds_the_licence_its_source_all_names_and_the_data(
    typed: Callable[..., Done], tmp_path: Path
) -> None:
    typed("fetch", NAME, "--to", tmp_path / "a")
    assert "Apache License" in (tmp_path / "a" / "LICENSE").read_text()
    card = (tmp_path / "a" / "README.md").read_text()
    assert "apache-2.0: trained by deit_zoo, whose licence they have" in card
    assert "Optical Recognition of Handwritten Digits (E. Alpaydin and C. Kaynak" in card
    assert f"`{NAME}`" in card
    assert sha256(DATA) in card


def test_the_card_of_published_weights_says_whose_licence_and_every_name() -> None:
    record = manifest_record("deit3_small_in21k")
    card = carry._card(record, "0" * 64)
    assert "apache-2.0: the authors' LICENSE and README" in card
    assert "ImageNet-21k, then ImageNet-1k (ILSVRC 2012)" in card
    for name in ("deit_3_small_224_21k", "timm/deit3_small_patch16_224.fb_in22k_ft_in1k"):
        assert f"`{name}`" in card


def test_a_carried_model_goes_by_its_name(
    online: dict[str, str], alone: dict[str, str], tmp_path: Path
) -> None:
    for to, path in (("one", "one"), (f"many/{NAME}", f"nothing{os.pathsep}many")):
        assert deit_zoo("weights", "fetch", NAME, "--to", tmp_path / to, env=online).status == 0
        shutil.rmtree(tmp_path / "hf", ignore_errors=True)
        shutil.rmtree(tmp_path / "zoo", ignore_errors=True)
        folders = os.pathsep.join(str(tmp_path / part) for part in path.split(os.pathsep))
        offline = alone | {
            "DEIT_ZOO_MANIFEST": online["DEIT_ZOO_MANIFEST"],
            "DEIT_ZOO_WEIGHTS": folders,
        }
        code = (
            "import socket\n"
            "socket.socket.connect = None\n"
            "import deit_zoo\n"
            f"print(deit_zoo.create({NAME!r}, pretrained=True).checkpoint.sha256)\n"
        )
        assert python(code, env=offline).strip() == sha256(DATA)
        done = deit_zoo("weights", "verify", NAME, "--json", env=offline)
        [row] = json.loads(done.out)
        assert (row["status"], row["proof"]) == ("whole", "pinned")
        assert Path(row["file"]).is_relative_to(tmp_path / to)


def test_a_carried_model_of_other_bytes_is_refused_by_its_name_too(
    typed: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a"
    typed("fetch", NAME, "--to", folder)
    monkeypatch.setenv("DEIT_ZOO_WEIGHTS", str(folder))
    monkeypatch.setenv("DEIT_ZOO_CACHE", str(tmp_path / "zoo"))
    assert zoo.create(NAME, pretrained=True).checkpoint.proof == "pinned"
    flip(folder / "model.safetensors", 100_000)
    with pytest.raises(IntegrityError, match=r"a/model\.safetensors has SHA-256"):
        zoo.create(NAME, pretrained=True)
    sums = digest(folder / "model.safetensors")
    (folder / "SHA256SUMS").write_text(f"{sums}  model.safetensors\n")
    with pytest.raises(IntegrityError, match="pins"):
        zoo.create(NAME, pretrained=True)
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(IntegrityError, match="pins"):
        zoo.create(NAME, pretrained=True)


def test_a_carried_folder_needs_no_name(
    typed: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed("fetch", NAME, "--to", tmp_path / "a")
    assert zoo.create(checkpoint=tmp_path / "a").spec.name == NAME


def test_the_record_in_a_folder_is_the_manifests(
    typed: Callable[..., Done], tmp_path: Path
) -> None:
    typed("fetch", NAME, "--to", tmp_path / "a")
    bundled = json.loads(manifest_path().read_text(encoding="utf-8"))["checkpoints"][NAME]
    assert json.loads((tmp_path / "a" / "checkpoint.json").read_text()) == {NAME: bundled}


def test_several_names_get_a_folder_each(typed: Callable[..., Done], tmp_path: Path) -> None:
    done = typed("fetch", NAME, OTHER, NAME, "--to", tmp_path / "all")
    assert done.status == 0
    assert len(done.out.splitlines()) == 3
    for name in (NAME, OTHER):
        folder = tmp_path / "all" / name
        assert digest(folder / "model.safetensors") == manifest_record(name).sha256
    done = typed("verify", "all")
    assert (done.status, done.out.count(" whole ")) == (0, 8)
    flip(tmp_path / "all" / OTHER / "model.safetensors", 100_000)
    assert typed("verify", "all").status == 1
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == sorted((NAME, OTHER))
    for name in ("checkpoint.json", "SHA256SUMS"):  # copied in part
        (tmp_path / "all" / OTHER / name).unlink()
    assert f"all/{OTHER} has no readable SHA256SUMS" in typed("verify", "all").err


def test_a_folder_with_other_files_is_refused_and_left_alone(
    typed: Callable[..., Done], tmp_path: Path
) -> None:
    for name in ("mine", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    (tmp_path / "run" / "model.safetensors").write_bytes(b"trained for a week")
    (tmp_path / "file").touch()
    typed("fetch", NAME, "--to", "carried")
    (tmp_path / "carried" / "notes.txt").write_text("keep")
    for name, message in (
        ("carried", "carried holds other files (notes.txt); give a new or empty folder as --to"),
        ("mine", "mine holds other files (notes.txt); give a new or empty folder as --to"),
        ("run", "run holds other files (model.safetensors); give a new or empty folder as --to"),
        ("file", "file is a file; give a folder as --to"),
    ):
        done = typed("fetch", NAME, "--to", name)
        assert sentence(done) == message
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == b"trained for a week"


def test_the_folder_one_stands_in_can_be_filled(
    typed: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert typed("fetch", NAME, "--to", ".").status == 0
    assert len(list((tmp_path / "here").iterdir())) == 5


def test_a_folder_of_another_model_is_refused(typed: Callable[..., Done], tmp_path: Path) -> None:
    typed("fetch", OTHER, "--to", tmp_path / "a")
    message = sentence(typed("fetch", NAME, "--to", tmp_path / "a"))
    assert "holds other files" in message


def test_fetching_again_mends_a_broken_folder(typed: Callable[..., Done], tmp_path: Path) -> None:
    folder = tmp_path / "a"
    arguments = ("fetch", NAME, "--to", folder)
    typed(*arguments)
    inode = (folder / "model.safetensors").stat().st_ino
    assert typed(*arguments).status == 0
    assert (folder / "model.safetensors").stat().st_ino == inode  # whole, so left as it was
    flip(folder / "model.safetensors", 9000)
    for place in (folder, tmp_path):  # what processes that were killed had begun
        torn = temporary_in(place, "deit_zoo")
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        torn.with_name(torn.name.replace(f".{os.getpid()}.", f".{ended.pid}.")).mkdir()
    assert typed(*arguments).status == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(carry.FOLDER_FILES)
    assert typed("fetch", NAME, "--to", tmp_path / "b").status == 0
    assert (folder / "model.safetensors").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_cannot_be_fetched_leaves_no_folder(alone: dict[str, str], tmp_path: Path) -> None:
    done = deit_zoo("weights", "fetch", "deit_tiny", "--to", tmp_path / "a", env=alone)
    assert "HF_HUB_OFFLINE is set" in sentence(done)
    assert not (tmp_path / "a").exists()


def test_verify_reads_what_is_here_and_names_what_is_not(alone: dict[str, str]) -> None:
    done = deit_zoo("weights", "verify", "--json", env=alone)
    assert (done.status, done.err) == (0, "")
    rows = {row["name"]: row for row in json.loads(done.out)}
    assert set(rows) == set(read_manifest())
    embedded = {name for name, row in rows.items() if row["status"] == "whole"}
    assert embedded == {"convnet_pico_digits", NAME, OTHER}
    assert {row["status"] for row in rows.values()} == {"whole", "not cached"}
    assert rows[NAME]["sha256"] == rows[NAME]["expected"] == sha256(DATA)


def test_verify_finds_a_byte_that_changed_in_the_cache_without_a_request(
    hub: HubServer, online: dict[str, str]
) -> None:
    [row] = json.loads(deit_zoo("weights", "fetch", NAME, "--json", env=online).out)
    file = Path(row["where"])
    flip(file.resolve(), len(DATA) - 1)
    before = len(hub.requests)
    done = deit_zoo("weights", "verify", env=online)
    assert done.status == 1
    assert done.out.splitlines()[1].split() == [NAME, "wrong", "1.3", "pinned", str(file)]
    assert done.err == (
        f"error: {file} has SHA-256 {digest(file)}, but {sha256(DATA)} is expected; type "
        f"`deit-zoo weights fetch {NAME}` to get it again\n"
    )
    assert len(hub.requests) == before
    # What verify found is known from then on, though size and time say nothing.
    assert deit_zoo("weights", "fetch", NAME, env=online).status == 0
    assert file.read_bytes() == DATA


def test_verify_finds_a_byte_that_changed_in_a_fetched_folder(
    typed: Callable[..., Done], tmp_path: Path
) -> None:
    typed("fetch", NAME, "--to", tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    flip(tmp_path / "b" / "model.safetensors", 100_000)
    done = typed("verify", "a", "b")
    assert done.status == 1
    verdicts = [line.split()[1] for line in done.out.splitlines()[1:]]
    assert verdicts == [*["whole"] * 4, *["whole"] * 3, "wrong"]
    assert done.err.startswith("error: b/model.safetensors has SHA-256 ")
    assert sha256(DATA) in done.err
    (tmp_path / "b" / "model.safetensors").unlink()
    done = typed("verify", "b")
    assert done.status == 1
    assert "b/model.safetensors cannot be read (No such file or directory)" in done.err


@pytest.fixture
def pth(tmp_path: Path) -> Path:
    """An upstream checkpoint of an embedded model: weights under `model`, the rest beside them."""
    state = zoo.create(NAME, pretrained=True).state_dict()
    content = {"model": state, "optimizer": {"state": {}}, "epoch": 3}
    torch.save(content, tmp_path / "deit_pico_digits.pth")
    return tmp_path / "deit_pico_digits.pth"


def test_convert_writes_the_same_bytes_every_time_and_prints_the_record(
    pth: Path, alone: dict[str, str], tmp_path: Path
) -> None:
    done = deit_zoo("weights", "convert", pth, env=alone)
    output = pth.with_suffix(".safetensors")
    assert done.err == f"{output} is written; its tensors are exactly the model's\n"
    record: dict[str, Any] = json.loads(done.out)[NAME]
    assert list(record) == list(
        json.loads(manifest_path().read_text())["checkpoints"]["deit_tiny"]
    ), "in the order of the manifest"
    hub_record, url_record = record["sources"]
    assert (hub_record["sha256"], hub_record["bytes"]) == (digest(output), output.stat().st_size)
    assert url_record == {
        "kind": "url",
        "url": None,
        "sha256_prefix": digest(pth),
        "format": "upstream_pth",
    }
    assert (record["num_params"], record["num_classes"], record["labels"]) == (317690, 10, "digits")
    assert [key for key, value in record.items() if value is None] == [
        "crop_pct",
        "interpolation",
        "origin",
        "license",
        "paper",
    ]
    again = tmp_path / "again.safetensors"
    assert deit_zoo("weights", "convert", pth, "--output", again, env=alone).status == 0
    assert (
        digest(again)
        == digest(output)
        == write_tensors(read_state(pth).tensors, tmp_path / "cached.safetensors")
    )


def test_a_converted_file_is_the_model(pth: Path, typed: Callable[..., Done]) -> None:
    typed("convert", pth)
    x = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        ours = zoo.create(NAME, checkpoint=pth.with_suffix(".safetensors"))(x)
        assert torch.equal(ours, zoo.create(NAME, pretrained=True)(x))


def test_convert_reads_transformers_layout(typed: Callable[..., Done], tmp_path: Path) -> None:
    state = zoo.create(OTHER, pretrained=True).state_dict()
    save_file(as_transformers(state), tmp_path / "theirs.safetensors")
    output = tmp_path / "ours.safetensors"
    done = typed(
        *("convert", tmp_path / "theirs.safetensors", "--output", output),
        *("--name", OTHER),
    )
    assert done.status == 0, done.err
    assert [source["kind"] for source in json.loads(done.out)[OTHER]["sources"]] == ["hub"]
    converted = load_file(output)
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[key], state[key]) for key in state)


def as_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A distilled model's tensors under the keys of transformers' DeiT."""
    embeddings = "deit.embeddings."
    names = {
        "cls_token": f"{embeddings}cls_token",
        "dist_token": f"{embeddings}distillation_token",
        "pos_embed": f"{embeddings}position_embeddings",
        "patch_embed.proj": f"{embeddings}patch_embeddings.projection",
        "norm": "deit.layernorm",
        "head": "cls_classifier",
        "head_dist": "distillation_classifier",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    theirs: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        prefix, rest = "", key
        if key.startswith("blocks."):
            _, number, rest = key.split(".", 2)
            prefix = f"deit.encoder.layer.{number}."
        if rest in names:
            theirs[prefix + names[rest]] = value
            continue
        stem, kind = rest.rsplit(".", 1)
        if stem == "attn.qkv":
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            theirs |= {
                f"{prefix}attention.attention.{part}.{kind}": tensor.clone()
                for part, tensor in parts
            }
        else:
            theirs[f"{prefix}{names[stem]}.{kind}"] = value
    return theirs


def test_convert_writes_nothing_where_the_tensors_do_not_fit(
    pth: Path, typed: Callable[..., Done]
) -> None:
    done = typed("convert", pth, "--name", OTHER)
    assert "does not fit deit_pico_distilled_digits: missing dist_token" in sentence(done)
    assert not pth.with_suffix(".safetensors").exists()


def test_convert_writes_nothing_where_tensors_alone_would_say_less(
    pth: Path, typed: Callable[..., Done]
) -> None:
    stated = {"architecture": NAME, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    (pth.parent / "config.json").write_text(json.dumps(stated))
    assert "states images of mean [0.5, 0.5, 0.5] and std" in sentence(typed("convert", pth))
    (pth.parent / "config.json").write_text('{"hidden_act": "relu"}')
    assert "states activation='relu', but deit_pico_digits" in sentence(typed("convert", pth))
    assert not pth.with_suffix(".safetensors").exists()


def test_convert_suggests_models_of_the_same_size_where_the_name_says_nothing(
    pth: Path, typed: Callable[..., Done]
) -> None:
    nameless = pth.rename(pth.with_name("checkpoint.pth"))
    assert sentence(typed("convert", nameless)) == (
        f"the name of {nameless} is no model's; type --name NAME, with 317,690 parameters perhaps "
        "deit_pico_digits, deit_pico_distilled_digits or convnet_pico_digits"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch", "deit_tinny"], "no model is named 'deit_tinny'; did you mean deit_tiny"),
        (["verify", "deit_tinny"], "no model is named 'deit_tinny'"),
        (["fetch", NAME, "--to", "a.safetensors/x"], "x cannot be written (Not a directory)"),
        (["verify", "./empty"], "empty has no readable SHA256SUMS"),
        (["convert", "absent.pth"], "absent.pth is no file; give a .pth or .safetensors file"),
        (["convert", "cut.pth", "--name", NAME], "cut.pth is not a whole PyTorch file"),
        (["convert", "a.safetensors"], "a.safetensors is the file to convert"),
        (["convert", "cut.pth", "--output", "x.bin"], "--output is 'x.bin'; give a .safetensors"),
        (["convert", "cut.pth", "--output", "no/x.safetensors"], "in a folder that exists"),
        (["pin", "deit_tinny"], "no model is named 'deit_tinny'"),
        (["pin", "--manifest", "absent.json"], "the weights manifest absent.json cannot be read"),
        (["publish", "deit_tinny", "--repo", "a/b"], "no model is named 'deit_tinny'"),
        (
            ["publish", NAME, "--repo", "a/b", "--dry-run", "--output", "a.safetensors/x"],
            "x cannot be written (Not a directory)",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_word_is_answered_in_one_sentence(
    arguments: list[str], message: str, typed: Callable[..., Done], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 and then nothing")
    (tmp_path / "a.safetensors").touch()
    assert message in sentence(typed(*arguments))
