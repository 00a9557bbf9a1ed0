"""`deit-zoo evaluate`: the figures of a model beside the published ones."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from deit_zoo.cli.console import Bar, chosen_device, ignore, out, print_json, print_table, talk
from deit_zoo.cli.options import (
    MOST,
    AsJson,
    Device,
    LabelColumn,
    NameOrRun,
    Parquet,
    complete_name,
    path,
    path_option,
    with_label_column,
)
from deit_zoo.errors import ZooError
from deit_zoo.facts.model import ModelInfo
from deit_zoo.manifest import Metric
from deit_zoo.registry.names import lookup, resolve
from deit_zoo.results import Evaluation
from deit_zoo.zoo import info

if TYPE_CHECKING:
    from deit_zoo.evaluation.agreement import Comparison

# mmpretrain, PaddleViT and a TensorFlow port, with the published crop, landed within 0.07 of DeiT's
# top-1, timm within 0.06 of CaiT's.
RERUN_TOLERANCE = 0.1
# How a metric of one head is called in the manifest, and both heads in a comparison.
HEAD_KEY, BOTH = "imagenet1k_val_head_", "both"
# Each with the decimals that it is shown with.
FIGURES = {"mean_ap": 3, "top1": 3, "top5": 3, "loss": 4}


def evaluate_(
    name: NameOrRun,
    data: Annotated[
        str, typer.Option(help="A folder per class, or any other form in docs/data.md.")
    ],
    gpus: Annotated[
        int | None,
        typer.Option(
            min=0, help="GPUs that share the images, 0 for the CPU (default: --device alone)."
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, help="Processes that share the images, on the CPU."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once, in each process.")] = 64,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MOST,
            help="Processes that read images, beside each of these (default: by cores).",
        ),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="real, v2, a, r or sketch.")] = None,
    label_file: Annotated[
        Path | None,
        path_option("For --labels real: its real.json; for a or r: a list of the 200 synsets."),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="DIR",
            help="Write a page there: accuracy of each class, confusion matrix, surest mistakes, "
            "predictions.csv.",
            parser=path,
        ),
    ] = None,
    heads: Annotated[
        bool, typer.Option("--heads", help="Each head of a distilled model, and both together.")
    ] = False,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME...",
            help="Compare with these models: figures, and how often answers differ.",
            autocompletion=complete_name,
        ),
    ] = None,
    parquet: Parquet = False,
    label_column: LabelColumn = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Top-1, top-5 and loss over every image once, beside the published figures.

    Exit 0; 1: the full validation set was seen, and top-1 falls short of the published one by more
    than another machine explains; 130: stopped by Ctrl-C.
    """
    data = with_label_column(data, label_column)
    is_main = os.environ.get("RANK", "0") == "0"
    bar = Bar("images")
    try:
        with bar if is_main else nullcontext() as progress:
            options: dict[str, Any] = {
                "batch_size": batch_size,
                "workers": workers,
                "device": device,
                "labels": labels,
                "label_file": label_file,
                "progress": progress,
                "say": note if is_main else ignore,
            }
            if heads or beside:
                from deit_zoo.api import compare_answers

                check_alone(gpus, processes, page, parquet)
                options["device"] = chosen_device(device)
                comparison = compare_answers(
                    name, data, heads=heads, beside=beside or (), **options
                )
                measured = comparison.figures[BOTH if heads else name]
            else:
                comparison = None
                measured = run_evaluation(
                    name,
                    data,
                    gpus=gpus,
                    processes=processes,
                    report=page,
                    parquet=parquet,
                    **options,
                )
    except KeyboardInterrupt:
        if is_main:
            after = f" after {bar.done:,} of {bar.total:,} images" if bar.total else ""
            talk.print(f"stopped{after}")
        raise typer.Exit(130) from None
    model = info(name)
    report = report_of(model, labels, measured)
    if comparison is not None:
        report |= asdict(comparison)
    if is_main and as_json:
        print_json(report)
    elif is_main:
        print_report(report, model)
        if comparison is not None:
            print_comparison(comparison, model if labels is None else None)
    # Of several processes the first answers; another's exit 1 would end it before it has spoken.
    if is_main and report["reached"] is False:
        raise typer.Exit(1)


def report_of(model: ModelInfo, labels: str | None, measured: Evaluation) -> dict[str, Any]:
    """What was measured beside what was published; `reached` is None where nobody can say."""
    published = published_for(model, labels)
    figures = {}
    for figure in measured.names:
        value, its = getattr(measured, figure), getattr(published, figure, None)
        difference = None if its is None else round(value - its, 6)
        figures[figure] = {"measured": value, "published": its, "difference": difference}
    reached, sentence = judge(model, labels, published, measured)
    return {
        "model": model.name,
        "labels": labels,
        "num_images": measured.num_images,
        "num_judged": measured.num_images - measured.num_unjudged,
        **figures,
        "source": published.source if published else None,
        "by_timm": model.checkpoint is not None and model.checkpoint.is_timms(published),
        "reached": reached,
        "verdict": sentence,
    }


def print_report(report: dict[str, Any], model: ModelInfo) -> None:
    """The same for people."""
    from deit_zoo.evaluation.imagenet_variants import TITLES

    rows = [("", "measured", "published", "difference")]
    for figure in (figure for figure in FIGURES if figure in report):
        decimals = FIGURES[figure]
        measured, published, _ = report[figure].values()
        beside = "–", "–"
        if published is not None:
            difference = round(measured - published, decimals) + 0.0  # no negative zero
            star = "*" if report["by_timm"] else ""
            beside = f"{published:.{decimals}f}{star}", f"{difference:+.{decimals}f}"
        rows.append((figure, f"{measured:.{decimals}f}", *beside))
    print_table(rows)
    images, judged = report["num_images"], report["num_judged"]
    line = f"{images:,} images, each once"
    if judged < images:
        line += f"; {judged:,} have a label and count, {images - judged:,} have none"
    out.print(f"{TITLES[report['labels']]}: {line}" if report["labels"] else line)
    if model.checkpoint:
        size = resolve(model.name).img_size
        resized = int(size / model.checkpoint.crop_pct)
        out.print(f"short side resized to {resized} pixels, centre crop of {size}")
    if report["source"]:
        by = "* measured by timm" if report["by_timm"] else "published"
        out.print(f"{by}: {escape(report['source'])}")
    colour = {True: "green", False: "red", None: "yellow"}[report["reached"]]
    out.print(f"[{colour}]{escape(report['verdict'])}[/]")


def check_alone(gpus: int | None, processes: int | None, page: Path | None, parquet: bool) -> None:
    """Raises ZooError where answers are to be compared that several processes would give."""
    from deit_zoo.machine import world_size

    if page is not None or parquet or max(gpus or 1, processes or 1, world_size() or 1) > 1:
        raise ZooError(
            "--heads and --beside compare answers in one process and write no page; leave out "
            "--gpus, --processes, --report and --parquet"
        )


def print_comparison(comparison: Comparison, model: ModelInfo | None) -> None:
    """Two tables: the figures of each classifier, and the percentage on which two disagree."""
    compared = {name: decimals for name, decimals in FIGURES.items() if name != "mean_ap"}
    rows = [("answers of", *compared, "published")]
    for key, figures in comparison.figures.items():
        cells = (f"{getattr(figures, name):.{decimals}f}" for name, decimals in compared.items())
        rows.append((key, *cells, published_of(key, model)))
    out.print()
    print_table(rows, right=range(1, 5))
    names = list(comparison.disagreement)
    out.print()
    table = [("disagreement in %", *(str(number) for number in range(1, len(names))))]
    for number, (one, others) in enumerate(comparison.disagreement.items(), start=1):
        shares = [f"{100 * others[other]:.1f}" for other in names[: number - 1]]
        table.append((f"{number} {one}", *shares, *[""] * (len(names) - number)))
    print_table(table, right=range(1, len(names)))


def published_of(classifier: str, model: ModelInfo | None) -> str:
    """The published top-1 of a head, or of a model by its name."""
    from deit_zoo.evaluation.agreement import HEADS

    if model is None:
        return "–"
    record = model.checkpoint
    if classifier not in (*HEADS, BOTH):
        spec = lookup(classifier)
        record = None if spec is None else info(spec.name).checkpoint
    metric = None if record is None else record.metric
    if record is not None and classifier in HEADS:
        metric = record.metrics.get(f"{HEAD_KEY}{classifier}")
    return "–" if metric is None or metric.top1 is None else f"{metric.top1:g}"


def run_evaluation(name: str, data: str, **options: Any) -> Evaluation:
    """The figures, together with the processes that torchrun started, where it did."""
    from deit_zoo.api import evaluate
    from deit_zoo.machine import usable_device, world_size

    device, gpus, processes = (options[key] for key in ("device", "gpus", "processes"))
    if (world_size() or 1) == 1:
        if gpus is None and processes is None:
            options["device"] = chosen_device(device)
        return evaluate(name, data, **options)
    from deit_zoo.distributed import init_distributed

    started = os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])
    typed = gpus or processes
    if typed is not None and str(typed) != started:
        raise ZooError(
            f"torchrun started {started} processes here, but {typed} are asked for; make the two "
            "agree"
        )
    on_cpu = gpus == 0 or processes is not None
    kind = "cuda" if gpus else "cpu" if on_cpu else usable_device(device).type
    with init_distributed(kind) as group:
        return evaluate(name, data, group=group, **options | {"device": None})


def published_for(model: ModelInfo, labels: str | None) -> Metric | None:
    """The published figures on these images, or those that timm measured."""
    if model.checkpoint is None:
        return None
    return model.checkpoint.metric_on(labels) if labels else model.checkpoint.metric


def judge(
    model: ModelInfo, labels: str | None, published: Metric | None, measured: Evaluation
) -> tuple[bool | None, str]:
    """Whether the published top-1 was reached, and the sentence that says so or why nobody can."""
    from deit_zoo.data.digits import NUM_VAL
    from deit_zoo.recipes.recipe import IMAGENET_VAL

    if published is None or published.top1 is None or model.checkpoint is None:
        return None, "no published figure to compare with"
    if labels is not None:
        return None, "no judgement: only the model's own validation set is judged"
    full = {"imagenet1k": IMAGENET_VAL, "digits": NUM_VAL}[model.checkpoint.labels]
    if measured.num_images != full:
        return None, (
            f"not the full validation set ({measured.num_images:,} images of {full:,}), so no "
            "judgement"
        )
    difference = round(measured.top1 - published.top1, 6)
    if difference < -RERUN_TOLERANCE:
        return False, (
            f"top-1 falls {-difference:.3f} short of the published figure; other machines explain "
            f"{RERUN_TOLERANCE:g}"
        )
    return True, f"top-1 is the published figure, or at most {RERUN_TOLERANCE:g} below it"


def note(sentence: str) -> None:
    """What is worth knowing of the classes."""
    talk.print(f"note: {escape(sentence)}")
