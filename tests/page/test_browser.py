"""The page of the zoo in Chromium: a person sorts, filters, unfolds, looks and listens."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from deit_zoo.facts.recipe import fields_of_recipe
from deit_zoo.facts.speed import PUBLISHED
from deit_zoo.page.speeds import Axis
from deit_zoo.page.zoo_page import zoo_page
from deit_zoo.recipes import RECIPES
from deit_zoo.zoo import info, list_models
from support.browser import Window, chromium

pytestmark = pytest.mark.slow

MEASURED = Axis(
    title="this <machine>",
    unit="images/s",
    source="measured with deit-zoo benchmark --curve, 2026-11-27",
    values={"deit_tiny": 60.0, "deit_small": 20.0, "deit_pico_digits": 9000.0},
)


class Page(Window):
    """The page in a browser, at a width, in light or dark."""

    def names(self) -> list[str]:
        """The models of the table that are shown, from above."""
        rows = "document.querySelectorAll('#models tbody tr[data-name]')"
        return list(self.run(f"return [...{rows}].map(row => row.dataset.name)"))

    def choose(self, selector: str, text: str) -> None:
        Select(self.one(selector)).select_by_visible_text(text)

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def tab_to(self, selector: str) -> WebElement:
        """Press Tab, beginning at the filters, until that element has the focus."""
        wanted = self.one(selector)
        self.one("#filters select").send_keys("")
        for _ in range(40):
            self.driver.switch_to.active_element.send_keys(Keys.TAB)
            if self.driver.switch_to.active_element == wanted:
                return wanted
        raise AssertionError(f"Tab never comes to {selector}")


@pytest.fixture(scope="module")
def driver() -> Iterator[Chrome]:
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of all models."""
    file = tmp_path_factory.mktemp("page") / "zoo.html"
    file.write_text(zoo_page([info(name) for name in list_models()], [MEASURED]), encoding="utf-8")
    return file


@pytest.fixture
def page(driver: Chrome, file: Path) -> Iterator[Page]:
    """The page in a window; whatever is done with it, the console says nothing."""
    page = Page(driver, file.as_uri())
    yield page
    assert page.logged() == []


def test_a_heading_sorts_up_and_down_and_says_so(page: Page) -> None:
    page.open()
    assert page.names() == list_models()
    heading = page.one("#models th:nth-child(2)")
    page.tab_to("#models th:nth-child(2) [role=button]")
    page.press(Keys.ENTER)
    assert heading.get_attribute("aria-sort") == "descending"
    # Percent of digits are not percent of ImageNet: they are below, as in `list --sort top1`.
    descending = page.names()
    assert descending[0] == "deit3_large_384_in21k"
    assert set(descending[-3:]) == set(list_models("digits"))
    page.press(Keys.ENTER)
    assert heading.get_attribute("aria-sort") == "ascending"
    assert page.names()[0] == descending[-1]
    page.one("#models th:nth-child(3)").click()
    assert page.names() == list_models(sort="params")


def of_checkpoint(field: str, value: str) -> list[str]:
    return [n for n in list_models() if getattr(info(n).checkpoint, field) == value]


def test_each_filter_leaves_the_models_that_pass_it(page: Page) -> None:
    page.open()
    total = len(list_models())
    for filters, expected in (
        ({"family": "DeiT III"}, list_models(family="deit3")),
        ({"pixels": "384"}, list_models(img_size=384)),
        ({"dataset": "digits"}, list_models("digits")),
        ({"licence": "apache-2.0"}, of_checkpoint("license", "apache-2.0")),
        ({"proof": "hub digest"}, of_checkpoint("proof", "hub digest")),
        ({"recipe": "assumed"}, [n for n in list_models() if info(n).recipe_assumed]),
        ({"recipe": "none"}, ["regnety_160_deit"]),
        ({"top1": "86.5"}, list_models(min_top1=86.5)),
        ({"params": "12"}, list_models(max_params=12e6)),
        ({"gmacs": "4.61"}, [n for n in list_models() if info(n).gmacs <= 4.61]),
        ({"search": "Regnety-160.deit"}, ["regnety_160_deit"]),  # as timm calls it
        ({"family": "CaiT", "pixels": "224"}, list_models("cait", img_size=224)),
    ):
        for name, value in filters.items():
            field = page.one(f"#filters [name={name}]")
            if field.tag_name == "select":
                Select(field).select_by_visible_text(value)
            else:
                field.send_keys(value)
        assert page.names() == expected, filters
        of_total = "" if len(expected) == total else f" of {total}"
        assert page.one("#count").text == f"{len(expected)}{of_total} models"
        page.one("#all").click()
    assert page.names() == list_models()


def test_the_keyboard_unfolds_a_model_and_folds_it_again(page: Page) -> None:
    page.open()
    name = "deit_small"
    page.one("#filters [name=search]").send_keys(name)
    button = page.tab_to(f"[data-name={name}] .fold")
    assert button.get_attribute("aria-expanded") == "false"
    page.press(Keys.ENTER)
    assert button.get_attribute("aria-expanded") == "true"
    about = page.one(f"#{button.get_attribute('aria-controls')}")
    about.find_element(By.CSS_SELECTOR, "summary").click()
    text = about.text
    record = info(name).checkpoint
    assert record is not None
    assert str(record.sha256) in text
    assert 'torch.hub.load("org/deit", "deit_small")' in text
    assert [row for row in fields_of_recipe(RECIPES[name]) if " ".join(row) not in text] == []
    points = page.run(
        "return Chart.getChart(arguments[0]).data.datasets[0].data",
        about.find_element(By.CSS_SELECTOR, "canvas"),
    )
    assert [point["y"] for point in points] == [0.346, 0.608, 2.782, 5.822, 7.616]
    button.send_keys(Keys.SPACE)
    assert button.get_attribute("aria-expanded") == "false"
    assert not page.driver.find_elements(By.CSS_SELECTOR, "article")


def test_an_address_that_names_a_model_opens_it(page: Page) -> None:
    page.open("#cait_s24_224")
    assert page.one("#about-cait_s24_224").is_displayed()
    assert page.run("return document.activeElement.closest('tr').dataset.name") == "cait_s24_224"


def drawn(page: Page) -> dict[str, tuple[float, float]]:
    """The points of the chart: speed or cost, and top-1, of each model."""
    sets = page.run("return Chart.getChart('chart').data.datasets.map(set => set.data)")
    return {point["name"]: (point["x"], point["y"]) for points in sets for point in points}


def test_the_chart_shows_what_was_measured_and_what_was_published(page: Page) -> None:
    page.open()
    # Of the digits' model top-1 is of another data set, so it has no place beside them.
    assert drawn(page) == {"deit_tiny": (60.0, 72.202), "deit_small": (20.0, 79.854)}
    for (hardware, source), speeds in PUBLISHED.items():
        page.choose("#axis", f"images/s: {hardware}")
        assert {name: x for name, (x, _) in drawn(page).items()} == speeds
        assert source in page.one("#chart-source").text
    page.choose("#axis", "GMACs: multiply-accumulates of an image")
    assert len(drawn(page)) == 35
    page.choose("#filters [name=family]", "CaiT")
    assert list(drawn(page)) == [n for n in drawn(page) if n.startswith("cait")] != []


def test_a_point_of_the_chart_opens_its_model(page: Page) -> None:
    page.open()
    canvas = page.one("#chart")
    x, y = page.run(
        "const chart = Chart.getChart('chart'), box = chart.canvas.getBoundingClientRect();"
        "const index = chart.data.datasets[0].data.findIndex(p => p.name === 'deit_tiny');"
        "const {x, y} = chart.getDatasetMeta(0).data[index];"
        "return [x - box.width / 2, y - box.height / 2]"
    )
    ActionChains(page.driver).move_to_element_with_offset(canvas, int(x), int(y)).click().perform()
    assert page.one("#about-deit_tiny").is_displayed()


def unfold_all(page: Page) -> None:
    page.run("document.querySelectorAll('.fold[aria-expanded=false]').forEach(b => b.click())")
    page.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")


@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_is_wider_than_the_window(page: Page, width: int) -> None:
    page.open(width=width)
    unfold_all(page)
    assert page.run("return document.documentElement.scrollWidth") <= width
    # What a person reads in a fold-out is within the window, too.
    outside = page.run(
        "return [...document.querySelectorAll('article dd, article dt, article h3, #filters *')]"
        ".filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.textContent)"
    )
    assert outside == []


def contrast(page: Page, selector: str) -> float:
    """WCAG's ratio of a text's colour and that of the page, from 1 to 21."""

    def luminance(colour: list[int]) -> float:
        parts = [c / 255 for c in colour]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    colours = page.run(
        "return [getComputedStyle(document.querySelector(arguments[0])).color,"
        "getComputedStyle(document.body).backgroundColor].map(c => c.match(/\\d+/g).map(Number))",
        selector,
    )
    low, high = sorted(map(luminance, colours))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_in_dark(page: Page, scheme: str) -> None:
    page.open("#deit_tiny", scheme=scheme)
    [red, *_] = page.run(
        "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    )
    assert (red < 50) == (scheme == "dark")
    for selector in ("body", "label", ".fold", "article dt", "article a", "#chart-source"):
        assert contrast(page, selector) >= 4.5, selector  # WCAG 2.2, level AA
    ink = page.run("return Chart.getChart('chart').options.scales.x.ticks.color")
    assert ink == page.run(
        "return getComputedStyle(document.documentElement).getPropertyValue('--faint').trim()"
    )


def test_a_screen_reader_is_told_what_everything_is(page: Page) -> None:
    def spoken_in(driver: Chrome) -> list[tuple[str, str]]:
        nodes = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]

    page.open("#deit_tiny")
    # The browser makes the tree when it has time.
    WebDriverWait(page.driver, 60).until(lambda driver: len(spoken_in(driver)) > 1)
    spoken = spoken_in(page.driver)
    roles = {role for role, _ in spoken}
    named = {"button", "combobox", "searchbox", "spinbutton", "image", "link", "article", "region"}
    assert [role for role, name in spoken if role in named and not name.strip()] == []
    assert {"main", "search", "table", "columnheader", "rowheader", "status"} <= roles
    assert ("combobox", "Family") in spoken
    assert ("spinbutton", "Top-1 at least, %") in spoken
    assert ("button", "top-1 %: Activate to sort") in spoken
    [picture] = [name for role, name in spoken if name.startswith("Top-1 against images/s")]
    assert "deit_tiny 72.202 % at 60" in picture


class Listener(BaseHTTPRequestHandler):
    """Counts who comes."""

    seen: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.seen.append(self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


def test_the_page_asks_no_network_and_could_not(page: Page) -> None:
    page.requests()
    page.open()
    unfold_all(page)
    for option in Select(page.one("#axis")).options:
        option.click()
    assert page.requests() == {page.address}
    assert page.logged() == []
    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        page.driver.execute_async_script(
            "const [address, done] = arguments, image = new Image();"
            "image.src = address + '/image'; document.body.append(image);"
            "fetch(address + '/fetch').finally(() => setTimeout(done, 200)).catch(() => {});",
            f"http://127.0.0.1:{server.server_port}",
        )
        server.shutdown()
        thread.join()
    assert Listener.seen == []
    refused = page.logged()
    assert [word for word in ("connect-src", "img-src") if word not in str(refused)] == []
