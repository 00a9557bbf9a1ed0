"""`deit-zoo serve` as its clients see it: a real process, asked over loopback."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import torch
from fastapi import HTTPException, Request
from PIL import Image

import deit_zoo as zoo
from deit_zoo.cli.serve import serve_
from deit_zoo.data.digits import digits, write_folder
from deit_zoo.errors import MissingExtraError
from deit_zoo.inference.classify import predictions
from deit_zoo.inference.compiled import SCORES, CompiledSizes
from deit_zoo.inference.serve import batcher as batching
from deit_zoo.inference.serve.app import AdmissionControl, Limits, _answers, _parsed
from deit_zoo.inference.serve.batcher import Batcher
from support.command import ROOT, Process, deit_zoo, sentence

MODEL = "deit_pico_digits"
BOUNDS = ("--max-mb", "1", "--max-images", "4", "--queue", "8", "--max-pixels", "100000")
PATIENCE = 60.0
NO_IMAGE = "cannot be read as an image (its format is not known); give a whole JPEG, PNG, "


class Service:
    """A service that runs, and what it has said so far."""

    def __init__(self, process: Process) -> None:
        self.process, self.said = process, ""
        assert process.stderr is not None
        while not (match := re.search(r"answers at (\S+)/classify", self.said)):
            line = process.stderr.readline()
            assert line, self.said
            self.said += line
        self.url = match[1]

    def ask(self, data: bytes, query: str = "") -> requests.Response:
        """The answer to an image's bytes."""
        return requests.post(f"{self.url}/classify{query}", data=data, timeout=PATIENCE)

    def ask_many(self, *files: tuple[str, bytes], query: str = "") -> requests.Response:
        """The answer to a form of files."""
        form = [("images", file) for file in files]
        return requests.post(f"{self.url}/classify{query}", files=form, timeout=PATIENCE)

    def figure(self, name: str) -> float:
        """What Prometheus would read."""
        text = requests.get(f"{self.url}/metrics", timeout=PATIENCE).text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def connect(self) -> socket.socket:
        where = urlsplit(self.url)
        return socket.create_connection((where.hostname or "", where.port or 0), PATIENCE)

    def begin(self, body: bytes, announced: int, *, expect: bool = False) -> socket.socket:
        """A request of which only a part of the body is sent; `expect`: once it is being read."""
        client = self.connect()
        head = f"POST /classify HTTP/1.1\r\nHost: here\r\nContent-Length: {announced}\r\n"
        head += "Expect: 100-continue\r\n" if expect else ""
        client.sendall(f"{head}\r\n".encode())
        if expect:
            assert client.recv(1 << 10).startswith(b"HTTP/1.1 100")
        client.sendall(body)
        return client


@contextmanager
def service(
    *options: str, model: str = MODEL, program: tuple[str, str] = ("-m", "deit_zoo")
) -> Iterator[Service]:
    """A service on a free port; none outlives the block."""
    words = [*program, "serve", model, "--port", "0", *options]
    with Process(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield Service(process)
        finally:
            process.kill()


def until(ready: Callable[[], object]) -> None:
    patience = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < patience
        time.sleep(0.01)


@pytest.fixture(scope="module")
def served() -> Iterator[Service]:
    with service(*BOUNDS, "--topk", "3") as running:
        yield running


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Digits as PNG files, by their labels."""
    folder = tmp_path_factory.mktemp("digits")
    for image, label in digits():
        if not (file := folder / f"{label}.png").exists():
            image.save(file)
    return {file.stem: file.read_bytes() for file in sorted(folder.iterdir())}


def test_answers_are_those_of_classify(
    served: Service, files: dict[str, bytes], tmp_path: Path
) -> None:
    names = [tmp_path / f"{label}.png" for label in "47"]
    for name in names:
        name.write_bytes(files[name.stem])
    options = ("--model", MODEL, "--topk", "2", "--fast", "--json")
    expected = json.loads(deit_zoo("classify", *names, *options).out)
    [four] = served.ask(files["4"], "?topk=2").json()
    many = served.ask_many(*((f"{x}.png", files[x]) for x in "47"), query="?topk=2").json()
    assert [Path(row["image"]).name for row in many] == ["4.png", "7.png"]
    for row, answer in zip((expected[0], *expected), (four, *many), strict=True):
        for mine, yours in zip(row["predictions"], answer["predictions"], strict=True):
            close = pytest.approx(yours["probability"], abs=1e-5)
            assert yours == mine | {"probability": close}
    assert len(served.ask(files["4"]).json()[0]["predictions"]) == 3  # as it was started


def test_one_bad_image_is_one_entry_and_the_others_are_answered(
    served: Service, files: dict[str, bytes]
) -> None:
    done = served.ask_many(("a.png", files["1"]), ("../etc/b", b"x"), ("c.png", files["2"]))
    first, bad, last = done.json()
    assert done.status_code == 200
    assert [one["predictions"][0]["label"] for one in (first, last)] == ["1", "2"]
    assert set(bad) == {"image", "error"}
    assert bad["error"].startswith(f"../etc/b {NO_IMAGE}")
    alone = served.ask(files["1"][:60])
    assert alone.status_code == 422
    assert alone.json()[0]["error"].startswith("body cannot be read as an image (")


def test_many_clients_at_once_get_each_their_own_answer(
    served: Service, files: dict[str, bytes]
) -> None:
    # As many as may wait; every tenth is broken.
    asked = [("x" if number % 10 == 0 else str(number % 10)) for number in range(120)]
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda x: served.ask(files.get(x, b"broken")), asked))
    assert [one.status_code for one in done] == [422 if x == "x" else 200 for x in asked]
    best = [row.get("predictions", [{"label": "x"}])[0]["label"] for [row] in map(_json, done)]
    assert best == asked
    assert served.figure("deit_zoo_images_waiting") == 0


def _json(response: requests.Response) -> Any:
    return response.json()


@pytest.mark.parametrize("query", ["?topk=0", "?topk=many", "?topk=1e9", "?topk=101"])
def test_a_number_of_classes_that_is_none_is_refused(served: Service, query: str) -> None:
    done = served.ask(b"x", query)
    told = "topk must be a whole number from 1 to 100, as in /classify?topk=3"
    assert (done.status_code, done.json()) == (400, {"error": told})


def test_what_is_too_large_is_refused_before_it_is_read(
    served: Service, files: dict[str, bytes], tmp_path: Path
) -> None:
    too_large = "the request is larger than 1 MiB; send fewer or smaller images"
    with served.begin(b"", 2 << 20) as client:
        assert client.recv(12) == b"HTTP/1.1 413"
    pieces = iter([b"x" * 1000] * 2000)  # of a length that nobody announced
    done = requests.post(f"{served.url}/classify", data=pieces, timeout=PATIENCE)
    assert (done.status_code, done.json()) == (413, {"error": too_large})
    many = served.ask_many(*[("x.png", files["1"])] * 5)
    assert many.status_code == 400
    assert "send at most 4 files" in many.json()["error"]
    Image.new("RGB", (500, 500)).save(tmp_path / "large.png")
    large = served.ask((tmp_path / "large.png").read_bytes())
    assert (large.status_code, "100,000 pixels" in large.text) == (422, True)


def test_a_request_without_an_image_says_how_one_is_sent(served: Service) -> None:
    assert served.ask(b"").json() == {"error": "the request is empty; POST the bytes of an image"}
    form = {"topk": (None, "3")}
    text = requests.post(f"{served.url}/classify", files=form, timeout=PATIENCE)  # type: ignore[arg-type]
    assert text.status_code == 400
    assert text.json()["error"].startswith("'topk' is text; send files")
    other = served.ask(b"x", "?topk=1&top_k=3")
    told = "'top_k' is not known; /classify?topk=N is all there is"
    assert (other.status_code, other.json()) == (400, {"error": told})
    for header in ({"Content-Type": "application/json"}, {"Content-Encoding": "gzip"}):
        done = requests.post(f"{served.url}/classify", b"x", headers=header, timeout=PATIENCE)
        [kind] = header.values()
        told = f"{kind!r} is not read; POST the bytes of an image as they are, or a form of files"
        assert (done.status_code, done.json()) == (415, {"error": told})
    plain = {"Content-Encoding": ""}
    assert requests.post(served.url + "/classify", b"x", headers=plain).status_code == 422
    for place in ("predict", "classify/"):  # the last is no redirection, behind TLS to http://
        nothing = requests.post(f"{served.url}/{place}", b"x", timeout=PATIENCE)
        assert (nothing.status_code, "POST images to /classify" in nothing.text) == (404, True)


@pytest.mark.parametrize("charset", ["utf-7", "unicode_escape", "undefined"])
def test_a_charset_makes_no_name_that_cannot_be_answered(
    served: Service, files: dict[str, bytes], charset: str
) -> None:
    name = {"utf-7": b"+2AA-", "unicode_escape": rb"\ud800", "undefined": b"a"}[charset]
    head = b'--B\r\nContent-Disposition: form-data; name="images"; filename="' + name
    done = requests.post(
        f"{served.url}/classify",
        data=head + b'"\r\n\r\n' + files["3"] + b"\r\n--B--\r\n",
        headers={"Content-Type": f"Multipart/Form-Data; boundary=B; charset={charset}"},
        timeout=PATIENCE,
    )
    if charset == "undefined":
        told = "the form is not in its charset; leave charset= out"
        assert (done.status_code, done.json()) == (400, {"error": told})
    else:
        assert (done.status_code, done.json()[0]["image"]) == (200, r"\ud800")


def test_a_large_form_is_read_without_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    large = bytes(3 << 20)
    head = b'--B\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    message = {"type": "http.request", "body": head + large + b"\r\n--B--\r\n"}
    kind = b"multipart/form-data; boundary=B"

    async def receive() -> dict[str, Any]:
        return message

    request = Request({"type": "http", "headers": [(b"content-type", kind)]}, receive)
    assert asyncio.run(_parsed(request, Limits())) == [("a", large)]


def test_who_has_only_begun_to_send_takes_no_place_in_the_queue(
    served: Service, files: dict[str, bytes]
) -> None:
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(served.begin(b"x", 100, expect=True))
        assert served.figure("deit_zoo_images_waiting") == 0
        assert served.ask(files["3"]).status_code == 200


def test_who_comes_when_the_queue_is_full_is_told_when_to_come_again() -> None:
    admission = AdmissionControl(Limits(max_waiting=8))
    with admission.admit(8), pytest.raises(HTTPException) as caught, admission.admit(1):
        pass
    assert (caught.value.status_code, caught.value.headers) == (503, {"Retry-After": "1"})
    assert caught.value.detail == "8 images wait already; try again in 1 s"
    with admission.admit(8):
        assert admission.images == 8


def test_more_connections_than_there_are_files_for_are_told_so_and_end_nothing(
    files: dict[str, bytes],
) -> None:
    program = """
import resource
from deit_zoo.cli import main
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 128))
main()
"""
    with service(program=("-c", program)) as running:
        with ExitStack() as stack:
            for _ in range(35):
                stack.enter_context(running.connect())
            until(lambda: running.ask(files["3"]).status_code == 503)
            done = running.ask(files["3"])
            assert done.json() == {"error": "over 32 connections are open; try again in 1 s"}
            assert done.headers["Retry-After"] == "1"
            for _ in range(130):
                stack.enter_context(running.connect())
        until(lambda: _answers_again(running, files["3"]))
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(PATIENCE) == 0
        assert running.process.stderr is not None
        assert running.process.stderr.read() == "stopped\n"


def _answers_again(running: Service, image: bytes) -> bool:
    try:
        return running.ask(image).status_code == 200
    except requests.ConnectionError:
        return False


def test_health_and_metrics_say_what_is_served(served: Service, files: dict[str, bytes]) -> None:
    health = requests.get(f"{served.url}/health", timeout=PATIENCE).json()
    assert (health["status"], health["model"], health["device"]) == ("ok", MODEL, "cpu")
    assert (health["num_classes"], health["version"]) == (10, zoo.__version__)
    head = requests.head(f"{served.url}/health", timeout=PATIENCE)
    assert (head.status_code, head.content) == (200, b"")
    name = 'deit_zoo_images_total{outcome="answered"}'
    before = served.figure(name)
    served.ask_many(("1.png", files["1"]), ("2.png", files["2"]))
    assert served.figure(name) == before + 2
    assert served.figure("process_resident_memory_bytes") > 1e6
    assert (
        "/classify" in requests.get(f"{served.url}/openapi.json", timeout=PATIENCE).json()["paths"]
    )


def test_who_sends_too_slowly_is_let_go() -> None:
    with service("--timeout", "0.3") as running:
        with running.begin(b"x", 100) as client:
            assert client.recv(12) == b"HTTP/1.1 408"
        with running.connect() as client:
            # It may be too late already.
            with suppress(ConnectionError):
                client.sendall(b"POST /classify HTTP/1.1\r\nHost:")
            assert _is_closed(client)


def _is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(12) == b""
    except ConnectionError:
        return True


def test_who_does_not_read_the_answers_is_let_go() -> None:
    with service("--timeout", "0.3") as running, running.connect() as client:
        client.settimeout(PATIENCE)
        # Its answers fill what the system keeps for a client; then they are the service's.
        request = b"GET /openapi.json HTTP/1.1\r\nHost: here\r\n\r\n"
        with pytest.raises(ConnectionError):
            client.sendall(request * 1_000_000)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_once_what_has_come_is_answered(
    number: int, files: dict[str, bytes]
) -> None:
    with service() as running:
        image = files["7"]
        with running.begin(image[:10], len(image), expect=True) as client:
            running.process.send_signal(number)
            until(lambda: not _is_open(running))
            client.sendall(image[10:])
            answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
        assert answer.startswith(b"HTTP/1.1 200")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])[0]["predictions"][0]["label"] == "7"
        assert running.process.wait(PATIENCE) == 0
        assert running.process.stderr is not None
        assert running.process.stderr.read() == "stopped\n"


def _is_open(running: Service) -> bool:
    try:
        running.connect().close()
    except OSError:
        return False
    return True


def test_images_that_arrive_together_are_one_batch(
    files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "MOST_WAIT", PATIENCE)  # however slow this machine is
    network = zoo.create(MODEL, pretrained=True)
    sizes: list[int] = []
    batcher = Batcher(
        network, zoo.transform(network), batch_size=4, threads=2, on_batch=sizes.append
    )
    images = [(label, files.get(label, b"broken")) for label in "0123x4567"]
    answers = batcher.submit(images, topk=1)
    best = [one.result()[0].label for one in answers if one.exception(PATIENCE) is None]
    batcher.close()
    assert (best, sizes) == (list("01234567"), [4, 4])


# All that come at once, or 9 at most, as where one image of CaiT has so many scores.
@pytest.mark.parametrize("image_scores", [0, SCORES // 9])
def test_after_the_warm_up_no_batch_is_compiled(
    image_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    network: Any = zoo.optimize(MODEL, "float32", compile=False)
    network.compiled = CompiledSizes(network.network, image_scores)  # without minutes of compiling
    transform = zoo.transform(network)
    batcher = Batcher(network, transform, batch_size=32, threads=1)
    batcher.warm_up()
    batcher.close()
    [sizes] = network.compiled.sizes.values()
    known = list(sizes)
    assert known == ([1, 3, 9] if image_scores else [1, 3, 10, 32])
    pixels = torch.zeros(3, *transform.img_size, dtype=torch.uint8)
    for size in range(1, 33):
        assert len(predictions(network, [pixels] * size, 1)) == size
    assert list(sizes) == known


def test_a_batch_that_the_model_fails_at_does_not_end_it(
    files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = zoo.create(MODEL, pretrained=True)
    batcher = Batcher(network, zoo.transform(network), batch_size=4, threads=1)

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(batching, "predictions", fail)
        [answer] = batcher.submit([("1", files["1"])], topk=1)
        assert isinstance(answer.exception(PATIENCE), RuntimeError)
        assert batcher.failure == "no memory"
    [answer] = batcher.submit([("1", files["1"])], topk=1)
    assert (answer.result(PATIENCE)[0].label, batcher.failure) == ("1", None)
    batcher.close()


def test_what_nobody_waits_for_any_more_is_let_go(
    files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network = zoo.create(MODEL, pretrained=True)
    sizes: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert go_on.wait(PATIENCE)
        return predictions(*arguments)

    monkeypatch.setattr(batching, "predictions", slow)
    batcher = Batcher(
        network, zoo.transform(network), batch_size=4, threads=1, on_batch=sizes.append
    )
    [first] = batcher.submit([("1", files["1"])], topk=1)
    assert begun.wait(PATIENCE)
    for _ in range(3):
        late = batcher.submit([("2", files["2"])] * 30, topk=1)
        until(lambda: len(batcher._ready) == 30)
        assert all(answer.cancel() for answer in late)
        assert not batcher._ready

    async def asked(leaves: bool) -> None:
        gone = asyncio.Event()
        if leaves:
            gone.set()
        await _answers([("2", files["2"])] * 30, 1, batcher, 60 if leaves else 0.01, gone.wait)  # type: ignore[arg-type]

    for leaves, status in ((False, 504), (True, 400)):
        with pytest.raises(HTTPException) as caught:
            asyncio.run(asked(leaves))
        assert caught.value.status_code == status
    [last] = batcher.submit([("3", files["3"])], topk=1)
    go_on.set()
    assert [one.result(PATIENCE)[0].label for one in (first, last)] == ["1", "3"]
    batcher.close()
    assert sizes == [1, 1]
    assert not caplog.records  # asyncio's, of errors that nobody asked for


def test_a_port_that_is_taken_and_bounds_that_do_not_fit_are_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        told = sentence(deit_zoo("serve", MODEL, "--port", port))
        assert told == (
            f"port {port} of '127.0.0.1' cannot be listened on (address already in use); give "
            "another --port or --host"
        )
    for host in ("nosuch.invalid", ""):  # to the system the last is every address
        told = sentence(deit_zoo("serve", MODEL, "--host", host))
        assert told.startswith(f"port 8000 of {host!r} cannot be listened on (")
    told = sentence(deit_zoo("serve", MODEL, "--port", "0", "--queue", "8"))
    assert told.startswith("--max-images is 64 and --queue is 8; ")
    told = sentence(deit_zoo("serve", MODEL, "--port", "0", "--topk", "200"))
    assert told == "--topk is 200 and --max-topk is 100; give a larger --max-topk"


def test_a_model_that_cannot_be_optimized_is_served_as_it_is_where_that_is_typed(
    files: dict[str, bytes],
) -> None:
    told = sentence(deit_zoo("serve", "convnet_pico_digits", "--port", "0"))
    assert told.endswith(
        " cannot be optimized; give a deit or cait model from create, or type --no-fast"
    )
    with service("--no-fast", model="convnet_pico_digits") as running:
        assert running.ask(files["5"]).json()[0]["predictions"][0]["label"] == "5"


def test_without_the_extra_one_sentence_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtraError) as caught:
        serve_(MODEL)
    assert str(caught.value) == (
        "serve needs fastapi, uvicorn, python_multipart and prometheus_client; type: pip install "
        "'deit_zoo[serve]'"
    )


def test_the_commands_of_the_page_work(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- test: story -->\n```sh\n(.*?)```", page, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if not line.startswith("pip")]
    start, asked = lines[0], [line for line in lines if line.startswith("curl ")]
    write_folder(tmp_path / "digits")
    words = shlex.split(start.replace("8000", "0"))[1:]
    with Process(["-m", "deit_zoo", *words], stderr=subprocess.PIPE, text=True) as process:
        try:
            running = Service(process)
            for line in asked:
                command = shlex.split(line.replace("http://127.0.0.1:8000", running.url))
                done = subprocess.run(
                    [*command, "--fail-with-body", "-sS"],
                    cwd=tmp_path,
                    capture_output=True,
                    text=True,
                )
                assert (done.returncode, done.stderr) == (0, ""), (line, running.said)
        finally:
            process.kill()
    assert len(asked) >= 4
