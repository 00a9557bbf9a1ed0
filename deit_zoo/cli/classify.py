"""`deit-zoo classify`: the most probable classes of images, printed as they are found."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from deit_zoo.cli.console import AsJson, Bar, complete_name, out, print_json, talk
from deit_zoo.errors import DataError
from deit_zoo.registry import resolve
from deit_zoo.results import Prediction

if TYPE_CHECKING:
    from torch import Tensor

    from deit_zoo.data.transforms import EvalTransform
    from deit_zoo.models.layers import ZooModel

    # The name of a file or a URL, the bytes from stdin, or why an argument names no image.
    Source = str | bytes | DataError
    Found = tuple[str, list[Prediction]]

URL_LIMIT = 64 * 2**20


def classify_(
    images: Annotated[list[str], typer.Argument(help="Files, folders, URLs, or - for stdin.")],
    model: Annotated[
        str,
        typer.Option(
            help="Any spelling of a model, or the folder of a run.", autocompletion=complete_name
        ),
    ] = "deit_small",
    topk: Annotated[int, typer.Option(min=1, help="Classes per image.")] = 5,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 32,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that read images (default: one per core).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The most probable classes of images. One that cannot be read does not stop the others.

    Exit 0; 1: an image could not be read; 130: stopped by Ctrl-C.
    """
    rows: list[dict[str, Any]] = []
    bad: list[DataError] = []
    try:
        network = _network(model, device)
        sources = [source for argument in images for source in _listed(argument)]
        for found, faults in _classified(sources, network, topk, batch_size, workers):
            bad += faults
            if as_json:
                rows += map(_row, found)
            elif found:
                out.print("\n".join(map(_lines, found)))
    except KeyboardInterrupt:
        talk.print("stopped")
        raise typer.Exit(130) from None
    if as_json:
        print_json(rows)
    for fault in bad:
        talk.print(f"[bold red]error:[/] {escape(str(fault))}")
    if bad:
        raise typer.Exit(1)


def _network(model: str, device: str | None) -> ZooModel:
    from deit_zoo.zoo import is_path, load_model

    if not is_path(model) and (implied := resolve(model).name) != model.lower():
        talk.print(f"model: {implied}")
    return load_model(model, device)


def _classified(
    sources: Sequence[Source], network: ZooModel, topk: int, batch_size: int, workers: int | None
) -> Iterator[tuple[list[Found], list[DataError]]]:
    """Batch by batch, what was found in images and why others could not be read."""
    from deit_zoo.data.prefetch import prefetch
    from deit_zoo.inference.classify import predictions
    from deit_zoo.zoo import transform

    prepare = transform(network)
    with ExitStack() as held:
        bar = held.enter_context(Bar("images")) if len(sources) > batch_size else None
        batches = held.enter_context(
            prefetch(
                sources,
                lambda source: _read(source, prepare),
                batch_size=batch_size,
                threads=workers,
            )
        )
        done = 0
        for batch in batches:
            good = [one for one in batch if not isinstance(one, DataError)]
            best = predictions(network, [pixels for _, pixels in good], topk) if good else []
            found = [(name, classes) for (name, _), classes in zip(good, best, strict=True)]
            yield found, [one for one in batch if isinstance(one, DataError)]
            done += len(batch)
            if bar:
                bar(done, len(sources))


def _row(found: Found) -> dict[str, Any]:
    name, classes = found
    return {"image": name, "predictions": [asdict(one) for one in classes]}


def _lines(found: Found) -> str:
    name, classes = found
    shown = [f"  {100 * one.probability:6.2f} %  {escape(one.label)}" for one in classes]
    return "\n".join((f"[bold]{escape(name)}[/]", *shown))


def _listed(argument: str) -> Iterator[Source]:
    """The images that an argument means, none of them read but stdin."""
    from deit_zoo.data.folder import is_image

    if argument == "-":
        yield sys.stdin.buffer.read()
    elif not _is_url(argument) and (folder := Path(argument)).is_dir():
        files = sorted(file for file in folder.rglob("*") if is_image(file.name))
        yield from map(str, files)
        if not files:
            yield DataError(f"{folder} holds no image; give a folder of JPEG, PNG, ... files")
    else:
        yield argument


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _read(source: Source, prepare: EvalTransform) -> tuple[str, Tensor] | DataError:
    """The name and the pixels of an image, or why it cannot be read."""
    from deit_zoo.data.transforms import as_tensor

    if isinstance(source, DataError):
        return source
    name = "stdin" if isinstance(source, bytes) else source
    try:
        content = _fetch(name) if _is_url(name) else source
        return name, as_tensor(content, prepare.pixels, name)
    except DataError as error:
        return error


def _fetch(url: str) -> bytes:
    """The bytes behind a URL. Raises DataError with the reason where there are none."""
    import requests

    try:
        with requests.get(url, timeout=30, stream=True) as response:
            response.raise_for_status()
            content = b""
            for piece in response.iter_content(1 << 20):
                content += piece
                if len(content) > URL_LIMIT:
                    raise DataError(
                        f"{url} is larger than {URL_LIMIT >> 20} MiB; fetch it yourself"
                    )
            return content
    except requests.RequestException as error:
        reason = str(error).split("(Caused by ")[-1].rstrip(")")
        raise DataError(f"{url} could not be fetched: {reason}") from error
