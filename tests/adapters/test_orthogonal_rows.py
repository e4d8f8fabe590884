"""Who gets which rows of the shared basis, and that no two lessons meet."""

from __future__ import annotations

import pytest
import torch

from lifelong_core.adapters.orthogonal_rows import lessons_apart, orthogonal_rows
from lifelong_core.errors import InputError

WIDTHS = {"a": 24, "b": 32, "c": 24}
RANK = 5


def test_rows_of_all_lessons_are_orthonormal_until_all_are_dealt_out() -> None:
    assert lessons_apart(WIDTHS, RANK) == 4
    lessons = [orthogonal_rows(WIDTHS, RANK, number) for number in range(4)]
    for layer in WIDTHS:
        rows = torch.cat([lesson[layer] for lesson in lessons]).double()
        gram = rows @ rows.T
        assert float((gram - torch.eye(4 * RANK)).abs().max()) < 1e-6


def test_rows_that_are_dealt_again_are_others() -> None:
    fifth = orthogonal_rows(WIDTHS, RANK, 4)["a"]
    meets = [
        float((fifth @ orthogonal_rows(WIDTHS, RANK, number)["a"].T).abs().max())
        for number in range(4)
    ]
    assert max(meets) > 0.99, "24 inputs have room for four lessons only"
    assert not any(
        torch.equal(fifth, orthogonal_rows(WIDTHS, RANK, number)["a"]) for number in range(4)
    )


def test_layers_of_one_width_share_the_basis_but_not_the_rows() -> None:
    rows = orthogonal_rows({"a": 16, "c": 16}, 16, 0)
    meets = rows["a"] @ rows["c"].T
    assert torch.allclose(meets.abs().max(dim=1).values, torch.ones(16), atol=1e-5)
    assert not torch.equal(rows["a"], rows["c"])


def test_the_same_lesson_always_gets_the_same_rows() -> None:
    one, other = (orthogonal_rows(WIDTHS, RANK, 2) for _ in range(2))
    assert all(torch.equal(one[layer], other[layer]) for layer in WIDTHS)
    alone = orthogonal_rows({"c": 24}, RANK, 2)
    assert torch.equal(alone["c"], one["c"]), "whatever other layers there are"


def test_a_rank_above_a_layers_inputs_is_refused() -> None:
    with pytest.raises(InputError, match=r"layer a has inputs \(24\).*24 at most"):
        orthogonal_rows(WIDTHS, 25, 0)
