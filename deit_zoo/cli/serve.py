"""`deit-zoo serve`: a model that answers over HTTP."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deit_zoo.cli.classify import load_network, optimized
from deit_zoo.cli.console import chosen_device, talk
from deit_zoo.cli.options import MOST, Device, NameOrRun, Threads
from deit_zoo.errors import ZooError
from deit_zoo.machine import require_extra

if TYPE_CHECKING:
    from deit_zoo.inference.serve.app import Limits
    from deit_zoo.models.model import ZooModel

LOOPBACK = ("127.0.0.1", "::1", "localhost")
MAX_PIXELS = 50_000_000  # unless told: the photographs of telephones, not the largest panoramas


def serve_(
    name: NameOrRun,
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 is every one of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any that is free.")] = 8000,
    device: Device = "auto",
    topk: Annotated[int, typer.Option(min=1, help="Classes per image, unless ?topk=N.")] = 5,
    max_topk: Annotated[int, typer.Option(min=1, help="The most that ?topk=N may ask for.")] = 100,
    batch_size: Annotated[
        int, typer.Option(min=1, max=MOST, help="Images, at most, that the model sees at once.")
    ] = 32,
    workers: Threads = None,
    fast: Annotated[
        bool, typer.Option("--fast/--no-fast", help="By an optimized copy, or the model itself.")
    ] = True,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile that copy first, which takes its time.")
    ] = False,
    max_mb: Annotated[
        int, typer.Option("--max-mb", min=1, max=1 << 20, help="MiB of a request.")
    ] = 32,
    max_images: Annotated[int, typer.Option(min=1, help="Images of a request.")] = 64,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pixels of a grey image, and 7/8 of them in colour (default: DEIT_ZOO_MAX_PIXELS, "
            "or 50000000).",
        ),
    ] = None,
    queue: Annotated[
        int, typer.Option(min=1, help="Images that may wait in all; more are turned away: 503.")
    ] = 256,
    timeout: Annotated[
        float,
        typer.Option(
            min=0.1, max=3600.0, help="Seconds for a request to come, and for its answer."
        ),
    ] = 30.0,
) -> None:
    """Answer over HTTP which classes images show: POST /classify, GET /health, /metrics, /docs.

    Ctrl-C or SIGTERM ends it, once what has come is answered. It is asked so:

    \b
    curl --data-binary @cat.jpg "http://127.0.0.1:8000/classify?topk=3"
    curl -F images=@cat.jpg -F images=@dog.jpg http://127.0.0.1:8000/classify
    """
    require_extra("serve", "serve", "fastapi", "uvicorn", "python_multipart", "prometheus_client")
    if max_images > queue:
        raise ZooError(
            f"--max-images is {max_images} and --queue is {queue}; give a --queue that holds the "
            "images of a request"
        )
    if topk > max_topk:
        raise ZooError(f"--topk is {topk} and --max-topk is {max_topk}; give a larger --max-topk")
    if compile and not fast:
        raise ZooError("--compile is for the optimized copy; type it without --no-fast")
    from deit_zoo.data.bounds import MAX_PIXELS_ENVIRONMENT
    from deit_zoo.data.bounds import max_pixels as check_max_pixels
    from deit_zoo.inference.serve.app import Limits
    from deit_zoo.inference.serve.server import bind

    limits = Limits(
        max_bytes=max_mb << 20,
        max_images=max_images,
        max_waiting=queue,
        timeout=timeout,
        topk=topk,
        max_topk=max_topk,
    )
    # Bound first, for a port may be taken; nobody is let in before the model is ready.
    with bind(host, port) as listener:
        os.environ.setdefault(MAX_PIXELS_ENVIRONMENT, str(MAX_PIXELS))
        if max_pixels is not None:
            os.environ[MAX_PIXELS_ENVIRONMENT] = str(max_pixels)
        check_max_pixels()
        try:
            network = _load(name, chosen_device(device), fast, compile)
            _run(network, limits, listener, batch_size, workers)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    talk.print("stopped")


def _load(name: str, device: str, fast: bool, compile: bool) -> ZooModel:
    from deit_zoo.zoo import resolve_classifier

    network = resolve_classifier(load_network(name, device, fast=False), None)
    try:
        return optimized(network, compile=compile) if fast else network
    except ZooError as error:
        raise ZooError(f"{error}, or type --no-fast") from error


def _run(
    network: ZooModel,
    limits: Limits,
    listener: socket.socket,
    batch_size: int,
    workers: int | None,
) -> None:
    from deit_zoo.data.prefetch import default_threads
    from deit_zoo.inference.serve.app import create_app
    from deit_zoo.inference.serve.batcher import Batcher
    from deit_zoo.inference.serve.metrics import Metrics
    from deit_zoo.inference.serve.server import address, run
    from deit_zoo.zoo import transform

    metrics = Metrics()
    batcher = Batcher(
        network,
        transform(network),
        batch_size=batch_size,
        threads=workers or default_threads(),
        on_batch=metrics.batches.observe,
    )
    try:
        batcher.warm_up()
        app = create_app(batcher, _facts(network), limits, metrics)
        listener.listen()
        talk.print(f"answers at {address(listener)}/classify; Ctrl-C ends it")
        if listener.getsockname()[0] not in LOOPBACK:
            talk.print(
                "whoever reaches this machine may ask: there is neither password nor encryption, "
                "which a server before this one may add"
            )
        run(app, listener, timeout=limits.timeout)
    finally:
        batcher.close()


def _facts(network: ZooModel) -> dict[str, Any]:
    """What GET /health says of the model; no path of this machine."""
    from deit_zoo.models.model import num_classes_of, spec_of
    from deit_zoo.version import __version__

    where = next(network.parameters())
    choices = getattr(network, "choices", None)
    return {
        "model": spec_of(network).name,
        "num_classes": num_classes_of(network),
        "img_size": list(network.img_size),
        "device": str(where.device),
        "optimized": choices() if choices else None,
        "version": __version__,
    }
