"""What is done with a model: the public functions. torch is imported inside them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from deit_zoo.errors import DataError, UnknownModelError, ZooError, as_text, check_whole
from deit_zoo.files import expand_user
from deit_zoo.machine import plain_torch, restore_process_state
from deit_zoo.manifest import manifest_record
from deit_zoo.registry.names import resolve
from deit_zoo.results import Evaluation, Method, Predictions
from deit_zoo.zoo import (
    NAME_OR_PATH,
    create,
    resolve_classifier,
    resolve_model,
    transform,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from deit_zoo.data.image_like import ImageLike
    from deit_zoo.distributed import DistributedContext
    from deit_zoo.evaluation.accuracy import EvalDataset
    from deit_zoo.evaluation.agreement import Comparison
    from deit_zoo.hub.verify import VerifyResult
    from deit_zoo.inference.attention import AttentionMap
    from deit_zoo.inference.export import Export
    from deit_zoo.inference.optimize import OptimizedModel
    from deit_zoo.models.model import ZooModel
    from deit_zoo.runs.receipt import Verdict


def classify(
    images: ImageLike | Iterable[ImageLike],
    model: str | os.PathLike[str] | nn.Module = "deit_small",
    *,
    topk: int = 5,
    device: str | torch.device | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    fast: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> Predictions:
    """The `topk` most probable classes of each image, best first: a list, which a notebook shows.

    Their probabilities are together 1 (softmax); of a model that was fine-tuned on multi-label
    images, or has a single class, each stands for itself (sigmoid).

    One image among many, or of a folder, that cannot be read does not lose the others: its entry is
    the DataError that says why. Warns of what is no image in a folder.

    Args:
        images: one image or many: paths, URLs, bytes of an encoded image, files opened with 'rb',
            PIL images, arrays (H, W, 3) or tensors (3, H, W) in RGB order, uint8, uint16 or floats
            from 0 to 1; or a folder, on this machine or at an address of fsspec (s3://...), for all
            images in it in the order of their paths. Of many, only some batches are held in memory,
            whatever gives them.
        model: a name (its checkpoint is loaded) or a model from `create`.
        topk: classes per image.
        device: where the model runs: cpu, cuda, cuda:1, mps or auto, which a model that is given
            by its name takes unless told: the best that is there. A model that is given is
            moved there, and stays.
        batch_size: images that the model looks at together.
        workers: threads that read images meanwhile; one for each core, at most 16, unless given.
        fast: by an optimized copy of the model, in the precision that the device computes fastest.
            It is not compiled, since that takes longer than most folders do: give a copy from
            `optimize` as the model to have that.
        progress: called after each batch with the images done and the images in all, None where
            nobody knows; unless given, a bar in a notebook or on a terminal.

    Raises:
        DataError: the only image cannot be read.
        ZooError: the model cannot be optimized.

    >>> [[best]] = deit_zoo.classify("seven.png", "deit_pico_digits", topk=1)
    >>> best.label
    '7'
    """
    from deit_zoo.data.folder import images_of, is_folder
    from deit_zoo.data.image_like import is_one, name_of
    from deit_zoo.inference.classify import classify_stream, thumbnail
    from deit_zoo.terminal import watched

    many: Iterable[Any] = [images] if is_one(images) else images  # type: ignore[assignment]
    alone = is_one(images) and not is_folder(images)
    check_whole("topk", topk, 1, "the number of classes to show, 1 or more")
    check_whole("batch_size", batch_size, 1, "1 image or more")
    if workers is not None:
        check_whole("workers", workers, 1, "1 thread or more")
    total = len(many) if isinstance(many, Sized) else None
    remarks: list[str] = []

    def named() -> Iterator[tuple[str, Any]]:
        nonlocal total
        for image in many:
            if is_folder(image):
                total = None
            for one in images_of(image, remarks.append):
                yield name_of(image if isinstance(one, DataError) else one), one

    images_by_name: Iterable[tuple[str, Any]] = named()
    if alone:
        images_by_name = list(images_by_name)
        for _, image in images_by_name:
            if isinstance(image, DataError):
                raise image
    network = resolve_classifier(model, device)
    if fast:
        from deit_zoo.inference.optimize import fast_copy

        network = cast("ZooModel", fast_copy(network))
    results = Predictions()
    stream = classify_stream(network, images_by_name, topk, batch_size=batch_size, threads=workers)
    # One image is no wait: a bar would flicker with each call.
    with closing(stream) as batches, watched("images", progress, quiet=alone) as shown:
        for batch in batches:
            for name, pixels, answer in batch:
                if alone and isinstance(answer, DataError):
                    raise answer
                if len(results) < results.MOST:
                    small = None if isinstance(pixels, DataError) else thumbnail(pixels)
                    results.images.append((answer, name, small))
                results.append(answer)
            shown(len(results), total)
    for sentence in remarks:
        warnings.warn(sentence, stacklevel=2)
    return results


def optimize(
    model: str | os.PathLike[str] | nn.Module,
    dtype: str | torch.dtype = "auto",
    compile: bool | str = "auto",
) -> OptimizedModel:
    """A copy that only predicts, and does so faster: the same function by fewer operations.

    It takes uint8 pixels (B, 3, H, W) as well as normalised images and gives logits
    (B, num_classes) in float32, of a distilled model the mean of both heads.

    Args:
        model: a name (its checkpoint is loaded) or a model from `create`, which stays as it is.
        dtype: "auto", the type that the device computes fastest, which `print(copy)` shows with
            the reason; or bfloat16, float32, float16, int8 (with torchao), or float64, in which
            the copy equals the model to 1e-10.
        compile: make machine code for each batch size that comes, at its first call; that takes
            some seconds to minutes. Batches near one that is there are padded to it. "auto" is
            True where there is a compiler.

    Warns where a type of 16 bits that was asked for is slower than float32 on this device.

    Raises:
        ZooError: the model is no DeiT or CaiT; there is no such dtype; 8 bits would be slower on
            this device; or there is no compiler.
        MissingExtraError: int8 without torchao.

    >>> fast = deit_zoo.optimize(deit_zoo.create("deit_pico_digits", pretrained=True))
    """
    from deit_zoo.inference.optimize import is_slower_than_float32
    from deit_zoo.inference.optimize import optimize as optimized_copy

    plain = resolve_model(model, "cpu" if isinstance(model, str | os.PathLike) else None)
    copy = optimized_copy(plain, dtype, compile)
    if is_slower_than_float32(copy):
        warnings.warn(
            f"{copy.precision} is slower than float32 on this device, which has no units for it; "
            "give dtype='auto' for the fastest",
            stacklevel=2,
        )
    return copy


def attention_map(
    image: ImageLike,
    model: str | os.PathLike[str] | nn.Module = "deit_small",
    *,
    layer: int = -1,
    method: Method = "heads",
    img_size: int | tuple[int, int] | None = None,
    device: str | torch.device | None = None,
) -> AttentionMap:
    """What the class token looks at (and the distillation token): its attention to each patch.

    Args:
        image: a path, a URL, the bytes of an encoded image, a PIL image, an array or a tensor, as
            `classify` takes it.
        model: a name (its checkpoint is loaded) or a model from `create`.
        layer: counted from 0, or from the last with -1; in CaiT one of class-attention.
        method: "heads" gives a map for each head, "mean" their mean, "rollout" the attention that
            flows through all layers up to this one (arXiv 2005.00928), "all" these in this order.
        img_size: an int or (height, width), for a model that is given by its name.
        device: where the model runs, as in `classify`.

    Raises:
        ZooError: the model has no attention, or no class token in this layer.
        DataError: the image cannot be read.

    >>> attention = deit_zoo.attention_map("seven.png", "deit_pico_digits")
    >>> attention.maps.shape  # tokens, heads, rows, columns
    torch.Size([1, 4, 4, 4])
    >>> attention.save("attention.png")
    """
    from deit_zoo.data.transforms import as_tensor
    from deit_zoo.inference import attention
    from deit_zoo.models.model import spec_of
    from deit_zoo.weights.load import spec_for

    if isinstance(model, str | os.PathLike):
        model = os.fspath(model)
        attention.check_attentive(spec_for(model))
        attention.check_layer(model, layer)
        network = create(
            model, pretrained=True, img_size=img_size, device="auto" if device is None else device
        )
    else:
        network = resolve_model(model, device)
        attention.check_attentive(spec_of(network))
        attention.check_size(network, img_size)
    pixels = as_tensor(image, transform(network).pixels)
    return attention.attention_map(network, pixels, layer=layer, method=method)


@restore_process_state()
@plain_torch()
def export(
    model: str | os.PathLike[str] | nn.Module,
    file: str | os.PathLike[str],
    *,
    to: str | None = None,
    opset: int | None = None,
    aot: bool = False,
    images: ImageLike | Iterable[ImageLike] | None = None,
    limit: float = 1e-4,
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
        opset: of ONNX, from 16; 18 unless given.
        aot: compile the .pt2 by AOTInductor, for the processor or GPU of this machine.
        images: images to compare on, as `classify` takes them; some of the embedded digits unless
            given.
        limit: the largest difference of a logit that passes.
        overwrite: replace a file that is there.
        device: where a .pt2 is traced and will run; the CPU unless given.
        say: called with what is being done.

    Raises:
        DifferenceError: the logits differ by more than the limit; nothing was written.
        MissingExtraError: ONNX without `deit_zoo[export]`.
        DataError: the file must not or cannot be put there, or an image cannot be read.

    >>> deit_zoo.export("deit_pico_digits", "digits.onnx").agreed
    8
    """
    from deit_zoo.inference import export as inference

    options = inference.ExportOptions(
        file=_path("file", file),
        to=to,
        opset=opset,
        aot=aot,
        limit=limit,
        overwrite=overwrite,
        device=device,
    )
    options.check()
    sources = inference.images_to_compare(images)
    network = resolve_model(model, "cpu" if isinstance(model, str | os.PathLike) else None)
    return inference.export(network, options, sources, say=say)


@restore_process_state()
@plain_torch()
def evaluate(
    name_or_model: str | os.PathLike[str] | nn.Module,
    data: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    workers: int | None = 0,
    device: str | torch.device | None = None,
    gpus: int | None = None,
    processes: int | None = None,
    labels: str | None = None,
    label_file: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
    parquet: bool = False,
    group: DistributedContext | None = None,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Evaluation:
    """Top-1, top-5 and loss over a folder of class folders (or its `val/`), every image once.

    Images are decoded as for the published figures, without EXIF rotation; for a model with classes
    of its own upright, as `classify` always does.

    Args:
        name_or_model: a name (its checkpoint is loaded), the folder of a run, or a model from
            `create`.
        data: the folder, or another form in docs/data.md, such as `hfds:NAME`.
        batch_size: images that a process looks at together.
        workers: processes that read images, beside each that looks at them; None chooses.
        device: where the model runs, in this process; as in `classify`.
        gpus: the number of GPUs to share the images between, one process each; 0 is the CPU.
        processes: the same on the CPU. The figures are those of one process.
        labels: None for the model's own classes; for one of ImageNet-1k also `real`, `v2`, `a`,
            `r` or `sketch`, which docs/evaluate.md describes.
        label_file: ReaL's `real.json`, or the 200 synsets of A or R, one on a line.
        report: a folder for a page with the accuracy of each class, the confusion matrix, the
            surest mistakes and every image's answer.
        parquet: in the report also predictions.parquet.
        group: processes that evaluate together, from `deit_zoo.distributed.init_distributed`.
        progress: called with the images done and the images in all; unless given, a bar in a
            notebook or on a terminal.
        say: called with each sentence that is worth knowing of the images: what is left out, or
            that the model learned from them; unless given, each is a warning.

    Raises:
        DataError: the folders, an image or the label file are not what they must be.

    >>> deit_zoo.evaluate("deit_pico_digits", "digits/")
    """
    from deit_zoo.evaluation import parallel
    from deit_zoo.evaluation.accuracy import IN_PROCESS, evaluation_of
    from deit_zoo.evaluation.imagenet_variants import check_eval_set
    from deit_zoo.inference.classify import class_names
    from deit_zoo.recipes.plan import default_workers
    from deit_zoo.terminal import watched

    _check_reading(batch_size, workers)
    data = _data(data)
    label_file = None if label_file is None else _path("label_file", label_file)
    check_eval_set(data, labels, label_file)
    report = None if report is None else _path("report", report)
    devices = parallel.devices_for(device, gpus, processes)
    if group is not None:
        devices = [group.device] * group.size
        if isinstance(name_or_model, str | os.PathLike):  # the first fetches for all
            name = name_or_model
            group.run_on_main(lambda: bool(resolve_model(name, "cpu")))
    in_process = len(devices) == 1 or group is not None
    if parquet and report is None:
        raise ZooError("parquet is of a report's predictions; give report=DIR (--report DIR) too")
    if report is not None and labels == "real":
        raise ZooError(
            f"a report ({report}) is of images with one label each or of a model that "
            "gives several; leave out the labels 'real', or the report"
        )
    if report is not None:
        from deit_zoo.evaluation.answers import answers_of, answers_to
        from deit_zoo.evaluation.report import check_report_folder, prepare_folder, write_report

        check_report_folder(report)
        prepare_folder(report, parquet=parquet)
    # Of several processes each moves its own copy to where it runs.
    by_name = isinstance(name_or_model, str | os.PathLike)
    model_device = devices[0] if in_process else "cpu" if by_name else None
    model = resolve_classifier(name_or_model, model_device)

    def open_images() -> EvalDataset:
        return _eval_dataset(model, data, labels, label_file)

    dataset = open_images() if group is None else group.run_on_main(open_images)
    is_main = group is None or group.is_main  # of several processes by the first
    if say is None:
        say = _warn if is_main else lambda sentence: None
    for sentence in _remarks(model, dataset):
        say(sentence)
    if workers is None:
        workers = 0 if len(dataset) < IN_PROCESS else default_workers(len(devices))
    if report is not None and dataset.multi_labels is not None and not dataset.by_class:
        raise ZooError(
            f"a report ({os.fspath(report)}) of this model is of images with one label each, and "
            f"those of {os.fspath(data)} may have several; leave out the report"
        )
    job = parallel.EvalJob(
        model=model,
        images=dataset,
        batch_size=batch_size,
        workers=workers,
        keep=None if report is None else answers_to,
    )
    with watched("images", progress or (None if is_main else lambda *_: None)) as shown:
        if group is not None:
            sums = parallel.evaluate_in_group(job, group, shown)
        elif in_process:
            sums = job.run_shard(None, 0, 1, shown)
        else:
            sums = parallel.evaluate_in_processes(job, devices, shown)
    if report is not None and is_main:
        names = [label.name for label in class_names(model)]
        competing = [names[number] for number in dataset.class_subset or range(len(names))]
        name = name_or_model if isinstance(name_or_model, str) else "a model"
        answers = answers_of("val", dataset, competing, sums)
        write_report(report, f"{name} on {data}", [answers], parquet=parquet)
    return evaluation_of(sums, dataset)


@restore_process_state()
@plain_torch()
def compare_answers(
    name_or_model: str | os.PathLike[str] | nn.Module,
    data: str | os.PathLike[str],
    *,
    beside: Sequence[str] = (),
    heads: bool = False,
    batch_size: int = 64,
    workers: int | None = 0,
    device: str | torch.device | None = None,
    labels: str | None = None,
    label_file: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Comparison:
    """Models on the same images: the figures of each, and the share on which two disagree.

    Args:
        name_or_model, data, batch_size, workers, device, labels, label_file: as in `evaluate`.
        beside: other models that tell the same classes apart, each with its own transform.
        heads: each head of a distilled model, and both together.
        progress, say: as in `evaluate`, for one model after another.

    Raises:
        ZooError: a model has one head or other classes; DataError as `evaluate` does.

    >>> deit_zoo.compare_answers("deit_pico_distilled_digits", "digits/", heads=True)
    """
    from deit_zoo.evaluation.accuracy import IN_PROCESS
    from deit_zoo.evaluation.agreement import Comparing
    from deit_zoo.evaluation.imagenet_variants import check_eval_set
    from deit_zoo.inference.classify import class_names
    from deit_zoo.recipes.plan import default_workers
    from deit_zoo.weights.load import spec_for

    if labels == "real":
        raise ZooError("ReaL has several labels for an image; compare answers by other labels")
    _check_reading(batch_size, workers)
    data = _data(data)
    label_file = None if label_file is None else _path("label_file", label_file)
    check_eval_set(data, labels, label_file)
    for name in beside:
        spec_for(name)
    comparing = Comparing(batch_size=batch_size, progress=progress)
    remarks: set[str] = set()
    model = resolve_classifier(name_or_model, device)
    own = [label.folder for label in class_names(model)]
    is_named = isinstance(name_or_model, str | os.PathLike)
    title = str(name_or_model) if is_named else "the model"
    for name in dict.fromkeys((*beside, title)):
        compared = model if name == title else resolve_classifier(name, device)
        if [label.folder for label in class_names(compared)] != own:
            raise ZooError(
                f"{name} tells other classes apart than {title}, so their answers cannot be "
                "compared; give models of the same classes"
            )
        dataset = _eval_dataset(compared, data, labels, label_file)
        for sentence in _remarks(compared, dataset):
            if sentence not in remarks:
                remarks.add(sentence)
                (say or _warn)(sentence)
        if workers is None:
            workers = 0 if len(dataset) < IN_PROCESS else default_workers(1)
        is_headed = heads and compared is model
        comparing.add(name, compared, dataset, workers=workers, heads=is_headed)
    return comparing.result()


def _eval_dataset(
    model: ZooModel, data: str, labels: str | None, label_file: Path | None
) -> EvalDataset:
    """The images of a data set for a model, read as they are for it."""
    from deit_zoo.evaluation.imagenet_variants import open_eval_set
    from deit_zoo.inference.classify import class_names, gives_several, reading_for

    folders = [label.folder for label in class_names(model)]
    return open_eval_set(
        data,
        folders,
        transform(model),
        labels,
        label_file,
        reading=reading_for(model),
        by_class=gives_several(model),
    )


def _remarks(model: ZooModel, dataset: EvalDataset) -> list[str]:
    """What is worth knowing of the images, in sentences."""
    from deit_zoo.evaluation.accuracy import note_on_learned

    remarks = (dataset.images.note, note_on_learned(model, dataset.images))
    return [sentence for sentence in remarks if sentence]


def _warn(sentence: str) -> None:
    """What a caller of `evaluate` hears who says nothing of remarks."""
    warnings.warn(sentence, stacklevel=5)  # past its decorators


def _talk(sentence: str) -> None:
    """The same of a training, which speaks on stderr."""
    from deit_zoo.terminal import Terminal

    Terminal(stderr=True, markup=False).print(sentence)


def _check_reading(batch_size: int, workers: int | None) -> None:
    check_whole("batch_size", batch_size, 1, "1 image or more")
    if workers is not None:
        check_whole("workers", workers, 0, "0 processes or more that read images, or None")


def _data(data: str | os.PathLike[str]) -> str:
    from deit_zoo.data.remote import local_path

    expected = "a folder of class folders, or another form in docs/data.md"
    return str(local_path(as_text("data", data, expected, DataError)))


def _path(key: str, path: str | os.PathLike[str]) -> Path:
    return expand_user(as_text(key, path, "a path", DataError))


@restore_process_state()
@plain_torch()
def reproduce(
    name: str,
    output: str | os.PathLike[str] | None = None,
    *,
    variant: str | None = None,
    data: str | os.PathLike[str] | None = None,
    gpus: int | None = None,
    processes: int | None = None,
    device: str | None = None,
    workers: int | None = None,
    resume: str = "auto",
    say: Callable[[str], None] = _talk,
    **changes: Any,
) -> Verdict:
    """Train a checkpoint by its recipe, measure it and judge it against the published figure.

    The call takes as long as the training. It may be stopped by Ctrl-C; the same call goes on.

    Args:
        name: any spelling of a model, or a recipe's name.
        variant: a row beside it in the paper's tables, such as "no-mixup".
        output: where the run lives; `runs/NAME` unless given.
        data: the images, in any form of docs/data.md; the digits of a digits model are embedded.
        gpus, processes: GPUs of this machine, or processes on its CPU, that train together.
        device: where one process trains; the best that is there unless told.
        workers: processes that read images, beside each that trains.
        resume: "auto" goes on with a run in `output`; "never" refuses it.
        say: called with each sentence on the data and on stages that are trained before; unless
            given, they go to stderr, as what the run says does.
        changes: fields of the recipe and settings of the machine, as `--set` takes them.

    Raises:
        RecipeError, DataError, MissingExtraError: before anything is trained.

    >>> deit_zoo.reproduce("deit_pico_digits", "runs/digits", epochs=1).reached.top1
    """
    from deit_zoo.recipes import variant_name
    from deit_zoo.training import launch

    name = as_text("name", name, "the name of a model or of a recipe", UnknownModelError)
    recipe = launch.recipe_for(name if variant is None else variant_name(name, variant))
    return launch.reproduce(
        recipe.name,
        output=Path("runs") / recipe.name if output is None else _path("output", output),
        data=None if data is None else _data(data),
        gpus=gpus,
        processes=processes,
        device=device,
        workers=workers,
        resume=resume,
        changes=_as_typed(changes),
        tell=say,
    )


@restore_process_state()
@plain_torch()
def finetune(
    name: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    recipe: str = "custom",
    val_share: float | None = None,
    gpus: int | None = None,
    processes: int | None = None,
    device: str | None = None,
    workers: int | None = None,
    resume: str = "auto",
    say: Callable[[str], None] = _talk,
    **changes: Any,
) -> Verdict:
    """Train a published model on the classes of a folder, and measure it.

    The call takes as long as the training. It may be stopped by Ctrl-C; the same call goes on.
    What was trained is `create(checkpoint=OUTPUT)`'s.

    Args:
        name: any spelling of a model, or the folder of a run that is trained further.
        data: a folder with `train/` and `val/` of class folders, or another form of docs/data.md;
            a run's own unless given.
        output: where the run lives; `runs/NAME_RECIPE` unless given.
        recipe: custom, imagenet384, cifar10, cifar100, cars, flowers, inat18, inat19.
        val_share: keep this share of each class apart, where there is no `val/`.
        gpus, processes, device, workers, resume: as in `reproduce`.
        say: called with each sentence on how the recipe was fitted to the data; stderr, as in
            `reproduce`, unless given.
        changes: fields of the recipe and settings of the machine, as `--set` takes them, such as
            `freeze="backbone"`; with `teacher=NAME` also `distillation="hard"` (or `"soft"`).

    Raises:
        RecipeError, DataError, MissingExtraError, ImageSizeError: before anything is trained.

    >>> deit_zoo.finetune("deit_small", "photos", "runs/photos", epochs=10).reached.top1
    """
    from deit_zoo.recipes.plan import settings
    from deit_zoo.training import finetune as training

    expected = f"{NAME_OR_PATH}, such as deit_zoo.save(model, FILE) writes"
    name, typed = as_text("name", name, expected, UnknownModelError), _as_typed(changes)
    own = training.recipe_for(name, recipe, settings(typed)[0]).name
    return training.finetune(
        name,
        data=training.data_of(name) if data is None else _data(data),
        output=Path("runs") / own if output is None else _path("output", output),
        recipe=recipe,
        val_share=val_share,
        gpus=gpus,
        processes=processes,
        device=device,
        workers=workers,
        resume=resume,
        changes=typed,
        tell=say,
    )


def save(model: ZooModel, file: str | os.PathLike[str], **metadata: Any) -> str:
    """Write a model as safetensors that `create(NAME, checkpoint=FILE)` loads. Returns SHA-256.

    `labels`, a list of class names, goes with the weights; so does other metadata.

    >>> deit_zoo.save(model, "cats.safetensors", labels=["Birman", "Siamese"])
    """
    from deit_zoo import weights

    return weights.save(model, _path("file", file), **metadata)


def fetch(name: str, to: str | os.PathLike[str] | None = None) -> Path:
    """Bring a checkpoint to this machine, verified; returns its file.

    With `to` it is copied to that folder, which works without a network as
    `create(name, checkpoint=FOLDER)`, and the folder is returned.

    >>> deit_zoo.fetch("deit_small")
    """
    from deit_zoo.hub.carry import check_free, write_folder
    from deit_zoo.hub.verify import CachedFile
    from deit_zoo.weights.load import resolve_file

    name = as_text("name", name, "a model's name", UnknownModelError)
    record = manifest_record(resolve(name).name)
    if to is None:
        return resolve_file(record).path
    folder = _path("to", to)
    check_free(record.name, folder)
    write_folder(CachedFile.of(record.name, resolve_file(record)), folder, lambda count: None)
    return folder


def verify(name: str | os.PathLike[str]) -> list[VerifyResult]:
    """Read every byte of a checkpoint's files on this machine, or of a folder that `fetch` made.

    Each result has the file, its SHA-256 and, where it is not right, its `problem`; a checkpoint of
    which nothing is here has none.

    >>> [result.problem for result in deit_zoo.verify("deit_pico_digits")]
    [None]
    """
    from deit_zoo.hub.verify import files_of, verify_file

    files = files_of(as_text("name", name, NAME_OR_PATH, UnknownModelError))
    return [verify_file(file, lambda count: None) for file in files]


def _as_typed(changes: dict[str, Any]) -> list[str]:
    """Changes of a recipe as `--set` takes them."""
    from deit_zoo.recipes.recipe import shown

    return [f"{field}={shown(value)}" for field, value in changes.items()]
