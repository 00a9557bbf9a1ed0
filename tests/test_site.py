"""The site as `make docs` builds it: no warning, each link leads somewhere, nothing is fetched."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


class Page(HTMLParser):
    """What a page calls its places, where it leads, and what a browser loads for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.ids |= {found["id"]} if "id" in found else set()
        loaded = tag == "link" and found.get("rel") not in ("canonical", "edit")
        if "href" in found:
            (self.loads if loaded else self.links).append(found["href"])
        self.loads += [found[key] for key in ("src", "srcset", "poster", "data") if key in found]


@cache
def page_of(file: Path) -> Page:
    return Page(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the command of the Makefile."""
    folder = tmp_path_factory.mktemp("site")
    [line] = re.findall(r"-m sphinx .*", (ROOT / "Makefile").read_text(encoding="utf-8"))
    words = shlex.split(line.replace("$(SITE)", str(folder)))
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return folder


def missing(page: Path, link: str) -> bool:
    """Whether a link of a page leads nowhere on the site."""
    address = urlsplit(link)
    if address.scheme or address.netloc:
        return address.scheme not in ("https", "mailto", "data")
    target = (page.parent / unquote(address.path)) if address.path else page
    if not target.is_file():
        return True
    place = unquote(address.fragment)
    return bool(place) and target.suffix == ".html" and place not in page_of(target).ids


def test_every_link_and_anchor_leads_somewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    broken = [
        f"{page.relative_to(site)}: {link}"
        for page in pages
        for link in page_of(page).links + page_of(page).loads
        if link != "#" and missing(page, link)
    ]
    assert broken == []


def test_the_page_of_the_zoo_is_inside(site: Path) -> None:
    assert "zoo.html" in page_of(site / "models.html").links
    assert "deit_small" in page_of(site / "zoo.html").ids


def test_a_reader_makes_no_request_to_a_network(site: Path) -> None:
    loads = {load for page in site.rglob("*.html") for load in page_of(page).loads}
    assert loads
    assert [load for load in loads if urlsplit(load).netloc] == []
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", text), sheet


def test_every_public_name_and_command_is_in_the_reference(site: Path) -> None:
    import deit_zoo

    names = page_of(site / "api.html").ids
    public = {f"deit_zoo.{name}" for name in deit_zoo.__all__ if name != "__version__"}
    assert public - names == set()
    assert {"deit-zoo-classify", "deit-zoo-weights-verify"} <= page_of(site / "cli.html").ids


def test_a_page_can_be_edited_and_says_its_version(site: Path) -> None:
    from deit_zoo import __version__

    text = (site / "evaluate.html").read_text(encoding="utf-8")
    assert "https://github.com/org/deit/edit/main/docs/evaluate.md" in text
    assert f"deit_zoo {__version__}" in text
