"""The floors of the house: what a module may import at its top, read from its syntax tree."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# house.md section 3. The first pattern that a path matches gives its floor; a module that matches
# none has no place in the house yet.
FLOORS = (
    ("deit_zoo/__init__.py", 0),
    ("deit_zoo/errors.py", 0),
    ("deit_zoo/files.py", 0),
    ("deit_zoo/registry.py", 0),
    ("deit_zoo/results.py", 0),
    ("deit_zoo/manifest.py", 0),
    ("deit_zoo/api.py", 0),
    ("deit_zoo/labels.py", 0),
    ("deit_zoo/embedded/__init__.py", 0),
    ("deit_zoo/training/__init__.py", 0),
    ("deit_zoo/training/recipe.py", 0),
    ("deit_zoo/training/recipes/*.py", 0),
    ("deit_zoo/training/plan.py", 0),
    ("deit_zoo/training/costs.py", 0),
    ("deit_zoo/training/launch.py", 0),
    ("deit_zoo/training/stages.py", 0),
    ("deit_zoo/training/finetune.py", 0),
    ("deit_zoo/training/parting.py", 0),
    ("deit_zoo/training/elastic.py", 0),
    ("deit_zoo/training/outcome.py", 0),
    ("deit_zoo/training/stopping.py", 0),
    ("deit_zoo/training/slurm.py", 0),
    ("deit_zoo/training/curves.py", 0),
    ("deit_zoo/training/reading.py", 0),
    ("deit_zoo/training/compare.py", 0),
    ("deit_zoo/training/report.py", 0),
    ("deit_zoo/models/*.py", 1),
    ("deit_zoo/hub/*.py", 2),
    ("deit_zoo/attention.py", 2),
    ("deit_zoo/inference.py", 2),
    ("deit_zoo/bench.py", 2),
    ("deit_zoo/bench_cold.py", 2),
    ("deit_zoo/bench_compare.py", 2),
    ("deit_zoo/bench_picture.py", 2),
    ("deit_zoo/peers.py", 2),
    ("deit_zoo/weights.py", 2),
    ("deit_zoo/preprocess.py", 2),
    ("deit_zoo/reading_ahead.py", 2),
    ("deit_zoo/datasets.py", 2),
    ("deit_zoo/hfds.py", 2),
    ("deit_zoo/evaluation.py", 2),
    ("deit_zoo/exports.py", 2),
    ("deit_zoo/label_sets.py", 2),
    ("deit_zoo/sharing.py", 2),
    ("deit_zoo/digits.py", 2),
    ("deit_zoo/embedded/make_digits.py", 2),
    ("deit_zoo/embedded/make_models.py", 4),
    ("deit_zoo/training/checkpoint.py", 3),
    ("deit_zoo/training/data.py", 3),
    ("deit_zoo/training/draws.py", 3),
    ("deit_zoo/training/ema.py", 3),
    ("deit_zoo/training/group.py", 3),
    ("deit_zoo/training/keeper.py", 3),
    ("deit_zoo/training/loop.py", 3),
    ("deit_zoo/training/speed.py", 3),
    ("deit_zoo/training/losses.py", 3),
    ("deit_zoo/training/optim.py", 3),
    ("deit_zoo/training/picture.py", 3),
    ("deit_zoo/training/run.py", 3),
    ("deit_zoo/training/samplers.py", 3),
    ("deit_zoo/training/teachers.py", 3),
    ("deit_zoo/training/timm_parts.py", 3),
    ("deit_zoo/training/watch.py", 3),
    ("deit_zoo/cli.py", 4),
    ("deit_zoo/cli_training.py", 4),
    ("deit_zoo/cli_finetune.py", 4),
    ("deit_zoo/cli_runs.py", 4),
    ("deit_zoo/console.py", 4),
    ("deit_zoo/cli_attention.py", 4),
    ("deit_zoo/cli_benchmark.py", 4),
    ("deit_zoo/cli_classify.py", 4),
    ("deit_zoo/cli_data.py", 4),
    ("deit_zoo/cli_evaluate.py", 4),
    ("deit_zoo/cli_export.py", 4),
    ("deit_zoo/cli_weights.py", 4),
    ("deit_zoo/__main__.py", 4),
    ("hubconf.py", 4),
)

# What a floor may import from outside at the top of a module.
OUTSIDE = {
    0: set(),
    1: {"torch"},
    2: {"torch", "safetensors", "huggingface_hub", "PIL", "filelock", "requests", "rich"},
    3: {"torch", "safetensors", "PIL", "numpy", "rich"},
    4: {"typer", "rich"},
}
# The doors to a package: timm's parts that train, the peers that speed is measured against, export.
ONLY_IN = {
    "timm": ("deit_zoo/training/timm_parts.py", "deit_zoo/peers.py"),
    "transformers": ("deit_zoo/peers.py",),
    "openvino": ("deit_zoo/peers.py",),
    "onnx": ("deit_zoo/exports.py",),
    "onnxscript": ("deit_zoo/exports.py",),
    "onnxruntime": ("deit_zoo/exports.py", "deit_zoo/peers.py"),
}
# A door that opens inside functions only.
DEFERRED_DOORS = {"deit_zoo/peers.py", "deit_zoo/exports.py"}
# Below floor 3 these alone may reach for training, and `launch` and `cli` inside functions only.
KNOWS_TRAINING = {
    "deit_zoo/api.py",
    "deit_zoo/cli.py",
    "deit_zoo/cli_evaluate.py",
    "deit_zoo/cli_runs.py",
    "deit_zoo/cli_training.py",
    "deit_zoo/cli_finetune.py",
    "deit_zoo/hub/publish.py",
    "deit_zoo/embedded/make_models.py",
}


@dataclass(frozen=True, slots=True)
class Import:
    """A module that is named in an import statement; `deferred` inside a function."""

    name: str
    deferred: bool


def modules() -> list[str]:
    package = (path.relative_to(ROOT).as_posix() for path in (ROOT / "deit_zoo").rglob("*.py"))
    return sorted((*package, "hubconf.py"))


def floor(path: str) -> int | None:
    return next((level for pattern, level in FLOORS if fnmatchcase(path, pattern)), None)


@cache
def imports(path: str) -> list[Import]:
    return list(_imports(ast.parse((ROOT / path).read_text(encoding="utf-8")), deferred=False))


def _imports(node: ast.AST, deferred: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, deferred) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "an import is relative"
            assert child.module is not None
            names = (f"{child.module}.{alias.name}" for alias in child.names)
            yield from (Import(name if file_of(name) else child.module, deferred) for name in names)
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, deferred or inside)


def file_of(name: str) -> str | None:
    """The file of a module of this package; None for what is outside."""
    stem = name.replace(".", "/")
    return next((p for p in (f"{stem}.py", f"{stem}/__init__.py") if (ROOT / p).is_file()), None)


def outside(name: str) -> str | None:
    """The package from outside that a module belongs to; None for ours and the standard library."""
    package = name.split(".")[0]
    return None if package == "deit_zoo" or package in sys.stdlib_module_names else package


@pytest.mark.parametrize("path", modules())
def test_every_module_has_a_floor(path: str) -> None:
    assert floor(path) is not None, f"{path} is new: give it a floor in tests/test_floors.py"


@pytest.mark.parametrize("path", modules())
def test_a_module_imports_from_its_own_floor_or_below(path: str) -> None:
    own = floor(path)
    assert own is not None
    above = [
        found.name
        for found in imports(path)
        if not found.deferred
        and (file := file_of(found.name)) is not None
        and ((level := floor(file)) is None or level > own)
    ]
    assert above == []


@pytest.mark.parametrize("path", modules())
def test_a_module_imports_at_its_top_what_its_floor_may(path: str) -> None:
    own = floor(path)
    assert own is not None
    doors = {package for package, doors in ONLY_IN.items() if path in doors}
    allowed = OUTSIDE[own] | (doors if path not in DEFERRED_DOORS else set())
    found = {outside(found.name) for found in imports(path) if not found.deferred}
    assert found - {None} - allowed == set()


@pytest.mark.parametrize("path", modules())
def test_a_package_with_doors_is_imported_nowhere_else(path: str) -> None:
    packages = {outside(found.name) for found in imports(path)}
    assert [name for name, doors in ONLY_IN.items() if name in packages and path not in doors] == []


@pytest.mark.parametrize("path", modules())
def test_torchvision_is_imported_nowhere(path: str) -> None:
    assert "torchvision" not in {outside(found.name) for found in imports(path)}


@pytest.mark.parametrize("path", [path for path in modules() if "/training/" not in path])
def test_what_is_not_training_does_not_know_of_it(path: str) -> None:
    known = [found for found in imports(path) if found.name.startswith("deit_zoo.training")]
    assert path in KNOWS_TRAINING or known == []


@pytest.mark.parametrize("path", sorted(KNOWS_TRAINING))
def test_what_starts_training_imports_it_inside_functions(path: str) -> None:
    known = [found for found in imports(path) if found.name.startswith("deit_zoo.training")]
    assert [found.name for found in known if not found.deferred] == []


def test_no_import_at_the_top_runs_in_a_circle() -> None:
    edges = {
        path: {file_of(found.name) for found in imports(path) if not found.deferred} - {None}
        for path in modules()
    }
    # Take away, again and again, what imports nothing that is left; a circle is what stays.
    while free := [path for path, targets in edges.items() if not targets & edges.keys()]:
        for path in free:
            del edges[path]
    assert edges == {}


@pytest.mark.parametrize("word", ["util", "utils", "helper", "helpers", "common", "misc"])
def test_no_file_is_named_for_what_does_not_belong_anywhere(word: str) -> None:
    assert [path for path in modules() if Path(path).stem == word] == []


@pytest.mark.parametrize(("pattern", "level"), FLOORS)
def test_every_row_of_the_table_has_a_file(pattern: str, level: int) -> None:
    assert [path for path in modules() if fnmatchcase(path, pattern)], f"floor {level} is stale"
