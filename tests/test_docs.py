"""What the documentation says is true: every block is run, every link leads somewhere.

A comment above a block of Python says what is special: `<!-- test: slow -->` leaves it to
`make test-all`, and the name of an error says that the block ends in it for now. Blocks of a
`story` are run by `test_story.py`, one after the other.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from deit_zoo import errors
from deit_zoo.cli.app import app
from deit_zoo.data import digits
from deit_zoo.manifest import read_manifest
from deit_zoo.registry import MODELS
from deit_zoo.registry.names import lookup
from support.command import deit_zoo

ROOT = Path(__file__).parents[1]
SLOW, STORY = "slow", "story"
FIRST = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
# What the examples of help name and no reader has yet: photographs, runs, the network; and what has
# no end.
NEEDS_MORE = r"photo|runs/|hfds:|carried|pin |\.pth|serve "
PAGES = [*FIRST, *sorted((ROOT / "docs").glob("*.md"))]


class Block(NamedTuple):
    """One fenced block: where it stands, its language, its text and the comment above it."""

    page: str
    line: int
    language: str
    text: str
    note: str


def blocks(language: str) -> list[Block]:
    """Every block of one language."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fence = re.compile(r"(?:<!-- test: (\w+) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
        for match in fence.finditer(text):
            if match[2] == language and match[1] != STORY:
                line = text[: match.start()].count("\n") + 1
                found.append(Block(page.name, line, language, match[3], match[1] or ""))
    return found


def examples(command: Any = None) -> Iterator[tuple[Any, str]]:
    """Every command, or those of a group, each with the end of its help."""
    for below in (command or typer.main.get_command(app)).commands.values():
        if hasattr(below, "commands"):
            yield from examples(below)
        else:
            yield below, str(below.epilog).removeprefix("Example: ")


def commands() -> Iterator[tuple[str, bool]]:
    """Every command of the shell blocks and of the commands' help, and whether it is a long one."""
    for _, example in examples():
        if not re.search(NEEDS_MORE, example):
            yield example, False
    for block in blocks("sh"):
        for line in block.text.splitlines():
            command = line.split("#")[0].strip()
            if command:
                long = re.search(r"reproduce|\brun\b", command) and "--dry-run" not in command
                yield command, bool(long)


def place(block: Block) -> str:
    return f"{block.page}:{block.line}"


def typed(long: bool) -> list[str]:
    """The commands in their order, each once."""
    unique = dict.fromkeys(command for command, is_long in commands() if is_long == long)
    return [command for command in unique if not command.startswith("make ")]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader has it after `deit-zoo data digits --output digits`."""
    folder = tmp_path_factory.mktemp("reader")
    digits.write_folder(folder / "digits")
    (folder / "docs").mkdir()
    return folder


def failures(long: bool, folder: Path) -> dict[str, str]:
    """The commands that do not work, typed one after the other, and what they say."""
    failed = {}
    for command in typed(long):
        words, _, output = command.replace("--output digits", "--output again").partition(" > ")
        done = deit_zoo(*shlex.split(words)[1:], server="training", cwd=folder, timeout=1800)
        if output:
            (folder / output).write_text(done.out, encoding="utf-8")
        # Another machine's receipt differs from the shipped one, and `diff` then exits 1.
        if done.status not in ((0, 1) if " diff " in command else (0,)):
            failed[command] = done.err
    return failed


def test_every_command_of_the_documentation_works(workplace: Path) -> None:
    assert failures(long=False, folder=workplace) == {}


@pytest.mark.slow
def test_every_long_command_of_the_documentation_works(workplace: Path) -> None:
    assert failures(long=True, folder=workplace) == {}


def execute(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    code = block.text.replace('"org/deit"', repr(str(ROOT)))
    code = code.replace("trust_repo=True", 'source="local"')
    compiled = compile(code, f"{block.page}:{block.line}", "exec")
    if block.note not in ("", SLOW):
        with pytest.raises(getattr(errors, block.note)):
            exec(compiled, {})
    else:
        exec(compiled, {})


# Which is true of a processor without units for bfloat16.
@pytest.mark.filterwarnings("ignore:bfloat16 is slower than float32 on this device:UserWarning")
@pytest.mark.parametrize("block", [b for b in blocks("python") if b.note != SLOW], ids=place)
def test_a_python_block_of_the_documentation_works(
    block: Block, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(block, workplace, monkeypatch)


@pytest.mark.slow
# What Lightning and Trainer make torch and themselves warn of; ours stay errors.
@pytest.mark.filterwarnings(
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
    r"ignore:The '\w+_dataloader' does not have many workers",
    "ignore:'pin_memory' argument is set as true but no accelerator is found:UserWarning",
)
@pytest.mark.parametrize("block", [b for b in blocks("python") if b.note == SLOW], ids=place)
def test_a_long_python_block_of_the_documentation_works(
    block: Block, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(block, workplace, monkeypatch)


def test_the_help_of_every_command_ends_with_an_example_that_it_takes() -> None:
    refused = {}
    for command, example in examples():
        _, *words = shlex.split(example)
        names = [word for word in words if not word.startswith("-")]
        own = words[1:] if command.name == names[0] else words[2:]
        assert command.name in names[:2], example
        try:
            command.make_context(command.name, own)
        except Exception as error:
            refused[example] = error
    assert refused == {}
    assert (
        deit_zoo("data", "check", "--help")
        .out.rstrip()
        .endswith("Example: deit-zoo data check digits")
    )


def test_every_make_target_of_the_documentation_exists() -> None:
    targets = sorted({c.split()[1] for c, _ in commands() if c.startswith("make ")})
    assert targets
    done = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_table_of_models_is_fresh() -> None:
    fresh = deit_zoo("list", "--markdown").out
    shipped = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert fresh == shipped, "stale: deit-zoo list --markdown > docs/models.md"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def is_broken(page: Path, link: str) -> bool:
    """Whether a link of a page leads to no file, or to no heading in it."""
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    return not target.exists() or bool(anchor and anchor not in anchors(target))


def test_every_link_of_a_page_leads_to_a_file_and_a_heading() -> None:
    broken = [
        f"{page.name}: {link}"
        for page in PAGES
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
        if not link.startswith("https://") and is_broken(page, link)
    ]
    assert broken == []


def test_every_page_stands_in_the_contents_of_the_site() -> None:
    docs = ROOT / "docs"
    contents = (docs / "index.md").read_text(encoding="utf-8").splitlines()
    pages = {page.stem for page in docs.iterdir() if page.suffix in (".md", ".rst", ".ipynb")} - {
        "index"
    }
    assert pages - set(contents) == set(), "name it in a toctree of docs/index.md"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 110


def test_the_accuracy_in_the_readme_is_that_of_the_manifest() -> None:
    rows = re.findall(r"^\| `(\w+)` \|(.+)\|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    shown = {}
    for name, cells in rows:
        size, *figures = [cell.strip() for cell in cells.split("|")]
        assert lookup(name).num_params == pytest.approx(1e6 * float(size.split()[0]), rel=6e-3)
        first = "_224" if name.startswith("cait") else ""
        for column, cell in zip((first, "_384", "_in21k", "_384_in21k"), figures, strict=True):
            figure, _, own_column = cell.partition(" ")
            if figure != "–":
                shown[name + (own_column.strip("(`)") or column)] = figure
    expected = {}
    for name, record in read_manifest().items():
        if record.labels == "imagenet1k" and MODELS[name].family != "regnet":
            star = "*" if record.is_timms(record.metric) else ""
            expected[name] = f"{record.metric.top1:.1f}{star}"
    assert shown == expected
    assert len(expected) == 34


def test_every_extra_that_a_page_installs_exists() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = project.split("[project.optional-dependencies]")[1].split("\n[")[0]
    named = {
        extra
        for page in PAGES
        for several in re.findall(r"(?:deit_zoo|\.)\[([a-z,]+)\]", page.read_text(encoding="utf-8"))
        for extra in several.split(",")
    }
    assert "train" in named
    assert named - set(re.findall(r"^(\w+) = ", extras, re.MULTILINE)) == set()
