"""`deit-zoo export`: a model as one file for other runtimes, compared on real images first."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from deit_zoo.cli.console import AsJson, complete_name, out, pixels, print_json, print_rows, talk
from deit_zoo.errors import DifferenceError, ZooError
from deit_zoo.registry import resolve
from deit_zoo.zoo import create, is_path, load_model

if TYPE_CHECKING:
    from deit_zoo.inference.export import Export
    from deit_zoo.models.layers import ZooModel


class Format(str, Enum):
    """What `export` writes."""

    ONNX = "onnx"
    PT2 = "pt2"


def export_(
    name: Annotated[
        str,
        typer.Argument(
            help="Any spelling of a model, or the folder of a run.", autocompletion=complete_name
        ),
    ],
    to: Annotated[
        Format | None, typer.Option(help="The format; the suffix of --output says it too.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="NAME.onnx or NAME.pt2 here, unless given."),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE|FOLDER", help="Compare on these, not on the embedded digits; repeatable."
        ),
    ] = None,
    img_size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Pixels; the model's own unless given.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Weights instead of the published: file, folder, hf://...")
    ] = None,
    opset: Annotated[int | None, typer.Option(help="Of ONNX; 18 unless given.")] = None,
    limit: Annotated[
        float | None, typer.Option(help="Largest difference of a logit; 1e-4 unless given.")
    ] = None,
    aot: Annotated[
        bool, typer.Option("--aot", help="Compile the .pt2 for this machine by AOTInductor.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="Where a .pt2 will run: cpu, cuda.")] = None,
    force: Annotated[
        bool, typer.Option("--force", "--overwrite", help="Replace a file that is there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """A model as one file for ONNX Runtime, OpenVINO or plain torch.

    Exit 0; 1: its logits are further from the model's than the limit, and nothing was written;
    130: stopped by Ctrl-C.
    """
    if to is None and output is None:
        raise ZooError("the format is not given; type --to onnx or --to pt2")
    file = output or Path(f"{stem(name)}.{Format(to).value}")
    from deit_zoo.inference import export as exports

    options: dict[str, Any] = dict(
        to=to.value if to else None,
        opset=opset,
        aot=aot,
        limit=exports.LIMIT if limit is None else limit,
        overwrite=force,
        device=device,
    )
    exports.check_options(file, **options)
    if not is_path(name) and (implied := resolve(name).name) != name.lower():
        talk.print(f"model: {implied}")
    with talk.status("loading") as status:
        try:
            network = model_of(name, checkpoint, img_size)
            done = exports.export(
                network, file, images=images or None, say=status.update, **options
            )
        except DifferenceError as error:
            talk.print(f"[bold red]error:[/] {escape(str(error))}")
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            talk.print("stopped; nothing was written")
            raise typer.Exit(130) from None
    print_json(done.to_dict()) if as_json else print_rows(out, rows(done))


def stem(name: str) -> str:
    """What a file is called unless the user says: the model's name, or that of its place."""
    if not is_path(name):
        return resolve(name).name
    return Path(name).expanduser().resolve().name.removesuffix(".safetensors").split("@")[0]


def model_of(name: str, checkpoint: str | None, img_size: str | None) -> ZooModel:
    """The model that was meant, with the weights and at the image size that were asked for."""
    size = None if img_size is None else pixels(img_size)
    if checkpoint is not None or not is_path(name):
        return create(name, pretrained=True, checkpoint=checkpoint, img_size=size)
    found = load_model(name)
    if size is None or found.spec is None:
        return found
    return create(found.spec.name, checkpoint=name, img_size=size)


def rows(done: Export) -> list[tuple[str, str]]:
    """What people read of an export."""
    height, width = done.img_size
    kind = f"ONNX, opset {done.opset}" if done.opset else "torch.export"
    return [
        ("file", str(done.file)),
        ("format", "AOTInductor, for machines like this" if done.compiled else kind),
        ("size", f"{done.bytes:,} bytes"),
        ("input", f"images (any, 3, {height}, {width}), float32, normalised"),
        ("difference", f"{done.max_difference:.2g} at most, in a logit; limit {done.limit:g}"),
        ("top-1", f"the model's own on {done.agreed} of {done.num_images} images"),
        ("use", usage(done)),
    ]


def usage(done: Export) -> str:
    """How the file is run, in one line of Python."""
    if done.format == "onnx":
        return (
            f"onnxruntime.InferenceSession({str(done.file)!r}).run(None, {{'images': images}})[0]"
        )
    if done.compiled:
        return f"torch._inductor.aoti_load_package({str(done.file)!r})(images)"
    return f"torch.export.load({str(done.file)!r}).module()(images)"
