"""A training step of ours beside a plain timm loop: images per second, share of the device's peak.

    python benchmarks/train_step.py [ROUNDS] [--models deit_small] [--batch N] [--json FILE]

Both sides take the same batch through mixup, forward, backward and AdamW, in the same precision
(bf16 on a GPU, float32 on the CPU), with and without torch.compile; the loop of ours is the one
that trains, with its skipped-step check and its draws. A distilled model has a RegNetY-16GF of
random weights as its teacher on both sides. Each side is a process; all get ready at once, then
they take turns, and medians are printed. The peak is that of a large matrix product in the same
run.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from typing import Any

import timm
import torch
import torch.nn.functional as F
from measuring import arguments_of, device_options, write
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from torch import Tensor

import deit_zoo
from deit_zoo.distributed import DistributedContext
from deit_zoo.inference.throughput import OURS
from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.plan import Plan
from deit_zoo.registry.names import resolve
from deit_zoo.training.build import build_train_state, fix_order
from deit_zoo.training.loop import train_one_epoch
from deit_zoo.training.micro_batches import Batch
from deit_zoo.training.steps import StepResult
from deit_zoo.training.teacher import Teacher
from harness import timing
from harness.backends import timm_name
from harness.timing import ChildError, rotated
from harness.workers import Worker, in_order_of_readiness, reason, still, wait_for_turn

TEACHER = "regnety_160_deit"
MODES = ("eager", "compiled")
KEPT_FREE = 0.45  # of a GPU's memory, while others get ready
PATIENCE = 300.0  # seconds that a process waits for the memory that others hold
Run = Callable[[int], int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What both sides train, on which device; `batch` is that of a GPU in the recipe's run on 8."""

    model: str
    img_size: int = 224
    batch: int = 128
    device: str = "cuda"
    threads: int = 1

    @property
    def is_taught(self) -> bool:
        """Whether a teacher is part of the step: of a model that has a head for it."""
        return bool(resolve(self.model).arch.get("distilled"))


# In order of worth: what is at the end may fall to the limit.
CASES = (
    Case(model="deit_small"),
    Case(model="deit_base"),
    Case(model="cait_xxs24_224"),
    Case(model="deit_tiny"),
    Case(model="deit_small_distilled"),
    Case(model="cait_s24_224"),
    Case(model="deit_base_384", img_size=384, batch=64),
)


def ours(case: Case, compiled: bool) -> Run:
    """Steps of the loop that trains, on one batch."""
    recipe = replace(RECIPES[case.model], batch_size=case.batch, replicas=1, img_size=case.img_size)
    if not case.is_taught:
        recipe = replace(recipe, distillation="none", teacher=None)
    plan = Plan(
        recipe=recipe,
        modified=True,
        device=case.device,
        processes=1,
        workers=0,
        num_images=case.batch,
        compile=compiled,
    )
    device = torch.device(case.device)
    model = deit_zoo.create(
        case.model, img_size=case.img_size, drop_path_rate=recipe.drop_path_rate, device=device
    )
    teacher = None
    if case.is_taught:
        network = deit_zoo.create(TEACHER, device=device).eval().requires_grad_(False)
        teacher = Teacher(network=network, num_classes=1000, facts={})
    state = build_train_state(plan, model, teacher, DistributedContext(device=device))
    images, labels = data(case)
    batch = Batch(images, labels, bad=[])

    def run(steps: int) -> int:
        epoch = replace(plan, num_images=steps * case.batch)
        train_one_epoch(state, epoch, 0, repeat(batch), no_more)
        return epoch.steps_per_epoch

    return run


def no_more(_step: StepResult) -> None:
    """What follows a step; nothing here."""


def timms(case: Case, compiled: bool) -> Run:
    """A plain loop with timm's model, mixup, loss and optimizer; the paper's loss where taught."""
    rate = RECIPES[case.model].drop_path_rate
    device = torch.device(case.device)
    model: Any = timm.create_model(
        timm_name(resolve(case.model)), img_size=case.img_size, drop_path_rate=rate
    ).to(device)
    teacher: Any = None
    if case.is_taught:
        model.set_distilled_training(True)
        teacher = timm.create_model(timm_name(resolve(TEACHER))).to(device).eval()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    mix = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=1000)
    criterion = SoftTargetCrossEntropy()
    network, taught_by = model, teacher
    if compiled:
        network = torch.compile(model)
        taught_by = torch.compile(teacher) if teacher else None
    images, labels = data(case)

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        if taught_by is None:
            return criterion(network(x), y)
        outputs, distilled = network(x)
        with torch.no_grad():
            taught = taught_by(x).argmax(dim=1)
        return (criterion(outputs, y) + F.cross_entropy(distilled, taught)) / 2

    def run(steps: int) -> int:
        model.train()
        for _ in range(steps):
            x, y = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            x, y = mix(x, y)
            with torch.autocast(case.device, torch.bfloat16, enabled=case.device == "cuda"):
                loss = loss_of(x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return steps

    return run


def deterministic(case: Case, compiled: bool) -> Run:
    """Ours with kernels that add in a fixed order, as `--set deterministic=true` asks."""
    fix_order(case.device)
    return ours(case, compiled)


FIXED = f"{OURS}, deterministic"
MAKERS: dict[str, Callable[[Case, bool], Run]] = {OURS: ours, "timm": timms, FIXED: deterministic}


def sides_of(case: Case, modes: Sequence[str]) -> dict[str, Sequence[str]]:
    """Who is measured, and in which modes: in a fixed order once, for on a CPU it always is."""
    sides = {OURS: modes, "timm": modes}
    if case == CASES[0]:
        sides[FIXED] = modes[-1:]
    return sides


def data(case: Case) -> tuple[Tensor, Tensor]:
    """One batch in memory, pinned where that helps."""
    images = torch.randn(case.batch, 3, case.img_size, case.img_size)
    labels = torch.randint(1000, (case.batch,))
    return (images.pin_memory(), labels.pin_memory()) if case.device == "cuda" else (images, labels)


def side(task: dict[str, Any]) -> tuple[Any, Callable[[str, float], float]]:
    """One side of a case in each mode, warmed up; what it took, and its turns.

    A mode that fails is left out with its reason.
    """
    case, make = Case(**task["case"]), MAKERS[task["who"]]
    set_up(case.device, case.threads)
    runs: dict[str, Run] = {}
    facts: dict[str, dict[str, Any]] = {}
    for mode in task["modes"]:
        try:
            runs[mode], memory = prepared(case, make, mode == "compiled")
            facts[mode] = {"memory_bytes": memory}
        except Exception as error:  # whatever a compiler makes of a model
            facts[mode] = {"failed": reason(error)}
    if is_crowded(case.device):
        runs.pop("compiled", None)  # its code is on the disk
        torch.compiler.reset()
    release(case.device)

    def turn(mode: str, seconds: float) -> float:
        """Seconds per step, of as many as fill the time, after two that do not count."""
        if mode not in runs:
            runs[mode], _ = prepared(case, make, mode == "compiled")
        pace = seconds_of(runs[mode], 2, case.device)
        taken = seconds_of(runs[mode], max(2, round(seconds / pace)), case.device)
        release(case.device)
        return taken

    return facts, turn


def is_crowded(device: str) -> bool:
    """Whether too little of a GPU's memory is left for others to be measured: CUDA graphs hold
    the activations of a step."""
    if device != "cuda":
        return False
    free, total = torch.cuda.mem_get_info()
    return free < KEPT_FREE * total


def set_up(device: str, threads: int) -> None:
    """Of this process, before it computes."""
    torch.set_num_threads(threads)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    from torch._functorch import config

    # The backward pass is compiled before the forward pass runs: else its activations would lie in
    # the GPU's memory, of every process that gets ready, as long as that takes.
    if hasattr(config, "force_non_lazy_backward_lowering"):
        config.force_non_lazy_backward_lowering = True


def prepared(
    case: Case, make: Callable[[Case, bool], Run], compiled: bool
) -> tuple[Run, int | None]:
    """Steps that are compiled and warmed up, and the bytes of the GPU's memory that they hold.

    Where others hold what they need, it waits for them.
    """
    run: Run | None = None
    until = time.monotonic() + PATIENCE
    while run is None:
        try:
            before = reserved(case.device)
            run = make(case, compiled)
            run(4)  # compiled here; a graph is recorded by the second step
            reserved(case.device)
            run(2)
            if case.device == "cuda":
                return run, torch.cuda.max_memory_reserved() - before
        except Exception as error:
            if "out of memory" not in str(error) or time.monotonic() > until:
                raise
            run = None
        if run is None:  # the error no longer holds what it was about
            torch.compiler.reset()
            release(case.device)
            time.sleep(5)
    return run, None


def reserved(device: str) -> int:
    """Bytes of the GPU's memory that cannot be given back; the highest is counted from here."""
    release(device)
    if device != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_reserved()


def release(device: str) -> None:
    """Give back the memory that nothing lies in."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def seconds_of(act: Run, steps: int, device: str) -> float:
    """Seconds per step, of about so many."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    steps = act(steps)
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / steps


def peak(device: str) -> float:
    """Operations per second of a large matrix product in the precision of training."""
    side = 8192 if device == "cuda" else 2048
    kind = torch.bfloat16 if device == "cuda" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))

    def multiply(times: int) -> int:
        for _ in range(times):
            a @ b
        return times

    multiply(3)
    return 2 * side**3 / min(seconds_of(multiply, 10, device) for _ in range(3))


def options(parser: argparse.ArgumentParser) -> None:
    """What this script has of its own."""
    device_options(parser)
    parser.add_argument("--models", nargs="+", default=None, choices=[one.model for one in CASES])
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--img-size", type=int, default=None)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")


def cases_of(arguments: argparse.Namespace) -> list[Case]:
    """What was typed; on a CPU one small case unless more is asked for."""
    gpu = arguments.device == "cuda"
    models = arguments.models or ([one.model for one in CASES] if gpu else ["deit_tiny"])
    machine = {"device": arguments.device, "threads": arguments.threads}
    small = {} if gpu else {"img_size": 64, "batch": 8}
    typed = {"img_size": arguments.img_size, "batch": arguments.batch}
    typed = {key: value for key, value in typed.items() if value is not None}
    return [replace(one, **machine, **(small | typed)) for one in CASES if one.model in models]


def main() -> None:
    """Measure, print a table for each case, write after each."""
    arguments = arguments_of(__doc__, more=options)
    modes = MODES[:1] if arguments.no_compile else MODES
    cases = cases_of(arguments)
    workers = {
        case: {
            who: Worker("train_step:side", {"case": asdict(case), "who": who, "modes": chosen})
            for who, chosen in sides_of(case, modes).items()
        }
        for case in cases
    }
    everyone = [one for pair in workers.values() for one in pair.values()]
    if arguments.wait:
        wait_for_turn(everyone)
    gpu = arguments.device == "cuda"
    set_up(arguments.device, arguments.threads)
    with still(everyone):
        highest = peak(arguments.device)
        release(arguments.device)
    where = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}; matrix product {highest / 1e12:.2f} TFLOP/s", flush=True)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, dict[str, float]] = {}
    failed: list[dict[str, str]] = []

    def save() -> None:
        write(
            arguments,
            rows,
            ratios,
            device=arguments.device,
            precision="bfloat16" if gpu else "float32",
            peak_tflops=highest / 1e12,
            failed=failed,
        )

    save()
    for case in in_order_of_readiness(cases, lambda case: list(workers[case].values())):
        facts, times = turns(workers[case], arguments.rounds, arguments.seconds)
        ratios[case.model] = {}
        for row in report(case, facts, times, highest):
            if "failed" in row:
                failed.append({"model": case.model, "who": row["who"], "reason": row["failed"]})
                continue
            if (ratio := row.pop("ratio")) is not None:
                ratios[case.model][row["who"]] = ratio
            rows.append(row)
        save()


Key = tuple[str, str]  # who and in which mode


def turns(
    pair: dict[str, Worker], rounds: int, seconds: float
) -> tuple[dict[Key, dict[str, Any]], dict[Key, list[float]]]:
    """What each side said of each of its modes, and the seconds of its turns, in rounds."""
    facts: dict[Key, dict[str, Any]] = {}
    for who, worker in pair.items():
        if worker.error:
            facts[who, "eager"] = {"failed": worker.error}
            continue
        facts |= {(who, mode): fact for mode, fact in worker.ready.items()}
    keys = [key for key, fact in facts.items() if "failed" not in fact]
    times: dict[Key, list[float]] = {key: [] for key in keys}
    for number in range(rounds if keys else 0):
        for who, mode in rotated(keys, number):
            if "failed" in facts[who, mode]:
                continue
            try:
                times[who, mode].append(pair[who].ask(mode, seconds))
            except ChildError as error:
                facts[who, mode] = {"failed": str(error)}
    return facts, times


def report(
    case: Case,
    facts: dict[Key, dict[str, Any]],
    times: dict[Key, list[float]],
    highest: float,
) -> Iterator[dict[str, Any]]:
    """The table of one case, printed, and its rows."""
    size = (case.img_size, case.img_size)
    # A backward pass is two forward passes, by convention; a teacher has none.
    macs = 3 * timing.gmacs(resolve(case.model), size)
    macs += timing.gmacs(resolve(TEACHER), size) if case.is_taught else 0
    print(f"\n{case.model}, {case.img_size} px, batch {case.batch}")
    print(f"{'':24}{'img/s':>10}{'of peak':>10}{'of timm':>10}{'MB':>10}")
    for (who, mode), fact in facts.items():
        name = f"{who}{', compiled' if mode == 'compiled' else ''}"
        if "failed" in fact:
            print(f"{name:24} {fact['failed']}", flush=True)
            yield {"who": name} | fact
            continue
        speed = case.batch / statistics.median(times[who, mode])
        share = 2e9 * macs * speed / highest
        ratio = ratio_to_timm(times, who, mode)
        memory = fact["memory_bytes"]
        print(
            f"{name:24}{speed:>10.1f}{share:>10.1%}"
            f"{'–' if ratio is None else f'{ratio:.3f}':>10}"
            f"{'–' if memory is None else f'{memory / 2**20:,.0f}':>10}",
            flush=True,
        )
        yield {
            "model": case.model,
            "img_size": list(size),
            "batch_size": case.batch,
            "who": name,
            "images_per_second": speed,
            "share_of_peak": share,
            "memory_bytes": memory,
            "ratio": ratio,
        }


def ratio_to_timm(times: dict[Key, list[float]], who: str, mode: str) -> float | None:
    """How many times as fast as timm in the same mode: the median of the rounds' ratios."""
    pairs: Sequence[tuple[float, float]] = list(
        zip(times[who, mode], times.get(("timm", mode), []), strict=False)
    )
    return statistics.median(their / our for our, their in pairs) if pairs else None


if __name__ == "__main__":
    main()
