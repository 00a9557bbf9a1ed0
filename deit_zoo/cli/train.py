"""`deit-zoo reproduce` and `finetune`: the plan, the run, the verdict."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from deit_zoo.cli.console import Bar, ignore, out, print_rows, talk
from deit_zoo.cli.options import (
    MOST,
    Changes,
    Device,
    DryRun,
    Gpus,
    ImgSize,
    LabelColumn,
    LogTo,
    NameOrRun,
    Parquet,
    Processes,
    RecipeName,
    Resume,
    Slurm,
    TrainData,
    TrainWorkers,
    complete_name,
    path_option,
    pixels,
    with_label_column,
)
from deit_zoo.errors import DataError
from deit_zoo.recipes.recipe import shown

if TYPE_CHECKING:
    import torch

    from deit_zoo.recipes.plan import Plan
    from deit_zoo.runs.receipt import Verdict
    from deit_zoo.training.job import Job


def reproduce_(
    name: RecipeName,
    variant: Annotated[
        str | None,
        typer.Option(help="A row of the paper's tables, as no-mixup; `list --recipes` has all."),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(help="GPUs of a node; 0 is the CPU. One device unless given.")
    ] = None,
    device: Device = "auto",
    data: TrainData = None,
    label_column: LabelColumn = None,
    output: Annotated[
        Path | None, path_option("Where the run lives; runs/NAME unless given.")
    ] = None,
    changes: Changes = None,
    workers: TrainWorkers = None,
    processes: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Training processes of a node, on the CPU.")
    ] = None,
    nodes: Annotated[
        int, typer.Option(min=1, max=MOST, help="Machines; type the same on each.")
    ] = 1,
    rendezvous: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the nodes meet.")
    ] = None,
    log_to: LogTo = None,
    resume: Resume = "auto",
    slurm: Slurm = None,
    dry_run: DryRun = False,
) -> None:
    """Train a checkpoint by its recipe, measure it and judge it against the published figure.

    Exit 0: reproduced, or no figure to compare with; 1: not reproduced; 75: asked to stop by
    SIGTERM, SIGUSR1 or a closed terminal (SIGHUP), queue it again; 130: stopped by Ctrl-C. A state
    is on disk then.
    """
    from deit_zoo.recipes import variant_name
    from deit_zoo.training.checks import check_data
    from deit_zoo.training.launch import (
        layout_of_run,
        make_plan,
        recipe_for,
        reproduce,
        training_device,
    )

    data = None if data is None else with_label_column(data, label_column)
    name = recipe_for(name).name if variant is None else variant_name(name, variant)
    place = training_device(gpus, processes, device)
    machine: dict[str, Any] = {
        "gpus": gpus,
        "changes": [*(changes or ()), *([f"log_to={log_to}"] if log_to else [])],
        "workers": workers,
        "processes": processes,
        "nodes": nodes,
    }
    output = output or Path("runs") / name
    if dry_run or slurm is not None:
        num_images = None
        if data is not None:
            from deit_zoo.data.survey import validate

            with Bar("files") as bar:
                num_images = validate(data, bar).train.images
        machine["changes"] += layout_of_run(output, machine["changes"])
        plan = make_plan(name, num_images=num_images, device=place, **machine)
        check_planned(plan)
        if recipe_for(name).data == "folder":  # which is not known to hold so many images
            check_data(plan, data)
        print_rows(out, [*plan.lines(), ("output", str(output))])
        if slurm is not None and not dry_run:
            write_script(plan, slurm, data, resume)
        return
    speaks = is_main_process((gpus or processes or 1) * nodes, nodes)
    say_device(place, speaks)

    def show(plan: Plan) -> None:
        own = plan.recipe.name == recipe_for(name).name  # or a stage that is trained first
        place_of_run = output if own else output.parent / plan.recipe.name
        print_rows(talk, [*plan.lines(), ("output", str(place_of_run))])
        if nodes > 1:
            others = "the other node" if nodes == 2 else f"the other {nodes - 1} nodes"
            folder = escape(str(output))
            talk.print(f"type the same command on {others}; {folder} must be one shared folder")

    verdict = run(
        lambda **callbacks: reproduce(
            name,
            device=device,
            output=output,
            data=data,
            rendezvous=rendezvous,
            resume=resume,
            tell=lambda sentence: talk.print(escape(sentence)),
            **machine,
            **callbacks,
        ),
        show,
        speaks,
    )
    if not speaks:  # an exit 1 would end the first process before it has spoken
        return
    colour = {True: "green", False: "red", None: "yellow"}[verdict.reproduced]
    out.print(f"[bold {colour}]{escape(verdict.sentence())}[/]")
    talk.print(f"weights, receipt, log and curve are in {escape(str(output))}")
    if verdict.reproduced is False:
        raise typer.Exit(1)


def finetune_(
    name: NameOrRun,
    data: Annotated[
        str | None,
        typer.Option(
            help="A folder with train/ and val/, archives, hfds:NAME, a CSV of labels (one for "
            "each image, or multi-label) ...; a run's own unless given."
        ),
    ] = None,
    label_column: LabelColumn = None,
    output: Annotated[
        Path | None, path_option("Where the run lives; runs/NAME_RECIPE unless given.")
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(help="custom, imagenet384, cifar10, cifar100, cars, flowers, inat18, inat19."),
    ] = "custom",
    gpus: Gpus = None,
    device: Device = "auto",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the images (default: the recipe's).")
    ] = None,
    img_size: ImgSize = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="A model, or a run of one, that knows these classes.",
            autocompletion=complete_name,
        ),
    ] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(
            help="Each block learns at this times the rate of the one above it, such as 0.75."
        ),
    ] = None,
    freeze: Annotated[
        str | None,
        typer.Option(
            help="backbone: train the head alone; all-but-attention: train attention, positions "
            "and head."
        ),
    ] = None,
    val_share: Annotated[
        float | None,
        typer.Option(
            help="Keep this share of each class apart, such as 0.2, where there is no val/."
        ),
    ] = None,
    changes: Changes = None,
    workers: TrainWorkers = None,
    processes: Processes = None,
    log_to: LogTo = None,
    parquet: Parquet = False,
    resume: Resume = "auto",
    slurm: Slurm = None,
    dry_run: DryRun = False,
) -> None:
    """Train a published model, or a run further, on your own classes: a folder of images for each.

    Exit 0: done; 1: a set of the paper's, whose figure was not reproduced; 75: asked to stop by
    SIGTERM, SIGUSR1 or a closed terminal (SIGHUP), queue it again; 130: stopped by Ctrl-C. A state
    is on disk then.
    """
    from deit_zoo.training import finetune
    from deit_zoo.training.launch import training_device

    data = with_label_column(finetune.data_of(name) if data is None else data, label_column)
    fields = {
        "epochs": epochs,
        "img_size": pixels(img_size),
        "teacher": teacher,
        "layer_decay": layer_decay,
        "freeze": freeze,
        "log_to": log_to,
        "parquet": parquet or None,
    }
    all_changes = [
        f"{field}={shown(value)}" for field, value in fields.items() if value is not None
    ]
    if teacher is not None and not any(c.startswith("distillation=") for c in changes or ()):
        all_changes.append("distillation=hard")
    all_changes += changes or ()
    machine: dict[str, Any] = {
        "recipe": recipe,
        "gpus": gpus,
        "changes": all_changes,
        "workers": workers,
        "processes": processes,
    }
    place = training_device(gpus, processes, device)
    plan = finetune.make_plan(name, device=place, **machine)
    output = output or Path("runs") / plan.recipe.name
    if dry_run or slurm is not None:
        with Bar("files") as bar:
            plan, splits, remarks = finetune.planned(
                plan,
                data,
                val_share=val_share,
                chosen=finetune.chosen_fields(all_changes),
                progress=bar,
            )
        check_planned(plan)
        print_rows(out, [*finetune_rows(plan), *splits, ("output", str(output))])
        for remark in remarks:
            talk.print(escape(remark))
        if slurm is not None and not dry_run:
            write_script(plan, slurm, data, resume)
        return
    speaks = is_main_process(plan.processes)
    say_device(place, speaks)
    verdict = run(
        lambda **callbacks: finetune.finetune(
            name,
            device=device,
            data=data,
            output=output,
            val_share=val_share,
            resume=resume,
            tell=lambda sentence: talk.print(escape(sentence)),
            **machine,
            **callbacks,
        ),
        lambda plan: print_rows(talk, [*finetune_rows(plan), ("output", str(output))]),
        speaks,
    )
    if not speaks:
        return
    figure, folder = f"[bold green]{verdict.reached.words()}[/]", escape(str(output))
    out.print(f"{figure}; weights, labels, receipt and curve are in {folder}")
    for line in usage_lines(plan.recipe.architecture, output):
        out.print(escape(line))
    if verdict.published is not None:  # of a set of Table 7
        out.print(escape(verdict.sentence()))
    if verdict.reproduced is False:
        raise typer.Exit(1)


def teacher_labels_(
    name: RecipeName,
    output: Annotated[
        Path, path_option("The folder to keep the labels in; one that is incomplete is completed.")
    ],
    data: TrainData = None,
    gpus: Gpus = None,
    device: Device = "auto",
    changes: Changes = None,
    workers: TrainWorkers = None,
    processes: Processes = None,
    dry_run: DryRun = False,
) -> None:
    """Ask a recipe's teacher once for all images of a run, for every student that sees the same.

    `deit-zoo reproduce NAME --teacher-labels DIR` reads them, and builds no teacher where all are
    known.
    """
    from deit_zoo.training.teaching import label_images, label_plan

    plan, devices = label_plan(
        name,
        output,
        gpus=gpus,
        device=device,
        changes=changes or (),
        workers=workers,
        processes=processes,
    )
    check_teacher_of(plan)
    shown = ("recipe", "data", "length", "batch", "distillation", "teacher labels")
    print_rows(out if dry_run else talk, [row for row in plan.lines() if row[0] in shown])
    if dry_run:
        return
    with ExitStack() as counting, Bar("steps") as steps:
        files = counting.enter_context(Bar("files"))

        def progress(done: int, total: int) -> None:
            counting.close()  # two bars at once would write over each other
            steps(done, total)

        sha256 = label_images(plan, data, output, devices, progress=progress, files=files)
    if sha256 is None:
        raise DataError(
            f"the labels in {output} are not all known: some images of {data} cannot be read, and "
            "what is said of those in their place is not kept; `deit-zoo data check` lists them"
        )
    has = f"has the labels of {plan.recipe.epochs:,} epochs, SHA-256 {sha256}"
    out.print(f"{escape(str(output))} {has}")
    words = ["deit-zoo", "reproduce", plan.recipe.name, "--teacher-labels", str(output)]
    words += ["--data", data] if data is not None else []
    words += [word for change in changes or () for word in ("--set", change)]
    talk.print(f"type: {escape(shlex.join(words))}")


def run(train: Callable[..., Verdict], show: Callable[[Plan], None], speaks: bool) -> Verdict:
    """Start a run: a bar while files are counted, then its plan by `show`.

    A run that was asked to stop says how to go on, and exits 75 or 130.
    """
    from deit_zoo.training.signals import Interrupted, signals_as_exceptions
    from deit_zoo.training.slurm import REQUEUE

    begun: list[Job] = []
    try:
        # A warning may come before the first step, whose loop only notes it.
        with signals_as_exceptions(), ExitStack() as counting:
            if not speaks:
                return train(say=ignore, progress=ignore)
            bar = counting.enter_context(Bar("files"))

            def say(job: Job) -> None:
                begun.append(job)
                counting.close()  # two bars at once would write over each other
                show(job.plan)

            return train(say=say, progress=bar)
    except (Interrupted, KeyboardInterrupt) as stopped:
        number = stopped.number if isinstance(stopped, Interrupted) else signal.SIGINT
        if speaks:
            words = shlex.join(["deit-zoo", *sys.argv[1:]])
            command = re.sub(r" --resume[ =]never\b", "", words)  # there may be a run by now
            how = "; this continues the run" if begun else " before it trained; type it again"
            talk.print(f"stopped{how}: {escape(command)}")
        raise typer.Exit(130 if number == signal.SIGINT else REQUEUE) from None


def is_main_process(processes: int, nodes: int = 1) -> bool:
    """Whether this process talks, of those that torchrun or srun started for a run of so many."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", os.environ.get("SLURM_NTASKS"))
    # Other tasks are runs of their own, as of a sweep.
    shares = nodes > 1 or (processes > 1 and tasks == str(processes))
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0") if shares else "0") == "0"


def check_planned(plan: Plan) -> None:
    """Before a run that is only planned: what it would be refused for."""
    from deit_zoo.recipes import RECIPES
    from deit_zoo.recipes.first_stage import resolve_init_from
    from deit_zoo.training.checks import check_network

    # What a recipe of the zoo has can be built, and its first stage may yet have to be trained.
    shape, shipped = attrgetter("img_size", "blocks", "stem"), RECIPES.get(plan.recipe.name)
    if shipped is None or plan.recipe.init_from != shipped.init_from:
        resolve_init_from(plan.recipe)
    if shipped is None or shape(plan.recipe) != shape(shipped):
        check_network(plan.recipe)
    check_teacher_of(plan)


def check_teacher_of(plan: Plan) -> None:
    """Before labels are asked for, or a run is planned: whether the teacher can be had."""
    if plan.recipe.teacher is not None:
        from deit_zoo.training.checks import check_extra
        from deit_zoo.training.teacher import check

        check_extra()
        check(plan.recipe)


def say_device(device: torch.device | None, speaks: bool) -> None:
    """Say once which GPU it is, where nobody typed a number of them."""
    if device is not None and device.type != "cpu" and speaks:
        talk.print(f"on {device}")


def write_script(plan: Plan, file: Path, data: str | None, resume: str) -> None:
    """The Slurm script of the run that was typed, without `--slurm`."""
    from deit_zoo.errors import RecipeError
    from deit_zoo.files import write_whole
    from deit_zoo.training import slurm
    from deit_zoo.training.checks import check_data

    check_data(plan, data)
    if resume == "never":
        raise RecipeError(
            "--resume never with --slurm: a job that is queued again continues its run; leave "
            "--resume out"
        )
    if file.exists():
        raise RecipeError(f"{file} exists; give a new file as --slurm, or remove it")
    words = sys.argv[1:]
    typed = [
        word
        for number, word in enumerate(words)
        if not word.startswith("--slurm") and words[number - 1 : number] != ["--slurm"]
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, slurm.script(plan, typed).encode())
    command = shlex.join(["sbatch", str(file)])
    talk.print(escape(f"{file} asks for {slurm.asked(plan)}; type: {command}"))


def finetune_rows(plan: Plan) -> list[tuple[str, str]]:
    """The plan, with the reason for each value that no source gives, or more than one."""
    from deit_zoo.training.finetune import reasons

    rows = [row for row in plan.lines() if row[0] != "partly assumed"]
    return rows + reasons(plan.recipe)


def usage_lines(name: str, output: Path) -> list[str]:
    """What to type, in Python and here, to use what was trained."""
    return [
        "import deit_zoo",
        f"model = deit_zoo.create({name!r}, checkpoint={str(output)!r})",
        f"deit-zoo classify --model {shlex.quote(str(output))} PHOTO.jpg",
    ]
