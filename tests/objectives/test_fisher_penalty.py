"""The penalty is zero at its anchor, weighs like its Fisher, and holds weights in a lesson."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from lifelong_core.fisher import DiagonalFisher, RankOneFisher
from lifelong_core.objectives import StepBatch, Term
from lifelong_core.objectives.fisher_penalty import fisher_penalty, rank_one_penalty
from lifelong_core.training import ParameterGroup, TrainPlan, train

NO_BATCH = cast(StepBatch, None)
"""The penalty looks at weights alone."""


def weights(*values: float) -> dict[str, Tensor]:
    """Two weights of different shapes."""
    return {"a": torch.tensor([values[:2]]), "b": torch.tensor(values[2:])}


def parameters(*values: float) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(value) for name, value in weights(*values).items()}


def value_of(term: Term) -> float:
    return float(term(NO_BATCH).detach())


def test_the_diagonal_penalty_by_hand() -> None:
    """Fisher (1, 2, 3, 6) has the mean 3."""
    fisher = DiagonalFisher(weights(1.0, 2.0, 3.0, 6.0), (0,))
    anchor = weights(1.0, 1.0, 1.0, 1.0)
    term = fisher_penalty(fisher, parameters(2.0, 3.0, 1.0, 0.0), anchor, 4.0)
    assert term.weight == 4.0
    assert value_of(term) == pytest.approx(0.5 * (1.0 + 2.0 * 4.0 + 6.0) / 3.0)
    at_anchor = fisher_penalty(fisher, parameters(1.0, 1.0, 1.0, 1.0), anchor, 4.0)
    assert value_of(at_anchor) == 0.0


def test_the_scale_of_the_fisher_does_not_matter() -> None:
    """λ means the same for tiny Fisher values as for large ones."""
    values, anchor = weights(1.0, 2.0, 3.0, 6.0), weights(0.0, 0.0, 0.0, 0.0)
    results = []
    for scale in (1e-12, 1.0, 1e6):
        fisher = DiagonalFisher({name: value * scale for name, value in values.items()}, (0,))
        term = fisher_penalty(fisher, parameters(1.0, -1.0, 2.0, 0.5), anchor, 1.0)
        results.append(value_of(term))
    assert results == pytest.approx([results[0]] * 3, rel=1e-5)
    nothing = DiagonalFisher({name: value * 0 for name, value in values.items()}, (0,))
    term = fisher_penalty(nothing, parameters(1.0, 1.0, 1.0, 1.0), anchor, 1.0)
    assert value_of(term) == 0.0


def rank_one(
    directions: list[Tensor], strengths: list[float], anchors: list[Tensor]
) -> RankOneFisher:
    """Directions [4] of mean square 1, as a state keeps them."""
    stacked = torch.stack(directions)
    return RankOneFisher(
        {"a": stacked[:, :2].reshape(-1, 1, 2).half(), "b": stacked[:, 2:].half()},
        torch.tensor(strengths),
        torch.stack([d @ a for d, a in zip(directions, anchors, strict=True)]),
        tuple(range(len(directions))),
    )


def test_the_rank_one_penalty_by_hand() -> None:
    """Two lessons with weights of their own; the first is held three times as strongly."""
    first, second = torch.tensor([2.0, 0, 0, 0]), torch.tensor([0, 1.0, -1.0, 2**0.5])
    after_first, after_second = torch.tensor([1.0, 0, 0, 0]), torch.tensor([2.0, 1.0, 0, 0])
    fisher = rank_one([first, second], [3e-9, 1e-9], [after_first, after_second])
    anchor = {"a": after_second[:2].reshape(1, 2), "b": after_second[2:]}
    term = rank_one_penalty(fisher, parameters(2.5, 3.0, 1.0, 0.0), anchor, 1.0)
    moved_first = 2.0 * (2.5 - 1.0)
    moved_second = (3.0 - 1.0) - (1.0 - 0.0)
    expected = 0.5 * (0.75 * moved_first**2 + 0.25 * moved_second**2)
    assert value_of(term) == pytest.approx(expected, rel=1e-3)


def test_along_other_directions_the_rank_one_penalty_is_free() -> None:
    anchor = torch.zeros(4)
    fisher = rank_one([torch.tensor([2.0, 0, 0, 0])], [1.0], [anchor])
    anchors = {"a": anchor[:2].reshape(1, 2), "b": anchor[2:]}
    across = parameters(0.0, 5.0, -3.0, 9.0)
    along = parameters(1.0, 0.0, 0.0, 0.0)
    assert value_of(rank_one_penalty(fisher, across, anchors, 1.0)) == 0.0
    assert value_of(rank_one_penalty(fisher, along, anchors, 1.0)) > 0.0


class Towards:
    """Another wish: all weights be 1."""

    name, weight = "towards", 1.0

    def __init__(self, values: dict[str, nn.Parameter]) -> None:
        self.values = values

    def __call__(self, batch: StepBatch) -> Tensor:
        return 0.5 * sum((value - 1.0).square().sum() for value in self.values.values())


@pytest.mark.parametrize("kind", ["diagonal", "rank_one"])
def test_it_holds_in_training_what_matters_and_lets_go_of_the_rest(kind: str) -> None:
    """θ -> 1 / (1 + λ F̂): the minimum of both wishes; only the first weight matters."""
    values, anchor = parameters(0.0, 0.0, 0.0, 0.0), weights(0.0, 0.0, 0.0, 0.0)
    if kind == "diagonal":
        diagonal = DiagonalFisher(weights(1e-9, 0.0, 0.0, 0.0), (0,))
        term = fisher_penalty(diagonal, values, anchor, 2.0)
    else:
        kept = rank_one([torch.tensor([2.0, 0, 0, 0])], [1e-9], [torch.zeros(4)])
        term = rank_one_penalty(kept, values, anchor, 2.0)
    plan = TrainPlan(
        device=torch.device("cpu"),
        steps=150,
        batches=lambda _: NO_BATCH,
        terms=[Towards(values), term],
        groups=[ParameterGroup("adapter", values, 3e-2)],
        lr_schedule="linear",
    )
    train(plan)
    learned = torch.cat([value.detach().flatten() for value in values.values()])
    torch.testing.assert_close(learned, torch.tensor([1 / 9, 1.0, 1.0, 1.0]), rtol=0, atol=0.02)
