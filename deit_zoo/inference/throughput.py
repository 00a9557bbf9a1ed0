"""How fast our models are on this machine: latency, images per second, agreement of fast copies.

The modes of a case take turns, A B C, B C A, C A B, ...: what a shared machine does to one of them
it does to all.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import distributions
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from deit_zoo.errors import DataError, ZooError
from deit_zoo.machine import cpu_name
from deit_zoo.registry.names import is_path, resolve

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deit_zoo.models.model import ZooModel

OURS = "deit_zoo"
PRECISIONS = ("float32", "bfloat16", "float16", "int8")
# How a model is run: as it is; by torch.compile; by deit_zoo.optimize.
MODES = ("eager", "compiled", "optimized")
PACKAGES = ("deit_zoo", "torch", "torchao")
NUM_IMAGES = 128  # that agreement is measured on
FREED = 31 << 20  # bytes; at 32 MiB glibc stops learning

Run = Callable[[], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One model on one kind of batch."""

    model: str
    batch_size: int = 1
    precision: str = "float32"
    img_size: tuple[int, int]
    device: str = "cpu"
    threads: int = 1
    train: bool = False  # forward and backward
    pretrained: bool = False

    @property
    def row(self) -> dict[str, Any]:
        """The case's part of a row of results."""
        keys = ("model", "img_size", "batch_size", "precision", "train")
        return {key: getattr(self, key) for key in keys} | {"img_size": list(self.img_size)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How near a copy is to its model on real images.

    `top1` is the share of images of the same first class, `largest` the largest difference of a
    logit.
    """

    top1: float
    largest: float
    num_images: int


def cases_of(
    models: Sequence[str],
    *,
    batch_sizes: Sequence[int],
    precisions: Sequence[str],
    modes: Sequence[str],
    img_size: int | tuple[int, int] | None,
    **options: Any,
) -> list[Case]:
    """Every model in every precision at every batch size; `options` are fields of each Case.

    Raises ZooError for what cannot be measured, before an hour was spent on the rest.
    """
    from deit_zoo.models.layers import as_pair, check_divisible

    for option, values, choices in (("precision", precisions, PRECISIONS), ("mode", modes, MODES)):
        if wrong := [value for value in values if value not in choices]:
            raise ZooError(f"--{option} is {wrong[0]!r}; give {', '.join(choices)}")
    if options["train"] and ("optimized" in modes or "int8" in precisions):
        raise ZooError(
            "an optimized or int8 model cannot be trained; give --mode eager or compiled, and "
            "--precision float32 or bfloat16"
        )
    if "int8" in precisions and "optimized" not in modes:
        raise ZooError("int8 is what optimize makes; add --mode optimized")
    cases = []
    for name in dict.fromkeys(one if is_path(one) else resolve(one).name for one in models):
        if is_path(name):  # whose patches may be others than its name's
            size, here = model_of_file(name, img_size).img_size, True
        else:
            spec = resolve(name)
            size = as_pair(img_size or spec.img_size)
            if patch_size := spec.arch.get("patch_size"):
                check_divisible(size, patch_size)
            here = spec.labels == "digits"  # inside the package, so it costs no download
        facts = options | {"pretrained": options["pretrained"] or here}
        cases += [
            Case(model=name, batch_size=batch_size, precision=precision, img_size=size, **facts)
            for precision in dict.fromkeys(precisions)
            for batch_size in dict.fromkeys(batch_sizes)
        ]
    return cases


def title(row: Mapping[str, Any]) -> str:
    """The case of a row in words; also its key in a results file."""
    height, width = row["img_size"]
    size = f"{height} px" if height == width else f"{height}x{width} px"
    case = f"{row['model']}, {size}, batch {row['batch_size']}, {row['precision']}"
    return f"{case}, training" if row["train"] else case


def plain_model(case: Case, weights: Path | None = None) -> ZooModel:
    """The model of a case, in float32 and eval mode; random weights are the same each time."""
    import torch

    from deit_zoo.weights.load import load_checkpoint, resolve_file

    if weights or is_path(case.model):
        return model_of_file(weights or case.model, case.img_size)
    spec = resolve(case.model)
    if case.pretrained:
        from deit_zoo.manifest import manifest_record

        file = resolve_file(manifest_record(spec.name)).path
        return load_checkpoint(spec, file, {"input_size": spec.img_size}, img_size=case.img_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: ZooModel = spec.build(img_size=case.img_size)
    return model.eval()


def model_of_file(file: str | Path, img_size: int | tuple[int, int] | None) -> ZooModel:
    """The network that a file of weights is of, in its own build."""
    from deit_zoo.weights.load import load_checkpoint, open_local, spec_of_file

    own = open_local(file)
    spec = spec_of_file(own, file)
    return load_checkpoint(spec, own.path, own.metadata, sha256=own.sha256, img_size=img_size)


def random_images(case: Case) -> Tensor:
    """A batch of noise, normalised as images are."""
    import torch

    shape = (case.batch_size, 3, *case.img_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def run_of(model: nn.Module, mode: str, case: Case, images: Tensor) -> Run:
    """A mode, ready to run; the model is no longer the caller's."""
    import torch

    network: Any = model.to(case.device)
    images = images.to(case.device)
    if mode == "optimized":
        from deit_zoo.inference.optimize import optimize

        network = optimize(network, case.precision)
    elif case.train:
        network.train()
    else:
        dtype = getattr(torch, case.precision)
        network, images = network.to(dtype), images.to(dtype)
    if mode == "compiled":
        network = torch.compile(network, dynamic=False)
    if case.train:
        return _training_step(network, case.precision, images)
    run: Run = torch.inference_mode()(lambda: network(images))
    if mode == "compiled":
        # Dynamo asks the process, not the options of one model, whether weights are constants.
        from torch._inductor import config

        with config.patch(freezing=True):
            run()
    return run


def _training_step(network: Any, precision: str, images: Tensor) -> Run:
    """Forward and backward, with the precision that training uses: weights stay in float32."""
    import torch

    dtype = getattr(torch, precision)

    def run() -> Tensor:
        network.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, dtype, enabled=precision != "float32"):
            logits = network(images)
            heads = logits if isinstance(logits, tuple) else (logits,)
            losses = [head.float().logsumexp(dim=-1).mean() for head in heads]
        torch.autograd.backward(losses)
        return heads[0]

    return run


def measure(
    runs: Mapping[str, Run],
    *,
    rounds: int,
    seconds: float,
    device: str,
    step: Callable[[], None] = lambda: None,
) -> dict[str, list[list[float]]]:
    """Seconds of each call, by name and round; `step` is called after each turn.

    In each round another one begins, and a turn begins with a call that does not count: it wakes
    threads and fills caches.
    """
    import torch

    # glibc learns from the largest block that was freed so far: now it keeps what a forward pass
    # frees, whoever ran before.
    torch.empty(FREED, dtype=torch.uint8)
    # A CPU is done when it returns.
    sync: Run = (lambda: None) if device == "cpu" else torch.accelerator.synchronize
    order = list(runs)
    times: dict[str, list[list[float]]] = {name: [] for name in order}
    for _ in range(rounds):
        for name in order:
            runs[name]()
            calls: list[float] = []
            spent = 0.0
            while spent < seconds or not calls:
                sync()
                started = time.perf_counter()
                runs[name]()
                sync()
                calls.append(time.perf_counter() - started)
                spent += calls[-1]
            times[name].append(calls)
            step()
        order = [*order[1:], *order[:1]]
    return times


def figures(rounds: Sequence[Sequence[float]], batch_size: int) -> dict[str, Any]:
    """Latency, throughput and the rounds behind them."""
    import torch

    calls = torch.tensor([seconds for times in rounds for seconds in times], dtype=torch.float64)
    medians = [median(times) for times in rounds]
    return {
        "p50_ms": 1e3 * float(calls.quantile(0.5)),
        "p95_ms": 1e3 * float(calls.quantile(0.95)),
        "images_per_second": batch_size / median(medians),
        "calls": len(calls),
        "round_ms": [1e3 * value for value in medians],
    }


def ratio(row: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """How many times as fast as another: the median of the ratios of each round."""
    pairs = zip(row["round_ms"], other["round_ms"], strict=True)
    return median(theirs / ours for ours, theirs in pairs)


def measure_case(
    case: Case, modes: Sequence[str], *, rounds: int, seconds: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row for each mode, and why others are missing. What optimize refuses is raised.

    `distance` is that of the logits from the plain model's in float32, as a share of their size;
    `of_eager` how many times as fast as eager a mode is.
    """
    import torch

    torch.set_num_threads(case.threads)
    torch.compiler.reset()  # torch holds few compiled forms and runs further ones uncompiled
    images = random_images(case)
    in_float32 = replace(case, precision="float32")
    expected = run_of(plain_model(case), "eager", in_float32, images)().detach()
    runs: dict[str, Run] = {}
    rows: dict[str, dict[str, Any]] = {}
    failed = []
    for mode in modes:
        if case.precision == "int8" and mode != "optimized":
            continue
        row = case.row | {"who": OURS, "mode": mode}
        try:
            run = run_of(plain_model(case), mode, case, images)
            distance = (run().detach().to(expected) - expected).norm() / expected.norm()
        except ZooError:
            raise
        except Exception as error:  # a compiler that is not here, or cannot do it
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            failed.append(row | {"reason": reason})
            continue
        runs[mode] = run
        rows[mode] = row | {"distance": float(distance), "peak_mb": None, "grown_mb": None}
    times = measure(runs, rounds=rounds, seconds=seconds, device=case.device)
    for mode, row in rows.items():
        row |= figures(times[mode], case.batch_size)
        row["of_eager"] = ratio(row, rows["eager"]) if "eager" in rows else None
    return list(rows.values()), failed


def agreement(
    plain: nn.Module, fast: nn.Module, images: Iterable[Tensor], *, batch_size: int = 32
) -> Agreement:
    """Compare a copy with its model on uint8 pixels, or normalised images, (3, H, W)."""
    import torch

    from deit_zoo.data.transforms import normalized
    from deit_zoo.evaluation.accuracy import eval_mode

    images = list(images)
    if not images:
        raise ZooError("there is no image to compare on; give one or more")
    same, largest = 0, 0.0
    weight = next(plain.parameters())
    with eval_mode(plain), torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = torch.stack(images[start : start + batch_size]).to(weight.device)
            floats = normalized(batch) if batch.dtype == torch.uint8 else batch
            outputs = plain(floats.to(weight.dtype)), fast(batch)
            # On the CPU, for Apple's GPUs have no float64.
            expected, logits = (output.cpu().double() for output in outputs)
            same += int((logits.argmax(dim=-1) == expected.argmax(dim=-1)).sum())
            largest = max(largest, float((logits - expected).abs().max()))
    return Agreement(top1=same / len(images), largest=largest, num_images=len(images))


def agreement_row(case: Case, folder: Path | None) -> dict[str, Any] | None:
    """How an optimized model's answers differ from the plain one's on up to 128 real images.

    The user's, or the embedded digits; None where there are none, or where random weights would
    agree by chance. Uncompiled: the numbers are the precision's. Raises ZooError where int8 would
    lose, images or not.
    """
    from deit_zoo.data.digits import digits
    from deit_zoo.data.folder import images_of
    from deit_zoo.data.transforms import as_tensor, eval_transform
    from deit_zoo.inference.optimize import optimize
    from deit_zoo.weights.load import spec_for

    spec = spec_for(case.model)
    comparable = case.pretrained and (folder is not None or spec.labels == "digits")
    if not comparable and case.precision != "int8":
        return None
    model = plain_model(case).to(case.device)
    fast = optimize(model, case.precision, compile=False)
    if not comparable:
        return None
    sources: list[Any]
    if folder is None:
        sources = [image for image, _ in digits()][-NUM_IMAGES:]
    else:
        files = list(images_of(folder))
        if isinstance(files[0], DataError):
            raise files[0]
        sources = files[:: max(1, len(files) // NUM_IMAGES)][:NUM_IMAGES]
    prepare = eval_transform(spec, case.img_size)
    figures = agreement(model, fast, [as_tensor(source, prepare) for source in sources])
    return {"model": case.model, "precision": case.precision} | asdict(figures)


def machine(device: str, threads: int, packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    from deit_zoo.machine import fast_dtypes

    installed = {one.name.replace("-", "_"): one.version for one in distributions()}
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {}
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "amx": "AMX" in (fast_dtypes(torch.device("cpu")) or {}).values(),
        "system": platform.system(),
        "python": platform.python_version(),
        "device": device,
        "packages": {name: installed[name] for name in packages if name in installed},
    } | gpu
