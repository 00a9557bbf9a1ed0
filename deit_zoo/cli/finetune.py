"""`deit-zoo finetune`: a published model on the classes of a folder."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from deit_zoo.cli.console import Bar, Name, out, print_rows, talk
from deit_zoo.cli.train import ignore, is_first, stopping

if TYPE_CHECKING:
    from deit_zoo.recipes.plan import Plan


def finetune_(
    name: Name,
    data: Annotated[
        str, typer.Option(help="A folder with train/ and val/ of class folders, or hfds:NAME.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="Where the run lives; runs/NAME_RECIPE unless given.")
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="custom, imagenet384, cifar10, cifar100, cars or inat18.")
    ] = "custom",
    gpus: Annotated[
        int | None, typer.Option(min=0, help="GPUs; 0 is the CPU. One, where there is one.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the images.")] = None,
    img_size: Annotated[
        int | None, typer.Option(min=1, help="Pixels; positions are resampled.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="A model, or a run of one, that knows these classes.")
    ] = None,
    layer_decay: Annotated[
        float | None, typer.Option(help="The share of the rate from a block to that below it.")
    ] = None,
    freeze: Annotated[str | None, typer.Option(help="backbone or all-but-attention.")] = None,
    val_share: Annotated[
        float | None,
        typer.Option(help="Keep this share of each class apart, where there is no val/."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Change the recipe or the machine."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read images, beside each training.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Training processes, on the CPU.")
    ] = None,
    resume: Annotated[str, typer.Option(help="auto continues a run in --output; never.")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
) -> None:
    """Train a published model on your own classes: a folder of images for each.

    Exit 0: done; 75: asked to stop by SIGTERM or SIGUSR1, queue it again; 130: stopped by Ctrl-C.
    A state is on disk then.
    """
    from deit_zoo.training import finetune
    from deit_zoo.training.job import Job

    options = {
        "epochs": epochs,
        "img_size": img_size,
        "teacher": teacher,
        "layer_decay": layer_decay,
        "freeze": freeze,
    }
    typed = [f"{field}={value}" for field, value in options.items() if value is not None]
    if teacher is not None and not any(c.startswith("distillation=") for c in changes or ()):
        typed.append("distillation=hard")
    typed += changes or ()
    gpus = gpus_for(processes) if gpus is None else gpus
    plan = finetune.make_plan(
        name, recipe=recipe, gpus=gpus, changes=typed, workers=workers, processes=processes
    )
    if dry_run:
        with Bar("files") as bar:
            plan, told = finetune.planned(
                plan, data, val_share=val_share, mine=finetune.chosen(typed), progress=bar
            )
        print_rows(out, rows(plan))
        talk.print(escape(told)) if told else None
        return
    output = output or Path("runs") / plan.recipe.name
    first = is_first()

    def say(job: Job) -> None:
        counting.close()  # two bars at once would write over each other
        print_rows(talk, rows(job.plan))

    with stopping(first), ExitStack() as counting:
        verdict = finetune.finetune(
            name,
            data=data,
            output=output,
            recipe=recipe,
            gpus=gpus,
            val_share=val_share,
            changes=typed,
            workers=workers,
            processes=processes,
            resume=resume,
            tell=lambda sentence: talk.print(escape(sentence)),
            say=say,
            progress=counting.enter_context(Bar("files")) if first else ignore,
        )
    if first:
        reached = verdict.reached
        told = f"top-1 {reached.top1:.2f} % on {reached.num_images:,} images"
        out.print(f"[bold green]{told}[/]; weights, labels, receipt and curve are in {output}")
        for line in ways_to_use(plan.recipe.architecture, output):
            out.print(escape(line))


def rows(plan: Plan) -> list[tuple[str, str]]:
    """The plan, with the reason for each value that no source gives, or more than one."""
    from deit_zoo.training.finetune import reasons

    told = [row for row in plan.lines() if row[0] != "partly assumed"]
    return told + reasons(plan.recipe)


def gpus_for(processes: int | None) -> int:
    """One GPU where there is one, and nothing else was asked for."""
    if processes is not None:
        return 0
    import torch

    return int(torch.cuda.is_available())


def ways_to_use(name: str, output: Path) -> list[str]:
    """What to type, in Python and here, to use what was trained."""
    return [
        "import deit_zoo",
        f"model = deit_zoo.create({name!r}, checkpoint={str(output)!r})",
        f"deit-zoo classify --model {shlex.quote(str(output))} PHOTO.jpg",
    ]
