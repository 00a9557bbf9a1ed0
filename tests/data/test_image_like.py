"""One image, given in every way that a program has one: the same tensor, or a sentence."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from starlette.datastructures import UploadFile
from torch import Tensor

import deit_zoo
from deit_zoo.data.digits import digits
from deit_zoo.data.image_like import ImageLike
from deit_zoo.errors import DataError
from deit_zoo.models.model import ZooModel
from support.tables import each_row

IMAGE = next(image for image, label in digits() if label == "7").convert("RGB")
ARRAY = np.asarray(IMAGE)
TENSOR = torch.from_numpy(ARRAY.transpose(2, 0, 1).copy())


def test_a_type_checker_reads_what_an_image_is() -> None:
    assert {str, bytes, Image.Image, torch.Tensor} <= set(get_args(ImageLike))


@pytest.fixture(scope="module")
def model() -> ZooModel:
    return deit_zoo.create("deit_pico_digits", pretrained=True)


@pytest.fixture(scope="module")
def prepared(model: ZooModel) -> Tensor:
    return deit_zoo.transform(model)(IMAGE)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    IMAGE.save(tmp_path / "7.png")
    return tmp_path / "7.png"


def at_its_end(file: Path) -> io.BytesIO:
    stream = io.BytesIO(file.read_bytes())
    stream.read()
    return stream


KINDS: dict[str, Callable[[Path], Any]] = {
    "path": lambda file: file,
    "str": str,
    "bytes": lambda file: file.read_bytes(),
    "bytearray": lambda file: bytearray(file.read_bytes()),
    "memoryview": lambda file: memoryview(file.read_bytes()),
    "BytesIO": lambda file: io.BytesIO(file.read_bytes()),
    "a file that was read": at_its_end,
    "array": lambda file: ARRAY,
    "array that is not contiguous": lambda file: ARRAY[::-1][::-1],
    "array with alpha": lambda file: np.dstack((ARRAY, np.full((8, 8), 255, np.uint8))),
    "array of 16 bits": lambda file: ARRAY.astype(np.uint16) * 257,
    "array of floats": lambda file: (ARRAY / 255).astype(np.float16),
    "tensor": lambda file: TENSOR,
    "tensor of floats": lambda file: TENSOR / 255,
    "tensor of bfloat16": lambda file: (TENSOR / 255).bfloat16(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_is_read_as_its_pixels_are(
    kind: str, model: ZooModel, prepared: Tensor, file: Path
) -> None:
    give = KINDS[kind]
    assert torch.equal(deit_zoo.transform(model)(give(file)), prepared)
    [[best]] = deit_zoo.classify(give(file), model, topk=1)
    assert best.label == "7"
    maps = deit_zoo.attention_map(give(file), model).maps
    assert torch.equal(maps, deit_zoo.attention_map(IMAGE, model).maps)


def test_an_open_file_is_read(model: ZooModel, prepared: Tensor, file: Path) -> None:
    with file.open("rb") as stream:
        assert torch.equal(deit_zoo.transform(model)(stream), prepared)


def test_a_grey_array_is_read_as_grey(model: ZooModel, prepared: Tensor) -> None:
    for given in (ARRAY[:, :, 0], ARRAY[:, :, :1], TENSOR[0], TENSOR[:1]):
        assert torch.equal(deit_zoo.transform(model)(given), prepared)


def test_a_batch_of_pixels_is_many_images(model: ZooModel) -> None:
    for batch in (np.stack([ARRAY] * 3), torch.stack([TENSOR] * 3)):
        assert [best.label for [best] in deit_zoo.classify(batch, model, topk=1)] == ["7"] * 3


def test_a_column_of_paths_is_many_images(model: ZooModel, file: Path) -> None:
    pandas = pytest.importorskip("pandas")
    paths = [str(file)] * 3
    for column in (np.array(paths), pandas.Series(paths), np.array(paths, object)):
        assert [best.label for [best] in deit_zoo.classify(column, model, topk=1)] == ["7"] * 3
    with pytest.raises(DataError, match=r"^the array \(3,\) of float64 has not the shape of an"):
        deit_zoo.classify(np.zeros(3), model)


@each_row(
    ("image", "message"),
    [
        (
            TENSOR.numpy(),
            "the array (3, 8, 8) of uint8 has not the shape of an image; give (H, W, 3), in RGB "
            "order",
        ),
        (
            torch.from_numpy(ARRAY.copy()),
            "the tensor (8, 8, 3) of uint8 has not the shape of an image; give (3, H, W), in RGB "
            "order",
        ),
        (
            TENSOR.long(),
            "the tensor (3, 8, 8) of int64 has no defined range; give uint8, or floats from 0 to 1",
        ),
        (
            TENSOR.float(),
            "the tensor (3, 8, 8) of float32 has values beyond 0 to 1; give uint8, before "
            "normalising",
        ),
        (
            np.full((4, 4), np.nan),
            "the array (4, 4) of float64 has values beyond 0 to 1; give uint8, before normalising",
        ),
        (io.StringIO("text"), "the file is open as text; open it with 'rb'"),
        (
            io.TextIOWrapper(io.BytesIO(b"\x89PNG"), "utf-8"),
            "the file is open as text; open it with 'rb'",
        ),
        (
            UploadFile(io.BytesIO()),
            "UploadFile is read by await; give its .file, or what await image.read() gives",
        ),
        (
            "data:image/png;base64," + "iVBORw0K" * 20_000,
            "data:image/png;base64,iVBORw0KiVBORw0KiV... is an image as text; give its bytes, "
            "which are base64.b64decode(text.partition(',')[2])",
        ),
        (
            "",
            "an empty text is no image; give a path, a URL, the bytes of an encoded image, a file "
            "opened with 'rb', a PIL image, an array (H, W, 3) or a tensor (3, H, W)",
        ),
        (
            {"image": "photo.png", "label": 3},  # a row of a data set
            "dict is no image; give a path, a URL, the bytes of an encoded image, a file opened "
            "with 'rb', a PIL image, an array (H, W, 3) or a tensor (3, H, W)",
        ),
        (
            7,
            "int is no image; give a path, a URL, the bytes of an encoded image, a file opened "
            "with 'rb', a PIL image, an array (H, W, 3) or a tensor (3, H, W)",
        ),
    ],
)
def test_what_is_no_image_is_told_what_would_be_one(
    image: Any, message: str, model: ZooModel
) -> None:
    uses = (deit_zoo.attention_map, deit_zoo.classify)
    for refuse in (deit_zoo.transform(model), *(partial(use, model=model) for use in uses)):
        with pytest.raises(DataError) as caught:
            refuse(image)
        assert str(caught.value) == message


def test_an_address_is_asked_by_a_client_that_names_itself(
    model: ZooModel, prepared: Tensor, file: Path, serve: Callable[[bytes], str], agents: list[str]
) -> None:
    url = serve(file.read_bytes())
    assert torch.equal(deit_zoo.transform(model)(url), prepared)
    assert [best.label for [best] in deit_zoo.classify([url], model, topk=1)] == ["7"]
    name = f"deit_zoo/{deit_zoo.__version__} (image classification; python-requests)"
    assert agents == [name, name]


@pytest.fixture
def agents() -> list[str]:
    """Who asked the server."""
    return []


@pytest.fixture
def serve(agents: list[str]) -> Iterator[Callable[[bytes], str]]:
    """Have a server of this machine give some bytes; their address."""
    content = b""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            agents.append(self.headers["User-Agent"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    def begin(data: bytes) -> str:
        nonlocal content
        content = data
        return f"http://127.0.0.1:{server.server_port}/a.png"

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield begin
        server.shutdown()


@pytest.fixture
def pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's bounds as they are, and afterwards as they were."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_478_485)
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 1 << 20)


@pytest.mark.usefixtures("pillow")
def test_the_bound_on_pixels_can_be_lifted(
    model: ZooModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (20_000, 10_000)).save(tmp_path / "panorama.png")
    with pytest.raises(DataError, match="or set DEIT_ZOO_MAX_PIXELS to a larger number"):
        deit_zoo.classify(tmp_path / "panorama.png", model)
    monkeypatch.setenv("DEIT_ZOO_MAX_PIXELS", "200_000_000")
    assert len(deit_zoo.classify(tmp_path / "panorama.png", model)) == 1
    monkeypatch.setenv("DEIT_ZOO_MAX_PIXELS", "many")
    with pytest.raises(DataError, match="DEIT_ZOO_MAX_PIXELS is 'many'; give a number of pixels"):
        deit_zoo.classify(tmp_path / "panorama.png", model)


@pytest.mark.usefixtures("pillow")
@pytest.mark.parametrize("compressed", [False, True])
def test_a_long_text_beside_the_pixels_is_no_reason_to_refuse_them(
    model: ZooModel, prepared: Tensor, tmp_path: Path, compressed: bool
) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("workflow", "node " * 500_000, zip=compressed)  # 2.5 MB; Pillow refuses 1
    IMAGE.save(tmp_path / "made.png", pnginfo=texts)
    assert torch.equal(deit_zoo.transform(model)(tmp_path / "made.png"), prepared)
