"""Names: one row per model, every spelling that means it, and a kind word for those that mean none.

A name is normalised and looked up in one flat table. Nothing is matched by prefix or by likeness;
likeness only chooses what an error suggests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from importlib import import_module
from itertools import product
from typing import Any

from deit_zoo.errors import MissingExtraError, UnknownModelError


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """What to build for a name. `gmacs`, per image, counts attention's products too."""

    name: str
    family: str
    builder: str
    arch: dict[str, Any]
    img_size: int
    num_params: int
    gmacs: float
    source: str
    aliases: tuple[str, ...] = ()
    labels: str = "imagenet1k"
    num_classes: int = 1000

    @property
    def upstream(self) -> str | None:
        """The name of upstream's own torch.hub entry point: the first alias."""
        return self.aliases[0] if self.aliases else None

    def build(self, **overrides: Any) -> Any:
        """The network with random weights; `overrides` are its constructor's keywords."""
        module, attribute = self.builder.split(":")
        try:
            network = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            if error.name != "timm":
                raise
            raise MissingExtraError(
                f"{self.name} is built by timm; type: pip install 'deit_zoo[train]'"
            ) from error
        defaults = {"img_size": self.img_size, "num_classes": self.num_classes}
        model = network(**(self.arch | defaults | overrides))
        model.spec = self
        return model


_VIT = "deit_zoo.models.deit:VisionTransformer"
_CAIT = "deit_zoo.models.cait:CaiT"

# DeiT, Table 1. Parameters counted exactly; multiply-accumulates as timm's benchmark tables give
# them. Aliases are the names in use elsewhere: upstream's first, timm's with its tag, the file's.
_DEIT = (
    ModelSpec(
        name="deit_tiny",
        family="deit",
        builder=_VIT,
        arch=dict(patch_size=16, embed_dim=192, depth=12, num_heads=3),
        img_size=224,
        num_params=5_717_416,
        gmacs=1.26,
        source="arXiv:2012.12877, Table 1",
        aliases=(
            "deit_tiny_patch16_224",
            "deit_ti",
            "deit_tiny_patch16_224.fb_in1k",
            "deit_tiny_patch16_224-a1311bcf",
        ),
    ),
    ModelSpec(
        name="deit_small",
        family="deit",
        builder=_VIT,
        arch=dict(patch_size=16, embed_dim=384, depth=12, num_heads=6),
        img_size=224,
        num_params=22_050_664,
        gmacs=4.61,
        source="arXiv:2012.12877, Table 1",
        aliases=(
            "deit_small_patch16_224",
            "deit_s",
            "deit_small_patch16_224.fb_in1k",
            "deit_small_patch16_224-cd65a155",
        ),
    ),
    ModelSpec(
        name="deit_base",
        family="deit",
        builder=_VIT,
        arch=dict(patch_size=16, embed_dim=768, depth=12, num_heads=12),
        img_size=224,
        num_params=86_567_656,
        gmacs=17.58,
        source="arXiv:2012.12877, Table 1",
        aliases=(
            "deit_base_patch16_224",
            "deit_b",
            "deit_base_patch16_224.fb_in1k",
            "deit_base_patch16_224-b5f2ef4d",
        ),
    ),
    ModelSpec(
        name="deit_base_384",
        family="deit",
        builder=_VIT,
        arch=dict(patch_size=16, embed_dim=768, depth=12, num_heads=12),
        img_size=384,
        num_params=86_859_496,
        gmacs=55.54,
        source="arXiv:2012.12877, Tables 1 and 5",
        aliases=(
            "deit_base_patch16_384",
            "deit_b_384",
            "deit_base_patch16_384.fb_in1k",
            "deit_base_patch16_384-8de9b5d1",
        ),
    ),
    ModelSpec(
        name="deit_tiny_distilled",
        family="deit",
        builder=_VIT,
        arch=dict(patch_size=16, embed_dim=192, depth=12, num_heads=3, distilled=True),
        img_size=224,
        num_params=5_910_800,
        gmacs=1.27,
        source="arXiv:2012.12877, Table 1 and section 4",
        aliases=(
            "deit_tiny_distilled_patch16_224",
            "deit_ti_distilled",
            "deit_tiny_distilled_patch16_224.fb_in1k",
            "deit_tiny_distilled_patch16_224-b40b3cf7",
        ),
    ),
    ModelSpec(
        name="deit_small_distilled",
        family="deit",
        builder=_VIT,
        arch=dict(patch_size=16, embed_dim=384, depth=12, num_heads=6, distilled=True),
        img_size=224,
        num_params=22_436_432,
        gmacs=4.63,
        source="arXiv:2012.12877, Table 1 and section 4",
        aliases=(
            "deit_small_distilled_patch16_224",
            "deit_s_distilled",
            "deit_small_distilled_patch16_224.fb_in1k",
            "deit_small_distilled_patch16_224-649709d9",
        ),
    ),
    ModelSpec(
        name="deit_base_distilled",
        family="deit",
        builder=_VIT,
        arch=dict(patch_size=16, embed_dim=768, depth=12, num_heads=12, distilled=True),
        img_size=224,
        num_params=87_338_192,
        gmacs=17.68,
        source="arXiv:2012.12877, Table 1 and section 4",
        aliases=(
            "deit_base_distilled_patch16_224",
            "deit_b_distilled",
            "deit_base_distilled_patch16_224.fb_in1k",
            "deit_base_distilled_patch16_224-df68dfff",
        ),
    ),
    ModelSpec(
        name="deit_base_distilled_384",
        family="deit",
        builder=_VIT,
        arch=dict(patch_size=16, embed_dim=768, depth=12, num_heads=12, distilled=True),
        img_size=384,
        num_params=87_630_032,
        gmacs=55.65,
        source="arXiv:2012.12877, Tables 1 and 5 (the 1000-epoch model)",
        aliases=(
            "deit_base_distilled_patch16_384",
            "deit_b_distilled_384",
            "deit_base_distilled_patch16_384.fb_in1k",
            "deit_base_distilled_patch16_384-d0272ac0",
        ),
    ),
)

# CaiT: sizes as in upstream's cait_models.py. Upstream's bare `cait_S24` is the 384-pixel model.
_CAIT_ROWS = (
    ModelSpec(
        name="cait_xxs24_224",
        family="cait",
        builder=_CAIT,
        arch=dict(patch_size=16, embed_dim=192, depth=24, num_heads=4, layer_scale_init=1e-5),
        img_size=224,
        num_params=11_956_264,
        gmacs=2.53,
        source="arXiv:2103.17239; upstream cait_models.py",
        aliases=("cait_XXS24_224", "cait_xxs24_224.fb_dist_in1k", "XXS24_224"),
    ),
    ModelSpec(
        name="cait_xxs24_384",
        family="cait",
        builder=_CAIT,
        arch=dict(patch_size=16, embed_dim=192, depth=24, num_heads=4, layer_scale_init=1e-5),
        img_size=384,
        num_params=12_029_224,
        gmacs=9.63,
        source="arXiv:2103.17239; upstream cait_models.py",
        aliases=("cait_XXS24", "cait_xxs24_384.fb_dist_in1k", "XXS24_384"),
    ),
    ModelSpec(
        name="cait_xxs36_224",
        family="cait",
        builder=_CAIT,
        # Upstream's code starts LayerScale at 1e-5; second-hand copies of the paper say 1e-6.
        arch=dict(patch_size=16, embed_dim=192, depth=36, num_heads=4, layer_scale_init=1e-5),
        img_size=224,
        num_params=17_299_720,
        gmacs=3.77,
        source="arXiv:2103.17239; upstream cait_models.py",
        aliases=("cait_XXS36_224", "cait_xxs36_224.fb_dist_in1k", "XXS36_224"),
    ),
    ModelSpec(
        name="cait_xxs36_384",
        family="cait",
        builder=_CAIT,
        arch=dict(patch_size=16, embed_dim=192, depth=36, num_heads=4, layer_scale_init=1e-5),
        img_size=384,
        num_params=17_372_680,
        gmacs=14.35,
        source="arXiv:2103.17239; upstream cait_models.py",
        aliases=("cait_XXS36", "cait_xxs36_384.fb_dist_in1k", "XXS36_384"),
    ),
    ModelSpec(
        name="cait_xs24_384",
        family="cait",
        builder=_CAIT,
        arch=dict(patch_size=16, embed_dim=288, depth=24, num_heads=6, layer_scale_init=1e-5),
        img_size=384,
        num_params=26_670_088,
        gmacs=19.28,
        source="arXiv:2103.17239; upstream cait_models.py",
        aliases=("cait_XS24", "cait_xs24_384.fb_dist_in1k", "XS24_384"),
    ),
    ModelSpec(
        name="cait_s24_224",
        family="cait",
        builder=_CAIT,
        arch=dict(patch_size=16, embed_dim=384, depth=24, num_heads=8, layer_scale_init=1e-5),
        img_size=224,
        num_params=46_916_200,
        gmacs=9.35,
        source="arXiv:2103.17239; upstream cait_models.py",
        aliases=("cait_S24_224", "cait_s24_224.fb_dist_in1k", "S24_224"),
    ),
    ModelSpec(
        name="cait_s24_384",
        family="cait",
        builder=_CAIT,
        arch=dict(patch_size=16, embed_dim=384, depth=24, num_heads=8, layer_scale_init=1e-5),
        img_size=384,
        num_params=47_062_120,
        gmacs=32.17,
        source="arXiv:2103.17239; upstream cait_models.py",
        aliases=("cait_S24", "cait_s24_384.fb_dist_in1k", "S24_384"),
    ),
    ModelSpec(
        name="cait_s36_384",
        family="cait",
        builder=_CAIT,
        arch=dict(patch_size=16, embed_dim=384, depth=36, num_heads=8, layer_scale_init=1e-6),
        img_size=384,
        num_params=68_366_632,
        gmacs=47.99,
        source="arXiv:2103.17239; upstream cait_models.py",
        aliases=("cait_S36", "cait_s36_384.fb_dist_in1k", "S36_384"),
    ),
    ModelSpec(
        name="cait_m36_384",
        family="cait",
        builder=_CAIT,
        arch=dict(patch_size=16, embed_dim=768, depth=36, num_heads=16, layer_scale_init=1e-6),
        img_size=384,
        num_params=271_221_352,
        gmacs=173.11,
        source="arXiv:2103.17239; upstream cait_models.py",
        aliases=("cait_M36", "cait_m36_384.fb_dist_in1k", "M36_384"),
    ),
    ModelSpec(
        name="cait_m48_448",
        family="cait",
        builder=_CAIT,
        arch=dict(patch_size=16, embed_dim=768, depth=48, num_heads=16, layer_scale_init=1e-6),
        img_size=448,
        num_params=356_460_520,
        gmacs=329.41,
        source="arXiv:2103.17239; upstream cait_models.py",
        aliases=("cait_M48", "cait_m48_448.fb_dist_in1k", "M48_448"),
    ),
)

# DeiT's teacher (section 5.2), the one architecture that stays timm's. timm's bare name means other
# weights today; here it means this file.
_TEACHER = ModelSpec(
    name="regnety_160_deit",
    family="regnet",
    builder="deit_zoo.training.timm_bridge:regnety_160",
    arch={},
    img_size=224,
    num_params=83_590_140,
    gmacs=15.96,
    source="arXiv:2012.12877, section 5.2 (RegNetY-16GF)",
    aliases=(
        "regnety_160.deit_in1k",
        "regnety_160",
        "regnety_160-a5fe301d",
        "regnety_160_deit_224",
        "deit_teacher",
    ),
)

# The embedded models: small enough to ship, trained by this package on handwritten digits. Their
# GMACs are torch.utils.flop_counter's.
_EMBEDDED = (
    ModelSpec(
        name="convnet_pico_digits",
        family="convnet",
        builder="deit_zoo.models.convnet:ConvNet",
        arch=dict(dims=(32, 64, 128), depth=1),
        img_size=16,
        num_params=308_266,
        gmacs=0.0123,
        source="deit_zoo: a teacher small enough to ship",
        labels="digits",
        num_classes=10,
    ),
    ModelSpec(
        name="deit_pico_digits",
        family="deit",
        builder=_VIT,
        arch=dict(patch_size=4, embed_dim=80, depth=4, num_heads=4),
        img_size=16,
        num_params=317_690,
        gmacs=0.0055,
        source="deit_zoo: DeiT small enough to ship",
        labels="digits",
        num_classes=10,
    ),
    ModelSpec(
        name="deit_pico_distilled_digits",
        family="deit",
        builder=_VIT,
        arch=dict(patch_size=4, embed_dim=80, depth=4, num_heads=4, distilled=True),
        img_size=16,
        num_params=318_660,
        gmacs=0.0058,
        source="deit_zoo: distilled DeiT small enough to ship",
        labels="digits",
        num_classes=10,
    ),
)

_ROWS = (*_DEIT, *_CAIT_ROWS, _TEACHER, *_EMBEDDED)
MODELS: dict[str, ModelSpec] = {row.name: row for row in _ROWS}

# Names that were never published, or mean something else: what to say, and what to offer first.
# Compared without their `_patch16` and timm's tag.
_REFUSED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        r"deit_(tiny|ti|t)_?384",
        "DeiT-Ti was published at 224 pixels only (img_size=384 resamples it)",
        ("deit_tiny", "deit_base_384"),
    ),
    (
        r"deit_(tiny|ti|t)(_dist|_distilled)_?384|deit_(tiny|ti|t)_?384(_dist|_distilled)",
        "distilled DeiT-Ti was published at 224 pixels only (img_size=384 resamples it)",
        ("deit_tiny_distilled", "deit_base_distilled_384"),
    ),
    (
        r"deit_(small|s)_?384",
        "DeiT-S was published at 224 pixels only (img_size=384 resamples it)",
        ("deit_small", "deit_base_384"),
    ),
    (
        r"deit_(small|s)(_dist|_distilled)_?384|deit_(small|s)_?384(_dist|_distilled)",
        "distilled DeiT-S was published at 224 pixels only (img_size=384 resamples it)",
        ("deit_small_distilled", "deit_base_distilled_384"),
    ),
    (
        r"deit_.*1000_?ep(ochs)?",
        "of the 1000-epoch models only deit_base_distilled_384 was published",
        ("deit_base_distilled_384",),
    ),
    (
        r"deit_.*_(18x2|26x2|36|36x1|40|40x2|48|48x2|52)(_ls)?",
        "the deeper and parallel networks of DeiT III's authors were never published",
        (),
    ),
    (
        r"(deit_?3|deit_?iii)(_.*)?|deit_.*_ls(_.*)?|deit_(large|medium|huge|giant|l|m|h)(_.*)?",
        "that size or family belongs to DeiT III, which this zoo does not hold yet",
        (),
    ),
    (r"(cait_)?xs_?24_224", "CaiT-XS24 was published at 384 pixels only", ("cait_xs24_384",)),
    (r"(cait_)?s_?36_224", "CaiT-S36 was published at 384 pixels only", ("cait_s36_384",)),
    (r"(cait_)?m_?36_(224|448)", "CaiT-M36 was published at 384 pixels only", ("cait_m36_384",)),
    (r"(cait_)?m_?48_(224|384)", "CaiT-M48 was published at 448 pixels only", ("cait_m48_448",)),
    (
        r"cait_xs_?36(_\d+)?",
        "no weights of CaiT-XS36 were published",
        ("cait_xs24_384", "cait_s36_384"),
    ),
    (
        r"cait_s_?48(_\d+)?",
        "no weights of CaiT-S48 were published",
        ("cait_s36_384", "cait_m48_448"),
    ),
    (r"cait_m_?24(_\d+)?", "no weights of CaiT-M24 were published", ("cait_m36_384",)),
    (
        r"(xxs|xs|s|m|b)_?(12|24|36|48)",
        "that letter and depth name several families, so write the family first",
        (),
    ),
    (r"(dino_)?deit_?s_?16.*|dino_.*", "that is a backbone of DINO, with other weights", ()),
    (r"vit_.*", "plain ViT names mean other weights in every library", ()),
    (r"deit_.*_\d+xb\d+.*", "that is mmpretrain's own training, not a published DeiT", ()),
    (
        r"resmlp.*|patch_?conv_?net.*|[slb](60|120)(_.*)?",
        "ResMLP and PatchConvNet are not in this zoo",
        (),
    ),
    (r"regnet.*", "the one RegNet here is DeiT's teacher", ("regnety_160_deit",)),
)


def resolve(name: str) -> ModelSpec:
    """The row that a name means. Raises UnknownModelError with the three nearest names."""
    spec = lookup(name) if isinstance(name, str) else None
    if spec is None:
        raise UnknownModelError(_unknown(name))
    return spec


def lookup(name: str) -> ModelSpec | None:
    """The row that a name means; None where it means none."""
    return spellings().get(normalize(name))


def normalize(name: str) -> str:
    """The form in which names are compared: lower case, `_` for `-./` and spaces, no prefix."""
    text = name.strip()
    if not text.isascii():  # the papers' signs
        text = re.sub("⚗[\ufe0e\ufe0f]?", "_distilled", text).replace("↑", "_")
        text = re.sub(r"[Υυϒ]", "", text)
    text = text.casefold()
    text = re.sub(r"^(hf[-_]hub:|timm/|facebook/|facebookresearch/deit:)+", "", text)
    return re.sub(r"[-./\s_]+", "_", text).strip("_")


@cache
def spellings() -> dict[str, ModelSpec]:
    """Every normalised name and the row that it means."""
    table: dict[str, ModelSpec] = {}
    for spec in MODELS.values():
        written = {normalize(name) for name in (spec.name, *spec.aliases)}
        for spelling in written.union(_variants(spec)):
            other = table.setdefault(spelling, spec)
            assert other is spec, f"{spelling!r} means both {other.name} and {spec.name}"
    return table


def nearest(name: str, count: int = 3) -> list[str]:
    """The canonical names whose spellings look most like `name`."""
    wanted = normalize(name)
    best: dict[str, float] = {}
    for spelling, spec in spellings().items():
        score = SequenceMatcher(None, wanted, spelling).ratio()
        best[spec.name] = max(score, best.get(spec.name, 0.0))
    return sorted(best, key=lambda candidate: (-best[candidate], candidate))[:count]


def _variants(spec: ModelSpec) -> Iterator[str]:
    """The normalised spellings that follow a rule: size words and letters, patch, image size."""
    if spec.family == "deit" and spec.labels == "imagenet1k":
        size = spec.name.split("_")[1]
        words = {"tiny": ("tiny", "ti", "t"), "small": ("small", "s"), "base": ("base", "b")}[size]
        distilled = ("_distilled", "_dist") if spec.arch.get("distilled") else ("",)
        sizes = ("", "_224", "224") if spec.img_size == 224 else ("_384", "384")
        for word, dist, patch, img_size in product(
            words, distilled, ("", "_patch16", "_p16"), sizes
        ):
            yield f"deit_{word}{dist}{patch}{img_size}"
            yield f"deit_{word}{patch}{img_size}{dist}"
        yield f"vit_deit_{size}{distilled[0]}_patch16_{spec.img_size}"  # timm before 0.5
    elif spec.family == "cait":
        letters, depth, img_size = re.findall(r"cait_([a-z]+)(\d+)_(\d+)", spec.name)[0]
        bare = f"cait_{letters}{depth}" in map(normalize, spec.aliases)
        for gap, patch, tag in product(("", "_"), ("", "_patch16", "_p16"), ("", "_fb_dist_in1k")):
            yield f"cait_{letters}{gap}{depth}{patch}_{img_size}{tag}"
            if bare:
                yield f"cait_{letters}{gap}{depth}{patch}{tag}"


def _unknown(name: object) -> str:
    wanted = normalize(str(name))
    plain = re.sub(r"_(patch|p)1[46]|_fb_(dist_)?in1k", "", wanted)
    reason, first = next(
        ((f": {why}", offer) for pattern, why, offer in _REFUSED if re.fullmatch(pattern, plain)),
        ("", ()),
    )
    others = (other for other in nearest(wanted, 6) if other not in first)
    near = [*first, *others][:3]
    return (
        f"no model is named {name!r}{reason}; did you mean {', '.join(near[:-1])} or {near[-1]}? "
        f"`deit-zoo list` shows all {len(MODELS)}"
    )
