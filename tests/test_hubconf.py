"""torch.hub from a checkout: names, docstrings, other copies, other modules."""

from __future__ import annotations

import inspect
import os
import runpy
import shutil
from pathlib import Path

import pytest

import deit_zoo
from deit_zoo.registry import MODELS
from support.command import run_python

ROOT = Path(__file__).parents[1]
ONE_BY_ONE = """
    deit_tiny_patch16_224 deit_small_patch16_224 deit_base_patch16_224 deit_base_patch16_384
    deit_tiny_distilled_patch16_224 deit_small_distilled_patch16_224
    deit_base_distilled_patch16_224 deit_base_distilled_patch16_384
    cait_XXS24_224 cait_XXS24 cait_XXS36_224 cait_XXS36 cait_XS24 cait_S24_224 cait_S24 cait_S36
    cait_M36 cait_M48
"""
UPSTREAM = (
    *ONE_BY_ONE.split(),
    *(
        f"deit_{size}_LS{own}"
        for size in ("small_patch16", "base_patch16", "large_patch16")
        for own in ("", "_384", "_21k", "_384_21k")
    ),
    *(
        f"deit_{size}_LS{own}"
        for size in ("medium_patch16", "huge_patch14")
        for own in ("", "_21k")
    ),
)


def hub(code: str, cwd: Path, hub_folder: Path = ROOT, **environment: str) -> str:
    """Run code in a process of its own, `HUB` being the hub folder; returns what it prints."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    words = ["-W", "error", "-c", f"HUB = {str(hub_folder)!r}\nimport torch\n{code}"]
    done = run_python(words, server="only torch", cwd=cwd, env=inherited | environment)
    assert done.returncode == 0, done.stderr
    printed: str = done.stdout
    return printed.strip()


def copy_of_the_repository(folder: Path, version: str) -> Path:
    """A hub folder: what a GitHub zip holds, at another version."""
    shutil.copytree(
        ROOT / "deit_zoo", folder / "deit_zoo", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("hubconf.py", "weights_manifest.json"):
        shutil.copy(ROOT / name, folder / name)
    init = folder / "deit_zoo" / "version.py"
    init.write_text(init.read_text().replace(deit_zoo.__version__, version))
    return folder


def entry_points() -> dict[str, object]:
    found = runpy.run_path(str(ROOT / "hubconf.py"))
    return {
        name: value for name, value in found.items() if callable(value) and not name.startswith("_")
    }


def test_there_is_an_entry_point_for_every_name_and_every_upstream_name() -> None:
    short = {f"deit_{size}{kind}" for size in ("ti", "s", "b") for kind in ("", "_distilled")}
    short |= {"deit_b_384", "deit_b_distilled_384"}
    teacher = {"regnety_160"}
    assert set(entry_points()) == {*MODELS, *UPSTREAM, *short, *teacher, "create"}


def test_every_entry_point_tells_what_it_is_and_how_to_call_it() -> None:
    for name, entry in entry_points().items():
        assert f'"{name}"' in str(entry.__doc__)
        assert "trust_repo=True" in str(entry.__doc__)


def test_a_docstring_holds_the_published_accuracy_and_its_transform() -> None:
    text = str(entry_points()["deit_small"].__doc__)
    assert "Top-1 79.854 % at 224 pixels with crop_pct 0.875, bicubic (README_deit.md)." in text


def test_an_entry_point_is_pretrained_unless_told_otherwise() -> None:
    signature = inspect.signature(entry_points()["deit_tiny"])  # type: ignore[arg-type]
    assert str(signature) == "(pretrained: bool = True, **kwargs)"


def test_hub_load_gives_the_pretrained_model_in_eval_mode(tmp_path: Path) -> None:
    code = """
model = torch.hub.load(HUB, "deit_pico_digits", source="local")
print(model.training, model.checkpoint.origin)
"""
    assert hub(code, tmp_path) == "False reproduced"


def test_hub_load_gives_a_random_model_in_train_mode_when_asked(tmp_path: Path) -> None:
    code = """
model = torch.hub.load(HUB, "deit_tiny_patch16_224", source="local", pretrained=False,
                       num_classes=3)
print(model.training, model.head.out_features, type(model).__module__)
"""
    assert hub(code, tmp_path) == "True 3 deit_zoo.models.deit"


def test_hub_load_takes_short_names_and_create_every_spelling(tmp_path: Path) -> None:
    code = """
options = dict(source="local", pretrained=False, device="meta")
print([torch.hub.load(HUB, name, **options).spec.name for name in ("deit_s", "deit_b_384")])
names = ("DeiT-S/16", "cait_s24", "deit3_b")
print([torch.hub.load(HUB, "create", name, **options).spec.name for name in names])
try:
    torch.hub.load(HUB, "create", "deit_smal", source="local")
except Exception as error:
    print(type(error).__name__, error)
"""
    lines = hub(code, tmp_path).splitlines()
    assert lines.pop(0) == "['deit_small', 'deit_base_384']"
    assert lines[0] == "['deit_small', 'cait_s24_384', 'deit3_base']"
    assert lines[1].startswith(
        "UnknownModelError no model is named 'deit_smal'; did you mean deit_small,"
    )


def test_hub_load_works_while_a_module_called_models_is_imported(tmp_path: Path) -> None:
    for name in ("models", "utils", "data", "training"):
        (tmp_path / f"{name}.py").write_text("mine = True\n")
    code = """
import models, utils, data, training
model = torch.hub.load(HUB, "create", "deit_pico_digits", source="local")
print(models.mine, model.spec.name)
"""
    assert hub(code, tmp_path) == "True deit_pico_digits"


def test_the_hub_copy_serves_the_call_where_another_is_installed_but_not_imported(
    tmp_path: Path,
) -> None:
    (tmp_path / "hub").mkdir()
    folder = copy_of_the_repository(tmp_path / "hub", "9.9.9")
    code = """
model = torch.hub.load(HUB, "deit_pico_digits", source="local")
import deit_zoo
print(deit_zoo.__version__)
"""
    assert hub(code, tmp_path, folder, PYTHONPATH=str(ROOT)) == "9.9.9"


def test_another_copy_that_is_already_imported_serves_the_call_and_is_named(
    tmp_path: Path,
) -> None:
    (tmp_path / "hub").mkdir()
    folder = copy_of_the_repository(tmp_path / "hub", "9.9.9")
    code = """
import warnings
import deit_zoo
from support.command import run_python
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model = torch.hub.load(HUB, "deit_pico_digits", source="local")
print(caught[-1].message, model.spec.name)
"""
    said = hub(code, tmp_path, folder, PYTHONPATH=str(ROOT))
    assert said.startswith(f"deit_zoo {deit_zoo.__version__} from {ROOT}")
    assert said.endswith("serves this call; torch.hub holds 9.9.9 deit_pico_digits")


def test_importing_hubconf_imports_no_package_but_ours(tmp_path: Path) -> None:
    code = """
import runpy, sys
before = set(sys.modules)
sys.path.insert(0, HUB)
runpy.run_path(HUB + "/hubconf.py")
print({m.split(".")[0] for m in set(sys.modules) - before} & {"timm", "PIL", "huggingface_hub"})
"""
    assert hub(code, tmp_path) == "set()"


@pytest.mark.parametrize("name", ["deit_tiny", "cait_S24"])
def test_an_upstream_checkpoint_that_is_not_cached_says_so_offline(name: str) -> None:
    with pytest.raises(deit_zoo.errors.OfflineError, match="are not on this machine and HF_HUB_OF"):
        entry_points()[name]()  # type: ignore[operator]
