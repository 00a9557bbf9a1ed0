"""What a notebook shows of results: HTML whose pictures are small and in which nothing is run."""

from __future__ import annotations

import pickle
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

import deit_zoo
from deit_zoo.data.digits import write_folder
from deit_zoo.errors import DataError
from deit_zoo.results import Evaluation, Prediction, Predictions

MODEL = "deit_pico_distilled_digits"
ATTACK = "<script>alert(1)</script><img src=x onerror='alert(2)'>\u202e\n"


class Page(HTMLParser):
    """The elements of a piece of HTML, its texts, and the pictures inside it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.pictures: list[Image.Image] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == [], "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        self.attributes |= set(values)
        if tag == "img":
            kind, data = str(values["src"]).split(",")
            assert kind.startswith("data:image/")
            assert values["alt"]
            self.pictures.append(Image.open(BytesIO(b64decode(data))))
        elif tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader") / "digits"
    write_folder(folder)
    return folder


def test_classes_are_shown_beside_the_image_that_the_model_saw(digits: Path) -> None:
    files = [digits / "val/7/1442.png", "absent<b>.png"]
    results = deit_zoo.classify(files, MODEL, topk=3)
    page = Page(results._repr_html_())
    [picture] = page.pictures
    assert picture.size == (16, 16)
    assert {"7", "98.19 %", str(files[0]), "absent<b>.png"} <= set(page.texts)
    assert any("does not exist" in text for text in page.texts)
    assert isinstance(results[1], DataError)


def test_only_the_first_of_many_images_are_kept_for_a_notebook() -> None:
    images = [Image.new("RGB", (400, 300))] * 40
    results = deit_zoo.classify(images, MODEL, topk=1, batch_size=7)
    assert (len(results), len(results.images)) == (40, 24)
    page = Page(results._repr_html_())
    assert len(page.pictures) == 24
    assert max(len(jpeg or b"") for _, _, jpeg in results.images) < 4000
    assert page.texts[-1] == "and 16 more"
    copy = pickle.loads(pickle.dumps(results))
    assert copy == results == list(results)
    assert copy._repr_html_() == results._repr_html_()


def test_classes_stay_beside_their_image_however_the_list_is_changed(digits: Path) -> None:
    files = [digits / "val/7/1442.png", "absent.png", min((digits / "val/3").iterdir())]
    results = deit_zoo.classify(files, MODEL, topk=1)
    before = Page(results._repr_html_())
    seven, absent, three = results
    results.reverse()
    results.remove(absent)
    results.append([Prediction("of another", 1.0, 0, "")])
    page = Page(results._repr_html_())
    labels = [label for label in page.texts if label in ("3", "7", "of another", *map(str, files))]
    assert labels == [str(files[2]), "3", str(files[0]), "7", "of another"]
    assert [p.tobytes() for p in page.pictures] == [p.tobytes() for p in before.pictures[::-1]]
    assert (seven, three) == (results[1], results[0])


def test_what_others_named_is_shown_and_does_nothing() -> None:
    [_, _, jpeg] = deit_zoo.classify([Image.new("RGB", (8, 8))], MODEL, topk=1).images[0]
    results = Predictions()
    results += [[Prediction(ATTACK, 0.5, 0, ATTACK)], DataError(ATTACK)]
    results.images = [(results[0], ATTACK, jpeg), (results[1], ATTACK, None)]
    page = Page(results._repr_html_())
    assert page.tags == {"div", "table", "tbody", "tr", "th", "td", "img", "em"}
    assert page.attributes == {"style", "src", "alt", "width"}
    shown = ATTACK.replace("\n", r"\n").replace("\u202e", r"\u202e")
    assert page.texts.count(shown) == 4


def test_a_notebook_keeps_no_secret_of_an_address() -> None:
    results = deit_zoo.classify([Image.new("RGB", (8, 8))], MODEL, topk=1)
    address = "https://ada:hunter2@example.org/7.png?token=hf_abcdefghijklmnopqrstuvwxyz"
    results.images = [(results[0], address, None)]
    html = results._repr_html_()
    assert "example.org/7.png" in html
    assert "hunter2" not in html
    assert "hf_abc" not in html


def test_an_evaluation_shows_its_figures() -> None:
    page = Page(Evaluation(top1=98.33, top5=100.0, loss=0.2235, num_images=1360)._repr_html_())
    assert [text for text in page.texts if text] == [
        *("top-1", "98.33 %", "top-5", "100.00 %", "loss", "0.2235", "images", "1,360"),
    ]


def test_models_are_a_list_of_names_that_is_shown_as_a_table() -> None:
    table = deit_zoo.list_models("pico", as_table=True)
    assert table == deit_zoo.list_models("pico")
    rows = repr(table).splitlines()
    assert rows[0].split() == ["name", "top-1", "params", "GMACs", "px", "data", "proof", "here"]
    changed = deit_zoo.list_models("pico", as_table=True)
    changed.pop(0)
    changed.append("one of yours")
    lines = repr(changed).splitlines()
    assert rows[1] not in lines
    assert lines[1 : len(table)] == rows[2 : len(table) + 1]
    assert lines[len(table)].split() == ["one", "of", "yours", *"–––––––"]
    page = Page(table._repr_html_())
    assert {*table, "98.61", "embedded", "pinned"} <= set(page.texts)
    facts = Page(deit_zoo.info("deit_s")._repr_html_())
    assert "22,050,664 parameters, 4.61 GMACs at 224 px" in facts.texts


def test_attention_is_shown_without_matplotlib(digits: Path) -> None:
    attention = deit_zoo.attention_map(digits / "val/7/1442.png", MODEL, method="all")
    html = attention._repr_html_()
    page = Page(html)
    assert len(page.pictures) == 2 * (1 + 6)
    assert {picture.size for picture in page.pictures} == {(112, 112)}
    assert len(html) < 60_000
    # A patch with the most attention is yellow, one with none dark.
    row, column = divmod(int(attention.maps[0, 0].argmax()), 4)
    red, green, _ = page.pictures[1].convert("RGB").getpixel((28 * column + 14, 28 * row + 14))
    assert min(red, green) > 120


def test_the_public_names_are_what_a_person_is_offered() -> None:
    assert dir(deit_zoo) == sorted((*deit_zoo.__all__, "errors"))
