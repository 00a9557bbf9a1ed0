"""Cases measured one after another, all contestants of a case in turn: rows, ratios, agreement."""

from __future__ import annotations

import gc
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from deit_zoo import peers as doors
from deit_zoo.bench import (
    Case,
    ChildError,
    Contestant,
    Times,
    as_row,
    figures,
    in_fresh_process,
    keep_freed_memory,
    label,
    machine,
    matrix_product,
    measure,
    now,
    pixels,
    ratio_of_medians,
    share_of_peak,
)
from deit_zoo.errors import DataError, ZooError
from deit_zoo.models.layers import as_pair, check_divisible
from deit_zoo.registry import resolve

if TYPE_CHECKING:
    from torch import Tensor

BEST = "best peer"
UNMEASURED: dict[str, float | None] = {"peak_mb": None, "grown_mb": None}
NUM_IMAGES = 128  # that agreement is measured on


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
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

    def __post_init__(self) -> None:
        """Raises ZooError for what cannot be measured, before an hour was spent on the rest."""
        doors.check_asked(self.precisions, self.modes, self.train)
        for what, values in (
            ("--batch-size", self.batch_sizes),
            ("--rounds", [self.rounds]),
            ("--threads", [self.threads]),
        ):
            if any(value < 1 for value in values):
                raise ZooError(f"{what} is {min(values)}; give 1 or more")
        if self.seconds <= 0:
            raise ZooError(f"--seconds is {self.seconds:g}; give a time above 0")
        for model in self.models:
            if patch_size := resolve(model).arch.get("patch_size"):
                check_divisible(self._size(model), patch_size)

    def _size(self, model: str) -> tuple[int, int]:
        return as_pair(resolve(model).img_size if self.img_size is None else self.img_size)

    def cases(self) -> Iterator[Case]:
        """In the order in which they are measured."""
        for name in dict.fromkeys(resolve(model).name for model in self.models):
            for precision in dict.fromkeys(self.precisions):
                for batch_size in dict.fromkeys(self.batch_sizes):
                    yield Case(
                        model=name,
                        batch_size=batch_size,
                        precision=precision,
                        img_size=self._size(name),
                        device=self.device,
                        threads=self.threads,
                        train=self.train,
                        # What is inside the package costs no download.
                        pretrained=self.pretrained or resolve(name).labels == "digits",
                    )


@dataclass(kw_only=True, slots=True)
class Results:
    """What was found so far."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    ratios: dict[str, dict[str, Any]] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    failed: list[dict[str, Any]] = field(default_factory=list)

    def fail(self, case: Case, who: str, mode: str, why: str) -> None:
        """Leave a contestant out, and say why."""
        self.failed.append(as_row(case) | {"who": who, "mode": mode, "reason": why})


def compare(
    requests: Sequence[Request], progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Rows, ratios, matrix peaks and who failed, of every case; ready for JSON.

    A ratio says how many times as fast as that peer ours is.
    """
    found = Results()
    work = [(request, case) for request in requests for case in request.cases()]
    for case in {case.model: case for _, case in work if case.precision == "int8"}.values():
        doors.check_int8(case)
    steps = Steps(work, progress)
    with tempfile.TemporaryDirectory() as folder:
        for request, case in work:
            doors.set_threads(case.threads)
            graphs = Path(folder) / f"{case.model}, {pixels(case.img_size)}"
            graphs.mkdir(exist_ok=True)
            measure_case(case, request, graphs, found, steps)
    for row in found.rows:
        row["share_of_peak"] = share_of_peak(row, found.peaks)
    first = requests[0]
    return {
        "machine": machine(first.device, first.threads),
        "date": now(),
        "rounds": first.rounds,
        "seconds": first.seconds,
        "weights": "pretrained" if all(case.pretrained for _, case in work) else "random",
        "rows": found.rows,
        "ratios": found.ratios,
        "peaks_gflops": {key: value / 1e9 for key, value in found.peaks.items()},
        "failed": found.failed,
    }


def measure_case(
    case: Case, request: Request, folder: Path, found: Results, steps: Callable[[], None]
) -> None:
    """Build all, check their logits, measure them in turn, and each one's memory by itself."""
    _forget_compiled()
    contestants, distances = build(case, request, folder, found, steps)
    if not contestants:
        return
    product = matrix_product(case.precision, case.device)
    timed = [*contestants, product[0]] if product else contestants
    keep_freed_memory()
    times = measure(
        timed,
        rounds=request.rounds,
        seconds=request.seconds,
        sync=_sync(case.device),
        step=steps,
    )
    if product:
        best = min(map(median, times.pop(product[0].label)))
        reached = product[1] / best
        found.peaks[case.precision] = max(found.peaks.get(case.precision, 0.0), reached)
    facts = [(one.who, one.mode) for one in contestants]
    del contestants, timed  # their memory is not this process's to keep
    gc.collect()
    for who, mode in facts:
        name = label(who, mode)
        row = as_row(case) | {"who": who, "mode": mode}
        row |= figures(times[name], case.batch_size) | {"distance": distances[name]}
        row |= memory(case, who, mode, folder, found) if request.memory else UNMEASURED
        found.rows.append(row)
        steps()
    for mode, ratios in ratios_of(facts, times).items():
        found.ratios[f"{case.title}: {mode}"] = ratios


def build(
    case: Case, request: Request, folder: Path, found: Results, steps: Callable[[], None]
) -> tuple[list[Contestant], dict[str, float]]:
    """Everybody who can do the case, warmed up, and how far their logits are from ours.

    What ours refuses is raised; whoever else fails is left out.
    """
    network = doors.plain(case)
    images = doors.pictures(case)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    given = doors.Given(state=state, images=images, graphs=folder)
    if case.train:
        network.train()
    expected = network(images)
    expected = (expected[0] if isinstance(expected, tuple) else expected).detach()
    entrants = list(doors.entrants(case, request.modes, request.peers))
    graphs = {doors.GRAPHS[mode] for _, mode in entrants if mode in doors.GRAPHS}
    missing = doors.save_graphs(case, given, sorted(graphs))
    contestants, distances = [], {}
    for who, mode in entrants:
        try:
            if why := missing.get(doors.GRAPHS.get(mode, "")):
                raise doors.UnfitError(f"its ONNX file could not be made ({why})")
            one = doors.built(who, mode, case, given)
            logits = one.run()
            distances[one.label] = doors.check_logits(logits, expected, case.precision)
            contestants.append(one)
        except ZooError:
            raise
        except Exception as error:  # a compiler, a runtime or a peer that cannot do it here
            found.fail(case, who, mode, doors.reason(error))
        steps()
    return contestants, distances


def memory(
    case: Case, who: str, mode: str, folder: Path, found: Results
) -> dict[str, float | None]:
    """The peak memory of a fresh process that runs one contestant, in all and after imports."""
    task = {"case": asdict(case), "who": who, "mode": mode, "graphs": str(folder)}
    try:
        return in_fresh_process("deit_zoo.peers:memory_of", task)
    except ChildError as error:
        found.fail(case, who, mode, f"its memory could not be measured ({error})")
        return UNMEASURED


def ratios_of(facts: Sequence[tuple[str, str]], times: Times) -> dict[str, dict[str, Any]]:
    """For each mode of ours, the ratio to each peer and the name of the best of them.

    A runtime that runs our own file is a peer for as long as nobody else's graph is there.
    """
    others = [(who, mode) for who, mode in facts if who != doors.OURS]
    strangers = [one for one in others if doors.GRAPHS.get(one[1]) != doors.OURS] or others
    found: dict[str, dict[str, Any]] = {}
    for who, mode in facts:
        if who != doors.OURS or not others:
            continue
        ours = times[label(who, mode)]
        ratios: dict[str, Any] = {
            label(*one): ratio_of_medians(ours, times[label(*one)]) for one in others
        }
        ratios[BEST] = min((label(*one) for one in strangers), key=ratios.__getitem__)
        found[mode] = ratios
    return found


def agreement_rows(request: Request, folder: Path | None) -> list[dict[str, Any]]:
    """How an optimized model's answers differ from the plain one's on real images.

    For embedded models on embedded digits, for others on the folder that the user gave; nothing
    where weights are random, which agree by chance. Uncompiled: the numbers are the precision's.
    """
    lower = [precision for precision in request.precisions if precision != "float32"]
    if "optimized" not in request.modes or not lower:
        return []
    rows = []
    cases = {case.model: case for case in request.cases()}
    for case in cases.values():
        if not case.pretrained or (images := real_images(case, folder)) is None:
            continue
        rows += [_agreement(replace(case, precision=precision), images) for precision in lower]
    return rows


def _agreement(case: Case, images: Tensor) -> dict[str, Any]:
    import deit_zoo
    from deit_zoo.inference.optimize import agreement

    model = doors.plain(case).to(case.device)
    fast = deit_zoo.optimize(model, dtype=case.precision, compile=False)
    told = agreement(model, fast, images.to(case.device))
    return {"model": case.model, "precision": case.precision} | asdict(told)


def real_images(case: Case, folder: Path | None) -> Tensor | None:
    """Up to 128 images through the model's transform; None where there are none."""
    import torch

    import deit_zoo
    from deit_zoo.data.folder import IMAGE_SUFFIXES
    from deit_zoo.data.transforms import as_tensor

    prepare = deit_zoo.transform(case.model, img_size=case.img_size)
    if folder is not None:
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise DataError(f"{folder} holds no image; give a folder of images to --images")
        step = max(1, len(files) // NUM_IMAGES)
        return torch.stack([as_tensor(file, prepare) for file in files[::step][:NUM_IMAGES]])
    if resolve(case.model).labels != "digits":
        return None
    from deit_zoo.data.digits import digits

    return torch.stack([prepare(image) for image, _ in list(digits())[-NUM_IMAGES:]])


def typed() -> str:
    """The command line, for whoever reads the results."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


class Steps:
    """Counts what is done of what is to do: building, turns and memory of each contestant."""

    def __init__(
        self, work: Sequence[tuple[Request, Case]], progress: Callable[[int, int], None]
    ) -> None:
        self.progress, self.done = progress, 0
        self.total = 0
        for request, case in work:
            count = len(list(doors.entrants(case, request.modes, request.peers)))
            self.total += count * (2 + request.rounds)
            self.total += request.rounds * (case.precision != "int8")
        progress(0, self.total)

    def __call__(self) -> None:
        self.done += 1
        self.progress(min(self.done, self.total), self.total)


def _sync(device: str) -> Callable[[], None]:
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return torch.cuda.synchronize


def _forget_compiled() -> None:
    """torch keeps at most 8 compiled forms of a function, and quietly runs further ones uncompiled.

    A process that compiled nothing stays without the compiler.
    """
    if "torch._dynamo" in sys.modules:
        import torch

        torch._dynamo.reset()
