"""What PyTorch does to a model leaves its numbers alone: compile, export, copies, checkpointing."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import golden
from deit_zoo.errors import ZooError
from deit_zoo.models.model import ZooModel
from support.tables import each_row

transformers = pytest.mark.parametrize(
    "build", ["deit_tiny", "deit_tiny_distilled", "cait_xxs24_224"], indirect=True
)


@pytest.fixture
def compiler() -> Iterator[None]:
    """Forget what other tests compiled: recompilations of one function are counted."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def gradients(model: nn.Module, images: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Of a sum of squares over every logit, after the same random draws."""
    torch.manual_seed(seed)
    model.zero_grad()
    outputs = model(images)
    loss = sum(o.square().sum() for o in (outputs if isinstance(outputs, tuple) else (outputs,)))
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters()}


@pytest.mark.usefixtures("compiler")
def test_a_model_compiles_to_one_graph_with_the_same_logits(
    network: ZooModel, images: Tensor
) -> None:
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), network(images))


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_compiled_model_has_the_same_gradients(network: ZooModel, images: Tensor) -> None:
    compiled = torch.compile(network.train(), fullgraph=True, backend="aot_eager")
    found = gradients(compiled, images)
    expected = gradients(network, images)
    assert [name.removeprefix("_orig_mod.") for name in found] == list(expected)
    torch.testing.assert_close(list(found.values()), list(expected.values()))


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@transformers
def test_stochastic_depth_compiles_to_one_graph(
    build: Callable[..., ZooModel], images: Tensor
) -> None:
    model = build(drop_path_rate=0.5)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = gradients(compiled, images, seed=1)
    expected = gradients(model, images, seed=1)
    torch.testing.assert_close(list(found.values()), list(expected.values()))


def test_an_exported_model_takes_any_batch(network: ZooModel, images: Tensor) -> None:
    dynamic = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(network, (images,), dynamic_shapes=dynamic).module()
    batch = torch.from_numpy(golden.normals("small/any", (5, *images.shape[1:])))
    for size in (1, 2, 5):
        torch.testing.assert_close(exported(batch[:size]), network(batch[:size]))


@each_row("copied", [deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_gives_the_same_logits_and_knows_what_it_is(
    network: ZooModel, images: Tensor, copied: Callable[[ZooModel], ZooModel]
) -> None:
    copy = copied(network)
    assert torch.equal(copy(images), network(images))
    assert copy.spec == network.spec


def test_a_deep_copy_shares_no_weights(network: ZooModel) -> None:
    copy = deepcopy(network)
    with torch.no_grad():
        for value in copy.parameters():
            value.zero_()
    assert all(value.abs().max() > 0 for value in network.parameters())


def test_gradient_checkpointing_gives_the_same_gradients(
    build: Callable[..., ZooModel], images: Tensor
) -> None:
    model = build()
    expected = gradients(model, images)
    model.set_grad_checkpointing()
    torch.testing.assert_close(gradients(model, images), expected)


@transformers
def test_gradient_checkpointing_drops_the_same_branches_again(
    build: Callable[..., ZooModel], images: Tensor
) -> None:
    model = build(drop_path_rate=0.5)
    expected = gradients(model, images, seed=1)
    model.set_grad_checkpointing()
    torch.testing.assert_close(gradients(model, images, seed=1), expected)


def runs_of_each_block(model: ZooModel, images: Tensor) -> set[int]:
    """How often each block ran in a forward and a backward pass."""
    blocks = [*model.blocks, *getattr(model, "blocks_token_only", ())]
    counts = dict.fromkeys(blocks, 0)

    def count(block: nn.Module, *_: object) -> None:
        counts[block] += 1

    for block in blocks:
        block.register_forward_pre_hook(count)
    gradients(model, images)
    return set(counts.values())


def test_gradient_checkpointing_runs_every_block_again(
    build: Callable[..., ZooModel], images: Tensor
) -> None:
    model = build()
    model.set_grad_checkpointing()
    assert runs_of_each_block(model, images) == {2}


def test_gradient_checkpointing_can_be_switched_off(
    build: Callable[..., ZooModel], images: Tensor
) -> None:
    model = build()
    model.set_grad_checkpointing()
    model.set_grad_checkpointing(enable=False)
    assert runs_of_each_block(model, images) == {1}


def test_gradient_checkpointing_leaves_eval_mode_alone(network: ZooModel, images: Tensor) -> None:
    network.set_grad_checkpointing()
    assert runs_of_each_block(network, images) == {1}


@pytest.mark.filterwarnings(
    "ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning"
)
def test_a_script_answers_as_the_model_for_any_batch_also_saved(
    network: ZooModel, images: Tensor, tmp_path: Path
) -> None:
    network.spec = None  # of a class that was called by itself, so nothing says its transform
    assert not hasattr(network, "pretrained_cfg")
    torch.jit.script(network).save(str(tmp_path / "model.pt"))
    script = torch.jit.load(tmp_path / "model.pt")
    batch = torch.from_numpy(golden.normals("small/any", (3, *images.shape[1:])))
    with torch.no_grad():
        for size in (1, 3):
            torch.testing.assert_close(script(batch[:size]), network(batch[:size]))
    with pytest.raises(ZooError, match=r"call model\.eval\(\) first"):
        torch.jit.script(network.train())
