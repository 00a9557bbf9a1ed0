"""What people save: wrapped, shared and changed models, and the names of their classes."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

import deit_zoo
from deit_zoo import weights
from deit_zoo.errors import CheckpointError, ZooError
from deit_zoo.files import MODEL_FILE
from deit_zoo.inference.classify import class_names
from deit_zoo.models.deit import VisionTransformer
from deit_zoo.models.model import ZooModel
from support.machine import NAME

DISTILLED = "deit_pico_distilled_digits"


class Int8Tensor(torch.Tensor):
    """As torchao puts one in the place of a weight."""


def tuned(**options: Any) -> ZooModel:
    return deit_zoo.create(NAME, pretrained=True, **{"num_classes": 3} | options)


def names(model: ZooModel) -> list[str]:
    return [label.name for label in class_names(model)]


def saved(model: nn.Module, folder: Path) -> ZooModel:
    weights.save(model, folder / "mine.safetensors")
    return deit_zoo.create(checkpoint=folder / "mine.safetensors")


def compiled_blocks(model: Any) -> Any:
    model.blocks = nn.ModuleList(torch.compile(block, backend="eager") for block in model.blocks)
    return model


WRAPPED: dict[str, Callable[[nn.Module], Any]] = {
    "compiled block by block": compiled_blocks,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "parallel": nn.DataParallel,
    "compiled and parallel": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
    "averaged": AveragedModel,
}


@pytest.mark.parametrize("how", list(WRAPPED))
def test_a_wrapped_model_is_saved_as_the_one_inside(how: str, tmp_path: Path) -> None:
    model = tuned()
    expected = model.state_dict()
    wrapped = WRAPPED[how](model)
    assert deit_zoo.transform(wrapped) == deit_zoo.transform(model)
    loaded = saved(wrapped, tmp_path)
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(loaded.state_dict()[key], expected[key]) for key in expected)


def test_a_path_may_be_a_string_in_both_directions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sha256 = weights.save(tuned(), "mine.safetensors")
    weights.save(tuned(), "again.safetensors")
    assert len(sha256) == 64
    assert weights.local("mine.safetensors").path == Path("mine.safetensors")


def test_heads_that_are_one_are_saved_as_two(tmp_path: Path) -> None:
    model = deit_zoo.create(DISTILLED, pretrained=True)
    model.head_dist = model.head
    loaded = saved(model, tmp_path)
    assert torch.equal(loaded.head.weight, model.head.weight)
    assert torch.equal(loaded.head_dist.weight, model.head.weight)


def test_a_model_that_could_not_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    model = tuned()
    parametrizations.weight_norm(model.blocks[0].mlp.fc1)
    with pytest.raises(CheckpointError, match=r"other tensors than deit_pico_digits \(blocks\.0\."):
        weights.save(model, tmp_path / "mine.safetensors")
    model.norm.weight = nn.Parameter(torch.ones(80).as_subclass(Int8Tensor))
    with pytest.raises(CheckpointError, match="weights are held as Int8Tensor, as by quantizing"):
        weights.save(model, tmp_path / "mine.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_model_whose_layers_have_other_sizes_is_not_saved(tmp_path: Path) -> None:
    distilled = deit_zoo.create(DISTILLED, pretrained=True)
    distilled.head = nn.Linear(80, 3)
    pruned = tuned()
    pruned.blocks[1].mlp.fc1, pruned.blocks[1].mlp.fc2 = nn.Linear(80, 9), nn.Linear(9, 80)
    for model, key in ((distilled, r"head_dist\.bias"), (pruned, r"blocks\.1\.mlp\.fc1\.bias")):
        with pytest.raises(CheckpointError, match=rf"has other tensors than \w+ \({key}, .*sizes"):
            weights.save(model, tmp_path / "mine.safetensors")
    other = saved(tuned(img_size=24, patch_size=8, in_chans=1), tmp_path)  # which create can build
    assert (other.img_size, other.patch_size) == ((24, 24), 8)


@pytest.mark.parametrize(
    "metadata", [{"name": "cats"}, {"img_size": 32}, {"blocks": "18x2"}, {"stem": "hmlp"}]
)
def test_metadata_that_says_how_the_model_is_built_is_its_own(
    metadata: dict[str, Any], tmp_path: Path
) -> None:
    [(key, value)] = metadata.items()
    with pytest.raises(CheckpointError, match=rf"^{key} is {value!r}, but files say by it how the"):
        weights.save(tuned(), tmp_path / "mine.safetensors", **metadata)
    assert not os.listdir(tmp_path)


def test_metadata_that_says_the_same_in_other_words_is_taken(tmp_path: Path) -> None:
    model = tuned()
    weights.save(model, tmp_path / "mine.safetensors", img_size=model.img_size, stem="linear")
    assert deit_zoo.create(checkpoint=tmp_path / "mine.safetensors").img_size == model.img_size


def test_a_parallel_deit_iii_goes_back_by_load_state_dict_too(tmp_path: Path) -> None:
    model = deit_zoo.create("deit3_small", blocks="1x2", img_size=32)
    for name, gain in model.blocks[0].named_parameters():
        if name.startswith("gamma"):
            nn.init.normal_(gain)
    loaded = saved(model, tmp_path)
    again = deit_zoo.create("deit3_small", blocks="1x2", img_size=32)
    again.load_state_dict(load_file(tmp_path / "mine.safetensors"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
        assert torch.equal(value, again.state_dict()[name])


def test_a_model_that_was_made_by_no_name_is_saved_and_says_no_name(tmp_path: Path) -> None:
    model = VisionTransformer(img_size=16, patch_size=4, embed_dim=80, depth=1, num_heads=4)
    weights.save(model, tmp_path / "mine.safetensors")
    with pytest.raises(CheckpointError, match=r"mine\.safetensors does not say which model it is"):
        deit_zoo.create(checkpoint=tmp_path / "mine.safetensors")


def test_a_model_without_weights_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is on the meta device and has no weights"):
        weights.save(deit_zoo.create(NAME, device="meta"), tmp_path / "mine.safetensors")


@pytest.mark.filterwarnings("ignore")  # torch's own of gloo
def test_a_model_of_fsdp_is_saved_once_its_weights_are_gathered(tmp_path: Path) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        sharded = tuned()
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(CheckpointError, match="by FSDP; gather them by torch's get_model"):
            weights.save(sharded, tmp_path / "mine.safetensors")
        options = StateDictOptions(full_state_dict=True)
        whole = tuned()
        whole.load_state_dict(get_model_state_dict(sharded, options=options))
        assert saved(whole, tmp_path).num_classes == 3
    finally:
        dist.destroy_process_group()


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "none" / "mine.safetensors"
    with pytest.raises(CheckpointError) as caught:
        weights.save(tuned(), file)
    assert str(caught.value) == (
        f"{file} cannot be written (No such file or directory); give another file"
    )


def test_safetensors_are_not_written_under_the_name_of_a_pickle(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"mine\.pth would be taken for a pickle"):
        weights.save(tuned(), tmp_path / "mine.pth")


def test_names_of_another_number_of_classes_are_not_saved(tmp_path: Path) -> None:
    for names in (["cat", "dog"], "abc", [1, 2, 3]):
        with pytest.raises(CheckpointError, match=r"labels are .*, but the model has 3 classes"):
            weights.save(tuned(), tmp_path / "mine.safetensors", labels=names)


@pytest.mark.parametrize(
    "metadata", [{"lr": float("nan")}, {"by": object()}, {"steps": 10**30}, {"img_size": "16"}]
)
def test_metadata_that_could_not_be_read_again_is_not_saved(
    metadata: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="the metadata could not be read again"):
        weights.save(tuned(), tmp_path / "mine.safetensors", **metadata)
    assert not os.listdir(tmp_path)


def test_a_model_that_is_none_of_the_zoos_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Linear was not made by deit_zoo\.create"):
        weights.save(nn.Linear(3, 3), tmp_path / "mine.safetensors")


# Classes.

HEADS: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda dim: nn.Linear(dim, 3),
    "with dropout": lambda dim: nn.Sequential(nn.Dropout(0.1), nn.Linear(dim, 3)),
    "two layers": lambda dim: nn.Sequential(nn.Linear(dim, 7), nn.GELU(), nn.Linear(7, 3)),
}


@pytest.mark.parametrize("kind", list(HEADS))
def test_a_head_put_in_by_hand_says_how_many_classes_there_are(kind: str) -> None:
    model = deit_zoo.create("deit_tiny", img_size=32)
    assert names(model)[0] == "tench, Tinca tinca"
    model.head = HEADS[kind](192)
    assert (model.num_classes, names(model)) == (3, ["0", "1", "2"])
    model.labels = ["cat", "dog", "fox"]
    assert names(model) == ["cat", "dog", "fox"]


def test_two_heads_of_other_numbers_are_refused() -> None:
    model = deit_zoo.create("deit_pico_distilled_digits")
    model.head = nn.Linear(model.head.in_features, 3)
    with pytest.raises(ZooError) as caught:
        deit_zoo.classify(np.zeros((8, 8, 3), np.uint8), model)
    assert str(caught.value) == (
        "the model's two heads tell 3 and 10 classes apart; give both one number: "
        "model.reset_classifier(3)"
    )


@pytest.mark.parametrize(
    "labels",
    [{0: "a", 1: "b", 2: "c"}, {"a": 2, "b": 1, "c": 0}, {"a", "b", "c"}, ["a", "b"], "abc"],
)
def test_labels_that_are_not_a_list_of_a_name_for_each_class_are_refused(labels: Any) -> None:
    # A dict of names and numbers, as torchvision's class_to_idx, has an order of its own.
    model = tuned()
    with pytest.raises(CheckpointError, match="but the model has 3 classes; give a list of one"):
        model.labels = labels
    assert model.labels is None


def as_index(names: list[str]) -> Any:
    return pytest.importorskip("pandas").Index(names)


@pytest.mark.parametrize("kind", [np.array, deque, as_index], ids=["numpy", "deque", "pandas"])
def test_labels_may_be_any_array_or_sequence_of_names(kind: Any, tmp_path: Path) -> None:
    # scikit-learn's LabelEncoder().classes_ is an array.
    model, names = tuned(), ("cat", "dog", "fox")
    weights.save(model, tmp_path / "mine.safetensors", labels=kind([*names]))
    assert deit_zoo.create(checkpoint=tmp_path / "mine.safetensors").labels == names
    model.labels = kind([*names])
    assert model.labels == names


def test_a_fresh_head_knows_no_reading_of_the_one_before_it(tmp_path: Path) -> None:
    weights.save(tuned(), tmp_path / "mine.safetensors", labels=["cat", "dog", "fox"])
    model = deit_zoo.create(checkpoint=tmp_path / "mine.safetensors")
    assert model.reading == "upright"
    assert deit_zoo.create(checkpoint=tmp_path / "mine.safetensors", num_classes=5).reading is None
    model.reset_classifier(3)
    assert model.reading is None


def test_a_fresh_head_of_as_many_classes_has_not_the_old_names() -> None:
    model = deit_zoo.create("deit_tiny", device="meta")
    model.reset_classifier(1000)
    assert names(model)[:2] == ["0", "1"]


def test_without_a_head_there_are_no_classes() -> None:
    model = deit_zoo.create("deit_tiny", device="meta")
    model.head = nn.Identity()
    assert (model.num_classes, names(model)) == (0, [])


def test_a_teachers_head_is_counted_too() -> None:
    model = deit_zoo.create("regnety_160_deit", device="meta")
    assert names(model)[0] == "tench, Tinca tinca"
    model.head.fc = nn.Linear(3024, 3)
    assert names(model) == ["0", "1", "2"]


def test_a_number_of_classes_that_the_head_has_not_is_an_error() -> None:
    model = deit_zoo.create(NAME)
    model.num_classes = 10
    with pytest.raises(ZooError, match=r"num_classes is 3, but the head tells 10 classes apart"):
        model.num_classes = 3


def test_names_of_classes_survive_saving_and_loading_twice(tmp_path: Path) -> None:
    model = tuned()
    model.labels = ["cat", "dog", "öwl"]
    loaded = saved(saved(model, tmp_path), tmp_path)
    assert loaded.labels == ("cat", "dog", "öwl")


def test_a_fresh_head_for_the_digits_numbers_its_classes_after_saving_too(tmp_path: Path) -> None:
    model = tuned(num_classes=3)
    model.reset_classifier(10)
    assert saved(model, tmp_path).labels is None
    assert saved(tuned(num_classes=10), tmp_path).labels == tuple("0123456789")


def test_a_class_of_imagenet_keeps_its_name_in_a_model_of_some() -> None:
    model = deit_zoo.create("deit_tiny", device="meta", num_classes=2)
    model.labels = ["n02123045", "my cat"]
    assert names(model) == ["tabby, tabby cat", "my cat"]


# config.json beside the weights.


@pytest.mark.parametrize(
    ("config", "name", "labels"),
    [
        (
            {
                "model_type": "vit",
                "hidden_size": 192,
                "num_attention_heads": 3,
                "id2label": {"2": "fox", "1": "dog", "0": "cat"},
            },
            "deit_tiny",
            ["cat", "dog", "fox"],
        ),
        (
            {
                "model_type": "deit",
                "hidden_size": 384,
                "num_attention_heads": 6,
                "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
            },
            "deit_small_distilled",
            None,
        ),
        ({"model_type": "vit", "image_size": 384}, "deit_base_384", None),
        (
            {"architecture": "deit_tiny_patch16_224", "label_names": ["cat", "dog"]},
            "deit_tiny",
            ["cat", "dog"],
        ),
        (
            {"architecture": "deit_tiny_patch16_224", "model_args": {"depth": 4}},
            None,
            None,
        ),
        (  # what timm's save_for_hf writes of every model
            {
                "architecture": "deit_tiny_patch16_224",
                "model_args": {"num_classes": 2, "in_chans": 3, "global_pool": "token"},
            },
            "deit_tiny",
            None,
        ),
        (
            {"model_type": "vit", "layer_norm_eps": None}
            | {"hidden_size": 192, "num_attention_heads": 3},
            "deit_tiny",
            None,
        ),
        ({"model_type": "bert"}, None, None),
    ],
)
def test_a_configuration_says_which_model_and_classes(
    config: dict[str, Any], name: str | None, labels: list[str] | None, tmp_path: Path
) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(config))
    # Whoever has classes of their own has images of their own, which are seen upright.
    expected = {"name": name, "labels": labels, "reading": labels and "upright"}
    expected["input_size"] = config.get("image_size")
    assert weights.local(tmp_path).metadata == {k: v for k, v in expected.items() if v is not None}


TINY = {"model_type": "vit", "hidden_size": 192, "num_attention_heads": 3}
TIMM = {"architecture": "deit_tiny_patch16_224"}


@pytest.mark.parametrize(
    ("config", "stated"),
    [
        (TINY | {"num_attention_heads": 6}, "num_heads=6, but deit_tiny has 3"),
        (TIMM | {"model_args": {"num_heads": 6}}, "num_heads=6, but deit_tiny has 3"),
        (TINY | {"hidden_act": "relu"}, "activation='relu', but deit_tiny has 'gelu'"),
        (TIMM | {"global_pool": "avg"}, "pooling='avg', but deit_tiny has 'token'"),
        (TIMM | {"model_args": {"global_pool": "avg"}}, "pooling='avg', but deit_tiny has 'token'"),
        (TINY | {"layer_norm_eps": 1e-5}, "layer_norm_eps=1e-05, but deit_tiny has 1e-06"),
        (
            TINY | {"problem_type": "regression"},
            "problem_type='regression', but deit_tiny has 'single_label_classification'",
        ),
    ],
)
def test_weights_of_another_network_whose_tensors_fit_are_refused(
    config: dict[str, Any], stated: str, tmp_path: Path
) -> None:
    save_file(deit_zoo.create("deit_tiny", num_classes=2).state_dict(), tmp_path / MODEL_FILE)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"config.json states {stated}: the weights are ano"):
        deit_zoo.create("deit_tiny", checkpoint=tmp_path)


def test_a_configuration_says_that_each_class_has_a_sigmoid(tmp_path: Path) -> None:
    save_file(deit_zoo.create("deit_tiny", num_classes=2).state_dict(), tmp_path / MODEL_FILE)
    config = TINY | {"problem_type": "multi_label_classification", "hidden_act": "gelu"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-12}))
    model = deit_zoo.create(tmp_path)
    assert model.problem_type == "multi_label_classification"
    assert model.adapted == ("layer norms of eps 1e-06, not 1e-12",)


@pytest.mark.parametrize(
    ("config", "img_size"),
    [
        (TINY | {"image_size": [32, 128]}, (32, 128)),
        (TIMM | {"model_args": {"img_size": [32, 128]}}, (32, 128)),
        (TIMM | {"pretrained_cfg": {"input_size": [3, 32, 128]}}, (32, 128)),
        (TIMM | {"pretrained_cfg": {"input_size": [3, 224, 224]}}, (64, 64)),  # of former weights
    ],
)
def test_a_configuration_says_for_which_images_the_positions_are(
    config: dict[str, Any], img_size: tuple[int, int], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = deit_zoo.create("deit_tiny", img_size=img_size).state_dict()
    save_file(tensors, tmp_path / MODEL_FILE)
    model = deit_zoo.create(tmp_path)
    assert (model.img_size, model.adapted) == (img_size, ())


def test_what_the_weights_say_goes_before_a_configuration(tmp_path: Path) -> None:
    weights.save(tuned(), tmp_path / "model.safetensors", labels=["a", "b", "c"])
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "deit_tiny_patch16_224", "label_names": ["x", "y", "z"]})
    )
    model = deit_zoo.create(tmp_path)
    assert (model.spec.name, model.labels) == (NAME, ("a", "b", "c"))


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", '{"id2label": 3}', '{"id2label": {"a": "b"}}', '{"label_names": "ab"}'),
        *('{"id2label": {"0": "a", "100": "b"}}', '{"id2label": {"0": "a", "-1": "b"}}'),
        *('{"id2label": {"0": "a", "00": "b"}}', '{"label_names": {"1": "a", "2": "b"}}'),
    ],
)
def test_a_configuration_that_is_none_is_one_sentence(text: str, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "model.pth")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json is no configuration of timm's or"):
        deit_zoo.create(tmp_path)


def test_the_names_of_imagenet_are_its_folders(tmp_path: Path) -> None:
    tench = deit_zoo.create("deit_tiny", device="meta")
    by_number = {str(number): name for number, name in enumerate(names(tench))}
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    config = {"model_type": "vit", "hidden_size": 192, "num_attention_heads": 3}
    (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": by_number}))
    assert weights.local(tmp_path).metadata["labels"][0] == "n01440764"


def test_without_a_name_anywhere_the_sentence_shows_how_to_give_one(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        deit_zoo.create(tmp_path / "a.pth")
    assert str(caught.value) == (
        f"{tmp_path / 'a.pth'} does not say which model it is; in Python give create(NAME, "
        f"checkpoint='{tmp_path / 'a.pth'}'), and deit_zoo.save(model, 'FILE.safetensors') makes "
        "of that a file which every command takes"
    )
    with pytest.raises(ZooError, match=r"neither a name nor a checkpoint; give create\(NAME\)"):
        deit_zoo.create()


@pytest.mark.parametrize("word", ["runs/none", "./none", "none.safetensors"])
def test_a_word_that_looks_like_a_path_is_one_in_the_message(word: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^checkpoint '{word}' does not exist; give a"):
        deit_zoo.create(word)
