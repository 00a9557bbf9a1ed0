"""Sixty photographs from a phone to a published model: the story that docs/finetune.md tells.

    python tests/support/photo_story.py DIR

makes `DIR/photos` from pictures that scikit-learn and matplotlib ship, types the commands of the
page there, and prints what each says. The Hub is on loopback, and nothing is uploaded.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import sklearn.datasets
from PIL import Image

from support.command import fork_servers, run_python
from support.hub_server import HubServer

PAGE = Path(__file__).parents[2] / "docs" / "finetune.md"
SHIPPED = Path(sklearn.datasets.__file__).parent / "images"
PICTURES = {
    "flower": SHIPPED / "flower.jpg",
    "temple": SHIPPED / "china.jpg",
    "portrait": Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg",
}
EACH = 20
WRONG = Path("temple") / "IMG_0019.jpg"  # a flower among the temples
BROKEN = Path("flower") / "IMG_0019.jpg"  # cut off on its way from the phone
REPO = "me/photos"
# What a camera that is held so stores of an upright scene, by the EXIF standard.
TURNS = {
    1: None,
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


def make_photographs(folder: Path) -> None:
    """Three classes of 20, of many sizes, as phones leave them, and what else lies there then."""
    draw = random.Random(0)
    whole = {name: Image.open(file).convert("RGB") for name, file in PICTURES.items()}
    for name in PICTURES:
        (folder / name).mkdir(parents=True)
        for number in range(EACH):
            file = folder / name / f"IMG_{number:04d}.jpg"
            picture = whole["flower" if file == folder / WRONG else name]
            share = draw.uniform(0.6, 0.9)
            width, height = (round(share * side) for side in picture.size)
            left = draw.randint(0, picture.width - width)
            top = draw.randint(0, picture.height - height)
            cut = picture.crop((left, top, left + width, top + height))
            if number == 0:
                cut.save(file.with_suffix(".avif"))
                continue
            turn = draw.choice(list(TURNS))
            exif = Image.Exif()
            exif[0x0112] = turn
            stored = cut if TURNS[turn] is None else cut.transpose(TURNS[turn])  # type: ignore[arg-type]
            stored.save(file, quality=90, exif=exif)
    broken = folder / BROKEN
    broken.write_bytes(broken.read_bytes()[:2000])
    (folder / "flower" / ".ipynb_checkpoints").mkdir()
    (folder / "flower" / ".ipynb_checkpoints" / "IMG_0001-checkpoint.jpg").write_bytes(b"")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / "Thumbs.db").write_bytes(b"\0")


def story() -> list[tuple[str, str]]:
    """The commands and the programs of the page that tell it, in their order."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- test: story -->\n```(\w+)\n(.*?)```", text, re.DOTALL)
    steps = []
    for language, block in blocks:
        lines = [line for line in block.splitlines() if line] if language == "sh" else [block]
        steps += [(language, line) for line in lines]
    return steps


def tell(folder: Path) -> Iterator[tuple[str, subprocess.CompletedProcess[str]]]:
    """Type each in a folder, and give it with how it ended."""
    make_photographs(folder / "photos")
    with HubServer() as hub:
        environment = os.environ | hub.environment(folder / "caches")
        environment["COLUMNS"] = "80"
        for language, step in story():
            words = step.split()[1:] if language == "sh" else []
            command = ["-m", "deit_zoo", *words] if words else ["-c", step]
            if not words:  # what the dry run left is what an upload puts there
                published = folder / "publish" / "photos"
                hub.commit(REPO, {file.name: file.read_bytes() for file in published.iterdir()})
            yield step, run_python(command, cwd=folder, env=environment, timeout=600)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.mkdir(parents=True)
    with fork_servers():
        for step, done in tell(place):
            print(f"$ {step}\n{done.stderr}{done.stdout}[{done.returncode}]\n", flush=True)
