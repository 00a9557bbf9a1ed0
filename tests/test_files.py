"""JSON of others is read within bounds, from regular files, and refused in one sentence."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from deit_zoo.errors import DataError, FormatError, ZooError
from deit_zoo.files import (
    JSON_DEPTH,
    as_record,
    is_running,
    machine_key,
    new_folder,
    open_descriptor,
    parse_json,
    read_bytes,
    read_json,
    write_whole,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    name: str
    epochs: int
    top1: float | None = None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "is not JSON"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b"[" * 100_000, "nested deeper than 64 levels"),
        (b'{"a":' * 100_000, "nested deeper than 64 levels"),
        (b"[" * 65 + b"]" * 65, "nested deeper than 64 levels"),
        (b"[" + b"[]," * (1 << 18) + b"0]", "holds more than 262,144 lists"),
        (b'{"a": 1, "a": 2}', "names 'a' twice"),
        (json.dumps(dict.fromkeys(range(99_999), 0))[:-1].encode() + b', "99998": 1}', "twice"),
        (b'{"a": NaN}', "NaN is no finite number"),
        (b'{"a": -Infinity}', "-Infinity is no finite number"),
        (b'{"a": 1e999}', "1e999 is no finite number"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "10000000000000000000... is no number of 64 bits"),
    ],
)
def test_what_is_no_bounded_json_is_refused_in_one_sentence(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=re.escape(reason)) as caught:
        parse_json(data, "record.json")
    assert str(caught.value).startswith("record.json ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
    assert isinstance(caught.value, ZooError)
    assert isinstance(caught.value, ValueError)


def test_json_as_deep_as_is_allowed_is_read() -> None:
    value = parse_json("[" * JSON_DEPTH + "]" * JSON_DEPTH, "text")
    for _ in range(JSON_DEPTH - 1):
        [value] = value
    assert value == []


def test_ordinary_json_is_read_as_by_the_standard_library() -> None:
    text = '{"a": [1, -2.5, 1e300, null, true, "\\u00e9"], "b": {}, "c": 18446744073709551615}'
    assert parse_json(text, "text") == {
        "a": [1, -2.5, 1e300, None, True, "é"],
        "b": {},
        "c": 2**64 - 1,
    }


@pytest.mark.parametrize("text", ["5", '"a"', "null"])
def test_a_text_may_be_one_value(text: str) -> None:
    assert parse_json(text, "text") == {"5": 5, '"a"': "a", "null": None}[text]


def test_a_word_for_no_number_is_what_the_caller_makes_of_it() -> None:
    assert parse_json('{"loss": NaN}', "text", lambda _: None) == {"loss": None}


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    with file.open("wb") as stream:
        stream.truncate(1 << 40)  # sparse: on the disk it takes nothing
    with pytest.raises(FormatError, match="is larger than 1,000 bytes"):
        read_json(file, limit=1000)


def test_a_file_of_just_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "ten").write_bytes(b"0123456789")
    assert read_bytes(tmp_path / "ten", limit=10) == b"0123456789"


def test_a_fifo_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "record.json")
    with pytest.raises(FormatError, match=r"is a FIFO; give a regular file"):
        read_json(tmp_path / "record.json")


def test_a_device_is_refused() -> None:
    with pytest.raises(FormatError, match=r"/dev/zero is a device; give a regular file"):
        read_bytes(Path("/dev/zero"))


def test_a_folder_and_a_missing_file_are_the_systems_own_errors(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        read_json(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


def test_a_record_has_its_fields_in_their_types() -> None:
    figure = as_record({"name": "a", "epochs": 3, "top1": 80, "more": 1}, Figure, "a.json")
    assert figure == Figure(name="a", epochs=3, top1=80.0)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "got `array`"),
        ({"name": "a"}, "missing required field `epochs`"),
        ({"name": "a", "epochs": "3"}, "got `str` - at `$.epochs`"),
        ({"name": "a", "epochs": True}, "got `bool` - at `$.epochs`"),
        ({"name": None, "epochs": 3}, "got `null` - at `$.name`"),
    ],
)
def test_a_record_of_other_fields_or_types_is_refused_by_name(value: object, reason: str) -> None:
    with pytest.raises(FormatError, match=re.escape(reason)):
        as_record(value, Figure, "a.json")


KILLED = """
import os, signal, sys
from pathlib import Path
from deit_zoo.files import new_folder, write_whole
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "file":
    write_whole(Path(sys.argv[1]), b"a")
with new_folder(Path(sys.argv[1])) as folder:
    write_whole(folder / "inner", b"a")
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_had_begun_is_removed_by_the_next_that_writes(
    kind: str, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    done = subprocess.run([sys.executable, "-c", KILLED, str(file), kind])
    assert done.returncode == -signal.SIGKILL
    (torn,) = tmp_path.iterdir()
    # Of a process that still writes, and of another machine's.
    mine = torn.name.replace(f".{torn.name.split('.')[-2]}.", f".{os.getpid()}.")
    (tmp_path / mine).touch()
    (tmp_path / ".model.safetensors.00000000.1.abcd1234").touch()
    if kind == "file":
        write_whole(file, b"b")
    else:
        with new_folder(file):
            pass
    assert sorted(os.listdir(tmp_path)) == sorted(
        [".model.safetensors.00000000.1.abcd1234", mine, "model.safetensors"]
    )


def test_a_folder_is_not_blamed_for_a_file_elsewhere_that_cannot_be_read(tmp_path: Path) -> None:
    absent = tmp_path / "photos" / "labels.json"
    with pytest.raises(FileNotFoundError, match=re.escape(str(absent))), new_folder(tmp_path / "a"):
        absent.read_bytes()
    (tmp_path / "file").touch()
    blamed = r"a cannot be written .*; give another --output$"
    with pytest.raises(DataError, match=blamed), new_folder(tmp_path / "file" / "a"):
        pass
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere containers are machines")
def test_a_container_with_processes_of_its_own_is_another_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = machine_key()
    assert here == machine_key()
    monkeypatch.setattr(os, "readlink", lambda path: "pid:[4026532281]")
    assert machine_key() != here


@pytest.mark.parametrize("kind", ["a FIFO", "a device"])
def test_what_is_no_regular_file_is_not_replaced(kind: str, tmp_path: Path) -> None:
    # root could replace /dev/null itself; the link shows it to a test that must not.
    file = tmp_path / "file"
    if kind == "a device":
        file.symlink_to(os.devnull)
    else:
        os.mkfifo(file)
    with pytest.raises(FormatError, match=f"{kind}; give a regular file"):
        write_whole(file, b"a")
    assert file.exists()
    assert not file.is_file()
    assert len(os.listdir(tmp_path)) == 1


def test_no_process_has_a_number_beyond_all() -> None:
    assert is_running(os.getpid())
    assert not is_running(10**30)


def test_no_signal_is_sent_on_windows_where_zero_is_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "kill", lambda pid, number: pytest.fail(f"{number} to {pid}"))
    assert is_running(os.getpid())


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="open files are not listed here")
def test_what_a_folder_takes_the_place_of_is_not_left_open(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    modes = iter([None, IsADirectoryError()])

    def check(*_: object) -> None:
        if error := next(modes):
            raise error

    before = len(os.listdir("/dev/fd"))
    with pytest.raises(IsADirectoryError):
        open_descriptor(tmp_path / "file", check)
    assert len(os.listdir("/dev/fd")) == before
