"""DeiT's other rows: what the paper's tables changed in a recipe, with the figures printed there.

Of Table 8 each row has two figures: after pre-training at 224 pixels, and after fine-tuning that at
384. One of its rows is not here: dropout, which no network of this zoo has. Of Figure 3 only the
points that a table or an author confirms are; the others could be read from no copy with certainty.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deit_zoo.recipes.deit import (
    AS_PLAIN,
    AS_PLAIN_384,
    DEIT_BASE,
    DEIT_BASE_384,
    DEIT_BASE_DISTILLED,
    DEIT_BASE_DISTILLED_384_300,
    DEIT_SMALL,
    DEIT_TINY,
    FINETUNING,
    NOT_RELEASED,
    OWN_CUT,
)
from deit_zoo.recipes.recipe import Recipe

TABLE_2 = "arXiv:2012.12877, Table 2"
TABLE_3 = "arXiv:2012.12877, Table 3"
TABLE_8 = "arXiv:2012.12877, Table 8"
TABLE_10 = "arXiv:2012.12877, Table 10"
FAILED = "arXiv:2012.12877, Table 8: it did not train well with these values"
BOTH_STAGES = "Table 8 does not say whether fine-tuning changed too; as in pre-training"
NOT_FOR_SGD = "not published for SGD; as for AdamW"
ITS_POLICY = "AutoAugment's policy for ImageNet, without noise: the paper names neither"
NO_JITTER = "none; upstream's code jitters colours in its place, which is not done here"
AVERAGE = (
    "the code's; not said of which weights the figure is: the last ones are judged, no average"
)
UNNAMED = "not said; as in DeiT's code"
AS_FINETUNED = AS_PLAIN_384 | {"train_mode": AS_PLAIN}
SOFT = dict(
    distillation="soft",  # Table 3
    alpha=0.1,  # the paper's lambda; code: 0.5
    tau=3.0,  # the paper's; code: 1.0
    teacher="regnety_160_deit",  # section 5.2
)
HARD = dict(
    distillation="hard",  # Table 3
    alpha=0.5,  # equation 3
    teacher="regnety_160_deit",  # section 5.2
)
# What a row leaves as it is, and whose spread it takes.
ELSE = {
    "deit_base_384": "README_deit.md, fine-tuning at 384",
    "deit_base_distilled": "Table 9 and section 4",
    "deit_base_distilled_384_300ep": "as deit_base_distilled_384_300ep",
}
LIKE = {"deit_base_distilled": "deit_base", "deit_base_distilled_384_300ep": "deit_base_384"}


def _row(base: Recipe, table: str = TABLE_8, **changes: Any) -> Recipe:
    """A recipe with the `changes` of a table's row, among them its name and the figure there."""
    where = f"{table} and section 4" if table == TABLE_3 else table
    facts = {
        "variant_of": base.architecture,
        "source": f"{where}; else {ELSE.get(base.name, 'Table 9')}",
        "top1_source": table,
        "band_source": f"no spread is published; that of {LIKE.get(base.name, base.name)} is used",
    }
    return replace(base, **(facts | changes))


RECIPES = (
    _row(
        DEIT_BASE,
        name="deit_base_sgd",
        top1=74.5,
        optimizer="sgd",  # Table 8
        assumed=dict.fromkeys(("lr", "momentum", "weight_decay"), NOT_FOR_SGD),
    ),
    _row(DEIT_BASE_384, name="deit_base_384_sgd", top1=77.3, init_from="deit_base_sgd"),  # Table 8
    _row(
        DEIT_BASE,
        name="deit_base_no_rand_augment",
        top1=79.6,
        rand_augment=None,  # Table 8
        assumed={"rand_augment": NO_JITTER},
    ),
    _row(
        DEIT_BASE_384,
        name="deit_base_384_no_rand_augment",
        top1=80.4,
        init_from="deit_base_no_rand_augment",  # Table 8
        rand_augment=None,  # assumed
        assumed={"rand_augment": NO_JITTER},
    ),
    _row(
        DEIT_BASE,
        name="deit_base_auto_augment",
        top1=81.2,
        rand_augment="original",  # Table 8
        assumed={"rand_augment": ITS_POLICY},
    ),
    _row(
        DEIT_BASE_384,
        name="deit_base_384_auto_augment",
        top1=81.9,
        init_from="deit_base_auto_augment",  # Table 8
        rand_augment="original",  # assumed
        assumed={"rand_augment": ITS_POLICY},
    ),
    _row(DEIT_BASE, name="deit_base_no_mixup", top1=78.7, mixup=0.0),  # Table 8
    _row(
        DEIT_BASE_384,
        name="deit_base_384_no_mixup",
        top1=79.8,
        init_from="deit_base_no_mixup",  # Table 8
        mixup=0.0,  # assumed
        assumed={"mixup": BOTH_STAGES},
    ),
    _row(DEIT_BASE, name="deit_base_no_cutmix", top1=80.0, cutmix=0.0),  # Table 8
    _row(
        DEIT_BASE_384,
        name="deit_base_384_no_cutmix",
        top1=80.6,
        init_from="deit_base_no_cutmix",  # Table 8
        cutmix=0.0,  # assumed
        assumed={"cutmix": BOTH_STAGES},
    ),
    _row(
        DEIT_BASE,
        name="deit_base_no_mixup_no_cutmix",
        top1=75.8,
        mixup=0.0,  # Table 8
        cutmix=0.0,  # Table 8
    ),
    _row(
        DEIT_BASE_384,
        name="deit_base_384_no_mixup_no_cutmix",
        top1=76.7,
        init_from="deit_base_no_mixup_no_cutmix",  # Table 8
        mixup=0.0,  # assumed
        cutmix=0.0,  # assumed
        assumed={"mixup": BOTH_STAGES, "cutmix": BOTH_STAGES},
    ),
    _row(
        DEIT_BASE,
        name="deit_base_no_erasing",
        top1=4.3,
        random_erasing=0.0,  # Table 8
        top1_source=FAILED,
    ),
    _row(
        DEIT_BASE_384,
        name="deit_base_384_no_erasing",
        top1=0.1,
        init_from="deit_base_no_erasing",  # Table 8
        random_erasing=0.0,  # assumed
        assumed={"random_erasing": BOTH_STAGES},
        top1_source=FAILED,
    ),
    _row(
        DEIT_BASE,
        name="deit_base_no_stochastic_depth",
        top1=3.4,
        drop_path_rate=0.0,  # Table 8
        top1_source=FAILED,
    ),
    _row(
        DEIT_BASE_384,
        name="deit_base_384_no_stochastic_depth",
        top1=0.1,
        init_from="deit_base_no_stochastic_depth",  # Table 8
        top1_source=FAILED,
    ),
    _row(DEIT_BASE, name="deit_base_no_repeated_aug", top1=76.5, repeated_aug=1),  # Table 8
    _row(
        DEIT_BASE_384,
        name="deit_base_384_no_repeated_aug",
        top1=77.4,
        init_from="deit_base_no_repeated_aug",  # Table 8
        repeated_aug=1,  # assumed
        assumed={"repeated_aug": BOTH_STAGES},
    ),
    _row(
        DEIT_BASE,
        name="deit_base_ema",
        top1=81.9,
        ema_decay=0.99996,  # code
        assumed={"ema_decay": AVERAGE},
    ),
    _row(
        DEIT_BASE_384,
        name="deit_base_384_ema",
        top1=83.1,
        init_from="deit_base_ema",  # Table 8
        ema_decay=0.99996,  # assumed
        assumed={"ema_decay": AVERAGE},
    ),
    _row(
        DEIT_BASE_384,
        name="deit_base_384_sgd_finetuning",
        top1=83.1,
        optimizer="sgd",  # Table 8
        assumed=dict.fromkeys(("lr", "min_lr", "momentum", "weight_decay"), NOT_FOR_SGD),
    ),
    _row(
        DEIT_BASE_384,
        name="deit_base_384_160px",
        top1=79.9,
        table=TABLE_10,
        img_size=160,  # Table 10
        assumed=AS_FINETUNED,
    ),
    _row(
        DEIT_BASE_384,
        name="deit_base_384_320px",
        top1=82.7,
        table=TABLE_10,
        img_size=320,  # Table 10
        assumed=AS_FINETUNED,
    ),
    _row(
        DEIT_BASE,
        name="deit_base_400ep",
        top1=82.2,
        epochs=400,  # issue #66
        top1_source="upstream's issue #66: the best without distillation",
        source="upstream's issue #66; arXiv:2012.12877, Figure 3 and Table 9",
    ),
    _row(
        DEIT_TINY,
        name="deit_tiny_soft_distillation",
        top1=72.2,
        table=TABLE_3,
        **SOFT,
        assumed={"kl_reduction": UNNAMED, "replicas": OWN_CUT},
    ),
    _row(
        DEIT_TINY,
        name="deit_tiny_hard_distillation",
        top1=74.3,
        table=TABLE_3,
        **HARD,
    ),
    _row(
        DEIT_SMALL,
        name="deit_small_soft_distillation",
        top1=79.8,
        table=TABLE_3,
        **SOFT,
        assumed={"kl_reduction": UNNAMED, "replicas": OWN_CUT},
    ),
    _row(
        DEIT_SMALL,
        name="deit_small_hard_distillation",
        top1=80.9,
        table=TABLE_3,
        **HARD,
    ),
    _row(
        DEIT_BASE,
        name="deit_base_soft_distillation",
        top1=81.8,
        table=TABLE_3,
        **SOFT,
        assumed={"kl_reduction": UNNAMED},
    ),
    _row(
        DEIT_BASE,
        name="deit_base_hard_distillation",
        top1=83.0,
        table=TABLE_3,
        **HARD,
    ),
    _row(
        DEIT_BASE_384,
        name="deit_base_384_soft_distillation",
        top1=83.2,
        table=TABLE_3,
        init_from="deit_base_soft_distillation",  # Table 3
        **SOFT,
        assumed={"kl_reduction": UNNAMED} | AS_FINETUNED | {"teacher": NOT_RELEASED},
    ),
    _row(
        DEIT_BASE_384,
        name="deit_base_384_hard_distillation",
        top1=84.0,
        table=TABLE_3,
        init_from="deit_base_hard_distillation",  # Table 3
        **HARD,
        assumed=AS_FINETUNED | {"teacher": NOT_RELEASED},
    ),
    _row(
        DEIT_BASE_DISTILLED,
        name="deit_base_distilled_teacher_deit_base",
        top1=81.9,
        table=TABLE_2,
        teacher="deit_base",  # Table 2
    ),
    _row(
        DEIT_BASE_DISTILLED,
        name="deit_base_distilled_teacher_regnety_160",
        top1=83.1,
        table=TABLE_2,
        teacher="regnety_160_deit",  # Table 2: the default, of which Table 3 prints 83.4
    ),
    _row(
        DEIT_BASE_DISTILLED_384_300,
        name="deit_base_distilled_384_teacher_deit_base",
        top1=83.1,
        table=TABLE_2,
        init_from="deit_base_distilled_teacher_deit_base",  # Table 2
        teacher="deit_base",  # Table 2
        assumed=FINETUNING | {"teacher": "not said at which size it teaches; the 224-pixel one"},
    ),
    _row(
        DEIT_BASE_DISTILLED_384_300,
        name="deit_base_distilled_384_teacher_regnety_160",
        top1=84.2,
        table=TABLE_2,
        init_from="deit_base_distilled_teacher_regnety_160",  # Table 2
        teacher="regnety_160_deit",  # Table 2: the default, of which Table 3 prints 84.5
    ),
)
