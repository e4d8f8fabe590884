"""Which prompt and which adapter answer for which cells of which rows of a batch.

Slots: 0 is the whole picture, 1 to U are its regions. A row says which slots take part in it, and
with which of the encoded prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ModelError
from .regions import cover, shares_of

NOTHING = 1e-6
"""Shares below are rounding."""


@dataclass(frozen=True)
class Row:
    """One row of a batch.

    prompts: the number of the encoded prompt that each slot uses, [1 + U]; None for slots that
    take no part. about: the number of the prompt that tells what the row is of, for models that
    are told as a whole too (SDXL's pooled part). picture: the number of the picture whose masks
    the row has.
    """

    prompts: tuple[int | None, ...]
    about: int
    picture: int = 0


@dataclass(frozen=True)
class Part:
    """Cells that one slot answers for in the same way in several rows.

    rows: [r], None for all; cells: [n], positions of a layer; shares: [n] in (0, 1), the slot's
    weight there, None where no other slot has any; prompts: the number of each row's encoded
    prompt, [r].
    """

    slot: int
    rows: Tensor | None
    cells: Tensor
    shares: Tensor | None
    prompts: tuple[int, ...]


class Layout:
    """The parts of a batch at every resolution of a UNet.

    masks: of every picture's regions, [H, W] each. latents: (height, width). In every cell of
    every row the shares of the slots add up to 1: the regions' cover, divided where they overlap,
    and the rest for the whole picture.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        masks: Sequence[Sequence[Tensor]],
        latents: tuple[int, int],
        softness: float,
        device: torch.device,
    ) -> None:
        self.rows = tuple(rows)
        self._masks = tuple(masks)
        self.latents = latents
        self._softness = softness
        self._device = device
        self._parts: dict[int, list[Part]] = {}

    def parts(self, positions: int) -> list[Part]:
        """The parts of a layer with so many positions. Raises ModelError for another number."""
        if positions not in self._parts:
            self._parts[positions] = self._divided(layer_size(self.latents, positions))
        return self._parts[positions]

    def _divided(self, size: tuple[int, int]) -> list[Part]:
        covered = [cover(own, size, self._softness).flatten(1).cpu() for own in self._masks]
        shares = torch.stack([_row_shares(row, covered[row.picture]) for row in self.rows])
        parts = []
        for slot in range(shares.shape[1]):
            distinct, which = torch.unique(shares[:, slot], dim=0, return_inverse=True)
            for number, own in enumerate(distinct):
                if not own.any():
                    continue
                rows, cells = (which == number).nonzero()[:, 0], own.nonzero()[:, 0]
                prompts = [self.rows[row].prompts[slot] for row in rows.tolist()]
                parts.append(
                    Part(
                        slot,
                        None if len(rows) == len(self.rows) else rows.to(self._device),
                        cells.to(self._device),
                        None if own[cells].min() > 1 - NOTHING else own[cells].to(self._device),
                        tuple(prompt for prompt in prompts if prompt is not None),
                    )
                )
        return parts


def _row_shares(row: Row, covered: Tensor) -> Tensor:
    """Shares [1 + U, N] of the slots in one row from the regions' cover [U, N]."""
    active = torch.tensor([prompt is not None for prompt in row.prompts[1:]], dtype=covered.dtype)
    regions = shares_of(active[:, None] * covered)
    shares = torch.cat([1 - regions.sum(0, keepdim=True), regions])
    return shares.where(shares > NOTHING, 0)


def layer_size(latents: tuple[int, int], positions: int) -> tuple[int, int]:
    """(h, w) of a UNet's layer with so many positions: every level halves and rounds up."""
    height, width = latents
    while height * width > positions and height * width > 1:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != positions:
        raise ModelError(
            f"A layer of the base model has {positions} positions, which is no level of latents "
            f"of {latents[0]} x {latents[1]}; regions cannot be placed in it."
        )
    return height, width


def spread(parts: Sequence[Part], x: Tensor, answer: Callable[[Part, Tensor], Tensor]) -> Tensor:
    """Every part's answer for its own rows and cells: [R, N, C] -> [R, N, out].

    `answer` gets x at a part's rows and cells [r, n, C] and gives [r, n, out].
    """
    if len(parts) == 1:  # It has all rows and all cells.
        return answer(parts[0], x)
    total: Tensor | None = None
    for part in parts:
        found = answer(part, _at(part, x))
        if total is None:
            total = found.new_zeros(*x.shape[:2], found.shape[-1])
        _put(part, total, found)
    assert total is not None
    return total


def _at(part: Part, x: Tensor) -> Tensor:
    """[R, N, C] -> [r, n, C]."""
    if part.rows is None:
        return x.index_select(1, part.cells)
    return x[part.rows[:, None], part.cells]


def _put(part: Part, total: Tensor, found: Tensor) -> None:
    """Add what a part gives [r, n, C] to [R, N, C] in place."""
    if part.shares is not None:
        found = part.shares[:, None].to(found.dtype) * found
        if part.rows is None:
            total.index_add_(1, part.cells, found)
        else:
            total[part.rows[:, None], part.cells] += found
    elif part.rows is None:
        total.index_copy_(1, part.cells, found)
    else:
        total[part.rows[:, None], part.cells] = found
