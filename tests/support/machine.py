"""One machine of a user: its caches, its manifest, and processes that fetch."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.command import ROOT, Process
from support.hub_server import HubServer

NAME, REPO, FILE, PTH = "deit_pico_digits", "org/pico", "model.safetensors", "/deit/pico.pth"

# Fetches, and prints what came of it; pauses are noted instead of waited for.
LOCATE = """
import json, sys, time
pauses = []
if {instant}:
    time.sleep = pauses.append
{before}
from deit_zoo.manifest import manifest_record
from deit_zoo.errors import ZooError
from deit_zoo.weights import fetch
from deit_zoo.files import digest
try:
    file = fetch.fetch_checkpoint(manifest_record("deit_pico_digits")).path
    told = {{"file": str(file), "sha256": digest(file)}}
except ZooError as error:
    told = {{"error": type(error).__name__, "message": str(error)}}
print(json.dumps(told | {{"pauses": pauses, "torch": "torch" in sys.modules}}))
"""

DOWNLOAD = """
import json, sys, time
from pathlib import Path
pauses = []
time.sleep = pauses.append
{before}
from deit_zoo.weights import download
from deit_zoo.files import digest
try:
    download.download({url!r}, Path({file!r}))
    told = {{"sha256": digest(Path({file!r}))}}
except download.UnavailableError as error:
    told = {{"message": str(error)}}
print(json.dumps(told | {{"pauses": pauses}}))
"""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def hub_source(**changed: Any) -> dict[str, Any]:
    """A source on the Hub, neither pinned nor of known digest."""
    source = {"kind": "hub", "repo_id": REPO, "filename": FILE, "revision": None, "sha256": None}
    return source | {"bytes": None} | changed


def url_source(url: str, prefix: str | None = None) -> dict[str, Any]:
    """An original file at its URL."""
    return {"kind": "url", "url": url, "sha256_prefix": prefix, "format": "upstream_pth"}


@dataclass(kw_only=True)
class Machine:
    """One machine: its folder of caches, its manifest, and what its processes are told."""

    hub: HubServer
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    converts: bool = False

    def __post_init__(self) -> None:
        self.environment = self.hub.environment(self.folder) | self.environment

    @property
    def hf_cache(self) -> Path:
        return self.folder / "hf" / "hub"

    @property
    def zoo_cache(self) -> Path:
        return self.folder / "zoo"

    def publish(self, *sources: dict[str, Any]) -> None:
        """Make the manifest hold one record with these sources."""
        self.converts = any(source["kind"] == "url" for source in sources)
        record = {
            "sources": list(sources),
            "num_params": 296010,
            "num_classes": 10,
            "labels": "digits",
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "metrics": {},
            "origin": "upstream",
            "license": "apache-2.0",
            "paper": None,
        }
        manifest = self.folder / "manifest.json"
        manifest.write_text(json.dumps({"schema_version": 1, "checkpoints": {NAME: record}}))
        self.environment["DEIT_ZOO_MANIFEST"] = str(manifest)

    def start(self, code: str, *, server: str = "", **environment: str) -> Process:
        """A process that runs code; where a file may be converted torch is imported before."""
        server = server or ("torch" if self.converts else "light")
        return Process(
            ["-W", "error", "-c", code],
            server=server,
            cwd=ROOT,
            env=os.environ | self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def starts(self, *, before: str = "", instant: bool = True, **options: str) -> Process:
        """A process that fetches; `before` runs in it first, `instant` skips pauses."""
        return self.start(LOCATE.format(before=before, instant=instant), **options)

    def fetch(self, *, before: str = "", instant: bool = True, **options: str) -> dict[str, Any]:
        """Fetch in a process of its own; returns `file` and `sha256`, or `error` and `message`."""
        return told(self.starts(before=before, instant=instant, **options))

    def download(self, url: str, *, before: str = "", **options: str) -> dict[str, Any]:
        """Bring a URL to `pico.pth`; returns `sha256` or `message`, and `pauses`."""
        file = str(self.folder / "pico.pth")
        code = DOWNLOAD.format(url=url, file=file, before=before)
        return told(self.start(code, **options))

    def leftovers(self) -> list[str]:
        """Files of unfinished downloads in either cache."""
        names = (".incomplete", ".part", ".etag", ".pth")
        found = [p for p in self.folder.rglob("*") if p.is_file() and p.name.endswith(names)]
        return sorted(str(p.relative_to(self.folder)) for p in found)


def told(process: Process) -> dict[str, Any]:
    """What a fetching process printed, once it has ended."""
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer
