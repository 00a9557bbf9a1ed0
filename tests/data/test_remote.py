"""Archives at an address: fetched once, whole, and read as those on this machine."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, NamedTuple

import fsspec
import pytest

from deit_zoo.data.image_set import ImageSet, open_set
from deit_zoo.data.remote import local_path
from deit_zoo.data.survey import validate
from deit_zoo.errors import MissingExtraError
from support.archives import FILES, shards
from support.command import PATIENCE, Process
from support.images import refused


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds nothing."""
    monkeypatch.setenv("DEIT_ZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Server(NamedTuple):
    """A server of the files in a folder: what it was asked for, cuts short, and tags."""

    url: str
    folder: Path
    sent: list[str]
    cut: set[str]
    tags: dict[str, str]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder, sent, cut = Path(shards(tmp_path / "served", FILES)), [], set()
    tags: dict[str, str] = {}

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def do_GET(self) -> None:
            sent.append(self.path)
            super().do_GET()

        def end_headers(self) -> None:
            if self.path in tags:
                self.send_header("ETag", tags[self.path])
            super().end_headers()

        def copyfile(self, source: Any, outputfile: Any) -> None:
            content = source.read()
            outputfile.write(content[:1000] if self.path in cut else content)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = Thread(target=served.serve_forever, daemon=True)
        thread.start()
        yield Server(f"http://127.0.0.1:{served.server_port}", folder, sent, cut, tags)
        served.shutdown()
        thread.join()


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[str]:
    """The same shards in fsspec's memory."""
    files = fsspec.filesystem("memory")
    for file in Path(shards(tmp_path / "bucket", FILES)).iterdir():
        files.pipe_file(f"/bucket/{file.name}", file.read_bytes())
    yield "memory://bucket"
    files.rm("/bucket", recursive=True)


def content(images: ImageSet) -> list[tuple[bytes, int]]:
    return [(images.read(i), images.label_of(i)) for i in range(len(images))]


PATTERN = "x-{train,validation}-{000..002}.tar"


def test_shards_of_a_server_are_those_of_its_folder(server: Server, cache: Path) -> None:
    data = f"{server.url}/{PATTERN}"
    assert validate(data).fingerprint() == validate(server.folder).fingerprint()
    assert content(open_set(data, "train")) == content(open_set(server.folder, "train"))
    # Listed, read and listed again: each was sent once.
    assert sorted(server.sent) == sorted(f"/{file.name}" for file in server.folder.iterdir())
    assert Path(open_set(data, "val").name_of(0)).is_relative_to(cache)


@pytest.mark.parametrize("data", ["memory://bucket", f"memory://bucket/{PATTERN}"])
def test_shards_of_a_bucket_are_given_by_its_folder_or_by_a_pattern(
    bucket: str, tmp_path: Path, data: str
) -> None:
    expected = open_set(tmp_path / "bucket" / "shards", "val")
    assert content(open_set(data, "val")) == content(expected)


def test_only_who_wants_the_same_archives_waits_for_who_fetches_them(
    bucket: str, cache: Path
) -> None:
    for split in ("train", "val", "train"):
        open_set(bucket, split)
    assert len(list((cache / "locks").glob("archives*.lock"))) == 2


def test_archives_and_their_indexes_are_for_whom_the_cache_is_for_whatever_the_umask(
    server: Server, cache: Path
) -> None:
    cache.mkdir()
    cache.chmod(0o2770)
    before = os.umask(0o077)
    try:
        open_set(f"{server.url}/{PATTERN}", "train")
    finally:
        os.umask(before)
    for kind in ("archives", "indexes"):
        files = [file for file in (cache / kind).rglob("*") if file.is_file()]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o640}


def test_a_shard_that_is_another_by_now_is_fetched_again(bucket: str, tmp_path: Path) -> None:
    before = content(open_set(bucket, "train"))
    files = fsspec.filesystem("memory")
    first, second = (f"/bucket/x-train-00{number}.tar" for number in range(2))
    files.pipe_file(first, files.cat_file(second))
    after = content(open_set(bucket, "train"))
    assert (len(before), len(after)) == (12, 12)
    assert len(set(before)) > len(set(after))


@pytest.mark.parametrize("tag", ["ETag", "Last-Modified"])
def test_a_shard_of_the_same_size_with_another_tag_is_fetched_again(
    server: Server, tag: str
) -> None:
    first, second = (server.folder / f"x-train-00{number}.tar" for number in range(2))
    assert first.stat().st_size == second.stat().st_size
    found = []
    for content_of, state in ((first, 0), (second, 10), (second, 10)):
        first.write_bytes(content_of.read_bytes())
        os.utime(first, (state, state) if tag == "Last-Modified" else (0, 0))
        server.tags.update({f"/{first.name}": f'"{state}"'} if tag == "ETag" else {})
        found.append(content(open_set(f"{server.url}/{PATTERN}", "train")))
    assert [len(set(images)) for images in found] == [12, 8, 8]
    assert sorted(server.sent) == [f"/x-train-00{number}.tar" for number in (0, 0, 1, 2)]


def test_a_shard_that_breaks_off_is_refused_and_fetched_whole_the_next_time(
    server: Server, cache: Path
) -> None:
    server.cut.add("/x-train-001.tar")
    told = refused(lambda: open_set(f"{server.url}/{PATTERN}", "train"))
    assert told.startswith(f"{server.url}/x-train-001.tar cannot be fetched (")
    assert not [*(cache / "archives").rglob("*x-train-001.tar*")]
    server.cut.clear()
    assert len(open_set(f"{server.url}/{PATTERN}", "train")) == 12


def test_what_is_not_at_its_address_is_named(server: Server, bucket: str) -> None:
    for url in (f"{server.url}/train.tar", "memory://bucket/train.tar"):
        told = refused(lambda url=url: open_set(url, "train"))  # type: ignore[misc]
        assert told.startswith(f"{url} cannot be fetched (")
        assert told.endswith("); look at the address and at your access")
    assert refused(lambda: open_set("nothing://bucket/train.tar", "train")) == (
        "nothing://bucket/train.tar is no address that fsspec knows; give one of s3://, gs:// or "
        "https://"
    )


def test_a_shard_with_another_md5_than_was_stated_is_refused(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = type(fsspec.filesystem("memory"))
    plain = memory.info
    stated = hashlib.md5(b"another")
    facts = {"md5Hash": base64.b64encode(stated.digest()).decode()}
    monkeypatch.setattr(memory, "info", lambda *words: plain(*words) | facts)
    assert refused(lambda: open_set(f"{bucket}/x-train-000.tar", "train")) == (
        f"{bucket}/x-train-000.tar did not arrive whole: its MD5 is not {stated.hexdigest()}, "
        "which was announced; type the command again"
    )


def test_an_address_of_this_machine_is_the_path_that_it_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path("~/photos") == "/home/me/photos"
    assert local_path("file://localhost/photos") == "/photos"
    assert local_path("file:///my%20photos/{train,val}.tar") == "/my photos/{train,val}.tar"
    assert local_path("hfds:file:///my%20photos,label=a") == "hfds:/my photos,label=a"
    assert local_path("hfds:org/name") == "hfds:org/name"
    assert local_path("s3://my%20photos") == "s3://my%20photos"


def test_a_folder_without_archives_is_refused(bucket: str) -> None:
    fsspec.filesystem("memory").pipe_file("/bucket/empty/notes.txt", b"")
    assert refused(lambda: open_set("memory://bucket/empty", "train")) == (
        "memory://bucket/empty holds no .tar or .zip; give the folder of some"
    )


def test_a_full_disk_is_told_before_anything_is_fetched(
    bucket: str, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    told = refused(lambda: open_set(bucket, "train"))
    assert told.startswith("the archives have 0.0 GB and the disk of ")
    assert told.endswith("free; set DEIT_ZOO_CACHE to a folder with more")
    assert not (cache / "archives").exists()


def test_the_package_for_an_address_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtraError) as caught:
        open_set("s3://bucket/train.tar", "train")
    told = str(caught.value)
    assert told.startswith("s3://bucket/train.tar needs a package of its own (")
    assert told.endswith("); type: pip install 'deit_zoo[remote]'")


def test_ctrl_c_ends_every_download_and_leaves_nothing_of_them(cache: Path) -> None:
    pieces, numbers = list[str](), count(1)

    class Endless(SimpleHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(1 << 30))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            with suppress(OSError):  # until nobody listens
                while len(pieces) < 1000:
                    self.wfile.write(bytes(1 << 14))
                    pieces.append(self.path)
                    if next(numbers) == 20:
                        reader.send_signal(signal.SIGINT)
                    time.sleep(0.05)

        def log_message(self, *arguments: Any) -> None:
            pass

    read = "import sys; from deit_zoo.data.remote import fetch; fetch(sys.argv[1:])"
    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        urls = [f"http://127.0.0.1:{http.server_port}/{number}.tar" for number in range(4)]
        reader = Process(["-c", read, *urls], stderr=subprocess.PIPE, text=True)
        _, err = reader.communicate(timeout=PATIENCE)
        http.shutdown()
    assert err.endswith("KeyboardInterrupt\n")
    assert len(pieces) < 500
    assert len({*pieces}) == 4
    assert [file for file in (cache / "archives").rglob("*") if file.is_file()] == []
