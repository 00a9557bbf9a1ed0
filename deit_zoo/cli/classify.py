"""`deit-zoo classify`: the most probable classes of images, printed as they are found."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.markup import escape

from deit_zoo.cli.console import Bar, chosen_device, out, print_error, print_json, talk
from deit_zoo.cli.options import MODEL_OR_RUN, MOST, AsJson, Device, complete_name
from deit_zoo.errors import DataError
from deit_zoo.registry import is_path, resolve
from deit_zoo.results import Prediction
from deit_zoo.terminal import one_line

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from deit_zoo.data.transforms import EvalTransform
    from deit_zoo.models.layers import ZooModel

    # The name of a file or a URL, the bytes from stdin, or why an argument names no image.
    Source = str | Path | bytes | DataError
    Row = tuple[str, list[Prediction]]


def classify_(
    images: Annotated[list[str], typer.Argument(help="Files, folders, URLs, or - for stdin.")],
    model: Annotated[
        str, typer.Option(help=MODEL_OR_RUN, autocompletion=complete_name)
    ] = "deit_small",
    topk: Annotated[int, typer.Option(min=1, help="Classes per image.")] = 5,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 32,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, help="Threads that read images (default: one per core)."),
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="By an optimized copy of the model (a deit or cait).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """The most probable classes of images. One that cannot be read does not stop the others.

    Exit 0; 1: an image could not be read; 130: stopped by Ctrl-C.
    """
    rows: list[dict[str, Any]] = []
    errors: list[DataError] = []
    try:
        network = _network(model, chosen_device(device), fast)
        sources = [source for argument in images for source in _listed(argument)]
        for classified, unread in _classify(sources, network, topk, batch_size, workers):
            errors += unread
            if as_json:
                rows += map(_as_dict, classified)
            elif classified:
                out.print("\n".join(map(_lines, classified)))
    except KeyboardInterrupt:
        talk.print("stopped")
        raise typer.Exit(130) from None
    if as_json:
        print_json(rows)
    for error in errors:
        print_error(error)
    if errors:
        raise typer.Exit(1)


def _network(model: str, device: str, fast: bool) -> ZooModel:
    from deit_zoo.zoo import load_model

    if not is_path(model) and (implied := resolve(model).name) != model.lower():
        talk.print(f"model: {implied}")
    network = load_model(model, device)
    if not fast:
        return network
    from deit_zoo.inference.optimize import fast_copy

    copy = fast_copy(network)
    talk.print(f"optimized: {copy.choices()}")
    return cast("ZooModel", copy)


def _classify(
    sources: Sequence[Source], network: ZooModel, topk: int, batch_size: int, workers: int | None
) -> Iterator[tuple[list[Row], list[DataError]]]:
    """Batch by batch, the classes of images and why others could not be read."""
    from deit_zoo.data.prefetch import prefetch
    from deit_zoo.inference.classify import predictions
    from deit_zoo.zoo import transform

    prepare = transform(network)
    with ExitStack() as stack:
        bar = stack.enter_context(Bar("images")) if len(sources) > batch_size else None
        batches = stack.enter_context(
            prefetch(
                sources,
                lambda source: _read(source, prepare),
                batch_size=batch_size,
                threads=workers,
            )
        )
        done = 0
        for batch in batches:
            images = [item for item in batch if not isinstance(item, DataError)]
            best = predictions(network, [pixels for _, pixels in images], topk) if images else []
            rows = [(name, classes) for (name, _), classes in zip(images, best, strict=True)]
            yield rows, [item for item in batch if isinstance(item, DataError)]
            done += len(batch)
            if bar:
                bar(done, len(sources))


def _as_dict(row: Row) -> dict[str, Any]:
    name, classes = row
    return {"image": name, "predictions": [asdict(prediction) for prediction in classes]}


def _lines(row: Row) -> str:
    name, classes = row
    lines = [f"  {100 * one.probability:6.2f} %  {escape(one_line(one.label))}" for one in classes]
    return "\n".join((f"[bold]{escape(one_line(name))}[/]", *lines))


def _listed(argument: str) -> Iterator[Source]:
    """The images that an argument means, none of them read but stdin."""
    from deit_zoo.cli.evaluate import note
    from deit_zoo.data.folder import images_of
    from deit_zoo.data.image_file import MOST_BYTES

    if argument == "-":
        content = sys.stdin.buffer.read(MOST_BYTES + 1)
        endless = DataError(f"stdin holds over {MOST_BYTES / 1e9:.1f} GB; give one image")
        yield content if len(content) <= MOST_BYTES else endless
    else:
        yield from images_of(argument, note)


def _read(source: Source, prepare: EvalTransform) -> tuple[str, Tensor] | DataError:
    """The name and the pixels of an image, or why it cannot be read."""
    from deit_zoo.data.transforms import as_tensor

    if isinstance(source, DataError):
        return source
    name = "stdin" if isinstance(source, bytes) else str(source)
    try:
        return name, as_tensor(source, prepare.pixels, name)
    except DataError as error:
        return error
