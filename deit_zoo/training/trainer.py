"""What a process of a run does, from the plan to the receipt, in one straight function."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from deit_zoo.data.images import class_counts
from deit_zoo.data.jpeg import SIMPLEJPEG
from deit_zoo.data.loader import WorkersDiedError
from deit_zoo.distributed import DistributedContext
from deit_zoo.evaluation.accuracy import (
    IN_PROCESS,
    EvalDataset,
    Sums,
    accumulate,
    evaluation_of,
    oom_as_error,
)
from deit_zoo.evaluation.parallel import in_fitting_batches
from deit_zoo.files import LOG_FILE, MODEL_FILE, RECEIPT_FILE, digest
from deit_zoo.hub.config import start_record, write_run_config
from deit_zoo.inference.classify import class_names
from deit_zoo.labels import SEVERAL_LABELS
from deit_zoo.machine import commit, cpu_name
from deit_zoo.models.model import ZooModel, spec_of
from deit_zoo.recipes.plan import Plan, plan_from
from deit_zoo.recipes.recipe import Recipe
from deit_zoo.recipes.schedule import learning_rate
from deit_zoo.results import Evaluation
from deit_zoo.runs import plot
from deit_zoo.runs.json_lines import to_line
from deit_zoo.runs.receipt import Verdict, judge, write_receipt
from deit_zoo.runs.reference import read_log
from deit_zoo.terminal import Terminal
from deit_zoo.training import best
from deit_zoo.training.build import (
    build_model,
    build_train_state,
    first_stage_facts,
    is_compiled,
    open_images,
    set_machine,
    teaching,
)
from deit_zoo.training.checkpoint import CheckpointManager
from deit_zoo.training.data import DEATHS_PER_EPOCH, TrainLoader
from deit_zoo.training.job import Job
from deit_zoo.training.logger import MetricLogger, full_disk_as_error
from deit_zoo.training.loop import TrainState, autocast, train_one_epoch
from deit_zoo.training.results import write_results
from deit_zoo.training.rollback import to_receipt
from deit_zoo.training.signals import handle_signals
from deit_zoo.training.steps import EpochStats, NotFinite, StepResult
from deit_zoo.training.throughput import profile
from deit_zoo.training.timm_bridge import train_augment
from deit_zoo.version import __version__
from deit_zoo.weights.load import save_model
from deit_zoo.zoo import create, transform

EMA_FOLDER = "ema"


def train(job: Job, output: Path, group: DistributedContext) -> Verdict:
    """Train as planned, export, measure the exported file, judge it and leave a receipt.

    Raises Interrupted, with a state on disk, where the run was asked to stop.
    """
    plan, recipe = job.plan, job.plan.recipe
    console = Terminal(stderr=True, markup=False, quiet=not group.is_main)
    # Of what is true of the run the first process speaks; of what it alone knows, each.
    say = console.print
    tell = say if group.is_main else Terminal(stderr=True, markup=False).print
    set_machine(plan)
    batch = plan.micro_batch or plan.replica_batch * plan.replicas_per_process
    can_halve = plan.replica_batch % (4 if recipe.mixes else 2) == 0
    cure = f"type --set replicas={2 * recipe.replicas}" if can_halve else "type a smaller img_size"
    if plan.replica_batch < batch:  # it may be so already, where memory was asked
        cure = f"type --set micro_batch={plan.replica_batch}; if it still does not fit, {cure[5:]}"
    with handle_signals(say) as stop, oom_as_error(batch, group.device, cure):
        data = job.source(output)
        images = open_images(data, "train", expected_classes(recipe), group, plan.reading)
        if images.note:
            say(images.note)
        classes = images.classes
        model = build_model(recipe, classes, group)
        validation = open_images(data, "val", classes, group, plan.reading)
        by_class = images.label_sets is not None
        held_out = EvalDataset(validation, transform(model), by_class=by_class, skips=True)
        teacher, taught = teaching(job, len(classes), group, say)
        counts: list[int] = []
        if recipe.class_weights == "balanced":
            counts = [*class_counts(images).values()]
        state = build_train_state(plan, model, teacher, group, counts, images.label_sets)
        eval_workers = 0 if len(held_out) < IN_PROCESS else plan.workers

        def evaluate(model: ZooModel) -> Evaluation:
            return measure(model, held_out, eval_workers, group, tell)

        def validate(model: ZooModel) -> Evaluation:  # as it trains: upstream's precision too
            compiles = is_compiled(plan) and len(held_out) >= IN_PROCESS
            with autocast(group.device, state.dtype):
                network: Any = torch.compile(model, dynamic=True) if compiles else model
                return evaluate(network)

        origin = {
            "plan": job.to_dict(),
            "start": group.run_on_main(lambda: first_stage_facts(recipe)),
            "teacher": taught.facts.teacher if taught else teacher and teacher.facts,
            "environment": environment(state) if group.is_main else {},  # who writes the states
        }
        manager = CheckpointManager(
            plan, output, state, stop, tell, images.name_of, job.earlier_recipes, origin
        )
        if resumed := manager.load():
            where = f"epoch {manager.epoch}, step {manager.stats.step}"
            say(f"continuing after {where}{job.changes_in_words()}")
        facts = facts_of(plan, classes)
        if by_class:
            facts["problem_type"] = SEVERAL_LABELS

        def keep(epoch: int, reached: Evaluation) -> None:
            if group.is_main:
                job.keep(output, tell)
                best.keep_best(output, model, epoch, reached, facts, tell)

        augment = train_augment(recipe)
        loader = TrainLoader(images, augment, plan, state.replicas, tell, group, taught)
        logger = MetricLogger(plan, output, console)
        with closing(manager), closing(loader), logger:
            if not resumed:
                manager.save()
                manager.wait()  # the loader's workers are forked next
                for sentence in profile(state, plan, loader):
                    say(sentence)
            while manager.epoch < recipe.epochs:
                run_epoch(manager, loader, logger, validate, keep)
            loader.close()
            logger.keep_log(manager.log)
            if taught is not None:
                labels = {"labels_sha256": group.run_on_main(taught.finish)}
                manager.record["teacher"] = manager.record["teacher"] | labels
            # Before trackers end, who may wait for a network.
            verdict, exported = conclude(job, manager, facts, evaluate, say)
            if recipe.data == "folder":
                sets = validation, images
                write_results(
                    output, exported, *sets, eval_workers, group, say, parquet=plan.parquet
                )
            return verdict


def run_epoch(
    manager: CheckpointManager,
    loader: TrainLoader,
    logger: MetricLogger,
    validate: Callable[[ZooModel], Evaluation],
    keep: Callable[[int, Evaluation], None],
) -> None:
    """Train for an epoch, or from where the last state stands in it; measure, log and save it."""
    plan, state, epoch, stats = manager.plan, manager.state, manager.epoch, manager.stats
    labels = loader.taught

    def on_step(step: StepResult) -> None:
        logger.step(step)
        if labels is not None and not step.replaced:  # nor what stands in for another image
            labels.add(epoch, step.number, state.replicas, step.taught)
        manager.after_step(step)

    def at_rest() -> None:
        if labels is not None:
            labels.write()  # a state says that what came before it is done
        manager.at_rest()

    logger.begin(epoch, stats, manager.log)
    try:
        train_one_epoch(
            state,
            plan,
            epoch,
            loader.epoch(epoch, stats.step),
            on_step,
            stats,
            requests=manager.requests,
            left_out=manager.left_out(),
            at_rest=at_rest,
        )
    except NotFinite as error:
        logger.step(error.step)
        manager.roll_back(error.step)
        return
    if not manager.is_finite():  # before figures are made of it
        manager.roll_back()
        return
    if labels is not None:
        labels.write()
    reached = {"val": validate(state.model)}
    if state.ema is not None:
        reached["ema"] = validate(state.ema.module)
    # The log first: a line beyond the last state is cut off, a missing one stays missing.
    record = epoch_record(plan, epoch, stats, reached)
    logger.epoch(record)
    keep(epoch, reached["val"])
    manager.finish_epoch(to_line(record))


def expected_classes(recipe: Recipe) -> list[str]:
    """The class folders that the data must have; empty where the data say which there are."""
    if recipe.data == "folder":
        return []
    network = create(recipe.architecture, device="meta")
    return [label.folder for label in class_names(network)]


def measure(
    model: ZooModel,
    held_out: EvalDataset,
    workers: int,
    group: DistributedContext,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Evaluation:
    """The model on the validation images, each seen by exactly one process."""

    def count(batch_size: int) -> Sums:
        shard, deaths = (group.rank, group.size), 0
        while True:
            try:
                return accumulate(
                    model, held_out, batch_size=batch_size, workers=workers, shard=shard, tell=tell
                )
            except WorkersDiedError as error:
                deaths += 1
                if deaths > DEATHS_PER_EPOCH:
                    raise
                tell(f"{error.ends} while the model was measured; it is measured again")

    return evaluation_of(group.add_up(in_fitting_batches(count, group)), held_out)


def epoch_record(
    plan: Plan, epoch: int, stats: EpochStats, reached: dict[str, Evaluation]
) -> dict[str, Any]:
    """One line of the log."""
    figures = {
        f"{split}_{figure}": getattr(evaluation, figure)
        for split, evaluation in reached.items()
        for figure in evaluation.names
    }
    images = plan.steps_per_epoch * plan.recipe.batch_size
    return {
        "epoch": epoch,
        "lr": learning_rate(plan.recipe, epoch),
        "train_loss": stats.loss / stats.losses if stats.losses else math.nan,
        **figures,
        "images_per_second": images / stats.seconds if stats.seconds else 0.0,
        "data_seconds": stats.data_seconds,
        "seconds": stats.seconds,
        "skipped_steps": stats.skipped,
        "bad_images": stats.bad_images,
    }


def conclude(
    job: Job,
    manager: CheckpointManager,
    facts: dict[str, Any],
    evaluate: Callable[[ZooModel], Evaluation],
    say: Callable[[str], None],
) -> tuple[Verdict, ZooModel]:
    """Export the weights, load them as a user would, and judge what that file reaches.

    What is said of them is of the plan that trained them, which this start may not have done.
    """
    state, output, record = manager.state, manager.output, manager.record
    plan = replace(plan_from(record["plan"]), final=job.plan.final)
    group, recipe = state.group, plan.recipe
    facts = facts | {"recipe_sha256": recipe.digest}
    sha256 = group.run_on_main(lambda: export(plan, state, facts, output))
    exported = create(recipe.architecture, checkpoint=output / MODEL_FILE, device=group.device)
    reached = evaluate(exported)

    def write_verdict() -> Verdict:
        verdict = judge(recipe, reached, sha256, job.changed_fields, plan.num_images)
        epochs = best.epochs_of(output, sha256)
        say(best.sentence(epochs))
        with full_disk_as_error(output):
            write_receipt(
                output,
                plan,
                verdict,
                environments=record["environments"] or [manager.origin["environment"]],
                finished=record["finished"],
                data=job.fingerprint,
                sha256={MODEL_FILE: sha256, LOG_FILE: digest(output / LOG_FILE)},
                run=mishaps(job, manager),
                epochs=epochs,
                teacher=record["teacher"],
                start=record["start"],
            )
            plot.draw_run(output, recipe.name, epochs[epochs["exported"]]["number"])
        return verdict

    return group.run_on_main(write_verdict), exported


def mishaps(job: Job, manager: CheckpointManager) -> dict[str, Any]:
    """What went wrong on the way, and how it was made good."""
    log = read_log(manager.output / LOG_FILE)
    counts = {key: sum(row[key] for row in log) for key in ("skipped_steps", "bad_images")}
    rollbacks = to_receipt(manager.history, job.plan.steps_per_epoch)
    changes = [asdict(change) for change in job.changes if change.fields]
    return counts | {"rewinds": len(rollbacks), "rollbacks": rollbacks, "changes": changes}


def facts_of(plan: Plan, classes: list[str]) -> dict[str, Any]:
    """What a file of weights says beside its tensors."""
    facts: dict[str, Any] = {"recipe_sha256": plan.recipe.digest}
    if plan.recipe.data == "folder":
        facts["labels"] = classes
    if plan.reading == "upright":  # what does not say it is read as upstream
        facts["reading"] = plan.reading
    return facts


def export(plan: Plan, state: TrainState, facts: dict[str, Any], output: Path) -> str:
    """Write `model.safetensors`, and `ema/model.safetensors` where an average was kept."""
    with full_disk_as_error(output):
        (output / RECEIPT_FILE).unlink(missing_ok=True)  # it states an earlier export's digest
        if state.ema is not None:
            (output / EMA_FOLDER).mkdir(exist_ok=True)
            save_model(state.ema.module, output / EMA_FOLDER / MODEL_FILE, **facts)
        start = start_record(plan.recipe.init_from)
        write_run_config(
            output,
            spec_of(state.model),
            class_names(state.model),
            state.model.img_size,
            start.license if start else None,
            getattr(state.model, "crop_pct", None),  # a RegNet has none
        )
        return best.export(output, state.model, facts, plan.final)


def environment(state: TrainState) -> dict[str, Any]:
    """What this start of a run runs on."""
    gpu = state.group.device.type == "cuda"
    return {
        "deit_zoo": __version__,
        "commit": commit(),
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": str(torch.__version__),
        "timm": version("timm"),
        "pillow": version("pillow"),
        "simplejpeg": SIMPLEJPEG,
        "cuda": torch.version.cuda if gpu else None,
        "cudnn": str(torch.backends.cudnn.version()) if gpu else None,  # type: ignore[no-untyped-call]
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "processes": state.group.size,
        "threads": torch.get_num_threads(),
        "precision": str(state.dtype or torch.float32).removeprefix("torch."),
    }
