"""Stochastic depth draws what arXiv 1603.09382 says; the golden files replace its draws."""

from __future__ import annotations

import pytest
import torch

from deit_zoo.models.layers import DropPath


def test_samples_are_kept_with_the_probability_that_the_rate_leaves() -> None:
    kept = DropPath(0.3).keep_mask(torch.zeros(10_000, 5, 4)).mean().item()
    # Five standard deviations of the mean of 10 000 draws.
    assert kept == pytest.approx(0.7, abs=5 * (0.3 * 0.7 / 10_000) ** 0.5)


def test_a_whole_branch_of_a_sample_is_kept_or_dropped() -> None:
    mask = DropPath(0.3).keep_mask(torch.zeros(100, 5, 4))
    assert mask.shape == (100, 1, 1)
    assert set(mask.flatten().tolist()) == {0.0, 1.0}


def test_every_branch_is_drawn_anew() -> None:
    drop_path, x = DropPath(0.5), torch.zeros(100, 5, 4)
    assert not torch.equal(drop_path.keep_mask(x), drop_path.keep_mask(x))


def test_kept_branches_make_up_for_dropped_ones() -> None:
    x = torch.ones(100, 5, 4)
    assert set(DropPath(0.5).train()(x).flatten().tolist()) == {0.0, 2.0}


def test_nothing_is_dropped_in_eval_mode() -> None:
    x = torch.ones(100, 5, 4)
    assert torch.equal(DropPath(0.5).eval()(x), x)


def test_nothing_is_drawn_at_rate_zero() -> None:
    before = torch.get_rng_state()
    DropPath(0.0).train()(torch.ones(100, 5, 4))
    assert torch.equal(torch.get_rng_state(), before)
