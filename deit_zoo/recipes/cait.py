"""CaiT's recipes: DeiT's, with another drop-path rate and 400 epochs; then, above 224 pixels, a
second stage, of which only that of M48 was published (upstream's issue #108).

No training command for CaiT was ever published. What stands on a second-hand copy or on nothing is
in `assumed`. Drop-path is the same in every block, not growing as in DeiT (code).
"""

from __future__ import annotations

from dataclasses import replace

from deit_zoo.recipes.deit import DEIT_BASE

SECOND_HAND = "read in two second-hand copies of the paper's table, not in the paper"
NOT_STATED = "not stated; those of DeiT's node"
KIND = "README_cait.md says 'the distilled version' and no kind; DeiT's, on CaiT's one head"
TEACHER = "not stated for CaiT; DeiT's"

# Of the second stages; the first ones are DeiT's runs, of which issue #104 says what is not.
CODE = "not stated; the default of DeiT's code"
DEFAULTS = dict.fromkeys(
    (
        *("optimizer", "betas", "eps", "warmup_lr", "loss", "crop_scale", "crop_ratio", "hflip"),
        *("mixup_prob", "mixup_switch_prob", "alpha"),
    ),
    CODE,
)

XXS24_224 = replace(
    DEIT_BASE,
    name="cait_xxs24_224",
    source="README_cait.md; upstream's issues #104 and #108; else arXiv:2012.12877, Table 9",
    epochs=400,  # README_cait.md of 2021-04-12
    layouts={},
    repeated_aug=3,  # issue #104
    drop_path_rate=0.05,  # second-hand; constant over the blocks (code)
    distillation="hard",  # README_cait.md: distilled; the kind is DeiT's
    teacher="regnety_160_deit",  # assumed
    band=0.5,
    band_source="no spread is published; that of deit_tiny is used",
    assumed={
        "replicas": NOT_STATED,
        "drop_path_rate": SECOND_HAND,
        "distillation": KIND,
        "teacher": TEACHER,
    },
)

XXS36_224 = replace(
    XXS24_224,
    name="cait_xxs36_224",
    drop_path_rate=0.1,  # second-hand
    band=0.15,
    band_source="no spread is published; that of deit_small is used",
)

S24_224 = replace(XXS36_224, name="cait_s24_224")

# First stages whose weights were not released.
XS24_224 = replace(
    XXS36_224,
    name="cait_xs24_224",
    model="cait_xs24_384",
    drop_path_rate=0.05,  # second-hand
)

S36_224 = replace(
    XXS36_224,
    name="cait_s36_224",
    model="cait_s36_384",
    drop_path_rate=0.2,  # second-hand
    band=0.2,
    band_source="no spread is published; that of deit_base is used",
)

M36_224 = replace(
    S36_224,
    name="cait_m36_224",
    model="cait_m36_384",
    drop_path_rate=0.3,  # second-hand
)

M48_224 = replace(
    S36_224,
    name="cait_m48_224",
    model="cait_m48_448",
    drop_path_rate=0.4,  # PaddleViT's configuration
    assumed=XXS24_224.assumed
    | {"drop_path_rate": "read in one second-hand configuration, not in the paper"},
)

# Issue #108, the one second stage that was published.
M48_448 = replace(
    M48_224,
    name="cait_m48_448",
    model=None,
    source="upstream's issue #108; README_cait.md; else arXiv:2012.12877, Table 9",
    img_size=448,  # README_cait.md
    init_from="cait_m48_224",  # issue #108: pre-training with DeiT's code, then fine-tuning
    epochs=60,  # issue #108
    batch_size=256,  # issue #108
    lr=5e-6,  # issue #108
    warmup_epochs=5,  # issue #108
    weight_decay=0.05,  # issue #108
    schedule="step",  # the one of timm's schedules that has decay epochs; it knows no min_lr
    decay_epochs=10,  # issue #108
    decay_rate=0.5,  # issue #108
    drop_path_rate=0.3,  # issue #108
    label_smoothing=0.1,  # issue #108
    mixup=0.8,  # issue #108
    cutmix=1.0,  # issue #108
    assumed=DEFAULTS
    | {
        "replicas": NOT_STATED,
        "lr": "issue #108 does not say whether before or after scaling by batch / 512; after",
        "schedule": "issue #108 gives decay epochs and rate and names no schedule; timm's step",
        "train_mode": "not stated; a drop-path rate is given, which acts in train mode only",
        "repeated_aug": "issue #108 names it without a number; DeiT's",
        "rand_augment": "issue #108 names it without strength; DeiT's",
        "random_erasing": "issue #108 names it without probability; DeiT's",
        "distillation": KIND,
        "teacher": TEACHER,
    },
)

# Nothing was published on fine-tuning at 384: all of it is that of M48 at 448.
AS_M48 = "not published; as cait_m48_448 (issue #108)"
OWN = "not published; that of its own first stage"
XXS24_384 = replace(
    M48_448,
    name="cait_xxs24_384",
    source="nothing published; after upstream's issue #108, which is for cait_m48_448",
    img_size=384,  # README_cait.md
    init_from="cait_xxs24_224",  # issue #108, in general
    drop_path_rate=0.05,  # assumed: the first stage's
    band=0.5,
    band_source="no spread is published; that of deit_tiny is used",
    assumed=DEFAULTS
    | dict.fromkeys(
        (
            *("epochs", "batch_size", "replicas", "lr", "warmup_epochs", "weight_decay"),
            *("schedule", "decay_epochs", "decay_rate", "train_mode", "drop_path_rate"),
            *("label_smoothing", "rand_augment", "random_erasing", "repeated_aug"),
            *("mixup", "cutmix"),
        ),
        AS_M48,
    )
    | {"replicas": NOT_STATED, "drop_path_rate": OWN, "distillation": KIND, "teacher": TEACHER},
)

XXS36_384 = replace(
    XXS24_384,
    name="cait_xxs36_384",
    init_from="cait_xxs36_224",  # issue #108, in general
    drop_path_rate=0.1,  # assumed: the first stage's
    band=0.15,
    band_source="no spread is published; that of deit_small is used",
)

S24_384 = replace(
    XXS36_384,
    name="cait_s24_384",
    init_from="cait_s24_224",  # issue #108, in general
)

XS24_384 = replace(
    XXS36_384,
    name="cait_xs24_384",
    init_from="cait_xs24_224",  # issue #108, in general
    drop_path_rate=0.05,  # assumed: the first stage's
)

S36_384 = replace(
    XXS36_384,
    name="cait_s36_384",
    init_from="cait_s36_224",  # issue #108, in general
    drop_path_rate=0.2,  # assumed: the first stage's
    band=0.2,
    band_source="no spread is published; that of deit_base is used",
)

M36_384 = replace(
    S36_384,
    name="cait_m36_384",
    init_from="cait_m36_224",  # issue #108, in general
    drop_path_rate=0.3,  # assumed: the first stage's
)
