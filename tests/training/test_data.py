"""Batches of a run: the same bits whoever reads, whatever is broken, whoever is killed."""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from deit_zoo.augment.draws import Draws
from deit_zoo.augment.record import BAD, LABEL, OFFSET, Box, Layer
from deit_zoo.data import loader as data_loader
from deit_zoo.data.folder import FolderSet
from deit_zoo.errors import DataError, RecipeError, ZooError
from deit_zoo.recipes.digits import DEIT_PICO
from deit_zoo.recipes.plan import Plan
from deit_zoo.training.data import TrainLoader, augments_on_device
from deit_zoo.training.micro_batches import Batch
from deit_zoo.training.places import Chunk, Place
from deit_zoo.training.timm_bridge import train_augment
from harness.slots import photograph
from support.tables import each_row

RECIPE = replace(DEIT_PICO, batch_size=64, replicas=2)
# torch warns where there are fewer cores than workers, and that is no matter here.
MANY_WORKERS = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


class Small:
    """Images of 8 pixels a side; the red of a whole one is a sum of the draws of its place."""

    img_size = (8, 8)
    layers = 0

    def draw(self, width: int, height: int) -> Draws:
        return Draws(Box(0, 0, height, width), False, (), None, None)

    def layers_of(self, draws: Draws) -> list[Layer]:
        return []

    def by_pillow(self, crop: Image.Image, draws: Draws) -> Image.Image:
        drawn = random.random() + float(np.random.rand()) + float(torch.rand(()))
        image = crop.resize((8, 8))
        image.paste(round(85 * drawn), (0, 0, 8, 1))
        return image


class Deadly(Small):
    """The end of any worker."""

    def draw(self, width: int, height: int) -> Draws:
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().draw(width, height)


class Failing(Small):
    """What must not happen."""

    def draw(self, width: int, height: int) -> Draws:
        raise RuntimeError("the transform is wrong")


def spoil(file: Path) -> None:
    """Leave a JPEG that ends in its middle."""
    whole = BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(whole, "JPEG")
    file.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])


@pytest.fixture(scope="module")
def good(digits_folder: Path) -> FolderSet:
    return FolderSet(digits_folder / "train")


@pytest.fixture(scope="module")
def spoiled(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> FolderSet:
    """The digits between two truncated files: numbers 0 and 321."""
    root = tmp_path_factory.mktemp("spoiled") / "train"
    shutil.copytree(digits_folder / "train", root)
    spoil(root / "0" / "0000.jpg")
    spoil(root / "9" / "zzzz.jpg")
    return FolderSet(root)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch looks every fifth of a second, not every five, whether a worker is dead."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


@pytest.fixture
def loader_of() -> Iterator[Callable[..., TrainLoader]]:
    """Make a loader with so many workers, which end with the test."""
    made: list[TrainLoader] = []

    def make(
        images: FolderSet,
        workers: int,
        *,
        augment: Small | None = None,
        tell: Callable[[str], None] = lambda sentence: None,
    ) -> TrainLoader:
        plan = Plan(
            recipe=RECIPE,
            modified=True,
            device="cpu",
            processes=1,
            workers=workers,
            num_images=len(images),
        )
        made.append(TrainLoader(images, augment or Small(), plan, range(2), tell))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for loader in made:
        loader.close()


@pytest.fixture(autouse=True)
def no_workers_before() -> None:
    """An error of an earlier test refers to its loader until it is collected."""
    gc.collect()
    assert worker_pids() == []


class Repeated:
    """A few images as if they were many."""

    def __init__(self, images: FolderSet, count: int) -> None:
        self.images = images
        self.count = count
        self.classes, self.note = images.classes, images.note
        self.reading = images.reading
        self.label_sets = images.label_sets

    def __len__(self) -> int:
        return self.count

    def label_of(self, index: int) -> int:
        return self.images.label_of(index % len(self.images))

    def name_of(self, index: int) -> str:
        return self.images.name_of(index % len(self.images))

    def bytes_of(self, index: int) -> int:
        return self.images.bytes_of(index % len(self.images))

    def read(self, index: int) -> bytes:
        return self.images.read(index % len(self.images))

    def open(self, index: int) -> Image.Image:
        return self.images.open(index % len(self.images))


def equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(one.images, other.images)
        and torch.equal(one.labels, other.labels)
        and one.bad == other.bad
        for one, other in zip(first, second, strict=True)
    )


def worker_pids() -> list[int]:
    return sorted(worker.pid for worker in active_children() if worker.pid)


def test_a_truncated_image_is_replaced_and_named_by_its_number(
    spoiled: FolderSet, loader_of: Callable[..., TrainLoader]
) -> None:
    loader = loader_of(spoiled, 0)
    slot, places, _ = loader.images[0, Chunk(2, [(0, [Place(1, 5, 0), Place(1, 6, 1)])])]
    rows = loader.ring.rows(slot, places)
    # Measured once: SHA-256 of "(0, 2, 1, 5, 0, 'replacement')" modulo the 322 images is 160.
    assert rows[:, BAD].tolist() == [1, 1]
    assert rows[0, LABEL] == spoiled.label_of(160) == 4
    first, second = (loader.ring.bytes[0][begin : begin + 192] for begin in rows[:, OFFSET])
    expected = np.asarray(spoiled.open(160).resize((8, 8)))
    assert np.array_equal(first.view(8, 8, 3).numpy()[1:], expected[1:])
    # Another place has another replacement.
    assert not torch.equal(first[24:], second[24:])


def test_a_replacement_is_augmented_as_the_good_image_would_have_been(
    good: FolderSet, spoiled: FolderSet, loader_of: Callable[..., TrainLoader]
) -> None:
    reds = []
    for images in (good, spoiled):
        loader = loader_of(images, 0)
        slot, places, _ = loader.images[0, Chunk(7, [(0, [Place(3, 11, 0)])])]
        (begin,) = loader.ring.rows(slot, places)[:, OFFSET]
        reds.append(int(loader.ring.bytes[0][begin]))
    # The draws of the key (0, 7, 3, 11, "augment"), as in test_seeding: 1.26533185, of 3.
    assert reds == [108, 108]


@pytest.fixture
def hopeless(tmp_path: Path) -> FolderSet:
    """320 images, all truncated."""
    for number in range(320):
        file = tmp_path / "train" / str(number % 2) / f"{number:03d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        spoil(file)
    return FolderSet(tmp_path / "train")


@pytest.mark.parametrize("workers", [0, 1])
def test_eleven_bad_images_in_a_row_are_one_sentence(
    hopeless: FolderSet, loader_of: Callable[..., TrainLoader], workers: int
) -> None:
    with pytest.raises(DataError) as caught:
        list(loader_of(hopeless, workers).epoch(0))
    told = str(caught.value)
    assert told.startswith("11 images in a row cannot be read, the last: ")
    assert told.endswith("; `deit-zoo data check` lists every bad one")
    assert "\n" not in told


@MANY_WORKERS
@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_no_bit_of_good_or_bad_images(
    spoiled: FolderSet, loader_of: Callable[..., TrainLoader], workers: int
) -> None:
    alone = list(loader_of(spoiled, 0).epoch(0))
    assert equal(alone, list(loader_of(spoiled, workers).epoch(0)))
    # Both bad images are among the 256 of this epoch, each once.
    assert sorted(number for batch in alone for number in batch.bad) == [0, 321]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_continues_at_any_step(
    good: FolderSet, loader_of: Callable[..., TrainLoader], workers: int
) -> None:
    loader = loader_of(good, workers)
    whole = list(loader.epoch(5))
    # 256 images of an epoch in batches of 32, two in a step.
    assert len(whole) == 8
    assert equal(list(loader.epoch(5, first_step=3)), whole[6:])


def test_an_epoch_that_was_left_early_does_not_reach_into_the_next(
    good: FolderSet, loader_of: Callable[..., TrainLoader]
) -> None:
    loader = loader_of(good, 2)
    next(loader.epoch(1))
    assert equal(list(loader.epoch(2)), list(loader_of(good, 0).epoch(2)))


def test_workers_live_from_epoch_to_epoch(
    good: FolderSet, loader_of: Callable[..., TrainLoader]
) -> None:
    loader = loader_of(good, 2)
    list(loader.epoch(0))
    before = worker_pids()
    list(loader.epoch(1))
    assert len(before) == 2
    assert worker_pids() == before


def test_workers_end_with_the_loader_though_an_epoch_was_left_early(
    good: FolderSet, loader_of: Callable[..., TrainLoader]
) -> None:
    loader = loader_of(good, 1)
    batches = loader.epoch(0)
    next(batches)
    assert len(worker_pids()) == 1
    loader.close()
    assert worker_pids() == []
    assert equal(list(loader.epoch(0)), list(loader_of(good, 0).epoch(0)))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> FolderSet:
    """One file of each kind, and one whose crops are too large for a slot."""
    root = tmp_path_factory.mktemp("photographs") / "train"
    kinds = {
        "rgb.jpg": ("RGB", (60, 45), "JPEG"),
        "portrait.jpg": ("RGB", (45, 60), "JPEG"),
        "grey.jpg": ("L", (60, 45), "JPEG"),
        "cmyk.jpg": ("CMYK", (60, 45), "JPEG"),
        "alpha.png": ("RGBA", (50, 50), "PNG"),
        "palette.png": ("P", (50, 50), "PNG"),
        "named_otherwise.jpg": ("RGB", (60, 45), "PNG"),
        "tall.jpg": ("RGB", (20, 300), "JPEG"),
        "line.png": ("RGB", (40, 1), "PNG"),
        "large.jpg": ("RGB", (1200, 900), "JPEG"),
    }
    for number in range(40):
        name, (mode, size, kind) = list(kinds.items())[number % len(kinds)]
        place = root / str(number % 2) / f"{number}_{name}"
        place.parent.mkdir(parents=True, exist_ok=True)
        photograph(number, *size).convert(mode).save(place, kind)
    return FolderSet(root)


@pytest.mark.parametrize(
    ("device", "workers"), [("cpu", 0), ("cpu", 1), pytest.param("cuda", 3, marks=pytest.mark.gpu)]
)
def test_where_images_are_augmented_changes_no_bit(
    photographs: FolderSet, device: str, workers: int
) -> None:
    # Every operation and half of the images erased, in slots that a large crop does not fit into.
    recipe = replace(
        RECIPE, data="folder", img_size=32, repeated_aug=3, rand_augment="rand-m9-mstd0.5-inc1"
    )
    recipe = replace(recipe, crop_scale=(0.08, 1.0), hflip=0.5, random_erasing=0.5)

    def seen(device: str, augment: str, workers: int) -> list[Batch]:
        plan = Plan(
            recipe=recipe,
            modified=True,
            device=device,
            processes=1,
            workers=workers,
            num_images=256,
            augment=augment,  # type: ignore[arg-type]
        )
        images = Repeated(photographs, 256)
        loader = TrainLoader(images, train_augment(recipe), plan, range(2))
        found = [
            batch._replace(images=batch.images.cpu(), labels=batch.labels.cpu())
            for epoch in range(2)
            for batch in loader.epoch(epoch)
        ]
        loader.close()
        return found

    by_pillow = seen("cpu", "workers", 0)
    assert len(by_pillow) == 16
    assert equal(seen(device, "device", workers), by_pillow)


@each_row(
    ("device", "setting", "operations", "on_device"),
    [
        ("cuda", "auto", "rand-m9-mstd0.5-inc1", True),
        ("cpu", "auto", "rand-m9-mstd0.5-inc1", False),
        ("cpu", "device", "rand-m9-mstd0.5-inc1", True),
        ("cuda", "workers", "rand-m9-mstd0.5-inc1", False),
        ("cuda", "auto", "rand-m9-t3a", False),  # three operations, a blur among them
    ],
)
def test_a_gpu_augments_where_it_can(
    device: str, setting: Any, operations: str, on_device: bool
) -> None:
    recipe = replace(RECIPE, rand_augment=operations)
    plan = Plan(
        recipe=recipe,
        modified=True,
        device=device,
        processes=1,
        workers=1,
        num_images=320,
        augment=setting,
    )
    assert augments_on_device(plan, train_augment(recipe)) is on_device


def test_operations_that_no_device_has_are_refused_where_they_are_asked_of_one() -> None:
    recipe = replace(RECIPE, rand_augment="rand-m9-t3a")
    plan = Plan(
        recipe=recipe,
        modified=True,
        device="cpu",
        processes=1,
        workers=1,
        num_images=320,
        augment="device",
    )
    with pytest.raises(RecipeError, match="can be done; type --set augment=workers"):
        augments_on_device(plan, train_augment(recipe))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("killed_after", [0, 1])
def test_a_killed_worker_changes_no_bit_and_is_told(
    spoiled: FolderSet, loader_of: Callable[..., TrainLoader], killed_after: int
) -> None:
    said: list[str] = []
    loader = loader_of(spoiled, 2, tell=said.append)
    found = []
    for number, batch in enumerate(loader.epoch(0)):
        found.append(batch)
        if number == killed_after:
            os.kill(worker_pids()[0], signal.SIGKILL)
    assert equal(found, list(loader_of(spoiled, 0).epoch(0)))
    assert len(said) == 1
    assert said[0].startswith("a loader worker was killed by SIGKILL in epoch 1; loading starts ")


@pytest.mark.usefixtures("impatient")
def test_a_worker_that_is_killed_between_epochs_is_replaced(
    good: FolderSet, loader_of: Callable[..., TrainLoader]
) -> None:
    said: list[str] = []
    loader = loader_of(good, 2, tell=said.append)
    list(loader.epoch(0))
    os.kill(worker_pids()[1], signal.SIGKILL)
    assert equal(list(loader.epoch(1)), list(loader_of(good, 0).epoch(1)))
    assert said == [
        "a loader worker was killed by SIGKILL in epoch 2; loading starts again at part 0"
    ]


def test_a_death_does_not_interrupt_a_step(
    good: FolderSet, loader_of: Callable[..., TrainLoader]
) -> None:
    # torch's own handler would raise within this test, not where the next batch is asked for.
    loader = loader_of(good, 1)
    next(loader.epoch(0))
    worker = loader.loader.workers[0]
    os.kill(worker.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while worker.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert worker.exitcode == -signal.SIGKILL


def test_a_handler_of_the_program_is_left_in_force(
    good: FolderSet, loader_of: Callable[..., TrainLoader]
) -> None:
    def own(*_: object) -> None:
        """Stand for the program's handler."""

    held = signal.signal(signal.SIGCHLD, own)
    try:
        next(loader_of(good, 1).epoch(0))
        assert signal.getsignal(signal.SIGCHLD) is own
    finally:
        signal.signal(signal.SIGCHLD, held)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which process is stopped")
def test_a_worker_that_is_stopped_is_told_once_with_what_lets_it_go_on(
    good: FolderSet,
    loader_of: Callable[..., TrainLoader],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(data_loader, "LOOK_SECONDS", 0.05)
    batches = loader_of(good, 2).epoch(0)
    found, said = [next(batches)], ""
    pid = worker_pids()[0]
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while not said and time.monotonic() < deadline:
        time.sleep(0.2)
        said = capsys.readouterr().err
    time.sleep(0.2)  # some looks more
    os.kill(pid, signal.SIGCONT)
    assert equal([*found, *batches], list(loader_of(good, 0).epoch(0)))
    assert said + capsys.readouterr().err == (
        f"loader worker {pid} is stopped, and what it reads is waited for; type: kill -CONT {pid}\n"
    )


@pytest.mark.usefixtures("impatient")
def test_workers_that_die_again_and_again_end_the_run_in_one_sentence(
    good: FolderSet, loader_of: Callable[..., TrainLoader]
) -> None:
    said: list[str] = []
    with pytest.raises(ZooError) as caught:
        list(loader_of(good, 1, augment=Deadly(), tell=said.append).epoch(4))
    assert len(said) == 3
    assert str(caught.value) == (
        "loader workers died 4 times in epoch 5 (a loader worker was killed by SIGKILL); memory is "
        "mostly what they lack: give fewer --workers"
    )


def test_an_error_of_the_program_is_no_death(
    good: FolderSet, loader_of: Callable[..., TrainLoader]
) -> None:
    said: list[str] = []
    with pytest.raises(RuntimeError, match="the transform is wrong"):
        list(loader_of(good, 1, augment=Failing(), tell=said.append).epoch(0))
    assert said == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_that_is_for_the_run_leaves_the_workers(
    good: FolderSet, loader_of: Callable[..., TrainLoader], number: signal.Signals
) -> None:
    said: list[str] = []
    loader = loader_of(good, 2, tell=said.append)
    for _ in loader.epoch(0):
        for pid in worker_pids():
            os.kill(pid, number)
    assert said == []


@pytest.mark.usefixtures("impatient")
def test_sigterm_ends_a_worker_though_the_run_would_handle_it(
    good: FolderSet, loader_of: Callable[..., TrainLoader]
) -> None:
    heard: list[int] = []
    held = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        said: list[str] = []
        loader = loader_of(good, 1, tell=said.append)
        for number, _ in enumerate(loader.epoch(0)):
            if number == 0:
                os.kill(worker_pids()[0], signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, held)
    assert heard == []
    assert [sentence.split(" in epoch")[0] for sentence in said] == [
        "a loader worker was killed by SIGTERM"
    ]
