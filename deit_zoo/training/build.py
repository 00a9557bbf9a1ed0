"""What a run is built of on this machine: threads, the model, the state of training."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from deit_zoo.data.image_set import ImageSet, kind_of, open_set
from deit_zoo.data.table import SplitName
from deit_zoo.distributed import DistributedContext
from deit_zoo.errors import RecipeError
from deit_zoo.files import digest
from deit_zoo.hub.config import start_record
from deit_zoo.inference.classify import class_names
from deit_zoo.labels import folders, in_words
from deit_zoo.machine import usable_cores
from deit_zoo.manifest import Reading, manifest_record
from deit_zoo.models.model import ZooModel
from deit_zoo.recipes.first_stage import resolve_init_from
from deit_zoo.recipes.plan import Plan, default_workers
from deit_zoo.recipes.recipe import Recipe, shown
from deit_zoo.registry import MODELS
from deit_zoo.training.cosub import Cosub, twice
from deit_zoo.training.job import Job
from deit_zoo.training.loop import TrainState, autocast_dtype, forward_backward, micro_batches
from deit_zoo.training.losses import Teach, balanced_weights, criterion_for
from deit_zoo.training.micro_batches import Batch, Mix
from deit_zoo.training.optim import Ema, freeze, optimizer_for
from deit_zoo.training.seeding import seed_from_key
from deit_zoo.training.teacher import Teacher, teacher_for
from deit_zoo.training.teacher_labels import TeacherLabels, open_labels
from deit_zoo.training.throughput import fitting_replicas
from deit_zoo.training.timm_bridge import mixer
from deit_zoo.weights.load import is_headless, open_local, resolve_file
from deit_zoo.zoo import create


def set_machine(plan: Plan) -> None:
    """Threads, and determinism where it is asked for."""
    # By the machine, not by --workers: the number of threads decides the order of sums, so bits.
    local = plan.processes // plan.nodes
    cores = usable_cores() // local
    torch.set_num_threads(max(1, cores - default_workers(local)))
    if plan.deterministic:
        fix_order(plan.device)


def fix_order(device: str) -> None:
    """Let a GPU add in a fixed order, as a CPU does."""
    if device == "cuda":
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)
        # Of the fused kernels, flash alone has a backward pass that adds in a fixed order.
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)


def open_images(
    data: str, split: SplitName, classes: list[str], group: DistributedContext, reading: Reading
) -> ImageSet:
    """The images of a split, as every process of a run has them.

    A folder's files are listed by the first process, which tells the others. Archives and tables
    have an index on the disk.
    """

    def list_images() -> ImageSet:
        return open_set(data, split, classes, reading=reading)

    in_files = kind_of(data) in ("folder", "heap", "list")
    return group.run_on_main(list_images) if in_files else list_images()


def build_model(recipe: Recipe, classes: list[str], group: DistributedContext) -> ZooModel:
    """The model at the start of training: random, or with the weights of the first stage."""
    seed_from_key(recipe.seed, "init")
    options: dict[str, Any] = {"img_size": recipe.img_size, "drop_path_rate": recipe.drop_path_rate}
    first_stage = resolve_init_from(recipe)
    spec = MODELS[recipe.architecture].variant(recipe.blocks, recipe.stem)
    if first_stage is None:
        options |= {"blocks": recipe.blocks, "stem": recipe.stem}
        model = create(recipe.architecture, num_classes=len(classes), **options)
    else:
        name, checkpoint = first_stage
        # One process fetches; the others find the file.
        if checkpoint is None:
            group.run_on_main(lambda: bool(create(name, pretrained=True)))
        if checkpoint is not None and is_headless(checkpoint):
            options["num_classes"] = len(classes)
        model = create(name, pretrained=True, checkpoint=checkpoint, **options)
        known = [label.folder for label in class_names(model)]
        if known == [*folders("imagenet1k")] and (in_words(classes) or _are_counted(classes)):
            known = classes  # ImageNet's, from the Hub or from shards, in its order
        if known != classes:
            model.reset_classifier(len(classes))
        built = model.spec
        if built is not None and (built.blocks, built.stem) != (spec.blocks, spec.stem):
            raise RecipeError(
                f"the weights that {recipe.name} begins from have blocks={shown(built.blocks)} and "
                f"stem={built.stem}; type --set for both as those have them"
            )
        model.spec = spec
    own = recipe.data == "folder"
    model.labels = tuple(classes) if own else folders(MODELS[recipe.architecture].labels)
    freeze(model, recipe.freeze, own_classes=own)
    return model.to(group.device)


def _are_counted(classes: list[str]) -> bool:
    return classes == [str(number) for number in range(len(folders("imagenet1k")))]


def first_stage_facts(recipe: Recipe) -> dict[str, Any] | None:
    """The weights that a run begins with: their digest, and the published ones that they are of."""
    first_stage = resolve_init_from(recipe)
    if first_stage is None:
        return None
    name, checkpoint = first_stage
    known = open_local(checkpoint) if checkpoint else resolve_file(manifest_record(name))
    published = start_record(recipe.init_from)
    return {
        "name": name,
        "published": published.name if published else None,
        "sha256": digest(known.path),
    }


def teaching(
    job: Job, num_classes: int, group: DistributedContext, say: Callable[[str], None]
) -> tuple[Teacher | None, TeacherLabels | None]:
    """The teacher of a run, and its labels where these are kept; no network where all are known."""
    plan, recipe = job.plan, job.plan.recipe
    if recipe.teacher is None:
        return None, None
    if plan.teacher_labels is None:
        return teacher_for(recipe, num_classes, group.device), None
    folder = Path(plan.teacher_labels).expanduser()

    def missing_epochs() -> int:
        labels = open_labels(folder, plan, job.fingerprint["train"], num_classes, group.device)
        return len(labels.missing(recipe.epochs))

    missing = group.run_on_main(missing_epochs)
    if missing:
        say(f"teacher labels: {missing} of {recipe.epochs} epochs are asked of it, and kept")
        return teacher_for(recipe, num_classes, group.device), TeacherLabels(folder)
    say(f"teacher labels: all are known, and {recipe.teacher} is not built")
    return None, TeacherLabels(folder)


def build_train_state(
    plan: Plan,
    model: ZooModel,
    teacher: Teacher | None,
    group: DistributedContext,
    class_counts: Sequence[int] = (),
    label_sets: Sequence[Sequence[int]] | None = None,
) -> TrainState:
    """What a step is made of, on this machine; the images of each class, for balanced weights."""
    recipe = plan.recipe
    first = group.rank * plan.replicas_per_process
    dtype = autocast_dtype(plan, group.device)
    if plan.device == "cuda":
        from deit_zoo.training.kernels import use_kernels  # Triton comes with a GPU's torch

        use_kernels(model)
    weights = balanced_weights(class_counts).to(group.device) if class_counts else None
    mix = mixer(recipe, model.num_classes)
    if label_sets is not None:
        mix = targets_of(label_sets, model)
    criterion = criterion_for(recipe, weights)
    if recipe.cosub:
        mix, criterion = twice(mix), Cosub(binary=recipe.loss == "binary_cross_entropy")
    state = TrainState(
        model=model,
        optimizer=optimizer_for(model, recipe),
        criterion=criterion,
        mix=mix,
        replicas=range(first, first + plan.replicas_per_process),
        group=group,
        network=model,
        teacher=None if teacher is None else lesson_of(plan, teacher),
        dtype=dtype,
        scaler=GradScaler(group.device.type, enabled=dtype is torch.float16),
        ema=Ema(model, recipe.ema_decay) if recipe.ema_decay is not None else None,
    )
    state = replace(state, per_pass=fitting_replicas(state, plan))
    state = replace(state, network=network_for(plan, state))
    if group.size > 1:
        regroup_gradients(plan, state)
    return state


def lesson_of(plan: Plan, teacher: Teacher) -> Teach:
    """What a student learns of a teacher: (B,) labels where distillation is hard, else logits."""
    if is_compiled(plan):
        network: Any = torch.compile(teacher.network, dynamic=False)
        teacher = replace(teacher, network=network)

    def teach(images: Tensor) -> Tensor:
        logits = teacher(images)
        return logits.argmax(dim=1) if plan.recipe.distillation == "hard" else logits

    return teach


def targets_of(label_sets: Sequence[Sequence[int]], model: ZooModel) -> Mix:
    """Images as they are, and the targets of the images of these numbers: 1 for each label."""
    targets = torch.zeros(len(label_sets), model.num_classes, dtype=torch.uint8)
    for row, labels in zip(targets, label_sets, strict=True):
        row[list(labels)] = 1
    table = targets.to(next(model.parameters()).device)
    return lambda images, numbers: (images, table[numbers].float())


def regroup_gradients(plan: Plan, state: TrainState) -> None:
    """Take one pass that nobody sees: DDP regroups what it adds up after its first.

    So a run that continues adds in the order of one that never stopped.
    """
    statistics = [buffer.clone() for buffer in state.model.buffers()]
    images = torch.zeros(plan.replica_batch, 3, *state.model.img_size)
    labels = torch.zeros(plan.replica_batch, dtype=torch.long)
    state.model.train(plan.recipe.train_mode)
    taught = labels if plan.recipe.distillation == "hard" else None
    batches = repeat(Batch(images, labels, bad=[], taught=taught))
    for part in micro_batches(state, plan.recipe.seed, 0, batches).of_step(0):
        forward_backward(state, part)
    state.optimizer.zero_grad(set_to_none=True)
    for buffer, before in zip(state.model.buffers(), statistics, strict=True):
        buffer.copy_(before)


def network_for(plan: Plan, state: TrainState) -> nn.Module:
    """The model as it is called: compiled on a GPU, averaged over many processes."""
    model = state.model
    network: Any = model
    if is_compiled(plan):
        # CUDA graphs, but not where a second pass would write over the gradient of the first.
        graphs = plan.device == "cuda" and state.passes == 1
        mode = "reduce-overhead" if graphs else None
        network = torch.compile(model, mode=mode, dynamic=False)
    if state.group.size == 1:
        return network
    two_heads = model.spec is not None and bool(model.spec.arch.get("distilled"))
    return DistributedDataParallel(
        network,
        gradient_as_bucket_view=True,
        # Without a teacher the distillation head learns nothing.
        find_unused_parameters=plan.recipe.train_mode and plan.recipe.teacher is None and two_heads,
    )


def is_compiled(plan: Plan) -> bool:
    """Whether the network is: where the plan says so, else on a GPU."""
    return plan.device == "cuda" if plan.compile is None else plan.compile
