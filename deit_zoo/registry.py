"""Names: one row per model, every spelling that means it, and a kind word for those that mean none.

A name is normalised and looked up in one flat table. Nothing is matched by prefix or by likeness;
likeness only chooses what an error suggests.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from itertools import product
from typing import Any

from deit_zoo.errors import MissingExtraError, UnknownModelError, ZooError
from deit_zoo.labels import folders


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """What to build for a name. `gmacs`, per image, counts attention's products too.

    `blocks` and `stem` are those of a variant that was never published; its counts are still those
    of the model of the name.
    """

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
    blocks: str | None = None
    stem: str = "linear"

    def variant(self, blocks: str | None, stem: str) -> ModelSpec:
        """DeiT III in another build of its authors'. Raises ZooError for any other.

        `blocks` are 36 or, with two branches in each, 18x2; the `stem` is linear or hmlp.
        """
        if (blocks, stem) == (None, "linear"):
            return self
        parts = re.fullmatch(r"([1-9]\d?)(x2)?", str(blocks or self.arch.get("depth")))
        if self.family != "deit3" or parts is None or stem not in ("linear", "hmlp"):
            raise ZooError(
                f"{self.name} is not built with blocks={blocks!r} and stem={stem!r}; a DeiT III "
                "is, with blocks such as '36' or '18x2', and stem='linear' or 'hmlp'"
            )
        arch = self.arch | {"depth": int(parts[1])}
        arch |= {"parallel": True} if parts[2] else {}
        arch |= {"hmlp_stem": True} if stem == "hmlp" else {}
        return replace(self, arch=arch, blocks=blocks, stem=stem)

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
        options = self.arch | defaults | overrides
        model = network(**options)
        model.spec = self
        model.labels = folders(self.labels) if options["num_classes"] == self.num_classes else None
        return model


TRANSFORMERS = ("deit", "cait", "deit3")  # the families whose images have one fixed size

_VIT = "deit_zoo.models.deit:VisionTransformer"
_CAIT = "deit_zoo.models.cait:CaiT"
_DEIT3 = "deit_zoo.models.deit3:LayerScaleTransformer"


def _deit(
    name: str, file: str, num_params: int, gmacs: float, source: str = "Table 1"
) -> ModelSpec:
    """A row of DeiT: the size word is the width, of heads 64 wide; `file` is upstream's stem."""
    size, upstream = name.split("_")[1], file.split("-")[0]
    embed_dim = {"tiny": 192, "small": 384, "base": 768}[size]
    arch = dict(patch_size=16, embed_dim=embed_dim, depth=12, num_heads=embed_dim // 64)
    short = name.replace(size, {"tiny": "ti", "small": "s", "base": "b"}[size])
    return ModelSpec(
        name=name,
        family="deit",
        builder=_VIT,
        arch=arch | {"distilled": True} if "distilled" in name else arch,
        img_size=int(upstream[-3:]),
        num_params=num_params,
        gmacs=gmacs,
        source=f"arXiv:2012.12877, {source}",
        aliases=(upstream, short, f"{upstream}.fb_in1k", file),
    )


def _cait(
    name: str,
    upstream: str,
    embed_dim: int,
    depth: int,
    layer_scale_init: float,
    num_params: int,
    gmacs: float,
) -> ModelSpec:
    """A row of CaiT, of heads 48 wide; `upstream` is its name there."""
    return ModelSpec(
        name=name,
        family="cait",
        builder=_CAIT,
        arch=dict(
            patch_size=16,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=embed_dim // 48,
            layer_scale_init=layer_scale_init,
        ),
        img_size=int(name[-3:]),
        num_params=num_params,
        gmacs=gmacs,
        source="arXiv:2103.17239; upstream cait_models.py",
        aliases=(upstream, f"{name}.fb_dist_in1k", name.removeprefix("cait_").upper()),
    )


# Of DeiT III: width, depth, heads, patch size.
_DEIT3_SIZES = {
    "small": (384, 12, 6, 16),
    "medium": (512, 12, 8, 16),
    "base": (768, 12, 12, 16),
    "large": (1024, 24, 16, 16),
    "huge": (1280, 32, 16, 14),
}


def _deit3(name: str, file: str, num_params: int, gmacs: float) -> ModelSpec:
    """A row of DeiT III; `file` is upstream's stem, which says the data: `1k`, or `21k` before."""
    size, img_size = name.split("_")[1], 384 if "_384" in name else 224
    embed_dim, depth, num_heads, patch = _DEIT3_SIZES[size]
    in21k = name.endswith("_in21k")
    # Upstream has one factory for all files of a size.
    own = f"{'_384' if img_size == 384 else ''}{'_21k' if in21k else ''}"
    tag = "fb_in22k_ft_in1k" if in21k else "fb_in1k"
    return ModelSpec(
        name=name,
        family="deit3",
        builder=_DEIT3,
        arch=dict(patch_size=patch, embed_dim=embed_dim, depth=depth, num_heads=num_heads),
        img_size=img_size,
        num_params=num_params,
        gmacs=gmacs,
        source="arXiv:2204.07118; upstream models_v2.py",
        aliases=(
            f"deit_{size}_patch{patch}_LS{own}",
            f"deit3_{size}_patch{patch}_{img_size}.{tag}",
            file,
        ),
    )


# Parameters are counted exactly; multiply-accumulates are those of timm's benchmark tables.
# Aliases are the names in use elsewhere: upstream's first, timm's with its tag, the file's.
# A row: name, upstream's file, parameters, GMACs, where it was published.
_DEIT = (
    _deit("deit_tiny", "deit_tiny_patch16_224-a1311bcf", 5_717_416, 1.26),
    _deit("deit_small", "deit_small_patch16_224-cd65a155", 22_050_664, 4.61),
    _deit("deit_base", "deit_base_patch16_224-b5f2ef4d", 86_567_656, 17.58),
    _deit("deit_base_384", "deit_base_patch16_384-8de9b5d1", 86_859_496, 55.54, "Tables 1 and 5"),
    _deit(
        "deit_tiny_distilled",
        "deit_tiny_distilled_patch16_224-b40b3cf7",
        5_910_800,
        1.27,
        "Table 1 and section 4",
    ),
    _deit(
        "deit_small_distilled",
        "deit_small_distilled_patch16_224-649709d9",
        22_436_432,
        4.63,
        "Table 1 and section 4",
    ),
    _deit(
        "deit_base_distilled",
        "deit_base_distilled_patch16_224-df68dfff",
        87_338_192,
        17.68,
        "Table 1 and section 4",
    ),
    _deit(
        "deit_base_distilled_384",
        "deit_base_distilled_patch16_384-d0272ac0",
        87_630_032,
        55.65,
        "Tables 1 and 5 (the 1000-epoch model)",
    ),
)

# Sizes as in upstream's cait_models.py. There the bare `cait_S24` is the 384-pixel model, and the
# LayerScale of XXS36 starts at 1e-5; second-hand copies of the paper say 1e-6.
# A row: name, upstream's name, width, depth, start of LayerScale, parameters, GMACs.
_CAITS = (
    _cait("cait_xxs24_224", "cait_XXS24_224", 192, 24, 1e-5, 11_956_264, 2.53),
    _cait("cait_xxs24_384", "cait_XXS24", 192, 24, 1e-5, 12_029_224, 9.63),
    _cait("cait_xxs36_224", "cait_XXS36_224", 192, 36, 1e-5, 17_299_720, 3.77),
    _cait("cait_xxs36_384", "cait_XXS36", 192, 36, 1e-5, 17_372_680, 14.35),
    _cait("cait_xs24_384", "cait_XS24", 288, 24, 1e-5, 26_670_088, 19.28),
    _cait("cait_s24_224", "cait_S24_224", 384, 24, 1e-5, 46_916_200, 9.35),
    _cait("cait_s24_384", "cait_S24", 384, 24, 1e-5, 47_062_120, 32.17),
    _cait("cait_s36_384", "cait_S36", 384, 36, 1e-6, 68_366_632, 47.99),
    _cait("cait_m36_384", "cait_M36", 768, 36, 1e-6, 271_221_352, 173.11),
    _cait("cait_m48_448", "cait_M48", 768, 48, 1e-6, 356_460_520, 329.41),
)

# `_in21k` was trained on ImageNet-21k, then on ImageNet-1k; nothing of 21k alone was published.
# A row: name, upstream's file, parameters, GMACs.
_DEIT3S = (
    _deit3("deit3_small", "deit_3_small_224_1k", 22_059_496, 4.61),
    _deit3("deit3_small_384", "deit_3_small_384_1k", 22_205_416, 15.52),
    _deit3("deit3_medium", "deit_3_medium_224_1k", 38_849_512, 8.0),
    _deit3("deit3_base", "deit_3_base_224_1k", 86_585_320, 17.58),
    _deit3("deit3_base_384", "deit_3_base_384_1k", 86_877_160, 55.54),
    _deit3("deit3_large", "deit_3_large_224_1k", 304_374_760, 61.6),
    _deit3("deit3_large_384", "deit_3_large_384_1k", 304_763_880, 191.21),
    _deit3("deit3_huge", "deit_3_huge_224_1k", 632_126_440, 167.4),
    _deit3("deit3_small_in21k", "deit_3_small_224_21k", 22_059_496, 4.61),
    _deit3("deit3_small_384_in21k", "deit_3_small_384_21k", 22_205_416, 15.52),
    _deit3("deit3_medium_in21k", "deit_3_medium_224_21k", 38_849_512, 8.0),
    _deit3("deit3_base_in21k", "deit_3_base_224_21k", 86_585_320, 17.58),
    _deit3("deit3_base_384_in21k", "deit_3_base_384_21k", 86_877_160, 55.54),
    _deit3("deit3_large_in21k", "deit_3_large_224_21k", 304_374_760, 61.6),
    _deit3("deit3_large_384_in21k", "deit_3_large_384_21k", 304_763_880, 191.21),
    _deit3("deit3_huge_in21k", "deit_3_huge_224_21k_v1", 632_126_440, 167.4),
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

MODELS: dict[str, ModelSpec] = {
    spec.name: spec for spec in (*_DEIT, *_CAITS, *_DEIT3S, _TEACHER, *_EMBEDDED)
}

# Names that mean something else, compared without their `_patch16` and timm's tag: what to say, and
# what to offer first.
_REFUSED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        r"deit_.*1000_?ep(ochs)?",
        "of the 1000-epoch models only deit_base_distilled_384 was published",
        ("deit_base_distilled_384",),
    ),
    (
        r"deit_.*_(18x2|26x2|36|36x1|40|40x2|48|48x2|52)(_ls)?",
        "the deeper and parallel networks of DeiT III's authors were never published "
        "(create('deit3_small', blocks='18x2') builds one)",
        (),
    ),
    (
        r"deit3_(tiny|ti?)(_.*)?|deit_tiny_ls(_.*)?",
        "no weights of a tiny DeiT III were published",
        ("deit3_small", "deit_tiny"),
    ),
    *(
        (
            rf"(deit3_({size}|{size[0]})|deit_{size}_ls)_?384(_.*)?",
            f"DeiT III-{size[0].upper()} was published at 224 pixels only (img_size=384 resamples "
            "it)",
            (f"deit3_{size}", f"deit3_{size}_in21k"),
        )
        for size in ("medium", "huge")
    ),
    (
        r"deit3_.*_(fb_in2[12]k|2[12]k_only|in2[12]k_only)",
        "DeiT III's weights of ImageNet-21k alone were never published",
        (),
    ),
    *(
        (
            rf"deit_({size}|{size[0]})(_.*)?",
            "that size is DeiT III's",
            (f"deit3_{size}", f"deit3_{size}_in21k"),
        )
        for size in ("medium", "large", "huge")
    ),
    (
        r"deit3(_.*)?|deit_.*_ls(_.*)?|deit_giant(_.*)?",
        "DeiT III was published as small, medium, base, large and huge",
        (),
    ),
    (
        r"(xxs|xs|s|m|b)_?(12|24|36|48)",
        "that letter and depth name several families, so write the family first",
        (),
    ),
    (r"(dino_)?deit_?s_?16.*|dino_.*", "that is a backbone of DINO, with other weights", ()),
    (r"vit_.*", "plain ViT names mean other weights in every library", ()),
    *(
        (
            rf"deit_{size}_.*\d+xb\d+.*",
            "that is mmpretrain's own training, not a published DeiT",
            (f"deit_{size}",),
        )
        for size in ("tiny", "small", "base")
    ),
    (
        r"resmlp.*|patch_?conv_?net.*|[slb](60|120)(_.*)?",
        "ResMLP and PatchConvNet are not in this zoo",
        (),
    ),
    (r"regnet.*", "the one RegNet here is DeiT's teacher", ("regnety_160_deit",)),
)


# What others call training on ImageNet-21k and then on ImageNet-1k.
_TAGS_21K = (
    *("_21k", "_22k", "_in21k", "_in22k", "_in21ft1k", "_in22ft1k"),
    "_fb_in22k_ft_in1k",
)

# What stands before a name where it is written as the Hub's, timm's or torch.hub's.
_OWNERS = re.compile(
    r"^(https?://(huggingface\.co|hf\.co)/|https://dl\.fbaipublicfiles\.com/deit/)?"
    r"(hf[-_]hub:|timm/|facebook/|facebookresearch/deit:)*",
    re.IGNORECASE,
)
# What stands behind it: the file of the Hub's newest commit, and the ending of upstream's.
_FILES = re.compile(r"(/(tree|blob|resolve)/main(/model\.safetensors)?|\.pth)?/?$", re.IGNORECASE)
# A paper's patch size, as in DeiT-S/16.
_PATCHES = re.compile(r"(?<=[a-z])/(?=1[46](?!\d))", re.IGNORECASE)


def is_path(text: str) -> bool:
    """Whether a model is meant by a file, a folder or an address, not by its name.

    A name, also one that is known to mean nothing here, goes before a folder of the same name, but
    a file goes before the name of an upstream's that has its ending. Else what has a slash is a
    path, whether it is there or not.
    """
    if text.startswith(("hf://", "/", "./", "../", "~")):
        return True
    if not text or lookup(text) is not None:
        return text.endswith(".pth") and os.path.isfile(text)
    if text.endswith(".safetensors"):
        return True
    slashes = set("/\\") & set(_OWNERS.sub("", text))
    return os.path.exists(text) or (bool(slashes) and not _refusal_of(text)[0])


def resolve(name: str) -> ModelSpec:
    """The row that a name means. Raises UnknownModelError with the three nearest names."""
    spec = lookup(name) if isinstance(name, str) else None
    if spec is None:
        if isinstance(name, str) and is_path(name):
            raise UnknownModelError(
                f"{name!r} is a path, and here a model's name is wanted; `deit-zoo list` shows all "
                f"{len(MODELS)}"
            )
        raise UnknownModelError(_unknown(name))
    return spec


def lookup(name: str) -> ModelSpec | None:
    """The row that a name means; None where it means none."""
    return spellings().get(normalize(name))


def normalize(name: str) -> str:
    """The form in which names are compared: lower case, `_` for `-./` and spaces, no prefix.

    DeiT III is `deit3`, however it is written.
    """
    text = name.strip()
    if not text.isascii():  # the papers' signs
        text = re.sub("⚗[\ufe0e\ufe0f]?", "_distilled", text).replace("↑", "_")
        text = re.sub(r"[Υυϒ]", "", text)
    text = re.sub(_PATCHES, "_patch", re.sub(_FILES, "", re.sub(_OWNERS, "", text.casefold())))
    text = re.sub(r"[-./\s_]+", "_", text).strip("_")
    return re.sub(r"^deit_?(3|iii)(?=_|$)", "deit3", text)


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


def matches(name: str, pattern: str) -> bool:
    """Whether a shell pattern fits a name; a plain word may stand anywhere in it."""
    pattern = pattern.lower().replace("-", "_")
    if not any(sign in pattern for sign in "*?["):
        pattern = f"*{pattern}*"
    return fnmatchcase(name, pattern)


def nearest(name: str, count: int = 3) -> list[str]:
    """The canonical names whose spellings look most like `name`."""
    normalized = normalize(name)
    best: dict[str, float] = {}
    for spelling, spec in spellings().items():
        score = SequenceMatcher(None, normalized, spelling).ratio()
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
    elif spec.family == "deit3":
        yield from _deit3_variants(spec)
    elif spec.family == "cait":
        letters, depth, img_size = re.findall(r"cait_([a-z]+)(\d+)_(\d+)", spec.name)[0]
        bare = f"cait_{letters}{depth}" in map(normalize, spec.aliases)
        for gap, patch, tag in product(("", "_"), ("", "_patch16", "_p16"), ("", "_fb_dist_in1k")):
            yield f"cait_{letters}{gap}{depth}{patch}_{img_size}{tag}"
            if bare:
                yield f"cait_{letters}{gap}{depth}{patch}{tag}"


def _deit3_variants(spec: ModelSpec) -> Iterator[str]:
    size, patch = spec.name.split("_")[1], spec.arch["patch_size"]
    in21k = spec.name.endswith("_in21k")
    tags = _TAGS_21K if in21k else ("", "_1k", "_in1k", "_fb_in1k")
    sizes = ("", "_224", "224") if spec.img_size == 224 else ("_384", "384")
    patches = ("", f"_patch{patch}", f"_p{patch}")
    for word, cut, img_size, tag in product((size, size[0]), patches, sizes, tags):
        yield f"deit3_{word}{cut}{img_size}{tag}"
    for img_size, tag in product(sizes, tags):  # upstream's factory and what it is told
        yield f"deit_{size}_patch{patch}_ls{img_size}{tag}"
    if size == "huge" and not in21k:  # the same file in upstream's code
        yield "deit3_huge_224_1k_v1"
    # mmpretrain's copies of the authors' weights.
    pretrained, pixels = "_in21k_pre" if in21k else "", "_384px" if spec.img_size == 384 else ""
    yield f"deit3_{size}_p{patch}{pretrained}_3rdparty_in1k{pixels}"


def _unknown(name: object) -> str:
    reason, first = _refusal_of(str(name))
    others = (other for other in nearest(str(name), 6) if other not in first)
    near = [*first, *others][:3]
    return (
        f"no model is named {name!r}{reason}; did you mean {', '.join(near[:-1])} or {near[-1]}? "
        f"`deit-zoo list` shows all {len(MODELS)}"
    )


def _refusal_of(name: str) -> tuple[str, tuple[str, ...]]:
    return _refusal(re.sub(r"_(patch|p)1[46]|_fb_(dist_)?in1k", "", normalize(name)))


def _refusal(spelling: str) -> tuple[str, tuple[str, ...]]:
    """Why a spelling means no model, where that is known, and the models to offer first."""
    if deit := re.fullmatch(r"deit_(ti?|tiny|s|small)(_dist\w*)?_?384(_dist\w*)?", spelling):
        letters, size = ("Ti", "tiny") if deit[1].startswith("t") else ("S", "small")
        distilled = "_distilled" if deit[2] or deit[3] else ""
        return (
            f": {'distilled ' if distilled else ''}DeiT-{letters} was published at 224 pixels only "
            "(img_size=384 resamples it)",
            (f"deit_{size}{distilled}", f"deit_base{distilled}_384"),
        )
    cait = re.fullmatch(r"(cait_)?(xxs|xs|s|m)_?(24|36|48)(_\d+)?", spelling)
    if cait and (cait[1] or cait[4]):
        letters, depth = cait[2], int(cait[3])
        same = [spec for spec in _CAITS if spec.name.startswith(f"cait_{letters}{depth}_")]
        sizes = " and ".join(str(spec.img_size) for spec in same)
        if not same:
            same = [spec for spec in _CAITS if spec.name.startswith(f"cait_{letters}")]
            same.sort(key=lambda spec: abs(spec.arch["depth"] - depth))
        model = f"CaiT-{letters.upper()}{depth}"
        reason = (
            f": {model} was published at {sizes} pixels only"
            if sizes
            else f": no weights of {model} were published"
        )
        return reason, tuple(spec.name for spec in same)
    for pattern, why, first in _REFUSED:
        if re.fullmatch(pattern, spelling):
            return f": {why}", first
    return "", ()
