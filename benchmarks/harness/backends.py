"""Backends: ours, timm, transformers, ONNX Runtime and OpenVINO.

All get the same weights and the same images, and their logits must agree: nobody is measured on
something else. What a peer cannot do it says by `UnsupportedError`, and is left out with the
reason.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from deit_zoo.errors import MissingExtraError, ZooError
from deit_zoo.inference.throughput import OURS, Case, plain_model, random_images, run_of
from deit_zoo.machine import peak_mb
from deit_zoo.registry import ModelSpec
from deit_zoo.registry.names import resolve
from harness.timing import Backend

if TYPE_CHECKING:
    from torch import Tensor, nn

PEERS = ("timm", "transformers", "onnxruntime", "openvino")
# Whose graph a runtime runs: what its users export of timm's model, or our own file.
GRAPHS = {"timm's graph": "timm", "our file": OURS}
RUNTIMES = ("onnxruntime", "openvino")
EXTRAS = {"timm": "train", "transformers": "examples", "onnxruntime": "export", "openvino": "dev"}
# Largest distance of logits from the plain float32 model's, as a share of their own size; other
# weights are further away than 1.
LIMITS = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02, "int8": 0.3}
NOISE = 0.1

Run = Callable[[], Any]


class UnsupportedError(Exception):
    """A backend has no such model, or cannot do what the case asks; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedInputs:
    """What the backends share. Without weights and images each takes its own, for memory."""

    state: dict[str, Tensor] | None = None
    images: Tensor | None = None
    graphs: Path | None = None  # the folder of ONNX files


def chosen(names: Sequence[str] | None) -> tuple[str, ...]:
    """The peers that were asked for, or every one that is installed.

    Raises ZooError for one that is not known, MissingExtraError for one that is not here.
    """
    if names is None:
        return tuple(name for name in PEERS if is_installed(name))
    for name in names:
        if name not in PEERS:
            raise ZooError(f"no peer is named {name!r}; give {', '.join(PEERS)}")
        if not is_installed(name):
            raise MissingExtraError(
                f"{name} is not installed; type: pip install 'deit_zoo[{EXTRAS[name]}]'"
            )
    return tuple(dict.fromkeys(names))


def is_installed(name: str) -> bool:
    """Whether a peer can be imported."""
    return find_spec(name) is not None


def entries(case: Case, modes: Sequence[str], peers: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Who is measured in a case, and how: ours first. onnxruntime runs float32 files only."""
    compiled = "compiled" in modes or "optimized" in modes
    for mode in modes:
        if mode == "optimized" or case.precision != "int8":
            yield OURS, mode
    if case.precision == "int8":
        return
    for peer in peers:
        if peer == "timm":
            yield from ((peer, "eager"), *([(peer, "compiled")] if compiled else []))
        elif peer == "transformers":
            yield peer, "eager"
        elif not case.train and (peer != "onnxruntime" or case.precision == "float32"):
            yield from ((peer, graph) for graph, of in GRAPHS.items() if of in (OURS, *peers))


def built(who: str, mode: str, case: Case, shared: SharedInputs) -> Backend:
    """A backend, ready to run. Raises UnsupportedError, or whatever its makers raise."""
    if who == OURS:
        return Backend(who=who, mode=mode, run=_ours(mode, case, shared))
    with quiet():
        return Backend(who=who, mode=mode, run=_BUILDERS[who](mode, case, shared))


def plain(case: Case) -> nn.Module:
    """Our model of a case, in float32 and eval mode; random weights are the same each time.

    Constants of a fresh model (biases, norms, LayerScale) get noise, or a mix-up of them would not
    show in the logits.
    """
    import torch

    model = plain_model(case)
    if case.pretrained:
        return model
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for parameter in model.parameters():
            if bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn_like(parameter), alpha=NOISE)
    return model


def check_logits(logits: Any, expected: Tensor, precision: str) -> float:
    """The distance of logits from the expected ones, as a share of their size.

    Raises UnsupportedError where it is too large for the precision: it is another model.
    """
    import torch

    logits = torch.as_tensor(logits).detach().float().cpu()
    if logits.shape != expected.shape:
        raise UnsupportedError(f"its logits are {tuple(logits.shape)}, not {tuple(expected.shape)}")
    distance = float((logits - expected).norm() / expected.norm())
    if not distance <= LIMITS[precision]:
        raise UnsupportedError(
            f"its logits are {distance:.2g} of their size away from the plain model's, more than "
            f"{precision} explains ({LIMITS[precision]:g}); it is not the same model"
        )
    return distance


def memory_of(task: dict[str, Any]) -> dict[str, float | None]:
    """The peak memory of a process that does nothing but build a backend and run it thrice.

    `grown_mb` is the part that came after the imports.
    """
    case = Case(**task["case"])
    on_gpu = case.device.startswith("cuda")
    if task["who"] not in RUNTIMES:
        import torch

        torch.set_num_threads(case.threads)
    with quiet():
        import_module(task["who"])
    before = peak_mb()
    folder = Path(task["graphs"]) if task["graphs"] else None
    backend = built(task["who"], task["mode"], case, SharedInputs(graphs=folder))
    for _ in range(3):
        backend.run()
    peak = peak_mb()
    if on_gpu:
        import torch

        before, peak = 0.0, torch.cuda.max_memory_allocated(case.device) / 2**20
    grown = None if peak is None or before is None else peak - before
    return {"peak_mb": peak, "grown_mb": grown}


def save_graphs(case: Case, shared: SharedInputs, owners: Sequence[str]) -> dict[str, str]:
    """Write the ONNX files of a model into the folder; why some could not be, by their owner."""
    failed = {}
    for owner in owners:
        file = _graph_file(owner, shared)
        if file.exists():
            continue
        try:
            with quiet():
                if owner == OURS:
                    _export_ours(case, file)
                else:
                    _export(_timms_network(case, shared).eval(), case, file)
        except Exception as error:  # whatever an exporter makes of a model
            failed[owner] = reason(error)
    return failed


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    # Results are published: folders of this machine say nothing to others.
    text = re.sub(r"(?<![\w.])/(?:[^\s/]+/)+", "", " ".join(str(error).split()))
    if isinstance(error, UnsupportedError | ZooError):
        return text
    return f"{type(error).__name__}: {text[:200]}".removesuffix(": ")


def timm_name(spec: ModelSpec) -> str:
    """timm's name of a model. Raises UnsupportedError where it has none."""
    tagged = (alias for alias in spec.aliases if "." in alias)
    if (name := next(tagged, None)) is None:
        raise UnsupportedError(f"timm has no {spec.name}")
    return name.partition(".")[0]


def _ours(mode: str, case: Case, shared: SharedInputs) -> Run:
    return run_of(plain(case), mode, case, _images(case, shared))


def _timm(mode: str, case: Case, shared: SharedInputs) -> Run:
    return run_of(_timms_network(case, shared), mode, case, _images(case, shared))


def _timms_network(case: Case, shared: SharedInputs) -> Any:
    import timm

    name = timm_name(resolve(case.model))
    network: Any = timm.create_model(name, img_size=case.img_size)
    if shared.state is not None:
        network.load_state_dict(shared.state, strict=True)
    if case.train and hasattr(network, "set_distilled_training"):
        network.set_distilled_training(True)
    return network


def _transformers(mode: str, case: Case, shared: SharedInputs) -> Run:
    network = transformers_model(case, shared.state)
    return run_of(_logits_of(network), mode, case, _images(case, shared))


def transformers_model(case: Case, state: dict[str, Tensor] | None) -> Any:
    """The model as transformers has it: a plain DeiT is its ViT, CaiT is missing."""
    import transformers

    spec = resolve(case.model)
    if spec.family != "deit":
        raise UnsupportedError(f"transformers has no {spec.name}")
    distilled = bool(spec.arch.get("distilled"))
    names = (
        ("DeiTConfig", "DeiTForImageClassificationWithTeacher")
        if distilled
        else ("ViTConfig", "ViTForImageClassification")
    )
    config_of, model_of = (getattr(transformers, name) for name in names)
    config = config_of(
        hidden_size=spec.arch["embed_dim"],
        num_hidden_layers=spec.arch["depth"],
        num_attention_heads=spec.arch["num_heads"],
        intermediate_size=4 * spec.arch["embed_dim"],
        patch_size=spec.arch["patch_size"],
        image_size=case.img_size[0] if case.img_size[0] == case.img_size[1] else case.img_size,
        num_labels=spec.num_classes,
        layer_norm_eps=1e-6,
    )
    network = model_of(config)
    if state is not None:
        network.load_state_dict(_as_transformers(state, distilled), strict=True)
    return network


def save_transformers(case: Case, state: dict[str, Tensor], folder: Path) -> None:
    """The folder that `from_pretrained` reads: weights, configuration and the preprocessing."""
    from transformers import ViTImageProcessor

    transformers_model(case, state).save_pretrained(folder)
    height, width = case.img_size
    ViTImageProcessor(size={"height": height, "width": width}).save_pretrained(folder)


def _logits_of(network: Any) -> nn.Module:
    """The same network, which returns logits and not a record that holds them."""
    forward = network.forward
    network.forward = lambda images: forward(images).logits
    return cast("nn.Module", network)


# Our part of a key and transformers'; a layer's keys come after its number.
_RENAMED = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
    "blocks": "layers",
    "attn.proj": "attention.o_proj",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "norm": "layernorm",
}


def _as_transformers(state: dict[str, Tensor], distilled: bool) -> dict[str, Tensor]:
    """A state dict of ours under transformers' keys, queries, keys and values apart."""
    body = "deit" if distilled else "vit"
    heads = {"head": "cls_classifier" if distilled else "classifier"}
    heads["head_dist"] = "distillation_classifier"
    renamed = {}
    for key, value in state.items():
        owner, _, kind = key.rpartition(".")
        if owner in heads:
            renamed[f"{heads[owner]}.{kind}"] = value
            continue
        parts = f".{key}."
        for ours, theirs in _RENAMED.items():
            parts = parts.replace(f".{ours}.", f".{theirs}.")
        name = body + parts.rstrip(".")
        if ".attn.qkv." not in name:
            renamed[name] = value
            continue
        for part, letter in zip(value.chunk(3), "qkv", strict=True):
            renamed[name.replace(".attn.qkv.", f".attention.{letter}_proj.")] = part
    return renamed


def _onnxruntime(mode: str, case: Case, shared: SharedInputs) -> Run:
    import onnxruntime

    kind = "CUDA" if case.device.startswith("cuda") else "CPU"
    provider = f"{kind}ExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise UnsupportedError(f"this onnxruntime has no {provider}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(_graph_file(GRAPHS[mode], shared)), options, providers=[provider]
    )
    images = _arrays(case, shared)
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: images})[0]


def _openvino(mode: str, case: Case, shared: SharedInputs) -> Run:
    if case.device != "cpu":
        raise UnsupportedError("openvino runs on Intel's processors only, not on CUDA")
    if case.precision == "float16":
        raise UnsupportedError("openvino has no float16 on a CPU")
    import openvino

    core = openvino.Core()
    network = core.read_model(_graph_file(GRAPHS[mode], shared))
    network.reshape([case.batch_size, 3, *case.img_size])
    settings = {
        "INFERENCE_NUM_THREADS": case.threads,
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[case.precision],
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(network, "CPU", settings).create_infer_request()
    images = _arrays(case, shared)
    return lambda: request.infer({0: images})[0]


_BUILDERS: dict[str, Callable[[str, Case, SharedInputs], Run]] = {
    "timm": _timm,
    "transformers": _transformers,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}


def _images(case: Case, shared: SharedInputs) -> Tensor:
    return random_images(case) if shared.images is None else shared.images


def _arrays(case: Case, shared: SharedInputs) -> Any:
    """The images for what is not torch; a process that measures memory never imports it."""
    if shared.images is not None:
        return shared.images.numpy()
    import numpy

    shape = (case.batch_size, 3, *case.img_size)
    return numpy.random.default_rng(0).standard_normal(shape, dtype=numpy.float32)


def _graph_file(owner: str, shared: SharedInputs) -> Path:
    assert shared.graphs is not None, "a runtime needs a folder of graphs"
    return shared.graphs / f"{owner}.onnx"


def _export_ours(case: Case, file: Path) -> None:
    from deit_zoo import export

    export(plain(case), file)


def _export(network: nn.Module, case: Case, file: Path) -> None:
    """A graph with a dynamic batch; an example of one image would fix it to one."""
    import torch

    example = random_images(replace(case, batch_size=2))
    torch.onnx.export(
        network,
        (example,),
        file,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Within it, other people's warnings, logs and prints are not ours to pass on."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
