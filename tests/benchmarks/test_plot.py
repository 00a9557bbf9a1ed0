"""What a benchmark measured, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from harness.plot import draw

SKY, BLUE, GREY = (0x56, 0xB4, 0xE9), (0x00, 0x72, 0xB2), (0xA6, 0xA6, 0xA6)


def report(*entrants: tuple[str, str, float], cases: int = 1) -> dict[str, Any]:
    rows = [
        {
            "model": "deit_tiny",
            "img_size": [224, 224],
            "batch_size": number + 1,
            "precision": "float32",
            "train": False,
            "who": who,
            "mode": mode,
            "images_per_second": speed,
        }
        for number in range(cases)
        for who, mode, speed in entrants
    ]
    return {"rows": rows, "machine": {"cpu": "A processor", "threads": 1}}


def colours(file: Path) -> dict[Any, int]:
    with Image.open(file) as image:
        assert image.format == "PNG"
        return {colour[:3]: count for count, colour in image.getcolors(1 << 20)}


def test_bars_are_as_long_as_they_are_fast_and_ours_stand_out(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    draw(report(("deit_zoo", "eager", 200.0), ("timm", "eager", 100.0)), file)
    found = colours(file)
    assert 1.8 < found[BLUE] / found[GREY] < 2.2
    assert SKY not in found


def test_our_file_in_anothers_runtime_has_a_colour_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    draw(report(("openvino", "our file", 1.0), ("openvino", "timm's graph", 1.0)), file)
    assert {SKY, GREY} <= colours(file).keys()


def test_each_case_has_a_panel(tmp_path: Path) -> None:
    heights = []
    for cases in (1, 2):
        draw(report(("deit_zoo", "eager", 1.0), cases=cases), tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as image:
            heights.append(image.height)
    # 0.45 inches of heading and 0.62 + 0.24 for a case of one bar, at 120 dots an inch.
    assert heights == [157, 260]
