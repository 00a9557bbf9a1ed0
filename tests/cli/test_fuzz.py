"""Command lines that nobody would think of: each ends in an answer or a sentence, in no traceback.

Every command and every option of it, with words that fit and words that do not, in a folder with
files of all kinds. What trains is only planned, and no command reaches a network.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from deit_zoo.cli.app import app
from deit_zoo.data.digits import digits
from deit_zoo.errors import ZooError

MODEL = "deit_pico_digits"
NUMBERS = (
    *("0", "1", "2", "-1", "3.5", "nan", "inf", "-inf", "1e308", "1e400", "-0.0", "0x10", "1_0"),
    *("70000", "100000", str(2**63), str(10**30), "9" * 5000, "", "１"),
)
WORDS = (
    *("", " ", ".", "..", "-", "~", "~nosuchuser", "~nosuchuser/x", "a" * 300, "a/" * 3000),
    *("/nosuch/x", "/nosuch/x.png", "/proc/x.pt2", "/dev/null", "/dev/full", "/dev/ptmx", "fifo"),
    *("dangling", "empty", "text", "caf\udce9.png", "7.png", "7.png/x", "digits", "digits/val/7"),
    *("run", "run/log.jsonl", "new", "new.png", "new.onnx", "new.safetensors", "torn.json"),
    *("deit_s", "nosuch", "[/red]", "\x1b[31m", "two\nlines", "*", "[", "(", "=", "=1", "x="),
    *("hfds:", "hfds:../..", "hfds:a/b:c@d", "hf://", "hf://-a/b", "hf://a/b@../c", "s3://", "://"),
    *("http://[bad", "http://a..b/x", "http://127.0.0.1:9/x", "http://h:99999/x", "file:///x"),
    *("meta", "cuda:99", "mps", "cpu:x", "auto", "224x", "32x32", "100000", "nan", "localhost:0"),
    *("lr=nan", "lr=1e400", "epochs=-1", "img_size=100000", "nosuch=1", "repeated_aug=99999999"),
)
# Words that fit, by what they are for.
FITTING = {
    **dict.fromkeys(("name", "names", "model"), (MODEL, "run")),
    **dict.fromkeys(("data", "--data"), ("digits",)),
    **dict.fromkeys(("image", "images"), ("7.png", "digits/val/7")),
    **dict.fromkeys(("left", "right", "runs"), ("run",)),
    **dict.fromkeys(("--device",), ("cpu",)),
    **dict.fromkeys(("--repo",), ("org/name",)),
    **dict.fromkeys(("--model",), (MODEL,)),
}
# What would train, measure for long, or ask a network that tests have not.
ADDED = {
    **dict.fromkeys(("reproduce", "finetune", "teacher-labels"), ("--dry-run",)),
    "serve": ("--host", "192.0.2.1"),  # an address that no machine has, or it would not end
    # Compiling takes a minute, and is tested with the command itself.
    "benchmark": ("--quick", "--seconds", "0.001", "--batch-size", "1"),
}
LEFT_OUT = {"--network", "--dry-run", "--aot", "--cold-start", "--memory", "--train"}


def commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The words of every command, and what it takes."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


COMMANDS = dict(commands(typer.main.get_command(app)))


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command with some of its options, in no order."""
    names = draw(st.sampled_from(sorted(COMMANDS)))
    arguments: list[str] = []
    options: list[list[str]] = []
    for parameter in COMMANDS[names].params:
        option = parameter.opts[0]
        kind = str(parameter.type_descriptor.annotation)
        is_argument = not option.startswith("-")
        likely = st.sampled_from([True] * 9 + [False]) if parameter.required else st.booleans()
        if option in LEFT_OUT or not draw(likely):
            continue
        pool, some = (NUMBERS, ("1", "2")) if "int" in kind or "float" in kind else (WORDS, WORDS)
        fitting = FITTING.get(option, some)
        value = st.one_of(st.sampled_from(fitting), st.sampled_from(pool))
        if is_argument:
            arguments += draw(st.lists(value, min_size=1, max_size=2 if parameter.nargs < 0 else 1))
        elif "bool" in kind:
            options.append([draw(st.sampled_from([*parameter.opts, *parameter.secondary_opts]))])
        else:
            options.append([option, draw(value)])
    if names == ("benchmark",) and not arguments:
        arguments = [MODEL]
    added = ADDED.get(names[0], ())
    return [*names, *(word for option in options for word in option), *added, "--", *arguments]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with something of everything."""
    folder = tmp_path_factory.mktemp("files")
    for number, (image, label) in enumerate(digits()):
        if number < 20:
            split = folder / "digits" / ("train" if number < 10 else "val") / str(number % 10)
            split.mkdir(parents=True, exist_ok=True)
            image.save(split / "0.png")
        if label == "7":
            image.save(folder / "7.png")
    shutil.copy(folder / "7.png", os.path.join(os.fsencode(folder), b"caf\xe9.png"))
    (folder / "dangling").symlink_to("nowhere")
    (folder / "empty").mkdir()
    (folder / "text").write_text("no picture, no model, no run")
    (folder / "torn.json").write_text('{"top1": ')
    (folder / "run").mkdir()
    row = '{"epoch": 0, "train_loss": 2.0, "val_top1": 50.0, "val_top5": 90.0, "val_loss": 1.5}\n'
    (folder / "run" / "log.jsonl").write_text(row)
    return folder


def ended(words: list[str], files: Path, folder: Path) -> str:
    """How a command ended that was typed in a fresh copy of these files: its status."""
    shutil.copytree(files, folder, symlinks=True)
    os.mkfifo(folder / "fifo")
    before = os.getcwd()
    os.chdir(folder)
    try:
        done = CliRunner().invoke(app, words, input=b"")
    finally:
        os.chdir(before)
        shutil.rmtree(folder)
    error = done.exception
    if error is not None and not isinstance(error, ZooError | SystemExit):
        raise AssertionError(f"deit-zoo {words} ends in a traceback") from error
    assert "Traceback" not in done.stderr
    assert not isinstance(error, SystemExit) or error.code in (0, 1, 2), error.code
    return "refused" if isinstance(error, ZooError) else str(done.exit_code)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # a command is no test
def test_no_command_line_ends_in_a_traceback(files: Path, tmp_path: Path) -> None:
    ends: Counter[str] = Counter()

    @settings(
        max_examples=150,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],  # what fails is short enough to be read
        suppress_health_check=list(HealthCheck),
    )
    @given(command_lines())
    def every(words: list[str]) -> None:
        ends[ended(words, files, tmp_path / "here")] += 1

    every()
    assert len(ends) >= 2, ends  # answers and refusals
