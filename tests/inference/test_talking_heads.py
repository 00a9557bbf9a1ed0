"""Each form of talking-heads attention is the paper's formula, and runs where it suits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from deit_zoo.inference import talking_heads


class Talking:
    """Operands of talking-heads attention and what the paper's formula makes of them."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        batch, heads, tokens, size = 3, 4, 10, 4
        self.query, self.key, self.value = (drawn(batch, heads, tokens, size) for _ in range(3))
        self.before, self.after = (nn.Linear(heads, heads).double() for _ in range(2))
        self.first, self.second = self.before.weight * size**-0.5, self.after.weight
        self.operands = (self.query, self.key, self.value, self.first, self.second)

    def by_formula(self) -> Tensor:
        """Heads are moved last, mixed, and moved back, as the paper writes it."""
        scores = torch.einsum("bhqd,bhkd->bqkh", self.query, self.key) * 4**-0.5
        shares = self.before(scores).permute(0, 3, 1, 2).softmax(dim=-1)
        mixed = self.after(shares.permute(0, 2, 3, 1))
        return torch.einsum("bqkh,bhkd->bhqd", mixed, self.value)

    def of_bias(self) -> Tensor:
        """What the second bias adds: each head's share of the sum of its values."""
        return self.after.bias[:, None, None] * self.value.sum(dim=2, keepdim=True)


@pytest.fixture
def talking() -> Talking:
    with torch.no_grad():
        return Talking()


def assert_close(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "form",
    [
        talking_heads.talking_heads_in_one,
        talking_heads.talking_heads_in_tiles,
        talking_heads.talking_heads_fused,
    ],
)
def test_each_form_of_talking_heads_is_the_formula(
    talking: Talking, form: Callable[..., Tensor]
) -> None:
    with torch.no_grad():
        assert_close(form(*talking.operands) + talking.of_bias(), talking.by_formula())


def test_talking_heads_have_both_biases(talking: Talking) -> None:
    with torch.no_grad():
        result = talking_heads.talking_heads(*talking.operands, talking.after.bias)
        assert_close(result, talking.by_formula())


@pytest.mark.parametrize(
    ("images", "rows"), [(1, 1), (1, 3), (1, 10), (2, 10), (2, 4), (3, 10), (3, 7)]
)
def test_tiles_of_any_size_give_the_same(
    talking: Talking, monkeypatch: pytest.MonkeyPatch, images: int, rows: int
) -> None:
    monkeypatch.setattr(talking_heads, "tile", lambda *_: (images, rows))
    with torch.no_grad():
        result = talking_heads.talking_heads_in_tiles(*talking.operands)
        assert_close(result + talking.of_bias(), talking.by_formula())


@pytest.mark.parametrize(
    ("batch", "heads", "tokens", "size", "expected"),
    [
        (8, 4, 196, 4, (1, 196)),  # 0.6 MB an image
        (8, 4, 196, 2, (3, 196)),
        (2, 4, 196, 2, (2, 196)),
        (8, 8, 196, 4, (1, 196)),
        (8, 4, 576, 4, (1, 576)),  # 5.3 MB: still whole
        (8, 8, 576, 4, (1, 116)),  # 10.6 MB: five pieces
    ],
)
def test_a_tile_is_what_a_cache_holds(
    batch: int, heads: int, tokens: int, size: int, expected: tuple[int, int]
) -> None:
    assert talking_heads.tile(batch, tokens, heads * tokens**2 * size) == expected


def test_a_tile_has_room_for_each_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert talking_heads.tile(32, 196, 4 * 196**2 * 4) == (6, 196)


@pytest.mark.parametrize(
    ("dtype", "heads", "tokens", "suits"),
    [
        (torch.bfloat16, 4, 400, True),
        (torch.float16, 4, 576, True),
        (torch.float32, 4, 576, False),
        (torch.bfloat16, 4, 399, False),
        (torch.bfloat16, 5, 400, False),
    ],
)
def test_folding_is_for_many_patches_of_few_channels_in_half_precision(
    dtype: torch.dtype, heads: int, tokens: int, suits: bool
) -> None:
    query = torch.empty(1, heads, tokens, 64, dtype=dtype)
    assert talking_heads.suits_fusing(query) is suits
