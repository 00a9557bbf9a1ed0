"""What is not of one command: streams closed or full, Ctrl-C, and what the machine says."""

from __future__ import annotations

import ast
import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deit_zoo.cli.program import sentence
from support.command import ROOT, deit_zoo
from support.command import sentence as sentence_of

MODEL = "deit_pico_digits"
# Raises a signal where a module is looked for: a Ctrl-C at a moment that no clock could hit.
INTERRUPTED = """
import signal, sys
module = sys.argv.pop(1)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            {act}
sys.meta_path.insert(0, Finder())
from deit_zoo.cli import main
main()
"""


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """What a shell makes of a line, in which `deit-zoo` is ours."""
    code = f'deit-zoo() {{ {sys.executable} -m deit_zoo "$@"; }}; {line}'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", code], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("deit-zoo list >&-", "stdout is closed"),
        ("deit-zoo list --json >/dev/full", "No space left on device"),
        pytest.param(f"deit-zoo classify - --model {MODEL} <&-", "stdin", marks=pytest.mark.slow),
        *(
            pytest.param(
                f"head -c 1500M /dev/zero | deit-zoo {command} - --model {MODEL}",
                "stdin holds over 1.4 GB; give one image",
                marks=pytest.mark.slow,
            )
            for command in ("classify", "attention")
        ),
    ],
)
def test_a_stream_that_is_closed_or_full_is_one_sentence(line: str, told: str) -> None:
    done = shell(line)
    assert done.returncode in (1, 2)
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_link_in_a_circle_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    done = deit_zoo("data", "digits", "--output", "circle", env={}, cwd=tmp_path)
    assert "circle cannot be written (" in sentence_of(done)
    error = RuntimeError("Symlink loop from '/x'")  # as Path.resolve has it
    assert sentence(error) == "Symlink loop from '/x'; give another path, or mend this one"
    assert sentence(RuntimeError("our own mistake")) is None


@pytest.mark.parametrize("more", ["", "--json"])
def test_a_reader_that_has_read_enough_is_no_error(more: str) -> None:
    # The pipe is closed before the command begins.
    done = shell(f"(exec 3>&1; deit-zoo list {more}; echo status $? >&2) | :")
    assert done.stderr.splitlines()[-1] == "status 0"
    assert "error" not in done.stderr


@pytest.mark.parametrize(
    ("module", "words"),
    [("deit_zoo.cli.app", ["list"]), ("rich.console", ["info", MODEL])],
)
def test_ctrl_c_while_a_command_is_imported_ends_it_in_silence(
    module: str, words: list[str]
) -> None:
    code = INTERRUPTED.format(act="signal.raise_signal(signal.SIGINT)")
    done = subprocess.run(
        [sys.executable, "-c", code, module, *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize(
    ("act", "status"),
    [
        ("signal.raise_signal(signal.SIGINT)", 130),
        # From a destructor nothing can be raised.
        (
            "type('Gone', (), {'__del__': lambda self: signal.raise_signal(signal.SIGINT)})()",
            -signal.SIGINT,
        ),
    ],
)
def test_ctrl_c_once_a_command_has_begun_ends_it(act: str, status: int, tmp_path: Path) -> None:
    code = INTERRUPTED.format(act=act)
    done = subprocess.run(
        [sys.executable, "-c", code, "deit_zoo.data.digits", "data", "digits", "--output", "x"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "aaa"),
            "aaa says 'File name too long'; give another path, or mend this one",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", b"caf\xe9"),
            "caf\udce9 says 'No space left on device'; make room, or write elsewhere",
        ),
        (OverflowError("int"), "a number is too large (int); give a smaller one"),
    ],
)
def test_what_the_machine_refuses_is_one_sentence(error: Exception, text: str) -> None:
    assert sentence(error) == text


def test_a_current_folder_that_was_removed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError) as error:
        Path.cwd()
    told = "the folder that this was typed in is gone; type it in another"
    assert sentence(error.value) == told


def test_a_value_error_of_ours_is_a_mistake_and_shows_where() -> None:
    assert sentence(ValueError("ours")) is None


def test_a_name_that_no_disk_takes_is_one_sentence() -> None:
    assert "File name too long" in sentence_of(deit_zoo("data", "check", 300 * "a"))


def test_a_home_that_nobody_knows_is_one_sentence() -> None:
    told = sentence_of(deit_zoo("info", "~nosuchuser/run"))
    assert told == "~nosuchuser/run: no such home folder is known here; type the whole path"


def test_a_user_without_a_home_is_told_how_to_give_the_cache_a_place(tmp_path: Path) -> None:
    # As in a container that runs under a number which has no name.
    code = (
        "import os, pwd, sys\n"
        "def nobody(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = nobody\n"
        "from deit_zoo.cli import main\nmain()\n"
    )
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HOME", "DEIT_ZOO_CACHE", "XDG_CACHE_HOME")
    }
    done = subprocess.run(
        [sys.executable, "-c", code, "weights", "fetch", "deit_tiny"],
        env=environment | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "set DEIT_ZOO_CACHE to a folder" in done.stderr.splitlines()[-1]


def test_until_ctrl_c_is_heeded_nothing_is_imported_that_python_has_not_loaded() -> None:
    # Till then Python itself answers it, with a traceback; `signal` takes fifteen milliseconds.
    own = "sorted({*sys.modules} - before)"
    code = f"import sys; before = {{*sys.modules}}; import deit_zoo.cli; print({own})"
    done = subprocess.run(
        [sys.executable, "-Sc", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "['deit_zoo', 'deit_zoo.cli', 'deit_zoo.version']\n"


def test_the_home_of_a_path_is_filled_in_by_every_option(tmp_path: Path) -> None:
    # No shell does in --to=~/x, and none at all in a job file.
    words = ("weights", "fetch", MODEL, "--to=~/carried")
    done = deit_zoo(*words, cwd=tmp_path, env={"HOME": str(tmp_path)}, server="light")
    assert done.status == 0, done.err
    assert (tmp_path / "carried" / "model.safetensors").is_file()


def test_a_path_that_is_empty_is_refused() -> None:
    # As of a variable that is not set; it would be the current folder.
    done = deit_zoo("weights", "fetch", MODEL, "--to", "", server="light")
    assert (done.status, "'--to': '' is no path" in done.err) == (2, True)


def test_every_path_on_the_command_line_is_read_by_one_parser() -> None:
    # The annotations, as typer reads them.
    for file in (ROOT / "deit_zoo" / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Annotated":
                text = ast.unparse(node.slice)
                is_path = re.search(r"^\(?(list\[)?Path\b", text) is not None
                assert not is_path or re.search(r"parser=path\b|\bpath_option\(", text), text
