"""What the harness adds to measuring our own models: backends, their ratios, the matrix peak."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from deit_zoo.registry import ModelSpec
from deit_zoo.registry.names import resolve

MATRIX = "matrix product"
BENCHMARKS = Path(__file__).resolve().parents[1]

Times = Mapping[str, Sequence[Sequence[float]]]  # by backend: rounds of seconds per call


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """One way to run a case, ready to run."""

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


def rotated(labels: Sequence[str], number: int) -> list[str]:
    """The order of a round: in each another one begins."""
    first = number % len(labels)
    return [*labels[first:], *labels[:first]]


def ratio_of_medians(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """How many times as fast: the median, over the rounds, of their median time over ours."""
    pairs = zip(ours, theirs, strict=True)
    return median(median(their) / median(our) for our, their in pairs)


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
    path = os.pathsep.join(filter(None, [str(BENCHMARKS), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(task)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ChildError((done.stderr.strip() or "it said nothing").splitlines()[-1])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def matrix_product(precision: str, device: str) -> tuple[Backend, float] | None:
    """A large matrix product and its operations; None where the precision has none."""
    if precision == "int8":
        return None
    import torch

    side = 8192 if device.startswith("cuda") else 2048
    dtype = getattr(torch, precision)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    product = Backend(who=MATRIX, mode="", run=lambda: torch.mm(a, b, out=out))
    return product, 2.0 * side**3


def gmacs(spec: ModelSpec, img_size: Sequence[int]) -> float:
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
    macs = gmacs(resolve(row["model"]), row["img_size"]) * 1e9
    passes = 3 if row["train"] else 1
    return 2 * macs * passes * row["images_per_second"] / peak
