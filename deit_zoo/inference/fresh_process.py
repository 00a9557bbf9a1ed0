"""What a process of its own shows of a model: the peak of its memory, and how it starts cold."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from deit_zoo.errors import ZooError
from deit_zoo.inference.throughput import OURS, Case, plain_model, random_images, run_of
from deit_zoo.machine import peak_mb


def fresh_process(case: Case, mode: str, weights: Path | None = None) -> dict[str, float | None]:
    """What `first_answer` says in a process of its own. Raises ZooError where it ends badly."""
    code = f"import sys; from {__name__} import first_answer; first_answer(*sys.argv[1:])"
    facts = json.dumps(asdict(case)), mode, str(weights or ""), str(time.time())
    done = subprocess.run(
        [sys.executable, "-c", code, *facts], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise ZooError(f"{case.model} {mode} failed in a process of its own ({last})")
    answer: dict[str, float | None] = json.loads(done.stdout.splitlines()[-1])
    return answer


def first_answer(facts: str, mode: str, weights: str, begun: str) -> None:
    """Load, predict, and print: seconds since `begun`, those of loading, and memory's peak.

    `grown_mb` is the part of the peak that came after the imports.
    """
    import torch

    import deit_zoo.inference.optimize
    import deit_zoo.weights.load  # noqa: F401

    case = Case(**json.loads(facts))
    torch.set_num_threads(case.threads)
    before = peak_mb()
    started = time.perf_counter()
    model = plain_model(case, Path(weights) if weights else None)
    load_seconds = time.perf_counter() - started
    run = run_of(model, mode, case, random_images(case))
    run()
    seconds = time.time() - float(begun)
    for _ in range(2):
        run()
    peak = peak_mb()
    if case.device.startswith("cuda"):
        before, peak = 0.0, torch.cuda.max_memory_allocated(case.device) / 2**20
    grown = None if peak is None or before is None else peak - before
    answer = {"seconds": seconds, "load_seconds": load_seconds}
    print(json.dumps(answer | {"peak_mb": peak, "grown_mb": grown}))


def cold_start(case: Case, rounds: int) -> dict[str, Any]:
    """Medians of fresh processes that load the model from a file, and predict.

    A process before the first round warms the disk's cache.
    """
    from deit_zoo.weights.load import save_model

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "model.safetensors"
        save_model(plain_model(case), weights)
        answers = [fresh_process(case, "eager", weights) for _ in range(rounds + 1)][1:]
    row: dict[str, Any] = {"model": case.model, "who": OURS}
    for key in ("seconds", "load_seconds", "peak_mb"):
        values = [value for answer in answers if (value := answer[key]) is not None]
        row[key] = median(values) if values else None
    return row


def measure_memory(case: Case, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the peak of each mode's process to its row. Returns why others are missing."""
    failed = []
    for row in rows:
        try:
            answer = fresh_process(case, row["mode"])
        except ZooError as error:  # what was measured before it is not lost
            failed.append(case.row | {"who": OURS, "mode": row["mode"], "reason": str(error)})
        else:
            row |= {key: answer[key] for key in ("peak_mb", "grown_mb")}
    return failed
