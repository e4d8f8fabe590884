"""Which slot answers for which cells of which rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lifelong_core.attention.layout import Layout, Part, Row, layer_size, spread
from lifelong_core.attention.regions import box_mask
from lifelong_core.errors import ModelError
from lifelong_core.seeding import generator

LEFT, RIGHT = box_mask(0, 0, 0.5, 1, (16, 16)), box_mask(0.5, 0, 1, 1, (16, 16))
ROWS = [Row((0, 2, 4), 0), Row((1, 3, 5), 1), Row((1, 3, None), 3), Row((1, None, 5), 5)]


def _layout(rows: list[Row], *masks: Tensor, softness: float = 0.0) -> Layout:
    return Layout(rows, [masks], (16, 16), softness, torch.device("cpu"))


def _rows(part: Part, rows: int) -> list[int]:
    return list(range(rows)) if part.rows is None else part.rows.tolist()


def _shares(parts: list[Part], rows: int, slots: int, cells: int) -> Tensor:
    """[R, slots, N] put together again; a cell that a slot has twice fails."""
    total = torch.zeros(rows, slots, cells)
    for part in parts:
        for row in _rows(part, rows):
            assert not total[row, part.slot, part.cells].any()
            total[row, part.slot, part.cells] = 1.0 if part.shares is None else part.shares
    return total


def test_halves_leave_nothing_to_the_whole_picture_where_all_take_part() -> None:
    parts = _layout(ROWS, LEFT, RIGHT).parts(64)
    shares = _shares(parts, 4, 3, 64).unflatten(-1, (8, 8))
    left, right = torch.zeros(8, 8), torch.zeros(8, 8)
    left[:, :4], right[:, 4:] = 1, 1
    assert torch.equal(shares[1], torch.stack([torch.zeros(8, 8), left, right]))
    assert torch.equal(shares[0], shares[1])
    assert torch.equal(shares[2], torch.stack([right, left, torch.zeros(8, 8)]))
    assert torch.equal(shares[3], torch.stack([left, torch.zeros(8, 8), right]))


def test_rows_with_the_same_cells_share_a_part_and_keep_their_prompts() -> None:
    parts = _layout(ROWS, LEFT, RIGHT).parts(256)
    found = {(part.slot, tuple(_rows(part, 4))): part.prompts for part in parts}
    assert found == {
        (0, (2,)): (1,),
        (0, (3,)): (1,),
        (1, (0, 1, 2)): (2, 3, 3),
        (2, (0, 1, 3)): (4, 5, 5),
    }


@pytest.mark.parametrize("softness", [0.0, 0.15])
def test_shares_add_up_to_one_in_every_cell_of_every_row(softness: float) -> None:
    tiny = torch.zeros(50, 40)
    tiny[20, 30] = 1
    overlapping = box_mask(0.2, 0.1, 0.9, 0.8, (30, 30))
    rows = [Row((1, 3, 5, 7), 1), Row((1, None, 5, None), 5), Row((1, None, None, 7), 7)]
    layout = _layout(rows, LEFT, overlapping, tiny, softness=softness)
    for cells in (256, 64, 16):
        shares = _shares(layout.parts(cells), 3, 4, cells)
        assert torch.allclose(shares.sum(1), torch.ones(3, cells), atol=1e-5)
        assert shares[0, 3].any(), "a tiny region is at every resolution"
        assert not shares[1, 1].any() and not shares[1, 3].any()


def test_pictures_have_masks_of_their_own() -> None:
    rows = [Row((1, 3), 1, picture=0), Row((1, 3), 1, picture=1)]
    layout = Layout(rows, [[LEFT], [RIGHT]], (16, 16), 0.0, torch.device("cpu"))
    shares = _shares(layout.parts(256), 2, 2, 256)
    assert torch.equal(shares[0, 1], LEFT.flatten())
    assert torch.equal(shares[1, 1], RIGHT.flatten())


def test_levels_are_found_by_their_number_of_positions() -> None:
    assert layer_size((16, 24), 16 * 24) == (16, 24)
    assert layer_size((15, 23), 8 * 12) == (8, 12)
    assert layer_size((15, 23), 4 * 6) == (4, 6)
    assert layer_size((64, 64), 1) == (1, 1)
    with pytest.raises(ModelError, match="100 positions"):
        layer_size((16, 16), 100)


def test_answers_are_put_where_they_belong() -> None:
    x = torch.rand(4, 64, 3, generator=generator(0, "x"))
    layout = _layout(ROWS, LEFT, box_mask(0.25, 0, 1, 1, (16, 16)))
    parts = layout.parts(64)
    found = spread(parts, x, lambda part, own: (part.slot + 1) * own[..., :2])
    shares = _shares(parts, 4, 3, 64)
    factor = (shares * torch.tensor([1.0, 2, 3])[:, None]).sum(1)
    assert torch.allclose(found, factor[..., None] * x[..., :2], atol=1e-6)
