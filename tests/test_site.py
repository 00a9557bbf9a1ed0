"""The site as `make docs` builds it: no warning, each link leads somewhere, nothing is fetched."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from support.browser import Window, chromium
from support.once import made_once

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


def build(folder: Path) -> None:
    """By the command of the Makefile."""
    [line] = re.findall(r"-m sphinx .*", (ROOT / "Makefile").read_text(encoding="utf-8"))
    words = shlex.split(line.replace("$(SITE)", str(folder)))
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, which no test changes."""
    return made_once(tmp_path_factory, "site", build)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def window(site: Path) -> Iterator[Window]:
    """The site in a browser; whatever is done with it, it asks for nothing but its files."""
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server,
        chromium() as driver,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        window = Window(driver, f"http://127.0.0.1:{server.server_port}/")
        yield window
        own = ("data:", "about:blank", window.address)
        assert [address for address in window.requests() if not address.startswith(own)] == []
        assert window.logged() == []
        server.shutdown()


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


def test_no_page_is_wider_than_its_window(site: Path, window: Window) -> None:
    for page in sorted({*site.glob("*.html")} - {site / "zoo.html"}):  # which has tests of its own
        window.open(page.name)
        for width in (1400, 400):
            window.resize(width)
            assert window.run("return document.documentElement.scrollWidth") <= width, page.name


def test_dark_mode_is_that_of_the_system_until_it_is_chosen(window: Window) -> None:
    brightness = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    window.open("index.html", scheme="dark")
    assert max(window.run(brightness)) < 50
    for _ in range(2):  # from the system's to light, or through dark to it
        window.one(".content-icon-container .theme-toggle").click()
        if min(window.run(brightness)) > 200:
            return
    raise AssertionError("the button never leads to light")


def test_search_finds_pages_by_a_word_of_theirs(window: Window) -> None:
    window.open("search.html?q=distilled")
    WebDriverWait(window.driver, 30).until(
        lambda driver: driver.find_elements(By.CSS_SELECTOR, "#search-results li a")
    )
    found = window.run(
        "return [...document.querySelectorAll('#search-results li a')].map(a => a.href)"
    )
    assert {"finetune_choices", "imagenet"} <= {Path(urlsplit(link).path).stem for link in found}
