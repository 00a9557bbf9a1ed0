"""A Hub on loopback: real sockets, the real protocol, and a fault for any request.

    with HubServer() as hub:
        commit = hub.commit("org/name", {"model.safetensors": data, "config.json": b"{}"})
        hub.files["/deit/deit.pth"] = data  # a plain file, as the original URLs are
        hub.fail("GET", "/cdn/", status=503, times=2)  # the next two requests that match
        subprocess.run(..., env=os.environ | hub.environment(tmp_path))
        hub.requests  # what was asked and answered, body bytes counted

Large files redirect to a second port as to a CDN, with their SHA-256 in `X-Linked-ETag`. The API
holds what `HfApi.model_info`, `create_repo`, `create_tag` and `upload_folder` ask for; an upload
makes a commit that can be fetched. Xet is not spoken: `environment` turns it off. Repositories in
`gated` want the token `hf_test`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test"
LARGE = (".safetensors", ".pth", ".bin")
CHUNK = 1 << 16


@dataclass(kw_only=True)
class Request:
    """A request that came in and what was answered; `sent` counts bytes of the body."""

    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


@dataclass(kw_only=True)
class Fault:
    """What goes wrong with a request. Without `status` the true answer is given, but spoilt.

    `reset_at` and `close_at` send that many bytes of the body, then reset or close; `stall` sleeps
    that many seconds before the body, or after `stall_at` bytes; `body` replaces it; `length`
    states a wrong one; `headers` are added.
    """

    method: str
    part: str
    times: float
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    reset_at: int | None = None
    close_at: int | None = None
    stall: float = 0.0
    stall_at: int = 0
    body: bytes | None = None
    length: int | None = None


@dataclass(kw_only=True)
class Repository:
    """Files by commit, and the commits that `main` and tags name."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False

    def at(self, revision: str) -> str | None:
        """The commit of a revision; None where there is none."""
        return revision if revision in self.commits else self.refs.get(revision)


@dataclass(kw_only=True)
class Answer:
    """A response before anything goes wrong with it."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class HubServer:
    """The server; `endpoint` is its address, `requests` its log."""

    def __init__(self, port: int = 0) -> None:
        self.repositories: dict[str, Repository] = {}
        self.files: dict[str, bytes] = {}  # plain files by path
        self.large: dict[str, bytes] = {}  # by SHA-256, behind the redirect
        self.gated: set[str] = set()
        self.presigned = ""  # what the store's addresses ask by
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        handler = type("BoundHandler", (_Handler,), {"hub": self})
        self._servers = [_Server(("127.0.0.1", number), handler) for number in (port, 0)]
        hub, cdn = (server.server_port for server in self._servers)
        # Another name, as a CDN has: by it a client knows that it leaves the Hub.
        self.endpoint, self.cdn = f"http://127.0.0.1:{hub}", f"http://localhost:{cdn}"

    def __enter__(self) -> HubServer:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def commit(self, repo_id: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Add files to a repository; returns the new commit, which `revision` now names."""
        repository = self.repositories.setdefault(repo_id, Repository())
        held = repository.commits.get(repository.refs.get(revision, ""), {}) | files
        text = repr((repo_id, len(repository.commits), sorted(held)))
        commit = hashlib.sha1(text.encode()).hexdigest()
        repository.commits[commit] = held
        repository.refs[revision] = commit
        for name, data in files.items():
            if is_large(name):
                self.large[hashlib.sha256(data).hexdigest()] = data
        return commit

    def fail(
        self,
        method: str,
        part: str,
        *,
        times: float = 1,
        status: int = 0,
        headers: dict[str, str] | None = None,
        reset_at: int | None = None,
        close_at: int | None = None,
        stall: float = 0.0,
        stall_at: int = 0,
        body: bytes | None = None,
        length: int | None = None,
    ) -> None:
        """Spoil the next `times` requests of a method whose path holds `part`; see Fault."""
        self.faults.append(
            Fault(
                method=method,
                part=part,
                times=times,
                status=status,
                headers=headers or {},
                reset_at=reset_at,
                close_at=close_at,
                stall=stall,
                stall_at=stall_at,
                body=body,
                length=length,
            )
        )

    def environment(self, folder: Path) -> dict[str, str]:
        """Variables that send huggingface_hub and deit_zoo here, with caches of their own."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "DEIT_ZOO_CACHE": str(folder / "zoo"),
        }

    def count(self, method: str = "", part: str = "") -> int:
        """The number of requests of a method (any when empty) whose path holds `part`."""
        return sum(method in ("", r.method) and part in r.path for r in list(self.requests))

    @property
    def sent(self) -> int:
        """All bytes of bodies that were sent for GET."""
        return sum(request.sent for request in list(self.requests) if request.method == "GET")

    def fault(self, method: str, path: str) -> Fault | None:
        """Use up one fault that is meant for this request."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and fault.part in path:
                    fault.times -= 1
                    return fault
        return None


def is_large(name: str) -> bool:
    """Whether the Hub keeps a file of this name behind the redirect."""
    return name.endswith(LARGE)


def git_oid(data: bytes) -> str:
    """The name that git gives to a file's bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is part of the tests, not news."""


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:
        """The log is in `requests`."""

    def _serve(self) -> None:
        content = self._content()
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(method=self.command, path=path, headers=headers)
        with self.hub.lock:
            self.hub.requests.append(request)
        fault = self.hub.fault(self.command, path)
        if fault is not None and fault.status:
            answer = Answer(status=fault.status, headers=fault.headers, body=fault.body or b"")
        else:
            answer = self._answer(urlsplit(self.path).path, content)
        self._send(answer, fault, request)

    def _content(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, answer: Answer, fault: Fault | None, request: Request) -> None:
        body, length = answer.body, len(answer.body)
        headers = dict(answer.headers)
        if fault is not None:
            if fault.body is not None and not fault.status:
                body = fault.body[-length:] if answer.status == 206 else fault.body
                length = len(body)
            length = length if fault.length is None else fault.length
            headers |= fault.headers
            if fault.close_at is not None or fault.reset_at is not None:
                body = body[: fault.close_at if fault.reset_at is None else fault.reset_at]
        request.status = answer.status
        stall, stall_at = (fault.stall, fault.stall_at) if fault else (0.0, 0)
        if self.command == "HEAD":
            time.sleep(stall)
            body = b""
        self.send_response(answer.status)
        for name, value in ({"Content-Length": str(length)} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        for part, pause in ((body[:stall_at], stall), (body[stall_at:], 0.0)):
            for start in range(0, len(part), CHUNK):
                # Counted first: who has the last bytes may ask at once how many there were.
                request.sent += len(part[start : start + CHUNK])
                self.wfile.write(part[start : start + CHUNK])
            time.sleep(pause)
        if fault is not None and fault.reset_at is not None:
            time.sleep(0.05)  # let what was sent arrive before the reset discards it
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.request.close()
        elif fault is not None and fault.close_at is not None:
            self.close_connection = True

    def _answer(self, path: str, content: bytes) -> Answer:
        for method, pattern, answer in _ROUTES:
            if method == self.command and (match := re.fullmatch(pattern, path)):
                # A revision may have slashes, which are quoted.
                return answer(self, *(part and unquote(part) for part in match.groups()), content)
        if self.command in ("GET", "HEAD") and unquote(path) in self.hub.files:
            return self._file(self.hub.files[unquote(path)])
        return Answer(status=404)

    def _file(self, data: bytes, headers: dict[str, str] | None = None) -> Answer:
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        known = {"ETag": etag, "Accept-Ranges": "bytes"} | (headers or {})
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or self.headers.get("If-Range", etag) != etag:
            return Answer(headers=known, body=data)
        start = int(asked[1])
        stop = int(asked[2]) + 1 if asked[2] else len(data)
        if start >= len(data):
            return Answer(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
        part = data[start:stop]
        span = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
        return Answer(status=206, headers=known | {"Content-Range": span}, body=part)

    def _repository(self, repo_id: str, revision: str) -> tuple[Repository, str] | Answer:
        """A repository at a commit, or why it cannot be had, as the Hub says it."""
        repository = self.hub.repositories.get(repo_id)
        if repository is None:
            return _refusal(401, "RepoNotFound", "Invalid username or password.")
        if repo_id in self.hub.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _refusal(401, "GatedRepo", "Access to this model is restricted.")
        commit = repository.at(revision)
        if commit is None:
            return _refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, commit

    def _resolve(self, repo_id: str, revision: str, name: str, _content: bytes) -> Answer:
        found = self._repository(repo_id, revision)
        if isinstance(found, Answer):
            return found
        repository, commit = found
        data = repository.commits[commit].get(name)
        if data is None:
            refusal = _refusal(404, "EntryNotFound", "Entry not found")
            refusal.headers["X-Repo-Commit"] = commit
            return refusal
        if not is_large(name):
            about = {"X-Repo-Commit": commit, "ETag": f'"{git_oid(data)}"'}
            return self._file(data, about)
        sha256 = hashlib.sha256(data).hexdigest()
        headers = {
            "X-Repo-Commit": commit,
            "X-Linked-ETag": f'"{sha256}"',
            "X-Linked-Size": str(len(data)),
            "Location": f"{self.hub.cdn}/cdn/{sha256}?{self.hub.presigned}".rstrip("?"),
        }
        return Answer(status=302, headers=headers, body=b"Found. Redirecting")

    def _cdn(self, sha256: str, _content: bytes) -> Answer:
        data = self.hub.large.get(sha256)
        return Answer(status=403) if data is None else self._file(data)

    def _info(self, repo_id: str, revision: str | None, _content: bytes) -> Answer:
        found = self._repository(repo_id, revision or "main")
        if isinstance(found, Answer):
            return found
        repository, commit = found
        siblings = [
            {
                "rfilename": name,
                "size": len(data),
                "blobId": git_oid(data),
                **({"lfs": _lfs(data)} if is_large(name) else {}),
            }
            for name, data in sorted(repository.commits[commit].items())
        ]
        facts = {"id": repo_id, "modelId": repo_id, "sha": commit, "siblings": siblings}
        return _json(facts | {"private": repository.private})

    def _create(self, content: bytes) -> Answer:
        asked = json.loads(content)
        repo_id = f"{asked['organization']}/{asked['name']}"
        exists = repo_id in self.hub.repositories
        if not exists:
            self.hub.commit(repo_id, {".gitattributes": b""})
            is_private = asked.get("private") or asked.get("visibility") == "private"
            self.hub.repositories[repo_id].private = bool(is_private)
        return _json(
            {"url": f"{self.hub.endpoint}/{repo_id}", "name": repo_id}, 409 if exists else 200
        )

    def _tag(self, repo_id: str, revision: str, content: bytes) -> Answer:
        found = self._repository(repo_id, revision)
        if isinstance(found, Answer):
            return found
        repository, commit = found
        tag = json.loads(content)["tag"]
        if tag in repository.refs:
            return Answer(status=409)
        repository.refs[tag] = commit
        return _json({})

    def _validate(self, _content: bytes) -> Answer:
        return _json({"errors": [], "warnings": []})

    def _preupload(self, _repo_id: str, _revision: str, content: bytes) -> Answer:
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if is_large(file["path"]) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(content)["files"]
        ]
        return _json({"files": modes})

    def _batch(self, _repo_id: str, content: bytes) -> Answer:
        objects: list[dict[str, Any]] = []
        for entry in json.loads(content)["objects"]:
            known = entry["oid"] in self.hub.large
            href = {"href": f"{self.hub.endpoint}/lfs/{entry['oid']}"}
            actions = {} if known else {"actions": {"upload": href, "verify": href}}
            objects.append({"oid": entry["oid"], "size": entry["size"], **actions})
        return _json({"transfer": "basic", "objects": objects})

    def _store(self, sha256: str, content: bytes) -> Answer:
        if hashlib.sha256(content).hexdigest() != sha256:
            return Answer(status=422)
        self.hub.large[sha256] = content
        return Answer()

    def _verify(self, sha256: str, _content: bytes) -> Answer:
        return Answer(status=200 if sha256 in self.hub.large else 404)

    def _commit(self, repo_id: str, revision: str, content: bytes) -> Answer:
        files: dict[str, bytes] = {}
        for line in content.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        commit = self.hub.commit(repo_id, files, revision)
        url = f"{self.hub.endpoint}/{repo_id}/commit/{commit}"
        return _json({"success": True, "commitOid": commit, "commitUrl": url})


_REPO = r"([^/]+/[^/]+)"
_ROUTES: Iterable[tuple[str, str, Callable[..., Answer]]] = (
    ("HEAD", rf"/{_REPO}/resolve/([^/]+)/(.+)", _Handler._resolve),
    ("GET", rf"/{_REPO}/resolve/([^/]+)/(.+)", _Handler._resolve),
    ("HEAD", r"/cdn/([0-9a-f]{64})", _Handler._cdn),
    ("GET", r"/cdn/([0-9a-f]{64})", _Handler._cdn),
    ("GET", rf"/api/models/{_REPO}(?:/revision/([^/]+))?", _Handler._info),
    ("POST", r"/api/repos/create", _Handler._create),
    ("POST", rf"/api/models/{_REPO}/tag/([^/]+)", _Handler._tag),
    ("POST", r"/api/validate-yaml", _Handler._validate),
    ("POST", rf"/api/(?:models|datasets)/{_REPO}/preupload/([^/]+)", _Handler._preupload),
    ("POST", rf"/(?:datasets/)?{_REPO}\.git/info/lfs/objects/batch", _Handler._batch),
    ("PUT", r"/lfs/([0-9a-f]{64})", _Handler._store),
    ("POST", r"/lfs/([0-9a-f]{64})", _Handler._verify),
    ("POST", rf"/api/(?:models|datasets)/{_REPO}/commit/([^/]+)", _Handler._commit),
)


def _refusal(status: int, code: str, message: str) -> Answer:
    return Answer(status=status, headers={"X-Error-Code": code, "X-Error-Message": message})


def _lfs(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}


def _json(value: Any, status: int = 200) -> Answer:
    headers = {"Content-Type": "application/json"}
    return Answer(status=status, headers=headers, body=json.dumps(value).encode())
