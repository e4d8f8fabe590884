"""The bootstrap: covers what it should, and pairs what belongs together."""

from __future__ import annotations

import pytest
import torch

from lifelong_core.evaluation import interval as module
from lifelong_core.evaluation.interval import interval, paired_difference, pairs_of


def test_the_mean_is_over_seeds_of_means_over_concepts() -> None:
    found = interval({2: {1: 1.0, 2: 3.0}, 3: {1: 6.0}})
    assert found is not None
    assert found.mean == pytest.approx(4.0)
    assert found.low < found.mean < found.high
    assert interval({2: {1: 1.0, 2: 3.0}, 3: {1: 6.0}}) == found


def test_equal_values_have_no_width_and_no_values_no_interval() -> None:
    assert interval({2: {1: 0.5, 2: 0.5}, 3: {1: 0.5}}) == (0.5, 0.5, 0.5)
    assert interval({2: {}}) is None
    assert interval({}) is None


def test_the_known_mean_is_covered_about_as_often_as_promised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "DRAWS", 200)
    draw = torch.Generator().manual_seed(5)
    covered = 0
    for _ in range(100):
        values = torch.randn(12, 8, generator=draw, dtype=torch.float64) + 2.0
        found = interval({s: dict(enumerate(row.tolist())) for s, row in enumerate(values)})
        assert found is not None
        covered += found.low <= 2.0 <= found.high
    assert 0.90 <= covered / 100 <= 0.99


def test_seeds_that_differ_make_the_interval_wide() -> None:
    """Many concepts of two seeds are not many independent values."""
    one_seed = {1: {c: float(c % 2) for c in range(40)}}
    two_seeds = {1: dict.fromkeys(range(20), 0.0), 2: dict.fromkeys(range(20), 1.0)}
    narrow, wide = interval(one_seed), interval(two_seeds)
    assert narrow is not None and wide is not None
    assert narrow.mean == wide.mean == pytest.approx(0.5)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_a_single_pair_is_counted_as_one() -> None:
    first, second = {2: {1: 0.5, 2: 0.4}, 3: {1: 0.3}}, {2: {1: 0.1, 3: 0.2}, 4: {1: 0.1}}
    assert pairs_of(first, second) == 1
    assert pairs_of(first, first) == 3


def test_what_both_methods_share_cancels_in_pairs() -> None:
    easy = {1: {1: 0.1, 2: 5.0, 3: 9.0}, 2: {1: 3.0, 2: 7.0}}
    better = {seed: {c: v - 0.01 for c, v in row.items()} for seed, row in easy.items()}
    found = paired_difference(easy, better)
    assert found is not None
    assert found == pytest.approx((0.01, 0.01, 0.01))
    assert paired_difference(easy, {3: {1: 1.0}}) is None
    partly = paired_difference(easy, {1: {1: 0.0, 2: 4.9}})
    assert partly is not None and partly.mean == pytest.approx(0.1)
