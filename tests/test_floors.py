"""The floors of the house: one rule for each room, read from the syntax trees of all modules."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# A room is a folder of the package or a file at its top. It imports from its own floor or below.
FLOORS = {
    0: {
        "errors",
        "results",
        "version",
        "files",
        "labels",
        "registry",
        "manifest",
        "notebook",
        "terminal",
    },
    1: {"machine", "distributed", "models", "recipes", "weights", "data", "augment"},
    2: {"evaluation", "facts", "inference", "hub", "runs"},
    3: {"zoo", "api", "page", "training"},
    4: {"__init__", "__main__", "assets", "cli", "hubconf"},
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
MAX_ROOMS = 30
# Former paths, each of which only points to the new one; they go in 0.3.
SHIMS = {"datasets", "digits", "exports", "preprocess", "hub.cache", "hub.fetch"}
SHIMS |= {"training.group", "training.recipes", "training.run"}

# What a room imports from outside at the top of a module, beside the standard library.
OUTSIDE = {
    "models": {"torch"},
    "distributed": {"numpy", "torch"},
    "terminal": {"rich"},
    "weights": {
        "torch",
        "safetensors",
        "huggingface_hub",
        "filelock",
        "msgspec",
        "requests",
        "urllib3",
        "rich",
        "numpy",
    },
    "data": {"torch", "PIL", "simplejpeg", "numpy"},
    "augment": {"torch", "triton", "PIL", "numpy"},
    "evaluation": {"torch", "PIL", "numpy"},
    "inference": {"torch", "PIL", "fastapi", "starlette", "uvicorn", "prometheus_client"},
    "hub": {"torch", "safetensors", "huggingface_hub", "msgspec"},
    "training": {"torch", "safetensors", "PIL", "numpy", "rich", "timm", "triton", "filelock"},
    "assets": {"PIL"},
    "page": {"jinja2", "markupsafe"},
    "cli": {"typer", "rich"},
}
# Packages that one module alone imports: the doors to them.
DOORS = {
    "timm": "training.timm_bridge",
    "torchvision": None,
    "transformers": None,
    "openvino": None,
    "simplejpeg": "data.jpeg",
    "onnx": "inference.export",
    "onnxscript": "inference.export",
    "onnxruntime": "inference.export",
    "fastapi": "inference.serve.app",
    "starlette": "inference.serve.app",
    "uvicorn": "inference.serve.server",
    "prometheus_client": "inference.serve.metrics",
}
# A command imports what it runs when it runs; so do these, to keep `import deit_zoo` light.
HEAVY = {"models", "weights", "data", "evaluation", "inference", "hub", "training", "distributed"}
LIGHT = {
    "__init__",
    "__main__",
    "api",
    "cli",
    "facts",
    "machine",
    "page",
    "recipes",
    "runs",
    "zoo",
} | FLOORS[0]


@dataclass(frozen=True, slots=True)
class Import:
    """A module that is named in an import statement; `deferred` inside a function."""

    name: str
    deferred: bool


@cache
def modules() -> tuple[str, ...]:
    """Every module below `deit_zoo`, without the shims; a package goes by its folder's name."""
    paths = [path.relative_to(ROOT / "deit_zoo") for path in (ROOT / "deit_zoo").rglob("*.py")]
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths}
    return tuple(sorted((names | {"hubconf"}) - SHIMS))


def room(module: str) -> str:
    return module.split(".")[0]


def file_of(module: str) -> Path:
    if module == "hubconf":
        return ROOT / "hubconf.py"
    path = ROOT / "deit_zoo" / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def imports(module: str) -> tuple[Import, ...]:
    tree = ast.parse(file_of(module).read_text(encoding="utf-8"))
    return tuple(_imports(tree, deferred=False))


def _imports(node: ast.AST, deferred: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, deferred) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "an import is relative"
            assert child.module is not None
            for alias in child.names:
                name = f"{child.module}.{alias.name}"
                yield Import(name if own(name) in modules() else child.module, deferred)
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, deferred or inside)


def own(name: str) -> str | None:
    """The module of ours that a dotted name means; None for what is outside."""
    if name == "deit_zoo":
        return "__init__"
    return name.removeprefix("deit_zoo.") if name.startswith("deit_zoo.") else None


def arrows(*, deferred: bool) -> list[tuple[str, str]]:
    """Which module imports which of ours, also inside functions where that is asked for."""
    return sorted(
        {
            (module, target)
            for module in modules()
            for found in imports(module)
            if (target := own(found.name)) in modules() and (deferred or not found.deferred)
        }
    )


def packages(module: str, *, deferred: bool) -> set[str]:
    """The packages from outside that a module imports."""
    names = {
        found.name.split(".")[0] for found in imports(module) if deferred or not found.deferred
    }
    return names - {"deit_zoo"} - set(sys.stdlib_module_names)


def circles(edges: list[tuple[str, str]]) -> set[str]:
    """What stays when all that imports nothing, or that nothing imports, is taken away in turn."""
    edges = [(a, b) for a, b in edges if a != b]
    while True:
        sources, targets = {a for a, _ in edges}, {b for _, b in edges}
        inner = [(a, b) for a, b in edges if b in sources and a in targets]
        if inner == edges:
            return sources
        edges = inner


def test_every_module_is_in_a_room_that_has_a_floor() -> None:
    assert sorted({room(module) for module in modules()} - FLOOR_OF.keys()) == []
    assert sorted(FLOOR_OF.keys() - {room(module) for module in modules()}) == []


def test_the_house_has_few_rooms() -> None:
    rooms = {room(module) for module in modules()}
    print(f"{len(rooms)} rooms, {len(modules())} modules, {len(arrows(deferred=True))} arrows")
    assert len(rooms) <= MAX_ROOMS


def test_no_arrow_runs_upwards() -> None:
    upwards = [
        f"{module} imports {target}"
        for module, target in arrows(deferred=True)
        if FLOOR_OF[room(target)] > FLOOR_OF[room(module)]
    ]
    assert sorted(set(upwards)) == []


def test_no_import_runs_in_a_circle() -> None:
    assert circles(arrows(deferred=True)) == set()


def test_no_rooms_import_each_other_in_a_circle() -> None:
    assert circles([(room(a), room(b)) for a, b in arrows(deferred=True)]) == set()


def test_a_module_imports_from_outside_what_its_room_may() -> None:
    wrong = {
        module: sorted(extra)
        for module in modules()
        if (extra := packages(module, deferred=False) - OUTSIDE.get(room(module), set()))
    }
    assert wrong == {}


def test_a_package_with_a_door_is_imported_nowhere_else() -> None:
    wrong = [
        f"{module} imports {package}"
        for module in modules()
        for package in packages(module, deferred=True)
        if package in DOORS and module != DOORS[package]
    ]
    assert wrong == []


def test_names_and_facts_cost_no_torch() -> None:
    heavy = [
        f"{module} imports {target}"
        for module, target in arrows(deferred=False)
        if room(module) in LIGHT and room(target) in HEAVY
    ]
    assert heavy == []


def test_only_the_command_line_and_the_front_door_start_training() -> None:
    known = {a for a, b in arrows(deferred=True) if room(b) == "training"}
    assert {room(module) for module in known} <= {"training", "cli", "assets", "api"}


def test_no_file_is_named_for_what_does_not_belong_anywhere() -> None:
    drawers = {"util", "utils", "helper", "helpers", "common", "misc"}
    assert [module for module in modules() if module.split(".")[-1] in drawers] == []


def private_names(module: str) -> list[str]:
    """The names of torch with a leading underscore that a module imports or reaches for."""
    tree = ast.parse(file_of(module).read_text(encoding="utf-8"))
    dotted = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    dotted += [found.name for found in imports(module)]
    dotted += [
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    return [
        name
        for name in dotted
        if name.startswith("torch.") and re.search(r"\._(?!_version__)", name)
    ]


def test_no_private_name_of_torch_is_used_outside_inference() -> None:
    private = {
        module: names
        for module in modules()
        if room(module) != "inference" and (names := private_names(module))
    }
    assert private == {}
