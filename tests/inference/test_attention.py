"""Attention maps: against the paper's formulas on the weights themselves, and as a picture."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import deit_zoo
from deit_zoo.data.digits import digits
from deit_zoo.errors import DataError, ImageSizeError, MissingExtraError, ZooError
from deit_zoo.inference.attention import AttentionMap, rollout
from deit_zoo.models.model import ZooModel
from support.tables import each_row

PLAIN, DISTILLED = "deit_pico_digits", "deit_pico_distilled_digits"
HEADS, DEPTH, PATCH = 4, 4, 4
HEAD_NAMES = ("head 0", "head 1", "head 2", "head 3")


@pytest.fixture(scope="module")
def digit() -> Image.Image:
    """A handwritten 7."""
    return next(image for image, label in digits() if label == "7")


def noise(width: int, height: int) -> Image.Image:
    """An image of random pixels."""
    values = torch.randint(256, (height * width * 3,)).tolist()
    return Image.frombytes("RGB", (width, height), bytes(values))


def norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def softmax_map(query: Tensor, key: Tensor) -> Tensor:
    """(H, rows, T) from queries and keys (rows, D) and (T, D), head by head."""
    rows = []
    for q, k in zip(query.chunk(HEADS, dim=-1), key.chunk(HEADS, dim=-1), strict=True):
        scores = (q @ k.T / q.shape[-1] ** 0.5).exp()
        rows.append(scores / scores.sum(-1, keepdim=True))
    return torch.stack(rows)


def deit_by_hand(model: ZooModel, pixels: Tensor) -> list[Tensor]:
    """Every layer's attention (H, T, T) of a pico DeiT from its weights alone, in float64."""
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    height, width = pixels.shape[1] // PATCH, pixels.shape[2] // PATCH
    cut = pixels.double().reshape(3, height, PATCH, width, PATCH).permute(1, 3, 0, 2, 4)
    patches = cut.reshape(height * width, -1) @ weights["patch_embed.proj.weight"].flatten(1).T
    tokens = [weights[name][0] for name in ("cls_token", "dist_token") if name in weights]
    x = torch.cat((*tokens, patches + weights["patch_embed.proj.bias"])) + weights["pos_embed"][0]
    maps = []
    for number in range(DEPTH):
        block = f"blocks.{number}"
        qkv = linear(norm(x, weights, f"{block}.norm1"), weights, f"{block}.attn.qkv")
        query, key, value = qkv.chunk(3, dim=-1)
        maps.append(softmax_map(query, key))
        mixed = [a @ v for a, v in zip(maps[-1], value.chunk(HEADS, dim=-1), strict=True)]
        x = x + linear(torch.cat(mixed, dim=-1), weights, f"{block}.attn.proj")
        hidden = linear(norm(x, weights, f"{block}.norm2"), weights, f"{block}.mlp.fc1")
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        x = x + linear(hidden, weights, f"{block}.mlp.fc2")
    return maps


@each_row("name", [PLAIN, DISTILLED])
@each_row("img_size", [(16, 16), (8, 24)])
@each_row(("layer", "number"), [(0, 0), (1, 1), (-1, 3)])
def test_a_map_is_the_papers_softmax_on_the_weights(
    digit: Image.Image, name: str, img_size: tuple[int, int], layer: int, number: int
) -> None:
    model = deit_zoo.create(name, pretrained=True, img_size=img_size)
    prefix = 2 if name == DISTILLED else 1
    found = deit_zoo.attention_map(digit, model, layer=layer)
    rows = deit_by_hand(model, deit_zoo.transform(model)(digit))[number][:, :prefix].transpose(0, 1)
    grid = (img_size[0] // PATCH, img_size[1] // PATCH)
    assert (found.layer, found.maps.shape) == (number, (prefix, HEADS, *grid))
    expected = rows[..., prefix:].reshape(prefix, HEADS, *grid)
    torch.testing.assert_close(found.maps.double(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.on_tokens.double(), rows[..., :prefix], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [PLAIN, DISTILLED])
@pytest.mark.parametrize("layer", [2, -1])
def test_rollout_multiplies_every_layer_up_to_the_one_asked_for(
    digit: Image.Image, name: str, layer: int
) -> None:
    model = deit_zoo.create(name, pretrained=True)
    prefix = 2 if name == DISTILLED else 1
    flow = torch.eye(prefix + 16, dtype=torch.float64)
    for heads in deit_by_hand(model, deit_zoo.transform(model)(digit))[: layer % DEPTH + 1]:
        flow = (heads.mean(dim=0) + torch.eye(prefix + 16)) / 2 @ flow
    found = deit_zoo.attention_map(digit, model, layer=layer, method="rollout")
    assert found.panels == ("rollout",)
    maps = found.maps[:, 0].flatten(1).double()
    torch.testing.assert_close(maps, flow[:prefix, prefix:], rtol=1e-4, atol=1e-6)


def test_rollout_puts_the_later_layer_first() -> None:
    # By hand: 0.5 A + 0.5 I is [[3/4, 1/4], [0, 1]] and then [[1/2, 1/2], [1/2, 1/2]].
    first = torch.tensor([[[0.5, 0.5], [0.0, 1.0]]])
    second = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    assert rollout([first, second], 1).tolist() == [[0.375, 0.625]]


def test_rollout_averages_heads() -> None:
    heads = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    assert rollout([heads], 1).tolist() == [[0.75, 0.25]]


def test_rollout_keeps_the_class_token_out_of_self_attention() -> None:
    # By hand, two patches: [[1, 0], [1/2, 1/2]] among them, then (0.6, 0.15, 0.25) over them.
    patches = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    asking = torch.tensor([[[0.2, 0.3, 0.5]]])
    torch.testing.assert_close(rollout([patches, asking], 1), torch.tensor([[0.6, 0.275, 0.125]]))


@pytest.fixture
def cait() -> ZooModel:
    """CaiT on 2 x 3 patches, with weights that make its attention uneven."""
    model = deit_zoo.create("cait_xxs24_224", img_size=(32, 48)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith((".q.weight", ".k.weight")):
                weight.mul_(10)
    return model


def test_a_map_of_cait_is_class_attention_on_the_weights(cait: Any, digit: Image.Image) -> None:
    found = deit_zoo.attention_map(digit, cait, layer=-2)
    pixels = deit_zoo.transform(cait)(digit)
    with torch.no_grad():
        [patches] = cait.get_intermediate_layers(pixels[None], n=1, norm=False)
    weights = {name: tensor.double() for name, tensor in cait.state_dict().items()}
    block = "blocks_token_only.0"
    x = torch.cat((weights["cls_token"][0], patches[0].double()))
    x = norm(x, weights, f"{block}.norm1")
    query, key = (linear(x, weights, f"{block}.attn.{name}") for name in ("q", "k"))
    rows = softmax_map(query[:1], key)[:, 0]
    assert (found.layer, found.tokens, found.maps.shape) == (24, ("class",), (1, 4, 2, 3))
    expected = rows[None, :, 1:].reshape(1, 4, 2, 3)
    torch.testing.assert_close(found.maps.double(), expected, rtol=1e-3, atol=1e-5)
    assert rows.std() > 0.05, "attention is even, so nothing was compared"


@pytest.mark.parametrize("method", ["all", "heads", "mean", "rollout"])
@pytest.mark.parametrize("name", [PLAIN, DISTILLED, "cait"])
def test_patches_and_tokens_together_get_all_attention(
    cait: ZooModel, digit: Image.Image, name: str, method: Any
) -> None:
    model = cait if name == "cait" else deit_zoo.create(name, pretrained=True)
    found = deit_zoo.attention_map(digit, model, method=method)
    sums = found.maps.sum(dim=(2, 3)) + found.on_tokens.sum(dim=2)
    torch.testing.assert_close(sums, torch.ones(len(found.tokens), len(found.panels)))
    assert found.maps.min() >= 0


@pytest.mark.parametrize(
    ("method", "panels"),
    [
        ("heads", HEAD_NAMES),
        ("mean", ("mean",)),
        ("rollout", ("rollout",)),
        ("all", (*HEAD_NAMES, "mean", "rollout")),
    ],
)
def test_a_method_says_which_maps_it_gives(
    digit: Image.Image, method: Any, panels: tuple[str, ...]
) -> None:
    found = deit_zoo.attention_map(digit, DISTILLED, method=method)
    assert (found.tokens, found.panels) == (("class", "distillation"), panels)
    assert (found.model, found.maps.dtype) == (DISTILLED, torch.float32)
    assert found.maps.shape == (2, len(panels), 4, 4)


def test_the_mean_is_that_of_the_heads(digit: Image.Image) -> None:
    found = deit_zoo.attention_map(digit, DISTILLED, method="all").maps
    torch.testing.assert_close(found[:, 4], sum(found[:, head] for head in range(4)) / 4)


def test_an_image_size_resamples_the_positions(digit: Image.Image) -> None:
    found = deit_zoo.attention_map(digit, PLAIN, img_size=(32, 48))
    model = deit_zoo.create(PLAIN, pretrained=True, img_size=(32, 48))
    assert found.maps.shape == (1, 4, 8, 12)
    assert torch.equal(found.maps, deit_zoo.attention_map(digit, model, img_size=(32, 48)).maps)


def test_the_crop_is_what_the_model_saw() -> None:
    # 32 / 0.875 is 36, which the image has already: nothing is resized, only the centre is cut.
    image = noise(72, 36)
    model = deit_zoo.create("deit_tiny", img_size=32).eval()
    found = deit_zoo.attention_map(image, model).image
    assert (found.mode, found.size) == ("RGB", (32, 32))
    assert found.tobytes() == image.crop((20, 2, 52, 34)).tobytes()


def test_the_crop_of_a_rectangular_model_is_not_turned() -> None:
    model = deit_zoo.create("deit_tiny", img_size=(32, 64)).eval()
    found = deit_zoo.attention_map(noise(73, 36), model).image
    assert found.size == (64, 32)


def test_an_image_is_a_path_or_bytes_or_an_image(digit: Image.Image, tmp_path: Path) -> None:
    file = tmp_path / "7.png"
    digit.save(file)
    expected = deit_zoo.attention_map(digit, PLAIN).maps
    for image in (file, str(file), file.read_bytes()):
        assert torch.equal(deit_zoo.attention_map(image, PLAIN).maps, expected)


def test_a_model_stays_in_train_mode_and_its_drop_path_is_out_of_it(digit: Image.Image) -> None:
    model = deit_zoo.create(PLAIN, pretrained=True, drop_path_rate=0.9).train()
    found = deit_zoo.attention_map(digit, model)
    assert model.training
    assert torch.equal(found.maps, deit_zoo.attention_map(digit, PLAIN).maps)


def test_a_model_in_half_precision_gives_maps_in_single(digit: Image.Image) -> None:
    model = deit_zoo.create(PLAIN, pretrained=True, dtype=torch.bfloat16)
    found = deit_zoo.attention_map(digit, model, method="all").maps
    assert found.dtype == torch.float32
    whole = deit_zoo.attention_map(digit, PLAIN, method="all").maps
    torch.testing.assert_close(found, whole, rtol=0.0, atol=0.05)


def broken(model: ZooModel) -> ZooModel:
    """A model with a weight that is no number."""
    with torch.no_grad():
        model.get_parameter("blocks.0.norm1.weight").fill_(float("nan"))
    return model


@each_row(
    ("call", "kind", "sentence"),
    [
        (
            lambda: deit_zoo.attention_map(b"", "convnet_pico_digits"),
            ZooError,
            "convnet_pico_digits is a convnet and has no attention; give a deit or cait model, "
            "such as deit_small or cait_s24_224",
        ),
        (
            lambda: deit_zoo.attention_map(b"", deit_zoo.create("convnet_pico_digits")),
            ZooError,
            "convnet_pico_digits is a convnet and has no attention; give a deit or cait model, "
            "such as deit_small or cait_s24_224",
        ),
        (
            # Its weights are not on this machine: it is refused before they are asked for.
            lambda: deit_zoo.attention_map(b"", "regnety_160"),
            ZooError,
            "regnety_160_deit is a convnet and has no attention; give a deit or cait model, such "
            "as deit_small or cait_s24_224",
        ),
        (
            lambda: deit_zoo.attention_map(noise(16, 16), PLAIN, layer=4),
            ZooError,
            "layer is 4, but deit_pico_digits has 4 layers; give a number from 0 to 3, or from -4 "
            "to -1 to count from the last",
        ),
        (
            lambda: deit_zoo.attention_map(
                noise(16, 16), deit_zoo.create("cait_xxs24_224", img_size=16), layer=-3
            ),
            ZooError,
            "layer is -3, but in cait_xxs24_224 the class token enters with layer 24; give a "
            "number from 24 to 25, or from -2 to -1",
        ),
        (
            lambda: deit_zoo.attention_map(noise(16, 16), PLAIN, method="max"),  # type: ignore[arg-type]
            ZooError,
            "method is 'max'; give one of all, heads, mean, rollout",
        ),
        (
            lambda: deit_zoo.attention_map(noise(16, 16), deit_zoo.create(PLAIN), img_size=32),
            ImageSizeError,
            "img_size is 32, but the model is built for 16x16 pixels; leave img_size out, or build "
            "the model with deit_zoo.create(name, img_size=)",
        ),
        (
            lambda: deit_zoo.attention_map(
                noise(16, 16), deit_zoo.optimize(deit_zoo.create(PLAIN), compile=False)
            ),
            ZooError,
            "an optimized copy forms no attention; give the model that it was made of",
        ),
        (
            lambda: deit_zoo.attention_map(noise(16, 16), PLAIN).save("nowhere/a.png"),
            DataError,
            "there is no folder nowhere; make it, or give another name",
        ),
        (
            lambda: deit_zoo.attention_map(noise(16, 16), PLAIN).save("a.svg"),
            DataError,
            "a.svg does not end in .png; give FILE.png",
        ),
        (
            lambda: deit_zoo.attention_map("nowhere.png", PLAIN),
            DataError,
            "nowhere.png does not exist; give an image file, a folder or a URL",
        ),
        (
            lambda: deit_zoo.attention_map(noise(16, 16), broken(deit_zoo.create(PLAIN))),
            ZooError,
            "the attention of deit_pico_digits is not finite; its weights are broken",
        ),
    ],
)
def test_an_error_is_one_sentence(
    call: Callable[[], Any], kind: type[ZooError], sentence: str
) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert (type(caught.value), str(caught.value)) == (kind, sentence)


@pytest.fixture
def small() -> AttentionMap:
    """One map of 2 x 2 patches over an image that is red on the left and blue on the right."""
    image = Image.new("RGB", (16, 16), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 8, 16))
    return AttentionMap(
        model=PLAIN,
        layer=3,
        tokens=("class",),
        panels=("mean",),
        maps=torch.tensor([[[[0.125, 0.5], [0.25, 0.0]]]]),
        on_tokens=torch.tensor([[[0.125]]]),
        image=image,
    )


def test_the_figures_of_a_map(small: AttentionMap) -> None:
    # Entropy by hand: 1/2 ln 2 + 1/4 ln 4 + 2 x 1/8 ln 8 = 7/4 ln 2.
    assert small.to_dict() == {
        "model": PLAIN,
        "layer": 3,
        "img_size": [16, 16],
        "grid": [2, 2],
        "maps": [
            {
                "token": "class",
                "map": "mean",
                "entropy": pytest.approx(1.2130076, abs=1e-6),
                "on_patches": 0.875,
                "largest": {"row": 0, "column": 1, "share": 0.5},
            }
        ],
    }


def drawn(attention: AttentionMap, file: Path, **how: Any) -> Image.Image:
    attention.save(file, **how)
    with Image.open(file) as image:
        assert image.format == "PNG"
        return image.convert("RGB")


def panels_of(picture: Image.Image, colour: tuple[int, int, int]) -> list[Image.Image]:
    """The image's panel, which begins in this colour, and the map's half a picture to the right."""
    places = ((x, y) for y in range(picture.height) for x in range(picture.width))
    left, top = next(place for place in places if picture.getpixel(place) == colour)
    row = [picture.getpixel((x, top + 1)) for x in range(left, picture.width // 2)]
    side = row.index((255, 255, 255))
    half = picture.width // 2
    return [picture.crop((x, top, x + side, top + side)) for x in (left, left + half)]


def test_a_picture_shows_the_image_and_beside_it_the_map(
    small: AttentionMap, tmp_path: Path
) -> None:
    image, panel = panels_of(drawn(small, tmp_path / "a.png"), (255, 0, 0))
    assert image.width >= 195  # 1.65 inches of 120 dots
    quarter = image.width // 4
    assert image.getpixel((quarter, 2 * quarter)) == (255, 0, 0)
    assert image.getpixel((3 * quarter, 2 * quarter)) == (0, 0, 255)
    quarters = {
        (row, column): panel.getpixel((quarter + 2 * quarter * column, quarter + 2 * quarter * row))
        for row in (0, 1)
        for column in (0, 1)
    }
    # Viridis: green grows from 0 to the largest share, which is yellow.
    assert sorted(quarters, key=lambda place: quarters[place][1]) == [
        (1, 1),
        (0, 0),
        (1, 0),
        (0, 1),
    ]
    red, green, blue = quarters[0, 1]
    assert min(red, green) > 150 > 100 > blue
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_patch_is_one_flat_square(small: AttentionMap, tmp_path: Path) -> None:
    plain = replace(small, image=Image.new("RGB", (16, 16), (10, 200, 30)))
    _, panel = panels_of(drawn(plain, tmp_path / "a.png"), (10, 200, 30))
    half = panel.width // 2
    square = panel.crop((half + 4, 4, panel.width - 4, half - 4))
    assert len(square.getcolors()) == 1


def test_a_picture_has_a_row_for_each_token(digit: Image.Image, tmp_path: Path) -> None:
    plain = drawn(deit_zoo.attention_map(digit, PLAIN, method="all"), tmp_path / "a.png")
    both = drawn(deit_zoo.attention_map(digit, DISTILLED, method="all"), tmp_path / "b.png")
    assert (plain.size, both.size) == ((1554, 370), (1554, 693))
    assert min(len(picture.getcolors(1 << 24)) for picture in (plain, both)) > 500


def test_many_heads_break_into_lines_and_nothing_is_cut(
    small: AttentionMap, tmp_path: Path
) -> None:
    names = tuple(f"head {head}" for head in range(16))
    many = replace(
        small, panels=names, maps=small.maps.expand(1, 16, 2, 2), on_tokens=torch.zeros(1, 16, 1)
    )
    picture = drawn(many, tmp_path / "a.png")
    assert picture.size == (1332, 915)
    assert has_white_edges(picture)


@pytest.mark.parametrize("size", [(16, 256), (256, 16), (17, 16)], ids=str)
def test_an_image_of_any_shape_is_drawn_whole(
    small: AttentionMap, tmp_path: Path, size: tuple[int, int]
) -> None:
    picture = drawn(replace(small, image=Image.new("RGB", size)), tmp_path / "a.png")
    assert has_white_edges(picture)


def has_white_edges(picture: Image.Image) -> bool:
    """Whether nothing comes within 6 dots of a picture's end."""
    width, height = picture.size
    edges = [(0, 0, width, 6), (0, height - 6, width, height), (0, 0, 6, height)]
    edges.append((width - 6, 0, width, height))
    return all({c for _, c in picture.crop(e).getcolors()} == {(255, 255, 255)} for e in edges)


def test_a_long_title_takes_more_lines(small: AttentionMap, tmp_path: Path) -> None:
    short = drawn(small, tmp_path / "a.png", title="short")
    long = drawn(small, tmp_path / "b.png", title=r"a title of $\frac{ words $ " * 5)
    assert long.height > short.height
    assert has_white_edges(long)


def test_a_map_without_any_attention_is_drawn(small: AttentionMap, tmp_path: Path) -> None:
    nothing = replace(small, maps=torch.zeros(1, 1, 2, 2), on_tokens=torch.ones(1, 1, 1))
    assert drawn(nothing, tmp_path / "a.png").size == (672, 370)


def test_a_picture_without_matplotlib_names_the_extra(
    small: AttentionMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError) as caught:
        small.save(tmp_path / "a.png")
    assert str(caught.value) == "a picture needs matplotlib; type: pip install 'deit_zoo[train]'"
