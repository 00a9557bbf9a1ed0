"""Names: every spelling that means a model, and a reason and the nearest for those that mean none.

A name is normalised and looked up in one flat table. Nothing is matched by prefix or by likeness;
likeness only chooses what an error suggests.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from functools import cache
from itertools import product

from deit_zoo.errors import UnknownModelError
from deit_zoo.files import WEIGHTS_SUFFIXES
from deit_zoo.registry import MODELS, ModelSpec

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
    if os.path.splitext(text)[1] in WEIGHTS_SUFFIXES or os.path.exists(text):
        return True
    return bool(set("/\\") & set(_OWNERS.sub("", text))) and not _refusal_of(text)[0]


def resolve(name: str) -> ModelSpec:
    """The row that a name means. Raises UnknownModelError with the three nearest names."""
    spec = lookup(name) if isinstance(name, str) else None
    if spec is None:
        if isinstance(name, str) and is_path(name):
            raise UnknownModelError(
                f"{name!r} is a path, and here a model's name is wanted; `deit-zoo list` shows all "
                f"{len(MODELS)}"
            )
        reason, first = _refusal_of(str(name))
        near = [*first, *(other for other in nearest(str(name), 6) if other not in first)][:3]
        raise UnknownModelError(
            f"no model is named {name!r}{reason}; did you mean {near[0]}, {near[1]} or {near[2]}? "
            f"`deit-zoo list` shows all {len(MODELS)}"
        )
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
    # A hyphen in brackets is a range of letters.
    pattern = re.sub(r"\[[^]]*\]|-", lambda m: "_" if m[0] == "-" else m[0], pattern.lower())
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


def _refusal_of(name: str) -> tuple[str, tuple[str, ...]]:
    """Why a name means no model, where that is known, and the models to offer first."""
    spelling = re.sub(r"_(patch|p)1[46]|_fb_(dist_)?in1k", "", normalize(name))
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
        caits = [spec for spec in MODELS.values() if spec.family == "cait"]
        same = [spec for spec in caits if spec.name.startswith(f"cait_{letters}{depth}_")]
        sizes = " and ".join(str(spec.img_size) for spec in same)
        if not same:
            same = [spec for spec in caits if spec.name.startswith(f"cait_{letters}")]
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
