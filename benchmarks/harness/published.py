"""A file in the Hub's cache as a model's published weights, pinned by a manifest of its own."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deit_zoo.manifest import manifest_path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from support.hub_server import HubServer


@contextmanager
def published(model: str, data: bytes, folder: Path) -> Iterator[tuple[HubServer, dict[str, str]]]:
    """A Hub on loopback that has the weights, and the variables under which `pretrained=True`
    takes them from there; the caches lie in `folder`, and later calls need no Hub."""
    manifest: dict[str, Any] = json.loads(manifest_path().read_text(encoding="utf-8"))
    source = manifest["checkpoints"][model]["sources"][0]
    with HubServer() as hub:
        commit = hub.commit(source["repo_id"], {source["filename"]: data})
        source |= {"revision": commit, "sha256": hashlib.sha256(data).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        yield hub, hub.environment(folder) | {"DEIT_ZOO_MANIFEST": str(folder / "manifest.json")}
