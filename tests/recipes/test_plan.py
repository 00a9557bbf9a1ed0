"""Plans: steps and shares by hand, the learning rate of every epoch against upstream's."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import golden
from deit_zoo.errors import DataError, RecipeError
from deit_zoo.recipes import RECIPES
from deit_zoo.recipes.deit import DEIT_BASE
from deit_zoo.recipes.plan import Plan, laid_out, plan_from, settings
from deit_zoo.recipes.recipe import Recipe, changed, cut_of
from deit_zoo.recipes.schedule import learning_rate
from deit_zoo.training.launch import make_plan
from support.command import run_python
from support.tables import each_row

IMAGENET = 1_281_167
RATES = [
    pytest.param(case, id=case["key"])
    for index in golden.cases("learning_rate")
    for case in index["cases"]
    if "resume" not in case["key"]
]


def plan_of(recipe: Recipe = DEIT_BASE, *, processes: int = 8, num_images: int = IMAGENET) -> Plan:
    """A plan on GPUs, one replica each unless said otherwise."""
    return Plan(
        recipe=recipe,
        modified=False,
        device="cuda",
        processes=processes,
        workers=10,
        num_images=num_images,
    )


def test_an_epoch_of_imagenet_shows_a_third_of_its_images() -> None:
    # 1281167 // 256 * 256 = 1281024, each shown three times.
    assert plan_of().unique_images == 427_008


def test_images_of_a_step_that_is_not_whole_are_not_counted() -> None:
    # 625 steps of 2048 are 1,280,000 places of 1,281,024.
    assert plan_of(replace(DEIT_BASE, batch_size=2048)).unique_images == 426_667


def test_without_repeats_an_epoch_shows_all_but_the_rounding() -> None:
    assert plan_of(replace(DEIT_BASE, repeated_aug=1)).unique_images == 1_281_024


def test_a_replica_sees_160128_images_of_imagenet() -> None:
    # The golden sampler cases of 1281167 images and 8 replicas have this count.
    assert plan_of().images_per_replica == 160_128


@pytest.mark.parametrize(("processes", "share"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_processes_share_the_replicas_evenly_and_change_no_batch_or_step(
    processes: int, share: int
) -> None:
    # facts/recipes.json: floor(1281167 // 256 * 256 / replicas) images per rank, then drop_last.
    plan = plan_of(processes=processes)
    assert plan.replicas_per_process == share
    assert (plan.replica_batch, plan.steps_per_epoch) == (128, 1251)


@pytest.mark.parametrize("replicas", [1, 2, 16])
def test_another_number_of_replicas_leaves_imagenet_its_steps(replicas: int) -> None:
    # The authors' logs: 16 x 64, and 1251 steps there too.
    assert plan_of(replace(DEIT_BASE, replicas=replicas), processes=1).steps_per_epoch == 1251


def test_a_last_partial_batch_is_dropped() -> None:
    # 2047 // 256 * 256 = 1792 images, 224 per replica, and 128 of them make a batch.
    assert plan_of(num_images=2047).steps_per_epoch == 1


@pytest.mark.parametrize(("processes", "nearest"), [(3, 2), (5, 4), (6, 4), (7, 8), (16, 8)])
def test_processes_that_do_not_divide_the_replicas_are_refused(
    processes: int, nearest: int
) -> None:
    with pytest.raises(RecipeError) as caught:
        plan_of(processes=processes)
    assert str(caught.value) == (
        f"{processes} processes cannot share 8 replicas evenly; the nearest number that can is "
        f"--gpus {nearest}, or change --set replicas="
    )


@pytest.mark.parametrize(
    ("device", "processes", "nodes", "advice"),
    [
        ("cpu", 3, 1, "the nearest number that can is --processes 2, or change --set replicas="),
        ("cuda", 16, 2, "the nearest number that can is --gpus 4, or change --set replicas="),
        ("cuda", 24, 3, "change --set replicas="),
    ],
)
def test_what_can_share_the_replicas_is_told_as_it_is_typed(
    device: str, processes: int, nodes: int, advice: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        Plan(
            recipe=DEIT_BASE,
            modified=False,
            device=device,
            processes=processes,
            nodes=nodes,
            workers=1,
            num_images=IMAGENET,
        )
    assert str(caught.value) == f"{processes} processes cannot share 8 replicas evenly; {advice}"


@pytest.mark.parametrize(
    ("size", "advice"),
    [("3", "unset RANK and WORLD_SIZE=3 if torchrun did not start this; the nearest"), ("4", "")],
)
def test_processes_that_a_variable_asks_for_are_told_by_its_name(
    size: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(RecipeError) as caught:
        plan_of(processes=3)
    begin = "3 processes cannot share 8 replicas evenly; "
    assert str(caught.value).startswith(begin + (advice or "the nearest"))


def test_the_fewest_images_that_make_a_step_are_enough() -> None:
    assert plan_of(num_images=1024).steps_per_epoch == 1


@each_row(
    ("num_images", "processes", "changes", "sentence"),
    [
        # 1023 // 256 * 256 = 768 images, 96 for each of 8 replicas.
        (1023, 8, [], "1023 training images give no whole step of 1024; ... batch_size=768"),
        (300, 1, [], "300 training images give no whole step of 1024; ... batch_size=256"),
        # Fewer than 256 are an epoch as they are; 100 // 8 = 12 for each replica.
        (100, 1, [], "100 training images give no whole step of 1024; ... batch_size=96"),
        # 37 // 8 = 4 for each.
        (37, 2, [], "37 training images give no whole step of 1024; ... batch_size=32"),
        # 30 // 8 = 3, and mixup wants pairs; without it three are a batch.
        (30, 1, [], "30 training images give no whole step of 1024; ... batch_size=16"),
        (
            30,
            1,
            ["mixup=0", "cutmix=0"],
            "30 training images give no whole step of 1024; ... batch_size=24",
        ),
        # One image for each of 8 replicas is no pair: fewer replicas.
        (
            15,
            2,
            [],
            "15 training images give no whole step of 1024; ... replicas=2 --set batch_size=12",
        ),
        (
            3,
            1,
            [],
            "3 training images give no whole step of 1024; ... replicas=1 --set batch_size=2 --set "
            "repeated_aug=1",
        ),
    ],
)
def test_too_few_images_for_a_step_are_refused_with_what_works(
    num_images: int, processes: int, changes: list[str], sentence: str
) -> None:
    recipe = changed(DEIT_BASE, changes)
    with pytest.raises(DataError) as caught:
        plan_of(recipe, processes=processes, num_images=num_images)
    assert str(caught.value) == sentence.replace("...", "give more images, or --set")
    advice = [word for word in sentence.split() if "=" in word]
    typed = changed(recipe, advice)
    assert plan_of(typed, processes=processes, num_images=num_images).steps_per_epoch == 1


@pytest.mark.parametrize(("num_images", "processes", "fewest"), [(0, 1, 2), (1, 1, 2), (3, 2, 4)])
def test_hopelessly_few_images_are_refused_with_the_fewest(
    num_images: int, processes: int, fewest: int
) -> None:
    with pytest.raises(DataError) as caught:
        plan_of(processes=processes, num_images=num_images)
    assert str(caught.value) == (
        f"{num_images} training images give no whole step of 1024; give at least {fewest} images"
    )


def test_a_plan_survives_json() -> None:
    plan = replace(plan_of(RECIPES["cait_m48_448"]), precision="bf16", deterministic=True)
    assert plan_from(json.loads(json.dumps(plan.to_dict()))) == plan


def test_a_plan_of_a_version_without_a_setting_has_its_default() -> None:
    values = plan_of().to_dict()
    former = {name: values[name] for name in values if name not in ("log_steps", "log_to")}
    assert plan_from(former) == plan_of()


def test_a_plan_without_its_processes_is_none() -> None:
    values = plan_of().to_dict()
    del values["processes"]
    with pytest.raises(TypeError):
        plan_from(values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"state_minutes": float("inf")}, "state_minutes is inf; it must be 0 or more"),
        ({"log_steps": 0}, "log_steps is 0; it must be at least 1"),
        ({"log_to": "mlflow"}, "log_to is 'mlflow'; it must be one of none, trackio, wandb"),
    ],
)
def test_a_setting_of_states_and_logs_that_makes_no_sense_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        replace(plan_of(), **settings)
    assert str(caught.value) == message


def test_a_plan_as_plain_data_says_what_follows_from_it() -> None:
    derived = {
        "replica_batch": 128,
        "replicas_per_process": 4,
        "steps_per_epoch": 1251,
        "unique_images_per_epoch": 427_008,
        "recipe_sha256": DEIT_BASE.digest,
    }
    assert derived.items() <= plan_of(processes=2).to_dict().items()


def test_a_plan_as_plain_data_holds_recipe_and_machine() -> None:
    values = plan_of(processes=2).to_dict()
    machine = {key: values[key] for key in ("device", "processes", "workers", "num_images")}
    assert values["recipe"] == DEIT_BASE.to_dict()
    assert machine == {"device": "cuda", "processes": 2, "workers": 10, "num_images": IMAGENET}


def test_the_plan_of_deit_base_reads_as_the_paper_does() -> None:
    assert plan_of().lines() == [
        ("recipe", "deit_base, arXiv:2012.12877, Table 9"),
        ("data", "imagenet1k, 1,281,167 training images of 224 px"),
        ("length", "300 epochs of 1,251 steps, 427,008 different images, each shown 3 times"),
        ("batch", "1024 = 8 replicas x 128, one to a process"),
        (
            "layout",
            "8 x 128, as published (arXiv:2012.12877, section 6, 53 h on one node; upstream's "
            "issue #77)",
        ),
        ("machine", "8 processes on cuda, 10 workers each"),
        # 86,567,656 parameters, four times in float32.
        (
            "memory",
            "1.4 GB in each process for weights, gradients and moments; what images need is "
            "measured before the first step",
        ),
        (
            "precision",
            "bf16 where the GPU has it, else fp16; compiled; bits may differ between runs",
        ),
        ("rate", "peak 0.001 after scaling, 5 warm-up epochs from 1e-06, cosine to 1e-05"),
        ("distillation", "none"),
        ("target", "top-1 81.85 % is published; from 81.65 % on (tolerance 0.2) it is reproduced"),
        (
            "time",
            "424 GPU-hours of V100, 53 h on 8 (published: 53 h on 8 GPUs, arXiv:2012.12877, "
            "section 6)",
        ),
        (
            "time",
            "273.1 GPU-hours of RTX 3090, 34.1 h on 8 (derived: 390.88 images/s, timm's training "
            "benchmark, PyTorch 1.12, AMP)",
        ),
    ]


@each_row(
    ("name", "processes", "replicas", "layout"),
    [
        # Section 6 of the paper: one node of 8 GPUs, or two.
        ("deit_base", 8, 8, "8 x 128"),
        ("deit_base", 16, 16, "2 x 8 x 64"),
        ("deit_base", 1, 8, "8 x 128"),
        ("deit_base", 4, 8, "8 x 128"),
        # README_deit.md, and the authors' log of issue #16: on other numbers 8 is a choice.
        ("deit_small", 4, 4, "4 x 256"),
        ("deit_small", 16, 16, "16 x 64"),
        ("deit_small", 8, 8, None),
        ("deit_tiny", 4, 4, "4 x 256"),
        ("deit_tiny", 2, 8, None),
        ("deit_base_distilled", 16, 16, "2 x 8 x 64"),
        ("deit_base_384", 16, 16, "2 x 8 x 32"),
        # Nobody said how these were cut.
        ("deit_tiny_distilled", 4, 8, None),
        ("cait_s24_224", 8, 8, None),
    ],
)
def test_a_batch_is_cut_as_it_was_for_so_many_processes(
    name: str, processes: int, replicas: int, layout: str | None
) -> None:
    recipe = laid_out(RECIPES[name], processes)
    assert (recipe.replicas, recipe.layout) == (replicas, layout)
    assert ("replicas" in recipe.assumed) == (layout is None)


def test_where_no_published_layout_fits_nothing_is_chosen() -> None:
    assert laid_out(RECIPES["deit_tiny"], 16) == RECIPES["deit_tiny"]
    doubled = replace(DEIT_BASE, batch_size=2048)
    assert laid_out(doubled, 16) == doubled


def test_every_layout_is_a_whole_batch() -> None:
    for recipe in RECIPES.values():
        for layout in recipe.layouts:
            replicas, images = cut_of(layout)
            assert replicas * images == recipe.batch_size, f"{recipe.name}: {layout}"


def test_a_cut_of_ones_own_is_said_to_be_a_choice() -> None:
    assert lines_of(RECIPES["deit_small"])["layout"] == (
        "8 x 128, a choice; published: 4 x 256 (README_deit.md), 16 x 64 (the authors' log, "
        "upstream's issue #16)"
    )


def lines_of(recipe: Recipe, **machine: Any) -> dict[str, str]:
    """The lines of a plan, by their labels."""
    return dict(replace(plan_of(recipe, processes=1), **machine).lines())


def test_a_plan_of_two_stages_says_what_is_trained_first() -> None:
    assert lines_of(RECIPES["deit_base_384"])["first stage"] == (
        "deit_base, 300 epochs at 224 px: its published weights"
    )
    assert lines_of(RECIPES["deit_base_distilled_384"])["first stage"] == (
        "deit_base_distilled_1000ep, 1,000 epochs at 224 px: trained before, "
        "in the folder of its name beside this run's"
    )
    trained = replace(RECIPES["deit_base_384"], init_from="runs/mine")
    assert lines_of(trained)["first stage"] == "runs/mine"


def test_a_plan_of_one_stage_does_not_speak_of_stages_or_assumptions() -> None:
    assert not {"first stage", "partly assumed", "also", ""} & set(lines_of(DEIT_BASE))


def test_a_plan_names_what_was_assumed() -> None:
    assert lines_of(RECIPES["cait_s24_224"])["partly assumed"] == (
        "replicas, drop_path_rate, distillation, teacher (nobody published them, or second-hand "
        "only; deit-zoo info cait_s24_224 says why)"
    )


def test_a_modified_plan_names_what_differs() -> None:
    recipe = replace(DEIT_BASE, batch_size=512, betas=(0.9, 0.95), train_mode=False, clip_grad=1.0)
    assert lines_of(recipe, modified=True)["recipe"] == (
        "deit_base (modified: batch_size 1024 -> 512, betas 0.9,0.999 -> 0.9,0.95, clip_grad none "
        "-> 1.0, train_mode true -> false), arXiv:2012.12877, Table 9"
    )


def test_a_modified_recipe_that_is_not_ours_says_that_it_is_modified() -> None:
    lines = lines_of(replace(DEIT_BASE, name="mine"), modified=True)
    assert lines["recipe"] == "mine (modified), arXiv:2012.12877, Table 9"


@pytest.mark.parametrize(("batch", "rate"), [(512, "0.0005"), (2048, "0.002"), (1000, None)])
def test_a_changed_batch_comes_with_the_rate_of_the_paper_s_rule(
    batch: int, rate: str | None
) -> None:
    recipe = replace(DEIT_BASE, batch_size=batch, mixup=0.0, cutmix=0.0)
    rate = rate or "0.0009765625"  # 5e-4 x 1000 / 512
    sentence = f"the paper's rule, 5e-4 x batch / 512, gives {rate}; type --set lr={rate}"
    assert lines_of(recipe)[""] == sentence
    assert "" not in lines_of(changed(recipe, [f"lr={rate}"]))


@pytest.mark.parametrize("name", ["cait_m48_448", "deit_base_384", "deit_pico_digits"])
def test_the_paper_s_rule_is_not_held_against_other_recipes(name: str) -> None:
    recipe = RECIPES[name]
    assert "" not in lines_of(replace(recipe, batch_size=recipe.batch_size * 2))


def test_a_plan_says_how_many_replicas_a_process_takes() -> None:
    lines = dict(plan_of(processes=2).lines())
    assert lines["batch"] == (
        "1024 = 8 replicas x 128; a process takes 4, 512 images, as many at a time as its memory "
        "has room for"
    )
    assert lines["machine"] == "2 processes on cuda, 10 workers each"


def test_a_plan_of_several_nodes_says_so() -> None:
    lines = dict(replace(plan_of(), nodes=2).lines())
    assert lines["machine"] == "8 processes on 2 nodes on cuda, 10 workers each"


@pytest.mark.parametrize(
    ("machine", "sentence"),
    [
        ({"device": "cpu"}, "fp32; not compiled; the same bits every time"),
        ({"device": "cpu", "precision": "bf16"}, "bf16; not compiled; the same bits every time"),
        (
            {"deterministic": True, "compile": False},
            "bf16 where the GPU has it, else fp16; not compiled; the same bits every time",
        ),
        ({"precision": "fp32"}, "fp32; compiled; bits may differ between runs"),
    ],
)
def test_a_plan_says_how_its_numbers_are_computed(machine: dict[str, Any], sentence: str) -> None:
    assert lines_of(DEIT_BASE, **machine)["precision"] == sentence


def test_a_plan_says_how_its_rate_falls() -> None:
    assert lines_of(RECIPES["deit_base_384"])["rate"] == (
        "peak 5e-06 after scaling, 5 warm-up epochs from 1e-06, then constant"
    )
    assert lines_of(RECIPES["cait_m48_448"])["rate"] == (
        "peak 5e-06 after scaling, 5 warm-up epochs from 1e-06, x 0.5 every 10 epochs"
    )
    assert lines_of(replace(DEIT_BASE, warmup_epochs=0))["rate"] == (
        "peak 0.001 after scaling, cosine to 1e-05"
    )
    assert lines_of(replace(DEIT_BASE, warmup_lr=0.5, min_lr=1.0))["rate"] == (
        "rate 0.001 after scaling, 5 warm-up epochs from 0.5, above the rate, cosine to 1, above "
        "the rate: it rises to the end"
    )


def test_a_plan_says_through_what_the_teacher_teaches() -> None:
    token = RECIPES["deit_base_distilled"]
    assert lines_of(token)["distillation"] == (
        "hard from regnety_160_deit, alpha 0.5, on the distillation token"
    )
    assert lines_of(RECIPES["cait_m48_448"])["distillation"] == (
        "hard from regnety_160_deit, alpha 0.5, on the class head"
    )
    soft = replace(token, distillation="soft", tau=3.0, alpha=0.1, teacher_input="own")
    assert lines_of(soft)["distillation"] == (
        "soft from regnety_160_deit, alpha 0.1, tau 3, divided by batch x classes (numel), on the "
        "distillation token; the teacher sees the images its own way"
    )


def test_a_plan_says_what_is_unusual() -> None:
    recipe = replace(DEIT_BASE, train_mode=False, ema_decay=0.99996, clip_grad=1.0)
    binary = replace(recipe, loss="binary_cross_entropy", label_smoothing=0.0, freeze="backbone")
    assert lines_of(binary)["also"] == (
        "eval mode: no drop-path; backbone frozen; binary cross entropy; moving average of the "
        "weights, decay 0.99996; gradients clipped at 1"
    )


def test_of_a_network_of_more_blocks_no_figure_of_the_published_one_is_told() -> None:
    taught = changed(RECIPES["deit3_small"], ["distillation=hard", "teacher=regnety_160_deit"])
    lines = lines_of(taught, teacher_labels="labels")
    assert lines["memory"].startswith("0.4 GB in each process ")  # 22,059,496 parameters
    assert " of the multiply-accumulates are saved" in lines["teacher labels"]
    deeper = lines_of(replace(taught, blocks="36"), teacher_labels="labels")
    assert "memory" not in deeper
    assert "multiply-accumulates" not in deeper["teacher labels"]


def test_a_plan_of_few_images_says_that_an_epoch_is_all_of_them() -> None:
    recipe = replace(DEIT_BASE, batch_size=96, repeated_aug=1)
    lines = dict(plan_of(recipe, processes=1, num_images=100).lines())
    assert lines["length"] == (
        "300 epochs of 1 step, 96 different images; fewer than 256 images, so an epoch is of all "
        "of them"
    )


def test_a_plan_for_a_part_of_the_data_takes_a_part_of_the_time() -> None:
    # A tenth of 273.1 GPU-hours.
    lines = dict(plan_of(processes=1, num_images=128_117).lines())
    assert lines["time"].startswith("27.3 GPU-hours of RTX 3090, 27.3 h on 1 (derived: ")


def test_the_plan_of_every_recipe_is_printed_without_torch() -> None:
    code = (
        "import sys\n"
        "from deit_zoo.recipes.plan import Plan\n"
        "from deit_zoo.recipes import RECIPES\n"
        "for recipe in RECIPES.values():\n"
        "    plan = Plan(recipe=recipe, modified=False, device='cuda', processes=1, workers=1,\n"
        "        num_images=1_281_167)\n"
        "    assert all(text for _, text in plan.lines()), recipe.name\n"
        "    print(recipe.name)\n"
        "assert not {'torch', 'timm', 'numpy', 'PIL'} & set(sys.modules)\n"
    )
    done = run_python(["-c", code], server="light", check=True)
    assert done.stdout.split() == list(RECIPES)


@pytest.mark.parametrize("case", RATES)
def test_every_epoch_has_the_rate_of_the_original(case: dict[str, Any]) -> None:
    recipe = replace(
        DEIT_BASE,
        epochs=case["epochs"],
        lr=case["peak_lr"],
        warmup_epochs=case["warmup_epochs"],
        warmup_lr=case["warmup_lr"],
        min_lr=case["min_lr"],
    )
    rates = [learning_rate(recipe, epoch) for epoch in range(case["epochs"])]
    expected = golden.arrays(golden.case("learning_rate"))[case["key"]]
    np.testing.assert_allclose(rates, expected, rtol=1e-12, atol=0.0)


def test_warmup_holds_the_first_rate_for_two_epochs() -> None:
    # Upstream steps its scheduler with the number of the epoch that just ended.
    rates = [learning_rate(DEIT_BASE, epoch) for epoch in range(3)]
    assert rates == pytest.approx([1e-6, 1e-6, 2.008e-4], rel=1e-12)


def test_the_peak_is_never_reached_because_the_warmup_ends_inside_the_cosine() -> None:
    # facts/recipes.json, peak_lr: "the largest value ever applied is 0.00099932 (epoch 6)".
    rates = [learning_rate(DEIT_BASE, epoch) for epoch in range(300)]
    assert rates.index(max(rates)) == 6
    assert max(rates) == pytest.approx(0.00099932, abs=5e-9)


def test_without_warmup_the_first_epochs_run_at_the_peak() -> None:
    recipe = replace(DEIT_BASE, warmup_epochs=0)
    assert [learning_rate(recipe, epoch) for epoch in range(2)] == [0.001, 0.001]


def test_the_step_schedule_halves_the_rate_every_ten_epochs() -> None:
    # timm's step schedule, stepped like the cosine: epochs 0 and 1 at the warm-up rate.
    rates = [learning_rate(RECIPES["cait_m48_448"], epoch) for epoch in (0, 1, 5, 6, 10, 11, 59)]
    halved = [1e-6, 1e-6, 4.2e-6, 5e-6, 5e-6, 2.5e-6, 5e-6 / 32]
    assert rates == pytest.approx(halved, rel=1e-12)


@each_row(
    ("device", "setting", "words"),
    [
        ("cpu", None, "a process takes 8, 1024 images, in turn"),
        ("cpu", 256, "a process takes 8, 1024 images, 256 images at a time"),
        ("cuda", None, "1024 images, as many at a time as its memory has room for"),
        ("cuda", 1024, "1024 images, 1024 images at a time"),
    ],
)
def test_the_plan_says_how_many_images_go_through_together(
    device: str, setting: int | None, words: str
) -> None:
    plan = replace(plan_of(processes=1), device=device, micro_batch=setting)
    assert words in dict(plan.lines())["batch"]


@each_row("micro_batch", [1, 64, 384, 2048])
def test_images_go_through_together_as_whole_replicas_in_equal_passes(micro_batch: int) -> None:
    with pytest.raises(RecipeError, match="as whole replicas: 128, 256, 512, 1024, or auto"):
        replace(plan_of(processes=1), micro_batch=micro_batch)


@each_row(("text", "value"), [("auto", None), ("256", 256)])
def test_the_number_of_images_may_be_left_to_the_machine(text: str, value: int | None) -> None:
    assert settings([f"micro_batch={text}"]) == ([], {"micro_batch": value})


def test_a_short_imagenet_is_remarked() -> None:
    rows = dict(plan_of(num_images=3_000).lines())
    assert rows["data"] == (
        "imagenet1k, 3,000 training images of 224 px: only 3,000 of 1,281,167 training images"
    )


@pytest.mark.parametrize(
    ("change", "near"),
    [
        ("imgsize=224", "img_size"),
        ("batch-size=64", "batch_size"),
        ("Precison=fp32", "precision"),
        ("epoch=3", "epochs"),
        ("learning_rate=0.1", "lr"),
        ("bs=64", "batch_size"),
        ("finetune=first.pth", "init_from"),
        ("warmup=5", "warmup_epochs"),
    ],
)
def test_a_field_that_is_nearly_right_gets_the_nearest(change: str, near: str) -> None:
    with pytest.raises(RecipeError, match=rf"^no field .* called .*; did you mean {near}\?$"):
        settings([change])


@pytest.mark.parametrize("name", ["num_classes", "top1"])  # the second is one, but stays
def test_a_field_that_is_none_gets_what_shows_them_all(name: str) -> None:
    told = f"no field of a recipe that can be set is called '{name}'; `deit-zoo info NAME --recipe"
    with pytest.raises(RecipeError, match=told):
        settings([f"{name}=3"])


def test_an_option_that_is_no_field_is_told_as_one() -> None:
    with pytest.raises(RecipeError, match=r"workers is an option of its own; type --workers$"):
        settings(["workers=2"])


def test_a_warm_up_as_long_as_the_run_is_remarked_with_what_to_type() -> None:
    plan = make_plan("deit_small", gpus=0, changes=["epochs=3"])
    # Five epochs of warm-up from 1e-6 to 1e-3, of which the third epoch has had one.
    assert (
        "",
        (
            "in 3 epochs with 5 warm-up epochs the rate reaches 0.000201 at most, so little is "
            "learned; type --set warmup_epochs=0"
        ),
    ) in plan.lines()
    for changes in (["epochs=7"], ["epochs=3", "warmup_epochs=0"], ["warmup_epochs=300"], []):
        rows = make_plan("deit_small", gpus=0, changes=changes).lines()
        assert not any("little is learned" in value for _, value in rows)
