"""The `deit-zoo` command: parse, call, print. Data goes to stdout, talk to stderr.

Exit 0: done; 1: the answer is no (an image could not be read, a figure was not reached); 2: what
was typed cannot be done, said in one sentence.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from deit_zoo.cli.attention import attention_
from deit_zoo.cli.benchmark import benchmark_
from deit_zoo.cli.classify import classify_
from deit_zoo.cli.console import (
    check_output,
    out,
    print_error,
    print_json,
    print_rows,
    print_table,
    survive_any_console,
    talk,
)
from deit_zoo.cli.data import data_app
from deit_zoo.cli.doctor import doctor_
from deit_zoo.cli.evaluate import evaluate_
from deit_zoo.cli.export import export_
from deit_zoo.cli.options import AsJson, NameOrRun, example, path_option
from deit_zoo.cli.program import Program, end_output
from deit_zoo.cli.runs import compare_, diff_, plot_
from deit_zoo.cli.serve import serve_
from deit_zoo.cli.train import finetune_, reproduce_, teacher_labels_
from deit_zoo.cli.weights import weights_app
from deit_zoo.errors import RecipeError, ZooError, redact
from deit_zoo.facts.model import ModelInfo, rows_of_model
from deit_zoo.facts.table import HEADING, NUMBERS, models_page, notes_of_models, rows_of_models
from deit_zoo.files import write_whole, writing
from deit_zoo.machine import world_size
from deit_zoo.registry.names import lookup, normalize, resolve
from deit_zoo.version import __version__
from deit_zoo.zoo import info, list_models

SECONDS_FOR_THE_FIRST = 10.0
# The groups of --help.
USE, TRAIN, LOOK, WEIGHTS = "Use", "Train", "Look", "Weights and machine"

app = typer.Typer(
    cls=Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Data-efficient image Transformers: exact, verified, reproducible.",
    epilog="Names are completed by Tab, once deit-zoo --install-completion has told the shell.",
)
app.add_typer(data_app, name="data", rich_help_panel=TRAIN)
app.add_typer(weights_app, name="weights", rich_help_panel=WEIGHTS)


def run() -> None:
    """Run the command; a ZooError is one line and exit 2, with `--debug` a traceback."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    status: str | int | None = 0
    try:
        survive_any_console()
        sys.argv[1:] = with_fields(with_each(sys.argv[1:]))
        app()
    except SystemExit as end:
        status = end.code
    except ZooError as error:
        if debug:
            sys.stderr.write(redact(traceback.format_exc()))
        else:
            print_error(error, let_the_first_speak())
        status = 2
    sys.exit(end_output(status))


def let_the_first_speak() -> str:
    """What stands before an error of this process.

    Of several the first tells what all of them found, and their launcher ends the others when it is
    gone. If one came to its end sooner, nobody would speak; who is still here after a while has an
    error of its own.
    """
    rank = os.environ.get("RANK", "0")
    if rank == "0" or world_size() in (None, 1):
        return "error"
    time.sleep(SECONDS_FOR_THE_FIRST)
    return f"error of process {rank}"


def with_each(words: list[str]) -> list[str]:
    """`evaluate NAME --beside A B` as `--beside A --beside B`."""
    typed: list[str] = []
    for word in words if words[:1] == ["evaluate"] else ():
        listing = typed[-2:-1] == ["--beside"] and not word.startswith("-")
        typed += ["--beside", word] if listing else [word]
    return typed or words


def with_fields(words: list[str]) -> list[str]:
    """`--lr 0.001` of a command that trains as `--set lr=0.001`: a field of the recipe, or of the
    machine, that has no option of its own, or a word that is like one, for the sentence on it."""
    if not words or words[0] not in ("reproduce", "finetune", "teacher-labels"):
        return words
    from deit_zoo.recipes.plan import nearest_field

    command = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    own = {option for parameter in command.params for option in parameter.opts}
    typed, rest = [], iter(words)
    for word in rest:
        option, sign, value = word.partition("=")
        field = option.removeprefix("--").replace("-", "_")
        is_own = not word.startswith("--") or option in own
        if is_own or (near := nearest_field(field, own)) is None:
            typed.append(word)
        elif (value := value if sign else next(rest, "")) and not value.startswith("--"):
            typed += ["--set", f"{field}={value}"]
        else:
            raise ZooError(f"{option} has no value; type --set {near}=VALUE")
    return typed


def write_page(models: Sequence[ModelInfo], file: Path, curves: Sequence[Path]) -> None:
    """Write the page of the models, with the speeds of files that `benchmark --curve` wrote."""
    from deit_zoo.page.speeds import read_curve
    from deit_zoo.page.zoo_page import BEGINS, zoo_page

    if not models:
        raise ZooError("no model passes these filters; `deit-zoo list` shows all")
    check_output(file, "--html", suffix=".html", begins=BEGINS)
    page = zoo_page(models, [read_curve(curve) for curve in curves])
    with writing(file, "--html"):
        write_whole(file, page.encode())
    talk.print(f"the page is {escape(str(file))}; open it in a browser")


def _show_version(show: bool) -> None:
    if show:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Options of every command."""


@app.command("list", rich_help_panel=USE, epilog=example("list cait --sort top1"))
def list_(
    pattern: Annotated[str, typer.Argument(help="A word, or a pattern with * and ?.")] = "*",
    family: Annotated[
        str | None, typer.Option(help="deit, deit3, cait, convnet or regnet.")
    ] = None,
    pretrained: Annotated[
        bool | None, typer.Option(help="Only models with (or without) a checkpoint.")
    ] = None,
    min_top1: Annotated[float | None, typer.Option(help="At least this top-1, in percent.")] = None,
    max_params: Annotated[
        float | None, typer.Option(help="At most so many million parameters.")
    ] = None,
    img_size: Annotated[
        int | None, typer.Option(help="Only models of this image size, in pixels.")
    ] = None,
    sort: Annotated[str, typer.Option(help="name, top1, params, gmacs or img_size.")] = "name",
    as_json: AsJson = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table as Markdown.")
    ] = False,
    recipes: Annotated[
        bool, typer.Option("--recipes", help="Recipes instead: of checkpoints, stages, variants.")
    ] = False,
    html: Annotated[
        Path | None, path_option("Write a page for a browser: table, chart, all facts.", "FILE")
    ] = None,
    curve: Annotated[
        list[Path] | None,
        path_option("Speeds for --html, of benchmark --curve --output FILE.", "FILE"),
    ] = None,
) -> None:
    """The table of models."""
    if curve and html is None:
        raise ZooError("--curve is drawn on a page; type --html FILE.html too")
    if html is not None and (recipes or as_json or markdown):
        raise ZooError(
            "--html FILE is one answer and --recipes, --json, --markdown others; give one"
        )
    if as_json and markdown:
        raise ZooError("--json and --markdown are two answers; give one")
    if recipes:
        from deit_zoo.cli.recipes import print_recipes

        filters = (family, pretrained, min_top1, max_params, img_size)
        if markdown or sort != "name" or any(value is not None for value in filters):
            raise ZooError("--recipes goes with a pattern and --json; leave out what else is typed")

        print_recipes(pattern, as_json=as_json)
        return
    names = list_models(
        pattern,
        family=family,
        pretrained=pretrained,
        min_top1=min_top1,
        max_params=None if max_params is None else max_params * 1e6,
        img_size=img_size,
        sort=sort,
    )
    models = [info(name) for name in names]
    if html is not None:
        write_page(models, html, curve or [])
    elif as_json:
        print_json([model.to_dict() | {"here": model.place} for model in models])
    elif markdown:
        sys.stdout.write(models_page(models))
    else:
        print_table([HEADING, *rows_of_models(models)], right=NUMBERS)
        for note in notes_of_models(models):
            talk.print(note)
        if assumed := [model for model in models if model.recipe_assumed]:
            talk.print(
                f"recipes partly assumed, for what nobody published: {len(assumed)} of "
                f"{len(models)}; `deit-zoo info NAME` says which values, and why"
            )
        if not models:
            talk.print("no model passes these filters; `deit-zoo list` shows all")


@app.command("info", rich_help_panel=USE, epilog=example("info deit_small"))
def info_(
    name: NameOrRun,
    as_recipe: Annotated[
        bool, typer.Option("--recipe", help="Every value of the model's recipe.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What is known of a model: architecture, checkpoint, figures, licence; or of a recipe."""
    from deit_zoo.recipes import RECIPES, find_recipe

    if as_recipe or (normalize(name) in RECIPES and lookup(name) is None):
        from deit_zoo.cli.recipes import print_recipe

        recipe = find_recipe(name) or RECIPES.get(resolve(name).name)
        if recipe is None:
            raise RecipeError(f"{name} has no recipe; `deit-zoo list --recipes` shows all")
        print_recipe(recipe, as_json=as_json)
        return
    model = info(name)
    print_json(model.to_dict()) if as_json else print_rows(out, rows_of_model(model))


for name, group, command, words in (
    ("classify", USE, classify_, "photo.jpg --model cait_s24_224 --topk 3"),
    ("serve", USE, serve_, "deit_small --port 8000"),
    ("evaluate", USE, evaluate_, "deit_pico_digits --data digits"),
    ("reproduce", TRAIN, reproduce_, "deit_small --gpus 8 --dry-run"),
    ("finetune", TRAIN, finetune_, "deit_small --data photos --val-share 0.2"),
    ("teacher-labels", TRAIN, teacher_labels_, "deit_tiny_distilled --output labels --dry-run"),
    ("attention", LOOK, attention_, "photo.jpg --model deit_small --output attention.png"),
    ("export", USE, export_, "deit_pico_distilled_digits --to onnx"),
    ("plot", LOOK, plot_, "deit_pico_digits deit_pico_distilled_digits --output both.png"),
    ("diff", LOOK, diff_, "deit_small deit_base"),
    ("compare", LOOK, compare_, "deit_pico_digits deit_pico_distilled_digits"),
    ("benchmark", USE, benchmark_, "deit_pico_digits --quick"),
    ("doctor", WEIGHTS, doctor_, "--no-network"),
):
    app.command(name, rich_help_panel=group, epilog=example(f"{name} {words}"))(command)
