"""Folders to carry weights in, to machines that have no network.

A folder holds weights, digests, record, licence and card and needs nothing else: with its place in
DEIT_ZOO_WEIGHTS the model goes by its name, and `sha256sum -c SHA256SUMS` checks it as well.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from deit_zoo.errors import CheckpointError, IntegrityError, redact
from deit_zoo.files import (
    MODEL_FILE,
    RECORD_FILE,
    SUMS_FILE,
    digest,
    read_json,
    temporary_in,
    write_sums,
    write_whole,
)
from deit_zoo.hub.verify import CachedFile, copy_file
from deit_zoo.manifest import Checkpoint, manifest_path, manifest_record
from deit_zoo.registry import MODELS
from deit_zoo.weights.proof import carried_name, known_file, stated_digests

LICENSE_FILE, CARD_FILE = "LICENSE", "README.md"
# The weights come last: without them a folder is not used.
FOLDER_FILES = (SUMS_FILE, RECORD_FILE, LICENSE_FILE, CARD_FILE, MODEL_FILE)
_TEMPORARY = "deit_zoo"
_LICENSE_SOURCES = {
    "upstream": (
        "the authors' LICENSE and README at https://github.com/facebookresearch/deit, "
        "Apache-2.0 since commit 0c4b8f6 of 2021-01-08"
    ),
    "reproduced": "trained by deit_zoo, whose licence they have",
}
_DATA = {
    "imagenet1k": (
        "ImageNet-1k (ILSVRC 2012), photographs from the web that may be used for research and "
        "teaching that is not commercial: https://image-net.org/download"
    ),
    "digits": (
        "Optical Recognition of Handwritten Digits (E. Alpaydin and C. Kaynak, UCI Machine "
        "Learning Repository, CC BY 4.0), the part that scikit-learn ships"
    ),
}


def check_free(name: str, folder: Path) -> None:
    """Raises CheckpointError unless the folder is new, empty, or holds this very checkpoint."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give a folder as --to")
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    present = {filename for filename in names if not filename.startswith(f".{_TEMPORARY}.")}
    if present and not (present <= set(FOLDER_FILES) and _recorded_name(folder) == name):
        others = sorted(present - set(FOLDER_FILES)) or sorted(present)
        raise CheckpointError(
            f"{folder} holds other files ({', '.join(others[:3])}); give a new or empty folder as "
            "--to"
        )


def write_folder(file: CachedFile, folder: Path, advance: Callable[[int], None]) -> None:
    """Leave the folder whole or as it was."""
    # Beside what is new, inside what is there: a mounted disk cannot be renamed.
    temporary = temporary_in(folder if folder.exists() else folder.parent, _TEMPORARY)
    if _is_whole(folder, file):
        return
    record = manifest_record(file.name)
    try:
        temporary.mkdir(parents=True)
        sha256 = copy_file(file.path, temporary / MODEL_FILE, advance)
        if problem := file.mismatch(sha256):
            raise IntegrityError(problem)
        pinned = {source.sha256 for source in record.sources} - {None}
        if pinned and sha256 not in pinned:  # which another machine's manifest could not prove
            raise CheckpointError(
                f"{file.path} was converted from the original, but elsewhere {record.name} is "
                f"proved by SHA-256 {' or '.join(sorted(map(str, pinned)))}; fetch it where the "
                "Hub can be reached, or carry the file itself and pass checkpoint=FILE"
            )
        records = read_json(manifest_path())["checkpoints"]
        text = json.dumps({file.name: records[file.name]}, indent=2, ensure_ascii=False)
        write_whole(temporary / RECORD_FILE, f"{redact(text)}\n".encode())
        write_whole(temporary / LICENSE_FILE, _license_text(record).encode())
        write_whole(temporary / CARD_FILE, _card(record, sha256).encode())
        write_sums(temporary)
        if folder.exists():
            for filename in FOLDER_FILES:
                (temporary / filename).replace(folder / filename)
        else:
            temporary.rename(folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written ({error.strerror}); give another folder as --to"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _license_text(record: Checkpoint) -> str:
    if record.license != "apache-2.0":
        return f"The weights of {record.name} are under {record.license}.\n"
    package = Path(__file__).resolve().parents[1]
    in_wheel = package / LICENSE_FILE
    file = in_wheel if in_wheel.is_file() else package.parent / LICENSE_FILE
    return file.read_text(encoding="utf-8")


def _card(record: Checkpoint, sha256: str) -> str:
    """What the weights are, what they saw, and under which licence and by whose word."""
    spec = MODELS[record.name]
    hub = [source.repo_id for source in record.sources if source.repo_id is not None]
    names = ", ".join(f"`{name}`" for name in dict.fromkeys((spec.name, *spec.aliases, *hub)))
    metric = record.metric
    figure = "" if metric is None else f" Top-1 {metric.top1:g} % ({metric.source})."
    before = "ImageNet-21k, then " if spec.name.endswith("_in21k") else ""
    return redact(f"""# {record.name}

{spec.num_params:,} parameters, {spec.img_size} pixels.{figure} SHA-256 of {MODEL_FILE}: `{sha256}`.

## Names

{names}: any of them is this model where `DEIT_ZOO_WEIGHTS` names this folder, or the one above it.

## Data that the weights saw

{before}{_DATA[record.labels]}.

## Licence

{record.license}: {_LICENSE_SOURCES[record.origin]}.
""")


def _is_whole(folder: Path, file: CachedFile) -> bool:
    """Whether a folder has these weights and all they need, and is what it says."""
    if not all((folder / filename).is_file() for filename in FOLDER_FILES):
        return False
    try:
        stated = known_file(folder / MODEL_FILE).sha256
        digests, _ = stated_digests(folder)
    except (CheckpointError, IntegrityError):
        return False
    return (
        file.sha256 in (None, stated)
        and digests.keys() == set(FOLDER_FILES) - {SUMS_FILE}
        and all(digest(folder / name) == sha256 for name, sha256 in digests.items())
    )


def _recorded_name(folder: Path) -> str | None:
    try:
        return carried_name(folder)
    except CheckpointError:
        return None
