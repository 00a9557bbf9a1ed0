"""What is shipped: the manifest, digits and checkpoints are found wherever the package lies."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deit_zoo.data import digits
from deit_zoo.version import __version__

ROOT = Path(__file__).parents[1]
SHOW = """
import deit_zoo
from deit_zoo import weights
from deit_zoo.manifest import manifest_path
model = deit_zoo.create("deit_pico_digits", pretrained=True)
print(manifest_path(), model.checkpoint.name)
"""


def python(code: str, cwd: Path, path: Path) -> str:
    """Run code with only `path` added, away from the checkout."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code]
        if sys.version_info >= (3, 11)
        else [sys.executable, "-c", code],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def build(source: Path, output: Path, target: str) -> Path:
    """Build a wheel or an sdist with hatchling."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(output)],
        cwd=source,
        check=True,
        capture_output=True,
    )
    [made] = output.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("sdist"), "sdist")


def test_the_wheel_holds_manifest_types_labels_digits_checkpoints_and_logs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    models = ("convnet_pico_digits", "deit_pico_digits", "deit_pico_distilled_digits")
    assert names >= {
        "deit_zoo/weights_manifest.json",
        "deit_zoo/py.typed",
        "deit_zoo/assets/imagenet1k_labels.txt",
        "deit_zoo/assets/digits.png",
        *(f"deit_zoo/assets/{model}.safetensors" for model in models),
        *(f"deit_zoo/assets/{model}.log.jsonl" for model in models),
        *(f"deit_zoo/assets/{model}.receipt.json" for model in models),
    }


def test_the_wheel_holds_nothing_but_the_package(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top.partition("-")[0] for top in tops} == {"deit_zoo"}


def needs_of(wheel: Path) -> list[Requirement]:
    """What a wheel asks for, with extras and without."""
    with zipfile.ZipFile(wheel).open(f"deit_zoo-{__version__}.dist-info/METADATA") as file:
        return [Requirement(text) for text in BytesParser().parse(file).get_all("Requires-Dist")]


def test_the_lock_has_each_dependency_in_a_version_that_fits(wheel: Path) -> None:
    lock = (ROOT / ".ci" / "requirements.txt").read_text(encoding="utf-8")
    locked = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", lock, re.MULTILINE))
    stale = []
    for need in needs_of(wheel):
        name = canonicalize_name(need.name)
        if name != "deit-zoo" and not (name in locked and need.specifier.contains(locked[name])):
            stale.append(str(need))
    assert stale == [], "type: make lock"


def test_the_three_checkpoints_weigh_less_than_4_mb_together() -> None:
    files = list((ROOT / "deit_zoo" / "assets").glob("*.safetensors"))
    assert len(files) == 3
    assert sum(file.stat().st_size for file in files) < 4_000_000


def test_a_wheel_finds_its_manifest_and_checkpoints(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    found = python(SHOW, tmp_path, tmp_path / "site")
    assert found == f"{tmp_path}/site/deit_zoo/weights_manifest.json deit_pico_digits"


def test_an_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [folder] = [path for path in tmp_path.iterdir() if path.is_dir()]
    again = build(folder, tmp_path / "dist", "wheel")
    assert zipfile.ZipFile(again).namelist() == zipfile.ZipFile(wheel).namelist()


def test_a_plain_checkout_finds_its_manifest_and_checkpoints(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "deit_zoo", tmp_path / "checkout" / "deit_zoo")
    shutil.copy(ROOT / "weights_manifest.json", tmp_path / "checkout")
    found = python(SHOW, tmp_path, tmp_path / "checkout")
    assert found == f"{tmp_path}/checkout/weights_manifest.json deit_pico_digits"


def test_the_command_is_installed() -> None:
    program = shutil.which("deit-zoo", path=str(Path(sys.executable).parent))
    assert program is not None
    done = subprocess.run([program, "--version"], check=True, capture_output=True, text=True)
    assert done.stdout == "0.1.0\n"


def test_the_citation_is_of_this_version() -> None:
    lines = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"version: {__version__}" in lines


# Nothing is found but the standard library and what `pip install deit_zoo` brings.
CORE_ALONE = """
import sys
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions, requires
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

core = set()
def add(name):
    if (name := canonicalize_name(name)) not in core:
        core.add(name)
        for need in map(Requirement, requires(name) or ()):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                add(need.name)
image, data, *asked = sys.argv[1:]
for name in asked:
    add(name)
others = {
    top for top, names in packages_distributions().items()
    if not core & {canonicalize_name(name) for name in names} and top != "deit_zoo"
}
class Core(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.partition(".")[0] in others
        return None if absent else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Core

import deit_zoo
from deit_zoo.cli import main
[[best]] = deit_zoo.classify(image, "deit_pico_digits", topk=1)
print(best.label)
for words in ("list", "info deit_s", "doctor", f"evaluate deit_pico_digits --data {data}"):
    sys.argv = ["deit-zoo", *words.split()]
    try:
        main()
    except SystemExit as ended:
        print(words.split()[0], ended.code or 0)
"""


def test_the_package_works_on_what_it_asks_for_without_extras(wheel: Path, tmp_path: Path) -> None:
    core = [need.name for need in needs_of(wheel) if need.marker is None]
    digits.write_folder(tmp_path / "digits")
    [image, *_] = (tmp_path / "digits" / "val" / "7").iterdir()
    done = subprocess.run(
        [sys.executable, "-c", CORE_ALONE, str(image), str(tmp_path / "digits"), *core],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == "7"
    assert [said.count(line) for line in ("list 0", "info 0", "doctor 0", "evaluate 0")] == [1] * 4
