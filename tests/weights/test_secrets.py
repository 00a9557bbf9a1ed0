"""No error of fetching or publishing shows what gives access, whatever goes wrong on the way.

The Hub sends to its store by a presigned address, a record's address holds a password and a key,
and a token is set. What is said, logged, or shown by a traceback has none of them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import deit_zoo
from deit_zoo.facts.model import sources
from deit_zoo.manifest import manifest_path
from support.hub_server import HubServer
from support.machine import FILE, Machine, sha256, url_source

SECRETS = ("SIGNATURE", "PASSWORD", "hf_secretsecretsecret")
FOR_EVER = float("inf")
# Whatever is asked is tried, and what comes of it is collected, with its traceback.
COLLECT = """
import io, json, logging, sys, time, traceback
import huggingface_hub
time.sleep = lambda seconds: None
log = io.StringIO()
handler = logging.StreamHandler(log)
logging.getLogger("huggingface_hub").addHandler(handler)
from pathlib import Path
from deit_zoo.data import image_like
from deit_zoo.errors import ZooError
from deit_zoo.hub import publish
from deit_zoo.manifest import manifest_record
from deit_zoo.weights import fetch
said, failed = [], 0
for action in (
    lambda: fetch.fetch_checkpoint(manifest_record("deit_pico_digits")),
    lambda: fetch.fetch_address("hf://org/pico"),
    lambda: image_like.fetch({url!r}),
    lambda: publish.upload(Path({folder!r}), "org/pico", "pico"),
):
    try:
        action()
    except ZooError as error:
        failed += 1
        said += [str(error), *traceback.format_exception(error)]
print(json.dumps({{"said": said, "failed": failed, "log": log.getvalue()}}))
"""
FAULTS: dict[str, dict[str, object]] = {
    "refused": {"status": 403, "body": b"no: ?X-Amz-Signature=SIGNATURE"},
    "ill": {"status": 503},
    "busy": {"status": 429, "headers": {"Retry-After": "1"}},
    "cut short": {"close_at": 10},
    "reset": {"reset_at": 10},
    "in a circle": {"status": 302, "headers": {"Location": "/cdn/x?X-Amz-Signature=SIGNATURE"}},
    "out of the web": {
        "status": 302,
        "headers": {"Location": "file://me:PASSWORD@x/y?X-Amz-Signature=SIGNATURE"},
    },
    "nowhere": {
        "status": 302,
        "headers": {"Location": "http://me:PASSWORD@[bad/?X-Amz-Signature=SIGNATURE"},
    },
    "wrong bytes": {"body": bytes(100)},
}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, id=name, marks=[] if name in ("ill", "nowhere") else pytest.mark.slow)
        for name, fault in FAULTS.items()
    ],
)
@pytest.mark.parametrize("part", ["/cdn/", "/"], ids=["the store", "every address"])
def test_nothing_that_gives_access_is_told(
    part: str, fault: dict[str, object], machine: Machine, hub: HubServer, tmp_path: Path
) -> None:
    hub.presigned = "X-Amz-Signature=SIGNATURE&X-Amz-Credential=PASSWORD"
    weights = hub.repositories["org/pico"].commits[hub.repositories["org/pico"].refs["main"]][FILE]
    host = hub.endpoint.removeprefix("http://")
    url = f"http://me:PASSWORD@{host}/deit/pico.pth?X-Amz-Signature=SIGNATURE"
    commit = hub.repositories["org/pico"].refs["main"]
    source = {"kind": "hub", "repo_id": "org/pico", "filename": FILE, "revision": commit}
    machine.publish(source | {"sha256": sha256(weights), "bytes": None}, url_source(url, "0" * 8))
    (tmp_path / "upload").mkdir()
    (tmp_path / "upload" / "model.safetensors").write_bytes(b"weights")
    for method in ("GET", "HEAD", "POST"):
        hub.fail(method, part, times=FOR_EVER, **fault)  # type: ignore[arg-type]
    code = COLLECT.format(url=url, folder=str(tmp_path / "upload"))
    process = machine.start(code, HF_TOKEN=SECRETS[2], server="torch")
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    answer = json.loads(out.splitlines()[-1])
    assert answer["failed"] >= 1
    shown = "\n".join([*answer["said"], answer["log"], err])
    assert [secret for secret in SECRETS if secret in shown] == [], shown


def test_what_is_known_of_a_model_has_no_key_to_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads(manifest_path().read_text())
    url = "https://me:PASSWORD@example.com/x.pth?X-Amz-Signature=SIGNATURE"
    content["checkpoints"]["deit_tiny"]["sources"] = [url_source(url, "0" * 8)]
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    monkeypatch.setenv("DEIT_ZOO_MANIFEST", str(tmp_path / "manifest.json"))
    model = deit_zoo.info("deit_tiny")
    assert model.checkpoint is not None
    shown = json.dumps(model.to_dict()) + str(list(sources(model.checkpoint)))
    assert "https://***@example.com/x.pth?***" in shown
    assert not [secret for secret in SECRETS if secret in shown]
