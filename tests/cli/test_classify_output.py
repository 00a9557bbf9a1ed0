"""`deit-zoo classify --output`: answers of any number in a table, and how it goes on."""

from __future__ import annotations

import csv
import json
import math
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import pytest
import typer
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import parquet

from deit_zoo.cli.classify import classify_
from deit_zoo.data.digits import digits
from deit_zoo.errors import DataError, MissingExtraError
from deit_zoo.inference.answer_file import AnswerFile, open_answers
from deit_zoo.results import Prediction
from support.command import Done, Process, deit_zoo, sentence
from support.images import refused
from support.processes import PATIENCE

MODEL = "deit_pico_digits"


def write_images(folder: Path, count: int) -> Path:
    """Digits, over and over, in two folders; number 7 of each hundred is broken."""
    files = [folder / "ab"[number % 2] / f"{number:05d}.png" for number in range(count)]
    for name in "ab":
        (folder / name).mkdir(parents=True)
    pictures = []
    for image, _ in islice(digits(), 20):
        image.save(folder / "picture.png")
        pictures.append((folder / "picture.png").read_bytes())
    (folder / "picture.png").unlink()
    for number, file in enumerate(files):
        content = pictures[number % len(pictures)]
        file.write_bytes(content[:50] if number % 100 == 7 else content)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 120)


def classify(*words: object, cwd: Path | None = None) -> Done:
    return deit_zoo("classify", *words, "--model", MODEL, cwd=cwd)


def put(images: object, file: Path, *, model: str = MODEL, **options: Any) -> int:
    """`classify --output` in this process; its exit status."""
    try:
        classify_([str(images)], model, output=file, **options)
    except typer.Exit as end:
        return end.exit_code
    return 0


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows of a table, None where a cell is empty."""
    if file.suffix == ".parquet":
        return parquet.read_table(file).to_pylist()
    with file.open(newline="", encoding="utf-8") as stream:
        return [
            {key: value or None for key, value in row.items()} for row in csv.DictReader(stream)
        ]


def interrupt(file: Path, torn: bytes = b"") -> None:
    """Make a table what a kill leaves after 50 images, the last line of which was torn off."""
    beside = file.with_name(f"{file.name}.json")
    settings = json.loads(beside.read_text())
    del settings["num_unreadable"]
    beside.write_text(json.dumps(settings))
    lines = [
        json.dumps({"image": row["image"], "error": "as before"}).encode() + b"\n"
        for row in rows_of(file)[:50]
    ]
    file.unlink()
    file.with_name(f"{file.name}.partial").write_bytes(b"".join(lines) + torn)


@pytest.mark.parametrize("name", ["answers.csv", "answers.parquet"])
def test_a_table_holds_what_json_shows_and_what_could_not_be_read(
    name: str, images: Path, tmp_path: Path
) -> None:
    shown = classify(images, "--topk", "2", "--json")
    answers = json.loads(shown.out)
    expected = {row["image"]: row["predictions"] for row in answers if "error" not in row}
    done = classify(images, "--topk", "2", "--output", tmp_path / name)
    assert (done.status, done.out) == (1, "")
    assert done.err == f"{tmp_path / name}: 120 images, of which 2 could not be read\n"
    rows = rows_of(tmp_path / name)
    assert [row["image"] for row in rows] == [
        str(path) for path in sorted((images / "a").iterdir()) + sorted((images / "b").iterdir())
    ]
    for row in rows:
        for rank in (1, 2):
            known = expected[row["image"]][rank - 1] if row["image"] in expected else {}
            for key in ("label", "probability", "index", "folder"):
                value = row[f"{key}_{rank}"]
                kind = type(known[key]) if known else str
                assert (value if value is None else kind(value)) == known.get(key)
        assert (row["error"] is None) == (row["image"] in expected)
    [bad] = [row for row in rows if row["image"].endswith("00007.png")]
    assert bad["error"].startswith(f"{images}/b/00007.png cannot be read as an image (")
    beside = json.loads((tmp_path / f"{name}.json").read_text())
    assert (beside["model"], beside["num_images"], beside["num_unreadable"]) == (MODEL, 120, 2)
    assert {file.name for file in tmp_path.iterdir()} == {"images", name, f"{name}.json"}


@pytest.mark.parametrize(
    "torn",
    [
        b"",
        b'{"image": "a/00',
        b'{"image": 3}\n',
        b'{"image": "x"}\n',
        b'{"image": "x", "predictions": [{"label": 1}]}\n',
        b"\0" * 99,
    ],
)
def test_what_was_torn_off_is_done_again_and_nothing_twice(
    torn: bytes, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "answers.csv"
    assert put(images, file) == 1
    whole = file.read_text().splitlines()
    interrupt(file, torn)
    capsys.readouterr()
    assert put(images, file, resume=True) == 1
    assert capsys.readouterr().err.splitlines() == [
        "50 images have their answers already",
        f"{file}: 120 images, of which 52 could not be read",
    ]
    rows = rows_of(file)
    assert [row["error"] for row in rows[:50]] == ["as before"] * 50
    assert file.read_text().splitlines()[51:] == whole[51:]
    assert max(Counter(row["image"] for row in rows).values()) == 1


@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_2000_images_goes_on_to_each_image_once(
    tmp_path: Path,
) -> None:
    folder, file = write_images(tmp_path / "images", 2000), tmp_path / "answers.parquet"
    words = ["classify", folder, "--model", MODEL, "--output", file]
    partial = tmp_path / "answers.parquet.partial"
    with Process(["-m", "deit_zoo", *map(str, words)]) as running:
        while not partial.exists() or not partial.stat().st_size:
            assert running.poll() is None
        running.kill()
        assert running.wait(PATIENCE) == -signal.SIGKILL
    kept = partial.read_bytes().count(b"\n")
    assert 0 < kept < 2000
    done = deit_zoo(*words, "--resume")
    assert done.err.startswith(f"{kept:,} images have their answers already\n")
    rows = rows_of(file)
    assert sorted(row["image"] for row in rows) == sorted(map(str, folder.glob("*/*.png")))
    assert sum(row["error"] is not None for row in rows) == 20


def test_an_output_that_is_there_is_left_alone_or_gone_on_with(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "answers[red].csv", images / "a"
    assert put(folder, file) == 0
    before = file.read_bytes()
    again = refused(lambda: put(folder, file))
    assert again == f"{file} is there already; type --resume to go on, or give another --output"
    capsys.readouterr()
    assert put(folder, file, resume=True) == 0
    said = capsys.readouterr().err
    assert said == f"{file} is complete: 60 images, of which 0 could not be read\n"
    assert refused(lambda: put(images / "b", file, resume=True)) == (
        f"{file} was begun with images ['{folder}'], and this has ['{images / 'b'}']; type it as "
        "then, or give another --output"
    )
    for options, fields in (
        ({"topk": 3}, "topk 5, and this has 3"),
        ({"fast": True}, "optimized None, and this has "),
        ({"model": "deit_pico_distilled_digits"}, "model 'deit_pico_digits', and this has "),
    ):
        told = refused(lambda options=options: put(folder, file, resume=True, **options))  # type: ignore[misc]
        assert told.startswith(f"{file} was begun with {fields}")
    assert file.read_bytes() == before


@pytest.mark.parametrize("resume", [True, False])
def test_a_file_of_the_users_own_beside_the_table_is_left_alone(
    resume: bool, images: Path, tmp_path: Path
) -> None:
    file, own = tmp_path / "answers.csv", tmp_path / "answers.csv.json"
    own.write_text('{"mine": true}')
    told = "was begun with images None, and" if resume else ".json is there already; type --resume"
    assert told in refused(lambda: put(images, file, resume=resume))
    assert own.read_text() == '{"mine": true}'
    own.unlink()
    lock = tmp_path / "answers.csv.lock"
    lock.write_text("mine")
    told = f"{lock} is there already, and the lock of {file} would take its place; move it away"
    assert told in refused(lambda: put(images, file, resume=resume))
    assert lock.read_text() == "mine"


def test_images_of_the_same_names_in_another_folder_are_others(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "answers.csv"
    for folder in (tmp_path / "images", shutil.copytree(images, tmp_path / "copy")):
        monkeypatch.chdir(folder)
        if not file.exists():
            assert put("a", file) == 0
    assert refused(lambda: put("a", file, resume=True)).startswith(
        f"{file} was begun with working_folder '{images}', and this has '{tmp_path / 'copy'}'"
    )
    assert put(images / "a", tmp_path / "absolute.csv") == 0
    monkeypatch.chdir(tmp_path)
    assert put(images / "a", tmp_path / "absolute.csv", resume=True) == 0


@pytest.mark.parametrize("answer", ["is complete: 60 images", "was begun with topk 5"])
def test_a_table_that_is_there_is_compared_before_a_model_is_loaded(
    answer: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "answers.csv"
    assert put(images / "a", file) == 0
    monkeypatch.delattr("deit_zoo.cli.classify.load_network")
    if "complete" in answer:
        assert put(images / "a", file, resume=True) == 0
        assert answer in capsys.readouterr().err
    else:
        assert answer in refused(lambda: put(images / "a", file, resume=True, topk=3))


@pytest.mark.parametrize("is_whole", [True, False])
def test_no_answer_of_an_image_that_is_gone_is_kept(
    is_whole: bool, images: Path, tmp_path: Path
) -> None:
    file, folder = tmp_path / "answers.csv", images / "a"
    assert put(folder, file) == 0
    if not is_whole:
        interrupt(file)
    (folder / "00000.png").rename(folder / "new.png")
    assert refused(lambda: put(folder, file, resume=True)) == (
        f"{file} was begun with 60 images, which are not the 60 that are there now; give another "
        "--output"
    )
    (folder / "new.png").rename(folder / "00000.png")
    assert put(folder, file, resume=True) == int(not is_whole)


def test_two_processes_do_not_write_the_same_table(tmp_path: Path) -> None:
    file = tmp_path / "answers.csv"
    settings = {"images": ["x"], "topk": 1}
    program = """
import sys
from pathlib import Path
from deit_zoo.inference.answer_file import open_answers
with open_answers(Path(sys.argv[1]), {"images": ["x"], "topk": 1}, resume=True):
    print("open")
"""
    with open_answers(file, settings, resume=False) as answers:
        answers.add("x", [Prediction("cat", 0.5, 0, "n1")])
        answers.flush()
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with Process(["-c", program, file], **pipes) as other:
            printed, error = other.communicate(timeout=PATIENCE)
        assert printed == ""
        assert f"{file} is being written by another process; wait for it, or give" in error
        answers.finish()
    assert file.read_text() == (
        "image,label_1,probability_1,index_1,folder_1,error\nx,cat,0.5,0,n1,\n"
    )


def test_names_of_any_kind_are_one_row_each(tmp_path: Path) -> None:
    file = tmp_path / "answers.csv"
    names = ["two\nlines.png", 'a "quote", a comma.png', "caf\udce9.png"]
    with open_answers(file, {"topk": 1}, resume=False) as answers:
        for name in names:
            answers.add(name, [Prediction("caf\udce9", math.nan, 0, name)])
    with open_answers(file, {"topk": 1}, resume=True) as answers:
        assert isinstance(answers, AnswerFile)
        assert answers.done == set(names)
        answers.finish()
    written = [*names[:2], "caf\\udce9.png"]
    for column in ("image", "folder_1"):
        assert [row[column] for row in rows_of(file)] == written


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--output", "answers.txt"), "answers.txt does not end in .csv or .parquet; type"),
        (
            ("--output", "no/answers.csv"),
            "there is no folder no; make it, or give another --output",
        ),
        (("--output", "folder.csv"), "folder.csv is a folder; type --output FILE.csv or"),
        (("--resume",), "--resume goes on with a file; type --output FILE.csv or FILE.parquet too"),
        (("--output", "answers.csv", "--json"), "--json prints and --output writes; type one"),
        (("absent", "--output", "answers.csv"), "absent does not exist; give an image file"),
        (("-", "--output", "answers.csv"), "--output is for files and addresses, and - is stdin"),
    ],
)
def test_what_makes_no_table_is_one_sentence(
    words: tuple[str, ...], told: str, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "folder.csv").mkdir()
    assert sentence(classify("images", *words, cwd=tmp_path)).startswith(told)


def test_without_pyarrow_one_sentence_says_what_to_type(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError) as caught:
        classify_([str(images)], output=tmp_path / "answers.parquet")
    told = "a Parquet file needs pyarrow; type: pip install 'deit_zoo[hfds]'"
    assert str(caught.value) == told


def test_a_web_server_that_does_not_answer_is_no_answer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/7.png"
    told = refused(lambda: put(url, tmp_path / "answers.csv"))
    assert told.startswith(f"{url} could not be fetched: ")
    assert told.endswith("; with --resume it goes on from here")
    assert (tmp_path / "answers.csv.partial").read_bytes() == b""


def test_a_table_names_an_address_without_what_gives_access(images: Path, tmp_path: Path) -> None:
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path[-1])
            if asked == ["1", "2", "3"]:
                self.send_error(503)
            else:
                super().do_GET()

    file = tmp_path / "answers.csv"
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(images))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        names = ("a/00000", "a/00000", "b/00007")  # the last is broken
        urls = [
            f"http://127.0.0.1:{server.server_port}/{name}.png?X-Amz-Signature=SECRET{number}"
            for number, name in enumerate(names, start=1)
        ]
        with pytest.raises(DataError, match="with --resume it goes on from here"):
            classify_(urls, MODEL, output=file, workers=1)
        with pytest.raises(typer.Exit):
            classify_(urls, MODEL, output=file, workers=1, resume=True)
        server.shutdown()
    assert asked == ["1", "2", "3", "3"]
    rows = rows_of(file)
    assert len({row["image"] for row in rows}) == len(rows) == 3
    assert rows[2]["image"].startswith(urls[2].partition("?")[0])
    for written in (file, tmp_path / "answers.csv.json"):
        assert "SECRET" not in written.read_text()


class Flaky(MemoryFileSystem):
    """A bucket whose connection may be lost."""

    protocol = "flaky"
    lost = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.replace("flaky://", "memory://"))
        return stripped

    def cat_file(self, path: str, *arguments: Any, **options: Any) -> bytes:
        if Flaky.lost and path.endswith("00060.png"):
            raise ConnectionError("the network is away")
        content: bytes = super().cat_file(path, *arguments, **options)
        return content


@pytest.fixture
def bucket(images: Path) -> Iterator[str]:
    """The images in fsspec's memory, at an address."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    files = fsspec.filesystem("memory")
    for file in (*images.glob("*/*.png"), images / "a" / "notes.txt"):
        content = file.read_bytes() if file.exists() else b"no image"
        files.pipe_file(f"/bucket/{file.relative_to(images)}", content)
    yield "flaky://bucket"
    files.rm("/bucket", recursive=True)
    Flaky.lost = False


def test_images_at_an_address_are_answered_and_a_lost_connection_is_no_answer(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "answers.csv"
    Flaky.lost = True
    assert refused(lambda: put(bucket, file, batch_size=8)) == (
        "flaky:///bucket/a/00060.png cannot be fetched (the network is away); look at the address "
        "and at your access; with --resume it goes on from here"
    )
    assert "1 other file (.txt) is ignored in flaky://bucket" in capsys.readouterr().err
    Flaky.lost = False
    assert put(bucket, file, resume=True) == 1  # two are broken
    assert "30 images have their answers already" in capsys.readouterr().err
    rows = rows_of(file)
    assert len({row["image"] for row in rows}) == len(rows) == 120
    assert rows[30]["image"] == "flaky:///bucket/a/00060.png"
    assert sum(row["error"] is not None for row in rows) == 2
