"""`deit-zoo attention`: what the class token looks at, as a picture and in figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from deit_zoo.cli.classify import stdin_image
from deit_zoo.cli.console import check_output, chosen_device, print_json, say_model, talk
from deit_zoo.cli.options import (
    Device,
    FiguresAsJson,
    ImgSize,
    Model,
    OtherWeights,
    path_option,
    pixels,
)
from deit_zoo.errors import DataError
from deit_zoo.files import writing
from deit_zoo.results import Method

PICTURE = Path("attention.png")


def attention_(
    image: Annotated[str, typer.Argument(help="A file, a URL, or - for stdin.")],
    model: Model = "deit_small",
    output: Annotated[
        Path | None, path_option("The picture; attention.png unless given.", "FILE.png")
    ] = None,
    layer: Annotated[int, typer.Option(help="From 0, or from the last with -1.")] = -1,
    method: Annotated[
        Method, typer.Option(help="Each head, their mean, rollout through the layers.")
    ] = "all",
    img_size: ImgSize = None,
    device: Device = "auto",
    checkpoint: OtherWeights = None,
    as_json: FiguresAsJson = False,
) -> None:
    """What the class token looks at: a map for each head, their mean, and rollout."""
    from deit_zoo.api import attention_map
    from deit_zoo.data.image_like import is_url
    from deit_zoo.inference.attention import check_attentive, check_layer
    from deit_zoo.machine import require_matplotlib
    from deit_zoo.weights.load import spec_for
    from deit_zoo.zoo import create

    check_attentive(spec_for(model))
    check_layer(model, layer)
    file = None if as_json and output is None else output or PICTURE
    if file is not None:
        check_output(file)
        require_matplotlib()
    say_model(model)
    if image != "-" and not is_url(image) and not Path(image).is_file():
        raise DataError(
            f"{image} is no file; give an image file, a URL, or - and its bytes on stdin"
        )
    source = stdin_image() if image == "-" else image
    network = create(
        model,
        pretrained=True,
        checkpoint=checkpoint,
        img_size=pixels(img_size),
        device=chosen_device(device),
    )
    attention = attention_map(source, network, layer=layer, method=method)
    if as_json:
        print_json({"image": image} | attention.to_dict())
    if file is not None:
        with writing(file):
            attention.save(file)
        talk.print(f"the picture is {escape(str(file))}")
