"""docs/performance.md, made of page.md.jinja and the results files: `make benchmark` writes both.

python benchmarks/page.py [--print]
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from goals import GOALS, GPU_GOALS, INPUT_GOALS, OURS, Report, Results, filled, verdicts
from jinja2 import Environment, FileSystemLoader, StrictUndefined

FOLDER = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
# Without these there is no page, and they are of one machine.
REQUIRED = (
    "cold_start",
    "load",
    "cached",
    "startup",
    "forward",
    "optimized",
    "cait",
    "cait_memory",
    "classify",
    "train_forward_backward",
    "train_step",
)
# These have a section where they are there, and may be of another machine.
OPTIONAL = ("plain*", "serve", "input*", "listing", "gpu_*")
ON_A_GPU = ("tests", "train_step", "predict", "augment", "digits", "epoch")


def main() -> None:
    """Write the page, or print it."""
    text = page(read(FOLDER))
    if "--print" in sys.argv:
        sys.stdout.write(text)
    else:
        PAGE.write_text(text, encoding="utf-8")


def read(folder: Path) -> Results:
    """Every results file, by its name."""
    missing = [name for name in REQUIRED if not (folder / f"{name}.json").is_file()]
    if missing:
        sys.exit(f"{folder} has no {', '.join(missing)}; type: make benchmark")
    files = [folder / f"{name}.json" for name in REQUIRED]
    files += [file for name in OPTIONAL for file in sorted(folder.glob(f"{name}.json"))]
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def page(results: Results) -> str:
    """The page, from the results alone."""
    required = [results[name] for name in REQUIRED if "machine" in results[name]]
    machines = {(one["machine"]["cpu"], one["machine"]["cores"]) for one in required}
    if len(machines) > 1:
        sys.exit(f"the results are of several machines ({machines}); type: make benchmark")
    sections = {
        pattern.rstrip("_*"): [results[name] for name in results if fnmatch(name, pattern)]
        for pattern in OPTIONAL
    }
    sections["gpu"].sort(key=lambda report: ON_A_GPU.index(report["benchmark"]))
    text = TEMPLATES.get_template("page.md.jinja").render(
        results=results,
        required=required,
        sections=sections,
        verdicts=lambda goals: "\n".join(verdicts(results, goals)),
        GOALS=GOALS,
        INPUT_GOALS=INPUT_GOALS,
        GPU_GOALS=GPU_GOALS,
    )
    return re.sub(r"\n{3,}", "\n\n", text)  # around a section that is not there


def table(report: Report) -> str:
    """What a file of results holds, as a table of Markdown."""
    macros = TEMPLATES.get_template("tables.md.jinja").module
    return str(getattr(macros, report["benchmark"])(report)).rstrip()


def by_case(report: Report) -> dict[str, list[Report]]:
    """Rows of backends, by the case that they share."""
    cases: dict[str, list[Report]] = {}
    for row in report["rows"]:
        size = row["img_size"][0]
        name = f"{row['model']}, {size} px, batch {row['batch_size']}, {row['precision']}"
        cases.setdefault(name, []).append(row)
    return cases


def command(report: Report) -> str:
    """The command that measured, without the place where its results went."""
    return re.sub(r" --json \S+", "", report["command"])


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


def gpu(report: Report) -> str:
    """The device, the versions and the day."""
    machine = report["machine"]
    packages = [f"{one} {machine['packages'][one]}" for one in ("torch", "timm")]
    words = [machine.get("gpu", machine["device"]), *packages, f"Python {machine['python']}"]
    if precision := report.get("precision"):
        words.append(precision)
    return f"{', '.join(words)}, {report['date'][:10]}"


def days(reports: Sequence[Report]) -> str:
    """When these were measured."""
    first, *_, last = sorted(report["date"][:10] for report in reports)
    return f"on {first}" if first == last else f"from {first} to {last}"


def figure(value: float | None, decimals: int = 1) -> str:
    """A figure, or a dash where nobody could measure it."""
    return "–" if value is None else f"{value:,.{decimals}f}"


def percent(value: float | None) -> str:
    """A part of a whole, as of the device's peak."""
    return "–" if value is None else f"{value:.1%}"


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    autoescape=False,
    keep_trailing_newline=True,
)
TEMPLATES.filters |= {
    one.__name__: one
    for one in (by_case, command, days, figure, filled, gpu, percent, processor, versions)
}

if __name__ == "__main__":
    main()
