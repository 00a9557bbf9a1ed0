"""Accuracy over shards: each image exactly once, and sums that are those of the whole."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

import deit_zoo
from deit_zoo.data.digits import digits
from deit_zoo.data.folder import FolderSet
from deit_zoo.data.survey import most_unreadable
from deit_zoo.distributed import DistributedContext
from deit_zoo.errors import DataError, ZooError
from deit_zoo.evaluation.accuracy import EvalDataset, accumulate, eval_mode, evaluation_of
from deit_zoo.models.model import ZooModel
from deit_zoo.results import Evaluation
from deit_zoo.training.trainer import measure
from support.accuracy import accuracy
from support.tables import each_row

NUM_IMAGES = 61  # a prime: no shard and no batch fits


def test_each_part_of_a_model_is_afterwards_in_the_mode_that_it_was_in() -> None:
    model = deit_zoo.create("deit_pico_digits")
    model.blocks[0].eval()  # as a frozen part is
    before = [module.training for module in model.modules()]
    deit_zoo.classify(torch.zeros(3, 8, 8), model)
    assert [module.training for module in model.modules()] == before


def test_a_model_is_in_eval_mode_until_the_last_thread_has_its_answer() -> None:
    model = deit_zoo.create("deit_pico_distilled_digits")
    with ExitStack() as one, ExitStack() as other:
        one.enter_context(eval_mode(model))
        other.enter_context(eval_mode(model))
        one.close()
        assert not model.training
    assert model.training


class Counted:
    """The transform of a model, which counts what it is shown."""

    def __init__(self, transform: Callable[[Image.Image], Tensor]) -> None:
        self.transform = transform
        self.shown: list[bytes] = []

    def __call__(self, image: Image.Image) -> Tensor:
        self.shown.append(image.tobytes())
        return self.transform(image)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last digits, of every class, all different."""
    path = tmp_path_factory.mktemp("digits")
    for number, (image, label) in enumerate(list(digits())[-NUM_IMAGES:]):
        (path / label).mkdir(exist_ok=True)
        image.save(path / label / f"{number:03d}.png")
    return path


@pytest.fixture(scope="module")
def model() -> ZooModel:
    """A model that is right and wrong."""
    return deit_zoo.create("deit_pico_digits", pretrained=True)


@pytest.fixture(scope="module")
def whole(model: ZooModel, folder: Path) -> Evaluation:
    """The figures, image by image, without `accuracy`."""
    images = FolderSet(folder)
    prepare = deit_zoo.transform(model)
    right = five = loss = 0.0
    for index in range(len(images)):
        with torch.inference_mode():
            logits = model(prepare(images.open(index))[None])[0].double()
        label = images.label_of(index)
        place = int((logits > logits[label]).sum())
        right, five = right + (place < 1), five + (place < 5)
        loss += float(logits.logsumexp(0) - logits[label])
    count = len(images)
    return Evaluation(100 * right / count, 100 * five / count, loss / count, count)


@each_row("batch_size", [1, 7, 64])
@each_row("size", [1, 2, 3, NUM_IMAGES + 1])
def test_the_sums_of_shards_are_those_of_the_whole(
    model: ZooModel, folder: Path, whole: Evaluation, size: int, batch_size: int
) -> None:
    counted = Counted(deit_zoo.transform(model))
    images = EvalDataset(FolderSet(folder), counted)
    shards = [
        accumulate(model, images, batch_size=batch_size, workers=0, shard=(rank, size))
        for rank in range(size)
    ]
    found = evaluation_of(np.sum(shards, axis=0), images)
    assert (found.top1, found.top5, found.num_images) == (whole.top1, whole.top5, NUM_IMAGES)
    assert found.loss == pytest.approx(whole.loss, rel=1e-5)
    # Every image, and none twice.
    assert len(counted.shown) == NUM_IMAGES
    assert len(set(counted.shown)) == len({image.tobytes() for image, _ in list(digits())[-61:]})


def test_no_tensor_is_float64_for_apples_gpus_have_none(model: ZooModel, folder: Path) -> None:
    class NoDouble(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            many = out if isinstance(out, tuple | list) else [out]
            assert not any(isinstance(one, Tensor) and one.dtype == torch.float64 for one in many)
            return out

    with NoDouble():
        found = deit_zoo.evaluate(model, folder)
    assert found == deit_zoo.evaluate(model, folder)


def test_images_that_were_not_counted_are_no_accuracy(model: ZooModel, folder: Path) -> None:
    images = EvalDataset(FolderSet(folder), deit_zoo.transform(model))
    with pytest.raises(AssertionError, match=r"^\d\d of 61 images were counted$"):
        accuracy(model, images, batch_size=7, workers=0, shard=(0, 2))


def test_a_broken_image_is_one_sentence_also_from_a_worker(
    model: ZooModel, folder: Path, tmp_path: Path
) -> None:
    for number in range(10):
        (tmp_path / str(number)).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / str(number) / "a.png")
    bad = tmp_path / "3" / "b.png"
    bad.write_bytes(b"no image")
    images = EvalDataset(FolderSet(tmp_path), deit_zoo.transform(model))
    with pytest.raises(DataError) as caught:
        accuracy(model, images, batch_size=4, workers=1)
    assert str(caught.value).startswith(f"{bad} cannot be read as an image (")
    assert "\n" not in str(caught.value)


class Deadly:
    """A transform in whose worker the memory killer comes; the first so many times."""

    def __init__(self, transform: Callable[[Image.Image], Tensor], notes: Path, times: int) -> None:
        self.transform, self.notes, self.times = transform, notes, times

    def __call__(self, image: Image.Image) -> Tensor:
        if len(list(self.notes.iterdir())) < self.times:
            (self.notes / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.transform(image)


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where deaths are noted; torch looks every fifth of a second for them, not every five."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


def test_a_worker_that_is_killed_is_one_sentence(
    model: ZooModel, folder: Path, notes: Path
) -> None:
    images = EvalDataset(FolderSet(folder), Deadly(deit_zoo.transform(model), notes, 1))
    with pytest.raises(ZooError) as caught:
        accuracy(model, images, batch_size=8, workers=1)
    assert str(caught.value) == (
        "a loader worker was killed by SIGKILL; memory is mostly what they lack: give fewer "
        "--workers"
    )


def test_a_run_measures_again_where_a_worker_is_killed(
    model: ZooModel, folder: Path, notes: Path, whole: Evaluation
) -> None:
    images = EvalDataset(FolderSet(folder), Deadly(deit_zoo.transform(model), notes, 2))
    told: list[str] = []
    alone = DistributedContext(device=torch.device("cpu"))
    found = measure(model, images, 1, alone, told.append)
    assert (found.top1, found.num_images) == (whole.top1, NUM_IMAGES)
    death = "a loader worker was killed by SIGKILL while the model was measured"
    assert told == [f"{death}; it is measured again"] * 2


def test_shared_memory_that_is_full_is_one_sentence(
    model: ZooModel, folder: Path, notes: Path
) -> None:
    def full(image: Image.Image) -> Tensor:
        # What torch raises in a worker, as of version 2.14.
        raise RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)")

    images = EvalDataset(FolderSet(folder), full)
    with pytest.raises(ZooError, match=r"^loader workers cannot go on; /dev/shm, .* has no room"):
        accuracy(model, images, batch_size=8, workers=1)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_turned_bad_is_told_and_the_others_are_measured(
    model: ZooModel, folder: Path, tmp_path: Path, workers: int
) -> None:
    spoiled = shutil.copytree(folder, tmp_path / "spoiled")
    bad = sorted(spoiled.glob("*/*.png"))[20]
    images = FolderSet(spoiled)
    bad.write_bytes(b"no image")
    told: list[str] = []
    dataset = EvalDataset(images, deit_zoo.transform(model), skips=True)
    found = accuracy(model, dataset, batch_size=7, workers=workers, tell=told.append)
    assert told == [
        f"1 of 61 validation images cannot be read ({bad}); the figures are of the others"
    ]
    assert (found.num_images, found.num_unjudged) == (61, 1)
    bad.unlink()
    others = EvalDataset(FolderSet(spoiled), deit_zoo.transform(model))
    expected = accuracy(model, others, batch_size=60, workers=0)
    assert found.top1 == expected.top1


def test_the_bound_on_bad_images_is_of_all_processes_together(
    model: ZooModel, folder: Path, tmp_path: Path
) -> None:
    spoiled = shutil.copytree(folder, tmp_path / "spoiled")
    images = FolderSet(spoiled)
    most = most_unreadable(61)
    for bad in sorted(spoiled.glob("*/*.png"))[: most + 1]:
        bad.write_bytes(b"no image")
    dataset = EvalDataset(images, deit_zoo.transform(model), skips=True)
    shards = [
        accumulate(model, dataset, batch_size=1, workers=0, shard=(rank, 2)) for rank in range(2)
    ]
    with pytest.raises(DataError, match=f"^{most + 1} of 61 .*, and a run can do without {most};"):
        evaluation_of(shards[0] + shards[1], dataset)


def test_a_set_that_turned_bad_as_a_whole_is_one_sentence(
    model: ZooModel, folder: Path, tmp_path: Path
) -> None:
    images = FolderSet(shutil.copytree(folder, tmp_path / "gone"))
    shutil.rmtree(tmp_path / "gone")
    dataset = EvalDataset(images, deit_zoo.transform(model), skips=True)
    with pytest.raises(DataError, match=r"^61 of 61 validation images cannot be read, and a run"):
        accuracy(model, dataset, batch_size=7, workers=0)
