"""What a step costs on this device: memory before the start, then time, and which part limits."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, cycle
from itertools import count as counter

import torch
from torch import nn

from deit_zoo.augment.record import ROW
from deit_zoo.data.image_set import ImageSet
from deit_zoo.errors import DataError, RecipeError
from deit_zoo.machine import peak_mb, usable_cores
from deit_zoo.recipes.plan import Plan
from deit_zoo.recipes.recipe import count, duration
from deit_zoo.training.data import TrainLoader
from deit_zoo.training.loop import TrainState, autocast, train_one_epoch
from deit_zoo.training.micro_batches import Batch
from deit_zoo.training.steps import EpochStats, NotFinite, StepResult

# A run of fewer steps in an epoch is over before the answer could help.
MIN_STEPS = 100
STEPS = 20  # most steps of the warm-up; fewer where they would take over SECONDS
SECONDS = 10.0
CHUNKS = 64  # chunks that the loader is measured with
COPIES = 4  # copies of a chunk before a GPU is waited for
READS = 32  # files read between two looks at the clock
SHARE = 0.1  # largest share of the training process's time for images
MEMORY_SHARE = 0.85  # largest share of a GPU's memory for a pass
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Images per second of each part of one process, alone."""

    reading: float  # by as many threads as there are workers
    workers: float
    receiving: float  # copied to the device, and finished there
    model: float

    @property
    def training(self) -> float:
        """Of the training process, which receives images and shows them to the model."""
        return 1 / (1 / self.receiving + 1 / self.model)


def fitting_replicas(state: TrainState, plan: Plan) -> int:
    """How many replicas go through the network together: as the plan says, or as memory allows.

    One by one on the CPU, whose order of sums made the embedded checkpoints; and with batch
    normalisation, which is a function of the pass: raises RecipeError where the plan asks for more.
    """
    share = len(state.replicas)
    mixes_images = any(isinstance(module, BATCH_NORMS) for module in state.model.modules())
    if mixes_images and plan.micro_batch not in (None, plan.replica_batch):
        raise RecipeError(
            f"micro_batch is {plan.micro_batch}, but {plan.recipe.name} has batch normalisation, "
            "which makes of more images another function; type --set "
            f"micro_batch={plan.replica_batch}, or auto"
        )
    if plan.micro_batch is not None:
        return plan.micro_batch // plan.replica_batch
    if state.group.device.type != "cuda" or mixes_images or share == 1:
        return 1
    kept, of_one = memory_of_a_pass(state, plan)
    room = MEMORY_SHARE * torch.cuda.get_device_properties(state.group.device).total_memory - kept
    return max(d for d in range(1, share + 1) if share % d == 0 and (d == 1 or d * of_one <= room))


def memory_of_a_pass(state: TrainState, plan: Plan) -> tuple[int, int]:
    """Bytes that a step keeps (weights, gradients, moments), and that one replica's pass adds."""
    device = state.group.device
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    images = torch.zeros(plan.replica_batch, 3, *state.model.img_size, device=device)
    labels = torch.zeros(plan.replica_batch, dtype=torch.long, device=device)
    images, targets = state.mix(images, labels)
    state.model.train(plan.recipe.train_mode)
    with autocast(device, state.dtype):
        taught = torch.zeros(len(images), dtype=torch.long, device=device)
        if state.teacher is not None:
            taught = state.teacher(images)
        loss = state.criterion(state.model(images), taught, targets)
    torch.autograd.backward(loss)
    state.model.zero_grad(set_to_none=True)
    weights = sum(p.nbytes for p in state.model.parameters() if p.requires_grad)
    added = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    return before + 3 * weights, added


def profile(state: TrainState, plan: Plan, loader: TrainLoader) -> list[str]:
    """What a step and a batch cost here, in two sentences; none for runs too short to ask.

    The steps are real ones, and undone: weights, moments and averages are put back.
    """
    fewest = plan.processes * plan.recipe.repeated_aug  # so that each process decodes something
    if plan.steps_per_epoch < MIN_STEPS or plan.recipe.batch_size < fewest:
        return []
    batches = loader.epoch(0)
    step = [next(batches) for _ in state.replicas]  # the workers are up
    workers, receiving = rate_of_workers(loader), rate_of_receiving(loader)
    loader.end_workers()
    reading = rate_of_reading(loader.images.images, plan.workers) * plan.recipe.repeated_aug
    cost = warm_up(state, plan, step)
    if cost is None:
        return []
    model, peak = cost
    rates = Rates(reading=reading, workers=workers, receiving=receiving, model=model)
    cores = usable_cores() * plan.nodes // plan.processes
    return [outlook(plan, model, peak), sentence(rates, plan.workers, cores)]


def warm_up(
    state: TrainState, plan: Plan, batches: list[Batch]
) -> tuple[float, float | None] | None:
    """Some steps on the same images, timed and undone; None where they are not finite.

    Images per second of one process, and MB at the highest point.
    """
    before = {key: value.clone() for key, value in state.model.state_dict().items()}
    scale, on_gpu = state.scaler.state_dict(), state.group.device.type == "cuda"
    ended: list[float] = []

    def run(steps: int) -> float:
        """Seconds of so many steps, without a first one that begins on an idle device."""
        ended.clear()
        stats = EpochStats(step=plan.steps_per_epoch - steps - 1)
        train_one_epoch(state, plan, 0, cycle(batches), on_step, stats)
        return ended[-1] - ended[0]

    def on_step(_step: StepResult) -> None:
        ended.append(time.perf_counter())

    if on_gpu:
        torch.cuda.reset_peak_memory_stats(state.group.device)
    try:
        run(2)  # what is compiled is compiled here
        seconds = state.group.all_reduce(torch.tensor(run(1), device=state.group.device))
        steps = max(1, min(STEPS, int(SECONDS * state.group.size / seconds.item())))
        images = plan.replica_batch * len(state.replicas)
        cost = images * steps / run(steps), peak_mb(state.group.device)
    except NotFinite:
        cost = None
    state.model.load_state_dict(before)
    state.optimizer.state.clear()
    state.scaler.load_state_dict(scale)
    if state.ema is not None:
        state.ema.module.load_state_dict(before)
    return cost


def rate_of_reading(images: ImageSet, workers: int) -> float:
    """Different images per second whose bytes so many workers have ready, of any in the set."""
    draw = random.Random(0)

    def read(index: int) -> None:
        with suppress(DataError):  # a bad image is for the loader to replace
            images.read(index)

    with ThreadPoolExecutor(max(workers, 1)) as pool:

        def act() -> int:
            indices = [draw.randrange(len(images)) for _ in range(READS)]
            return len(list(pool.map(read, indices)))

        return rate(act, READS)


def rate_of_workers(loader: TrainLoader, chunks: int = CHUNKS) -> float:
    """Images per second that a process's workers have ready."""
    filled = chain.from_iterable(map(loader.filled, counter()))

    def take() -> int:
        slot, places, _ = next(filled)
        loader.ring.give_back(slot)
        return places

    # In the first round all workers are done at the same time.
    return rate(take, chunks, first=max(2, loader.plan.workers))


def rate_of_receiving(loader: TrainLoader) -> float:
    """Images per second that a process copies to its device and finishes there."""
    device = loader.group.device
    filled = next(loader.filled(0))
    rows = 1 + int(loader.ring.rows(filled.slot, filled.places)[:, ROW].max())
    images = torch.empty(rows, 3, *loader.img_size, device=device)

    def receive() -> int:
        for _ in range(COPIES):
            loader.finish(filled, images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return COPIES * filled.places

    return rate(receive, CHUNKS // COPIES)


def rate(act: Callable[[], int], times: int, first: int = 2) -> float:
    """Images per second of `act`, after the first calls, that do not count."""
    for _ in range(first):
        act()
    started, images = time.perf_counter(), 0
    for _ in range(times):
        images += act()
        if time.perf_counter() - started > SECONDS:
            break
    return images / (time.perf_counter() - started)


def outlook(plan: Plan, rate: float, peak: float | None) -> str:
    """Memory and speed of a step, and how long the whole run takes at that speed."""
    recipe = plan.recipe
    memory = "" if peak is None else f"{peak / 1024:.1f} GiB, "
    images = recipe.epochs * plan.steps_per_epoch * recipe.batch_size
    total = rate * plan.processes
    unit = "GPU" if plan.device == "cuda" else "process"
    times = f"{duration(images / total)} on {count(plan.processes, unit)}"
    if plan.device == "cuda" and plan.processes == 1:
        times += f", {duration(images / total / 8)} on 8"
    per_process = recipe.batch_size // plan.processes
    return (
        f"{recipe.name} at {per_process} images a step in each process: {memory}"
        f"{rate:,.0f} img/s; the {recipe.epochs} epochs' steps take {times}, if the loaders "
        "keep up"
    )


def sentence(rates: Rates, workers: int, cores: int) -> str:
    """The rates of one process, what limits them, and what to do about it."""
    rated = (
        f"workers {rates.workers:,.0f} img/s, copy and augmentation {rates.receiving:,.0f} img/s, "
        f"model {rates.model:,.0f} img/s in each process"
    )
    if rates.workers >= rates.training:
        share = rates.training / rates.receiving
        if share <= SHARE:
            return f"{rated}: the model limits, as it should"
        part = f"{share:.0%} of whose time goes to images"
        return f"{rated}: the training process limits, {part}"
    if rates.reading < rates.training:
        disk = f"the disk limits with {rates.reading:,.0f} img/s"
        return f"{rated}: {disk}; put the images on a faster one"
    needed = math.ceil(max(workers, 1) * rates.training / rates.workers)
    best = min(needed, cores)
    advice = [f"try --workers {best}"] if best > workers else []
    advice += [count(needed - cores, "more core")] if needed > cores else []
    return f"{rated}: decoding limits; {' and '.join(advice)}"
