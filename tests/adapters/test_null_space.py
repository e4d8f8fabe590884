"""Directions that inputs keep to, and factors that do not read them."""

from __future__ import annotations

import torch

from lifelong_core.adapters.null_space import principal_directions, without_directions
from lifelong_core.seeding import generator

WIDTH = 12


def rows(rank: int, count: int = 50, seed: int = 0) -> torch.Tensor:
    """Rows of any length in a subspace."""
    draw = generator(seed, "rows")
    basis = torch.randn(rank, WIDTH, generator=draw)
    lengths = 10 ** torch.linspace(-2, 2, count)[:, None]
    return torch.randn(count, rank, generator=draw) @ basis * lengths


def test_directions_are_orthonormal_and_hold_their_share() -> None:
    seen = rows(5)
    every = principal_directions(seen, 1 - 1e-9)
    assert every.shape == (WIDTH, 5) and every.dtype == torch.float32
    assert torch.allclose(every.mT @ every, torch.eye(5), atol=1e-6)
    assert float(without_directions(seen, every).norm()) < 1e-4 * float(seen.norm())
    alike = torch.nn.functional.normalize(seen, dim=1)
    for share in (0.5, 0.9):
        some = principal_directions(seen, share)
        held = float((alike @ some).square().sum() / alike.square().sum())
        less = float((alike @ some[:, :-1]).square().sum() / alike.square().sum())
        assert less < share <= held


def test_directions_apart_from_known_ones_are_orthogonal_to_them() -> None:
    known = principal_directions(rows(4), 1 - 1e-9)
    own = principal_directions(rows(3, seed=1), 1 - 1e-9, apart_from=known)
    assert own.shape == (WIDTH, 3)
    assert float((known.mT @ own).abs().max()) < 1e-6


def test_what_is_left_reads_nothing_of_them_and_all_of_the_rest() -> None:
    directions = principal_directions(rows(4), 1 - 1e-9)
    down = torch.randn(3, WIDTH, generator=generator(0, "down"))
    left = without_directions(down, directions)
    other = without_directions(torch.randn(2, WIDTH, generator=generator(1, "other")), directions)
    assert float((left @ directions).abs().max()) < 1e-6
    assert torch.allclose(left @ other.mT, down @ other.mT, atol=1e-5)
    assert torch.allclose(without_directions(left, directions), left, atol=1e-6)
