"""Charts of characters against literals, and what a picture holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from deit_zoo.recipes import RECIPES
from deit_zoo.runs import plot
from deit_zoo.runs.log import Run
from deit_zoo.runs.picture import png_of
from deit_zoo.runs.plot import Line, chart, draw, draw_run, lines_of, summary, terminal_plot
from support.tables import each_row

UP = Line(label="up", points=[(1, 0.0), (5, 100.0)])
DOWN = Line(label="down", points=[(1, 100.0), (5, 0.0)])
BLUE, RED, GREY = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x66, 0x66, 0x66)


def run_of(*top1: float | None, name: str | None = "deit_small", label: str = "mine") -> Run:
    """A run that reached these top-1."""
    log = [{"epoch": n, "train_loss": 7.0 - n, "val_top1": x} for n, x in enumerate(top1)]
    return Run(label=label, log=log, recipe=RECIPES[name] if name else None)


def test_each_recipe_has_its_own_published_figure() -> None:
    one, other = run_of(70.0), run_of(75.0, name="deit_base", label="other")
    figure = "published figure 79.85 %, tolerance 0.15"
    assert figure in terminal_plot([one, one], "top1")
    both = terminal_plot([one, other], "top1")
    assert "published figure of deit_small 79.85 %, tolerance 0.15" in both
    assert "published figure of deit_base 81.85 %, tolerance 0.2" in both


def test_a_line_is_drawn_from_corner_to_corner() -> None:
    assert chart([UP], width=20, height=5, plain=True) == [
        "100.0 +           **",
        "      |        ***",
        " 50.0 +     ***",
        "      |  ***",
        "  0.0 +**",
        "      +-------------",
        "       1   epoch   5",
    ]


def test_one_run_is_drawn_in_braille() -> None:
    # 20 x 12 dots; the one of column n is round(11 n / 19) above the lowest. By hand.
    assert chart([UP], width=17, height=3, plain=False) == [
        "100.0 ┤      ⢀⡠⠔⠊",
        " 50.0 ┤   ⢀⠤⠒⠁",
        "  0.0 ┤⡠⠔⠊⠁",
        "      └──────────",
        "       1 epoch  5",
    ]


def test_several_runs_are_drawn_by_number_and_take_turns_where_they_meet() -> None:
    assert chart([UP, DOWN], width=20, height=5, plain=False) == [
        "100.0 ┤22         11",
        "      │  222   111",
        " 50.0 ┤     212",
        "      │  111   222",
        "  0.0 ┤11         22",
        "      └─────────────",
        "       1   epoch   5",
    ]


def test_the_published_curve_lies_under_the_run() -> None:
    lines = [UP, replace(DOWN, published=True)]
    assert chart(lines, width=20, height=5, plain=True)[:5] == [
        "100.0 +..         **",
        "      |  ...   ***",
        " 50.0 +     ***",
        "      |  ***   ...",
        "  0.0 +**         ..",
    ]


def test_one_epoch_is_one_dot() -> None:
    assert chart([Line(label="one", points=[(1, 10.0)])], width=16, height=3, plain=True) == [
        "10.50 +",
        "10.00 +*",
        " 9.50 +",
        "      +---------",
        "       1",
    ]


def test_a_chart_without_a_figure_says_so() -> None:
    empty = Line(label="none", points=[])
    assert chart([empty], width=80, height=5, plain=True) == ["no figure that can be drawn"]


@each_row("epochs", [1, 2, 3, 7, 100, 1000])
@each_row("width", [40, 79, 80, 200])
@each_row("plain", [True, False])
def test_a_chart_keeps_its_width_and_both_ends(epochs: int, width: int, plain: bool) -> None:
    points = [(n, float(n % 7)) for n in range(1, epochs + 1)]
    rows = chart([Line(label="x", points=points)], width=width, height=15, plain=plain)
    assert max(map(len, rows)) == width if epochs > 1 else max(map(len, rows)) <= width
    assert rows[-1].split()[0] == "1"
    assert rows[-1].split()[-1] == str(epochs)


def test_what_is_not_finite_is_left_out_of_a_line() -> None:
    (line,) = lines_of([run_of(1.0, None, 3.0, name=None)], "top1")
    assert line.points == [(1, 1.0), (3, 3.0)]


def test_a_run_of_which_no_figure_is_finite_is_no_line_and_says_so(tmp_path: Path) -> None:
    run = run_of(None, None)
    assert lines_of([run], "top1")[0].points == []
    assert "no figure that can be drawn" in terminal_plot([run], "top1")
    assert summary(run) == (
        "mine: epoch 2/300, loss 6.000, top-1 not finite; not finite, below the published curve "
        "since epoch 1; no setting differs from the recipe; top-1 is not finite in 2 epochs"
    )
    draw([run], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").is_file()


def test_epochs_are_drawn_from_one_and_the_published_curve_a_little_ahead() -> None:
    # The authors' log of DeiT-S has five epochs: 1.25 x 4 of them are seen, of two but two.
    four, two = (lines_of([run_of(*[1.0] * count)], "top1") for count in (4, 2))
    assert four[0].points == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0)]
    assert four[1].points == [(1, 0.346), (2, 0.608), (3, 2.782), (4, 5.822), (5, 7.616)]
    assert two[1].points == [(1, 0.346), (2, 0.608)]


def test_a_published_curve_is_of_top1_and_of_the_first_run() -> None:
    tiny, small = run_of(1.0, name="deit_tiny"), run_of(1.0)
    published = [
        [line.published for line in lines_of(runs, metric)]
        for runs, metric in (
            ([small, tiny], "top1"),
            ([tiny, small], "top1"),
            ([small, tiny], "loss"),
        )
    ]
    assert published == [[False, False, True], [False, False], [False, False]]


def test_a_run_of_deit3_small_lies_over_the_800_epochs_of_the_authors() -> None:
    own, published = lines_of([run_of(*[50.0] * 800, name="deit3_small")], "top1")
    assert published.published
    assert (len(own.points), len(published.points)) == (800, 161)
    assert published.points[-2:] == [(796, 81.352), (800, 81.376)]


def test_the_published_run_is_not_drawn_twice() -> None:
    same = run_of(0.346, 0.608, 2.782, 5.822, 7.616)
    assert [line.published for line in lines_of([same], "top1")] == [False]


def test_a_summary_says_where_a_run_is_and_how_it_stands() -> None:
    assert summary(replace(run_of(0.3, 0.1), differs=("lr 1, recipe 2",))) == (
        "mine: epoch 2/300, loss 6.000, top-1 0.10 %; 0.5 points below the published curve since "
        "epoch 2; first setting that differs: lr 1, recipe 2"
    )
    assert summary(run_of(0.3, name=None)) == "mine: epoch 1, loss 7.000, top-1 0.30 %"


def test_the_terminal_shows_chart_legend_figure_and_status() -> None:
    text = terminal_plot([run_of(0.3, 0.5, 2.7)], "top1", width=60, height=3)
    assert text.splitlines()[0] == "validation top-1 (%)"
    assert text.splitlines()[-6:] == [
        "  ⠒ mine",
        "  · published: public gist",
        "    fmassa/0dbd0184a0adb904ef42277b487d8b53 (issue #16)",
        "    published figure 79.85 %, tolerance 0.15",
        "mine: epoch 3/300, loss 5.000, top-1 2.70 %; within",
        "    tolerance of the published curve",
    ]


def test_a_plain_terminal_is_given_ascii_only() -> None:
    assert terminal_plot([run_of(0.3, 0.5)], "top1", plain=True).isascii()


def colours(file: Path) -> set[tuple[int, ...]]:
    """The colours of a picture that fill more than a few pixels."""
    with Image.open(file) as image:
        counts = image.convert("RGB").getcolors(1 << 20)
    assert counts is not None
    return {colour for count, colour in counts if count > 20 and isinstance(colour, tuple)}


@pytest.mark.parametrize(
    ("runs", "seen"),
    [
        ([run_of(1.0, 2.0, name=None)], {BLUE}),
        ([run_of(1.0, 2.0)], {BLUE, GREY}),
        ([run_of(1.0, 2.0), run_of(3.0, 2.0)], {BLUE, RED, GREY}),
    ],
)
def test_a_picture_shows_each_run_and_the_published_curve(
    tmp_path: Path, runs: Sequence[Run], seen: set[tuple[int, ...]]
) -> None:
    draw(runs, tmp_path / "p.png", metrics=["top1"])
    assert colours(tmp_path / "p.png") & {BLUE, RED, GREY} == seen


def test_the_tolerance_is_shaded_once_the_figure_is_in_sight(tmp_path: Path) -> None:
    # A fifth of the grey over white; the figure of DeiT-Ti is 72.2, in sight from its half.
    shade = (0xE0, 0xE0, 0xE0)
    for name, top1 in (("far", 36.0), ("near", 36.2)):
        draw([run_of(1.0, top1, name="deit_tiny")], tmp_path / f"{name}.png", metrics=["top1"])
    assert shade in colours(tmp_path / "near.png")
    assert shade not in colours(tmp_path / "far.png")


def test_a_run_of_one_epoch_is_seen(tmp_path: Path) -> None:
    draw([run_of(1.0, name=None)], tmp_path / "p.png", metrics=["top1"])
    assert BLUE in colours(tmp_path / "p.png")


@pytest.mark.parametrize(
    ("metrics", "size"), [(["loss"], (840, 456)), (["loss", "top1"], (840, 768))]
)
def test_each_metric_has_a_panel(tmp_path: Path, metrics: list[str], size: tuple[int, int]) -> None:
    draw([run_of(1.0, 2.0)], tmp_path / "p.png", metrics=metrics)
    with Image.open(tmp_path / "p.png") as image:
        assert (image.format, image.size) == ("PNG", size)


def test_the_legend_has_every_run_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["_mine", "a$b^$c", "caf\udce9", "two\nlines"]
    figures: list[Figure] = []
    monkeypatch.setattr(plot, "png_of", lambda figure: figures.append(figure) or png_of(figure))
    draw([run_of(1.0, name=None, label=name) for name in names], tmp_path / "p.png")
    shown = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert shown == [" _mine", "a$b^$c", r"caf\udce9", r"two\nlines"]


def test_a_runs_own_folder_gets_its_curve(tmp_path: Path) -> None:
    log = "".join(f"{json.dumps(row)}\n" for row in run_of(1.0, 2.0).log)
    (tmp_path / "log.jsonl").write_text(log, encoding="utf-8")
    draw_run(tmp_path, "deit_small")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.png", "log.jsonl"]


@pytest.mark.parametrize(
    ("exported", "title"),
    [
        (None, "mine: 2.00 % after 3 epochs"),
        (2, "mine: 2.00 % after 3 epochs"),
        (1, "mine: 4.00 % in epoch 2, whose weights are exported\n2.00 % after 3 epochs"),
    ],
)
def test_the_picture_names_the_epoch_whose_weights_are_exported(
    exported: int | None, title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = "".join(f"{json.dumps(row)}\n" for row in run_of(1.0, 4.0, 2.0).log)
    (tmp_path / "log.jsonl").write_text(log, encoding="utf-8")
    titles: list[str] = []
    monkeypatch.setattr(plot, "draw", lambda *_, title, **__: titles.append(title))
    draw_run(tmp_path, "mine", exported)
    assert titles == [title]


def test_the_picture_of_a_run_tells_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log.jsonl").write_text('{"epoch": 0, "train_loss": 2.0, "val_top1": 10.0}\n')
    labels: list[str] = []
    monkeypatch.setattr(
        plot, "draw", lambda runs, *_, **__: labels.extend(run.label for run in runs)
    )
    draw_run(tmp_path, "deit_pico_digits")
    assert labels == ["this run"]
