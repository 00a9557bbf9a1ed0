"""Recipes for fine-tuning on a folder of one's own: ours, and those that the authors gave.

The paper has figures (Table 7) and no settings. The settings are in comments of its first author
on issues of two repositories, DeiT and DINO, and some contradict each other: `assumed` says then
what was taken, and why. What no comment names is as for ImageNet (DeiT #45). An image size
that stands in `assumed` gives way to that of the model.
"""

from __future__ import annotations

from dataclasses import replace

from deit_zoo.recipes.deit import DEIT_BASE, DEIT_BASE_384

OWN_SIZE = "the model's own; --img-size gives another"
OURS = "ours, after trials on 50 to 200 of the embedded digits"
LOW = "ours; the lowest layers know most of what any picture needs, and change least"
NO_VERDICT = "the data are yours, so there is no figure to be judged by"

CUSTOM = replace(
    DEIT_BASE,
    name="custom",
    source="deit_zoo, for folders from ten images up",
    data="folder",
    img_size=224,  # assumed: the model's own
    epochs=50,  # assumed
    batch_size=64,  # assumed
    replicas=2,  # assumed
    layouts={},
    lr=5e-4,  # assumed
    layer_decay=0.75,  # assumed
    weight_decay=0.05,  # DeiT, Table 9; DeiT #45 keeps it for AdamW
    warmup_epochs=3,  # assumed
    min_lr=1e-6,  # assumed
    drop_path_rate=0.1,  # DeiT, Table 9
    label_smoothing=0.1,  # DeiT, Table 9
    crop_scale=(0.35, 1.0),  # assumed
    rand_augment="rand-m6-mstd0.5-inc1",  # assumed
    random_erasing=0.0,  # DeiT #45 removes it
    repeated_aug=1,  # assumed
    mixup=0.2,  # assumed
    cutmix=0.5,  # assumed
    band=0.0,
    band_source=NO_VERDICT,
    assumed=dict.fromkeys(
        (
            *("img_size", "epochs", "batch_size", "replicas", "lr", "layer_decay"),
            *("warmup_epochs", "min_lr", "crop_scale", "rand_augment", "repeated_aug"),
            *("mixup", "cutmix"),
        ),
        OURS,
    )
    | {"img_size": OWN_SIZE, "layer_decay": LOW},
)

# Fine-tuning at 384 pixels on ImageNet itself: where sources differ, the README's command.
IMAGENET384 = replace(
    DEIT_BASE_384,
    name="imagenet384",
    model=None,
    init_from=None,  # the model that is named
    layouts={},
    source="README_deit.md, fine-tuning at 384; DeiT-B: 83.1 in Table 7, 82.9 in the README",
    data="folder",
    band=0.0,
    band_source=NO_VERDICT,
    assumed={
        "epochs": "README_deit.md says 30, section 6 of the paper 25; the README's",
        "train_mode": "upstream's code fine-tuned in eval mode until 2022-07-29 and in train mode "
        "since; as it was when the checkpoint was made",
    },
)

AFTER_SCALING = "DeiT #45 does not say whether before or after scaling; after, as in DeiT #141"
CUT = "only the batch of 768 is told; on the 8 GPUs of the paper's node"
SIZE = "DeiT #45: 224 or 384; the model's own, or --img-size"
WITH_SGD = "DINO #81 says AdamW, 7.5e-6, 0.05 and drop-path 0.1; DeiT's own #45, which #175 repeats"

CIFAR10 = replace(
    DEIT_BASE,
    name="cifar10",
    source="DeiT #45; DeiT-B: 99.1 in Table 7, the same at 384",
    data="folder",
    img_size=224,  # DeiT #45
    epochs=1000,  # DeiT #45
    batch_size=768,  # DeiT #45
    replicas=8,  # assumed
    layouts={},
    optimizer="sgd",  # DeiT #45
    momentum=0.9,  # code
    lr=0.01,  # DeiT #45
    weight_decay=1e-4,  # DeiT #45
    drop_path_rate=0.0,  # DeiT #45
    random_erasing=0.0,  # DeiT #45
    band=0.0,
    band_source=NO_VERDICT,
    assumed={
        "img_size": SIZE,
        "replicas": CUT,
        "optimizer": WITH_SGD,
        "lr": AFTER_SCALING + "; " + WITH_SGD,
        "weight_decay": WITH_SGD,
        "drop_path_rate": WITH_SGD,
    },
)

CARS = replace(
    CIFAR10,
    name="cars",
    source="DeiT #45; DeiT-B: 92.1 in Table 7, 93.3 at 384",
    assumed={"img_size": SIZE, "replicas": CUT, "lr": AFTER_SCALING},
)

WITH_ADAMW = "DeiT #175 refers to #45, which says SGD, 0.01 and 1e-4; DINO #144 names CIFAR-100"
CIFAR100 = replace(
    CIFAR10,
    name="cifar100",
    source="DINO #144; DeiT-B: 90.8 in Table 7, the same at 384",
    epochs=1000,  # DINO #144
    batch_size=768,  # DINO #144
    optimizer="adamw",  # assumed
    lr=5e-6,  # DINO #144
    weight_decay=0.05,  # DINO #144
    warmup_epochs=5,  # DINO #144
    min_lr=1e-5,  # DeiT #117
    drop_path_rate=0.1,  # assumed
    assumed={
        "img_size": SIZE,
        "replicas": CUT,
        "optimizer": WITH_ADAMW,
        "lr": "not said whether before or after scaling; after, as in DeiT #141; " + WITH_ADAMW,
        "weight_decay": WITH_ADAMW,
        "min_lr": "left at the code's 1e-5 by the author (DeiT #117, of the same rate): above the "
        "rate, so the cosine rises; --set min_lr=1e-6 makes it fall",
        "drop_path_rate": "not known for CIFAR-100; DINO #81 says 0.1 for CIFAR-10",
        "random_erasing": "not known for CIFAR-100; none, as DeiT #45 says for CIFAR-10",
    },
)

IN_DINO = "DINO #171 says 300 epochs, 128 images per GPU and erasing 0.25; DeiT's own #105"
INAT18 = replace(
    DEIT_BASE,
    name="inat18",
    source="DeiT #105; DeiT-B: 73.2 in Table 7, 79.5 at 384",
    data="folder",
    img_size=224,  # DINO #171
    epochs=360,  # DeiT #105
    batch_size=768,  # DeiT #105
    replicas=8,  # assumed
    layouts={},
    lr=7.5e-5,  # DeiT #105, after scaling (#141); DINO #171: 5e-5 x batch / 512, which is as much
    weight_decay=0.05,  # DeiT #105
    warmup_epochs=5,  # DeiT #105
    drop_path_rate=0.1,  # DeiT #105
    random_erasing=0.1,  # DeiT #105
    band=0.0,
    band_source=NO_VERDICT,
    assumed={
        "img_size": "DINO #171: 224; Table 7 has 384 too; the model's own, or --img-size",
        "epochs": IN_DINO,
        "batch_size": IN_DINO,
        "replicas": CUT,
        "random_erasing": IN_DINO,
    },
)

# No comment is of flowers, and those of iNaturalist do not say for which year.
NOT_NAMED = "not told for this set; as for Stanford Cars, the other small one"
FLOWERS = replace(
    CARS,
    name="flowers",
    source="nothing told; after DeiT #45; DeiT-B: 98.4 in Table 7, 98.5 at 384",
    assumed={
        "img_size": SIZE,
        "epochs": NOT_NAMED,
        "batch_size": NOT_NAMED,
        "replicas": CUT,
        "optimizer": NOT_NAMED,
        "lr": NOT_NAMED,
        "weight_decay": NOT_NAMED,
        "drop_path_rate": NOT_NAMED,
        "random_erasing": NOT_NAMED,
    },
)

OF_2018 = "told of iNaturalist; taken to be for 2019 as for 2018"
INAT19 = replace(
    INAT18,
    name="inat19",
    source="DeiT #105; DeiT-B: 77.7 in Table 7, 81.4 at 384",
    assumed={
        "img_size": "DINO #171: 224; Table 7 has 384 too; the model's own, or --img-size",
        "epochs": IN_DINO + "; " + OF_2018,
        "batch_size": IN_DINO + "; " + OF_2018,
        "replicas": CUT,
        "lr": OF_2018,
        "weight_decay": OF_2018,
        "warmup_epochs": OF_2018,
        "drop_path_rate": OF_2018,
        "random_erasing": IN_DINO + "; " + OF_2018,
    },
)

# DeiT, Table 7, by the model that is trained on. Its last row is of the 300-epoch model at 384
# pixels; the checkpoint that was published is the 1000-epoch one, of which there is no figure.
TABLE_7 = {
    "cifar10": {"deit_base": 99.1, "deit_base_384": 99.1, "deit_base_distilled": 99.1},
    "cifar100": {"deit_base": 90.8, "deit_base_384": 90.8, "deit_base_distilled": 91.3},
    "flowers": {"deit_base": 98.4, "deit_base_384": 98.5, "deit_base_distilled": 98.8},
    "cars": {"deit_base": 92.1, "deit_base_384": 93.3, "deit_base_distilled": 92.9},
    "inat18": {"deit_base": 73.2, "deit_base_384": 79.5, "deit_base_distilled": 73.7},
    "inat19": {"deit_base": 77.7, "deit_base_384": 81.4, "deit_base_distilled": 78.4},
}
# DeiT, Table 6: images to train on and to test on, and classes.
TABLE_6 = {
    "cifar10": (50_000, 10_000, 10),
    "cifar100": (50_000, 10_000, 100),
    "flowers": (2_040, 6_149, 102),
    "cars": (8_144, 8_041, 196),
    "inat18": (437_513, 24_426, 8_142),
    "inat19": (265_240, 3_003, 1_010),
}

FINETUNE = {
    "custom": CUSTOM,
    "imagenet384": IMAGENET384,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "cars": CARS,
    "inat18": INAT18,
    "flowers": FLOWERS,
    "inat19": INAT19,
}
