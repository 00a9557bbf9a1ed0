"""DeiT III's recipes, from the commands of README_revenge.md; of ViT-M and of the 384 pixels after
ImageNet-21k none was published, and what stands in for it is in `assumed`.

Small trains at its size. The others train smaller, and then for 20 epochs at theirs, by DeiT's
augmentation. With ImageNet-21k it is 240 epochs there and 50 on ImageNet-1k. A replica is a GPU of
the command. Drop-path is the same in every block (code). The rest is DeiT's, whose code it is.
"""

from __future__ import annotations

from dataclasses import replace

from deit_zoo.recipes.deit import DEIT_BASE

README = "README_revenge.md"
LIKE_BASE = "no spread is published; that of deit_base is used"
LIKE_SMALL = "no spread is published; that of deit_small is used"

SMALL = replace(
    DEIT_BASE,
    name="deit3_small",
    source=README,
    img_size=224,  # README
    epochs=800,  # README
    batch_size=2048,  # README
    replicas=8,  # README
    layouts={"8 x 256": README},
    optimizer="lamb",  # apex's FusedLAMB: without decay no trust ratio
    lr=4e-3,  # as it is, not scaled; Table 1 says 3e-3, read second-hand
    weight_decay=0.05,  # not on one dimension, as LayerScale's, on cls_token and pos_embed (code)
    clip_grad=1.0,  # FusedLAMB's own
    warmup_epochs=5,  # README
    warmup_lr=1e-6,  # README
    schedule="cosine",  # code
    ema_decay=None,  # issue #203: not used; the code keeps an average and never measures it
    loss="binary_cross_entropy",  # README
    drop_path_rate=0.05,  # README
    label_smoothing=0.0,  # README
    hflip=0.5,  # code
    rand_augment=None,  # 3-Augment takes its place (code)
    three_augment=True,  # README
    color_jitter=0.3,  # README
    random_erasing=0.0,  # README
    repeated_aug=3,  # README
    mixup=0.8,  # README
    cutmix=1.0,  # README
    band=0.15,
    band_source=LIKE_SMALL,
)

BASE_192 = replace(
    SMALL,
    name="deit3_base_192",
    model="deit3_base",
    img_size=192,  # README
    lr=3e-3,  # README
    drop_path_rate=0.2,  # README
    band=0.2,
    band_source=LIKE_BASE,
)

LARGE_192 = replace(
    BASE_192,
    name="deit3_large_192",
    model="deit3_large",
    replicas=32,  # README
    layouts={"4 x 8 x 64": README},
    drop_path_rate=0.45,  # README
)

HUGE_160 = replace(
    LARGE_192,
    name="deit3_huge_160",
    model="deit3_huge",
    img_size=154,  # assumed
    drop_path_rate=0.6,  # README
    assumed={
        "img_size": "the command's 160 is no multiple of the patches' 14; upstream's network reads "
        "154 of them"
    },
)

# 20 epochs at another size.
BASE = replace(
    BASE_192,
    name="deit3_base",
    model=None,
    img_size=224,  # README
    init_from="deit3_base_192",  # README
    epochs=20,  # README
    batch_size=512,  # README
    layouts={"8 x 64": README},
    optimizer="adamw",  # README
    lr=1e-5,  # README
    min_lr=1e-5,  # code: as the rate, which stays constant after the warm-up
    weight_decay=0.1,  # README
    clip_grad=None,  # code
    loss="cross_entropy",  # README
    label_smoothing=0.1,  # README
    rand_augment="rand-m9-mstd0.5-inc1",  # README
    three_augment=False,  # README
    color_jitter=0.0,  # RandAugment takes its place (code)
    repeated_aug=1,  # README
)

LARGE = replace(
    BASE,
    name="deit3_large",
    init_from="deit3_large_192",  # README
    drop_path_rate=0.45,  # README
)

HUGE = replace(
    BASE,
    name="deit3_huge",
    init_from="deit3_huge_160",  # README
    replicas=16,  # README
    layouts={"2 x 8 x 32": README},
    drop_path_rate=0.55,  # README
)

SMALL_384 = replace(
    BASE,
    name="deit3_small_384",
    img_size=384,  # README
    init_from="deit3_small",  # README
    drop_path_rate=0.0,  # README
    band=0.15,
    band_source=LIKE_SMALL,
)

FIRST = "not stated whether from the first stage or from the one at 224 pixels; the first"
BASE_384 = replace(
    BASE,
    name="deit3_base_384",
    img_size=384,  # README
    replicas=16,  # README
    layouts={"2 x 8 x 32": README},
    drop_path_rate=0.15,  # README
    assumed={"init_from": FIRST},
    band=0.1,
    band_source="no spread is published; that of deit_base_384 is used",
)

LARGE_384 = replace(
    BASE_384,
    name="deit3_large_384",
    init_from="deit3_large_192",  # assumed
    replicas=32,  # README
    layouts={"4 x 8 x 16": README},
    drop_path_rate=0.4,  # README
    band=0.2,
    band_source=LIKE_BASE,
)

# ImageNet-21k, whose release and classes upstream does not state: a folder has those it has.
SMALL_21K = replace(
    SMALL,
    name="deit3_small_pretrain_21k",
    model="deit3_small",
    data="folder",
    epochs=240,  # README
    replicas=16,  # README
    layouts={"2 x 8 x 128": README},
    lr=1e-3,  # README
    weight_decay=0.02,  # README
    loss="cross_entropy",  # README
    label_smoothing=0.1,  # README
    random_crop="simple",  # README
    repeated_aug=1,  # README
    mixup=0.0,  # CutMix alone
)

BASE_21K = replace(
    SMALL_21K,
    name="deit3_base_pretrain_21k",
    model="deit3_base",
    replicas=32,  # README
    layouts={"4 x 8 x 64": README},
    drop_path_rate=0.1,  # README
    band=0.2,
    band_source=LIKE_BASE,
)

LARGE_21K = replace(
    BASE_21K,
    name="deit3_large_pretrain_21k",
    model="deit3_large",
    drop_path_rate=0.3,  # README
)

HUGE_21K = replace(
    BASE_21K,
    name="deit3_huge_pretrain_21k",
    model="deit3_huge",
    img_size=126,  # assumed
    epochs=90,  # README
    drop_path_rate=0.5,  # README
    assumed={
        "img_size": "the command's 128 is no multiple of the patches' 14; upstream's network reads "
        "126 of them"
    },
)

SMALL_IN21K = replace(
    SMALL_21K,
    name="deit3_small_in21k",
    model=None,
    data="imagenet1k",
    init_from="deit3_small_pretrain_21k",  # README
    epochs=50,  # README
    lr=3e-4,  # README
)

BASE_IN21K = replace(
    SMALL_IN21K,
    name="deit3_base_in21k",
    init_from="deit3_base_pretrain_21k",  # README
    replicas=32,  # README
    layouts={"4 x 8 x 64": README},
    drop_path_rate=0.15,  # README
    band=0.2,
    band_source=LIKE_BASE,
)

LARGE_IN21K = replace(
    BASE_IN21K,
    name="deit3_large_in21k",
    init_from="deit3_large_pretrain_21k",  # README
    drop_path_rate=0.4,  # README
)

HUGE_IN21K = replace(
    BASE_IN21K,
    name="deit3_huge_in21k",
    init_from="deit3_huge_pretrain_21k",  # README
    drop_path_rate=0.45,  # README
)

# What a command says.
IN_COMMANDS = (
    *("epochs", "batch_size", "replicas", "optimizer", "lr", "weight_decay", "clip_grad"),
    *("warmup_epochs", "warmup_lr", "min_lr", "loss", "drop_path_rate", "label_smoothing"),
    *("rand_augment", "three_augment", "color_jitter", "random_crop", "random_erasing"),
    *("repeated_aug", "mixup", "cutmix"),
)
OF_MEDIUM = "no command of ViT-M was published; that of ViT-S"
UNTOLD_MEDIUM = dict.fromkeys(IN_COMMANDS, OF_MEDIUM)

MEDIUM = replace(
    SMALL,
    name="deit3_medium",
    layouts={},
    assumed={**UNTOLD_MEDIUM, "img_size": OF_MEDIUM},
)

MEDIUM_21K = replace(
    SMALL_21K,
    name="deit3_medium_pretrain_21k",
    model="deit3_medium",
    layouts={},
    assumed={**UNTOLD_MEDIUM, "img_size": OF_MEDIUM},
)

MEDIUM_IN21K = replace(
    SMALL_IN21K,
    name="deit3_medium_in21k",
    init_from="deit3_medium_pretrain_21k",  # assumed
    layouts={},
    assumed=UNTOLD_MEDIUM,
)

AT_384 = "no command of 384 pixels after ImageNet-21k was published; that without it"
UNTOLD_384 = dict.fromkeys(IN_COMMANDS, AT_384)

SMALL_384_IN21K = replace(
    SMALL_384,
    name="deit3_small_384_in21k",
    init_from="deit3_small_in21k",  # assumed
    layouts={},
    assumed={**UNTOLD_384, "init_from": AT_384},
)

BASE_384_IN21K = replace(
    BASE_384,
    name="deit3_base_384_in21k",
    init_from="deit3_base_in21k",  # assumed
    layouts={},
    assumed={**UNTOLD_384, "init_from": AT_384},
)

LARGE_384_IN21K = replace(
    LARGE_384,
    name="deit3_large_384_in21k",
    init_from="deit3_large_in21k",  # assumed
    layouts={},
    assumed={**UNTOLD_384, "init_from": AT_384},
)
