"""`deit-zoo classify`: the most probable classes of images, printed or put into a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer
from rich.markup import escape

from deit_zoo.cli.console import Bar, chosen_device, out, print_error, print_json, say_model, talk
from deit_zoo.cli.options import AsJson, Device, Model, Threads, path_option
from deit_zoo.errors import DataError
from deit_zoo.registry.names import is_path, lookup
from deit_zoo.results import Prediction
from deit_zoo.terminal import one_line

if TYPE_CHECKING:
    from deit_zoo.models.model import ZooModel

    # An image by its name: its path or address, the bytes from stdin, or why there is none.
    Named = tuple[str, str | bytes | DataError]
    Row = tuple[str, list[Prediction] | DataError]


class Question(NamedTuple):
    """What is asked: of which images, by which model, and how that is computed."""

    images: list[str]
    model: str
    topk: int
    device: str
    batch_size: int
    workers: int | None
    fast: bool


def classify_(
    images: Annotated[
        list[str], typer.Argument(help="Files, folders, URLs, s3://... or gs://..., - for stdin.")
    ],
    model: Model = "deit_small",
    topk: Annotated[int, typer.Option(min=1, help="Classes per image.")] = 5,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 32,
    workers: Threads = None,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="By an optimized copy (of a DeiT, DeiT III or CaiT)."),
    ] = False,
    output: Annotated[Path | None, path_option("Write a table, .csv or .parquet.", "FILE")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --output where it was stopped.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """The most probable classes of images. One that cannot be read does not stop the others.

    Exit 0; 1: an image could not be read; 130: stopped by Ctrl-C.
    """
    question = Question(images, model, topk, device, batch_size, workers, fast)
    if resume and output is None:
        raise DataError("--resume goes on with a file; type --output FILE.csv or FILE.parquet too")
    if as_json and output is not None:
        raise DataError("--json prints and --output writes; type one of them")
    for word in images:
        if not os.path.exists(word) and not is_path(word) and lookup(word) is not None:
            raise DataError(f"{word} is a model and no image; type --model {word}")
    try:
        unread = _show(question, as_json) if output is None else _write(question, output, resume)
    except KeyboardInterrupt:
        talk.print("stopped" if output is None else "stopped; --resume goes on from here")
        raise typer.Exit(130) from None
    if unread:
        raise typer.Exit(1)


def load_network(model: str, device: str, fast: bool) -> ZooModel:
    """A model as it is or, if `fast`, an optimized copy; what it is goes to stderr."""
    from deit_zoo.zoo import resolve_model

    say_model(model)
    network = resolve_model(model, device)
    return optimized(network, compile=False) if fast else network


def optimized(network: ZooModel, *, compile: bool) -> ZooModel:
    """A copy that only predicts; what it is goes to stderr. Raises ZooError for other families."""
    from deit_zoo.inference.optimize import optimize

    copy = optimize(network, compile=compile)
    talk.print(f"optimized: {copy.choices()}")
    return cast("ZooModel", copy)


def _show(question: Question, as_json: bool) -> int:
    """Print the answers, batch by batch, or all in the end as JSON; how many there are not."""
    rows: list[dict[str, Any]] = []
    errors: list[DataError] = []
    images = [named for argument in question.images for named in _listed(argument)]
    missing = [(name, image) for name, image in images if isinstance(image, DataError)]
    batches: Iterable[list[Row]] = [[*missing]]
    if len(missing) < len(images):
        network = load_network(question.model, chosen_device(question.device), question.fast)
        batches = _classify(images, network, question)
    for batch in batches:
        answered = [(name, answer) for name, answer in batch if not isinstance(answer, DataError)]
        errors += [answer for _, answer in batch if isinstance(answer, DataError)]
        if as_json:
            rows += [{"image": name} | _as_dict(answer) for name, answer in batch]
        elif answered:
            out.print("\n".join(_lines(name, answer) for name, answer in answered))
    if as_json:
        print_json(rows)
    for error in errors:
        print_error(error)
    return len(errors)


def _write(question: Question, file: Path, resume: bool) -> int:
    """Put the answers into a file, or those that it has not; how many images could not be read."""
    from deit_zoo.data.remote import NotFetchedError
    from deit_zoo.inference.answer_file import (
        check_answer_file,
        name_in_table,
        num_unreadable_of,
        open_answers,
        settings_of,
        settings_of_name,
        settings_of_network,
    )

    check_answer_file(file, resume)
    names: dict[str, None] = {}
    for name, image in (named for argument in question.images for named in _listed(argument)):
        if isinstance(image, DataError):
            raise image
        if isinstance(image, bytes):
            raise DataError("--output is for files and addresses, and - is stdin; leave it out")
        names[name] = None
    settings = settings_of(question.images, names)
    network = None
    if question.fast or is_path(question.model):
        network = load_network(question.model, chosen_device(question.device), question.fast)
        settings |= settings_of_network(network, question.topk)
    else:
        settings |= settings_of_name(question.model, question.topk)
    if (num_unreadable := num_unreadable_of(file, settings)) is not None:
        talk.print(f"{escape(str(file))} is complete: {_said(len(names), num_unreadable)}")
        return num_unreadable
    if network is None:
        network = load_network(question.model, chosen_device(question.device), question.fast)
    with open_answers(file, settings, resume) as answers:
        if answers.done:
            talk.print(f"{len(answers.done):,} images have their answers already")
        images = [(name, name) for name in names if name_in_table(name) not in answers.done]
        for batch in _classify(images, network, question, done=len(names) - len(images)):
            for name, answer in batch:
                if isinstance(answer, NotFetchedError):
                    raise DataError(f"{answer}; with --resume it goes on from here") from answer
                answers.add(name, answer)
            answers.keep()
        answers.finish()
    talk.print(f"{escape(str(file))}: {_said(len(answers.done), answers.num_unreadable)}")
    return answers.num_unreadable


def _said(num_images: int, num_unreadable: int) -> str:
    return f"{num_images:,} images, of which {num_unreadable:,} could not be read"


def _classify(
    images: Sequence[Named], network: ZooModel, question: Question, *, done: int = 0
) -> Iterator[list[Row]]:
    """Batch by batch, the classes of images or why they could not be read, after `done` others."""
    from deit_zoo.inference.classify import classify_stream

    total = done + len(images)
    batch_size, threads = question.batch_size, question.workers
    stream = classify_stream(network, images, question.topk, batch_size=batch_size, threads=threads)
    with Bar("images") as bar, closing(stream) as batches:
        for batch in batches:
            done += len(batch)
            bar(done, total)
            with bar.hidden():
                yield [(name, answer) for name, _, answer in batch]


def _as_dict(answer: list[Prediction] | DataError) -> dict[str, Any]:
    if isinstance(answer, DataError):
        return {"error": str(answer)}
    return {"predictions": [asdict(prediction) for prediction in answer]}


def _lines(name: str, classes: Sequence[Prediction]) -> str:
    lines = [f"  {100 * one.probability:6.2f} %  {escape(one_line(one.label))}" for one in classes]
    return "\n".join((f"[bold]{escape(one_line(name))}[/]", *lines))


def stdin_image() -> bytes:
    """The one image that stdin holds. Raises DataError where it does not end."""
    from deit_zoo.data.image_file import MOST_BYTES

    content = sys.stdin.buffer.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise DataError(f"stdin holds over {MOST_BYTES / 1e9:.1f} GB; give one image")
    return content


def _listed(argument: str) -> Iterator[Named]:
    """The images that an argument means, none of them read but stdin."""
    from deit_zoo.cli.evaluate import note
    from deit_zoo.data.folder import images_of

    if argument == "-":
        try:
            yield "stdin", stdin_image()
        except DataError as error:
            yield "stdin", error
        return
    for image in images_of(argument, note):
        if isinstance(image, DataError):
            yield argument, image
        else:  # no Path, which takes three times the memory
            yield (name := str(image)), name
