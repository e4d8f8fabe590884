"""Several adapters' changes side by side, against one adapter at a time."""

from __future__ import annotations

import torch

from lifelong_core.adapters.factors import Factors
from lifelong_core.adapters.stacked import stacked_factors


def factors(rank: int, seed: int, alpha: float) -> Factors:
    draw = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, 6, generator=draw)
    return Factors(down, torch.randn(5, rank, generator=draw), alpha)


ADAPTERS = [{"a": factors(2, 0, 4.0), "b": factors(2, 1, 4.0)}, {}, {"a": factors(3, 2, 1.0)}]


def test_each_adapter_changes_its_own_rows() -> None:
    stacked = stacked_factors(ADAPTERS)
    assert set(stacked) == {"a", "b"}
    x = torch.randn(3, 2, 7, 6, generator=torch.Generator().manual_seed(3))
    for layer, changes in stacked.items():
        answers = changes.changes(x)
        assert answers.shape == (3, 2, 7, 5)
        for index, adapter in enumerate(ADAPTERS):
            known = adapter.get(layer)
            weight = torch.zeros(5, 6) if known is None else known.scale * known.up @ known.down
            assert torch.allclose(answers[index], x[index] @ weight.mT, atol=1e-5)


def test_an_adapter_without_the_layer_changes_nothing_bit_by_bit() -> None:
    answers = stacked_factors(ADAPTERS)["a"].changes(
        torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(5))
    )
    assert not answers[1].any() and bool(answers[0].any() and answers[2].any())


def test_adapters_are_chosen_in_any_order_and_more_than_once() -> None:
    stacked = stacked_factors(ADAPTERS)["a"]
    x = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(4))
    each = stacked.changes(x.expand(3, -1, -1))
    chosen = stacked.of([2, 0, 2]).changes(x.expand(3, -1, -1))
    assert torch.equal(chosen, each[[2, 0, 2]])


def test_the_format_can_be_changed() -> None:
    stacked = stacked_factors(ADAPTERS)["a"].to(torch.device("cpu"), torch.float64)
    assert stacked.changes(torch.zeros(3, 1, 6, dtype=torch.float64)).dtype == torch.float64
