"""Weights: digest checked, strict, mapped where that is safe, and saved whole or not at all."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import deit_zoo
import golden
from deit_zoo.errors import (
    CheckpointError,
    ImageSizeError,
    IntegrityError,
    OfflineError,
    ZooError,
)
from deit_zoo.files import ASSETS
from deit_zoo.manifest import read_manifest
from deit_zoo.weights import load
from support.command import ROOT, run_python
from support.machine import NAME

Change = Callable[[dict[str, Tensor]], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model.safetensors`: DeiT-Ti as saved by this package."""
    path = tmp_path_factory.mktemp("deit_tiny")
    load.save_model(deit_zoo.create("deit_tiny"), path / "model.safetensors")
    return path


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    return folder / "model.safetensors"


@pytest.fixture
def changed(file: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """Writes the file again, without metadata, after a change of its tensors."""

    def written(change: Change) -> Path:
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, tmp_path / "changed.safetensors")
        return tmp_path / "changed.safetensors"

    return written


def blank(name: str) -> dict[str, Tensor]:
    """The tensors of a model without the time that random ones take."""
    state = deit_zoo.create(name, device="meta").state_dict()
    return {key: torch.zeros(value.shape) for key, value in state.items()}


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A process of its own that runs `code`."""
    return run_python(["-c", code, *map(str, arguments)], cwd=ROOT)


def run_anew(
    code: str, *arguments: object, seed: str = "random"
) -> subprocess.CompletedProcess[str]:
    """A new Python that runs `code`; `seed` orders its sets."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_file_gives_back_every_tensor(file: Path) -> None:
    loaded = deit_zoo.create("deit_tiny", checkpoint=file).state_dict()
    saved = load_file(file)
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[key], saved[key]) for key in saved)


def test_a_folder_stands_for_its_model_file(folder: Path, file: Path) -> None:
    model = deit_zoo.create("deit_tiny", checkpoint=str(folder))
    assert model.checkpoint.path == file


def test_a_loaded_model_is_in_eval_mode(file: Path) -> None:
    model = deit_zoo.create("deit_tiny", checkpoint=file)
    assert not any(module.training for module in model.modules())


def test_a_random_model_is_in_train_mode() -> None:
    assert deit_zoo.create("deit_tiny", device="meta").training


def test_loaded_parameters_can_be_trained(file: Path) -> None:
    model = deit_zoo.create("deit_tiny", checkpoint=file)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.is_leaf for parameter in model.parameters())


def test_a_loaded_model_knows_what_it_is(file: Path) -> None:
    assert deit_zoo.create("DeiT-Ti", checkpoint=file).spec.name == "deit_tiny"


def test_every_parameter_lies_in_one_image_of_a_file_that_is_written_once() -> None:
    # The header of a safetensors file says at which byte a tensor begins. Where all parameters
    # stand at these distances from each other, the file was mapped and nothing was copied.
    content = (ASSETS / f"{NAME}.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    model = deit_zoo.create(NAME, pretrained=True)
    origins = {
        tensor.data_ptr() - header[key]["data_offsets"][0]
        for key, tensor in model.state_dict().items()
    }
    assert len(origins) == 1


def test_loading_what_is_written_once_takes_far_less_memory_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(blank("deit_small"), path)
    result = run_anew(
        "import resource, sys, pathlib, deit_zoo.models.deit\n"
        "from deit_zoo.weights.load import load_checkpoint, spec_for\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "spec, file, before = spec_for('deit_small'), pathlib.Path(sys.argv[1]), peak()\n"
        "load_checkpoint(spec, file, {}, proof='pinned')\n"
        "print((peak() - before) * (1 if sys.platform == 'darwin' else 1024))",
        path,
    )
    grown = int(result.stdout)
    assert grown < 0.25 * 88_216_496  # the tensors of DeiT-S, in bytes


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_is_written_over_a_file_leaves_the_model_that_was_loaded_from_it(
    suffix: str, tmp_path: Path
) -> None:
    # As a script does that saves each epoch, while another process looks at the last.
    file, other = tmp_path / f"last{suffix}", tmp_path / f"next{suffix}"
    state = blank(NAME)
    for path, number in ((file, 1.0), (other, 2.0)):
        filled = {key: value + number for key, value in state.items()}
        save_file(filled, path) if suffix == ".safetensors" else torch.save(filled, path)
    model = deit_zoo.create(NAME, checkpoint=file)
    file.write_bytes(other.read_bytes())
    assert all((value == 1.0).all() for value in model.state_dict().values())


def test_loading_draws_no_random_numbers(file: Path) -> None:
    before = torch.get_rng_state()
    deit_zoo.create("deit_tiny", checkpoint=file)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_a_loaded_model_leaves_the_file_alone(file: Path) -> None:
    before = digest(file)
    model = deit_zoo.create("deit_tiny", checkpoint=file)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    del model
    assert digest(file) == before


def test_two_models_of_one_file_do_not_share_what_they_learn(file: Path) -> None:
    first = deit_zoo.create("deit_tiny", checkpoint=file)
    second = deit_zoo.create("deit_tiny", checkpoint=file)
    with torch.no_grad():
        first.norm.weight.fill_(7.0)
    assert second.norm.weight.tolist() == 192 * [1.0]


def test_a_missing_tensor_is_named(changed: Callable[[Change], Path]) -> None:
    path = changed(lambda tensors: [tensors.pop("norm.bias"), tensors.pop("cls_token")])
    with pytest.raises(CheckpointError) as caught:
        deit_zoo.create("deit_tiny", checkpoint=path)
    assert str(caught.value) == (
        f"{path} does not fit deit_tiny: missing cls_token, missing norm.bias; give the model and "
        "the img_size that it was saved of"
    )


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("extra", "give the model"),
        ("fc_norm.bias", "its head reads the mean"),
        ("blocks.0.attn.qkv.lora_A.weight", "it holds an adapter of PEFT's: save what"),
    ],
)
def test_an_unexpected_tensor_is_named_with_what_it_means(
    key: str, advice: str, changed: Callable[[Change], Path]
) -> None:
    path = changed(lambda tensors: tensors.update({key: torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=f"deit_tiny: unexpected {key}; {advice}"):
        deit_zoo.create("deit_tiny", checkpoint=path)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(
    changed: Callable[[Change], Path],
) -> None:
    path = changed(lambda tensors: tensors.update({"norm.bias": torch.zeros(193)}))
    with pytest.raises(CheckpointError, match=r"deit_tiny: norm\.bias is \(193,\), not \(192,\);"):
        deit_zoo.create("deit_tiny", checkpoint=path)


def test_whole_numbers_are_no_weights(changed: Callable[[Change], Path]) -> None:
    path = changed(lambda tensors: tensors.update({"norm.bias": torch.zeros(192).long()}))
    with pytest.raises(CheckpointError, match=r"deit_tiny: norm\.bias holds torch\.int64;"):
        deit_zoo.create("deit_tiny", checkpoint=path)


@pytest.mark.parametrize("key", ["head.weight", "pos_embed"])
def test_a_tensor_that_tells_a_size_may_not_be_a_single_number(
    key: str, changed: Callable[[Change], Path]
) -> None:
    path = changed(lambda tensors: tensors.update({key: torch.tensor(1.0)}))
    with pytest.raises(CheckpointError, match=rf"deit_tiny: {re.escape(key)} is \(\), not"):
        deit_zoo.create("deit_tiny", checkpoint=path, img_size=160)


def test_another_models_file_lists_eight_keys_and_counts_the_rest(file: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        deit_zoo.create("deit_small", checkpoint=file)
    # DeiT has 152 tensors, of which only the head's bias has the same shape in both sizes.
    assert str(caught.value).count("is (") == 8
    assert " and 143 more; give the model" in str(caught.value)


def test_a_distilled_model_does_not_take_a_file_without_its_token(file: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"missing dist_token, missing head_dist\.bias, missing head_dist\.w"
    ):
        deit_zoo.create("deit_tiny_distilled", checkpoint=file)


@pytest.mark.parametrize("metadata", [None, {"deit_zoo": '{"img_size": [224, 224]}'}])
def test_a_plain_model_does_not_take_a_distilled_file(
    metadata: dict[str, str] | None, tmp_path: Path
) -> None:
    save_file(blank("deit_tiny_distilled"), tmp_path / "distilled.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=r"unexpected dist_token, unexpected head_dist\.bias"):
        deit_zoo.create("deit_tiny", checkpoint=tmp_path / "distilled.safetensors")


def test_a_model_without_positions_does_not_take_a_file_with_them(file: Path) -> None:
    with pytest.raises(CheckpointError, match="does not fit convnet_pico_digits: missing"):
        deit_zoo.create("convnet_pico_digits", checkpoint=file, img_size=32)


@pytest.mark.parametrize("size", [0, 7, 100, 100_000])
def test_a_truncated_file_is_named(size: int, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(file.read_bytes()[:size])
    with pytest.raises(
        CheckpointError,
        match=rf"^{re.escape(str(path))} is not a whole safetensors file \(.*\); fetch or export",
    ):
        deit_zoo.create("deit_tiny", checkpoint=path)


def test_a_text_is_no_safetensors_file(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_text("once upon a time there was a model")
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        deit_zoo.create("deit_tiny", checkpoint=tmp_path / "a.safetensors")


def test_a_path_without_a_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        deit_zoo.create("deit_tiny", checkpoint=tmp_path / "none.safetensors")
    assert str(caught.value) == (
        f"checkpoint '{tmp_path / 'none.safetensors'}' does not exist; give a .safetensors or "
        ".pth file, a folder that holds model.safetensors, or hf://ORG/REPO"
    )


def test_an_address_of_the_web_is_told_from_a_file_that_is_not_there() -> None:
    with pytest.raises(CheckpointError) as caught:
        deit_zoo.create("deit_tiny", checkpoint="https://me:SECRET@example.org/deit_tiny.pth")
    assert str(caught.value) == (
        "checkpoint 'https://***@example.org/deit_tiny.pth' is an address, and none are taken but "
        "hf://ORG/REPO; fetch the file, by curl -LO ADDRESS, and give it"
    )


def test_a_folder_without_a_model_file_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=f"^{tmp_path} is a folder without weights; give one "
    ):
        deit_zoo.create("deit_tiny", checkpoint=tmp_path)


def test_a_checkpoint_on_the_hub_must_be_cached_offline() -> None:
    with pytest.raises(OfflineError) as caught:
        deit_zoo.create("deit_tiny", checkpoint="hf://timm/deit_tiny_patch16_224.fb_in1k")
    folder = f"{os.environ['HF_HOME']}/hub/models--timm--deit_tiny_patch16_224.fb_in1k"
    assert str(caught.value) == (
        "hf://timm/deit_tiny_patch16_224.fb_in1k is not on this machine and HF_HUB_OFFLINE is "
        f"set; looked at {folder}; fetch it where there is a network"
    )


@pytest.mark.parametrize("text", ["hf://", "hf://timm", "hf://a/b@", "hf:///a"])
def test_an_address_that_is_none_shows_how_one_looks(text: str) -> None:
    with pytest.raises(CheckpointError, match="is no Hub address; write hf://ORG/REPO, hf://ORG/R"):
        deit_zoo.create("deit_tiny", checkpoint=text)


def test_a_pretrained_model_that_is_not_cached_names_every_path_and_the_cure_offline() -> None:
    with pytest.raises(OfflineError) as caught:
        deit_zoo.create("deit_ti", pretrained=True)
    hub, zoo = f"{os.environ['HF_HOME']}/hub", os.environ["DEIT_ZOO_CACHE"]
    assert str(caught.value) == (
        "the weights of deit_tiny are not on this machine and HF_HUB_OFFLINE is set; looked at "
        f"{hub}/models--timm--deit_tiny_patch16_224.fb_in1k, {zoo}/converted; where there is a "
        "network type `deit-zoo weights fetch deit_tiny --to DIR`, bring DIR here and set "
        "DEIT_ZOO_WEIGHTS=DIR"
    )


def test_every_embedded_checkpoint_loads_and_says_where_it_came_from() -> None:
    embedded = [name for name, held in read_manifest().items() if held.sources[0].kind == "builtin"]
    loaded = [deit_zoo.create(name, pretrained=True) for name in embedded]
    assert [model.checkpoint.name for model in loaded] == embedded


def test_a_checkpoint_argument_wins_over_the_manifest(file: Path) -> None:
    model = deit_zoo.create("deit_tiny", pretrained=True, checkpoint=file)
    assert model.checkpoint.path == file


def test_a_receipt_with_the_files_digest_is_proof(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(file.read_bytes())
    (tmp_path / "receipt.json").write_text(
        json.dumps({"sha256": {"model.safetensors": digest(path)}})
    )
    assert deit_zoo.create("deit_tiny", checkpoint=path).checkpoint.sha256 == digest(path)


def test_a_receipt_with_another_digest_is_an_error_with_both(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(file.read_bytes())
    (tmp_path / "receipt.json").write_text(json.dumps({"sha256": {"model.safetensors": 64 * "0"}}))
    with pytest.raises(IntegrityError) as caught:
        deit_zoo.create("deit_tiny", checkpoint=tmp_path)
    assert str(caught.value) == (
        f"{path} has SHA-256 {digest(path)}, but {64 * '0'} is expected; remove it and get it again"
    )


@pytest.mark.parametrize("receipt", ["", "[]", "{}", '{"sha256": {"other.safetensors": "00"}}'])
def test_a_receipt_that_states_no_digest_is_no_proof(
    receipt: str, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes(file.read_bytes())
    (tmp_path / "receipt.json").write_text(receipt)
    with pytest.raises(CheckpointError, match=r"remove that file to load weights without proof"):
        deit_zoo.create("deit_tiny", checkpoint=tmp_path)


def test_a_file_without_a_receipt_claims_no_proof(file: Path) -> None:
    assert deit_zoo.create("deit_tiny", checkpoint=file).checkpoint.sha256 is None


def test_save_returns_the_files_digest(file: Path, tmp_path: Path) -> None:
    model = deit_zoo.create("deit_tiny", checkpoint=file)
    assert load.save_model(model, tmp_path / "a.safetensors") == digest(tmp_path / "a.safetensors")


def test_the_same_model_is_saved_as_the_same_bytes(file: Path, tmp_path: Path) -> None:
    model = deit_zoo.create("deit_tiny", checkpoint=file)
    first = load.save_model(model, tmp_path / "a.safetensors", epoch=7, accuracy=71.5)
    second = load.save_model(model, tmp_path / "b.safetensors", accuracy=71.5, epoch=7)
    assert first == second


def test_another_process_saves_the_same_bytes(file: Path, tmp_path: Path) -> None:
    # This process has another order of sets.
    result = run_anew(
        "import sys, deit_zoo; from pathlib import Path; from deit_zoo.weights import load\n"
        "model = deit_zoo.create('deit_tiny', checkpoint=sys.argv[1])\n"
        "load.save_model(model, Path(sys.argv[2]))",
        file,
        tmp_path / "again.safetensors",
        seed="1",
    )
    assert (result.stderr, digest(tmp_path / "again.safetensors")) == ("", digest(file))


def test_a_saved_file_says_what_it_is(file: Path, tmp_path: Path) -> None:
    model = deit_zoo.create("deit_tiny", checkpoint=file, img_size=(32, 64), num_classes=3)
    load.save_model(model, tmp_path / "a.safetensors", top1=71.5)
    assert load.open_local(tmp_path / "a.safetensors").metadata == {
        "name": "deit_tiny",
        "img_size": [32, 64],
        "top1": 71.5,
    }


def test_metadata_that_is_no_object_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"deit_zoo": "5"})
    with pytest.raises(
        CheckpointError, match=r"safetensors file \(its metadata is not as it should be"
    ):
        load.open_local(tmp_path / "a.safetensors")


# A full disk cannot be had in a test, a file that may not grow can: writing past the limit raises,
# or, where the signal is not ignored, kills. Either comes in the middle of the bytes.
INTERRUPTED_SAVE = """
import resource, signal, sys
from pathlib import Path
import deit_zoo
from deit_zoo.weights import load

model = deit_zoo.create("deit_tiny", checkpoint=sys.argv[3])
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
if sys.argv[2] == "killed":
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
load.save_model(model, Path(sys.argv[1]))
"""


def test_a_save_that_is_killed_leaves_the_old_file(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"the old file")
    result = run(INTERRUPTED_SAVE, path, "killed", file)
    assert result.returncode == -signal.SIGXFSZ
    assert path.read_bytes() == b"the old file"


def test_a_save_that_fails_leaves_the_old_file_and_no_other(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"the old file")
    result = run(INTERRUPTED_SAVE, path, "fails", file)
    assert "OSError: [Errno 27] File too large" in result.stderr
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [
        ("model.safetensors", b"the old file")
    ]


def test_a_half_precision_file_gives_a_float32_model(changed: Callable[[Change], Path]) -> None:
    third = torch.full((192,), 1 / 3)
    path = changed(
        lambda tensors: tensors.update(
            {key: value.half() for key, value in tensors.items()} | {"norm.bias": third.half()}
        )
    )
    model = deit_zoo.create("deit_tiny", checkpoint=path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.norm.bias[0].item() == 0.333251953125  # 1/3 rounded to 11 bits


def test_a_file_in_double_precision_keeps_it_where_it_is_asked_for(tmp_path: Path) -> None:
    model = deit_zoo.create(NAME, dtype=torch.float64)
    torch.nn.init.constant_(model.norm.bias, 1 / 3)
    load.save_model(model, tmp_path / "a.safetensors")
    loaded = deit_zoo.create(tmp_path / "a.safetensors", dtype=torch.float64)
    assert loaded.norm.bias[0].item() == 1 / 3


def test_dtype_is_that_of_every_parameter(file: Path) -> None:
    model = deit_zoo.create("deit_tiny", checkpoint=file, dtype=torch.bfloat16, num_classes=7)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_device_is_that_of_every_parameter(file: Path) -> None:
    model = deit_zoo.create("deit_tiny", checkpoint=file, device="meta", num_classes=7)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_a_model_is_made_on_torchs_default_device_and_adapted_whatever_that_is(file: Path) -> None:
    other = {"patch_size": 32, "device": "cpu"}
    expected = deit_zoo.create("deit_tiny", checkpoint=file, **other)
    with torch.device("meta"):
        made = deit_zoo.create("deit_tiny", checkpoint=file), deit_zoo.create("deit_tiny")
        adapted = deit_zoo.create("deit_tiny", checkpoint=file, **other)
    assert {value.device.type for model in made for value in model.parameters()} == {"meta"}
    assert torch.equal(adapted.patch_embed.proj.weight, expected.patch_embed.proj.weight)


def test_a_random_model_takes_dtype_and_device() -> None:
    model = deit_zoo.create("deit_tiny", device="meta", dtype=torch.float64)
    assert (model.norm.weight.device.type, model.norm.weight.dtype) == ("meta", torch.float64)


def test_the_same_number_of_classes_keeps_the_head(file: Path) -> None:
    model = deit_zoo.create("deit_tiny", checkpoint=file, num_classes=1000)
    assert torch.equal(model.head.weight, load_file(file)["head.weight"])


def test_another_number_of_classes_gives_a_fresh_head(file: Path) -> None:
    model = deit_zoo.create("deit_tiny", checkpoint=file, num_classes=37)
    assert model.head.weight.shape == (37, 192)
    # Upstream's start: std 0.02, bias 0.
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.head.bias.tolist() == 37 * [0.0]


def test_another_number_of_classes_keeps_everything_else(file: Path) -> None:
    loaded = deit_zoo.create("deit_tiny", checkpoint=file, num_classes=37).state_dict()
    saved = load_file(file)
    assert [key for key in saved if not torch.equal(loaded[key], saved[key])] == [
        "head.bias",
        "head.weight",
    ]


def test_no_classes_give_features(file: Path) -> None:
    model = deit_zoo.create("deit_tiny", checkpoint=file, num_classes=0)
    assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 192)


def test_a_file_of_another_number_of_classes_keeps_its_own(file: Path, tmp_path: Path) -> None:
    model = deit_zoo.create("deit_tiny", checkpoint=file, num_classes=37)
    load.save_model(model, tmp_path / "model.safetensors")
    assert deit_zoo.create("deit_tiny", checkpoint=tmp_path).num_classes == 37


def test_a_file_without_a_head_needs_num_classes(file: Path, tmp_path: Path) -> None:
    model = deit_zoo.create("deit_tiny", checkpoint=file, num_classes=0)
    load.save_model(model, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing head\.bias, missing head\.weight"):
        deit_zoo.create("deit_tiny", checkpoint=tmp_path)


@pytest.mark.parametrize("num_classes", [0, 37])
def test_a_file_without_a_head_gives_features_or_a_fresh_head(
    num_classes: int, file: Path, tmp_path: Path
) -> None:
    headless = deit_zoo.create("deit_tiny", checkpoint=file, num_classes=0)
    load.save_model(headless, tmp_path / "model.safetensors")
    model = deit_zoo.create("deit_tiny", checkpoint=tmp_path, num_classes=num_classes)
    assert model.num_classes == num_classes


def test_a_negative_number_of_classes_is_refused(file: Path) -> None:
    with pytest.raises(ZooError, match=r"^num_classes is -1; give the number of classes, or 0"):
        deit_zoo.create("deit_tiny", checkpoint=file, num_classes=-1)


def test_both_heads_of_a_distilled_model_are_fresh(tmp_path: Path) -> None:
    save_file(blank("deit_tiny_distilled"), tmp_path / "model.safetensors")
    loaded = deit_zoo.create("deit_tiny_distilled", checkpoint=tmp_path, num_classes=37)
    assert [head.weight.shape for head in loaded.get_classifier()] == [(37, 192), (37, 192)]


def test_cait_loads_and_resamples_without_a_prefix(tmp_path: Path) -> None:
    table = torch.randn(1, 196, 192)
    save_file(blank("cait_xxs24_224") | {"pos_embed": table}, tmp_path / "model.safetensors")
    loaded = deit_zoo.create("cait_xxs24_224", checkpoint=tmp_path, img_size=160)
    assert torch.equal(loaded.pos_embed, resampled(table, (14, 14), (10, 10)))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_deit_iii_loads_as_upstream_or_timm_wrote_it(suffix: str, tmp_path: Path) -> None:
    # Upstream's file says gamma_1 under "model", timm's says ls1.gamma.
    state = golden.filled(deit_zoo.create("deit3_small", device="meta")).state_dict()
    file = tmp_path / f"theirs.{suffix}"
    if suffix == "pth":
        torch.save({"model": state}, file)
    else:
        names = {key: re.sub(r"gamma_(\d)", r"ls\1.gamma", key) for key in state}
        save_file({names[key]: value for key, value in state.items()}, file)
    loaded = deit_zoo.create("deit3_small", checkpoint=file).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


def test_positions_of_a_deit_iii_are_of_patches_alone(tmp_path: Path) -> None:
    table = torch.randn(1, 196, 384)
    save_file(blank("deit3_small") | {"pos_embed": table}, tmp_path / "model.safetensors")
    loaded = deit_zoo.create("deit3_small", checkpoint=tmp_path, img_size=384)
    assert torch.equal(loaded.pos_embed, resampled(table, (14, 14), (24, 24)))


def resampled(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    # Upstream's main.py: bicubic, align_corners=False.
    image = table.detach().reshape(1, *grid, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=new_grid, mode="bicubic", align_corners=False)
    return image.permute(0, 2, 3, 1).flatten(1, 2)


def test_another_image_size_resamples_the_positions(file: Path) -> None:
    table = load_file(file)["pos_embed"]
    model = deit_zoo.create("deit_tiny", checkpoint=file, img_size=(192, 256))
    assert torch.equal(model.pos_embed[:, :1], table[:, :1])
    assert torch.equal(model.pos_embed[:, 1:], resampled(table[:, 1:], (14, 14), (12, 16)))


def test_another_image_size_keeps_everything_else(file: Path) -> None:
    loaded = deit_zoo.create("deit_tiny", checkpoint=file, img_size=160).state_dict()
    saved = load_file(file)
    same = [
        key
        for key in saved
        if loaded[key].shape == saved[key].shape and torch.equal(loaded[key], saved[key])
    ]
    assert set(saved) - set(same) == {"pos_embed"}


@pytest.mark.parametrize("size", [(32, 64), (16, 64)], ids=["8 patches", "4 patches, a square"])
def test_a_rectangular_file_knows_its_size(
    size: tuple[int, int], file: Path, tmp_path: Path
) -> None:
    model = deit_zoo.create("deit_tiny", checkpoint=file, img_size=size)
    load.save_model(model, tmp_path / "model.safetensors")
    loaded = deit_zoo.create("deit_tiny", checkpoint=tmp_path)
    assert loaded.img_size == size
    assert torch.equal(loaded.pos_embed, model.pos_embed)


def test_a_rectangular_file_is_resampled_from_its_own_grid(file: Path, tmp_path: Path) -> None:
    model = deit_zoo.create("deit_tiny", checkpoint=file, img_size=(32, 64))
    load.save_model(model, tmp_path / "model.safetensors")
    loaded = deit_zoo.create("deit_tiny", checkpoint=tmp_path, img_size=(64, 32))
    expected = resampled(model.pos_embed[:, 1:], (2, 4), (4, 2))
    assert torch.equal(loaded.pos_embed[:, 1:], expected)


def test_a_square_file_of_another_size_knows_it_without_metadata(
    file: Path, tmp_path: Path
) -> None:
    model = deit_zoo.create("deit_tiny", checkpoint=file, img_size=96)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert deit_zoo.create("deit_tiny", checkpoint=tmp_path).img_size == (96, 96)


def test_a_rectangular_file_that_does_not_say_so_does_not_fit(file: Path, tmp_path: Path) -> None:
    model = deit_zoo.create("deit_tiny", checkpoint=file, img_size=(32, 64))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        deit_zoo.create("deit_tiny", checkpoint=tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'model.safetensors'} does not fit deit_tiny: pos_embed is (1, 9, 192), not "
        "(1, 197, 192); give the model and the img_size that it was saved of"
    )


def test_a_rectangular_file_that_does_not_say_so_fits_the_size_it_was_saved_of(
    file: Path,
    tmp_path: Path,
) -> None:
    model = deit_zoo.create("deit_tiny", checkpoint=file, img_size=(32, 64))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = deit_zoo.create("deit_tiny", checkpoint=tmp_path, img_size=(32, 64))
    assert torch.equal(loaded.pos_embed, model.pos_embed)


def test_positions_of_a_square_number_are_those_of_the_size_asked_for(tmp_path: Path) -> None:
    model = deit_zoo.create(NAME, img_size=(8, 32))  # 2x8 patches, as many as 4x4
    torch.save({"model": model.state_dict()}, tmp_path / "last.pth")
    with pytest.warns(UserWarning, match="of 8x32 pixels, as img_size says, not of 16x16; "):
        loaded = deit_zoo.create(NAME, checkpoint=tmp_path / "last.pth", img_size=(8, 32))
    assert torch.equal(loaded.pos_embed, model.pos_embed)
    assert loaded.adapted == ()
    # Published weights are of the published size, whatever is asked for.
    published = deit_zoo.create(NAME, pretrained=True, img_size=(8, 32))
    assert published.adapted == ("pos_embed from 4x4 to 2x8 patches, bicubic",)


@pytest.mark.parametrize("img_size", [None, 160])
def test_a_file_that_misstates_its_size_does_not_fit(
    img_size: int | None, file: Path, tmp_path: Path
) -> None:
    save_file(
        load_file(file),
        tmp_path / "model.safetensors",
        metadata={"deit_zoo": '{"img_size": [64, 64]}'},
    )
    with pytest.raises(CheckpointError, match=r"deit_tiny: pos_embed is \(1, 197, 192\), not"):
        deit_zoo.create("deit_tiny", checkpoint=tmp_path, img_size=img_size)


def test_an_image_size_that_patches_do_not_tile_is_refused(file: Path) -> None:
    with pytest.raises(
        ImageSizeError,
        match=r"the nearest size that can is img_size=\(224, 208\), typed as 224x208$",
    ):
        deit_zoo.create("deit_tiny", checkpoint=file, img_size=(225, 211))
