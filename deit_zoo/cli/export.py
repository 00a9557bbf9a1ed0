"""`deit-zoo export`: a model as one file for other runtimes, compared on real images first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deit_zoo.cli.console import out, print_error, print_json, print_rows, say_model, talk
from deit_zoo.cli.options import AsJson, ImgSize, NameOrRun, OtherWeights, path_option, pixels
from deit_zoo.errors import DifferenceError, ZooError
from deit_zoo.files import expand_user
from deit_zoo.registry.names import is_path, resolve
from deit_zoo.zoo import create

if TYPE_CHECKING:
    from deit_zoo.inference.export import Export


def export_(
    name: NameOrRun,
    to: Annotated[
        Literal["onnx", "pt2"] | None,
        typer.Option(help="The format; the suffix of --output says it too."),
    ] = None,
    output: Annotated[
        Path | None, path_option("NAME.onnx or NAME.pt2 here, unless given.", "FILE")
    ] = None,
    images: Annotated[
        list[Path] | None,
        path_option("Compare on these, not on the embedded digits; repeatable.", "FILE|FOLDER"),
    ] = None,
    img_size: ImgSize = None,
    checkpoint: OtherWeights = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset, from 16 (default: 18).")] = None,
    limit: Annotated[
        float | None, typer.Option(help="Largest difference of a logit (default: 1e-4).")
    ] = None,
    aot: Annotated[
        bool, typer.Option("--aot", help="Compile the .pt2 for this machine by AOTInductor.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="Where a .pt2 will run: cpu, cuda, auto.")
    ] = None,
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
    file = output or Path(f"{stem(name)}.{to}")
    from deit_zoo.inference import export as exports

    options = exports.ExportOptions(
        file=file,
        to=to,
        opset=opset,
        aot=aot,
        limit=exports.LIMIT if limit is None else limit,
        overwrite=force,
        device=device,
    )
    options.check()
    sources = exports.images_to_compare(images or None)
    say_model(name)
    with talk.status("loading") as status:
        try:
            size = pixels(img_size)
            network = create(name, pretrained=True, checkpoint=checkpoint, img_size=size)
            result = exports.export(network, options, sources, say=status.update)
        except DifferenceError as error:
            print_error(error)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            talk.print("stopped; nothing was written")
            raise typer.Exit(130) from None
    print_json(result.to_dict()) if as_json else print_rows(out, rows(result))


def stem(name: str) -> str:
    """What a file is called unless the user says: the model's name, or that of its folder."""
    if not is_path(name):
        return resolve(name).name
    return expand_user(name).resolve().name.removesuffix(".safetensors").split("@")[0]


def rows(export: Export) -> list[tuple[str, str]]:
    """What people read of an export."""
    height, width = export.img_size
    kind = f"ONNX, opset {export.opset}" if export.opset else "torch.export"
    return [
        ("file", str(export.file)),
        ("format", "AOTInductor, for machines like this" if export.compiled else kind),
        ("size", f"{export.bytes:,} bytes"),
        ("input", f"images (any, 3, {height}, {width}), float32, normalised"),
        ("difference", f"{export.max_difference:.2g} at most, in a logit; limit {export.limit:g}"),
        ("top-1", f"the model's own on {export.agreed} of {export.num_images} images"),
        ("use", usage(export)),
    ]


def usage(export: Export) -> str:
    """How the file is run, in one line of Python."""
    if export.format == "onnx":
        return (
            f"onnxruntime.InferenceSession({str(export.file)!r}).run(None, {{'images': images}})[0]"
        )
    if export.compiled:
        return f"torch._inductor.aoti_load_package({str(export.file)!r})(images)"
    return f"torch.export.load({str(export.file)!r}).module()(images)"
