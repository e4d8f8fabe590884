"""Learning rates over time, per group."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lifelong_core.training.optimizer import (
    ParameterGroup,
    learning_rate_factor,
    make_optimizer,
    set_learning_rates,
)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_rises_to_one_and_the_rest_never_rises(schedule: str) -> None:
    factors = [learning_rate_factor(step, 20, 4, schedule) for step in range(20)]
    assert factors[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factors[4] == 1.0
    assert all(a >= b > 0 for a, b in zip(factors[4:], factors[5:], strict=False))
    assert (factors[-1] == 1.0) == (schedule == "constant")


def test_linear_is_a_straight_line_and_cosine_is_half_way_at_half_time() -> None:
    assert [learning_rate_factor(s, 4, 0, "linear") for s in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert learning_rate_factor(10, 20, 0, "cosine") == pytest.approx(0.5)


def test_groups_keep_their_own_rates() -> None:
    slow, fast = (nn.Parameter(torch.ones(3)) for _ in range(2))
    groups = [ParameterGroup("a", {"w": slow}, 1e-3, 0.0), ParameterGroup("b", {"w": fast}, 1e-2)]
    optimizer = make_optimizer(groups)
    set_learning_rates(optimizer, groups, 0.5)
    for parameter in (slow, fast):
        parameter.grad = torch.ones(3)
    optimizer.step()
    # AdamW's first step has the length of the learning rate.
    assert (1.0 - slow).tolist() == pytest.approx([5e-4] * 3, rel=1e-2)
    assert (1.0 - fast).tolist() == pytest.approx([5e-3] * 3, rel=1e-2)
