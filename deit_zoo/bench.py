"""Measuring: rounds in turn, medians and their ratios, peak memory, the device's matrix peak.

Contestants of one case are measured A B C, B C A, C A B, ...: what a shared machine does to one of
them it does to all. A ratio is the median of the ratios of each round.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from deit_zoo.registry import ModelSpec, resolve

PRECISIONS = ("float32", "bfloat16", "float16", "int8")
PACKAGES = ("deit_zoo", "torch", "timm", "transformers", "onnxruntime", "openvino", "torchao")
MATRIX = "matrix product"
KEPT = 31 << 20  # bytes; at 32 MiB glibc stops learning

Times = Mapping[str, Sequence[Sequence[float]]]  # by contestant: rounds of seconds per call


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What every contestant is asked to do."""

    model: str
    batch_size: int = 1
    precision: str = "float32"
    img_size: tuple[int, int]
    device: str = "cpu"
    threads: int = 1
    train: bool = False  # forward and backward
    pretrained: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the batch."""
        return (self.batch_size, 3, *self.img_size)

    @property
    def title(self) -> str:
        """The case in words; also its key in a results file."""
        return title(as_row(self))

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Case:
        """What `asdict` and JSON made of one."""
        return cls(**(value | {"img_size": tuple(value["img_size"])}))


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """One way to do it, ready to run."""

    who: str
    mode: str
    run: Callable[[], Any]

    @property
    def label(self) -> str:
        """Who and how."""
        return label(self.who, self.mode)


def label(who: str, mode: str) -> str:
    """Who and how, in words."""
    return f"{who} {mode}" if mode else who


def title(row: Mapping[str, Any]) -> str:
    """The case of a row in words."""
    size = pixels(tuple(row["img_size"]))
    said = f"{row['model']}, {size}, batch {row['batch_size']}, {row['precision']}"
    return f"{said}, training" if row["train"] else said


def pixels(img_size: tuple[int, int]) -> str:
    """An image size in words."""
    height, width = img_size
    return f"{height} px" if height == width else f"{height}x{width} px"


def rotated(labels: Sequence[str], number: int) -> list[str]:
    """The order of a round: in each another one begins."""
    first = number % len(labels)
    return [*labels[first:], *labels[:first]]


def keep_freed_memory() -> None:
    """Have the C library keep what a forward pass frees, instead of asking the system again.

    glibc learns from the largest block that was freed so far; without this, how much a contestant
    waits for new pages depends on what ran before it.
    """
    import torch

    torch.empty(KEPT, dtype=torch.uint8)  # freed at once


def measure(
    contestants: Sequence[Contestant],
    *,
    rounds: int,
    seconds: float,
    sync: Callable[[], None] = lambda: None,
    step: Callable[[], None] = lambda: None,
) -> dict[str, list[list[float]]]:
    """Seconds of each call, by contestant and round; `step` is called after each turn.

    A turn begins with a call that does not count: it wakes threads and fills caches.
    """
    by_label = {one.label: one for one in contestants}
    times: dict[str, list[list[float]]] = {name: [] for name in by_label}
    for number in range(rounds):
        for name in rotated(list(by_label), number):
            run = by_label[name].run
            run()
            times[name].append(list(_calls(run, seconds, sync)))
            step()
    return times


def _calls(run: Callable[[], Any], seconds: float, sync: Callable[[], None]) -> Iterator[float]:
    spent = 0.0
    while spent < seconds or not spent:
        sync()
        started = time.perf_counter()
        run()
        sync()
        taken = time.perf_counter() - started
        spent += taken
        yield taken


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie, between two by interpolation."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def ratio_of_medians(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """How many times as fast: the median, over the rounds, of their median time over ours."""
    pairs = zip(ours, theirs, strict=True)
    return median(median(their) / median(our) for our, their in pairs)


def figures(rounds: Sequence[Sequence[float]], batch_size: int) -> dict[str, Any]:
    """Latency, throughput and the rounds behind them."""
    calls = [seconds for times in rounds for seconds in times]
    medians = [median(times) for times in rounds]
    return {
        "p50_ms": 1e3 * percentile(calls, 0.5),
        "p95_ms": 1e3 * percentile(calls, 0.95),
        "images_per_second": batch_size / median(medians),
        "calls": len(calls),
        "round_ms": [1e3 * value for value in medians],
    }


def peak_mb() -> float | None:
    """The most memory that this process has held, in MB of 2**20 bytes; None where nobody says.

    On Linux not from getrusage: there a process inherits the peak of the one that started it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return None


class ChildError(Exception):
    """A fresh process ended badly; the message is the last line it said."""


def in_fresh_process(entry: str, task: Mapping[str, Any]) -> dict[str, Any]:
    """What `entry`, a MODULE:FUNCTION, returns for `task` in a process of its own.

    Raises ChildError where it ends badly.
    """
    module, function = entry.split(":")
    code = (
        f"import json, sys; from {module} import {function} as act; "
        "print(json.dumps(act(json.loads(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(task)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ChildError((done.stderr.strip() or "it said nothing").splitlines()[-1])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def matrix_product(precision: str, device: str) -> tuple[Contestant, float] | None:
    """A large matrix product and its operations; None where the precision has none."""
    if precision == "int8":
        return None
    import torch

    side = 8192 if device.startswith("cuda") else 2048
    kind = getattr(torch, precision)
    a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    out = torch.empty_like(a)
    run = Contestant(who=MATRIX, mode="", run=lambda: torch.mm(a, b, out=out))
    return run, 2.0 * side**3


def gmacs(spec: ModelSpec, img_size: tuple[int, int]) -> float:
    """Multiply-accumulates of an image, in 10**9; at another size than the table's, scaled.

    Linear layers grow with the tokens N, attention's products with N squared: 12 N D^2 + 2 N^2 D.
    """
    height, width = img_size
    if "embed_dim" not in spec.arch:
        return spec.gmacs * height * width / spec.img_size**2

    def work(area: int) -> float:
        tokens, dim = 1 + area // spec.arch["patch_size"] ** 2, spec.arch["embed_dim"]
        return float(12 * tokens * dim**2 + 2 * tokens**2 * dim)

    return spec.gmacs * work(height * width) / work(spec.img_size**2)


def share_of_peak(row: Mapping[str, Any], peaks: Mapping[str, float]) -> float | None:
    """The part of the matrix peak in its precision that a row reaches.

    A backward pass is two forward passes, by convention.
    """
    if (peak := peaks.get(row["precision"])) is None:
        return None
    macs = gmacs(resolve(row["model"]), tuple(row["img_size"])) * 1e9
    passes = 3 if row["train"] else 1
    return 2 * macs * passes * row["images_per_second"] / peak


def machine(device: str, threads: int) -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    facts: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "amx": "amx_tile" in _cpu_flags(),
        "system": platform.system(),
        "python": platform.python_version(),
        "device": device,
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def now() -> str:
    """The date and time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def as_row(case: Case) -> dict[str, Any]:
    """The case's part of a row."""
    facts = asdict(case)
    kept = ("model", "img_size", "batch_size", "precision", "train")
    return {key: list(facts[key]) if key == "img_size" else facts[key] for key in kept}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_info(key: str) -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _cpu_name() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> list[str]:
    return _cpu_info("flags").split()
