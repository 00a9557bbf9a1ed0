"""A model as one file that runs without this package: ONNX, or a program of `torch.export`.

The batch is free, all else is fixed: images (B, 3, H, W), normalised, in float32; logits (B, C),
for a distilled model the mean of its heads. How to prepare an image, the classes and where the
weights are from travel inside as text. Nothing is written before the file's answers to real images
were compared with the model's.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from io import BytesIO
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from deit_zoo.data.digits import digits
from deit_zoo.data.folder import IMAGE_SUFFIXES
from deit_zoo.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EvalTransform,
    error_context,
    open_photo,
)
from deit_zoo.errors import DataError, DifferenceError, MissingExtraError, ZooError
from deit_zoo.files import write_whole
from deit_zoo.inference.classify import class_names
from deit_zoo.machine import usable_device
from deit_zoo.models.layers import ZooModel
from deit_zoo.version import __version__
from deit_zoo.zoo import load_model, transform

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    ImageLike = str | os.PathLike[str] | bytes | Image.Image

FORMATS = ("onnx", "pt2")
INPUT, OUTPUT = "images", "logits"
# torch writes 18 or newer; the oldest is read by the most runtimes.
OPSET = 18
# Protocol buffers, of which an ONNX file is one, end here.
ONNX_BYTES = 2**31 - 1
# Another order of summation moves a float32 logit by up to 2.5e-6, a GELU by tanh instead of erf
# by 1.2e-4 and more (measured: docs/export.md).
LIMIT = 1e-4
BATCH = 8  # images compared at once

CHATTY = ("torch.onnx", "torch.export", "torch._inductor", "torch.utils", "onnxscript", "onnx_ir")


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """A file that was written, and how near its logits are to the model's on real images.

    `agreed` of `num_images` images have the same most probable class.
    """

    file: Path
    model: str
    format: str
    compiled: bool
    opset: int | None
    img_size: tuple[int, int]
    bytes: int
    sha256: str
    num_images: int
    agreed: int
    max_difference: float
    limit: float

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, ready for JSON."""
        return asdict(self) | {"file": str(self.file), "img_size": list(self.img_size)}


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the file and the model answered to the same images."""

    num_images: int
    agreed: int
    max_difference: float


def export(
    model: str | nn.Module,
    file: str | os.PathLike[str],
    *,
    to: str | None = None,
    opset: int | None = None,
    aot: bool = False,
    images: ImageLike | Iterable[ImageLike] | None = None,
    limit: float = LIMIT,
    overwrite: bool = False,
    device: str | torch.device | None = None,
    say: Callable[[str], None] = lambda doing: None,
) -> Export:
    """Write a model as a file that runs without this package, once it answers as the model does.

    Args:
        model: a name (its checkpoint is loaded), the folder of a run, or a model from `create`,
            which stays as it is; what is written is its eval mode in float32.
        file: ends in .onnx or .pt2.
        to: "onnx" or "pt2"; the file's suffix says it too.
        opset: of ONNX; 18 unless given.
        aot: compile the .pt2 by AOTInductor, for the processor or GPU of this machine.
        images: paths, folders, bytes or PIL images to compare on; some of the embedded digits
            unless given.
        limit: the largest difference of a logit that passes.
        overwrite: replace a file that is there.
        device: where a .pt2 is traced and will run; the CPU unless given.
        say: called with what is being done.

    Raises:
        DifferenceError: the logits differ by more than the limit; nothing was written.
        MissingExtraError: ONNX without `deit_zoo[export]`.
        DataError: the file must not or cannot be put there, or an image cannot be read.

    >>> deit_zoo.inference.export.export("deit_pico_digits", "digits.onnx").agreed
    8
    """
    file = Path(file)
    form = format_of(file, to)
    check_options(form, opset=opset, aot=aot, limit=limit, device=device)
    check_place(file, overwrite)
    network = _own(model, device)
    prepare = transform(network)
    sources = _sources(images)
    with torch.inference_mode():  # an image or a model that does not fit is known at once
        _logits(network, [_prepared(sources[0], prepare)])
    texts = metadata(network, prepare)
    name = texts["name"]
    say(f"tracing {name}")
    with _quiet():
        program = _traced(network)
        if form == "onnx":
            say(f"converting {name} to ONNX")
            data = _to_onnx(program, opset or OPSET, texts)
            answer = _onnx_answer(data)
        elif aot:
            say(f"compiling {name}")
            data, answer = _to_package(program, texts)
        else:
            say(f"saving {name}")
            data = _to_pt2(program, texts)
            answer = cast("Answer", torch.export.load(BytesIO(data)).module())
        say(f"comparing on {len(sources)} images")
        found = compare(network, answer, _batches(sources, prepare))
    if not found.max_difference <= limit:  # nor does NaN pass
        raise DifferenceError(
            f"{name} as {form} gives logits up to {found.max_difference:.3g} from the model's on "
            f"{found.num_images} images, and the limit is {limit:g}; nothing was written, give "
            "another format or, if that is near enough, another limit"
        )
    write_whole(file, data)
    return Export(
        file=file,
        model=name,
        format=form,
        compiled=aot,
        opset=(opset or OPSET) if form == "onnx" else None,
        img_size=prepare.img_size,
        bytes=len(data),
        sha256=sha256(data).hexdigest(),
        num_images=found.num_images,
        agreed=found.agreed,
        max_difference=found.max_difference,
        limit=limit,
    )


Answer = Callable[[Tensor], Tensor]


def format_of(file: Path, to: str | None) -> str:
    """The format that is meant. Raises ZooError where nothing says it, or two things differ."""
    suffix = file.suffix.lower().removeprefix(".")
    if to is not None and to not in FORMATS:
        raise ZooError(f"no export is named {to!r}; give onnx or pt2")
    if suffix not in FORMATS:
        wanted = f"FILE.{to}" if to else "FILE.onnx or FILE.pt2"
        raise ZooError(f"{file} is no name of an exported model; give {wanted}")
    if to not in (None, suffix):
        raise ZooError(f"{file} is no {to} file by its name; give FILE.{to}")
    return suffix


def check_options(
    form: str, *, opset: int | None, aot: bool, limit: float, device: str | torch.device | None
) -> None:
    """Raises ZooError for options that do not go together, MissingExtraError without the extra."""
    if not limit >= 0:
        raise ZooError(f"limit is {limit}; give the largest difference of a logit, such as 1e-4")
    if form == "onnx":
        if aot:
            raise ZooError("AOTInductor makes .pt2 files; give --to pt2, or leave out --aot")
        if device is not None and str(device) != "cpu":
            raise ZooError("an ONNX file has no device; leave it out, the runtime chooses")
        require_onnx()
        import onnx

        newest = onnx.defs.onnx_opset_version()
        if opset is not None and not OPSET <= opset <= newest:
            raise ZooError(f"opset is {opset}; give one from {OPSET} to {newest}")
    elif opset is not None:
        raise ZooError("a .pt2 file has no opset; give --to onnx, or leave out --opset")
    elif aot:
        require_compiler()


def check_place(file: Path, overwrite: bool = False) -> None:
    """Raises DataError where a file must not or cannot be put."""
    if file.is_dir():
        raise DataError(f"{file} is a folder; give the name of a file")
    if not file.parent.is_dir():
        raise DataError(f"there is no folder {file.parent}; make it, or give another --output")
    if file.exists() and not overwrite:
        raise DataError(f"{file} is there already; give another --output, or --force to replace it")
    if not os.access(file.parent, os.W_OK):
        raise DataError(f"{file} cannot be written (permission denied); give another --output")


def require_onnx() -> None:
    """Raises MissingExtraError where ONNX cannot be written and run."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "ONNX needs onnx, onnxscript and onnxruntime; type: pip install 'deit_zoo[export]'"
        ) from error


def require_compiler() -> None:
    """Raises ZooError where AOTInductor finds no C++ compiler."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise ZooError(
            f"AOTInductor needs a C++ compiler, and {compiler} is not on the PATH; install it, set "
            "CXX to another, or leave out --aot"
        )


def metadata(network: ZooModel, prepare: EvalTransform) -> dict[str, str]:
    """What a file says of itself; lists and records are JSON, and what is not known is left out."""
    assert network.spec is not None, "transform() refuses a model without a spec"
    classes = class_names(network)
    height, width = prepare.img_size
    preprocessing = {
        "img_size": [height, width],
        "resize": [int(height / prepare.crop_pct), int(width / prepare.crop_pct)],
        "crop_pct": prepare.crop_pct,
        "interpolation": "bicubic",
        "color": "RGB",
        "scale": 1 / 255,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "layout": "NCHW",
        "dtype": "float32",
    }
    texts = {
        "name": network.spec.name,
        "preprocessing": json.dumps(preprocessing),
        "labels": json.dumps([label.name for label in classes], ensure_ascii=False),
        "folders": json.dumps([label.folder for label in classes], ensure_ascii=False),
        "license": getattr(network.checkpoint, "license", None),
        "source_sha256": getattr(network.checkpoint, "sha256", None),
        "deit_zoo": __version__,
        "torch": str(torch.__version__),
    }
    return {key: text for key, text in texts.items() if text is not None}


@torch.inference_mode()
def compare(network: nn.Module, answer: Answer, batches: Iterable[list[Tensor]]) -> Comparison:
    """How far two answers to the same images are apart; a wrong shape is infinitely far."""
    largest = torch.zeros(())
    num_images = agreed = 0
    for batch in batches:
        images = torch.stack(batch)
        wanted = _logits(network, batch)
        found = answer(images.to(_place(network))).float().cpu()
        if found.shape != wanted.shape:
            return Comparison(num_images, agreed, float("inf"))
        largest = torch.maximum(largest, (found - wanted).abs().max())
        num_images += len(batch)
        agreed += int((found.argmax(-1) == wanted.argmax(-1)).sum())
    return Comparison(num_images, agreed, largest.item())


def _logits(network: nn.Module, batch: list[Tensor]) -> Tensor:
    logits: Tensor = network(torch.stack(batch).to(_place(network)))
    return logits.float().cpu()


def _place(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _own(model: str | nn.Module, device: str | torch.device | None) -> ZooModel:
    """The model that was meant, in eval mode and float32, to do with as we like."""
    place = usable_device(device or "cpu")
    if isinstance(model, str):
        network = load_model(model, place)
    else:
        transform(model)  # refuses what `create` did not make
        network = copy.deepcopy(cast(ZooModel, model))
    if network.num_classes == 0:
        raise ZooError("the model has no head (num_classes=0), so it has no logits to export")
    return network.to(device=place, dtype=torch.float32).eval().requires_grad_(False)


def _sources(images: ImageLike | Iterable[ImageLike] | None) -> Sequence[ImageLike]:
    """Every image to compare on; a folder stands for all that it holds."""
    if images is None:
        return [image for image, _ in islice(digits(), BATCH)]
    single = isinstance(images, str | bytes | os.PathLike | Image.Image)
    many = cast("list[ImageLike]", [images] if single else list(cast("Iterable[Any]", images)))
    found: list[ImageLike] = []
    for image in many:
        if isinstance(image, str | os.PathLike) and (folder := Path(image)).is_dir():
            held = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            if not held:
                raise DataError(f"{folder} holds no image; give a folder of JPEG, PNG, ... files")
            found += held
        else:
            found.append(image)
    if not found:
        raise DataError("there are no images to compare on; give some, or leave images out")
    return found


def _batches(sources: Sequence[ImageLike], prepare: EvalTransform) -> Iterator[list[Tensor]]:
    """One image alone, then the others together, since a traced batch must be any."""
    yield [_prepared(sources[0], prepare)]
    for start in range(1, len(sources), BATCH):
        yield [_prepared(source, prepare) for source in sources[start : start + BATCH]]


def _prepared(source: ImageLike, prepare: EvalTransform) -> Tensor:
    if isinstance(source, Image.Image):
        return prepare(source)
    photo = open_photo(source if isinstance(source, bytes) else Path(source))
    with error_context("the given bytes" if isinstance(source, bytes) else source):
        return prepare(photo)


def _traced(network: ZooModel) -> ExportedProgram:
    """The computation as a graph whose batch may be any number."""
    images = torch.zeros(2, 3, *network.img_size, device=_place(network))
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(
            network, (images,), dynamic_shapes=({0: batch},), strict=False
        )
    for node in program.graph.nodes:  # it names files of this machine
        node.meta.pop("stack_trace", None)
    return program


def _to_onnx(program: ExportedProgram, opset: int, texts: dict[str, str]) -> bytes:
    """The bytes of one file with its weights; the same model gives the same bytes."""
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size > ONNX_BYTES:
        raise ZooError(
            f"the weights are {size / 1e9:.1f} GB and an ONNX file holds 2; give --to pt2"
        )
    converted = torch.onnx.export(
        program,
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        opset_version=opset,
        verbose=False,
    )
    assert converted is not None, "torch gives a program unless it writes a file"
    proto = converted.model_proto
    if [(one.domain, one.version) for one in proto.opset_import] != [("", opset)]:
        raise ZooError(
            f"opset is {opset}, which torch {torch.__version__} cannot write; give another, such "
            f"as {OPSET}"
        )
    graph = proto.graph
    graph.name = texts["name"]
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.ClearField("metadata_props")
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = dim.dim_param.replace(symbol, "batch")
    for node in graph.node:  # torch's own notes, as large as the graph itself
        node.ClearField("metadata_props")
    for key, text in (texts | {"opset": str(opset)}).items():
        proto.metadata_props.add(key=key, value=text)
    return cast(bytes, proto.SerializeToString(deterministic=True))


def _onnx_answer(data: bytes) -> Answer:
    """The file as a function, by ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _to_pt2(program: ExportedProgram, texts: dict[str, str]) -> bytes:
    stream = BytesIO()
    torch.export.save(program, stream, extra_files=texts)
    return stream.getvalue()


def _to_package(program: ExportedProgram, texts: dict[str, str]) -> tuple[bytes, Answer]:
    """The bytes of an AOTInductor package, and what was loaded of them."""
    with TemporaryDirectory() as folder:
        file = f"{folder}/model.pt2"
        torch._inductor.aoti_compile_and_package(
            program, package_path=file, inductor_configs={"aot_inductor.metadata": texts}
        )
        answer = torch._inductor.aoti_load_package(file)
        return Path(file).read_bytes(), cast(Answer, answer)


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it, what torch's exporters log and warn of among themselves is not shown."""
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            for kind in (DeprecationWarning, FutureWarning, UserWarning):
                warnings.filterwarnings("ignore", category=kind, module=r"torch\b|onnx|copyreg")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
