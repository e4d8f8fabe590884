"""MMD and KID: by hand, against every pair one by one, and without bias."""

from __future__ import annotations

import pytest
import torch

from lifelong_core.errors import InputError
from lifelong_core.evaluation.mmd import kid, mmd


def one_by_one(x: torch.Tensor, y: torch.Tensor, kernel, *, paired: bool = False) -> float:
    def mean(a: torch.Tensor, b: torch.Tensor, skip: bool) -> float:
        pairs = [
            kernel(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if not (skip and i == j)
        ]
        return sum(float(value) for value in pairs) / len(pairs)

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, paired)


def unit(v: torch.Tensor) -> torch.Tensor:
    return v / v.norm()


@pytest.mark.parametrize("paired", [False, True])
def test_both_are_the_sum_over_all_pairs(paired: bool) -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(5, 3, generator=draw, dtype=torch.float64)
    y = torch.randn(5, 3, generator=draw, dtype=torch.float64) + 0.5
    by_hand = one_by_one(x, y, lambda p, q: (unit(p) @ unit(q) + 1) ** 2, paired=paired)
    assert mmd(x, y, paired=paired) == pytest.approx(by_hand, abs=1e-12)
    by_hand = one_by_one(x, y, lambda p, q: (p @ q / 3 + 1) ** 3, paired=paired)
    assert kid(x, y, paired=paired) == pytest.approx(by_hand, abs=1e-12)


def test_values_that_can_be_worked_out() -> None:
    # Equal directions have k = 4, right angles 1: 4 + 4 - 2 * 1.
    x, y = torch.tensor([[2.0, 0.0]] * 2), torch.tensor([[0.0, 5.0]] * 3)
    assert mmd(x, y) == pytest.approx(6.0)
    # x·x / 2 = 2, y·y / 2 = 12.5, x·y = 0: 27 + 13.5³ - 2.
    assert kid(x, y) == pytest.approx(27.0 + 13.5**3 - 2.0)


@pytest.mark.parametrize("measure", [mmd, kid])
def test_equal_distributions_have_a_mean_of_zero(measure) -> None:
    draw = torch.Generator().manual_seed(2)
    values = torch.tensor([measure(*torch.randn(2, 4, 3, generator=draw)) for _ in range(2000)])
    error = float(values.std() / len(values) ** 0.5)
    assert abs(float(values.mean())) < 4 * error
    # With every sample's pair with itself, the mean would be far from zero.
    assert float(values.min()) < 0 < float(values.max())


@pytest.mark.parametrize("measure", [mmd, kid])
def test_pairs_from_the_same_noise_do_not_pull_below_zero(measure) -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    assert measure(x, x, paired=True) == pytest.approx(0.0, abs=1e-9)
    assert measure(x, x) < -0.01


def test_too_few_or_unpaired_pictures_are_refused() -> None:
    with pytest.raises(InputError, match="at least two"):
        mmd(torch.ones(1, 2), torch.ones(3, 2))
    with pytest.raises(InputError, match="no pairs"):
        kid(torch.ones(2, 2), torch.ones(3, 2), paired=True)
