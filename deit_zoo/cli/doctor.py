"""`deit-zoo doctor`: what of this machine the package can use, and what to do about the rest."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Annotated

import typer

from deit_zoo.cli.console import out, print_json, print_rows
from deit_zoo.cli.options import AsJson
from deit_zoo.version import __version__

HUB_SECONDS = 5.0  # to wait for an answer
DECODING_SECONDS = 0.5
PHOTOGRAPH = (375, 500)  # pixels, about the median of ImageNet's
FREE_GB = 5.0  # the largest checkpoint, fetched and converted
SHARED_MB = 256  # what a loader's workers leave their images in
EXTRAS = {
    "train": ("timm", "matplotlib", "tensorboard"),
    "export": ("onnx", "onnxscript"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One thing that was looked at; `todo` is what to type where it could be better.

    What is `wrong` stops something that everybody does.
    """

    name: str
    found: str
    todo: str | None = None
    wrong: bool = False


def doctor_(
    network: Annotated[
        bool, typer.Option(help="Whether to ask the Hub; not with HF_HUB_OFFLINE.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """What of this machine can be used, and what to do about the rest.

    Exit 1: a cache cannot be written, or the Hub not be reached.
    """
    lines = list(examine(network))
    if as_json:
        print_json([asdict(line) for line in lines])
    else:
        rows = []
        for line in lines:
            rows.append((line.name, line.found + (f"; {line.todo}" if line.todo else "")))
        print_rows(out, rows)
    if any(line.wrong for line in lines):
        raise typer.Exit(1)


def examine(network: bool) -> Iterator[Line]:
    """Every line, from what cannot be missing to what may be."""
    import torch

    from deit_zoo.machine import (
        best_device,
        cpu_name,
        fastest_dtype,
        missing_compiler,
        usable_cores,
    )

    yield Line(name="deit_zoo", found=f"{__version__}, Python {platform.python_version()}")
    device = best_device()
    yield Line(name="torch", found=f"{torch.__version__}, {_gpus()}")
    dtype, why = fastest_dtype(device)
    yield Line(name="computes", found=f"fastest in {dtype} on {device} ({why})")
    cores, all_cores = usable_cores(), os.cpu_count() or 1
    of = "" if cores == all_cores else f" of {all_cores}"
    yield Line(name="cores", found=f"{cores}{of}, {cpu_name()}")
    compiler = missing_compiler()
    yield Line(
        name="compiler",
        found="there" if compiler is None else f"{compiler} is missing",
        todo=None if compiler is None else "for compiled models: apt install g++",
    )
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if find_spec(module) is None]
        yield Line(
            name=f"extra {extra}",
            found=f"{', '.join(missing)} missing" if missing else _versions(modules),
            todo=f"where it is wanted: pip install 'deit_zoo[{extra}]'" if missing else None,
        )
    yield _decoding()
    yield from _folders()
    yield _shared_memory()
    if network:
        yield _hub()


def _gpus() -> str:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
        return ", ".join(f"cuda:{n} {name}" for n, name in enumerate(names))
    return "Apple's GPU" if torch.backends.mps.is_available() else "no GPU that it can use"


def _versions(modules: tuple[str, ...]) -> str:
    versions = []
    for module in modules:
        try:
            versions.append(f"{module} {version(module)}")
        except PackageNotFoundError:  # importable, and installed by nobody
            versions.append(module)
    return ", ".join(versions)


def _decoding() -> Line:
    """How fast a core decodes photographs, and by what."""
    import numpy as np
    from PIL import Image

    from deit_zoo.data.jpeg import SIMPLEJPEG
    from deit_zoo.data.transforms import read_pixels

    ramp = np.indices(PHOTOGRAPH).sum(0) % 251
    noise = np.random.default_rng(0).integers(0, 24, (*PHOTOGRAPH, 3))
    buffer = BytesIO()
    Image.fromarray((ramp[..., None] + noise).clip(0, 255).astype(np.uint8)).save(
        buffer, "JPEG", quality=90
    )
    count, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < DECODING_SECONDS:
        read_pixels(buffer.getvalue(), "an image", "upstream")
        count += 1
    height, width = PHOTOGRAPH
    return Line(
        name="decoding",
        found=f"{count / seconds:,.0f} JPEG of {width}x{height} a second on one core, by "
        f"{f'simplejpeg {SIMPLEJPEG}' if SIMPLEJPEG else 'Pillow'}",
        todo=None if SIMPLEJPEG else "faster, with the same pixels: pip install simplejpeg",
    )


def _folders() -> Iterator[Line]:
    """The caches: where they are, whether they can be written, and what room they have."""
    from huggingface_hub import constants

    from deit_zoo.weights import cache

    for name, folder, variable in (
        ("cache", cache.folder(), cache.CACHE_ENVIRONMENT),
        ("Hub's cache", Path(constants.HF_HUB_CACHE), "HF_HOME"),
    ):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        todo = None
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            todo = f"it cannot be written to: set {variable} to a folder that can"
        free = shutil.disk_usage(there).free / 1e9
        if todo is None and free < FREE_GB:
            todo = f"too little for the largest checkpoint: make room, or set {variable}"
        room = f"{folder}, {free:,.1f} GB free"
        yield Line(name=name, found=room, todo=todo, wrong=todo is not None)


def _shared_memory() -> Line:
    """Where a data loader's workers leave images; a container has 64 MB unless told otherwise."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return Line(name="shared memory", found="not a folder on this system")
    free = shutil.disk_usage(place).free / 2**20
    todo = "little for loader workers: docker run --shm-size=8g" if free < SHARED_MB else None
    return Line(name="shared memory", found=f"{free:,.0f} MiB free", todo=todo)


def _hub() -> Line:
    """Whether checkpoints can be fetched."""
    import requests
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Line(name="Hub", found="not asked, for HF_HUB_OFFLINE is set")
    began = time.perf_counter()
    try:
        requests.head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except requests.RequestException as error:
        return Line(
            name="Hub",
            found=f"{constants.ENDPOINT} cannot be reached ({type(error).__name__})",
            todo="without a network: deit-zoo weights fetch NAME --to DIR on another machine",
            wrong=True,
        )
    seconds = time.perf_counter() - began
    return Line(name="Hub", found=f"{constants.ENDPOINT} answers in {seconds:.2f} s")
