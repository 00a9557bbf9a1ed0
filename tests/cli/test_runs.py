"""`plot`, `diff` and `compare` as a user types them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from deit_zoo.cli.runs import compare_, diff_, plot_
from deit_zoo.files import ASSETS
from deit_zoo.recipes import RECIPES
from support.command import run_python
from support.typed import Done

PNG = b"\x89PNG\r\n\x1a\n"
ROWS = [
    {"epoch": 0, "train_loss": 6.93, "val_top1": 0.3},
    {"epoch": 1, "train_loss": 6.75, "val_top1": 0.1},
]

app = typer.Typer()
app.command("plot")(plot_)
app.command("diff")(diff_)
app.command("compare")(compare_)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run after two epochs, without a plan."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return folder


@pytest.fixture
def receipt(tmp_path: Path) -> Callable[..., Path]:
    """Write a copy of an embedded model's receipt, with some values of its top level changed."""

    def written(**changes: Any) -> Path:
        content = json.loads((ASSETS / "deit_pico_digits.receipt.json").read_text(encoding="utf-8"))
        file = tmp_path / f"{len(list(tmp_path.glob('*.json')))}.json"
        file.write_text(json.dumps(content | changes), encoding="utf-8")
        return file

    return written


def test_plot_draws_a_chart_and_a_picture_and_says_where(typed: Callable[..., Done]) -> None:
    done = typed("plot", "deit_pico_digits")
    lines = done.out.splitlines()
    assert (done.status, done.err) == (0, "the picture is curve.png\n")
    assert lines[0] == "validation top-1 (%)"
    assert lines[1].startswith("98.3 ┤")
    assert lines[-1] == "deit_pico_digits: epoch 140/140, loss 1.259, top-1 98.33 %"
    assert max(map(len, lines)) == 80
    with Image.open("curve.png") as image:
        assert (image.format, image.size) == ("PNG", (840, 768))


def test_plot_says_of_how_many_epochs_the_loss_is_not_finite(
    typed: Callable[..., Done], run: Path
) -> None:
    with (run / "log.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"epoch": 2, "train_loss": null, "val_top1": 0.1}\n')
    done = typed("plot", run, "--metric", "loss", "--output", "curve.png")
    assert (done.status, done.error) == (0, None)
    said = " ".join(done.out.split())
    assert "epoch 3, loss not finite, top-1 0.10 %; loss is not finite in 1 epoch" in said
    rows = json.loads(typed("plot", run, "--json").out)["runs"][0]["epochs"]
    assert [row["train_loss"] for row in rows] == [6.93, 6.75, None]


def test_plot_fits_the_terminal(
    typed: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert max(map(len, typed("plot", "deit_pico_digits").out.splitlines())) == 100


def test_plot_puts_several_runs_on_one_picture(typed: Callable[..., Done], run: Path) -> None:
    done = typed("plot", run, "convnet_pico_digits", "--output", "two.png")
    assert (done.status, done.err) == (0, "the picture is two.png\n")
    assert f"  1 {run}"[:60] in done.out
    assert "  2 convnet_pico_digits\n" in done.out
    assert Path("two.png").read_bytes().startswith(PNG)


def test_plot_draws_the_loss_alone(typed: Callable[..., Done]) -> None:
    done = typed("plot", "deit_pico_digits", "--metric", "loss")
    assert done.out.splitlines()[0] == "training loss"
    with Image.open("curve.png") as image:
        assert image.size == (840, 456)


def test_plot_prints_the_figures_as_json_and_leaves_no_picture(
    typed: Callable[..., Done], run: Path
) -> None:
    plan = {"recipe": RECIPES["deit_small"].to_dict(), "num_images": 1000}
    (run / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    done = typed("plot", run, "--json")
    assert (done.status, done.err, list(Path().iterdir())) == (0, "", [])
    assert json.loads(done.out) == {
        "published": {
            "recipe": "deit_small",
            "top1": 79.854,
            "band": 0.15,
            "curve": [[0, 0.346], [1, 0.608], [2, 2.782], [3, 5.822], [4, 7.616]],
            "source": "public gist fmassa/0dbd0184a0adb904ef42277b487d8b53 (issue #16)",
        },
        "runs": [
            {
                "run": str(run),
                "recipe": "deit_small",
                "differs": ["training images 1,000, recipe 1,281,167"],
                "standing": {
                    "epoch": 1,
                    "top1": 0.1,
                    "published": 0.608,
                    "since": 1,
                    "sentence": "0.5 points below the published curve since epoch 2; first "
                    "setting that differs: training images 1,000, recipe 1,281,167",
                },
                "epochs": ROWS,
            }
        ],
    }


def test_plot_as_json_draws_where_it_is_told_to(typed: Callable[..., Done], run: Path) -> None:
    done = typed("plot", run, "--json", "--output", "p.png")
    assert json.loads(done.out)["published"]["recipe"] is None
    assert Path("p.png").is_file()


def test_plot_overwrites_a_picture(typed: Callable[..., Done], run: Path) -> None:
    Path("curve.png").write_bytes(PNG + b"of old")
    assert typed("plot", run).status == 0
    assert not Path("curve.png").read_bytes().endswith(b"of old")


def test_plot_never_overwrites_what_is_no_picture(typed: Callable[..., Done], run: Path) -> None:
    Path("curve.png").write_text("a letter", encoding="utf-8")
    done = typed("plot", run)
    assert (done.out, done.error) == ("", "curve.png is there and no PNG; give another --output")
    assert Path("curve.png").read_text(encoding="utf-8") == "a letter"


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("curve.svg", "curve.svg does not end in .png; type --output FILE.png"),
        ("nowhere/p.png", "there is no folder nowhere; make it, or give another --output"),
        ("folder.png", "folder.png is a folder; type --output FILE.png"),
        # The temporary name is longer than a name may be.
        (
            f"{248 * 'x'}.png",
            f"{248 * 'x'}.png cannot be written (File name too long); give another --output",
        ),
    ],
)
def test_plot_refuses_where_no_picture_can_be(
    typed: Callable[..., Done], run: Path, output: str, sentence: str
) -> None:
    Path("folder.png").mkdir()
    assert typed("plot", run, "--output", output).error == sentence


def test_plot_of_a_run_without_an_epoch_is_one_sentence(
    typed: Callable[..., Done], run: Path
) -> None:
    (run / "log.jsonl").write_text("", encoding="utf-8")
    done = typed("plot", run)
    assert done.error == f"{run} has no finished epoch yet; type it again when the first has ended"
    assert list(Path().iterdir()) == []


def test_plot_without_matplotlib_shows_the_chart_and_names_the_extra(
    typed: Callable[..., Done], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = typed("plot", run)
    assert done.out.startswith("validation top-1 (%)\n")
    assert done.error == "a picture needs matplotlib; type: pip install 'deit_zoo[train]'"


def command(*words: str | Path, encoding: str) -> str:
    """Run `deit-zoo` with a stdout of this encoding; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "deit_zoo", *map(str, words)],
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "COLUMNS": "200"},
        capture_output=True,
        check=False,
    )
    assert done.stderr in (b"", b"the picture is p.png\n")
    return done.stdout.decode(encoding)


@pytest.mark.parametrize(
    ("encoding", "legend"),
    [("utf-8", "  ⠒ läuft\n"), ("ascii", "  * l\\xe4uft\n"), ("latin-1", "  * läuft\n")],
)
def test_plot_writes_what_stdout_can_say(
    run: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, legend: str
) -> None:
    run.rename(run.with_name("läuft"))
    monkeypatch.chdir(run.parent)
    assert legend in command("plot", "läuft", "--output", "p.png", encoding=encoding)


def test_diff_writes_what_stdout_can_say(receipt: Callable[..., Path]) -> None:
    left, right = receipt(band_source="none"), receipt(band_source="81.8 ± 0.2")
    assert command("diff", left, right, encoding="ascii") == (
        "field        a     b\nband_source  none  81.8 \\xb1 0.2\n"
    )
    printed = command("diff", left, right, "--json", encoding="ascii")
    assert json.loads(printed)["groups"]["result"][0]["right"] == "81.8 ± 0.2"


def test_plot_as_json_needs_no_torch(run: Path) -> None:
    code = (
        "import sys, typer; from deit_zoo.cli.runs import plot_; "
        "app = typer.Typer(); app.command()(plot_); app(standalone_mode=False); "
        "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    assert run_python(["-c", code, run, "--json"], server="light").returncode == 0


def test_diff_of_a_receipt_with_itself_is_one_word(typed: Callable[..., Done]) -> None:
    done = typed("diff", "deit_pico_digits", "deit-pico-digits")
    assert (done.status, done.out, done.err) == (0, "same\n", "")


def test_diff_is_one_table_and_says_no(
    typed: Callable[..., Done], receipt: Callable[..., Path]
) -> None:
    done = typed("diff", receipt(seed=0, band=1.5), receipt(seed=12, band=1.25, teacher="deit_b"))
    assert done.status == 1
    assert done.out == (
        "field    a     b\nband     1.5   1.25\nseed     0     12\nteacher  none  deit_b\n"
    )


def test_diff_fits_a_page_and_tells_each_difference_once(typed: Callable[..., Done]) -> None:
    lines = typed("diff", "deit_pico_digits", "deit_pico_distilled_digits").out.splitlines()
    assert max(map(len, lines)) <= 100
    assert [line.split() for line in lines if "band " in line] == [["band", "2.5", "1.5"]]
    assert "sha256.model.safetensors  f8d4768a…                  26c7c102…" in lines
    longest = lines.index("plan.recipe.source        a  deit_zoo, after arXiv:2012.12877, Table 9")
    assert lines[longest + 1].split()[0] == "b"


def test_diff_of_the_same_run_at_another_time_says_same(
    typed: Callable[..., Done], receipt: Callable[..., Path]
) -> None:
    early, late = (
        receipt(environment={"finished": when}, sha256={"log.jsonl": digest})
        for when, digest in (("2026-01-01", "aa"), ("2026-02-02", "bb"))
    )
    done = typed("diff", early, late)
    assert done.status == 0
    assert done.out == (
        "same but for the clock\n"
        "field                 a           b\n"
        "environment.finished  2026-01-01  2026-02-02\n"
        "sha256.log.jsonl      aa          bb\n"
    )


def test_diff_prints_json(typed: Callable[..., Done], receipt: Callable[..., Path]) -> None:
    left, right = receipt(seed=0), receipt(seed=12, teacher="deit_b")
    done = typed("diff", left, right, "--json")
    assert done.status == 1
    assert json.loads(done.out) == {
        "left": str(left),
        "right": str(right),
        "same": False,
        "groups": {
            "recipe": [{"field": "seed", "left": 0, "right": 12}],
            "weights": [{"field": "teacher", "left": None, "right": "deit_b"}],
        },
    }


def test_diff_reads_the_folder_of_a_run(
    typed: Callable[..., Done], run: Path, receipt: Callable[..., Path]
) -> None:
    shutil.copy(receipt(), run / "receipt.json")
    assert typed("diff", run, "deit_pico_digits").status == 0


def test_diff_of_what_is_no_receipt_is_one_sentence(typed: Callable[..., Done], run: Path) -> None:
    done = typed("diff", run / "log.jsonl", "deit_pico_digits")
    assert (done.out, done.error) == (
        "",
        f"{run / 'log.jsonl'} is no receipt of a deit_zoo run; give the receipt.json that "
        "`deit-zoo reproduce` left",
    )


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three runs: at another rate, longer, and one whose last top-1 is not finite."""
    made = []
    for name, changes, tops in (
        ("slow", {"lr": 1e-4}, [10.0, 20.0]),
        ("long", {"epochs": 200}, [10.0, 60.0, 50.0]),
        ("lost", {}, [10.0, None]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        rows = [
            {"epoch": n, "train_loss": 1.0, "val_top1": top, "val_loss": 2.0, "seconds": 40.0}
            for n, top in enumerate(tops)
        ]
        (folder / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        recipe = replace(RECIPES["deit_pico_digits"], **changes).to_dict()
        plan = {"recipe": recipe, "num_images": 1437}
        (folder / "plan.json").write_text(json.dumps(plan))
        made.append(folder)
    return made


def test_compare_sorts_by_top1_and_says_what_changed(
    typed: Callable[..., Done], runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, long, lost = runs
    monkeypatch.chdir(long.parent)
    done = typed("compare", slow.name, lost.name, long.name)
    assert done.status == 0
    assert done.out.splitlines() == [
        "run   top-1   best  val loss  epochs  time",
        "long  50.00  60.00      2.00       3  2:00",
        "slow  20.00  20.00      2.00       2  1:20",
        "lost      –  10.00      2.00       2  1:20",
        "",
        "long  epochs 200, lr 0.002",
        "slow  epochs 140, lr 0.0001",
        "lost  epochs 140, lr 0.002",
    ]
    rows = json.loads(typed("compare", slow, long, "--json").out)
    assert [(row["run"], row["best_top1"]) for row in rows] == [
        (str(long), 60.0),
        (str(slow), 20.0),
    ]
    assert rows[0]["changed"] == {"epochs": "200", "lr": "0.002"}


def test_a_run_of_several_labels_is_shown_by_its_mean_average_precision(
    typed: Callable[..., Done], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a long name is broken at the end of a line
    run, tags = run.relative_to(tmp_path), Path("tags")
    tags.mkdir()
    rows = [
        {"epoch": n, "train_loss": 0.7, "val_top1": 90.0 + n, "val_mean_ap": ap, "val_loss": 0.5}
        for n, ap in enumerate((20.0, 31.25, 30.5))
    ]
    (tags / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    lines = typed("plot", tags).out.splitlines()
    assert lines[0] == "validation mean AP (%)"
    assert " ".join(lines[-2:]).endswith("mean AP 30.50 %")
    mixed = typed("plot", run, tags).out
    assert mixed.startswith("validation top-1 or mean AP (%)\n")
    said = " ".join(mixed.split())
    assert f"1 {run} (top-1)" in said
    assert f"2 {tags} (mean AP)" in said
    heading, first, second = typed("compare", run, tags).out.splitlines()
    assert heading.split()[:5] == ["run", "top-1", "mean", "AP", "best"]
    assert (first.split()[:4], second.split()[1:4]) == (
        [str(tags), "–", "30.50", "31.25"],
        ["0.10", "–", "0.30"],
    )
    assert typed("compare", tags).out.split()[:4] == ["run", "mean", "AP", "best"]
    [row] = json.loads(typed("compare", tags, "--json").out)
    assert (row["mean_ap"], row["best_mean_ap"], row["best_top1"]) == (30.5, 31.25, 92.0)


def test_compare_of_equal_recipes_shows_no_change(typed: Callable[..., Done], run: Path) -> None:
    [row] = json.loads(typed("compare", "deit_pico_digits", "--json").out)
    assert row["changed"] == {}
    rows = json.loads(typed("compare", run, "deit_pico_digits", "--json").out)
    assert [(row["run"], row["recipe"]) for row in rows] == [
        ("deit_pico_digits", "deit_pico_digits"),
        (str(run), None),
    ]
