"""What a process of a run does, from the plan to the receipt, in one straight function."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from deit_zoo.data.image_set import open_set
from deit_zoo.distributed import DistributedContext, init_distributed, lost_another
from deit_zoo.errors import ZooError
from deit_zoo.evaluation.accuracy import IN_PROCESS, EvalDataset, accuracy
from deit_zoo.files import LOG_FILE, MODEL_FILE, RECEIPT_FILE, digest
from deit_zoo.inference.classify import class_names
from deit_zoo.models.layers import ZooModel
from deit_zoo.recipes.plan import Plan, default_workers, learning_rate, resolve_init_from
from deit_zoo.recipes.recipe import Recipe
from deit_zoo.registry import MODELS
from deit_zoo.results import Evaluation
from deit_zoo.runs import plot as picture
from deit_zoo.runs import receipt as report
from deit_zoo.runs.reference import read_log
from deit_zoo.training import elastic
from deit_zoo.training import exit_status as outcome
from deit_zoo.training.checkpoint_manager import CheckpointManager
from deit_zoo.training.data import Supply
from deit_zoo.training.ema import Ema
from deit_zoo.training.launch import Job, read_job
from deit_zoo.training.logger import MetricLogger, writing
from deit_zoo.training.loop import EpochStats, LossNotFinite, Parts, StepResult, train_one_epoch
from deit_zoo.training.losses import criterion_for
from deit_zoo.training.optim import freeze, optimizer_for
from deit_zoo.training.seeding import seed_from_key
from deit_zoo.training.signals import Interrupted, handle_signals
from deit_zoo.training.teacher import Teacher, teacher_for
from deit_zoo.training.throughput import profile_loader_and_step
from deit_zoo.training.timm_bridge import mixer, train_transform
from deit_zoo.version import __version__
from deit_zoo.weights.load import save_model
from deit_zoo.zoo import create, transform

LONG_EPOCH = 60.0  # seconds; a longer epoch is also kept before it is measured
EMA_FOLDER = "ema"


def train(job: Job, output: Path, group: DistributedContext) -> report.Verdict:
    """Train as planned, export, measure the exported file, judge it and leave a receipt.

    Raises Stopped, with a state on disk, where the run was asked to end.
    """
    plan, recipe = job.plan, job.plan.recipe
    aloud = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    console = Console(
        stderr=True, highlight=False, soft_wrap=True, emoji=False, quiet=not group.is_main
    )

    def say(sentence: str) -> None:  # what is true of the run: the first process tells it
        console.print(sentence, markup=False)

    def tell(sentence: str) -> None:  # what only this process knows
        (console if group.is_main else aloud).print(sentence, markup=False)

    set_machine(plan)
    with handle_signals(say) as stop:
        images = open_set(job.data, "train", known_classes(recipe))
        if images.note:
            say(images.note)
        classes = images.classes
        model = model_for(recipe, classes, group)
        held_out = EvalDataset(open_set(job.data, "val", classes), transform(model))
        teacher = teacher_for(recipe, len(classes), group.device) if recipe.teacher else None
        parts = parts_for(plan, model, teacher, group)
        readers = 0 if len(held_out) < IN_PROCESS else plan.workers
        keeper = CheckpointManager(plan, output, parts, stop, tell, images.name_of)
        if keeper.resume():
            say(f"continuing after epoch {keeper.epoch}, step {keeper.sums.step}")
        supply = Supply(images, train_transform(recipe), plan, parts.replicas, say=tell)
        with closing(supply), MetricLogger(plan, output, keeper.epoch, console) as watch:
            if not keeper.epoch and (speeds := profile_loader_and_step(parts, plan, supply)):
                say(speeds)
            while keeper.epoch < recipe.epochs:
                epoch(keeper, supply, watch, lambda model: measure(model, held_out, readers, group))
        return conclude(job, keeper, held_out, readers, teacher)


def epoch(
    keeper: CheckpointManager,
    supply: Supply,
    watch: MetricLogger,
    measured: Callable[[ZooModel], Evaluation],
) -> None:
    """Train for an epoch, or from where the last state stands in it; measure, log and keep it."""
    plan, parts, number, sums = keeper.plan, keeper.parts, keeper.epoch, keeper.sums
    watch.begin(number, sums)
    try:
        train_one_epoch(
            parts,
            plan,
            number,
            supply.epoch(number, sums.step),
            lambda step: after_step(watch, keeper, step),
            sums,
            lambda: bool(keeper.stop.number),
        )
    except LossNotFinite as bad:
        keeper.roll_back(bad.step)
        return
    if sums.seconds > LONG_EPOCH:
        keeper.keep()
    reached = {"val": measured(parts.model)}
    if parts.ema is not None:
        reached["ema"] = measured(parts.ema.module)
    # The log first: a line beyond the last state is cut off, a missing one stays missing.
    watch.epoch(epoch_record(plan, number, sums, reached))
    keeper.finish_epoch()


def after_step(watch: MetricLogger, keeper: CheckpointManager, step: StepResult) -> None:
    """What follows a step: it is shown, and once in a while kept."""
    watch.step(step)
    keeper.after_step(step)


def set_machine(plan: Plan) -> None:
    """Threads, and determinism where it is asked for."""
    # By the machine, not by --workers: the number of threads decides the order of sums, so bits.
    local = plan.processes // plan.nodes
    cores = (os.cpu_count() or 2) // local
    torch.set_num_threads(max(1, cores - default_workers(local)))
    if plan.deterministic and plan.device == "cuda":
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)
        # Of the fused kernels, flash alone has a backward pass that adds in a fixed order.
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)


def known_classes(recipe: Recipe) -> list[str]:
    """The class folders that the data must have; empty where the data say which there are."""
    if recipe.data == "folder":
        return []
    network = create(recipe.architecture, device="meta")
    return [label.folder for label in class_names(network)]


def model_for(recipe: Recipe, classes: list[str], group: DistributedContext) -> ZooModel:
    """The model at the start of training: random, or with the weights of the first stage.

    The head is new where the classes are not those of the first stage.
    """
    seed_from_key(recipe.seed, "init")
    options: dict[str, Any] = {
        "img_size": recipe.img_size,
        "drop_path_rate": recipe.drop_path_rate,
    }
    begun = resolve_init_from(recipe)
    if begun is None:
        model = create(recipe.architecture, num_classes=len(classes), **options)
    else:
        name, checkpoint = begun
        # One process fetches; the others find the file.
        if checkpoint is None:
            group.run_on_main(lambda: bool(create(name, pretrained=True)))
        model = create(name, pretrained=True, checkpoint=checkpoint, **options)
        if [label.folder for label in class_names(model)] != classes:
            model.reset_classifier(len(classes))
        model.spec = MODELS[recipe.architecture]
    freeze(model, recipe.freeze)
    return model.to(group.device)


def parts_for(
    plan: Plan, model: ZooModel, teacher: Teacher | None, group: DistributedContext
) -> Parts:
    """What a step is made of, on this machine."""
    recipe = plan.recipe
    first = group.rank * plan.replicas_per_process
    dtype = autocast_dtype(plan, group)
    return Parts(
        model=model,
        optimizer=optimizer_for(model, recipe),
        criterion=criterion_for(recipe, teacher),
        mix=mixer(recipe, model.num_classes),
        replicas=range(first, first + plan.replicas_per_process),
        group=group,
        network=network_for(plan, model, teacher, group),
        dtype=dtype,
        scaler=GradScaler(group.device.type) if dtype is torch.float16 else None,
        ema=Ema(model, recipe.ema_decay) if recipe.ema_decay is not None else None,
    )


def network_for(
    plan: Plan, model: ZooModel, teacher: Teacher | None, group: DistributedContext
) -> nn.Module:
    """The model as it is called: compiled on a GPU, averaged over many processes."""
    wanted = plan.device == "cuda" if plan.compile is None else plan.compile
    network: Any = torch.compile(model) if wanted else model
    if group.size == 1:
        return network
    idle = plan.recipe.train_mode and teacher is None and has_two_heads(model)
    return DistributedDataParallel(
        network,
        gradient_as_bucket_view=True,
        find_unused_parameters=idle,
    )


def has_two_heads(model: ZooModel) -> bool:
    """Whether a model has a distillation head, which learns nothing without a teacher."""
    return model.spec is not None and bool(model.spec.arch.get("distilled"))


def autocast_dtype(plan: Plan, group: DistributedContext) -> torch.dtype | None:
    """The precision of forward passes; None is float32 throughout."""
    asked = plan.precision
    if asked == "auto":
        if group.device.type != "cuda":
            return None
        asked = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[asked]


def measure(
    model: ZooModel, held_out: EvalDataset, workers: int, group: DistributedContext
) -> Evaluation:
    """The model on the validation images, each seen by exactly one process."""
    return accuracy(
        model,
        held_out,
        batch_size=256,
        workers=workers,
        shard=(group.rank, group.size),
        add=group.all_reduce,
    )


def epoch_record(
    plan: Plan, epoch: int, sums: EpochStats, reached: dict[str, Evaluation]
) -> dict[str, Any]:
    """One line of the log."""
    measured = {
        f"{whose}_{figure}": getattr(evaluation, figure)
        for whose, evaluation in reached.items()
        for figure in ("top1", "top5", "loss")
    }
    return {
        "epoch": epoch,
        "lr": learning_rate(plan.recipe, epoch),
        "train_loss": sums.loss / max(sums.losses, 1),
        **measured,
        "images_per_second": plan.steps_per_epoch * plan.recipe.batch_size / sums.seconds,
        "data_seconds": sums.data_seconds,
        "seconds": sums.seconds,
        "skipped_steps": sums.skipped,
        "bad_images": sums.bad_images,
    }


def conclude(
    job: Job,
    keeper: CheckpointManager,
    held_out: EvalDataset,
    readers: int,
    teacher: Teacher | None,
) -> report.Verdict:
    """Export the weights, load them as a user would, and judge what that file reaches."""
    plan, recipe, parts, output = job.plan, job.plan.recipe, keeper.parts, keeper.output
    group = parts.group
    sha256 = group.run_on_main(lambda: export(plan, parts, held_out.images.classes, output))
    exported = create(recipe.architecture, checkpoint=output / MODEL_FILE, device=group.device)
    reached = measure(exported, held_out, readers, group)

    def judged() -> report.Verdict:
        verdict = report.judge(recipe, reached, sha256)
        with writing(output):
            report.write_receipt(
                output,
                plan,
                verdict,
                environment=environment(parts),
                data=job.fingerprint,
                sha256={MODEL_FILE: sha256, LOG_FILE: digest(output / LOG_FILE)},
                teacher=teacher.facts if teacher else None,
                run=happened(output, keeper),
            )
            picture.draw_run(output, recipe.name)
        return verdict

    return group.run_on_main(judged)


def happened(output: Path, keeper: CheckpointManager) -> dict[str, int]:
    """What went wrong on the way and was made good."""
    log = read_log(output / LOG_FILE)
    counted = {key: sum(row[key] for row in log) for key in ("skipped_steps", "bad_images")}
    return counted | {"rewinds": keeper.rewinds}


def export(plan: Plan, parts: Parts, classes: list[str], output: Path) -> str:
    """Write `model.safetensors`, and `ema/model.safetensors` where an average was kept."""
    facts: dict[str, Any] = {"recipe_sha256": plan.recipe.digest}
    if plan.recipe.data == "folder":
        facts["labels"] = classes
    with writing(output):
        (output / RECEIPT_FILE).unlink(missing_ok=True)  # it states an earlier export's digest
        if parts.ema is not None:
            (output / EMA_FOLDER).mkdir(exist_ok=True)
            save_model(parts.ema.module, output / EMA_FOLDER / MODEL_FILE, **facts)
        return save_model(parts.model, output / MODEL_FILE, **facts)


def environment(parts: Parts) -> dict[str, Any]:
    """What the run ran on."""
    gpu = parts.group.device.type == "cuda"
    return {
        "deit_zoo": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": str(torch.__version__),
        "timm": version("timm"),
        "pillow": version("pillow"),
        "cuda": torch.version.cuda if gpu else None,
        "cudnn": str(torch.backends.cudnn.version()) if gpu else None,  # type: ignore[no-untyped-call]
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "processes": parts.group.size,
        "threads": torch.get_num_threads(),
        "precision": str(parts.dtype or torch.float32).removeprefix("torch."),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def main() -> None:
    """One process of several, as the launcher starts it: OUTPUT and the launcher's own number."""
    output, launcher = Path(sys.argv[1]), int(sys.argv[2])
    if outcome.left(output):  # another process has said why this run cannot go on
        return
    restarts = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if restarts and os.environ["RANK"] == "0":
        told = f"restart {restarts} of {elastic.RESTARTS}"
        print(f"a process died; all begin again from the last state ({told})", file=sys.stderr)
    job = read_job(output)
    with init_distributed(job.plan.device, launcher) as group:
        try:
            train(job, output, group)
            if group.is_main:
                outcome.leave(output, done=True)
        except Interrupted as stopped:
            outcome.leave(output, signal=stopped.number)
        except ZooError as error:
            # First, so that the others, who lose this one, find it.
            outcome.leave(output, error=[type(error).__name__, str(error)])
            os._exit(1)
        except KeyboardInterrupt:
            os._exit(130)
        except RuntimeError as error:
            if not lost_another(error):
                raise
            os._exit(elastic.EXIT_PEER_LOST)


if __name__ == "__main__":
    main()
