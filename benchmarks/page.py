"""docs/performance.md, made of the results files alone: `make benchmark` writes both.

python benchmarks/page.py [--print]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

FOLDER = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
NAMES = (
    "cold_start",
    "load",
    "cached",
    "startup",
    "forward",
    "optimized",
    "cait",
    "cait_memory",
    "train_forward_backward",
    "train_step",
    "classify",
)
OURS = "deit_zoo"

Results = dict[str, dict[str, Any]]
Cells = dict[str, float]

# Why a goal is not met, as far as it is known; by the goal's text.
REASONS = {
    "cold start, load alone: at most 0.05 of timm's": (
        "What is left is some 10 ms of Python: 126 modules are built and 152 tensors mapped."
    ),
    "cold start, peak memory: at most 0.7 of timm's": (
        "import torch alone takes 528 MB of ours, and the weights, read once, 88 MB."
    ),
    "plain forward, float32: at least 1.05 times timm, eager": (
        "Of a DeiT's forward one block in twelve is saved; the rest are the same kernels."
    ),
    "optimized, bfloat16: at least 1.1 times the best peer": (
        "In a profile of DeiT-S at batch 8, taken beside other work, linear layers were 58 % of "
        "our time and attention 31 %; the peers were not profiled."
    ),
    "CaiT, float32: at least 1.5 times timm in the same mode": (
        "The saving is in attention; the linear layers are called alike in both."
    ),
    "CaiT, bfloat16: at least 2 times timm in the same mode": (
        "In a profile taken beside other work the mixing of heads was 14 % of our time and GELU "
        "13 %; timm was not profiled."
    ),
    "training, forward and backward: not slower than timm": (
        "In nine further rounds by processor time the ratio was 1.002 for DeiT-S and 0.993 for "
        "DeiT-Ti; no difference beyond noise is shown."
    ),
    "classify a folder: at least 0.9 of the slower of its two parts": (
        "Without a GPU both parts share the same cores, so each image costs the sum of both."
    ),
}


@dataclass(frozen=True, slots=True)
class Goal:
    """What was aimed at: every cell at least, or at most, the limit."""

    text: str
    at_least: float | None
    at_most: float | None
    cells: Callable[[Results], Cells]

    def holds(self, value: float) -> bool:
        """Whether a cell is good enough."""
        return value >= self.at_least if self.at_least is not None else value <= self.at_most


def cold(key: str) -> Callable[[Results], Cells]:
    """Ours to timm's, of every model."""
    return lambda results: {
        name: ratio[key]
        for name, ratio in results["cold_start"]["ratios"].items()
        if name.endswith("to timm")
    }


def against(name: str, peer: Callable[[str], str | None], word: str = "") -> Any:
    """Speeds, ours to that of the peer which `peer` chooses for a mode; cases with `word` alone."""

    def cells(results: Results) -> Cells:
        found = {}
        for case, ratios in results[name]["ratios"].items():
            chosen = peer(case.rpartition(": ")[2]) or ratios["best peer"]
            if word in case and chosen in ratios:
                found[case] = ratios[chosen]
        return found

    return cells


def memory(results: Results) -> Cells:
    """Peak memory of CaiT, ours to timm's, in what came after the imports."""
    return {case: found["grown_mb"] for case, found in results["cait_memory"]["ratios"].items()}


def together(results: Results) -> Cells:
    """Reading and model together, to the slower of the two alone."""
    key = "together / slower of the two alone"
    return {"together": results["classify"]["ratios"][key]}


GOALS = (
    Goal("cold start of DeiT-S, time: at most 0.5 of timm's", None, 0.5, cold("seconds")),
    Goal("cold start, load alone: at most 0.05 of timm's", None, 0.05, cold("load_seconds")),
    Goal("cold start, peak memory: at most 0.7 of timm's", None, 0.7, cold("peak_mb")),
    Goal(
        "plain forward, float32: at least 1.05 times timm, eager",
        1.05,
        None,
        against("forward", lambda mode: "timm eager"),
    ),
    Goal(
        "optimized, bfloat16: at least 1.1 times the best peer",
        1.1,
        None,
        against("optimized", lambda mode: None),
    ),
    Goal(
        "CaiT, float32: at least 1.5 times timm in the same mode",
        1.5,
        None,
        against("cait", lambda mode: f"timm {mode}", "float32"),
    ),
    Goal(
        "CaiT, bfloat16: at least 2 times timm in the same mode",
        2.0,
        None,
        against("cait", lambda mode: f"timm {mode}", "bfloat16"),
    ),
    Goal("CaiT at large images, memory after imports: below timm's", None, 0.999, memory),
    Goal(
        "training, forward and backward: not slower than timm",
        1.0,
        None,
        against("train_forward_backward", lambda mode: "timm eager"),
    ),
    Goal("classify a folder: at least 0.9 of the slower of its two parts", 0.9, None, together),
)


def main() -> None:
    """Write the page, or print it."""
    text = page(read(FOLDER))
    if "--print" in sys.argv:
        sys.stdout.write(text)
    else:
        PAGE.write_text(text, encoding="utf-8")


def read(folder: Path) -> Results:
    """Every results file, by its name."""
    missing = [name for name in NAMES if not (folder / f"{name}.json").is_file()]
    if missing:
        sys.exit(f"{folder} has no {', '.join(missing)}; type: make benchmark")
    files = {name: folder / f"{name}.json" for name in NAMES}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()}


def page(results: Results) -> str:
    """The page, from the results alone."""
    parts = [
        "# Performance",
        INTRODUCTION.format(where=where(results)),
        "## Goals",
        "\n".join(goals(results)),
        "## Cold start",
        COLD_START.format(command=told(results, "cold_start")),
        table(("", "seconds", "of them loading", "peak MB"), cold_rows(results["cold_start"])),
        LOADING.format(command=told(results, "load")),
        table(("", "seconds", "peak MB"), load_rows(results["load"])),
        CACHED.format(command=told(results, "cached")),
        table(("", "seconds"), cached_rows(results["cached"])),
        STARTUP.format(command=told(results, "startup")),
        table(("", "seconds", "ratio"), startup_rows(results["startup"])),
        "## The plain forward pass",
        FORWARD.format(command=told(results, "forward")),
        table(("", OURS, "timm", "ratio"), pairs(results["forward"])),
        "## Optimized",
        OPTIMIZED.format(command=told(results, "optimized")),
        table(
            ("", "p50 ms", "p95 ms", "images/s", "of the peak", "ours to it"),
            optimized_rows(results["optimized"]),
        ),
        "## CaiT",
        CAIT.format(command=told(results, "cait")),
        table(("", OURS, "timm", "ratio"), pairs(results["cait"])),
        CAIT_MEMORY.format(command=told(results, "cait_memory")),
        table(("", OURS, "timm", "ratio", "ratio of the whole"), memory_rows(results)),
        "## Classifying a folder",
        CLASSIFY.format(command=told(results, "classify")),
        table(("", "images/s"), classify_rows(results["classify"])),
        "## Training",
        TRAINING.format(command=told(results, "train_forward_backward")),
        table(("", OURS, "timm", "ratio"), pairs(results["train_forward_backward"])),
        STEP.format(command=told(results, "train_step"), **step(results["train_step"])),
        table(("", "images/s", "of the peak", "of timm"), step_rows(results["train_step"])),
        LARGE,
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def where(results: Results) -> str:
    """The machine, the versions and the days, in words. All files must be of one machine."""
    machines = [one["machine"] for one in results.values() if "machine" in one]
    names = {(one["cpu"], one["cores"]) for one in machines}
    if len(names) > 1:
        sys.exit(f"the results are of several machines ({names}); type: make benchmark")
    first = machines[0]
    days = sorted(one["date"][:10] for one in results.values() if "date" in one)
    when = f"on {days[0]}" if days[0] == days[-1] else f"from {days[0]} to {days[-1]}"
    amx = " and AMX" if first["amx"] else ""
    threads = sorted({one["threads"] for one in machines})
    packages = ", ".join(
        f"{name} {version}" for name, version in first["packages"].items() if name != OURS
    )
    return filled(
        f"Measured {when} on a machine without a GPU: {first['cpu']} with {first['cores']} cores, "
        f"{first['capability']}{amx}; threads for everybody: {' or '.join(map(str, threads))}. "
        f"Python {first['python']}, {packages}."
    )


def filled(text: str) -> str:
    """A paragraph in lines of this file's width."""
    return "\n".join(wrap(" ".join(text.split()), 98, break_on_hyphens=False))


def told(results: Results, name: str) -> str:
    """The command that measured, without the place where its results went."""
    words = results[name]["command"].split()
    if "--json" in words:
        place = words.index("--json")
        del words[place : place + 2]
    rounds = results[name]["rounds"]
    return f"`{' '.join(words)}`, {rounds} {'round' if rounds == 1 else 'rounds'}"


def goals(results: Results) -> Iterator[str]:
    """A row for each goal: every cell must hold, and those that do not are named."""
    yield "| goal | measured | |\n|---|---|---|"
    notes = []
    for goal in GOALS:
        cells = goal.cells(results)
        low, high = min(cells.values()), max(cells.values())
        span = f"{low:.3f}" if low == high else f"{low:.3f} to {high:.3f}"
        short = {case: value for case, value in cells.items() if not goal.holds(value)}
        verdict = "met"
        if short:
            some = f" in {len(short)} of {len(cells)}" if len(short) < len(cells) else ""
            verdict = f"not met{some}"
        yield f"| {goal.text} | {span} | {verdict} |"
        if short:
            cases = "; ".join(f"{case} ({value:.3f})" for case, value in short.items())
            reason = f" {REASONS[goal.text]}" if goal.text in REASONS else ""
            note = filled(f"- {goal.text}. Not met: {cases}.{reason}")
            notes.append(note.replace("\n", "\n  "))
    if notes:
        yield "\nWhat falls short:\n"
        yield from notes


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown with figures to the right."""
    lines = [f"| {' | '.join(headers)} |", "|---" + "|---:" * (len(headers) - 1) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines).replace("|  |", "| |")


def number(value: float | None, decimals: int = 1) -> str:
    """A figure, or a dash where nobody could measure it."""
    return "–" if value is None else f"{value:,.{decimals}f}"


def cold_rows(found: dict[str, Any]) -> Iterator[list[str]]:
    """Medians, then ours to each peer's."""
    for row in found["rows"]:
        figures = (row["seconds"], 2), (row["load_seconds"], 3), (row["peak_mb"], 0)
        yield [f"{row['model']}, {row['who']}", *(number(*figure) for figure in figures)]
    for name, ratio in found["ratios"].items():
        keys = ("seconds", "load_seconds", "peak_mb")
        yield [f"ratio, {name}", *(number(ratio.get(key), 3) for key in keys)]


def load_rows(found: dict[str, Any]) -> Iterator[list[str]]:
    """Medians, then ours to timm's."""
    for row in found["rows"]:
        yield [row["who"], number(row["seconds"], 3), number(row["peak_mb"], 0)]
    [ratio] = found["ratios"].values()
    yield ["ratio", number(ratio["seconds"], 3), number(ratio["peak_mb"], 2)]


def cached_rows(found: dict[str, Any]) -> Iterator[list[str]]:
    """The calls, then the cached one to timm's."""
    for row in found["rows"]:
        yield [row["what"], number(row["seconds"], 3)]
    yield ["ratio, cached to timm", number(found["ratios"]["cached to timm"]["seconds"], 3)]


def startup_rows(found: dict[str, Any]) -> Iterator[list[str]]:
    """Whole processes, and what part of `import torch` each takes."""
    ratios = found["ratios"]["to import torch"]
    for row in found["rows"]:
        yield [f"`{row['what']}`", number(row["seconds"], 3), number(ratios[row["what"]], 2)]


def by_case(found: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Rows of contestants, by the case that they share."""
    cases: dict[str, list[dict[str, Any]]] = {}
    for row in found["rows"]:
        size = row["img_size"][0]
        name = f"{row['model']}, {size} px, batch {row['batch_size']}, {row['precision']}"
        cases.setdefault(name, []).append(row)
    return cases


def pairs(found: dict[str, Any]) -> Iterator[list[str]]:
    """Images per second of ours and timm's in the same mode, and the ratio of the rounds."""
    for case, rows in by_case(found).items():
        speeds = {(row["who"], row["mode"]): row["images_per_second"] for row in rows}
        for who, mode in speeds:
            peer = f"timm {mode}"
            if who != OURS:
                continue
            key = f"{case}, training: {mode}" if rows[0]["train"] else f"{case}: {mode}"
            ratio = found["ratios"].get(key, {}).get(peer)
            speed, theirs = speeds[who, mode], speeds.get(("timm", mode))
            yield [f"{case}, {mode}", number(speed), number(theirs), number(ratio, 3)]


def optimized_rows(found: dict[str, Any]) -> Iterator[list[str]]:
    """Every contestant, and how many times as fast as it ours is."""
    for case, rows in by_case(found).items():
        ratios = found["ratios"].get(f"{case}: optimized", {})
        for row in rows:
            name = f"{row['who']} {row['mode']}"
            share = row["share_of_peak"]
            yield [
                f"{case}, {name}",
                number(row["p50_ms"]),
                number(row["p95_ms"]),
                number(row["images_per_second"]),
                "–" if share is None else f"{share:.1%}",
                number(ratios[name], 3) if name in ratios else "",
            ]


def memory_rows(results: Results) -> Iterator[list[str]]:
    """What building and running took after the imports, and ratios of that and of all."""
    found = results["cait_memory"]
    for case, rows in by_case(found).items():
        held = {row["who"]: row["grown_mb"] for row in rows}
        ratio = found["ratios"][case]
        yield [
            case,
            number(held[OURS], 0),
            number(held["timm"], 0),
            number(ratio["grown_mb"], 2),
            number(ratio["peak_mb"], 2),
        ]


def classify_rows(found: dict[str, Any]) -> Iterator[list[str]]:
    """Each way, then the ratios."""
    for row in found["rows"]:
        yield [row["what"], number(row["images_per_second"])]
    for name, ratio in found["ratios"].items():
        yield [name, number(ratio, 3)]


def step(found: dict[str, Any]) -> dict[str, Any]:
    """What the training step was measured on."""
    row = found["rows"][0]
    size, batch = row["img_size"][0], row["batch_size"]
    return {"size": size, "batch": batch, "precision": found["precision"]}


def step_rows(found: dict[str, Any]) -> Iterator[list[str]]:
    """Each side in each mode."""
    for row in found["rows"]:
        share = f"{row['share_of_peak']:.1%}"
        ratio = number(found["ratios"][row["model"]][row["who"]], 3)
        yield [f"{row['model']}, {row['who']}", number(row["images_per_second"]), share, ratio]


INTRODUCTION = """
Every figure comes with the command that measured it. Machines are shared and noisy: contestants
take turns, figures are medians, and a ratio is the median of the ratios of each round.
`make benchmark` measures all of it and writes this page from `benchmarks/results/`.

{where}

Your own machine, beside the peers that are installed there unless told otherwise; `--help` has the
rest:

```sh
deit-zoo benchmark deit_pico_digits --quick --no-peers
```

Without options it measures `deit_tiny` and `deit_small` at batch 1 and 8, in float32 and bfloat16,
plain and by `deit_zoo.optimize`, and takes its time. All get the same weights, and whoever's logits
are not those of the plain model is left out. Runtimes run timm's graph, which is the peer, and our
own file, which is not. `--output` keeps everything as JSON, `--plot` draws it.

On a GPU nothing has been measured yet: none was at hand.

The tables held here are of several runs on one day, some beside other work, not of one
`make benchmark`, and all older than these changes, which have only been tried beside the code
before them: GELU and CaiT's branches in place, compiled CaiT by a few images at a time, and loading
in one step for each call. Classifying was measured with two threads of torch.
"""
COLD_START = """
From the start of a process to its first prediction: imports, one model from a file in the disk's
cache, one JPEG file.

{command}:
"""
LOADING = """
Loading DeiT-B from one safetensors file, the imports done before. The peak is that of the whole
process after every parameter was read once.

{command}:
"""
CACHED = """
DeiT-S, `pretrained=True`, from a Hub on loopback. The first call fetches 88 MB and hashes them; the
cached call makes no request.

{command}:
"""
STARTUP = """
Whole processes beside `import torch`.

{command}:
"""
FORWARD = """
Images per second in eval mode, eager.

{command}:
"""
OPTIMIZED = """
`deit_zoo.optimize` beside timm, eager and compiled and frozen, and OpenVINO on timm's graph and on
our file. The peak of the device is a large matrix product in the same run.

{command}:
"""
CAIT = """
Images per second, each mode against the same of timm.

{command}:
"""
CAIT_MEMORY = """
Peak memory at large images in MB, in a fresh process each, counted from after the imports; the
last column counts those too.

{command}:
"""
CLASSIFY = """
`deit-zoo classify` on a folder of JPEG files: threads read while the model works.

{command}:
"""
TRAINING = """
Forward and backward in training mode, images per second.

{command}:
"""
STEP = """
A whole step: the loop that trains beside a plain timm loop (timm's model, mixup, loss and
optimizer), on one batch of {batch} at {size} pixels in {precision}.

{command}:
"""
LARGE = """
On a CPU the two are equal within the noise. The fused optimizer, bf16 and the compiled step are
meant for a GPU.

## Training in the large

Largest relative difference of the losses of 20 steps against one process (gloo, CPU,
`pytest tests/training/test_processes.py`): 1.9e-16 in float64 and 5.3e-8 in float32, with 2 and
with 4 processes. Counting and listing 350,000 files before a run: 1.6 s; `deit-zoo data check`
decodes 744 JPEG files of 500x375 pixels a second with one thread and 1,412 with two. Measured on
2026-11-21, not part of `make benchmark`.
"""

if __name__ == "__main__":
    main()
