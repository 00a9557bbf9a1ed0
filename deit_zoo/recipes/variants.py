"""DeiT's other rows: what the paper's tables changed in a recipe, with the figures printed there.

Of Table 8 each row has two figures: after pre-training at 224 pixels, and after fine-tuning that at
384. One of its rows is not here: dropout, which no network of this zoo has. Of Figure 3 only the
points that a table or an author confirms are; the others could be read from no copy with certainty.
"""

from __future__ import annotations

from dataclasses import replace

from deit_zoo.recipes.deit import (
    AS_PLAIN,
    DEIT_BASE,
    DEIT_BASE_384,
    DEIT_BASE_DISTILLED,
    DEIT_BASE_DISTILLED_384_300,
    DEIT_SMALL,
    DEIT_TINY,
    FINETUNING,
    OWN_CUT,
)

TABLE_2 = "arXiv:2012.12877, Table 2"
TABLE_3 = "arXiv:2012.12877, Table 3"
TABLE_8 = "arXiv:2012.12877, Table 8"
TABLE_10 = "arXiv:2012.12877, Table 10"
FAILED = "arXiv:2012.12877, Table 8: it did not train well with these values"
AS_BASE = "no spread is published; that of deit_base is used"
AS_BASE_384 = "no spread is published; that of deit_base_384 is used"
BOTH_STAGES = "Table 8 does not say whether fine-tuning changed too; as in pre-training"
NOT_FOR_SGD = "not published for SGD; as for AdamW"
ITS_POLICY = "AutoAugment's policy for ImageNet, without noise: the paper names neither"
NO_JITTER = "none; upstream's code jitters colours in its place, which is not done here"
AVERAGE = (
    "the code's; not said of which weights the figure is: the last ones are judged, no average"
)
UNNAMED = "not said; as in DeiT's code"

SGD = replace(
    DEIT_BASE,
    name="deit_base_sgd",
    variant_of="deit_base",
    source="arXiv:2012.12877, Table 8; else Table 9",
    optimizer="sgd",  # Table 8
    top1=74.5,
    top1_source=TABLE_8,
    band_source=AS_BASE,
    assumed={
        "lr": NOT_FOR_SGD,
        "momentum": NOT_FOR_SGD,
        "weight_decay": NOT_FOR_SGD,
    },
)

SGD_384 = replace(
    DEIT_BASE_384,
    name="deit_base_384_sgd",
    variant_of="deit_base_384",
    source="arXiv:2012.12877, Table 8; else README_deit.md, fine-tuning at 384",
    init_from="deit_base_sgd",  # Table 8
    top1=77.3,
    top1_source=TABLE_8,
    band_source=AS_BASE_384,
)

NO_RAND_AUGMENT = replace(
    DEIT_BASE,
    name="deit_base_no_rand_augment",
    variant_of="deit_base",
    source="arXiv:2012.12877, Table 8; else Table 9",
    rand_augment=None,  # Table 8
    top1=79.6,
    top1_source=TABLE_8,
    band_source=AS_BASE,
    assumed={
        "rand_augment": NO_JITTER,
    },
)

NO_RAND_AUGMENT_384 = replace(
    DEIT_BASE_384,
    name="deit_base_384_no_rand_augment",
    variant_of="deit_base_384",
    source="arXiv:2012.12877, Table 8; else README_deit.md, fine-tuning at 384",
    init_from="deit_base_no_rand_augment",  # Table 8
    rand_augment=None,  # assumed
    top1=80.4,
    top1_source=TABLE_8,
    band_source=AS_BASE_384,
    assumed={
        "rand_augment": NO_JITTER,
    },
)

AUTO_AUGMENT = replace(
    DEIT_BASE,
    name="deit_base_auto_augment",
    variant_of="deit_base",
    source="arXiv:2012.12877, Table 8; else Table 9",
    rand_augment="original",  # Table 8
    top1=81.2,
    top1_source=TABLE_8,
    band_source=AS_BASE,
    assumed={
        "rand_augment": ITS_POLICY,
    },
)

AUTO_AUGMENT_384 = replace(
    DEIT_BASE_384,
    name="deit_base_384_auto_augment",
    variant_of="deit_base_384",
    source="arXiv:2012.12877, Table 8; else README_deit.md, fine-tuning at 384",
    init_from="deit_base_auto_augment",  # Table 8
    rand_augment="original",  # assumed
    top1=81.9,
    top1_source=TABLE_8,
    band_source=AS_BASE_384,
    assumed={
        "rand_augment": ITS_POLICY,
    },
)

NO_MIXUP = replace(
    DEIT_BASE,
    name="deit_base_no_mixup",
    variant_of="deit_base",
    source="arXiv:2012.12877, Table 8; else Table 9",
    mixup=0.0,  # Table 8
    top1=78.7,
    top1_source=TABLE_8,
    band_source=AS_BASE,
)

NO_MIXUP_384 = replace(
    DEIT_BASE_384,
    name="deit_base_384_no_mixup",
    variant_of="deit_base_384",
    source="arXiv:2012.12877, Table 8; else README_deit.md, fine-tuning at 384",
    init_from="deit_base_no_mixup",  # Table 8
    mixup=0.0,  # assumed
    top1=79.8,
    top1_source=TABLE_8,
    band_source=AS_BASE_384,
    assumed={
        "mixup": BOTH_STAGES,
    },
)

NO_CUTMIX = replace(
    DEIT_BASE,
    name="deit_base_no_cutmix",
    variant_of="deit_base",
    source="arXiv:2012.12877, Table 8; else Table 9",
    cutmix=0.0,  # Table 8
    top1=80.0,
    top1_source=TABLE_8,
    band_source=AS_BASE,
)

NO_CUTMIX_384 = replace(
    DEIT_BASE_384,
    name="deit_base_384_no_cutmix",
    variant_of="deit_base_384",
    source="arXiv:2012.12877, Table 8; else README_deit.md, fine-tuning at 384",
    init_from="deit_base_no_cutmix",  # Table 8
    cutmix=0.0,  # assumed
    top1=80.6,
    top1_source=TABLE_8,
    band_source=AS_BASE_384,
    assumed={
        "cutmix": BOTH_STAGES,
    },
)

NO_MIXUP_NO_CUTMIX = replace(
    DEIT_BASE,
    name="deit_base_no_mixup_no_cutmix",
    variant_of="deit_base",
    source="arXiv:2012.12877, Table 8; else Table 9",
    mixup=0.0,  # Table 8
    cutmix=0.0,  # Table 8
    top1=75.8,
    top1_source=TABLE_8,
    band_source=AS_BASE,
)

NO_MIXUP_NO_CUTMIX_384 = replace(
    DEIT_BASE_384,
    name="deit_base_384_no_mixup_no_cutmix",
    variant_of="deit_base_384",
    source="arXiv:2012.12877, Table 8; else README_deit.md, fine-tuning at 384",
    init_from="deit_base_no_mixup_no_cutmix",  # Table 8
    mixup=0.0,  # assumed
    cutmix=0.0,  # assumed
    top1=76.7,
    top1_source=TABLE_8,
    band_source=AS_BASE_384,
    assumed={
        "mixup": BOTH_STAGES,
        "cutmix": BOTH_STAGES,
    },
)

NO_ERASING = replace(
    DEIT_BASE,
    name="deit_base_no_erasing",
    variant_of="deit_base",
    source="arXiv:2012.12877, Table 8; else Table 9",
    random_erasing=0.0,  # Table 8
    top1=4.3,
    top1_source=FAILED,
    band_source=AS_BASE,
)

NO_ERASING_384 = replace(
    DEIT_BASE_384,
    name="deit_base_384_no_erasing",
    variant_of="deit_base_384",
    source="arXiv:2012.12877, Table 8; else README_deit.md, fine-tuning at 384",
    init_from="deit_base_no_erasing",  # Table 8
    random_erasing=0.0,  # assumed
    top1=0.1,
    top1_source=FAILED,
    band_source=AS_BASE_384,
    assumed={
        "random_erasing": BOTH_STAGES,
    },
)

NO_STOCHASTIC_DEPTH = replace(
    DEIT_BASE,
    name="deit_base_no_stochastic_depth",
    variant_of="deit_base",
    source="arXiv:2012.12877, Table 8; else Table 9",
    drop_path_rate=0.0,  # Table 8
    top1=3.4,
    top1_source=FAILED,
    band_source=AS_BASE,
)

NO_STOCHASTIC_DEPTH_384 = replace(
    DEIT_BASE_384,
    name="deit_base_384_no_stochastic_depth",
    variant_of="deit_base_384",
    source="arXiv:2012.12877, Table 8; else README_deit.md, fine-tuning at 384",
    init_from="deit_base_no_stochastic_depth",  # Table 8
    top1=0.1,
    top1_source=FAILED,
    band_source=AS_BASE_384,
)

NO_REPEATED_AUG = replace(
    DEIT_BASE,
    name="deit_base_no_repeated_aug",
    variant_of="deit_base",
    source="arXiv:2012.12877, Table 8; else Table 9",
    repeated_aug=1,  # Table 8
    top1=76.5,
    top1_source=TABLE_8,
    band_source=AS_BASE,
)

NO_REPEATED_AUG_384 = replace(
    DEIT_BASE_384,
    name="deit_base_384_no_repeated_aug",
    variant_of="deit_base_384",
    source="arXiv:2012.12877, Table 8; else README_deit.md, fine-tuning at 384",
    init_from="deit_base_no_repeated_aug",  # Table 8
    repeated_aug=1,  # assumed
    top1=77.4,
    top1_source=TABLE_8,
    band_source=AS_BASE_384,
    assumed={
        "repeated_aug": BOTH_STAGES,
    },
)

EMA = replace(
    DEIT_BASE,
    name="deit_base_ema",
    variant_of="deit_base",
    source="arXiv:2012.12877, Table 8; else Table 9",
    ema_decay=0.99996,  # code
    top1=81.9,
    top1_source=TABLE_8,
    band_source=AS_BASE,
    assumed={
        "ema_decay": AVERAGE,
    },
)

EMA_384 = replace(
    DEIT_BASE_384,
    name="deit_base_384_ema",
    variant_of="deit_base_384",
    source="arXiv:2012.12877, Table 8; else README_deit.md, fine-tuning at 384",
    init_from="deit_base_ema",  # Table 8
    ema_decay=0.99996,  # assumed
    top1=83.1,
    top1_source=TABLE_8,
    band_source=AS_BASE_384,
    assumed={
        "ema_decay": AVERAGE,
    },
)

SGD_FINETUNING_384 = replace(
    DEIT_BASE_384,
    name="deit_base_384_sgd_finetuning",
    variant_of="deit_base_384",
    source="arXiv:2012.12877, Table 8; else README_deit.md, fine-tuning at 384",
    optimizer="sgd",  # Table 8
    top1=83.1,
    top1_source=TABLE_8,
    band_source=AS_BASE_384,
    assumed={
        "lr": NOT_FOR_SGD,
        "min_lr": NOT_FOR_SGD,
        "momentum": NOT_FOR_SGD,
        "weight_decay": NOT_FOR_SGD,
    },
)

FINETUNED_160 = replace(
    DEIT_BASE_384,
    name="deit_base_384_160px",
    variant_of="deit_base_384",
    source="arXiv:2012.12877, Table 10; else README_deit.md, fine-tuning at 384",
    img_size=160,  # Table 10
    top1=79.9,
    top1_source=TABLE_10,
    band_source=AS_BASE_384,
    assumed={
        "epochs": AS_PLAIN,
        "batch_size": AS_PLAIN,
        "replicas": AS_PLAIN,
        "lr": AS_PLAIN,
        "min_lr": AS_PLAIN,
        "weight_decay": AS_PLAIN,
        "train_mode": AS_PLAIN,
    },
)

FINETUNED_320 = replace(
    DEIT_BASE_384,
    name="deit_base_384_320px",
    variant_of="deit_base_384",
    source="arXiv:2012.12877, Table 10; else README_deit.md, fine-tuning at 384",
    img_size=320,  # Table 10
    top1=82.7,
    top1_source=TABLE_10,
    band_source=AS_BASE_384,
    assumed={
        "epochs": AS_PLAIN,
        "batch_size": AS_PLAIN,
        "replicas": AS_PLAIN,
        "lr": AS_PLAIN,
        "min_lr": AS_PLAIN,
        "weight_decay": AS_PLAIN,
        "train_mode": AS_PLAIN,
    },
)

DEIT_BASE_400 = replace(
    DEIT_BASE,
    name="deit_base_400ep",
    variant_of="deit_base",
    source="upstream's issue #66; arXiv:2012.12877, Figure 3 and Table 9",
    epochs=400,  # issue #66
    top1=82.2,
    top1_source="upstream's issue #66: the best without distillation",
    band_source=AS_BASE,
)

SOFT_TINY = replace(
    DEIT_TINY,
    name="deit_tiny_soft_distillation",
    variant_of="deit_tiny",
    source="arXiv:2012.12877, Table 3 and section 4; else Table 9",
    distillation="soft",  # Table 3
    alpha=0.1,  # the paper's lambda; code: 0.5
    tau=3.0,  # the paper's; code: 1.0
    teacher="regnety_160_deit",  # section 5.2
    top1=72.2,
    top1_source=TABLE_3,
    band_source="no spread is published; that of deit_tiny is used",
    assumed={
        "kl_reduction": UNNAMED,
        "replicas": OWN_CUT,
    },
)

HARD_TINY = replace(
    DEIT_TINY,
    name="deit_tiny_hard_distillation",
    variant_of="deit_tiny",
    source="arXiv:2012.12877, Table 3 and section 4; else Table 9",
    distillation="hard",  # Table 3
    alpha=0.5,  # equation 3
    teacher="regnety_160_deit",  # section 5.2
    top1=74.3,
    top1_source=TABLE_3,
    band_source="no spread is published; that of deit_tiny is used",
    assumed={
        "replicas": OWN_CUT,
    },
)

SOFT_SMALL = replace(
    DEIT_SMALL,
    name="deit_small_soft_distillation",
    variant_of="deit_small",
    source="arXiv:2012.12877, Table 3 and section 4; else Table 9",
    distillation="soft",  # Table 3
    alpha=0.1,  # the paper's lambda; code: 0.5
    tau=3.0,  # the paper's; code: 1.0
    teacher="regnety_160_deit",  # section 5.2
    top1=79.8,
    top1_source=TABLE_3,
    band_source="no spread is published; that of deit_small is used",
    assumed={
        "kl_reduction": UNNAMED,
        "replicas": OWN_CUT,
    },
)

HARD_SMALL = replace(
    DEIT_SMALL,
    name="deit_small_hard_distillation",
    variant_of="deit_small",
    source="arXiv:2012.12877, Table 3 and section 4; else Table 9",
    distillation="hard",  # Table 3
    alpha=0.5,  # equation 3
    teacher="regnety_160_deit",  # section 5.2
    top1=80.9,
    top1_source=TABLE_3,
    band_source="no spread is published; that of deit_small is used",
    assumed={
        "replicas": OWN_CUT,
    },
)

SOFT_BASE = replace(
    DEIT_BASE,
    name="deit_base_soft_distillation",
    variant_of="deit_base",
    source="arXiv:2012.12877, Table 3 and section 4; else Table 9",
    distillation="soft",  # Table 3
    alpha=0.1,  # the paper's lambda; code: 0.5
    tau=3.0,  # the paper's; code: 1.0
    teacher="regnety_160_deit",  # section 5.2
    top1=81.8,
    top1_source=TABLE_3,
    band_source=AS_BASE,
    assumed={
        "kl_reduction": UNNAMED,
    },
)

HARD_BASE = replace(
    DEIT_BASE,
    name="deit_base_hard_distillation",
    variant_of="deit_base",
    source="arXiv:2012.12877, Table 3 and section 4; else Table 9",
    distillation="hard",  # Table 3
    alpha=0.5,  # equation 3
    teacher="regnety_160_deit",  # section 5.2
    top1=83.0,
    top1_source=TABLE_3,
    band_source=AS_BASE,
)

SOFT_BASE_384 = replace(
    DEIT_BASE_384,
    name="deit_base_384_soft_distillation",
    variant_of="deit_base_384",
    source="arXiv:2012.12877, Table 3; else README_deit.md, fine-tuning at 384",
    init_from="deit_base_soft_distillation",  # Table 3
    distillation="soft",  # Table 3
    alpha=0.1,  # the paper's lambda; code: 0.5
    tau=3.0,  # the paper's; code: 1.0
    teacher="regnety_160_deit",  # section 5.2
    top1=83.2,
    top1_source=TABLE_3,
    band_source=AS_BASE_384,
    assumed={
        "kl_reduction": UNNAMED,
        "epochs": AS_PLAIN,
        "batch_size": AS_PLAIN,
        "replicas": AS_PLAIN,
        "lr": AS_PLAIN,
        "min_lr": AS_PLAIN,
        "weight_decay": AS_PLAIN,
        "train_mode": AS_PLAIN,
        "teacher": "the one fitted to 384 pixels (FixRes) was not released; the 224-pixel one",
    },
)

HARD_BASE_384 = replace(
    DEIT_BASE_384,
    name="deit_base_384_hard_distillation",
    variant_of="deit_base_384",
    source="arXiv:2012.12877, Table 3; else README_deit.md, fine-tuning at 384",
    init_from="deit_base_hard_distillation",  # Table 3
    distillation="hard",  # Table 3
    alpha=0.5,  # equation 3
    teacher="regnety_160_deit",  # section 5.2
    top1=84.0,
    top1_source=TABLE_3,
    band_source=AS_BASE_384,
    assumed={
        "epochs": AS_PLAIN,
        "batch_size": AS_PLAIN,
        "replicas": AS_PLAIN,
        "lr": AS_PLAIN,
        "min_lr": AS_PLAIN,
        "weight_decay": AS_PLAIN,
        "train_mode": AS_PLAIN,
        "teacher": "the one fitted to 384 pixels (FixRes) was not released; the 224-pixel one",
    },
)

TEACHER_DEIT_BASE = replace(
    DEIT_BASE_DISTILLED,
    name="deit_base_distilled_teacher_deit_base",
    variant_of="deit_base_distilled",
    source="arXiv:2012.12877, Table 2; else Table 9 and section 4",
    teacher="deit_base",  # Table 2
    top1=81.9,
    top1_source=TABLE_2,
    band_source=AS_BASE,
    assumed={
        "replicas": OWN_CUT,
    },
)

TEACHER_REGNETY_160 = replace(
    DEIT_BASE_DISTILLED,
    name="deit_base_distilled_teacher_regnety_160",
    variant_of="deit_base_distilled",
    source="arXiv:2012.12877, Table 2; else Table 9 and section 4",
    teacher="regnety_160_deit",  # Table 2: the default, of which Table 3 prints 83.4
    top1=83.1,
    top1_source=TABLE_2,
    band_source=AS_BASE,
    assumed={
        "replicas": OWN_CUT,
    },
)

TEACHER_DEIT_BASE_384 = replace(
    DEIT_BASE_DISTILLED_384_300,
    name="deit_base_distilled_384_teacher_deit_base",
    variant_of="deit_base_distilled_384",
    source="arXiv:2012.12877, Table 2; else as deit_base_distilled_384_300ep",
    init_from="deit_base_distilled_teacher_deit_base",  # Table 2
    teacher="deit_base",  # Table 2
    top1=83.1,
    top1_source=TABLE_2,
    band_source=AS_BASE_384,
    assumed=FINETUNING | {"teacher": "not said at which size it teaches; the 224-pixel one"},
)

TEACHER_REGNETY_160_384 = replace(
    DEIT_BASE_DISTILLED_384_300,
    name="deit_base_distilled_384_teacher_regnety_160",
    variant_of="deit_base_distilled_384",
    source="arXiv:2012.12877, Table 2; else as deit_base_distilled_384_300ep",
    init_from="deit_base_distilled_teacher_regnety_160",  # Table 2
    teacher="regnety_160_deit",  # Table 2: the default, of which Table 3 prints 84.5
    top1=84.2,
    top1_source=TABLE_2,
    band_source=AS_BASE_384,
)

RECIPES = (
    SGD,
    SGD_384,
    NO_RAND_AUGMENT,
    NO_RAND_AUGMENT_384,
    AUTO_AUGMENT,
    AUTO_AUGMENT_384,
    NO_MIXUP,
    NO_MIXUP_384,
    NO_CUTMIX,
    NO_CUTMIX_384,
    NO_MIXUP_NO_CUTMIX,
    NO_MIXUP_NO_CUTMIX_384,
    NO_ERASING,
    NO_ERASING_384,
    NO_STOCHASTIC_DEPTH,
    NO_STOCHASTIC_DEPTH_384,
    NO_REPEATED_AUG,
    NO_REPEATED_AUG_384,
    EMA,
    EMA_384,
    SGD_FINETUNING_384,
    FINETUNED_160,
    FINETUNED_320,
    DEIT_BASE_400,
    SOFT_TINY,
    HARD_TINY,
    SOFT_SMALL,
    HARD_SMALL,
    SOFT_BASE,
    HARD_BASE,
    SOFT_BASE_384,
    HARD_BASE_384,
    TEACHER_DEIT_BASE,
    TEACHER_REGNETY_160,
    TEACHER_DEIT_BASE_384,
    TEACHER_REGNETY_160_384,
)
