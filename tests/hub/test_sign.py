"""A folder is signed with a private key and proved with the public one, without a network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from deit_zoo.errors import CheckpointError, IntegrityError
from deit_zoo.hub.sign import check_signature, sign
from support.command import deit_zoo, sentence

NAME = "deit_pico_digits"


def write_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """A private key of one's own, and the public one to give away."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path]:
    """A signed folder of some files, and the public key."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(1000))
    (folder / "README.md").write_text("weights")
    private, public = write_keys(tmp_path, "mine")
    assert sign(folder, private) == folder / "model.sig"
    return folder, public


def test_a_signed_folder_is_proved_wherever_it_is_carried(signed: tuple[Path, Path]) -> None:
    folder, public = signed
    check_signature(folder, public)
    shutil.copytree(folder, folder.with_name("elsewhere"))
    check_signature(folder.with_name("elsewhere"), public)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a byte": lambda folder: (folder / "model.safetensors").write_bytes(bytes(999) + b"\1"),
    "a new file": lambda folder: (folder / "config.json").write_text("{}"),
    "a missing file": lambda folder: (folder / "README.md").unlink(),
    "no signature": lambda folder: (folder / "model.sig").unlink(),
    "an empty signature": lambda folder: (folder / "model.sig").write_text("{}"),
    "a deep signature": lambda folder: (folder / "model.sig").write_text("[" * 100_000),
    "a FIFO": lambda folder: os.mkfifo(folder / "notes"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_is_no_longer_what_was_signed(
    change: str, signed: tuple[Path, Path]
) -> None:
    folder, public = signed
    CHANGES[change](folder)
    with pytest.raises(IntegrityError, match=r"not what was signed|so nobody signed it") as caught:
        check_signature(folder, public)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_another_key_did_not_sign_it(signed: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = signed
    _, public = write_keys(tmp_path, "other")
    with pytest.raises(
        IntegrityError, match=r"is not what was signed with the key of .*other\.pub"
    ):
        check_signature(folder, public)
    with pytest.raises(CheckpointError, match="give a private key in PEM form"):
        sign(folder, public)
    with pytest.raises(CheckpointError, match="give a private key in PEM form"):
        sign(folder, tmp_path / "none.pem")


def test_a_key_that_is_no_file_does_not_hang(signed: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = signed
    os.mkfifo(tmp_path / "fifo")
    for key in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="could not be signed with"):
            sign(folder, key)
        with pytest.raises(IntegrityError, match="give a regular file"):
            check_signature(folder, key)


@pytest.mark.slow
def test_publish_signs_and_verify_asks_for_the_key(tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "mine")
    folder = tmp_path / "out"
    publish = ("weights", "publish", NAME, "--repo", "org/pico", "--dry-run", "--sign", private)
    done = deit_zoo(*publish, "--output", folder)
    assert done.status == 0
    assert str(folder / "model.sig") in done.out.splitlines()
    done = deit_zoo("weights", "verify", folder, "--key", public)
    assert (done.status, done.err) == (0, f"{folder} is what was signed with the key of {public}\n")
    with (folder / "README.md").open("a") as stream:
        stream.write("\nchanged")
    done = deit_zoo("weights", "verify", folder, "--key", public)
    assert done.status == 1
    wrong, unsigned = done.err.splitlines()
    assert wrong.startswith(f"error: {folder / 'README.md'} has SHA-256 ")
    assert unsigned.startswith(f"error: {folder} is not what was signed with the key of {public} (")
    assert "--key proves folders" in sentence(deit_zoo("weights", "verify", NAME, "--key", public))
