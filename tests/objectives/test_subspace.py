"""CIDM's terms against slow loops and plain algebra, and where their forms lead."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from lifelong_core.objectives import StepBatch, Term
from lifelong_core.objectives.subspace import (
    Factors,
    LiteralOverlap,
    PullToOne,
    orthogonal_subspace,
    shared_subspace,
)
from lifelong_core.seeding import generator

NO_BATCH = cast(StepBatch, None)
OUTS = {"a": 20, "b": 14, "c": 20}
RANK, LESSONS = 3, 4


def draw(*shape: int, label: str) -> Tensor:
    return torch.randn(shape, generator=generator(0, label))


def ups(label: str = "own") -> dict[str, nn.Parameter]:
    return {key: nn.Parameter(draw(out, RANK, label=label + key)) for key, out in OUTS.items()}


def earlier_ups(lessons: int = LESSONS) -> dict[str, Tensor]:
    return {key: draw(lessons, out, RANK, label=f"earlier {key}") for key, out in OUTS.items()}


def downs() -> dict[str, nn.Parameter]:
    return {key: nn.Parameter(draw(RANK, size, label=f"down {key}")) for key, size in OUTS.items()}


def earlier_downs(lessons: int = LESSONS) -> dict[str, Tensor]:
    return {key: draw(lessons, RANK, size, label=f"downs {key}") for key, size in OUTS.items()}


def test_r1_is_the_sum_of_the_mean_cosines_of_all_pairs_of_columns() -> None:
    own, earlier = ups(), earlier_ups()
    naive = 0.0
    for key in OUTS:
        for lesson in range(LESSONS):
            total = 0.0
            for i in range(RANK):
                for j in range(RANK):
                    one, other = earlier[key][lesson][:, i], own[key].detach()[:, j]
                    total += abs(float(one @ other)) / float(one.norm() * other.norm())
            naive += total / RANK**2
    value = orthogonal_subspace(own, earlier, 0.1)(NO_BATCH)
    assert float(value.detach()) == pytest.approx(naive, rel=1e-5)


def test_r1_looks_at_directions_alone() -> None:
    """The gradient of columns is at right angles to them: shrinking is no way out."""
    own, earlier = ups(), earlier_ups()
    term = orthogonal_subspace(own, earlier, 0.1)
    value = term(NO_BATCH)
    value.backward()
    for parameter in own.values():
        assert parameter.grad is not None
        along = (parameter.grad * parameter).sum(0) / parameter.norm(dim=0)
        assert float(along.detach().abs().max()) < 1e-5 < float(parameter.grad.abs().max())
    small = {key: nn.Parameter(1e-3 * parameter.detach()) for key, parameter in own.items()}
    shrunk = orthogonal_subspace(small, earlier, 0.1)(NO_BATCH)
    torch.testing.assert_close(shrunk, value, rtol=1e-4, atol=0.0)


def test_r1_of_a_lesson_that_begins_is_zero_with_a_finite_gradient() -> None:
    zeros = {key: nn.Parameter(torch.zeros(out, RANK)) for key, out in OUTS.items()}
    value = orthogonal_subspace(zeros, earlier_ups(), 0.1)(NO_BATCH)
    value.backward()
    assert float(value.detach()) == 0.0
    assert all(bool(torch.isfinite(zeros[key].grad).all()) for key in OUTS)


def test_r1_is_zero_for_orthogonal_subspaces_where_the_printed_form_is_not() -> None:
    basis, _ = torch.linalg.qr(draw(20, 20, label="basis"))
    own = {"a": nn.Parameter(basis[:, :RANK])}
    earlier = {"a": basis[None, :, RANK : 2 * RANK]}
    assert float(orthogonal_subspace(own, earlier, 1.0)(NO_BATCH).detach()) < 1e-6
    assert float(LiteralOverlap(own, earlier, 1.0)(NO_BATCH).detach()) > 0.05


def test_the_released_form_is_the_mean_over_lessons_layers_and_entries() -> None:
    own, earlier = ups(), earlier_ups()
    products, pulls = [], []
    for lesson in range(LESSONS):
        for key in OUTS:
            value = own[key].detach()
            products.append(float((value @ earlier[key][lesson].T).abs().mean()))
            pulls.append(float(((value - 1.0) ** 2).mean()))
    overlap, pull = LiteralOverlap(own, earlier, 0.1), PullToOne(own, 0.1)
    assert float(overlap(NO_BATCH).detach()) == pytest.approx(math.fsum(products) / len(products))
    assert float(pull(NO_BATCH).detach()) == pytest.approx(math.fsum(pulls) / len(pulls))


def norm_after(make: Callable[[Factors], list[Term]], steps: int = 200) -> float:
    """‖A_g‖ / ‖A_g at the start‖ after minimising nothing but the terms."""
    own = ups()
    start = math.sqrt(sum(float(value.detach().square().sum()) for value in own.values()))
    terms = make(own)
    optimizer = torch.optim.Adam(list(own.values()), lr=5e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack([term(NO_BATCH) for term in terms]).sum().backward()
        optimizer.step()
        schedule.step()
    return math.sqrt(sum(float(value.detach().square().sum()) for value in own.values())) / start


def test_the_printed_form_drives_the_lora_to_zero_and_the_corrected_one_does_not() -> None:
    earlier = earlier_ups(1)
    assert norm_after(lambda own: [LiteralOverlap(own, earlier, 1.0)]) < 1e-3
    assert norm_after(lambda own: [orthogonal_subspace(own, earlier, 1.0)]) >= 1.0
    pulled = norm_after(lambda own: [LiteralOverlap(own, earlier, 0.1), PullToOne(own, 0.1)])
    assert pulled > 0.1, "the released code's counterweight"


def naive_r2(own: Tensor, earlier: Tensor, rank: int) -> tuple[float, Tensor]:
    """Two rounds of least squares by lstsq, and 2 (B - H W)."""
    _, _, vectors = torch.linalg.svd(earlier.double().flatten(0, 1))
    shared = vectors[:rank]
    everyone = torch.cat([earlier.double().flatten(0, 1), own[None].double().flatten(0, 1)])
    parts = torch.linalg.lstsq(shared.T, everyone.T).solution.T
    shared = torch.linalg.lstsq(parts, everyone).solution
    parts = torch.linalg.lstsq(shared.T, own.double().T).solution.T
    rest = own.double() - parts @ shared
    return float(rest.square().sum()), 2.0 * rest


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("lessons", [2, LESSONS])
def test_r2_and_its_gradient_are_those_of_alternating_least_squares(
    rank: int, lessons: int
) -> None:
    own, earlier = downs(), earlier_downs(lessons)
    value = shared_subspace(own, earlier, rank, 1.0)(NO_BATCH)
    value.backward()
    naive = {key: naive_r2(own[key].detach(), earlier[key], rank) for key in OUTS}
    total = sum(one for one, _ in naive.values())
    assert float(value.detach()) == pytest.approx(total, rel=1e-4)
    for key, (_, gradient) in naive.items():
        torch.testing.assert_close(own[key].grad, gradient.float(), rtol=1e-3, atol=1e-4)


def test_r2_is_zero_for_factors_that_lie_in_the_shared_subspace() -> None:
    shared = {key: draw(2, size, label=f"shared {key}") for key, size in OUTS.items()}
    earlier = {
        key: draw(LESSONS, RANK, 2, label=f"parts {key}") @ value for key, value in shared.items()
    }
    inside = {
        key: nn.Parameter(draw(RANK, 2, label=f"new {key}") @ value)
        for key, value in shared.items()
    }
    for rank in (2, 7):
        assert float(shared_subspace(inside, earlier, rank, 1.0)(NO_BATCH).detach()) < 1e-8
    assert float(shared_subspace(downs(), earlier, 2, 1.0)(NO_BATCH).detach()) > 1.0


def test_layers_that_earlier_lessons_left_alone_break_nothing() -> None:
    """As of a LoRA from elsewhere, which has some layers only."""
    nothing = {key: torch.zeros_like(value) for key, value in earlier_downs().items()}
    own = downs()
    value = shared_subspace(own, nothing, 5, 1.0)(NO_BATCH)
    value.backward()
    assert 0.0 <= float(value.detach()) < math.inf
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in own.values())
    unused = {key: torch.zeros_like(value) for key, value in earlier_ups().items()}
    assert float(orthogonal_subspace(ups(), unused, 1.0)(NO_BATCH).detach()) == 0.0


def test_the_new_lesson_moves_the_shared_subspace_the_less_the_more_lessons_hold_it() -> None:
    """W_* is of all lessons: one row that nobody reads costs less after few lessons."""
    size = 6
    own = {"a": nn.Parameter(torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0, 0.0]]))}
    costs = []
    for lessons in (1, 3, 9):
        earlier = {"a": torch.eye(size)[:1].expand(lessons, 1, size)}
        costs.append(float(shared_subspace(own, earlier, 1, 1.0)(NO_BATCH).detach()))
    held = 1.0  # what lies off W_0
    assert 0.0 < costs[0] < costs[1] < costs[2] < held


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_mixed_precision_leaves_the_terms_alone(precision: torch.dtype) -> None:
    terms: list[Term] = [
        orthogonal_subspace(ups(), earlier_ups(), 0.1),
        LiteralOverlap(ups(), earlier_ups(), 0.1),
        shared_subspace(downs(), earlier_downs(), 2, 1.0),
    ]
    for term in terms:
        plain = term(NO_BATCH)
        with torch.autocast("cpu", precision):
            assert torch.equal(term(NO_BATCH), plain)
