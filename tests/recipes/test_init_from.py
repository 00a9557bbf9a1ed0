"""Where a second stage begins: a published checkpoint, a finished run, or a sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import deit_zoo
from deit_zoo.distributed import DistributedContext
from deit_zoo.errors import RecipeError
from deit_zoo.hub.config import start_record
from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.digits import DEIT_PICO
from deit_zoo.recipes.first_stage import resolve_init_from
from deit_zoo.recipes.recipe import Recipe
from deit_zoo.registry import MODELS
from deit_zoo.training.build import build_model
from deit_zoo.training.launch import recipe_for
from deit_zoo.weights.load import save_model

HERE = DistributedContext(device=torch.device("cpu"))
TEN, ABC = [str(digit) for digit in range(10)], ["a", "b", "c"]


def second(source: str | Path | None, **changes: object) -> Recipe:
    return replace(DEIT_PICO, init_from=None if source is None else str(source), **changes)


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """The folder of a first stage, as a run leaves its weights."""
    torch.manual_seed(7)
    save_model(deit_zoo.create("deit_pico_digits"), tmp_path / "model.safetensors")
    return tmp_path


def test_most_recipes_begin_at_random() -> None:
    assert resolve_init_from(DEIT_PICO) is None


def test_a_model_of_the_registry_gives_its_published_weights() -> None:
    assert resolve_init_from(recipe_for("deit_base_384")) == ("deit_base", None)


@pytest.mark.parametrize(
    ("source", "checkpoint"),
    [("deit_pico_digits", None), ("./deit_pico_digits", "./deit_pico_digits")],
)
def test_a_folder_called_like_a_model_is_meant_by_its_path(
    source: str, checkpoint: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deit_pico_digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_init_from(second(source)) == ("deit_pico_digits", checkpoint)
    assert (start_record(source) is None) is (checkpoint is not None)


def test_a_folder_gives_its_weights_to_the_recipes_model(stage: Path) -> None:
    assert resolve_init_from(second(stage)) == ("deit_pico_digits", str(stage))


def test_a_file_gives_its_weights_to_the_recipes_model(stage: Path) -> None:
    file = str(stage / "model.safetensors")
    assert resolve_init_from(second(file)) == ("deit_pico_digits", file)


def test_an_address_of_the_hub_is_left_for_later() -> None:
    assert resolve_init_from(second("hf://org/repo")) == ("deit_pico_digits", "hf://org/repo")


def test_a_first_stage_that_nobody_published_is_named_with_the_commands() -> None:
    with pytest.raises(RecipeError) as caught:
        resolve_init_from(recipe_for("cait_m48_448"))
    assert str(caught.value) == (
        "cait_m48_448 begins from cait_m48_224, whose weights nobody published; train it first "
        "with deit-zoo reproduce cait_m48_224, then type --set init_from=runs/cait_m48_224"
    )


def test_nonsense_is_refused_with_what_would_be_right() -> None:
    with pytest.raises(RecipeError) as caught:
        resolve_init_from(second("no/such/run"))
    assert str(caught.value) == (
        "init_from is 'no/such/run', which is no model, no recipe and no file; give a model's "
        "name, a run's folder, a .safetensors or .pth file, or hf://ORG/REPO"
    )


def test_a_run_that_begins_from_nonsense_leaves_nothing(tmp_path: Path) -> None:
    from deit_zoo.training.launch import reproduce

    with pytest.raises(RecipeError, match=r"^init_from is 'nowhere', which is no model"):
        reproduce(
            "deit_pico_digits", gpus=0, output=tmp_path / "run", changes=["init_from=nowhere"]
        )
    assert not (tmp_path / "run").exists()


def test_the_weights_of_a_published_stage_are_there_when_training_begins() -> None:
    published = deit_zoo.create("deit_pico_digits", pretrained=True)
    model = build_model(second("deit_pico_digits"), TEN, HERE)
    assert torch.equal(model.blocks[0].attn.qkv.weight, published.blocks[0].attn.qkv.weight)
    assert torch.equal(model.head.weight, published.head.weight)


def test_the_weights_of_a_folder_are_there_when_training_begins(stage: Path) -> None:
    saved = deit_zoo.create("deit_pico_digits", checkpoint=stage)
    model = build_model(second(stage, drop_path_rate=0.3), TEN, HERE)
    assert torch.equal(model.head.weight, saved.head.weight)
    assert model.spec is not None
    assert model.spec.name == "deit_pico_digits"
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_second_stage_may_have_another_size_and_other_classes(stage: Path) -> None:
    saved = deit_zoo.create("deit_pico_digits", checkpoint=stage)
    model = build_model(second(stage, img_size=24, data="folder"), ABC, HERE)
    assert (model.img_size, model.num_classes) == ((24, 24), 3)
    assert torch.equal(model.blocks[0].attn.qkv.weight, saved.blocks[0].attn.qkv.weight)


def test_a_fresh_head_is_a_draw_of_the_seed(stage: Path) -> None:
    recipe = second(stage, data="folder")
    torch.manual_seed(1)
    one = build_model(recipe, ABC, HERE).head.weight
    torch.manual_seed(2)
    assert torch.equal(build_model(recipe, ABC, HERE).head.weight, one)
    assert not torch.equal(build_model(replace(recipe, seed=1), ABC, HERE).head.weight, one)


@pytest.mark.parametrize("source", ["convnet_pico_digits", "deit_tiny"])
def test_a_model_of_another_build_is_refused_before_anything_is_trained(source: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve_init_from(second(source))
    assert str(caught.value) == (
        f"init_from is {source!r}, which is not built as deit_pico_digits is; give a first stage "
        "of the same architecture"
    )


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.init_from])
def test_every_shipped_second_stage_has_a_beginning_or_says_how_to_make_it(name: str) -> None:
    recipe = RECIPES[name]
    if recipe.init_from in MODELS:
        assert resolve_init_from(recipe) == (recipe.init_from, None)
    else:
        with pytest.raises(RecipeError, match=r", whose weights nobody published; train it first "):
            resolve_init_from(recipe)


def test_a_stage_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_model(deit_zoo.create("convnet_pico_digits"), tmp_path / "model.safetensors")
    with pytest.raises(
        deit_zoo.errors.CheckpointError, match=r"does not fit deit_pico_digits: missing "
    ):
        build_model(second(tmp_path), TEN, HERE)
