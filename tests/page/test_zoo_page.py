"""The page of the zoo as a file: what it holds, and that nothing in it is from elsewhere."""

from __future__ import annotations

import hashlib
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from deit_zoo.facts.recipe import fields_of_recipe, rows_of_recipe
from deit_zoo.page.speeds import read_curve
from deit_zoo.page.zoo_page import VENDORED, linked, zoo_page
from deit_zoo.recipes import RECIPES
from deit_zoo.zoo import info, list_models
from support.command import deit_zoo, sentence

HOSTILE = '</script><img src="x" onerror="alert(1)">'
CURVE: dict[str, Any] = {
    "date": "2026-11-27T05:00:00+00:00",
    "machine": {"cpu": HOSTILE, "cores": 2, "threads": 1},
    "mode": "optimized",
    "precision": "float32",
    "batch_size": 1,
    "points": [{"model": "deit_tiny", "images_per_second": 60.5, "round_ms": [1.0]}],
}


class Elements(HTMLParser):
    """The start tags of a page with their attributes, and its text, what scripts hold left out."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.is_code = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.is_code = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.is_code = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self.is_code else data


@pytest.fixture(scope="module")
def page() -> str:
    return zoo_page([info(name) for name in list_models()])


def test_the_page_holds_all_that_is_known_of_every_model(page: str) -> None:
    text = Elements(page).text
    for name in list_models():
        model = info(name)
        assert model.checkpoint is not None
        expected = [f"{model.num_params:,} parameters", f'deit_zoo.create("{name}"']
        expected += [source.sha256 or source.sha256_prefix for source in model.checkpoint.sources]
        expected += [metric.source for metric in model.checkpoint.metrics.values()]
        if (recipe := RECIPES.get(name)) is not None:
            expected += [value for _, value in rows_of_recipe(recipe)]
            expected += [word for row in fields_of_recipe(recipe) for word in row]
        assert [fact for fact in expected if fact and fact not in text] == []


def test_nothing_of_the_page_is_loaded_from_elsewhere(page: str) -> None:
    assert len(page) < 2_000_000
    loading = {"src", "srcset", "data", "action", "poster", "background"}
    for tag, attributes in Elements(page).tags:
        assert not loading & attributes.keys(), (tag, attributes)
        assert not any(key.startswith("on") or key == "style" for key in attributes), tag
        if tag == "link":
            assert attributes["href"] == "data:,"


def test_a_page_tells_no_path_of_the_machine_that_made_it(page: str) -> None:
    assert str(Path(__file__).parents[2]) not in page


def test_what_a_file_says_is_text_and_no_markup(tmp_path: Path) -> None:
    file = tmp_path / "curve.json"
    file.write_text(json.dumps(CURVE))
    page = zoo_page([info("deit_tiny")], [read_curve(file)])
    assert HOSTILE not in page
    assert not [tag for tag, _ in Elements(page).tags if tag == "img"]
    assert HOSTILE in Elements(page).text


def test_papers_addresses_and_digests_are_marked_and_the_rest_is_escaped() -> None:
    assert linked("<b> arXiv:2012.12877, Table 9 (https://a.org/x?a=1&b=2).") == (
        '&lt;b&gt; <a href="https://arxiv.org/abs/2012.12877">arXiv:2012.12877</a>, Table 9 '
        '(<a href="https://a.org/x?a=1&amp;b=2">https://a.org/x?a=1&amp;b=2</a>).'
    )
    assert linked("a" * 64) == f'<code class="digest">{"a" * 64}</code>'


def test_the_libraries_are_the_bytes_that_npm_has_with_their_licences(page: str) -> None:
    libraries = json.loads((VENDORED / "sources.json").read_text())
    known = {"sources.json"}
    for library in libraries:
        data = (VENDORED / library["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == library["sha256"]
        assert library["version"].encode() in data[:200]
        assert b"</script" not in data
        known |= {library["file"], *library["licences"]}
        for licence in library["licences"]:
            assert (VENDORED / licence).read_text() in unescape(page)
    assert {file.name for file in VENDORED.iterdir()} == known


def test_list_writes_the_page_of_the_models_that_pass_its_filters(tmp_path: Path) -> None:
    done = deit_zoo("list", "cait", "--sort", "top1", "--html", str(tmp_path / "zoo.html"))
    assert (done.status, done.out) == (0, "")
    names = re.findall('<tr data-name="(.*?)"', (tmp_path / "zoo.html").read_text())
    assert names == list_models("cait", sort="top1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": []}, "has no points"),
        ({"date": 3}, "Expected `str`, got `int` - at `$.date`"),
        ({"points": [{"model": "resnet50", "images_per_second": 1}]}, "no model's name"),
        ({"points": [{"model": "deit_tiny", "images_per_second": 0}]}, "which none can be"),
    ],
)
def test_a_curve_that_is_none_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "curve.json"
    file.write_text(json.dumps(CURVE | change))
    done = deit_zoo("list", "--html", str(tmp_path / "zoo.html"), "--curve", str(file))
    said = sentence(done)
    assert message in said
    assert said.endswith("give what `deit-zoo benchmark --curve --output FILE` wrote")
    assert not (tmp_path / "zoo.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--curve", "own.json"), "--curve is drawn on a page; type --html FILE.html too"),
        (("--html", "zoo.txt"), "zoo.txt does not end in .html; type --html FILE.html"),
        (("zzz", "--html", "a.html"), "no model passes these filters; `deit-zoo list` shows all"),
        (
            ("--html", "a.html", "--json"),
            "--html FILE is one answer and --recipes, --json, --markdown others; give one",
        ),
    ],
)
def test_what_makes_no_page_is_said(words: tuple[str, ...], message: str) -> None:
    assert sentence(deit_zoo("list", *words)) == message


def test_a_page_of_something_else_is_not_written_over(tmp_path: Path) -> None:
    page = tmp_path / "zoo.html"
    page.write_text("<html>mine")
    message = f"{page} is there and no file of this command; give another --html"
    assert sentence(deit_zoo("list", "--html", str(page))) == message
    page.unlink()
    for _ in range(2):
        assert deit_zoo("list", "cait_xs24", "--html", str(page)).status == 0
