"""`deit-zoo classify` as a user types it: files, folders, URLs, stdin, and what cannot be read."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from deit_zoo.data.digits import digits
from support.command import Process, deit_zoo

MODEL = "deit_pico_distilled_digits"
COMMAND = ("-m", "deit_zoo", "classify", "--model", MODEL, "--topk", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four validation digits, 4, 5, 6 and 7, as PNG files named by their label."""
    path = tmp_path_factory.mktemp("images")
    for image, label in digits():
        if label in "4567" and not (path / f"{label}.png").exists():
            image.save(path / f"{label}.png")
    return path


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    """A real HTTP server on loopback: `/7.png` is an image, everything else is not there."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            exists = self.path == "/7.png"
            self.send_response(200 if exists else 404)
            self.end_headers()
            if exists:
                self.wfile.write((folder / "7.png").read_bytes())

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def test_files_and_folders_are_classified(folder: Path) -> None:
    done = deit_zoo("classify", folder / "7.png", folder, "--model", MODEL, "--topk", "1")
    assert (done.status, done.err) == (0, "")
    labels = [line.split()[-1] for line in done.out.splitlines() if line.startswith("  ")]
    assert labels == ["7", "4", "5", "6", "7"]


def test_a_model_among_the_images_is_told_before_any_weights_are_fetched(folder: Path) -> None:
    done = deit_zoo("classify", folder / "7.png", "deit-small")
    sentence = "deit-small is a model and no image; type --model deit-small"
    assert (done.status, done.out, done.err) == (2, "", f"error: {sentence}\n")


def test_an_optimized_copy_classifies_and_says_what_it_is(folder: Path) -> None:
    options = ("--model", MODEL, "--topk", "1", "--json")
    done = deit_zoo("classify", folder, *options, "--fast")
    exact = deit_zoo("classify", folder, *options)
    assert done.status == exact.status == 0
    assert re.fullmatch(r"optimized: dtype=\w+ \(auto: .+\), compiled=False\n", done.err)
    for fast_row, row in zip(json.loads(done.out), json.loads(exact.out), strict=True):
        [fast], [best] = fast_row["predictions"], row["predictions"]
        assert (fast_row["image"], fast.keys()) == (row["image"], best.keys())
        assert fast["label"] == best["label"]
        assert fast["probability"] == pytest.approx(best["probability"], abs=0.05)


def test_an_image_comes_from_stdin_and_from_a_url(folder: Path, server: str) -> None:
    done = deit_zoo(
        "classify",
        "-",
        f"{server}/7.png",
        "--model",
        MODEL,
        "--topk",
        "1",
        "--json",
        stdin=(folder / "4.png").read_bytes(),
    )
    rows = json.loads(done.out)
    assert [row["predictions"][0]["label"] for row in rows] == ["4", "7"]
    assert rows[0]["image"] == "stdin"


def test_bad_images_are_listed_and_do_not_stop_the_rest(
    folder: Path, tmp_path: Path, server: str
) -> None:
    truncated = tmp_path / "half.png"
    truncated.write_bytes((folder / "5.png").read_bytes()[:60])
    (tmp_path / "text.jpg").write_text("not an image")
    done = deit_zoo(
        "classify",
        truncated,
        tmp_path / "text.jpg",
        tmp_path / "absent.png",
        f"{server}/absent.png",
        folder / "6.png",
        "--model",
        MODEL,
        "--topk",
        "1",
    )
    assert done.status == 1
    assert done.out.splitlines()[0] == str(folder / "6.png")
    lines = done.err.splitlines()
    assert [line.split()[1] for line in lines] == [
        str(truncated),
        str(tmp_path / "text.jpg"),
        str(tmp_path / "absent.png"),
        f"{server}/absent.png",
    ]
    assert lines[3].endswith(
        f"could not be fetched: 404 Client Error: Not Found for url: {server}/absent.png"
    )
    as_json = deit_zoo("classify", truncated, folder / "6.png", "--model", MODEL, "--json")
    broken, read = json.loads(as_json.out)
    assert (as_json.status, broken.keys()) == (1, {"image", "error"})
    assert (broken["image"], read["image"]) == (str(truncated), str(folder / "6.png"))


def test_a_refused_connection_is_one_sentence() -> None:
    done = deit_zoo("classify", "http://127.0.0.1:1/x.png", "--model", MODEL)
    assert done.status == 1
    assert done.err.count("\n") == 1
    reason = "Failed to establish a new connection: [Errno 111] Connection refused"
    assert done.err.endswith(f"/x.png could not be fetched: {reason}\n")


def test_an_alias_is_told_what_it_means(folder: Path) -> None:
    done = deit_zoo("classify", folder / "4.png", "--model", "DEIT-PICO-DIGITS", "--topk", "1")
    assert done.err == "model: deit_pico_digits\n"


def test_a_photograph_of_any_size_is_classified(tmp_path: Path) -> None:
    Image.new("RGB", (3000, 2000), "white").save(tmp_path / "photo.jpg")
    done = deit_zoo("classify", tmp_path / "photo.jpg", "--model", MODEL)
    assert done.status == 0
    assert len(done.out.splitlines()) == 6


@pytest.fixture
def many(folder: Path, tmp_path: Path) -> Path:
    """Twenty digits, 4, 5, 6, 7, 4, ..., of which the eighth and the twelfth are broken."""
    for number in range(20):
        content = (folder / f"{4 + number % 4}.png").read_bytes()
        (tmp_path / f"{number:02d}.png").write_bytes(content[:60] if number in (7, 11) else content)
    return tmp_path


def test_many_batches_come_in_order_with_the_broken_ones_in_their_places(many: Path) -> None:
    options = ("--batch-size", "3", "--workers", "2", "--topk", "1", "--json")
    done = deit_zoo("classify", many, "--model", MODEL, *options)
    rows = json.loads(done.out)
    assert [row["image"] for row in rows] == [f"{many}/{number:02d}.png" for number in range(20)]
    read = {n: row["predictions"][0]["label"] for n, row in enumerate(rows) if "error" not in row}
    assert read == {n: str(4 + n % 4) for n in range(20) if n not in (7, 11)}
    assert [line.split()[1] for line in done.err.splitlines()] == [
        f"{many}/07.png",
        f"{many}/11.png",
    ]
    assert done.status == 1


def test_a_folder_without_images_does_not_stop_the_rest(folder: Path, tmp_path: Path) -> None:
    done = deit_zoo("classify", tmp_path, folder / "6.png", "--model", MODEL, "--topk", "1")
    assert (done.status, done.out.splitlines()[0]) == (1, str(folder / "6.png"))
    assert done.err == (
        f"error: {tmp_path} holds no image; give a folder of JPEG, PNG, ... files\n"
    )


@pytest.mark.parametrize("option", ["--batch-size", "--workers"])
def test_none_at_all_is_a_usage_error(option: str, folder: Path) -> None:
    assert deit_zoo("classify", folder, "--model", MODEL, option, "0").status == 2


def test_a_batch_is_printed_before_the_next_is_read_and_ctrl_c_waits_for_no_thread(
    many: Path,
) -> None:
    # In the second batch an address whose server never answers: the thread that asks it waits.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/05.png"
        files = [many / f"{number:02d}.png" for number in range(4)]
        running = Process(
            [*COMMAND, *files, address, "--batch-size", "4", "--workers", "2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert running.stdout is not None
        shown = [running.stdout.readline() for _ in range(8)]
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    assert (running.returncode, out, err) == (130, "", "stopped\n")
    assert shown[::2] == [f"{file}\n" for file in files]
    assert [line.split()[-1] for line in shown[1::2]] == ["4", "5", "6", "7"]


@pytest.mark.skipif(sys.platform == "win32", reason="terminals are POSIX's")
@pytest.mark.parametrize("where", ["a file", "the terminal"])
def test_a_bar_on_the_terminal_leaves_the_results_alone(many: Path, where: str) -> None:
    pty = pytest.importorskip("pty")
    terminal, stderr = pty.openpty()
    run = Process(
        [*COMMAND, many, "--batch-size", "4"],
        stdout=subprocess.PIPE if where == "a file" else stderr,
        stderr=stderr,
        text=True,
        env=os.environ | {"COLUMNS": "120", "TERM": "xterm"},
    )
    os.close(stderr)
    seen = b""
    while piece := _read(terminal):
        seen += piece
    os.close(terminal)
    out, _ = run.communicate(timeout=30)
    shown = [line.split("\x1b[2K")[-1] for line in seen.decode().splitlines()]  # not erased
    assert "20/20" in seen.decode()
    assert sum(" %  " in line for line in [*(out or "").splitlines(), *shown]) == 18
    assert not [line for line in shown if ".png" in line and "images" in line]


def _read(terminal: int) -> bytes:
    """What a terminal shows next; nothing at its end."""
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux's end of a terminal that nobody holds any more
        return b""


def test_a_folder_says_what_in_it_was_not_classified(folder: Path, tmp_path: Path) -> None:
    with Image.open(folder / "7.png") as image:
        seven = image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
    for name, options in (("a.avif", {"quality": 95}), ("b.jfif", {"format": "JPEG"})):
        seven.save(tmp_path / name, **options)
    for name in ("notes.txt", "clip.mov", ".DS_Store", "._a.avif", ".ipynb_checkpoints/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    done = deit_zoo("classify", tmp_path, "--model", MODEL, "--topk", "1", "--json")
    rows = json.loads(done.out)
    assert [Path(row["image"]).name for row in rows] == ["a.avif", "b.jfif"]
    assert [row["predictions"][0]["label"] for row in rows] == ["7", "7"]
    assert (done.status, done.err) == (
        0,
        "note: 2 other files (.mov, .txt) and 3 hidden files or folders are ignored in "
        f"{tmp_path}\n",
    )
