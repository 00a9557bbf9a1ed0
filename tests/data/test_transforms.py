"""Preprocessing: bit-equal to torchvision, and right or refused for every kind of image file."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from deit_zoo.data.decode import open_image, to_rgb
from deit_zoo.data.transforms import (
    EvalTransform,
    center_crop,
    normalize,
    normalized,
    resize,
)
from deit_zoo.errors import DataError, ImageSizeError
from deit_zoo.manifest import Reading
from golden import arrays, case, normals
from support.tables import each_row

# The papers' figures were measured with these (facts/teacher_and_eval.md).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

WHITE, RED, GREEN, BLUE = (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)

Save = Callable[..., Path]

READINGS: tuple[Reading, ...] = ("upright", "upstream")


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes an image under a name; the suffix is the format."""

    def saved(image: Image.Image, name: str, **options: Any) -> Path:
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return saved


def noise(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def torchvisions(size: int, crop_pct: float) -> T.Compose:
    """Upstream's evaluation transform, in the library that it is written in."""
    return T.Compose(
        [
            T.Resize(int(size / crop_pct), interpolation=T.InterpolationMode.BICUBIC),
            T.CenterCrop(size),
            T.ToTensor(),
            T.Normalize(MEAN, STD),
        ]
    )


def random_sizes(count: int, seed: int) -> list[tuple[int, int]]:
    """Widths and heights from a few pixels to 700, none tall, most of them odd in some way."""
    sides = np.random.default_rng(seed).integers(3, 700, (count, 2)).tolist()
    return [(width, height) for width, height in sides if height <= 2 * width]


ODD_SIZES = [
    (1, 1),
    (1, 2),
    (7, 1),
    (2, 31),
    (31, 2),
    (223, 225),
    (224, 224),
    (256, 256),
    (255, 256),
    (257, 256),
    (801, 256),
    (384, 385),
    (439, 437),
    (33, 500),
    (500, 33),
]


@each_row("crop_pct", [0.875, 1.0])
@each_row("size", [224, 384, 160])
@each_row("sizes", [ODD_SIZES, random_sizes(12, seed=1)])
def test_the_transform_is_bit_equal_to_torchvisions(
    size: int, crop_pct: float, sizes: list[tuple[int, int]]
) -> None:
    ours = EvalTransform(img_size=(size, size), crop_pct=crop_pct)
    theirs = torchvisions(size, crop_pct)
    images = [noise(width, height, seed) for seed, (width, height) in enumerate(sizes)]
    assert [image.size for image in images if not torch.equal(ours(image), theirs(image))] == []


def columns_first(image: Image.Image) -> Image.Image:
    """torchvision's resize to 256, one axis after the other."""
    whole = TF.resize(image, [256], T.InterpolationMode.BICUBIC)
    for size in ([image.height, whole.width], [whole.height, whole.width]):
        image = TF.resize(image, size, T.InterpolationMode.BICUBIC)
    return image


def test_tall_images_are_resized_columns_first_as_pillow_did_up_to_12() -> None:
    ours = EvalTransform(img_size=(224, 224), crop_pct=0.875)
    crop = T.CenterCrop(224)
    images = [noise(*size, seed=3) for size in ((256, 801), (300, 900), (100, 900), (640, 1400))]
    assert all(
        torch.equal(ours.pixels(image), TF.pil_to_tensor(crop(columns_first(image))))
        for image in images
    )


def test_a_resized_image_is_the_same_under_every_pillow() -> None:
    # Measured with Pillow 12.3 by one call; 13 gives others in one, of the first and the last.
    sizes = ((300, 448), (448, 300), (600, 1000))
    digest = sha256(b"".join(resize(noise(*one, seed=4), (224, 224)).tobytes() for one in sizes))
    assert digest.hexdigest() == "89fe73b49499312b4975c9fb8d7c9c4096366bb34e6b86e9383e3af3369e3ecf"


def test_no_pixels_are_resized_to_black() -> None:
    assert resize(Image.new("RGB", (7, 0)), (4, 2)).getcolors() == [(8, (0, 0, 0))]


def test_pixels_normalised_in_a_batch_are_bit_equal_to_torchvisions() -> None:
    images = [noise(width, height, seed) for seed, (width, height) in enumerate(ODD_SIZES)]
    ours = EvalTransform(img_size=(224, 224), crop_pct=0.875)
    pixels = torch.stack([ours.pixels(image) for image in images])
    theirs = torch.stack([torchvisions(224, 0.875)(image) for image in images])
    assert (pixels.dtype, pixels.is_contiguous()) == (torch.uint8, True)
    assert torch.equal(normalized(pixels), theirs)


@each_row("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV"])
def test_other_modes_are_those_of_their_rgb_image(mode: str) -> None:
    image = noise(300, 200, seed=2).convert(mode)
    ours = EvalTransform(img_size=(224, 224), crop_pct=0.875)(image)
    assert torch.equal(ours, torchvisions(224, 0.875)(image.convert("RGB")))


def golden_image(height: int, width: int) -> NDArray[np.uint8]:
    # The note of the eval_transform cases says how it is made.
    name = f"{height}x{width}"
    cells = normals(f"image/{name}", (height // 10 + 2, width // 10 + 2, 3)).astype(np.float64)
    coarse = cells.repeat(10, axis=0).repeat(10, axis=1)[:height, :width]
    fine = normals(f"image-noise/{name}", (height, width, 3)).astype(np.float64)
    return np.clip(np.rint(40 * coarse + 25 * fine + 128), 0, 255).astype(np.uint8)


GOLDEN = ["eval_transform/224_ratio0.875_300x411", "eval_transform/384_ratio1.0_500x400"]


@pytest.mark.parametrize("name", GOLDEN)
def test_the_golden_image_is_rebuilt(name: str) -> None:
    known = case(name)
    image = golden_image(**known["image"])
    assert sha256(image.tobytes()).hexdigest() == known["source_image_sha256"]


def golden_result(name: str) -> torch.Tensor:
    known = case(name)
    size = known["input_size"]
    prepare = EvalTransform(img_size=(size, size), crop_pct=known["eval_crop_ratio"])
    return prepare(Image.fromarray(golden_image(**known["image"])))


@pytest.mark.parametrize("name", GOLDEN)
def test_pixels_are_upstreams_within_a_level(name: str) -> None:
    result = golden_result(name)[:, ::7, ::5]
    levels = (result * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255
    stored = torch.from_numpy(arrays(case(name))["pixels_uint8"]).float()
    assert (levels.round() - stored).abs().max() <= 1


@pytest.mark.parametrize("name", GOLDEN)
def test_normalised_values_are_upstreams(name: str) -> None:
    result, stored = golden_result(name), arrays(case(name))
    corner = torch.from_numpy(stored["normalized_corner"]).float()
    rows = torch.from_numpy(stored["row_mean"])
    torch.testing.assert_close(result[:, :4, :4], corner, rtol=0, atol=0.02)
    torch.testing.assert_close(result.double().mean(dim=2), rows, rtol=0, atol=0.02)


# Worked out by hand: (width, height) of the image, (height, width) of the model, crop, then
# (height, width) of the smallest resize that covers, and the (top, left) of the crop.
RECTANGLES = [
    ((400, 300), (192, 256), 1.0, (192, 256), (0, 0)),
    ((300, 400), (192, 256), 1.0, (341, 256), (74, 0)),
    ((640, 480), (256, 128), 0.875, (292, 389), (18, 130)),
    ((50, 640), (128, 256), 0.875, (3737, 292), (1804, 18)),
    ((3, 2), (32, 64), 1.0, (42, 64), (5, 0)),
]


@pytest.mark.parametrize(("image_size", "img_size", "crop_pct", "resized", "corner"), RECTANGLES)
def test_a_rectangle_is_cut_from_the_smallest_resize_that_covers_it(
    image_size: tuple[int, int],
    img_size: tuple[int, int],
    crop_pct: float,
    resized: tuple[int, int],
    corner: tuple[int, int],
) -> None:
    image = noise(*image_size, seed=3)
    bigger = TF.resize(image, resized, interpolation=T.InterpolationMode.BICUBIC)
    expected = TF.normalize(TF.to_tensor(TF.crop(bigger, *corner, *img_size)), MEAN, STD)
    result = EvalTransform(img_size=img_size, crop_pct=crop_pct)(image)
    assert torch.equal(result, expected)


def test_the_result_is_a_contiguous_float32_tensor() -> None:
    result = EvalTransform(img_size=(32, 48), crop_pct=1.0)(noise(50, 60, seed=4))
    assert (result.shape, result.dtype, result.is_contiguous()) == (
        (3, 32, 48),
        torch.float32,
        True,
    )


def test_one_grey_pixel_fills_the_image() -> None:
    result = EvalTransform(img_size=(32, 32), crop_pct=0.875)(Image.new("RGB", (1, 1), (51,) * 3))
    # 51/255 is 0.2: (0.2 - mean) / std of each channel.
    expected = torch.tensor([-1.244541, -1.142857, -0.915556])[:, None, None].expand(3, 32, 32)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


def test_the_crop_rounds_half_to_even_as_torchvision_does() -> None:
    # 5 left over on each side: 2.5 rounds to 2; 7 left over: 3.5 rounds to 4.
    ramp = Image.fromarray(np.arange(15 * 17, dtype=np.uint8).reshape(15, 17))
    assert center_crop(ramp, (8, 12)).getpixel((0, 0)) == 4 * 17 + 2


def test_normalize_works_in_place() -> None:
    images = torch.tensor(MEAN)[:, None, None].expand(3, 2, 2).clone()
    assert normalize(images) is images
    assert images.tolist() == torch.zeros(3, 2, 2).tolist()


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1)])
def test_an_extreme_shape_is_refused_before_it_fills_the_memory(size: tuple[int, int]) -> None:
    with pytest.raises(DataError) as caught:
        EvalTransform(img_size=(224, 224), crop_pct=0.875)(Image.new("RGB", size))
    width, height = (256, 25_600_000) if size[0] == 1 else (25_600_000, 256)
    assert str(caught.value) == (
        f"an image of {size[0]}x{size[1]} pixels would be resized to {width}x{height}; crop it to "
        "a less extreme shape first, or set DEIT_ZOO_MAX_PIXELS to a larger number"
    )


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(DataError, match=r"^an image of 0x5 pixels shows nothing$"):
        EvalTransform(img_size=(224, 224), crop_pct=0.875)(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("crop_pct", [0.0, -1.0, 1.01, 87.5, float("nan")])
def test_a_crop_that_is_no_share_is_refused(crop_pct: float) -> None:
    with pytest.raises(ImageSizeError, match=f"^crop_pct is {crop_pct}; give a share above 0 and"):
        EvalTransform(img_size=(224, 224), crop_pct=crop_pct)


def one_colour(mode: str, colour: Any) -> Image.Image:
    return Image.new(mode, (8, 8), colour)


def palette(*colours: tuple[int, int, int]) -> Image.Image:
    """An image of the last of these colours."""
    image = Image.new("P", (8, 8), len(colours) - 1)
    image.putpalette([level for colour in colours for level in colour])
    return image


def sixteen_bits(value: int, order: str = "<") -> Image.Image:
    pixels = np.full((8, 8), value, dtype=f"{order}u2").tobytes()
    return Image.frombytes("I;16" if order == "<" else "I;16B", (8, 8), pixels)


# The file, its image, how it is saved, and the colour that a person sees, over white.
KINDS: dict[str, tuple[Image.Image, dict[str, Any], tuple[int, int, int]]] = {
    "rgb.png": (one_colour("RGB", (10, 20, 30)), {}, (10, 20, 30)),
    "rgb_keyed.png": (one_colour("RGB", (10, 20, 30)), {"transparency": (10, 20, 30)}, WHITE),
    "rgba.png": (one_colour("RGBA", (255, 0, 0, 255)), {}, RED),
    "rgba_clear.png": (one_colour("RGBA", (255, 0, 0, 0)), {}, WHITE),
    "rgba_half.png": (one_colour("RGBA", (255, 0, 0, 51)), {}, (255, 204, 204)),
    "grey.png": (one_colour("L", 77), {}, (77, 77, 77)),
    "grey_keyed.png": (one_colour("L", 77), {"transparency": 77}, WHITE),
    "grey.jpg": (one_colour("L", 77), {"quality": 100}, (77, 77, 77)),
    "grey_alpha.png": (one_colour("LA", (77, 255)), {}, (77, 77, 77)),
    "grey_clear.png": (one_colour("LA", (77, 0)), {}, WHITE),
    "bit_black.png": (one_colour("1", 0), {}, (0, 0, 0)),
    "bit_white.png": (one_colour("1", 1), {}, WHITE),
    "bit.tiff": (one_colour("1", 1), {"compression": "group4"}, WHITE),
    "palette.png": (palette(RED, (10, 20, 30)), {}, (10, 20, 30)),
    "palette_keyed.png": (palette(RED, BLUE), {"transparency": 1}, WHITE),
    "palette_other_keyed.png": (palette(RED, BLUE), {"transparency": 0}, BLUE),
    "palette_half.png": (palette(RED, BLUE), {"transparency": b"\xff\x33"}, (204, 204, 255)),
    "palette.gif": (palette(RED, (10, 20, 30)), {}, (10, 20, 30)),
    "palette_keyed.gif": (palette(RED, BLUE), {"transparency": 1}, WHITE),
    "animation.gif": (
        one_colour("RGB", RED),
        {"save_all": True, "append_images": [one_colour("RGB", GREEN)]},
        RED,
    ),
    "lossless.webp": (one_colour("RGB", (10, 20, 30)), {"lossless": True}, (10, 20, 30)),
    "clear.webp": (one_colour("RGBA", (9, 9, 9, 0)), {"lossless": True, "exact": True}, WHITE),
    "cmyk.jpg": (one_colour("CMYK", (255, 0, 0, 0)), {"quality": 100}, (0, 255, 255)),
    "cmyk_black.jpg": (one_colour("CMYK", (0, 0, 0, 255)), {"quality": 100}, (0, 0, 0)),
    "cmyk.tiff": (one_colour("CMYK", (0, 255, 255, 0)), {}, RED),
    "sixteen.png": (sixteen_bits(0xABCD), {}, (0xAB, 0xAB, 0xAB)),
    "sixteen_dark.png": (sixteen_bits(0x00FF), {}, (0, 0, 0)),
    "sixteen_bright.png": (sixteen_bits(0xFFFF), {}, WHITE),
    "sixteen.tiff": (sixteen_bits(0xABCD), {}, (0xAB, 0xAB, 0xAB)),
    "sixteen_big_endian.tiff": (sixteen_bits(0xABCD, ">"), {}, (0xAB, 0xAB, 0xAB)),
    "sixteen.pgm": (sixteen_bits(0xABCD), {}, (0xAB, 0xAB, 0xAB)),
    "plain.bmp": (one_colour("RGB", (10, 20, 30)), {}, (10, 20, 30)),
    "plain.ppm": (one_colour("RGB", (10, 20, 30)), {}, (10, 20, 30)),
}


@each_row("name", KINDS)
def test_a_photo_is_what_a_person_sees(name: str, save: Save) -> None:
    image, options, colour = KINDS[name]
    photo = open_image(save(image, name, **options), reading="upright")
    assert (photo.mode, photo.getpixel((0, 0)), photo.getpixel((7, 7))) == ("RGB", colour, colour)


@each_row("name", KINDS)
def test_evaluation_reads_every_kind_without_a_warning(name: str, save: Save) -> None:
    image, options, _ = KINDS[name]
    reread = open_image(save(image, name, **options), reading="upstream")
    assert (reread.mode, reread.size) == ("RGB", (8, 8))


def test_evaluation_ignores_alpha_as_upstream_does(save: Save) -> None:
    path = save(one_colour("RGBA", (255, 0, 0, 0)), "clear.png")
    assert open_image(path, reading="upstream").getpixel((0, 0)) == RED


def test_encoded_bytes_are_an_image_too(save: Save) -> None:
    path = save(one_colour("RGB", (10, 20, 30)), "a.png")
    assert open_image(path.read_bytes(), reading="upright").getpixel((3, 3)) == (10, 20, 30)


def test_the_suffix_is_not_believed(save: Save) -> None:
    path = save(one_colour("RGB", (10, 20, 30)), "a.jpg", format="PNG")
    assert open_image(path, reading="upright").getpixel((3, 3)) == (10, 20, 30)


def test_an_rgb_image_is_not_copied() -> None:
    image = one_colour("RGB", RED)
    assert to_rgb(image) is image


# What a camera held at each of the eight orientations of the EXIF standard stores of one scene.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def rotated(save: Save, orientation: int) -> Path:
    """Red, green above blue, white; 96 wide and 64 high; stored turned, with a note that it is."""
    scene = Image.new("RGB", (96, 64), WHITE)
    for colour, corner in ((RED, (0, 0)), (GREEN, (48, 0)), (BLUE, (0, 32))):
        scene.paste(colour, (*corner, corner[0] + 48, corner[1] + 32))
    turn = STORED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = scene if turn is None else scene.transpose(turn)
    return save(stored, "photo.jpg", quality=100, subsampling=0, exif=exif)


@each_row("orientation", STORED)
def test_a_photo_is_upright(orientation: int, save: Save) -> None:
    photo = open_image(rotated(save, orientation), reading="upright")
    seen = [photo.getpixel(place) for place in ((24, 16), (72, 16), (24, 48), (72, 48))]
    assert photo.size == (96, 64)
    assert np.abs(np.subtract(seen, (RED, GREEN, BLUE, WHITE))).max() <= 2


def test_evaluation_ignores_the_orientation_as_upstream_does(save: Save) -> None:
    assert open_image(rotated(save, 6), reading="upstream").size == (64, 96)


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0not a header", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"],
    ids=["no header", "cut short"],
)
@pytest.mark.parametrize("reading", READINGS)
def test_broken_exif_does_not_spoil_a_photo(reading: Reading, exif: bytes, save: Save) -> None:
    path = save(one_colour("L", 77), "a.jpg", quality=100, exif=exif)
    assert open_image(path, reading=reading).getpixel((0, 0)) == (77, 77, 77)


def refused(source: Path, reason: str) -> None:
    """Both readings refuse the file in one sentence that names it."""
    for reading in READINGS:
        with pytest.raises(DataError) as caught:
            open_image(source, reading=reading)
        assert str(caught.value) == f"{source} {reason}"


UNREADABLE = "cannot be read as an image ({}); give a whole JPEG, PNG, WebP, GIF, BMP or TIFF file"


@pytest.mark.parametrize("suffix", ["png", "gif", "webp", "tiff"])
def test_a_truncated_file_is_refused_by_name(suffix: str, save: Save) -> None:
    path = save(noise(64, 64, seed=5), f"cut.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for reading in READINGS:
        with pytest.raises(DataError) as caught:
            open_image(path, reading=reading)
        assert str(caught.value).startswith(f"{path} cannot be read as an image (")


def test_a_truncated_jpeg_is_refused_by_name(save: Save) -> None:
    path = save(noise(64, 64, seed=5), "cut.jpg")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(
        DataError, match=r"cut\.jpg cannot be read as an image \(image file is trunc"
    ):
        open_image(path, reading="upright")


def test_an_empty_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", UNREADABLE.format("its format is not known"))


def test_a_text_named_as_a_photo_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("milk, eggs, flour")
    refused(tmp_path / "notes.jpg", UNREADABLE.format("its format is not known"))


def test_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder; give an image file")


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    refused(tmp_path / "none.png", "does not exist; give an image file, a folder or a URL")


def test_broken_bytes_are_refused_by_the_name_they_were_given() -> None:
    with pytest.raises(DataError, match=r"^the picture from the web cannot be read as an image"):
        open_image(b"<html>", "the picture from the web", reading="upright")


def test_broken_bytes_without_a_name_are_not_printed() -> None:
    with pytest.raises(DataError) as caught:
        open_image(b"\x89PNG", reading="upright")
    assert str(caught.value) == "the given bytes " + UNREADABLE.format("its format is not known")


def png_of_claimed_size(path: Path, width: int, height: int) -> Path:
    """A PNG of a hundred bytes whose header says it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


def test_a_decompression_bomb_is_refused_by_name(tmp_path: Path) -> None:
    path = png_of_claimed_size(tmp_path / "bomb.png", 30_000, 30_000)
    refused(
        path,
        "claims over 178,956,970 pixels; give a smaller image, or set DEIT_ZOO_MAX_PIXELS to a "
        "larger number if you trust it",
    )


def test_a_large_photo_is_no_bomb_and_no_warning(tmp_path: Path) -> None:
    # Pillow warns from 89 million pixels on; here it goes on to find that they are not there.
    path = png_of_claimed_size(tmp_path / "large.png", 10_000, 10_000)
    refused(path, UNREADABLE.format("image file is truncated (0 bytes not processed)"))


def test_floating_point_pixels_are_refused_by_name(save: Save) -> None:
    path = save(one_colour("F", 0.5), "depth.tiff")
    with pytest.raises(DataError) as caught:
        open_image(path, reading="upright")
    assert str(caught.value) == (
        f"{path}: 32-bit float pixels have no defined range; save the image with 8 bits"
    )
