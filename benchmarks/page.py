"""docs/performance.md, made of page.md and the results files: `make benchmark` writes both.

python benchmarks/page.py [--print]
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from textwrap import wrap
from typing import Any

FOLDER = Path(__file__).parent / "results"
TEXT = Path(__file__).with_suffix(".md")
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
# Beside those of TABLES. They have a section where they are there, and may be of another machine.
PLAIN, GPU, INPUT, LISTING, SERVE = "plain*", "gpu_*", "input", "listing", "serve"
OURS = "deit_zoo"

Report = dict[str, Any]  # what a results file holds
Results = dict[str, Report]
Rows = Callable[[Report], Iterable[Sequence[str]]]
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
        enough = self.at_least is None or value >= self.at_least
        return enough and (self.at_most is None or value <= self.at_most)


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
        values = {}
        for case, ratios in results[name]["ratios"].items():
            chosen = peer(case.rpartition(": ")[2]) or ratios["best peer"]
            if word in case and chosen in ratios:
                values[case] = ratios[chosen]
        return values

    return cells


def memory(results: Results) -> Cells:
    """Peak memory of CaiT, ours to timm's, in what came after the imports."""
    return {case: ratio["grown_mb"] for case, ratio in results["cait_memory"]["ratios"].items()}


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


def of_a_step(models: Sequence[str], key: str) -> Callable[[Results], Cells]:
    """Of the compiled training steps of these models on a GPU: the ratio to timm, or the share."""

    def cells(results: Results) -> Cells:
        report = results["gpu_train_step"]
        side = f"{OURS}, compiled"
        values = {
            row["model"]: row["share_of_peak"]
            if key == "share"
            else report["ratios"][row["model"]].get(side)
            for row in report["rows"]
            if row["who"] == side and any(fnmatch(row["model"], one) for one in models)
        }
        return {name: value for name, value in values.items() if value is not None}

    return cells


def at_batch_1(results: Results) -> Cells:
    """Optimized predictions of one image on a GPU, to timm's compiled ones."""
    return {
        case: ratios["timm compiled"]
        for case, ratios in results["gpu_predict"]["ratios"].items()
        if "batch 1," in case and "timm compiled" in ratios
    }


GPU_GOALS = (
    Goal(
        "training step of DeiT-S and B: at least 1.15 times timm, compiled",
        1.15,
        None,
        of_a_step(("deit_small*", "deit_base*"), "ratio"),
    ),
    Goal(
        "training step of CaiT: at least 1.5 times timm, compiled",
        1.5,
        None,
        of_a_step(("cait*",), "ratio"),
    ),
    Goal(
        "training step of DeiT-B at 224 pixels: at least 0.45 of the peak",
        0.45,
        None,
        of_a_step(("deit_base",), "share"),
    ),
    Goal(
        "prediction of one image: at least 1.2 times timm, compiled",
        1.2,
        None,
        at_batch_1,
    ),
)


def loader(what: str, key: str) -> Callable[[Results], Cells]:
    """One ratio of one loader."""
    return lambda results: {what: results[INPUT]["ratios"][what][key]}


INPUT_GOALS = (
    Goal(
        "images of a worker, 3 repeats: at least 6.0 times timm's",
        6.0,
        None,
        loader(f"{OURS}, 3 repeats", "worker, to timm"),
    ),
    Goal(
        "images of a worker, no repeats: at least 2.8 times timm's",
        2.8,
        None,
        loader(f"{OURS}, no repeats", "worker, to timm"),
    ),
    Goal(
        "CPU time of the training process: at most 0.25 of before",
        None,
        0.25,
        loader(f"{OURS}, 3 repeats", "training process, to before"),
    ),
    Goal(
        "images decoded for each in a step of 8 x 128: at most 0.34",
        None,
        0.34,
        lambda results: {"8 x 128": results[INPUT]["decodes_per_sample"]},
    ),
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
    missing = [name for name in TABLES if not (folder / f"{name}.json").is_file()]
    if missing:
        sys.exit(f"{folder} has no {', '.join(missing)}; type: make benchmark")
    files = [folder / f"{name}.json" for name in TABLES]
    files += [
        file
        for name in (PLAIN, GPU, INPUT, LISTING, SERVE)
        for file in sorted(folder.glob(f"{name}.json"))
    ]
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def page(results: Results) -> str:
    """The page, from the results alone."""
    step = results["train_step"]["rows"][0]
    parts = {
        "where": where(results),
        "goals": "\n".join(goals(results)),
        "plain": plain_section(results),
        "gpu": gpu_section(results),
        "input": input_section(results),
        "listing": listing_section(results),
        "serve": serve_section(results),
        "batch_size": step["batch_size"],
        "size": step["img_size"][0],
        "precision": results["train_step"]["precision"],
    }
    parts |= {name: measured(results[name], *TABLES[name]) for name in TABLES}
    text = TEXT.read_text(encoding="utf-8").format(**parts)
    return re.sub(r"\n{3,}", "\n\n", text)  # around a section that is not there


def where(results: Results) -> str:
    """The machine, the versions and the days, in words. All of TABLES must be of one machine."""
    of_one = [results[name] for name in TABLES if "machine" in results[name]]
    names = {(one["machine"]["cpu"], one["machine"]["cores"]) for one in of_one}
    if len(names) > 1:
        sys.exit(f"the results are of several machines ({names}); type: make benchmark")
    days = sorted(one["date"][:10] for one in of_one)
    when = f"on {days[0]}" if days[0] == days[-1] else f"from {days[0]} to {days[-1]}"
    threads = sorted({one["machine"]["threads"] for one in of_one})
    return filled(
        f"Measured {when} on a machine without a GPU: {processor(of_one[0])}; threads for "
        f"everybody: {' or '.join(map(str, threads))}. {versions(of_one[0])}."
    )


def processor(report: Report) -> str:
    """What computed, in words."""
    machine = report["machine"]
    amx = " and AMX" if machine["amx"] else ""
    return f"{machine['cpu']} with {machine['cores']} cores, {machine['capability']}{amx}"


def versions(report: Report) -> str:
    """Of Python and of the packages."""
    machine = report["machine"]
    packages = (f"{name} {one}" for name, one in machine["packages"].items() if name != OURS)
    return f"Python {machine['python']}, {', '.join(packages)}"


def filled(text: str) -> str:
    """A paragraph in lines of this file's width."""
    return "\n".join(wrap(" ".join(text.split()), 98, break_on_hyphens=False))


def command(report: Report) -> str:
    """The command that measured, without the place where its results went."""
    words = report["command"].split()
    if "--json" in words:
        position = words.index("--json")
        del words[position : position + 2]
    rounds = report["rounds"]
    return f"`{' '.join(words)}`, {rounds} {'round' if rounds == 1 else 'rounds'}:"


def goals(results: Results, wanted: Sequence[Goal] = GOALS) -> Iterator[str]:
    """A row for each goal: every cell must hold, and those that do not are named."""
    yield "| goal | measured | |\n|---|---|---|"
    notes = []
    for goal in wanted:
        cells = goal.cells(results)
        if not cells:
            yield f"| {goal.text} | – | not measured |"
            continue
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


def share(value: float | None) -> str:
    """A part of a whole, as of the device's peak."""
    return "–" if value is None else f"{value:.1%}"


def cold_rows(report: Report) -> Iterator[list[str]]:
    """Medians, then ours to each peer's."""
    for row in report["rows"]:
        figures = (row["seconds"], 2), (row["load_seconds"], 3), (row["peak_mb"], 0)
        yield [f"{row['model']}, {row['who']}", *(number(*figure) for figure in figures)]
    for name, ratio in report["ratios"].items():
        keys = ("seconds", "load_seconds", "peak_mb")
        yield [f"ratio, {name}", *(number(ratio.get(key), 3) for key in keys)]


def load_rows(report: Report) -> Iterator[list[str]]:
    """Medians, then ours to timm's."""
    for row in report["rows"]:
        yield [row["who"], number(row["seconds"], 3), number(row["peak_mb"], 0)]
    [ratio] = report["ratios"].values()
    yield ["ratio", number(ratio["seconds"], 3), number(ratio["peak_mb"], 2)]


def cached_rows(report: Report) -> Iterator[list[str]]:
    """The calls, then the cached one to timm's."""
    for row in report["rows"]:
        yield [row["what"], number(row["seconds"], 3)]
    yield ["ratio, cached to timm", number(report["ratios"]["cached to timm"]["seconds"], 3)]


def startup_rows(report: Report) -> Iterator[list[str]]:
    """Whole processes, and what part of `import torch` each takes."""
    ratios = report["ratios"]["to import torch"]
    for row in report["rows"]:
        yield [f"`{row['what']}`", number(row["seconds"], 3), number(ratios[row["what"]], 2)]


def by_case(report: Report) -> dict[str, list[dict[str, Any]]]:
    """Rows of backends, by the case that they share."""
    cases: dict[str, list[dict[str, Any]]] = {}
    for row in report["rows"]:
        size = row["img_size"][0]
        name = f"{row['model']}, {size} px, batch {row['batch_size']}, {row['precision']}"
        cases.setdefault(name, []).append(row)
    return cases


def pairs(report: Report) -> Iterator[list[str]]:
    """Images per second of ours and timm's in the same mode, and the ratio of the rounds."""
    for case, rows in by_case(report).items():
        speeds = {(row["who"], row["mode"]): row["images_per_second"] for row in rows}
        for who, mode in speeds:
            peer = f"timm {mode}"
            if who != OURS:
                continue
            key = f"{case}, training: {mode}" if rows[0]["train"] else f"{case}: {mode}"
            ratio = report["ratios"].get(key, {}).get(peer)
            speed, theirs = speeds[who, mode], speeds.get(("timm", mode))
            yield [f"{case}, {mode}", number(speed), number(theirs), number(ratio, 3)]


def optimized_rows(report: Report) -> Iterator[list[str]]:
    """Every contestant, and how many times as fast as it ours is."""
    for case, rows in by_case(report).items():
        ratios = report["ratios"].get(f"{case}: optimized", {})
        for row in rows:
            name = f"{row['who']} {row['mode']}"
            yield [
                f"{case}, {name}",
                number(row["p50_ms"]),
                number(row["p95_ms"]),
                number(row["images_per_second"]),
                share(row["share_of_peak"]),
                number(ratios[name], 3) if name in ratios else "",
            ]


def memory_rows(report: Report) -> Iterator[list[str]]:
    """What building and running took after the imports, and ratios of that and of all."""
    for case, rows in by_case(report).items():
        peaks = {row["who"]: row["grown_mb"] for row in rows}
        ratio = report["ratios"][case]
        yield [
            case,
            number(peaks[OURS], 0),
            number(peaks["timm"], 0),
            number(ratio["grown_mb"], 2),
            number(ratio["peak_mb"], 2),
        ]


def classify_rows(report: Report) -> Iterator[list[str]]:
    """Each way, then the ratios."""
    for row in report["rows"]:
        yield [row["what"], number(row["images_per_second"])]
    for name, ratio in report["ratios"].items():
        yield [name, number(ratio, 3)]


def plain_rows(report: Report) -> Iterator[list[str]]:
    """Every entry of every case, and how many times as fast as timm, eager, ours is."""
    for case, rows in by_case(report).items():
        for row in rows:
            ratio = report["ratios"].get(f"{case}: {row['mode']}", {}).get("timm eager")
            name = f"{case}, {row['who']} {row['mode']}"
            ours = number(ratio, 3) if row["who"] == OURS else ""
            yield [name, number(row["p50_ms"]), number(row["images_per_second"]), ours]


def step_rows(report: Report) -> Iterator[list[str]]:
    """Each side in each mode; its ratio lies in the row or, by model and side, beside the rows."""
    for row in report["rows"]:
        ratio = row.get("ratio", report["ratios"].get(row["model"], {}).get(row["who"]))
        name = f"{row['model']}, {row['who']}"
        yield [
            name,
            number(row["images_per_second"]),
            share(row["share_of_peak"]),
            number(ratio, 3),
        ]


def plain_section(results: Results) -> str:
    """The models as they are and optimized, on every machine where that was measured."""
    parts = []
    for name, report in results.items():
        if fnmatch(name, PLAIN):
            where_and_when = f"{report['date'][:10]}: {processor(report)}. {versions(report)}."
            parts.append(filled(f"Measured on {where_and_when} {report.get('note', '')}".rstrip()))
            parts.append(measured(report, ("", "p50 ms", "images/s", "to timm eager"), plain_rows))
    if not parts:
        return ""
    text = "The models as they are and by `deit_zoo.optimize`, beside timm."
    return "\n\n".join(["## Plain models and optimize", text, *parts])


def input_rows(report: Report) -> Iterator[list[str]]:
    """Each loader: its worker beside timm's, the training process beside that of before."""
    for row in report["rows"]:
        ratio = report["ratios"][row["what"]]
        yield [
            row["what"],
            number(row["worker_ms"], 2),
            number(row["images_per_second"], 0),
            number(ratio["worker, to timm"], 2),
            number(row["process_ms"], 3),
            number(ratio["training process, to before"], 2),
        ]


def input_section(results: Results) -> str:
    """What loaders cost, with the machine where that was measured."""
    if INPUT not in results:
        return ""
    report = results[INPUT]
    files = f"{report['num_images']} photographs of 500x375 pixels and {report['bytes'] / 1000:.0f}"
    text = (
        "Whole loaders with one worker process each, from JPEG files to the batches of DeiT-S, by "
        "CPU time. The worker of deit_zoo leaves crops in a ring of shared memory, which a GPU "
        "resizes and augments, to the bits of Pillow; a step's image is decoded once for all its "
        "repeats. Where it says Pillow, the worker does all of it, as without a GPU. timm's gives "
        "uint8 to its prefetcher, which leaves normalising and erasing to the GPU. Before is this "
        "project's loader before it had the ring, of float32 batches. The training process is "
        "counted as far as it receives; a GPU copies out of the ring by itself, but would have to "
        "be given the others' batches in pinned memory; starting copies and kernels is counted for "
        "none. Copied is with a copy of each slot by the "
        f"processor. Of {files} kB. "
        f"Measured on {report['date'][:10]}: {processor(report)}. {versions(report)}."
    )
    headers = (
        "",
        "worker, ms an image",
        "images/s",
        "to timm",
        "training process, ms",
        "to before",
    )
    parts = ["\n".join(goals(results, INPUT_GOALS)), filled(text)]
    return "\n\n".join(["## Images for training", *parts, measured(report, headers, input_rows)])


def serve_rows(report: Report) -> Iterator[list[str]]:
    """Each side, then the ratios."""
    for row in report["rows"]:
        yield [row["what"], number(row["images_per_second"]), number(row["cpu_ms_per_image"], 2)]
    for name, ratio in report["ratios"].items():
        yield [name, number(ratio, 3), ""]


def serve_section(results: Results) -> str:
    """The service beside `classify`, with the machine where that was measured."""
    if SERVE not in results:
        return ""
    report = results[SERVE]
    memory = [round(one) for one in report["memory_mb"]]
    text = (
        f"`deit-zoo serve` and `classify --fast` on the same cores and {report['num_images']:,} "
        "photographs of 500x375 pixels, every twentieth cut off: one to a request, from "
        f"{report['clients']} clients whose work is counted against the service in images/s. "
        f"Right answers: {report['right']:,}; errors, each a sentence: {report['errors']:,}; "
        f"images to a batch: {report['batch_size']:.1f}; memory of the service at first and after "
        "each round: "
        f"{', '.join(f'{one:,}' for one in memory)} MiB. Processor time is what other work on "
        "the machine changes least. "
        f"Measured on {report['date'][:10]}: {processor(report)}. {versions(report)}."
    )
    headers = ("", "images/s", "ms of a core for each")
    return f"{filled(text)}\n\n{measured(report, headers, serve_rows)}"


def listing_rows(report: Report) -> Iterator[list[str]]:
    """Each form of the images."""
    for row in report["rows"]:
        seconds = ("survey_seconds", "open_seconds", "batch_seconds")
        megabytes = ("set_mb", "grown_mb")
        yield [
            row["what"],
            *(number(row[key], 2) for key in seconds),
            *(number(row[key], 0) for key in megabytes),
        ]


def listing_section(results: Results) -> str:
    """What comes before the first step, with the machine where that was measured."""
    if LISTING not in results:
        return ""
    report = results[LISTING]
    text = (
        f"Before the first step, with {report['num_images']:,} small images in 1,000 classes: as "
        "files in folders, and as one tar archive, both in memory. The first process of a run "
        "surveys them, and then lists a folder's files for all; an archive is indexed in the first "
        "survey. The set is as each process keeps it; grown is how much the process has grown at "
        "its highest point, a first batch of 64 images and the ring included. "
        f"Measured on {report['date'][:10]}: {processor(report)}. {versions(report)}."
    )
    headers = ("", "survey, s", "open, s", "first batch, s", "set, MB", "grown, MB")
    return f"{filled(text)}\n\n{measured(report, headers, listing_rows)}"


def gpu_step_rows(report: Report) -> Iterator[list[str]]:
    """Each side of each case in each mode, with its memory."""
    for row in report["rows"]:
        case = f"{row['model']}, {row['img_size'][0]} px, batch {row['batch_size']}"
        memory = row.get("memory_bytes")
        yield [
            f"{case}, {row['who']}",
            number(row["images_per_second"]),
            share(row["share_of_peak"]),
            number(report["ratios"].get(row["model"], {}).get(row["who"]), 3),
            number(memory and memory / 2**20, 0),
        ]


def tests_rows(report: Report) -> Iterator[list[str]]:
    """How many came to what, in how many seconds."""
    for outcome in sorted({row["outcome"] for row in report["rows"]}):
        seconds = [row["seconds"] for row in report["rows"] if row["outcome"] == outcome]
        yield [outcome, f"{len(seconds)}", number(sum(seconds), 0)]


def augment_rows(report: Report) -> Iterator[list[str]]:
    """A batch, and each of its kernels."""
    for row in report["rows"]:
        yield [
            row["what"],
            number(row["ms"], 3),
            number(row.get("images_per_second"), 0),
            share(row.get("share_of_step")),
        ]


def digits_rows(report: Report) -> Iterator[list[str]]:
    """Each run to its verdict."""
    for row in report["rows"]:
        name = f"{row['model']}: {row['verdict']}"
        yield [name, f"{row['epochs']}", number(row["seconds"], 0)]


def epoch_rows(report: Report) -> Iterator[list[str]]:
    """Each epoch, and the hours of a whole training at its pace."""
    for row in report["rows"]:
        yield [
            f"{row['model']}, {row['num_images']:,} images, epoch {row['epoch'] + 1}",
            number(row["images_per_second"], 0),
            share(row["data_share"]),
            number(row["hours_on_1_gpu"]),
            number(row["hours_on_8_gpus"]),
        ]


def gpu_section(results: Results) -> str:
    """Every file of a GPU, where one was at hand."""
    parts = []
    of_a_gpu = [report for name, report in results.items() if fnmatch(name, GPU)]
    for report in sorted(of_a_gpu, key=lambda one: [*GPU_TABLES].index(one["benchmark"])):
        title = report["benchmark"].replace("_", " ").capitalize()
        notes = [f"{title} on {where_on_a_gpu(report)}.", report.get("note", "")]
        if "peak_tflops" in report:
            peak = number(report["peak_tflops"], 0)
            notes.append(f"The peak, a large matrix product, was {peak} TFLOP/s.")
        if not report.get("ended", "finished").startswith("finished"):
            notes.append(f"It {report['ended']}.")
        notes += what_failed(report)
        parts.append(filled(" ".join(notes)))
        parts.append(measured(report, *GPU_TABLES[report["benchmark"]]))
    how = filled(
        "`make gpu` measures it all in nine minutes, on a machine with one GPU and without an "
        "install; its files, copied from `build/benchmarks/gpu` to `benchmarks/results`, make "
        "this section. Both sides are in the same precision and take turns."
    )
    if {"gpu_train_step", "gpu_predict"} <= results.keys():
        parts.insert(0, "\n".join(goals(results, GPU_GOALS)))
    return "\n\n".join(["## On a GPU", how, *parts]) if parts else ""


def what_failed(report: Report) -> Iterator[str]:
    """Whatever has no figure, once for each reason."""
    reasons: dict[str, list[str]] = {}
    for one in report.get("failed", []):
        reasons.setdefault(one["reason"], []).append(f"{one['model']}, {one['who']}")
    for reason, sides in reasons.items():
        yield f"Without a figure: {'; '.join(sides)} ({reason})."


def where_on_a_gpu(report: Report) -> str:
    """The device, the versions and the day."""
    machine = report["machine"]
    packages = [f"{one} {machine['packages'][one]}" for one in ("torch", "timm")]
    words = [machine.get("gpu", machine["device"]), *packages, f"Python {machine['python']}"]
    if precision := report.get("precision"):
        words.append(precision)
    return f"{', '.join(words)}, {report['date'][:10]}"


def gpu_table(report: Report) -> str:
    """What a file of a GPU holds, as a table."""
    headers, rows = GPU_TABLES[report["benchmark"]]
    return table(headers, rows(report))


def measured(report: Report, headers: Sequence[str], rows: Rows) -> str:
    """The command, and the table of what it measured."""
    return f"{command(report)}\n\n{table(headers, rows(report))}"


PAIR = ("", OURS, "timm", "ratio")
# Where each goes, and what is said of it, stands in page.md.
TABLES: dict[str, tuple[Sequence[str], Rows]] = {
    "cold_start": (("", "seconds", "of them loading", "peak MB"), cold_rows),
    "load": (("", "seconds", "peak MB"), load_rows),
    "cached": (("", "seconds"), cached_rows),
    "startup": (("", "seconds", "ratio"), startup_rows),
    "forward": (PAIR, pairs),
    "optimized": (
        ("", "p50 ms", "p95 ms", "images/s", "of the peak", "ours to it"),
        optimized_rows,
    ),
    "cait": (PAIR, pairs),
    "cait_memory": ((*PAIR, "ratio of the whole"), memory_rows),
    "classify": (("", "images/s"), classify_rows),
    "train_forward_backward": (PAIR, pairs),
    "train_step": (("", "images/s", "of the peak", "of timm"), step_rows),
}
# Of files of a GPU, by what was measured.
GPU_TABLES: dict[str, tuple[Sequence[str], Rows]] = {
    "tests": (("", "tests", "seconds"), tests_rows),
    "train_step": (("", "images/s", "of the peak", "of timm", "MB"), gpu_step_rows),
    "predict": TABLES["optimized"],
    "augment": (("", "ms", "images/s", "of a step of DeiT-S"), augment_rows),
    "digits": (("", "epochs", "seconds"), digits_rows),
    "epoch": (
        ("", "images/s", "waiting for data", "300 epochs, hours on 1", "on 8"),
        epoch_rows,
    ),
}

if __name__ == "__main__":
    main()
