"""The weights manifest: which bytes a name means, how good they are, and how that is known.

Plain data under a strict schema: a field too many or too few is an error that names its record.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from deit_zoo.errors import CheckpointError
from deit_zoo.registry import MODELS

SCHEMA_VERSION = 1
FILENAME = "weights_manifest.json"
ENVIRONMENT = "DEIT_ZOO_MANIFEST"

_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One place where a checkpoint's file can be had. A null digest is unknown, never guessed."""

    kind: str
    filename: str | None = None
    sha256: str | None = None
    repo_id: str | None = None
    revision: str | None = None
    bytes: int | None = None
    url: str | None = None
    sha256_prefix: str | None = None
    format: str | None = None

    @property
    def proof(self) -> str:
        """How a file is known to be the right one: pinned, hub digest, prefix or none."""
        if self.sha256 is not None:
            return "pinned"
        if self.kind == "hub":
            return "hub digest"
        return "prefix" if self.sha256_prefix is not None else "none"


# The fields of each kind of source; all of them must be there, and no other.
_SOURCE_FIELDS = {
    "builtin": {"kind", "filename", "sha256"},
    "hub": {"kind", "repo_id", "filename", "revision", "sha256", "bytes"},
    "url": {"kind", "url", "sha256_prefix", "format"},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """Accuracy in percent on one validation set, with the record's own transform."""

    top1: float | None
    top5: float | None
    loss: float | None
    source: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """One record: where the bytes are, what they hold, how to prepare an image, how good it is.

    `origin` is `upstream` (the authors' tensors) or `reproduced` (trained by this package; then
    `log` names the per-epoch log beside the file).
    """

    name: str
    sources: tuple[Source, ...]
    num_params: int
    num_classes: int
    labels: str
    crop_pct: float
    interpolation: str
    metrics: dict[str, Metric]
    origin: str
    license: str
    paper: str | None
    log: str | None = None

    @property
    def metric(self) -> Metric | None:
        """The first metric that holds a top-1: the published one where there is one."""
        return next((m for m in self.metrics.values() if m.top1 is not None), None)

    @property
    def sha256(self) -> str | None:
        """The digest of the preferred source's file, where it is known."""
        return self.sources[0].sha256

    @property
    def proof(self) -> str:
        """The strength of proof of the preferred source."""
        return self.sources[0].proof

    def to_dict(self) -> dict[str, Any]:
        """The record as plain data, each source with its strength of proof."""
        sources = [asdict(source) | {"proof": source.proof} for source in self.sources]
        return asdict(self) | {"sources": sources, "proof": self.proof}


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalCheckpoint:
    """A file that the caller named: its digest where something states it, and what it says."""

    path: Path
    sha256: str | None
    metadata: dict[str, Any]


def manifest_path() -> Path:
    """The manifest in force: the user's, the wheel's, or the checkout's."""
    if chosen := os.environ.get(ENVIRONMENT):
        return Path(chosen)
    package = Path(__file__).resolve().parent
    in_wheel = package / FILENAME
    return in_wheel if in_wheel.is_file() else package.parent / FILENAME


def manifest_record(name: str) -> Checkpoint:
    """The record of a canonical name. Raises CheckpointError where the manifest has none."""
    path = manifest_path()
    records = read_manifest(path)
    if name not in records:
        raise CheckpointError(
            f"{path} has no checkpoint for {name!r}; create({name!r}) without pretrained=True "
            "gives random weights"
        )
    return records[name]


def read_manifest(path: Path | None = None) -> dict[str, Checkpoint]:
    """All records of a manifest, or of the one in force, checked.

    Raises CheckpointError naming the record and field.
    """
    path = path or manifest_path()
    try:
        status = path.stat()
        return _read(path, status.st_mtime_ns)
    except OSError as error:
        raise CheckpointError(
            f"the weights manifest {path} cannot be read ({error.strerror}); reinstall deit_zoo, "
            f"or set {ENVIRONMENT} to a manifest file"
        ) from error


@cache
def _read(path: Path, _mtime_ns: int) -> dict[str, Checkpoint]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"the weights manifest {path} is not JSON: {error}") from error
    _check_fields(data, {"schema_version", "checkpoints"}, f"{path}")
    if data["schema_version"] != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has schema_version {data['schema_version']!r}, this deit_zoo reads "
            f"{SCHEMA_VERSION}; install the deit_zoo it was written for"
        )
    _check_type(data["checkpoints"], dict, f"{path}: checkpoints")
    return {name: _record(name, value) for name, value in data["checkpoints"].items()}


def _record(name: str, value: Any) -> Checkpoint:
    where = f"manifest record {name!r}"
    if name not in MODELS:
        raise CheckpointError(f"{where}: no model of the registry has this canonical name")
    required = {field.name for field in fields(Checkpoint)} - {"name", "log"}
    reproduced = isinstance(value, dict) and value.get("origin") == "reproduced"
    _check_fields(value, required | {"log"} if reproduced else required, where)
    _check_choice(value["origin"], ("upstream", "reproduced"), f"{where}: origin")
    _check_choice(value["interpolation"], ("bicubic",), f"{where}: interpolation")
    _check_choice(value["labels"], ("imagenet1k", "digits"), f"{where}: labels")
    for key in ("num_params", "num_classes"):
        _check_positive(value[key], int, f"{where}: {key}")
    _check_positive(value["crop_pct"], (int, float), f"{where}: crop_pct")
    if value["crop_pct"] > 1:
        raise CheckpointError(f"{where}: crop_pct is {value['crop_pct']}; it must be at most 1")
    if reproduced:
        _check_type(value["log"], str, f"{where}: log")
    _check_type(value["license"], str, f"{where}: license")
    _check_type(value["paper"], (str, type(None)), f"{where}: paper")
    _check_type(value["sources"], list, f"{where}: sources")
    _check_type(value["metrics"], dict, f"{where}: metrics")
    if not value["sources"]:
        raise CheckpointError(f"{where}: sources is empty; give at least one")
    parts: dict[str, Any] = {
        "sources": tuple(
            _source(source, f"{where}: source {number}")
            for number, source in enumerate(value["sources"])
        ),
        "metrics": {
            key: _metric(metric, f"{where}: metric {key!r}")
            for key, metric in value["metrics"].items()
        },
    }
    return Checkpoint(name=name, **(value | parts))


def _source(value: Any, where: str) -> Source:
    _check_type(value, dict, where)
    _check_choice(value.get("kind"), tuple(_SOURCE_FIELDS), f"{where}: kind")
    _check_fields(value, _SOURCE_FIELDS[value["kind"]], where)
    for key, digits in (("sha256", 64), ("revision", 40), ("sha256_prefix", None)):
        _check_hex(value.get(key), digits, f"{where}: {key}")
    for key in ("filename", "repo_id", "url", "format"):
        if key in value:
            _check_type(value[key], str, f"{where}: {key}")
    _check_type(value.get("bytes"), (int, type(None)), f"{where}: bytes")
    if value["kind"] == "builtin" and value["sha256"] is None:
        raise CheckpointError(f"{where}: sha256 is null, but a builtin file's digest is known")
    return Source(**value)


def _metric(value: Any, where: str) -> Metric:
    _check_fields(value, {field.name for field in fields(Metric)}, where)
    for key in ("top1", "top5", "loss"):
        _check_type(value[key], (int, float, type(None)), f"{where}: {key}")
    _check_type(value["source"], (str, type(None)), f"{where}: source")
    return Metric(**value)


def _check_fields(value: Any, expected: set[str], where: str) -> None:
    _check_type(value, dict, where)
    unknown, missing = sorted(set(value) - expected), sorted(expected - set(value))
    if unknown or missing:
        told = [f"unknown fields {unknown}"] if unknown else []
        told += [f"missing fields {missing}"] if missing else []
        raise CheckpointError(f"{where} has {' and '.join(told)}; it must have {sorted(expected)}")


def _check_type(value: Any, kind: type | tuple[type, ...], where: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
        raise CheckpointError(f"{where} is {value!r}; it must be of type {wanted}")


def _check_positive(value: Any, kind: type | tuple[type, ...], where: str) -> None:
    _check_type(value, kind, where)
    if value <= 0:
        raise CheckpointError(f"{where} is {value!r}; it must be above 0")


def _check_choice(value: Any, choices: tuple[str, ...], where: str) -> None:
    if value not in choices:
        raise CheckpointError(f"{where} is {value!r}; it must be one of {', '.join(choices)}")


def _check_hex(value: Any, digits: int | None, where: str) -> None:
    _check_type(value, (str, type(None)), where)
    if value is not None and not (
        _HEX.fullmatch(value) and len(value) == (digits or len(value)) and len(value) >= 8
    ):
        length = f"{digits} hexadecimal digits" if digits else "8 or more hexadecimal digits"
        raise CheckpointError(f"{where} is {value!r}; it must be {length}, or null where unknown")
