"""Who wrote a folder of weights: signatures with a key of one's own, by OpenSSF model-signing.

A signature covers every file of the folder. It needs no network: who signs keeps a private key and
gives the public one away.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deit_zoo.errors import CheckpointError, IntegrityError, words_of
from deit_zoo.files import read_bytes, read_json
from deit_zoo.machine import require_extra

SIGNATURE_FILE = "model.sig"
KEY_BYTES = 1 << 16


def sign(folder: Path, private_key: Path) -> Path:
    """Leave the signature of a folder in it. Returns its file.

    Raises CheckpointError where the key is none.
    """
    require_extra("sign", "a signature", "model_signing")
    import model_signing

    signature = folder / SIGNATURE_FILE
    config = model_signing.signing.Config().set_hashing_config(_hashing(signature))
    try:
        read_bytes(private_key, KEY_BYTES)  # what is no regular file could hang, or never end
        config.use_elliptic_key_signer(private_key=private_key).sign(folder, signature)
    except Exception as error:  # whatever the library makes of a key
        raise CheckpointError(
            f"{folder} could not be signed with {private_key} ({words_of(error):.200}); give a "
            "private key in PEM form, as of `openssl ecparam -name prime256v1 -genkey -noout`"
        ) from error
    return signature


def check_signature(folder: Path, public_key: Path) -> None:
    """Raises IntegrityError unless all that is in a folder was signed with the key's other half."""
    require_extra("sign", "a signature", "model_signing")
    import model_signing

    signature = folder / SIGNATURE_FILE
    if not signature.exists():
        raise IntegrityError(f"{folder} has no {SIGNATURE_FILE}, so nobody signed it")
    for path in folder.rglob("*"):
        if not path.is_dir() and not path.is_file():  # reading it could hang
            raise IntegrityError(f"{path} is no regular file, so {folder} is not what was signed")
    config = model_signing.verifying.Config().set_hashing_config(_hashing(signature))
    try:
        read_json(signature)
        read_bytes(public_key, KEY_BYTES)
        config.use_elliptic_key_verifier(public_key=public_key).verify(folder, signature)
    except Exception as error:  # whatever the library makes of a forged signature
        raise IntegrityError(
            f"{folder} is not what was signed with the key of {public_key} ({words_of(error):.200})"
        ) from error


def _hashing(signature: Path) -> Any:
    import model_signing

    config = model_signing.hashing.Config()
    return config.set_ignored_paths(paths=[signature], ignore_git_paths=False)
