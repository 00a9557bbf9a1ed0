"""`attention` as a user types it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from PIL import Image

from deit_zoo.cli.attention import attention_
from deit_zoo.data.digits import digits
from deit_zoo.files import ASSETS
from support.command import run_python
from support.typed import Done

PLAIN, DISTILLED = "deit_pico_digits", "deit_pico_distilled_digits"

app = typer.Typer()
app.command("attention")(attention_)


@pytest.fixture
def typed(typed: Callable[..., Done]) -> Callable[..., Done]:
    """Run the command in a folder that holds a handwritten digit alone, `7.png`."""
    next(image for image, label in digits() if label == "7").save("7.png")
    return typed


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def size_of(file: str) -> tuple[int, int]:
    with Image.open(file) as image:
        assert image.format == "PNG"
        return image.size


def test_attention_writes_attention_png_and_nothing_else(typed: Callable[..., Done]) -> None:
    done = typed("7.png", "--model", PLAIN)
    assert done == Done(0, "", "the picture is attention.png\n", None)
    assert files() == ["7.png", "attention.png"]
    assert size_of("attention.png") == (1554, 370)


@pytest.mark.parametrize(
    ("method", "size"),
    [("all", (1554, 693)), ("heads", (1110, 693)), ("mean", (672, 693)), ("rollout", (672, 693))],
)
def test_attention_draws_the_maps_asked_for(
    typed: Callable[..., Done], method: str, size: tuple[int, int]
) -> None:
    done = typed("7.png", "--model", DISTILLED, "--method", method, "--output", "a.png")
    assert (done.status, done.err) == (0, "the picture is a.png\n")
    assert size_of("a.png") == size


def test_attention_says_which_model_a_spelling_means(typed: Callable[..., Done]) -> None:
    done = typed("7.png", "--model", "deit-pico-digits")
    assert done.err == f"model: {PLAIN}\nthe picture is attention.png\n"


def test_attention_as_json_gives_figures_and_no_picture(typed: Callable[..., Done]) -> None:
    done = typed("7.png", "--model", DISTILLED, "--json", "--layer", "1")
    printed = json.loads(done.out)
    assert files() == ["7.png"]
    assert {key: printed[key] for key in ("image", "model", "layer", "img_size", "grid")} == {
        "image": "7.png",
        "model": DISTILLED,
        "layer": 1,
        "img_size": [16, 16],
        "grid": [4, 4],
    }
    names = ["head 0", "head 1", "head 2", "head 3", "mean", "rollout"]
    expected = [(token, name) for token in ("class", "distillation") for name in names]
    assert [(one["token"], one["map"]) for one in printed["maps"]] == expected
    assert set(printed["maps"][0]) == {"token", "map", "entropy", "on_patches", "largest"}


def test_attention_as_json_draws_where_output_says(typed: Callable[..., Done]) -> None:
    done = typed("7.png", "--model", PLAIN, "--json", "--output", "a.png")
    assert json.loads(done.out)["model"] == PLAIN
    assert files() == ["7.png", "a.png"]


@pytest.mark.parametrize(("img_size", "grid"), [("32", [8, 8]), ("16x40", [4, 10])])
def test_attention_takes_an_image_size(
    typed: Callable[..., Done], img_size: str, grid: list[int]
) -> None:
    done = typed("7.png", "--model", PLAIN, "--json", "--img-size", img_size)
    assert json.loads(done.out)["grid"] == grid


def test_attention_reads_stdin(typed: Callable[..., Done]) -> None:
    piped = typed("-", "--model", PLAIN, "--json", stdin=Path("7.png").read_bytes())
    named = typed("7.png", "--model", PLAIN, "--json")
    assert json.loads(piped.out) == json.loads(named.out) | {"image": "-"}


def test_attention_takes_weights_of_the_users_own(typed: Callable[..., Done]) -> None:
    weights = ASSETS / f"{PLAIN}.safetensors"
    own = typed("7.png", "--model", PLAIN, "--json", "--checkpoint", weights)
    assert json.loads(own.out) == json.loads(typed("7.png", "--model", PLAIN, "--json").out)
    other = typed("7.png", "--model", DISTILLED, "--checkpoint", weights)
    assert other.error is not None


def test_attention_replaces_an_older_picture(typed: Callable[..., Done]) -> None:
    Image.new("RGB", (1, 1)).save("attention.png")
    assert typed("7.png", "--model", PLAIN).status == 0
    assert size_of("attention.png") == (1554, 370)


def test_attention_never_overwrites_what_is_no_picture(typed: Callable[..., Done]) -> None:
    Path("attention.png").write_text("a letter", encoding="utf-8")
    done = typed("7.png", "--model", PLAIN)
    assert done.error == "attention.png is there and no PNG; give another --output"
    assert Path("attention.png").read_text(encoding="utf-8") == "a letter"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["7.png", "--model", PLAIN, "--layer", "-5"],
            "layer is -5, but deit_pico_digits has 4 layers; give a number from 0 to 3, or from -4 "
            "to -1 to count from the last",
        ),
        (
            ["8.png", "--model", PLAIN],
            "8.png is no file; give an image file, a URL, or - and its bytes on stdin",
        ),
        (
            ["7.png", "--model", PLAIN, "--img-size", "16,16"],
            "--img-size is '16,16'; give pixels as 224, or 192x256 (HxW)",
        ),
        (
            ["7.png", "--model", PLAIN, "--output", "a.svg"],
            "a.svg does not end in .png; type --output FILE.png",
        ),
        (
            ["-", "--model", PLAIN],
            "the given bytes cannot be read as an image (its format is not known); give a whole "
            "JPEG, PNG, WebP, GIF, BMP or TIFF file",
        ),
    ],
)
def test_attention_refuses_in_one_sentence_and_writes_nothing(
    typed: Callable[..., Done], arguments: list[str], sentence: str
) -> None:
    done = typed(*arguments)
    assert (done.out, done.error) == ("", sentence)
    assert files() == ["7.png"]


def test_attention_without_matplotlib_names_the_extra(
    typed: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = typed("7.png", "--model", PLAIN)
    assert done.error == "a picture needs matplotlib; type: pip install 'deit_zoo[train]'"
    assert typed("7.png", "--model", PLAIN, "--json").status == 0


def test_attention_as_json_needs_no_matplotlib(typed: Callable[..., Done]) -> None:
    code = (
        "import sys, typer; from deit_zoo.cli.attention import attention_; "
        "app = typer.Typer(); app.command()(attention_); "
        "heavy = 'torch' in sys.modules; app(standalone_mode=False); "
        "sys.exit(heavy or 'matplotlib' in sys.modules)"
    )
    done = run_python(["-c", code, "7.png", "--model", PLAIN, "--json"], server="light")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["model"] == PLAIN
