"""`deit-zoo doctor`: what of this machine the package can use, and what to do about the rest."""

from __future__ import annotations

import os
import platform
import shutil
import sys
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
from deit_zoo.errors import ZooError, redact
from deit_zoo.version import __version__

HUB_SECONDS = 5.0  # to wait for an answer
HUB_REPO = "timm/deit_tiny_patch16_224.fb_in1k"  # whose answer tells a Hub from a proxy
LOADING_SECONDS = 0.5
PHOTOGRAPH = (375, 500)  # pixels, about the median of ImageNet's
FREE_GB = 5.0  # the largest checkpoint, fetched and converted
SHARED_MB = 256  # what a loader's workers leave their images in
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
EXTRAS = {
    "train": ("timm", "matplotlib", "tensorboard"),
    "hfds": ("datasets",),
    "remote": ("fsspec", "s3fs", "gcsfs", "aiohttp"),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "serve": ("fastapi", "uvicorn", "python_multipart", "prometheus_client"),
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
    """What of this machine can be used, and after an arrow what to do about the rest.

    Exit 1: a cache cannot be written, a folder of carried weights is not there, or the Hub cannot
    be reached.
    """
    lines = list(examine(network))
    if as_json:
        print_json([asdict(line) for line in lines])
    else:
        rows = []
        for line in lines:
            rows.append((line.name, line.found))
            rows += [("", f"→ {line.todo}")] if line.todo else []
        print_rows(out, rows)
    if any(line.wrong for line in lines):
        raise typer.Exit(1)


def examine(network: bool) -> Iterator[Line]:
    """Every line, from what cannot be missing to what may be."""
    import torch

    from deit_zoo.machine import best_device, fastest_dtype, missing_compiler

    yield Line(name="deit_zoo", found=f"{__version__} in {Path(__file__).parents[1]}")
    yield Line(name="Python", found=f"{platform.python_version()}, {sys.executable}")
    yield Line(name="torch", found=f"{torch.__version__}")
    device = best_device()
    yield from _gpus()
    dtype, why = fastest_dtype(device)
    yield Line(name="computes", found=f"fastest in {dtype} on {device} ({why})")
    yield _cores()
    compiler = missing_compiler()
    todo = "for compiled models: apt install g++" if compiler else None
    yield Line(name="compiler", found=f"{compiler} is missing" if compiler else "there", todo=todo)
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if find_spec(module) is None]
        yield Line(
            name=f"extra {extra}",
            found=f"{', '.join(missing)} missing" if missing else _versions(modules),
            todo=f"where it is wanted: pip install 'deit_zoo[{extra}]'" if missing else None,
        )
    yield _loading()
    yield from _folders()
    yield from _carried()
    yield _shared_memory()
    if network:
        yield _hub()


def _gpus() -> Iterator[Line]:
    """Each GPU and its memory; without one, whether there is one that torch does not see."""
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            gpu = f"cuda:{number} {torch.cuda.get_device_name(number)}"
            todo = "others hold its memory: nvidia-smi says who"
            try:
                free, total = (size / 2**30 for size in torch.cuda.mem_get_info(number))
            except RuntimeError as error:  # it is full, somebody's alone, or broken
                reason = str(error).splitlines()[0]
                yield Line(name="GPU", found=f"{gpu}: {reason}", todo=todo, wrong=True)
                continue
            gpu += f", {free:.0f} of {total:.0f} GiB free"
            yield Line(name="GPU", found=gpu, todo=None if free > total / 2 else todo)
    elif torch.backends.mps.is_available():
        yield Line(name="GPU", found="Apple's, mps:0")
    elif not NVIDIA_DRIVER.exists():
        yield Line(name="GPU", found="none; the CPU computes")
    else:
        todo = (
            f"the driver is too old for CUDA {torch.version.cuda}, or no GPU is free to this user"
        )
        if torch.version.cuda is None:
            todo = "this torch is built for the CPU: install one for CUDA, as pytorch.org says"
        elif (hidden := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
            todo = f"CUDA_VISIBLE_DEVICES is {hidden!r}: unset it"
        yield Line(name="GPU", found="NVIDIA's driver is there, and torch sees no GPU", todo=todo)


def _cores() -> Line:
    """The cores of this process, and whether torch uses them."""
    import torch

    from deit_zoo.machine import cpu_name, usable_cores

    cores, all_cores = usable_cores(), os.cpu_count() or 1
    of = "" if cores == all_cores else f" of {all_cores}"
    threads, bound = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    todo = None
    if threads < cores and bound is not None:
        todo = f"OMP_NUM_THREADS is {bound}: unset it to use all cores"
    elif cores < all_cores:
        todo = "affinity or a container's quota holds back the rest: docker run --cpus, srun -c"
    words = f"{cores}{of}, {cpu_name()}; torch computes with {min(threads, cores)}"
    return Line(name="cores", found=words, todo=todo)


def _versions(modules: tuple[str, ...]) -> str:
    versions = []
    for module in modules:
        try:
            versions.append(f"{module} {version(module)}")
        except PackageNotFoundError:  # importable, and installed by nobody
            versions.append(module)
    return ", ".join(versions)


def _loading() -> Line:
    """How fast a core loads photographs as evaluation does, and by what they are decoded."""
    import numpy as np
    from PIL import Image

    from deit_zoo.data.jpeg import SIMPLEJPEG
    from deit_zoo.machine import usable_cores
    from deit_zoo.zoo import transform

    ramp = np.indices(PHOTOGRAPH).sum(0) % 251
    noise = np.random.default_rng(0).integers(0, 24, (*PHOTOGRAPH, 3))
    buffer = BytesIO()
    Image.fromarray((ramp[..., None] + noise).clip(0, 255).astype(np.uint8)).save(
        buffer, "JPEG", quality=90
    )
    load = transform("deit_small", crop_pct=0.875)  # also where a private manifest has it not
    load(buffer.getvalue())
    count, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < LOADING_SECONDS:
        load(buffer.getvalue())
        count += 1
    height, width = PHOTOGRAPH
    cores, rate = usable_cores(), count / seconds
    return Line(
        name="loading",
        found=f"{rate:,.0f} JPEG of {width}x{height} a second to 224 px on one core, "
        f"about {cores * rate:,.0f} on {cores}; decoded by "
        f"{f'simplejpeg {SIMPLEJPEG}' if SIMPLEJPEG else 'Pillow'}",
        todo="your own: deit-zoo data benchmark DIR"
        if SIMPLEJPEG
        else "faster, with the same pixels: pip install simplejpeg",
    )


def _folders() -> Iterator[Line]:
    """The caches: where they are, whether they can be written, and what room they have."""
    from deit_zoo.weights import cache
    from deit_zoo.weights.places import hub_folder

    for name, folder, variable in (
        ("cache", cache.folder(), cache.CACHE_ENVIRONMENT),
        ("Hub's cache", hub_folder(), "HF_HOME"),
    ):
        there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
        todo = None
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            todo = f"it cannot be written to: set {variable} to a folder that can"
        free = shutil.disk_usage(there).free / 1e9
        if todo is None and free < FREE_GB:
            todo = f"too little for the largest checkpoint: make room, or set {variable}"
        yield Line(name=name, found=f"{folder}, {free:,.1f} GB free", todo=todo, wrong=bool(todo))


def _carried() -> Iterator[Line]:
    """The folders of weights that were carried here, where any are named."""
    from deit_zoo.manifest import read_manifest
    from deit_zoo.weights.places import (
        WEIGHTS_ENVIRONMENT,
        carried_folders,
        place_of,
        unreadable_records,
    )

    if named := os.environ.get(WEIGHTS_ENVIRONMENT):
        names = [name for name, record in read_manifest().items() if place_of(record) == "carried"]
        missing = [folder for folder in carried_folders("") if not os.path.isdir(folder)]
        for reason in unreadable_records(read_manifest()):
            yield Line(name="carried", found=reason, todo="carry it anew", wrong=True)
        found, todo = f"{', '.join(names) or 'no weights'} in {named}", None
        if missing:
            todo = f"{missing[0]} is no folder: set {WEIGHTS_ENVIRONMENT} to those that `deit-zoo "
            todo += "weights fetch NAME --to DIR` made"
        yield Line(name="carried", found=found, todo=todo, wrong=bool(missing))


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

    try:
        from deit_zoo.weights.hub_constants import constants
    except ZooError as error:
        return Line(name="Hub", found="cannot be asked", todo=str(error), wrong=True)
    from huggingface_hub import hf_hub_url

    from deit_zoo.weights.download import UnavailableError
    from deit_zoo.weights.hub_answers import check_from_now_on

    if constants.HF_HUB_OFFLINE:
        return Line(name="Hub", found="not asked, for HF_HUB_OFFLINE is set")
    began = time.perf_counter()
    try:
        check_from_now_on()
        address = hf_hub_url(HUB_REPO, "config.json")
        trusted = os.environ.get("SSL_CERT_FILE") or True  # as huggingface_hub's client does
        answer = requests.head(address, timeout=HUB_SECONDS, verify=trusted)
        # Both are the Hub's own; a proxy, or the page of a hotel, has neither.
        is_hub = {"x-repo-commit", "x-error-code"} & {name.lower() for name in answer.headers}
        problem = None if is_hub else f"answers {answer.status_code}, not as a Hub does"
    except UnavailableError as error:
        return Line(name="Hub", found="cannot be asked", todo=str(error), wrong=True)
    except OSError as error:  # requests' own, or just that: no file of certificates
        problem = f"cannot be reached ({error if type(error) is OSError else type(error).__name__})"
    endpoint = redact(constants.ENDPOINT)  # these lines go into reports of bugs
    if problem is None:
        return Line(name="Hub", found=f"{endpoint} answers in {time.perf_counter() - began:.2f} s")
    return Line(
        name="Hub",
        found=f"{endpoint} {problem}",
        todo="behind a proxy set HTTPS_PROXY, for a mirror HF_ENDPOINT, for a site's certificates "
        "SSL_CERT_FILE; without a network: deit-zoo weights fetch NAME --to DIR on another machine",
        wrong=True,
    )
