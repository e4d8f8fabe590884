"""Eq 5 against the formula as it is written, and what is chosen by it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lifelong_core.errors import InputError
from lifelong_core.memory.selection import choose_best, choose_random, rainbow_scores


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=draw), dim=1)


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.5])
def test_scores_are_those_of_the_formula(beta: float) -> None:
    candidates, anchors = unit(12, 5, 0), unit(3, 5, 1)
    scores = rainbow_scores(candidates, anchors, beta)
    for i, anchor in enumerate(anchors):
        for a, candidate in enumerate(candidates):
            diversity = 0.0
            for other in candidates:
                diversity += 1.0 - float(F.cosine_similarity(candidate, other, dim=0))
            likeness = float(F.cosine_similarity(candidate, anchor, dim=0))
            wanted = diversity / len(candidates) + beta * likeness
            assert float(scores[i, a]) == pytest.approx(wanted, abs=1e-5)


def test_a_hand_computed_choice() -> None:
    """Two candidates along x, one along y; the anchor between them, nearer to x.

    m = (2/3, 1/3): variety 1/3 for x, 2/3 for y. Likeness 0.8 for x, 0.6 for y. With β = 1, y wins
    by 1.267 to 1.133; with β = 2, x by 1.933 to 1.867.
    """
    candidates = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    anchor = torch.tensor([[0.8, 0.6]])
    assert rainbow_scores(candidates, anchor, 1.0)[0].tolist() == pytest.approx(
        [1 / 3 + 0.8, 1 / 3 + 0.8, 2 / 3 + 0.6]
    )
    one, of_one = torch.zeros(1, dtype=torch.long), torch.zeros(3, dtype=torch.long)
    assert choose_best(rainbow_scores(candidates, anchor, 1.0), one, of_one).tolist() == [2]
    assert choose_best(rainbow_scores(candidates, anchor, 2.0), one, of_one).tolist() == [0]


def test_each_anchor_takes_the_best_of_its_concept_that_is_left() -> None:
    scores = torch.tensor(
        [
            [5.0, 4.0, 3.0, 9.0, 9.0],
            [5.0, 4.0, 3.0, 9.0, 9.0],
            [9.0, 9.0, 9.0, 1.0, 2.0],
        ]
    )
    concepts, of_candidates = torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0, 1, 1])
    before = scores.clone()
    assert choose_best(scores, concepts, of_candidates).tolist() == [0, 1, 4]
    assert torch.equal(scores, before)


def test_random_choice_keeps_concepts_apart_and_depends_on_the_seed_alone() -> None:
    concepts = torch.arange(6).repeat_interleave(2)
    of_candidates = torch.arange(6).repeat_interleave(16)
    chosen = choose_random(concepts, of_candidates, seed=3)
    assert torch.equal(of_candidates[chosen], concepts)
    assert len(set(chosen.tolist())) == len(concepts)
    assert torch.equal(chosen, choose_random(concepts, of_candidates, seed=3))
    assert not torch.equal(chosen, choose_random(concepts, of_candidates, seed=4))


def test_what_cannot_be_scored_or_chosen_is_refused() -> None:
    good = unit(4, 3, 0)
    with pytest.raises(InputError, match="0 candidates for 4"):
        rainbow_scores(good[:0], good, 1.0)
    with pytest.raises(InputError, match="3 wide, the remembered ones 5"):
        rainbow_scores(good, unit(2, 5, 1), 1.0)
    with pytest.raises(InputError, match="not finite"):
        rainbow_scores(good * float("nan"), good, 1.0)
    with pytest.raises(InputError, match="Concept 2 has 1 candidates for 2"):
        choose_best(torch.zeros(2, 3), torch.tensor([1, 1]), torch.tensor([0, 0, 1]))
