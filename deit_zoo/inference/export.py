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
from torch import Tensor, nn

from deit_zoo.data.digits import digits
from deit_zoo.data.folder import images_of
from deit_zoo.data.image_like import ImageLike, is_one
from deit_zoo.data.transforms import EvalTransform, as_tensor, transform_of
from deit_zoo.errors import DataError, DifferenceError, ZooError, is_real, whole_number
from deit_zoo.files import check_new_file, write_whole
from deit_zoo.inference.classify import class_names, is_by_class, reading_for
from deit_zoo.labels import SEVERAL_LABELS
from deit_zoo.machine import require_compiler, require_extra, usable_device
from deit_zoo.manifest import IMAGENET_MEAN, IMAGENET_STD
from deit_zoo.models.model import ZooModel, check_heads, spec_of
from deit_zoo.version import __version__

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Run = Callable[[Tensor], Tensor]

FORMATS = ("onnx", "pt2")
INPUT, OUTPUT = "images", "logits"
# Of a program torch writes 18 or newer; the oldest is read by the most runtimes. 16 and 17, where
# some stop (TensorRT 8, and with it JetPack 5), are written of a trace.
OPSET, OLDEST_OPSET = 18, 16
# Protocol buffers, of which an ONNX file is one, end here.
ONNX_BYTES = 2**31 - 1
# Another order of summation moves a float32 logit by up to 2.5e-6, a GELU by tanh instead of erf
# by 1.2e-4 and more (measured: docs/export.md).
LIMIT = 1e-4
BATCH = 8  # images compared at once

CHATTY = ("torch.onnx", "torch.export", "torch._inductor", "torch.utils", "onnxscript", "onnx_ir")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """What to write and where; each as the argument of `deit_zoo.export`."""

    file: Path
    to: str | None = None
    opset: int | None = None
    aot: bool = False
    limit: float = LIMIT
    overwrite: bool = False
    device: str | torch.device | None = None

    @property
    def format(self) -> str:
        """onnx or pt2, which the file's suffix says."""
        return self.file.suffix.lower().removeprefix(".")

    def check(self) -> None:
        """Before a model is loaded, raises ZooError for options that do not go together,
        MissingExtraError without the extra, and DataError where the file must not or cannot be put.
        """
        to, opset = self.to, self.opset
        if to is not None and to not in FORMATS:
            raise ZooError(f"no export is named {to!r}; give onnx or pt2")
        if self.format not in FORMATS:
            examples = f"FILE.{to}" if to else "FILE.onnx or FILE.pt2"
            raise ZooError(f"no exported model is named {self.file}; give {examples}")
        if to not in (None, self.format):
            raise ZooError(f"{self.file} is no {to} file by its name; give FILE.{to}")
        if not (is_real(self.limit) and self.limit >= 0):
            raise ZooError(
                f"limit is {self.limit!r}; give the largest difference of a logit, such as 1e-4"
            )
        if self.format == "onnx":
            if self.aot:
                raise ZooError("AOTInductor makes .pt2 files; give --to pt2, or leave out --aot")
            if self.device is not None and str(self.device) != "cpu":
                raise ZooError("an ONNX file has no device; leave it out, the runtime chooses")
            require_extra("export", "ONNX", "onnx", "onnxscript", "onnxruntime")
            import onnx

            newest = onnx.defs.onnx_opset_version()
            if opset is not None and whole_number(opset) not in range(OLDEST_OPSET, newest + 1):
                raise ZooError(f"opset is {opset!r}; give one from {OLDEST_OPSET} to {newest}")
        elif opset is not None:
            raise ZooError("a .pt2 file has no opset; give --to onnx, or leave out --opset")
        elif self.aot:
            require_compiler("AOTInductor", "leave out --aot")
        usable_device("cpu" if self.device is None else self.device)
        check_new_file(self.file, (self.file.suffix.lower(),))
        if self.file.exists() and not self.overwrite:
            raise DataError(
                f"{self.file} is there already; give another --output, or --force to replace it"
            )


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


def export(
    model: nn.Module,
    options: ExportOptions,
    sources: Sequence[ImageLike],
    *,
    say: Callable[[str], None] = lambda doing: None,
) -> Export:
    """Write a model as a file, with options that were checked and the images of
    `images_to_compare`; as `deit_zoo.export` says."""
    form, limit, opset = options.format, options.limit, options.opset or OPSET
    network = _prepared_copy(model, options.device)
    transform = transform_of(network)
    with torch.inference_mode():  # an image or a model that does not fit is known at once
        logits = _logits(network, torch.stack([as_tensor(sources[0], transform)]))
    if not logits.isfinite().all():
        raise ZooError("the model's logits are not finite; its weights are broken")
    texts = metadata(network, transform)
    name = texts["name"]
    say(f"tracing {name}")
    with _quiet():
        if form == "onnx":
            say(f"converting {name} to ONNX")
            old = opset < OPSET
            proto = _of_trace(network, opset) if old else _of_program(_traced(network), opset)
            data = _to_onnx(proto, opset, texts)
            run = _run_onnx(data)
        elif options.aot:
            say(f"compiling {name}")
            data, run = _to_package(_traced(network), texts)
        else:
            say(f"saving {name}")
            stream = BytesIO()
            torch.export.save(_traced(network), stream, extra_files=texts)
            data = stream.getvalue()
            run = cast(Run, torch.export.load(BytesIO(data)).module())
        say(f"comparing on {len(sources)} images")
        num_images, agreed, largest = compare(network, run, _batches(sources, transform))
    if not largest <= limit:  # nor does NaN pass
        raise DifferenceError(
            f"{name} as {form} gives logits up to {largest:.3g} from the model's on {num_images} "
            f"images, and the limit is {limit:g}; nothing was written, give another format or, if "
            "that is near enough, another limit"
        )
    write_whole(options.file, data)
    return Export(
        file=options.file,
        model=name,
        format=form,
        compiled=options.aot,
        opset=opset if form == "onnx" else None,
        img_size=transform.img_size,
        bytes=len(data),
        sha256=sha256(data).hexdigest(),
        num_images=num_images,
        agreed=agreed,
        max_difference=largest,
        limit=limit,
    )


def metadata(network: ZooModel, transform: EvalTransform) -> dict[str, str]:
    """What a file says of itself; lists and records are JSON, and what is not known is left out."""
    classes = class_names(network)
    height, width = transform.img_size
    preprocessing = {
        "img_size": [height, width],
        "resize": [int(height / transform.crop_pct), int(width / transform.crop_pct)],
        "crop_pct": transform.crop_pct,
        "interpolation": "bicubic",
        "color": "RGB",
        "scale": 1 / 255,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "layout": "NCHW",
        "dtype": "float32",
    }
    texts = {
        "name": spec_of(network).name,
        "preprocessing": json.dumps(preprocessing),
        "labels": json.dumps([label.name for label in classes], ensure_ascii=False),
        "folders": json.dumps([label.folder for label in classes], ensure_ascii=False),
        "reading": reading_for(network),
        # A RegNet from timm has no such word.
        "problem_type": SEVERAL_LABELS
        if is_by_class(network)
        else getattr(network, "problem_type", None),
        "license": getattr(network.checkpoint, "license", None),
        "source_sha256": getattr(network.checkpoint, "sha256", None),
        "deit_zoo": __version__,
        "torch": str(torch.__version__),
    }
    return {key: text for key, text in texts.items() if text is not None}


@torch.inference_mode()
def compare(network: nn.Module, run: Run, batches: Iterable[Tensor]) -> tuple[int, int, float]:
    """The images, those of the same first class by a file and by its model, and how far logits are
    apart at most; a wrong shape is infinitely far."""
    largest = torch.zeros(())
    num_images = agreed = 0
    for images in batches:
        expected = _logits(network, images)
        logits = run(images.to(_device_of(network))).float().cpu()
        if logits.shape != expected.shape:
            return num_images, agreed, float("inf")
        largest = torch.maximum(largest, (logits - expected).abs().max())
        num_images += len(images)
        agreed += int((logits.argmax(-1) == expected.argmax(-1)).sum())
    return num_images, agreed, largest.item()


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = network(images.to(_device_of(network)))
    return logits.float().cpu()


def _device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _prepared_copy(model: nn.Module, device: str | torch.device | None) -> ZooModel:
    """A copy on the device, in eval mode and float32."""
    spec_of(model)  # refuses what `create` did not make
    network = copy.deepcopy(cast(ZooModel, model))
    if network.num_classes == 0:
        raise ZooError("the model has no head (num_classes=0), so it has no logits to export")
    check_heads(network)
    network.to(device=usable_device("cpu" if device is None else device), dtype=torch.float32)
    return network.eval().requires_grad_(False)


def images_to_compare(images: ImageLike | Iterable[ImageLike] | None) -> Sequence[ImageLike]:
    """Every image to compare on; a folder stands for all that it holds.

    Raises DataError where one is missing, or there are none.
    """
    if images is None:
        return [image for image, _ in islice(digits(), BATCH)]
    many = [images] if is_one(images) else cast("Iterable[Any]", images)
    sources = [source for image in many for source in images_of(image)]
    for source in sources:
        if isinstance(source, DataError):
            raise source
    if not sources:
        raise DataError("there are no images to compare on; give some, or leave images out")
    return sources


def _batches(sources: Sequence[ImageLike], transform: EvalTransform) -> Iterator[Tensor]:
    """One image alone, then the others together, since a traced batch must be any."""
    for batch in (sources[:1], *(sources[n : n + BATCH] for n in range(1, len(sources), BATCH))):
        yield torch.stack([as_tensor(image, transform) for image in batch])


def _traced(network: ZooModel) -> ExportedProgram:
    """The computation as a graph whose batch may be any number."""
    images = torch.zeros(2, 3, *network.img_size, device=_device_of(network))
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(
            network, (images,), dynamic_shapes=({0: batch},), strict=False
        )
    for node in program.graph.nodes:  # it names files of this machine
        node.meta.pop("stack_trace", None)
    return program


def _check_onnx_size(tensors: Iterable[Tensor]) -> None:
    size = sum(tensor.nbytes for tensor in tensors)
    if size > ONNX_BYTES:
        raise ZooError(
            f"the weights are {size / 1e9:.1f} GB and an ONNX file holds 2; give --to pt2"
        )


def _of_trace(network: ZooModel, opset: int) -> Any:
    """A model as ONNX by torch's exporter of traces."""
    import onnx

    _check_onnx_size(network.parameters())
    file: Any = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is called old, and says what a trace leaves out
        torch.onnx.export(
            network,
            (torch.zeros(2, 3, *network.img_size),),
            file,
            dynamo=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
            opset_version=opset,
        )
    return onnx.load_from_string(file.getvalue())


def _of_program(program: ExportedProgram, opset: int) -> Any:
    """A program as ONNX."""
    _check_onnx_size(program.state_dict.values())
    converted = torch.onnx.export(
        program,
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        opset_version=opset,
        verbose=False,
    )
    assert converted is not None, "torch gives a program unless it writes a file"
    return converted.model_proto


def _to_onnx(proto: Any, opset: int, texts: dict[str, str]) -> bytes:
    """The bytes of one file with its weights; the same model gives the same bytes."""
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


def _run_onnx(data: bytes) -> Run:
    """The file as a function, by ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _to_package(program: ExportedProgram, texts: dict[str, str]) -> tuple[bytes, Run]:
    """The bytes of an AOTInductor package, and what was loaded of them."""
    with TemporaryDirectory() as folder:
        file = f"{folder}/model.pt2"
        torch._inductor.aoti_compile_and_package(
            program, package_path=file, inductor_configs={"aot_inductor.metadata": texts}
        )
        run = torch._inductor.aoti_load_package(file)
        return Path(file).read_bytes(), cast(Run, run)


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
