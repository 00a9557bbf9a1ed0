"""The models: one row for each, with what to build and where its numbers come from."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from deit_zoo.errors import MissingExtraError, ZooError
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
    name: str, file: str, num_params: int, gmacs: float, source: str | None = None
) -> ModelSpec:
    """A row of DeiT: the size word is the width, of heads 64 wide; `file` is upstream's stem."""
    size, upstream, distilled = name.split("_")[1], file.split("-")[0], "distilled" in name
    source = source or ("Table 1 and section 4" if distilled else "Table 1")
    embed_dim = {"tiny": 192, "small": 384, "base": 768}[size]
    arch = dict(patch_size=16, embed_dim=embed_dim, depth=12, num_heads=embed_dim // 64)
    short = name.replace(size, {"tiny": "ti", "small": "s", "base": "b"}[size])
    return ModelSpec(
        name=name,
        family="deit",
        builder=_VIT,
        arch=arch | {"distilled": True} if distilled else arch,
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
    _deit("deit_tiny_distilled", "deit_tiny_distilled_patch16_224-b40b3cf7", 5_910_800, 1.27),
    _deit("deit_small_distilled", "deit_small_distilled_patch16_224-649709d9", 22_436_432, 4.63),
    _deit("deit_base_distilled", "deit_base_distilled_patch16_224-df68dfff", 87_338_192, 17.68),
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
