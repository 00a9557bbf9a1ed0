"""Cases measured one after another, all backends of a case in turn: rows, ratios, who failed."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from deit_zoo.errors import ZooError
from deit_zoo.inference.throughput import (
    OURS,
    Case,
    cases_of,
    figures,
    machine,
    measure,
    random_images,
    title,
)
from harness import backends
from harness.timing import (
    Backend,
    ChildError,
    Times,
    in_fresh_process,
    label,
    matrix_product,
    ratio_of_medians,
    share_of_peak,
)

BEST = "best peer"
UNMEASURED: dict[str, float | None] = {"peak_mb": None, "grown_mb": None}
EVERY_PACKAGE = ("deit_zoo", "torch", *backends.PEERS, "torchao", "pillow", "simplejpeg")


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What is to be compared: every model at every batch size in every precision."""

    models: Sequence[str]
    batch_sizes: Sequence[int] = (1, 8)
    precisions: Sequence[str] = ("float32", "bfloat16")
    modes: Sequence[str] = ("eager", "optimized")
    peers: Sequence[str] = ()
    img_size: int | tuple[int, int] | None = None
    device: str = "cpu"
    threads: int = 1
    rounds: int = 7
    seconds: float = 1.0
    memory: bool = True
    train: bool = False
    pretrained: bool = False

    def cases(self) -> list[Case]:
        """In the order in which they are measured. Raises ZooError for what cannot be."""
        return cases_of(
            self.models,
            batch_sizes=self.batch_sizes,
            precisions=self.precisions,
            modes=self.modes,
            img_size=self.img_size,
            device=self.device,
            threads=self.threads,
            train=self.train,
            pretrained=self.pretrained,
        )

    def entries(self, case: Case) -> list[tuple[str, str]]:
        """Who is measured in a case, and how."""
        return list(backends.entries(case, self.modes, self.peers))


@dataclass(kw_only=True, slots=True)
class Results:
    """What was measured so far; `step` is called after each piece of work."""

    step: Callable[[], None]
    rows: list[dict[str, Any]] = field(default_factory=list)
    ratios: dict[str, dict[str, Any]] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    failed: list[dict[str, Any]] = field(default_factory=list)

    def fail(self, case: Case, who: str, mode: str, why: str) -> None:
        """Leave a backend out, and say why."""
        self.failed.append(case.row | {"who": who, "mode": mode, "reason": why})


def compare(
    config: BenchmarkConfig, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Rows, ratios, matrix peaks and who failed, of every case; ready for JSON.

    A ratio says how many times as fast as that peer ours is. What ours refuses is raised.
    """
    import torch

    from deit_zoo.inference.optimize import optimize

    cases = config.cases()
    for case in {case.model: case for case in cases if case.precision == "int8"}.values():
        # Refused where it would lose, before an hour was spent on the rest.
        optimize(backends.plain(case).to(case.device), case.precision, compile=False)
    # Of each backend, building, its turns and its memory; and the turns of the matrix product.
    total = sum(
        len(config.entries(case)) * (2 + config.rounds) + config.rounds * (case.precision != "int8")
        for case in cases
    )
    done = count(1)
    progress(0, total)
    results = Results(step=lambda: progress(min(next(done), total), total))
    torch.set_num_threads(config.threads)
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            graphs = Path(folder) / f"{case.model}, {case.img_size}"
            graphs.mkdir(exist_ok=True)
            measure_case(case, config, graphs, results)
    for row in results.rows:
        row["share_of_peak"] = share_of_peak(row, results.peaks)
    return {
        "machine": machine(config.device, config.threads, EVERY_PACKAGE),
        "date": now(),
        "rounds": config.rounds,
        "seconds": config.seconds,
        "weights": "pretrained" if all(case.pretrained for case in cases) else "random",
        "rows": results.rows,
        "ratios": results.ratios,
        "peaks_gflops": {key: value / 1e9 for key, value in results.peaks.items()},
        "failed": results.failed,
    }


def measure_case(case: Case, config: BenchmarkConfig, graphs: Path, results: Results) -> None:
    """Build all, check their logits, measure them in turn, and each one's memory by itself."""
    import torch

    torch.compiler.reset()  # torch holds few compiled forms and runs further ones uncompiled
    ready, distances = build(case, config, graphs, results)
    if not ready:
        return
    product = matrix_product(case.precision, case.device)
    timed = [*ready, product[0]] if product else ready
    times = measure(
        {one.label: one.run for one in timed},
        rounds=config.rounds,
        seconds=config.seconds,
        device=case.device,
        step=results.step,
    )
    if product:
        reached = product[1] / min(map(median, times.pop(product[0].label)))
        results.peaks[case.precision] = max(results.peaks.get(case.precision, 0.0), reached)
    entries = [(one.who, one.mode) for one in ready]
    del ready, timed, product  # their memory is not this process's to keep
    gc.collect()
    for who, mode in entries:
        name = label(who, mode)
        row = case.row | {"who": who, "mode": mode}
        row |= figures(times[name], case.batch_size) | {"distance": distances[name]}
        row |= memory(case, who, mode, graphs, results) if config.memory else UNMEASURED
        results.rows.append(row)
        results.step()
    for mode, ratios in ratios_of(entries, times).items():
        results.ratios[f"{title(case.row)}: {mode}"] = ratios


def build(
    case: Case, config: BenchmarkConfig, graphs: Path, results: Results
) -> tuple[list[Backend], dict[str, float]]:
    """Everybody who can do the case, warmed up, and how far their logits are from ours.

    What ours refuses is raised; whoever else fails is left out.
    """
    network = backends.plain(case)
    images = random_images(case)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    shared = backends.SharedInputs(state=state, images=images, graphs=graphs)
    expected = network.train(case.train)(images)
    expected = (expected[0] if isinstance(expected, tuple) else expected).detach()
    entries = config.entries(case)
    owners = {backends.GRAPHS[mode] for _, mode in entries if mode in backends.GRAPHS}
    missing = backends.save_graphs(case, shared, sorted(owners))
    ready, distances = [], {}
    for who, mode in entries:
        try:
            if why := missing.get(backends.GRAPHS.get(mode, "")):
                raise backends.UnsupportedError(f"its ONNX file could not be made ({why})")
            one = backends.built(who, mode, case, shared)
            distances[one.label] = backends.check_logits(one.run(), expected, case.precision)
            ready.append(one)
        except ZooError:
            raise
        except Exception as error:  # a compiler, a runtime or a peer that cannot do it here
            results.fail(case, who, mode, backends.reason(error))
        results.step()
    return ready, distances


def memory(
    case: Case, who: str, mode: str, graphs: Path, results: Results
) -> dict[str, float | None]:
    """The peak memory of a fresh process that runs one backend, in all and after imports."""
    task = {"case": asdict(case), "who": who, "mode": mode, "graphs": str(graphs)}
    try:
        return in_fresh_process("harness.backends:memory_of", task)
    except ChildError as error:
        results.fail(case, who, mode, f"its memory could not be measured ({error})")
        return UNMEASURED


def ratios_of(entries: Sequence[tuple[str, str]], times: Times) -> dict[str, dict[str, Any]]:
    """For each mode of ours, the ratio to each peer and the name of the best of them.

    A runtime that runs our own file is a peer for as long as nobody else's graph is there.
    """
    others = [one for one in entries if one[0] != OURS]
    peers = [one for one in others if backends.GRAPHS.get(one[1]) != OURS] or others
    ratios_by_mode: dict[str, dict[str, Any]] = {}
    for who, mode in entries:
        if who != OURS or not others:
            continue
        ours = times[label(who, mode)]
        ratios: dict[str, Any] = {
            label(*one): ratio_of_medians(ours, times[label(*one)]) for one in others
        }
        ratios[BEST] = min((label(*one) for one in peers), key=ratios.__getitem__)
        ratios_by_mode[mode] = ratios
    return ratios_by_mode


def now() -> str:
    """The date and time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
