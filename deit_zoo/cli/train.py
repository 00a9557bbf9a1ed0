"""`deit-zoo reproduce`: the plan, the run, the verdict. Data to stdout, talk to stderr."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from deit_zoo.cli.console import Bar, Name, out, print_rows, talk

if TYPE_CHECKING:
    from deit_zoo.recipes.plan import Plan


def reproduce_(
    name: Name,
    gpus: Annotated[int, typer.Option(help="GPUs of a node; 0 is the CPU.")],
    data: Annotated[
        str | None, typer.Option(help="A folder with train/ and val/, or hfds:NAME_OR_PATH.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where the run lives; runs/NAME unless given.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Change the recipe or the machine."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read images, beside each training.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Training processes of a node, on the CPU.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines; type the same on each.")] = 1,
    rendezvous: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the nodes meet.")
    ] = None,
    resume: Annotated[str, typer.Option(help="auto continues a run in --output; never.")] = "auto",
    slurm: Annotated[
        Path | None, typer.Option(help="Write a Slurm script for this run, and stop.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
) -> None:
    """Train a checkpoint by its recipe, measure it and judge it against the published figure.

    Exit 0: reproduced, or no figure to compare with; 1: not reproduced; 75: asked to stop by
    SIGTERM or SIGUSR1, queue it again; 130: stopped by Ctrl-C. A state is on disk then.
    """
    from deit_zoo.errors import RecipeError
    from deit_zoo.training.job import Job
    from deit_zoo.training.launch import make_plan, recipe_for, reproduce

    num_images = None
    if dry_run or slurm is not None:
        if data is not None:
            from deit_zoo.data.survey import validate

            with Bar("files") as bar:
                num_images = validate(data, bar).train.images
        plan = make_plan(
            name,
            gpus=gpus,
            changes=changes or (),
            workers=workers,
            processes=processes,
            nodes=nodes,
            num_images=num_images,
        )
        print_rows(out, plan.lines())
        if slurm is not None and not dry_run:
            if resume == "never":
                raise RecipeError(
                    "--resume never with --slurm: a job that is queued again continues its run; "
                    "leave --resume out"
                )
            write_script(plan, slurm)
        return
    output = output or Path("runs") / recipe_for(name).name
    first = is_first()

    def say(job: Job) -> None:
        counting.close()  # two bars at once would write over each other
        print_rows(talk, job.plan.lines())
        if nodes > 1:
            others = "the other node" if nodes == 2 else f"the other {nodes - 1} nodes"
            talk.print(f"type the same command on {others}; {output} must be one shared folder")

    with stopping(first), ExitStack() as counting:
        verdict = reproduce(
            name,
            gpus=gpus,
            output=output,
            data=data,
            changes=changes or (),
            workers=workers,
            processes=processes,
            nodes=nodes,
            rendezvous=rendezvous,
            resume=resume,
            say=say if first else ignore,
            progress=counting.enter_context(Bar("files")) if first else ignore,
        )
    if first:
        colour = {True: "green", False: "red", None: "yellow"}[verdict.reproduced]
        out.print(f"[bold {colour}]{escape(verdict.sentence())}[/]")
        talk.print(f"weights, receipt, log and curve are in {output}")
    if verdict.reproduced is False:
        raise typer.Exit(1)


def is_first() -> bool:
    """Whether this process is the one that talks; torchrun and srun start several."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


@contextmanager
def stopping(first: bool) -> Iterator[None]:
    """Within it, a run that was asked to stop says how to go on, and exits 75 or 130."""
    from deit_zoo.training.signals import Interrupted
    from deit_zoo.training.slurm import REQUEUE

    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stopped:
        number = stopped.number if isinstance(stopped, Interrupted) else signal.SIGINT
        if first:
            command = shlex.join(["deit-zoo", *sys.argv[1:]])
            talk.print(f"stopped; this continues the run: {escape(command)}")
        raise typer.Exit(130 if number == signal.SIGINT else REQUEUE) from None


def ignore(*_: object) -> None:
    """What a process tells that is not the first: nothing."""


def write_script(plan: Plan, file: Path) -> None:
    """The Slurm script of the run that was typed, without `--slurm`."""
    from deit_zoo.errors import RecipeError
    from deit_zoo.files import write_whole
    from deit_zoo.training import elastic, slurm

    if file.exists():
        raise RecipeError(f"{file} exists; give a new file as --slurm, or remove it")
    words = sys.argv[1:]
    typed = [
        word
        for number, word in enumerate(words)
        if not word.startswith("--slurm") and words[number - 1 : number] != ["--slurm"]
    ]
    write_whole(file, slurm.script(plan, ["deit-zoo", *typed], elastic.PORT).encode())
    talk.print(f"{file} is written; type: sbatch {shlex.quote(str(file))}")
