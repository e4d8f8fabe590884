"""How the gradients of two ways to load a model are compared."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.guidance_gpu import (
    NOISE,
    ROUNDING,
    compared,
    difference,
    is_right,
    largest_difference,
    tolerances,
)

ONES = torch.ones(1, 4, 2, 2)


def test_a_difference_is_relative_to_the_reference() -> None:
    assert difference(1.5 * ONES, ONES) == pytest.approx(0.5)
    assert difference(ONES, ONES) == 0.0


@pytest.mark.parametrize(
    ("found", "wanted"),
    [(ONES, 0 * ONES), (0 * ONES, 0 * ONES), (math.nan * ONES, ONES), (math.inf * ONES, ONES)],
)
def test_what_cannot_be_compared_differs_without_end(
    found: torch.Tensor, wanted: torch.Tensor
) -> None:
    assert difference(found, wanted) == math.inf


def test_the_worst_step_counts_and_steps_may_not_be_missing() -> None:
    assert largest_difference([ONES, 3 * ONES], [ONES, 2 * ONES]) == pytest.approx(0.5)
    assert largest_difference([ONES], [ONES, ONES]) == math.inf
    assert largest_difference([], []) == math.inf


def test_a_case_is_compared_with_the_full_one() -> None:
    full = {"latent": ONES, "gradient_0": ONES, "gradient_1": 2 * ONES}
    other = {"latent": 2 * ONES, "gradient_0": ONES, "gradient_1": 3 * ONES}
    found = compared({"full": full, "dynamic": other}, "dynamic")
    assert found["guided_steps"] == 2
    assert found["first_difference"] == 0.0
    assert found["gradient_difference"] == pytest.approx(0.5)
    assert found["latent_difference"] == pytest.approx(1.0)
    assert compared({"dynamic": other}, "dynamic") == {}


@pytest.mark.parametrize(
    ("again", "later"),
    [
        ({"gradient_difference": 0.0}, ROUNDING["float32"]),
        ({"gradient_difference": 0.1}, NOISE * 0.1),
        ({"gradient_difference": math.inf}, ROUNDING["float32"]),
        ({"error": "RuntimeError"}, ROUNDING["float32"]),
    ],
)
def test_noise_widens_what_later_steps_may_differ_by(again: dict[str, float], later: float) -> None:
    found = tolerances(again, "float32")
    assert found == {"first_difference": ROUNDING["float32"], "gradient_difference": later}


def test_a_case_must_have_been_loaded_as_it_says() -> None:
    allowed = {"first_difference": 1e-3, "gradient_difference": 0.1}
    result = {"dynamic": True, "plain_unchanged": True, "gradient_difference": 0.05}
    result["first_difference"] = 1e-4
    assert is_right(result, allowed, dynamic=True)
    assert not is_right(result, allowed, dynamic=False)
    assert not is_right({**result, "first_difference": 2e-3}, allowed, dynamic=True)
    assert not is_right({**result, "gradient_difference": 0.2}, allowed, dynamic=True)
    assert not is_right({**result, "plain_unchanged": False}, allowed, dynamic=True)
    assert not is_right({"error": "RuntimeError"}, allowed, dynamic=True)
    assert not is_right({"dynamic": True, "plain_unchanged": True}, allowed, dynamic=True)
