"""Input factors that never meet: rows of one orthogonal basis (Po et al. 2024, section 4.2).

ΔW_i x = A_i B_i x is zero for every input x in the rows of another lesson's B_j, whatever A_i has
learned: the changes of all lessons can be summed without any weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import InputError
from ..seeding import generator

BASIS_SEED = 0
"""Of the basis and of who gets which rows. One for all states: lessons of any seed share it."""


def orthogonal_rows(widths: Mapping[str, int], rank: int, lesson: int) -> dict[str, Tensor]:
    """Layer -> `down` [rank, in] fp32 of lesson number `lesson` (0, 1, …), with orthonormal rows.

    widths: layer -> in. Layers of one width share a basis, and each deals its rows out at random.
    Lessons of one layer have different rows until all in // rank blocks are dealt out; then they
    are dealt out again, in another order.

    Raises InputError when a layer has fewer inputs than `rank`.
    """
    narrow = [layer for layer, width in widths.items() if width < rank]
    if narrow:
        raise InputError(
            f"Rank {rank} asks for more orthogonal rows than layer {narrow[0]} has inputs "
            f"({widths[narrow[0]]}). Choose a rank of {min(widths.values())} at most."
        )
    bases = {width: _basis(width) for width in set(widths.values())}
    return {
        layer: bases[width][_dealt(layer, width, rank, lesson)] for layer, width in widths.items()
    }


def lessons_apart(widths: Mapping[str, int], rank: int) -> int:
    """How many lessons have rows of their own in every layer."""
    return min(widths.values()) // rank


def _dealt(layer: str, width: int, rank: int, lesson: int) -> Tensor:
    """The numbers of the rows that a lesson gets."""
    turn, place = divmod(lesson, width // rank)
    order = torch.randperm(width, generator=generator(BASIS_SEED, "rows", layer, turn))
    return order[place * rank : (place + 1) * rank]


def _basis(width: int) -> Tensor:
    """A random orthogonal matrix [width, width]: the Q of a Gaussian one, in fp64 until the end."""
    draw = generator(BASIS_SEED, "orthogonal basis", width)
    basis, _ = torch.linalg.qr(torch.randn(width, width, generator=draw, dtype=torch.float64))
    return basis.float()
