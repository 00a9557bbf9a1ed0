"""Names: every spelling in use finds its model; a name without a model is told what to try."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deit_zoo.errors import UnknownModelError
from deit_zoo.registry import MODELS
from deit_zoo.registry.names import is_path, lookup, nearest, normalize, resolve, spellings
from support.tables import each_row


def groups(text: str) -> dict[str, list[str]]:
    """Rows of `key: word | word | ...`, which go on where a line is indented."""
    rows = [row.partition(":") for row in re.split(r"\n(?=\S)", text.strip())]
    return {key: [word.strip() for word in words.split("|")] for key, _, words in rows}


# facts/naming.md, "Who calls them what" and the table: reference, timm bare and tagged, Hub ids,
# file stems, short forms, and the signs of the papers.
SPELLINGS = groups("""
deit_tiny: deit_tiny | deit_tiny_224 | deit_tiny_patch16_224 | deit_tiny_patch16_224.fb_in1k
    | timm/deit_tiny_patch16_224.fb_in1k | facebook/deit-tiny-patch16-224
    | deit_tiny_patch16_224-a1311bcf | vit_deit_tiny_patch16_224 | deit_t | deit_ti | deit_t_224
    | deit_t_p16 | deit_ti224 | DeiT-Ti
deit_small: deit_small | deit_small_224 | deit_small_patch16_224 | deit_small_patch16_224.fb_in1k
    | timm/deit_small_patch16_224.fb_in1k | facebook/deit-small-patch16-224
    | deit_small_patch16_224-cd65a155 | vit_deit_small_patch16_224 | deit_s | deit_s_224 | deit_s224
    | deit_s_p16 | deit_s_p16_224 | DeiT-S
deit_base: deit_base | deit_base_224 | deit_base_patch16_224 | deit_base_patch16_224.fb_in1k
    | timm/deit_base_patch16_224.fb_in1k | facebook/deit-base-patch16-224
    | deit_base_patch16_224-b5f2ef4d | vit_deit_base_patch16_224 | deit_b | deit_b_224 | deit_b_p16
    | DeiT-B
deit_base_384: deit_base_384 | deit_base_patch16_384 | deit_base_patch16_384.fb_in1k
    | timm/deit_base_patch16_384.fb_in1k | facebook/deit-base-patch16-384
    | deit_base_patch16_384-8de9b5d1 | vit_deit_base_patch16_384 | deit_b_384 | deit_b_p16_384
    | deit_base_p16_384 | deit_b_patch16_384 | DeiT-B↑384 | DeiT-B ↑ 384
deit_tiny_distilled: deit_tiny_distilled | deit_tiny_distilled_224 | deit_tiny_distilled_patch16_224
    | deit_tiny_distilled_patch16_224.fb_in1k | timm/deit_tiny_distilled_patch16_224.fb_in1k
    | facebook/deit-tiny-distilled-patch16-224 | deit_tiny_distilled_patch16_224-b40b3cf7
    | vit_deit_tiny_distilled_patch16_224 | deit_t_dist | deit_ti_dist | deit_tiny_dist
    | deit_t_dist_224 | deit_t_dist_p16 | DeiT-Ti⚗ | DeiT-Ti⚗︎
deit_small_distilled: deit_small_distilled | deit_small_distilled_224
    | deit_small_distilled_patch16_224 | deit_small_distilled_patch16_224.fb_in1k
    | timm/deit_small_distilled_patch16_224.fb_in1k | facebook/deit-small-distilled-patch16-224
    | deit_small_distilled_patch16_224-649709d9 | vit_deit_small_distilled_patch16_224 | deit_s_dist
    | deit_s_dist_224 | deit_s_dist_p16 | deit_small_dist | deit_s_distilled | DeiT_S_distilled
    | DeiT-S⚗️
deit_base_distilled: deit_base_distilled | deit_base_distilled_224 | deit_base_distilled_patch16_224
    | deit_base_distilled_patch16_224.fb_in1k | timm/deit_base_distilled_patch16_224.fb_in1k
    | facebook/deit-base-distilled-patch16-224 | deit_base_distilled_patch16_224-df68dfff
    | vit_deit_base_distilled_patch16_224 | deit_b_dist | deit_base_dist | deit_b_dist_224
    | deit_b_dist_p16 | deit_b_distilled | DeiT-B⚗
deit_base_distilled_384: deit_base_distilled_384 | deit_base_distilled_patch16_384
    | deit_base_distilled_patch16_384.fb_in1k | timm/deit_base_distilled_patch16_384.fb_in1k
    | facebook/deit-base-distilled-patch16-384 | deit_base_distilled_patch16_384-d0272ac0
    | vit_deit_base_distilled_patch16_384 | deit_b_dist_384 | deit_base_dist_384
    | deit_b_dist_p16_384 | deit_b_distilled_384 | deit_base_dist_p16_384 | DeiT-B⚗↑384
    | DeiT-B⚗︎↑384 | DeiT-B⚗️ ↑384
cait_xxs24_224: cait_xxs24_224 | cait_XXS24_224 | cait_xxs24_224.fb_dist_in1k
    | timm/cait_xxs24_224.fb_dist_in1k | XXS24_224 | cait_xxs_24_224 | cait_xxs24_patch16_224
    | cait_xxs24_224_fb_dist_in1k | CaiT-XXS-24↑224Υ
cait_xxs24_384: cait_xxs24_384 | cait_XXS24 | cait_xxs24_384.fb_dist_in1k
    | timm/cait_xxs24_384.fb_dist_in1k | XXS24_384 | cait_xxs24 | cait_xxs_24 | cait_xxs_24_384
    | CaiT-XXS-24↑384Υ | CaiT-XXS-24↑384υ
cait_xxs36_224: cait_xxs36_224 | cait_XXS36_224 | cait_xxs36_224.fb_dist_in1k
    | timm/cait_xxs36_224.fb_dist_in1k | XXS36_224 | cait_xxs_36_224 | cait_xxs36_patch16_224
    | cait_xxs36_224_fb_dist_in1k
cait_xxs36_384: cait_xxs36_384 | cait_XXS36 | cait_xxs36_384.fb_dist_in1k
    | timm/cait_xxs36_384.fb_dist_in1k | XXS36_384 | cait_xxs36 | cait_xxs_36 | cait_xxs_36_384
    | CaiT-XXS-36↑384Υ
cait_xs24_384: cait_xs24_384 | cait_XS24 | cait_xs24_384.fb_dist_in1k
    | timm/cait_xs24_384.fb_dist_in1k | XS24_384 | cait_xs24 | cait_xs_24 | cait_xs_24_384
    | CaiT-XS-24↑384Υ
cait_s24_224: cait_s24_224 | cait_S24_224 | cait_s24_224.fb_dist_in1k
    | timm/cait_s24_224.fb_dist_in1k | S24_224 | cait_s_24_224 | cait_s24_patch16_224
    | cait_s24_224_fb_dist_in1k
cait_s24_384: cait_s24_384 | cait_S24 | cait_s24_384.fb_dist_in1k | timm/cait_s24_384.fb_dist_in1k
    | S24_384 | cait_s24 | cait_s_24 | cait_s_24_384 | CaiT-S-24↑384Υ
cait_s36_384: cait_s36_384 | cait_S36 | cait_s36_384.fb_dist_in1k | timm/cait_s36_384.fb_dist_in1k
    | S36_384 | cait_s36 | cait_s_36 | cait_s_36_384 | CaiT-S-36↑384Υ
cait_m36_384: cait_m36_384 | cait_M36 | cait_m36_384.fb_dist_in1k | timm/cait_m36_384.fb_dist_in1k
    | M36_384 | cait_m36 | cait_m_36 | cait_m_36_384 | CaiT-M-36↑384Υ
cait_m48_448: cait_m48_448 | cait_M48 | cait_m48_448.fb_dist_in1k | timm/cait_m48_448.fb_dist_in1k
    | M48_448 | cait_m48 | cait_m_48 | cait_m_48_448 | CaiT-M-48↑448Υ
deit3_small: deit3_small | deit3_small_224 | deit_small_patch16_LS | deit3_small_patch16_224.fb_in1k
    | timm/deit3_small_patch16_224.fb_in1k | deit_3_small_224_1k | deit3_s | deit_3_s | deitiii_s
    | deit3_s_1k | deit_iii_s | deit3_small_patch16_224 | DeiT-III-S | deit3-small-p16_3rdparty_in1k
deit3_small_384: deit3_small_384 | deit_small_patch16_LS_384 | deit3_small_patch16_384.fb_in1k
    | timm/deit3_small_patch16_384.fb_in1k | deit_3_small_384_1k | deit3_s_384 | deit_3_s_384
    | deitiii_s_384 | deit3_s_384_1k | deit_iii_s_384 | deit3_small_patch16_384 | DeiT-III-S↑384
    | deit3-small-p16_3rdparty_in1k-384px
deit3_medium: deit3_medium | deit3_medium_224 | deit_medium_patch16_LS
    | deit3_medium_patch16_224.fb_in1k | timm/deit3_medium_patch16_224.fb_in1k
    | deit_3_medium_224_1k | deit3_m | deit_3_m | deitiii_m | deit3_m_1k | deit_iii_m
    | deit3_medium_patch16_224 | DeiT-III-M | deit3-medium-p16_3rdparty_in1k
deit3_base: deit3_base | deit3_base_224 | deit_base_patch16_LS | deit3_base_patch16_224.fb_in1k
    | timm/deit3_base_patch16_224.fb_in1k | deit_3_base_224_1k | deit3_b | deit_3_b | deitiii_b
    | deit3_b_1k | deit3_base_patch16_224 | DeiT-III-B | deit3-base-p16_3rdparty_in1k
deit3_base_384: deit3_base_384 | deit_base_patch16_LS_384 | deit3_base_patch16_384.fb_in1k
    | timm/deit3_base_patch16_384.fb_in1k | deit_3_base_384_1k | deit3_b_384 | deit_3_b_384
    | deitiii_b_384 | deit3_b_384_1k | deit3_base_patch16_384 | DeiT-III-B↑384
    | deit3-base-p16_3rdparty_in1k-384px
deit3_large: deit3_large | deit3_large_224 | deit_large_patch16_LS | deit3_large_patch16_224.fb_in1k
    | timm/deit3_large_patch16_224.fb_in1k | deit_3_large_224_1k | deit3_l | deit_3_l | deitiii_l
    | deit3_l_1k | deit_iii_l | deit3_large_patch16_224 | DeiT-III-L | deit3-large-p16_3rdparty_in1k
deit3_large_384: deit3_large_384 | deit_large_patch16_LS_384 | deit3_large_patch16_384.fb_in1k
    | timm/deit3_large_patch16_384.fb_in1k | deit_3_large_384_1k | deit3_l_384 | deit_3_l_384
    | deitiii_l_384 | deit3_l_384_1k | deit_iii_l_384 | deit3_large_patch16_384 | DeiT-III-L↑384
    | deit3-large-p16_3rdparty_in1k-384px
deit3_huge: deit3_huge | deit3_huge_224 | deit_huge_patch14_LS | deit3_huge_patch14_224.fb_in1k
    | timm/deit3_huge_patch14_224.fb_in1k | deit_3_huge_224_1k | deit3_h | deit_3_h | deitiii_h
    | deit3_h_1k | deit3_huge_patch14_224 | DeiT-III-H | deit3-huge-p14_3rdparty_in1k
deit3_small_in21k: deit3_small_in21k | deit3_small_224_in21k | deit_small_patch16_LS_21k
    | deit3_small_patch16_224.fb_in22k_ft_in1k | timm/deit3_small_patch16_224.fb_in22k_ft_in1k
    | deit3_small_patch16_224_in21ft1k | deit_3_small_224_21k | deit3_s_21k | deit3_s_22k
    | deit_3_s_21k | deit_3_s_22k | deit3_s_in21k | deit3-small-p16_in21k-pre_3rdparty_in1k
deit3_small_384_in21k: deit3_small_384_in21k | deit_small_patch16_LS_384_21k
    | deit3_small_patch16_384.fb_in22k_ft_in1k | timm/deit3_small_patch16_384.fb_in22k_ft_in1k
    | deit3_small_patch16_384_in21ft1k | deit_3_small_384_21k | deit3_s_384_21k | deit3_s_384_22k
    | deit_3_s_384_21k | deit_3_s_384_22k | deit3_s_384_in21k
    | deit3-small-p16_in21k-pre_3rdparty_in1k-384px
deit3_medium_in21k: deit3_medium_in21k | deit3_medium_224_in21k | deit_medium_patch16_LS_21k
    | deit3_medium_patch16_224.fb_in22k_ft_in1k | timm/deit3_medium_patch16_224.fb_in22k_ft_in1k
    | deit3_medium_patch16_224_in21ft1k | deit_3_medium_224_21k | deit3_m_21k | deit3_m_22k
    | deit_3_m_21k | deit_3_m_22k | deit3_m_in21k | deit3-medium-p16_in21k-pre_3rdparty_in1k
deit3_base_in21k: deit3_base_in21k | deit3_base_224_in21k | deit_base_patch16_LS_21k
    | deit3_base_patch16_224.fb_in22k_ft_in1k | timm/deit3_base_patch16_224.fb_in22k_ft_in1k
    | deit3_base_patch16_224_in21ft1k | deit_3_base_224_21k | deit3_b_21k | deit3_b_22k
    | deit_3_b_21k | deit_3_b_22k | deit3_b_in21k | deit3-base-p16_in21k-pre_3rdparty_in1k
deit3_base_384_in21k: deit3_base_384_in21k | deit_base_patch16_LS_384_21k
    | deit3_base_patch16_384.fb_in22k_ft_in1k | timm/deit3_base_patch16_384.fb_in22k_ft_in1k
    | deit3_base_patch16_384_in21ft1k | deit_3_base_384_21k | deit3_b_384_21k | deit3_b_384_22k
    | deit_3_b_384_21k | deit_3_b_384_22k | deit3_b_384_in21k
    | deit3-base-p16_in21k-pre_3rdparty_in1k-384px
deit3_large_in21k: deit3_large_in21k | deit3_large_224_in21k | deit_large_patch16_LS_21k
    | deit3_large_patch16_224.fb_in22k_ft_in1k | timm/deit3_large_patch16_224.fb_in22k_ft_in1k
    | deit3_large_patch16_224_in21ft1k | deit_3_large_224_21k | deit3_l_21k | deit3_l_22k
    | deit_3_l_21k | deit_3_l_22k | deit3_l_in21k | deit3-large-p16_in21k-pre_3rdparty_in1k
deit3_large_384_in21k: deit3_large_384_in21k | deit_large_patch16_LS_384_21k
    | deit3_large_patch16_384.fb_in22k_ft_in1k | timm/deit3_large_patch16_384.fb_in22k_ft_in1k
    | deit3_large_patch16_384_in21ft1k | deit_3_large_384_21k | deit3_l_384_21k | deit3_l_384_22k
    | deit_3_l_384_21k | deit_3_l_384_22k | deit3_l_384_in21k
    | deit3-large-p16_in21k-pre_3rdparty_in1k-384px
deit3_huge_in21k: deit3_huge_in21k | deit3_huge_224_in21k | deit_huge_patch14_LS_21k
    | deit3_huge_patch14_224.fb_in22k_ft_in1k | timm/deit3_huge_patch14_224.fb_in22k_ft_in1k
    | deit3_huge_patch14_224_in21ft1k | deit_3_huge_224_21k_v1 | deit3_h_21k | deit3_h_22k
    | deit_3_h_21k | deit_3_h_22k | deit3_h_in21k | deit3-huge-p14_in21k-pre_3rdparty_in1k
""")
SPELLINGS["deit_small"].append("  DeiT S  ")

EVERY_SPELLING = [(spelling, name) for name, group in SPELLINGS.items() for spelling in group]
HUB_IDS = [(spelling, name) for spelling, name in EVERY_SPELLING if "/" in spelling]

# facts/naming.md, "Names that must fail", and its traps, by the name that the error offers first;
# `-` where this zoo holds nothing that was meant.
FAILING = groups("""
deit3_small: deit3_tiny | deit_tiny_patch16_LS | deit_small_patch16_18x2
deit3_medium: deit3_medium_384 | deit_medium_patch16_LS_384_21k | deit_medium | deit_m
deit3_huge: DeiT-III-H↑384 | deit_huge | deit_h
-: deit3_base_patch16_224.fb_in22k | deit3_small_512 | deit3_giant | patchconvnet_l60
    | patchconvnet_l120 | S60 | S60_multi | resmlp_12 | resmlp_s36_dino | regnety_320
    | deit_small_patch16_36_LS | deit_base_patch16_36x1_LS | deit_huge_patch14_26x2_LS
    | deit_huge_patch14_52_LS | deit_Giant_48x2_patch14_LS | deit_giant_40x2_patch14_LS
    | dino_deitsmall16_pretrain | deit_d | S24 | B24 | deit | cait
cait_xs24_384: cait_xs24_224 | cait_xs24_patch16_224 | cait_xs24_224.fb_dist_in1k | XS24_224
    | cait_xs36
cait_s36_384: cait_s36_224 | S36_224 | cait_s48 | S36
cait_m36_384: cait_m24 | cait_m36_224 | M36
cait_m48_448: cait_m48_384 | M48
deit_tiny: deit_tiny_384 | deit_tiny_patch16_384.fb_in1k
deit_tiny_distilled: deit_tiny_distilled_patch16_384
deit_small: deit_small_384 | deit_s384 | facebook/deit-small-patch16-384 | deit-small_4xb256_in1k
    | deits16 | deit_s16 | vit_small | vit_small_patch16_224
deit_small_distilled: DeiT-S⚗↑384 | deit-small-distilled_3rdparty_in1k
deit_base_distilled_384: deit_tiny_distilled_1000epochs | deit_small_1000_epochs
    | DeiT-B⚗/1000epochs
deit_base: vit_base_patch16_224
deit3_large: deit_large | deit_l
""")
FAILING["-"].append("")


def suggestions(name: str) -> list[str]:
    with pytest.raises(UnknownModelError) as caught:
        resolve(name)
    offered = re.search(r"did you mean (\S+), (\S+) or (\S+)\? ", str(caught.value))
    assert offered, f"no suggestions in {str(caught.value)!r}"
    return list(offered.groups())


@each_row(("spelling", "name"), EVERY_SPELLING)
def test_every_spelling_in_use_resolves(spelling: str, name: str) -> None:
    assert resolve(spelling).name == name


def test_the_published_models_are_those_with_imagenet_labels() -> None:
    published = {name for name, spec in MODELS.items() if spec.labels == "imagenet1k"}
    assert published - {"regnety_160_deit"} == set(SPELLINGS)


@pytest.mark.parametrize(
    "name", ["regnety_160.deit_in1k", "regnety_160", "RegNetY-160-a5fe301d", "deit_teacher"]
)
def test_the_teacher_is_found_by_its_names(name: str) -> None:
    assert resolve(name).name == "regnety_160_deit"


@each_row("prefix", ["hf_hub:", "hf-hub:", "HF-Hub:"])
@each_row(("hub_id", "name"), HUB_IDS)
def test_a_hub_id_may_say_that_it_is_one(prefix: str, hub_id: str, name: str) -> None:
    assert resolve(prefix + hub_id).name == name


def test_upstreams_torch_hub_repository_may_stand_before_a_name() -> None:
    assert resolve("facebookresearch/deit:cait_S24").name == "cait_s24_384"


@each_row(("spelling", "name"), EVERY_SPELLING)
def test_case_changes_nothing(spelling: str, name: str) -> None:
    assert {resolve(spelling.upper()).name, resolve(spelling.lower()).name} == {name}


@each_row(("spelling", "name"), EVERY_SPELLING)
def test_hyphens_and_underscores_are_one(spelling: str, name: str) -> None:
    dashed, lined = spelling.replace("_", "-"), spelling.replace("-", "_")
    assert {resolve(dashed).name, resolve(lined).name} == {name}


def test_no_spelling_has_two_meanings() -> None:
    # Every row's own spellings, each looked up in the one table that all rows share.
    claimed = [
        (normalize(spelling), spec.name)
        for spec in MODELS.values()
        for spelling in (spec.name, *spec.aliases)
    ]
    assert all(spellings()[spelling].name == name for spelling, name in claimed)


def test_the_table_of_spellings_holds_only_normalised_names() -> None:
    assert all(normalize(spelling) == spelling for spelling in spellings())


def test_every_alias_of_a_row_is_written_once() -> None:
    aliases = [normalize(alias) for spec in MODELS.values() for alias in spec.aliases]
    assert len(aliases) == len(set(aliases))


@each_row(("first", "name"), [(first, name) for first, names in FAILING.items() for name in names])
def test_a_name_without_a_model_is_told_three_that_exist_and_first_what_was_meant(
    first: str, name: str
) -> None:
    offered = suggestions(name)
    assert len(set(offered)) == 3
    assert set(offered) <= set(MODELS)
    assert first in ("-", offered[0])


@each_row(
    ("name", "reason"),
    [
        ("deit_small_384", "DeiT-S was published at 224 pixels only"),
        ("deit_b_1000ep", "of the 1000-epoch models only deit_base_distilled_384 was published"),
        ("deit_large", "that size is DeiT III's"),
        ("deit_tiny_patch16_LS", "no weights of a tiny DeiT III were published"),
        ("deit3_huge_384", "DeiT III-H was published at 224 pixels only"),
        ("deit3_base.fb_in22k", "of ImageNet-21k alone were never published"),
        ("deit_base_patch16_18x2_LS", "were never published"),
        ("cait_s36_224", "CaiT-S36 was published at 384 pixels only"),
        ("cait_m24", "no weights of CaiT-M24 were published"),
        ("S24", "name several families"),
        ("dino_deits16", "backbone of DINO"),
        ("vit_small", "plain ViT names mean other weights"),
        ("deit-small_4xb256_in1k", "mmpretrain's own training"),
        ("resmlp_12", "not in this zoo"),
        ("L60", "not in this zoo"),
        ("regnety_160.pycls_in1k", "the one RegNet here is DeiT's teacher"),
    ],
)
def test_a_name_that_means_something_else_is_told_what(name: str, reason: str) -> None:
    with pytest.raises(UnknownModelError, match=reason):
        resolve(name)


@pytest.mark.parametrize(
    ("typo", "offered"),
    [
        ("deit_smal", ["deit_small", "deit3_small", "deit3_small_384"]),
        ("diet_small", ["deit_small", "deit3_small", "deit3_small_384"]),
        (
            "deit_base_distiled_384",
            ["deit_base_distilled_384", "deit_base_distilled", "deit_small_distilled"],
        ),
        ("cait_s25_384", ["cait_s24_384", "cait_xs24_384", "cait_xxs24_384"]),
        ("cait_xxs_63_224", ["cait_xxs36_224", "cait_xxs24_224", "cait_xxs24_384"]),
    ],
)
def test_a_typo_gives_the_three_nearest(typo: str, offered: list[str]) -> None:
    assert suggestions(typo) == offered


def test_nearest_gives_as_many_as_asked() -> None:
    assert nearest("cait_s24_385", 2) == ["cait_s24_384", "cait_xs24_384"]


def test_the_message_is_one_sentence_with_the_value_the_reason_and_what_to_type() -> None:
    with pytest.raises(UnknownModelError) as caught:
        resolve("cait_S36_224")
    assert str(caught.value) == (
        "no model is named 'cait_S36_224': CaiT-S36 was published at 384 pixels only; did you mean "
        "cait_s36_384, cait_xxs36_224 or cait_s24_384? `deit-zoo list` shows all "
        f"{len(MODELS)}"  # grows with the registry
    )


@pytest.mark.parametrize("value", [None, 224, b"deit_small", ("deit_small",)])
def test_what_is_no_text_is_no_name(value: object) -> None:
    with pytest.raises(UnknownModelError, match=re.escape(f"no model is named {value!r}")):
        resolve(value)  # type: ignore[arg-type]


def test_a_row_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        MODELS["deit_small"].img_size = 384  # type: ignore[misc]


def test_img_size_is_the_one_in_the_name() -> None:
    # house.md section 11: 224 is unsaid for DeiT and DeiT III, CaiT always says its size.
    sizes = {name: re.findall(r"_(\d{3})(?:_|$)", name) for name in SPELLINGS}
    stated = {name: int(size[0]) if size else 224 for name, size in sizes.items()}
    assert {name: MODELS[name].img_size for name in SPELLINGS} == stated


# facts/models.json, gmacs: timm's benchmark tables, attention's products counted.
GMACS = """
deit_tiny 1.26, deit_small 4.61, deit_base 17.58, deit_base_384 55.54, deit_tiny_distilled 1.27,
deit_small_distilled 4.63, deit_base_distilled 17.68, deit_base_distilled_384 55.65,
cait_xxs24_224 2.53, cait_xxs24_384 9.63, cait_xxs36_224 3.77, cait_xxs36_384 14.35,
cait_xs24_384 19.28, cait_s24_224 9.35, cait_s24_384 32.17, cait_s36_384 47.99,
cait_m36_384 173.11, cait_m48_448 329.41, deit3_small 4.61, deit3_small_384 15.52,
deit3_medium 8.0, deit3_base 17.58, deit3_base_384 55.54, deit3_large 61.6,
deit3_large_384 191.21, deit3_huge 167.4, deit3_small_in21k 4.61, deit3_small_384_in21k 15.52,
deit3_medium_in21k 8.0, deit3_base_in21k 17.58, deit3_base_384_in21k 55.54,
deit3_large_in21k 61.6, deit3_large_384_in21k 191.21, deit3_huge_in21k 167.4
"""


def test_gmacs_are_those_of_timms_tables() -> None:
    gmacs = {name: MODELS[name].gmacs for name in SPELLINGS}
    assert gmacs == {name: float(figure) for name, figure in map(str.split, GMACS.split(","))}


@each_row(
    ("written", "name"),
    [
        ("S24_384.pth", "cait_s24_384"),
        ("deit_tiny_patch16_224-a1311bcf.pth", "deit_tiny"),
        ("https://dl.fbaipublicfiles.com/deit/deit_base_patch16_384-8de9b5d1.pth", "deit_base_384"),
        ("https://huggingface.co/timm/deit_small_patch16_224.fb_in1k", "deit_small"),
        ("https://huggingface.co/timm/cait_s24_224.fb_dist_in1k/tree/main", "cait_s24_224"),
        (
            "https://huggingface.co/timm/cait_xs24_384.fb_dist_in1k/resolve/main/model.safetensors",
            "cait_xs24_384",
        ),
        ("https://hf.co/facebook/deit-base-distilled-patch16-384/", "deit_base_distilled_384"),
        ("DeiT-S/16", "deit_small"),
        ("DeiT-B/16-384", "deit_base_384"),
        ("DeiT-B\N{ALEMBIC}/16\N{UPWARDS ARROW}384", "deit_base_distilled_384"),
    ],
)
def test_files_addresses_and_patch_sizes_name_a_model(written: str, name: str) -> None:
    assert resolve(written).name == name
    assert not is_path(written)


@pytest.mark.parametrize(
    "written",
    [
        "https://huggingface.co/someone/deit_small_patch16_224.fb_in1k",
        "https://huggingface.co/timm/deit_small_patch16_224.fb_in1k/resolve/v2/model.safetensors",
        "https://example.org/deit_small.pth",
        "runs/deit_s/16",
        "best.pth",  # where it is not there, an error says so, and names no model
        "deit_small_mine.safetensors",
    ],
)
def test_what_lies_elsewhere_is_a_path_and_no_name(written: str) -> None:
    assert lookup(written) is None
    assert is_path(written)


def test_a_file_that_is_here_goes_before_upstreams_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not is_path("S24_384.pth")
    (tmp_path / "S24_384.pth").touch()
    assert is_path("S24_384.pth")
