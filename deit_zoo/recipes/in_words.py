"""What a person is told of a recipe before a run, a sentence each; empty where there is nothing."""

from __future__ import annotations

from collections.abc import Iterator

from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.figures import figure_of
from deit_zoo.recipes.first_stage import modifications, trained_first
from deit_zoo.recipes.recipe import Recipe, count, shown
from deit_zoo.recipes.schedule import learning_rate
from deit_zoo.registry import MODELS
from deit_zoo.registry.names import lookup

# DeiT, Table 9: the peak rate of a batch of 512.
PAPER_RATE = 5e-4


def teacher_share(recipe: Recipe) -> float | None:
    """The teacher's share of a step's multiply-accumulates; None of a teacher that is not ours.

    A backward pass costs two forward passes.
    """
    student, teacher = MODELS.get(recipe.architecture), lookup(str(recipe.teacher))
    if student is None or teacher is None or recipe.blocks is not None:
        return None
    if not recipe.img_size == student.img_size == teacher.img_size:
        return None
    return teacher.gmacs / (teacher.gmacs + 3 * student.gmacs)


def title(recipe: Recipe, modified: bool) -> str:
    """Its name, and the fields that are not the shipped recipe's, with the shipped values."""
    shipped = RECIPES.get(recipe.name)
    changes = modifications(recipe, shipped) if shipped else []
    if not changes:
        return f"{recipe.name} (modified)" if modified else recipe.name
    fields = (f"{name} {shown(its)} -> {shown(value)}" for name, value, its in changes)
    return f"{recipe.name} (modified: {', '.join(fields)})"


def layout_in_words(recipe: Recipe) -> str:
    """By which layout a batch is cut, and who published it; or that it is a choice."""
    if recipe.layout is not None:
        return f"{recipe.layout}, as published ({recipe.layouts[recipe.layout]})"
    own = f"{recipe.replicas} x {recipe.batch_size // recipe.replicas}, a choice"
    published = ", ".join(f"{layout} ({source})" for layout, source in recipe.layouts.items())
    return f"{own}; published: {published}" if published else own


def target(recipe: Recipe) -> str:
    """The published figure and the tolerance, by which the run will be judged."""
    metric = figure_of(recipe)
    if metric is None or metric.top1 is None:
        return ""
    least = metric.top1 - recipe.band
    words = f"top-1 {metric.top1:.2f} % is published; from {least:.2f} % on (tolerance "
    return f"{words}{recipe.band:g}) it is reproduced"


def assumed_fields(recipe: Recipe) -> str:
    if not recipe.assumed:
        return ""
    why = f"; deit-zoo info {recipe.name} says why" if recipe.name in RECIPES else ""
    return f"{', '.join(recipe.assumed)} (nobody published them, or second-hand only{why})"


def first_stage(recipe: Recipe) -> str:
    source = recipe.init_from or ""
    stage = RECIPES.get(source)
    if stage is None:
        return source
    weights = f"train it, then --set init_from=runs/{source}"
    if source in MODELS:
        weights = "its published weights"
    elif trained_first(recipe) is not None:
        weights = "trained before, in the folder of its name beside this run's"
    length = f"{count(stage.epochs, 'epoch')} at {shown(stage.img_size)} px"
    return f"{source}, {length}: {weights}"


def rate(recipe: Recipe) -> str:
    starts_above = bool(recipe.warmup_epochs) and recipe.warmup_lr > recipe.lr
    ends_above = recipe.schedule == "cosine" and recipe.min_lr > recipe.lr
    peak = "rate" if starts_above or ends_above else "peak"
    rate = f"{peak} {recipe.lr:.3g} after scaling"
    if recipe.warmup_epochs:
        epochs = count(recipe.warmup_epochs, "warm-up epoch")
        above = ", above the rate" if starts_above else ""
        rate += f", {epochs} from {recipe.warmup_lr:.3g}{above}"
    if recipe.schedule == "step":
        return f"{rate}, x {recipe.decay_rate:g} every {recipe.decay_epochs} epochs"
    if recipe.lr == recipe.min_lr:
        return f"{rate}, then constant"
    above = ", above the rate: it rises to the end" if ends_above else ""
    return f"{rate}, cosine to {recipe.min_lr:.3g}{above}"


def warm_up_without_end(recipe: Recipe) -> str:
    """A warning where a run ends before its rate is half way up, and learns little or nothing."""
    highest = max(learning_rate(recipe, epoch) for epoch in range(recipe.epochs))
    if not recipe.warmup_epochs or highest > recipe.lr / 2:
        return ""
    warm_up = count(recipe.warmup_epochs, "warm-up epoch")
    return (
        f"in {count(recipe.epochs, 'epoch')} with {warm_up} the rate reaches {highest:.3g} at "
        f"most, so little is learned; type --set warmup_epochs={recipe.epochs // 4}"
    )


def rate_by_the_rule(recipe: Recipe) -> str:
    """What the paper's rule gives where the batch was changed and the rate was not."""
    shipped = RECIPES.get(recipe.name)
    if (
        shipped is None
        or shipped.data != "imagenet1k"
        or shipped.lr != PAPER_RATE * shipped.batch_size / 512
        or recipe.batch_size == shipped.batch_size
        or recipe.lr != shipped.lr
    ):
        return ""
    rate = f"{PAPER_RATE * recipe.batch_size / 512:.10g}"
    return f"the paper's rule, 5e-4 x batch / 512, gives {rate}; type --set lr={rate}"


def distillation(recipe: Recipe) -> str:
    if recipe.teacher is None:
        return "none"
    line = f"{recipe.distillation} from {recipe.teacher}, alpha {recipe.alpha:g}"
    if recipe.distillation == "soft":
        over = {"numel": "batch x classes", "batchmean": "the batch"}[recipe.kl_reduction]
        line += f", tau {recipe.tau:g}, divided by {over} ({recipe.kl_reduction})"
    spec = MODELS.get(recipe.architecture)
    token = spec is not None and spec.arch.get("distilled", False)
    line += f", on the {'distillation token' if token else 'class head'}"
    if recipe.teacher_input == "own":
        line += "; the teacher sees the images its own way"
    return line


def unusual(recipe: Recipe) -> Iterator[str]:
    """What most recipes leave alone."""
    if not recipe.train_mode:
        yield "eval mode: no drop-path"
    if (recipe.blocks, recipe.stem) != (None, "linear"):
        blocks = f"{recipe.blocks} blocks" if recipe.blocks else "its own blocks"
        yield f"{blocks}, {recipe.stem} stem"
    if recipe.freeze != "none":
        yield f"{recipe.freeze} frozen"
    if recipe.optimizer == "lamb":
        yield "LAMB"
    if recipe.three_augment:
        crop = ", simple random crop" if recipe.random_crop == "simple" else ""
        yield f"3-Augment{crop}, colour jitter {recipe.color_jitter:g}"
    if recipe.loss != "cross_entropy":
        yield recipe.loss.replace("_", " ")
    if recipe.cosub:
        yield "Cosub: each image goes through the network twice"
    if recipe.ema_decay is not None:
        yield f"moving average of the weights, decay {recipe.ema_decay:g}"
    if recipe.clip_grad is not None:
        yield f"gradients clipped at {recipe.clip_grad:g}"
    if recipe.class_weights != "none":
        yield "classes weighted by their images, rare ones more"
    if recipe.sampling != "uniform":
        yield "each class shown as often as any other"
