"""The weights manifest: which bytes a name means, how good they are, and how that is known.

Plain data under a strict schema: a field too many or too few is an error that names its record.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from deit_zoo.errors import CheckpointError, FormatError, redact
from deit_zoo.files import expand_user, is_inside, read_json
from deit_zoo.registry import MODELS

SCHEMA_VERSION = 1
FILENAME = "weights_manifest.json"
ENVIRONMENT = "DEIT_ZOO_MANIFEST"
# How a metric's name begins on another of ImageNet's sets, and ends where timm measured it.
ELSEWHERE, OF_TIMM = "imagenet_", "_timm"
# How an image is decoded: as a person sees it, or as upstream's loader does.
Reading = Literal["upright", "upstream"]
# Of the images that every model here takes, whatever it was trained on.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_hints = cache(get_type_hints)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One place where a checkpoint's file can be had. A null digest is unknown, never guessed."""

    kind: Literal["builtin", "hub", "url"]
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
    labels: Literal["imagenet1k", "digits"]
    crop_pct: float
    interpolation: Literal["bicubic"]
    metrics: dict[str, Metric]
    origin: Literal["upstream", "reproduced"]
    license: str
    paper: str | None
    log: str | None = None

    @property
    def metric(self) -> Metric | None:
        """The first metric on its own validation set that holds a top-1."""
        own = (metric for key, metric in self.metrics.items() if not key.startswith(ELSEWHERE))
        return next((metric for metric in own if metric.top1 is not None), None)

    def metric_on(self, kind: str) -> Metric | None:
        """What is known on another of ImageNet's sets: real, v2, a, r or sketch."""
        key = ELSEWHERE + kind
        return self.metrics.get(key) or self.metrics.get(key + OF_TIMM)

    def is_timms(self, metric: Metric | None) -> bool:
        """Whether a figure is one that timm measured with this transform, not the authors' own."""
        return any(metric is its for key, its in self.metrics.items() if key.endswith(OF_TIMM))

    @property
    def sha256(self) -> str | None:
        """The digest of the preferred source's file, where it is known."""
        return self.sources[0].sha256

    @property
    def proof(self) -> str:
        """The strength of proof of the preferred source."""
        return self.sources[0].proof

    def to_dict(self) -> dict[str, Any]:
        """The record as plain data to show, each source with its strength of proof."""
        sources = [
            asdict(source) | {"proof": source.proof, "url": source.url and redact(source.url)}
            for source in self.sources
        ]
        return asdict(self) | {"sources": sources, "proof": self.proof}


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalCheckpoint:
    """A file that the caller named: its digest where something states it, and what it says.

    `proof` is what states the digest; `weights` are the ones meant, where it holds several.
    """

    path: Path
    sha256: str | None
    metadata: dict[str, Any]
    weights: str | None = None
    proof: str = "none"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self) | {"path": str(self.path)}


def manifest_path() -> Path:
    """The manifest in force: the user's, the wheel's, or the checkout's."""
    if chosen := os.environ.get(ENVIRONMENT):
        return expand_user(chosen)
    package = Path(__file__).resolve().parent
    in_wheel = package / FILENAME
    return in_wheel if in_wheel.is_file() else package.parent / FILENAME


def timm_images(input_size: tuple[int, int, int], crop_pct: float) -> dict[str, Any]:
    """How images of this size (channels, height, width) are prepared, as timm states it."""
    return {
        "input_size": input_size,
        "interpolation": "bicubic",
        "crop_pct": crop_pct,
        "crop_mode": "center",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }


def manifest_record(name: str) -> Checkpoint:
    """The record of a canonical name. Raises CheckpointError where the manifest has none."""
    path = manifest_path()
    records = read_manifest(path)
    if name not in records:
        raise CheckpointError(
            f"{path} has no checkpoint for {name!r}; create({name!r}) without pretrained=True "
            "gives random weights, and docs/adding.md says what a record of it is"
        )
    return records[name]


def read_manifest(path: Path | None = None) -> dict[str, Checkpoint]:
    """All records of a manifest, or of the one in force, checked.

    Raises CheckpointError naming the record and field.
    """
    path = path or manifest_path()
    try:
        return _read(path, path.stat().st_mtime_ns)
    except OSError as error:
        is_chosen = os.environ.get(ENVIRONMENT) and path == manifest_path()
        remedy = f"unset {ENVIRONMENT}, which names it" if is_chosen else "reinstall deit_zoo"
        raise CheckpointError(
            f"the weights manifest {path} cannot be read ({error.strerror}); {remedy}, "
            f"or set {ENVIRONMENT} to a manifest file"
        ) from error


read = read_manifest  # by this name until 0.3


@cache
def _read(path: Path, _mtime_ns: int) -> dict[str, Checkpoint]:
    try:
        data = read_json(path)
    except FormatError as error:
        raise CheckpointError(f"the weights manifest {error}") from error
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
    expected = {field.name for field in fields(Checkpoint)} - {"name", "log"}
    if reproduced := isinstance(value, dict) and value.get("origin") == "reproduced":
        expected.add("log")
    _check_fields(value, expected, where)
    _check_types(value, Checkpoint, where)
    if reproduced:
        _check_type(value["log"], str, f"{where}: log")
        _check_name(value["log"], _is_plain, f"{where}: log", "a file's name without a folder")
    for key in ("num_params", "num_classes", "crop_pct"):
        if value[key] <= 0:
            raise CheckpointError(f"{where}: {key} is {value[key]!r}; it must be above 0")
    if value["crop_pct"] > 1:
        raise CheckpointError(f"{where}: crop_pct is {value['crop_pct']}; it must be at most 1")
    if not value["sources"]:
        raise CheckpointError(f"{where}: sources is empty; give at least one")
    sources = tuple(
        _source(source, f"{where}: source {number}")
        for number, source in enumerate(value["sources"])
    )
    metrics = {
        key: _metric(metric, f"{where}: metric {key!r}") for key, metric in value["metrics"].items()
    }
    return Checkpoint(name=name, **(value | {"sources": sources, "metrics": metrics}))


def _is_plain(name: str) -> bool:
    return is_inside(name) and not {"/", "\\"} & set(name)


def is_repo_id(text: str) -> bool:
    """ORG/REPO or REPO, as the Hub has them."""
    parts = text.split("/")
    return (
        len(parts) <= 2
        and len(text) <= 96
        and all(re.fullmatch(r"\w(?:[\w.-]*\w)?", part, re.ASCII) for part in parts)
        and not ("--" in text or ".." in text or text.endswith(".git"))
    )


def _is_url(text: str) -> bool:
    """An address whose last part can be a file's name."""
    match = re.fullmatch(r"https?://[^/?#\s]+/(?:[^?#\s]*/)?([^/?#\s]+)(?:[?#]\S*)?", text)
    return match is not None and _is_plain(match[1])


def _source(value: Any, where: str) -> Source:
    _check_type(value, dict, where)
    _check_type(value.get("kind"), _hints(Source)["kind"], f"{where}: kind")
    _check_fields(value, _SOURCE_FIELDS[value["kind"]], where)
    _check_types(value, Source, where)
    for key in {"filename", "repo_id", "url", "format"} & value.keys():
        _check_type(value[key], str, f"{where}: {key}")
    for key, is_right, what in _FORMS:
        if value.get(key) is not None:
            _check_name(value[key], is_right, f"{where}: {key}", what)
    if value["kind"] == "builtin":
        what = "a file's name without a folder"
        _check_name(value["filename"], _is_plain, f"{where}: filename", what)
        if value["sha256"] is None:
            raise CheckpointError(f"{where}: sha256 is null, but a builtin file's digest is known")
    return Source(**value)


_DIGITS = "hexadecimal digits, or null where unknown"
# What the fields of a source look like.
_FORMS: tuple[tuple[str, Callable[[str], object], str], ...] = (
    ("filename", is_inside, "a file's name within its folder"),
    ("repo_id", is_repo_id, "ORG/REPO"),
    ("url", _is_url, "http:// or https:// and the name of a file"),
    ("sha256", re.compile("[0-9a-f]{64}").fullmatch, f"64 {_DIGITS}"),
    ("revision", re.compile("[0-9a-f]{40}").fullmatch, f"40 {_DIGITS}"),
    ("sha256_prefix", re.compile("[0-9a-f]{8,}").fullmatch, f"8 or more {_DIGITS}"),
)


def _metric(value: Any, where: str) -> Metric:
    _check_fields(value, {field.name for field in fields(Metric)}, where)
    _check_types(value, Metric, where)
    return Metric(**value)


def _check_name(value: str, is_right: Callable[[str], object], where: str, what: str) -> None:
    if not is_right(value):
        raise CheckpointError(f"{where} is {value!r:.120}; it must be {what}")


def _check_fields(value: Any, expected: set[str], where: str) -> None:
    _check_type(value, dict, where)
    unknown, missing = sorted(value.keys() - expected), sorted(expected - value.keys())
    if unknown or missing:
        problems = [f"unknown fields {unknown}"] if unknown else []
        problems += [f"missing fields {missing}"] if missing else []
        raise CheckpointError(
            f"{where} has {' and '.join(problems)}; it must have {sorted(expected)}"
        )


def _check_types(value: dict[str, Any], record: type, where: str) -> None:
    """Raises CheckpointError unless every field has the type that the record's class states."""
    hints = _hints(record)
    for key in hints.keys() & value.keys():
        _check_type(value[key], hints[key], f"{where}: {key}")


def _check_type(value: Any, hint: Any, where: str) -> None:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            choices = ", ".join(get_args(hint))
            raise CheckpointError(f"{where} is {value!r:.120}; it must be one of {choices}")
        return
    types = _json_types(hint)
    if not isinstance(value, types) or isinstance(value, bool):
        names = " or ".join("null" if kind is NoneType else kind.__name__ for kind in types)
        raise CheckpointError(f"{where} is {value!r:.120}; it must be of type {names}")


def _json_types(hint: Any) -> tuple[type, ...]:
    """The types as which JSON gives what a field of this type holds."""
    if get_origin(hint) is UnionType:
        return tuple(kind for option in get_args(hint) for kind in _json_types(option))
    if hint is float:
        return int, float
    kind = get_origin(hint) or hint
    return (list if kind is tuple else kind,)
