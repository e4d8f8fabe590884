"""Forgetting, kept gain and drift, worked out by hand."""

from __future__ import annotations

import pytest
import torch

from lifelong_core.evaluation.drift import base_drift
from lifelong_core.evaluation.forgetting import at_the_end, kept_gain, lost, moved
from lifelong_core.evaluation.mmd import mmd

MATRIX = {(1, 1): 0.9, (2, 1): 0.7, (2, 2): 0.8, (3, 1): 0.6, (3, 2): 0.85, (3, 3): 0.75}


def test_what_was_lost_leaves_the_last_concept_out() -> None:
    assert at_the_end(MATRIX, 3) == {1: 0.6, 2: 0.85, 3: 0.75}
    assert lost(MATRIX, 3) == pytest.approx({1: 0.3, 2: -0.05})
    assert lost(MATRIX, 2) == pytest.approx({1: 0.2})


def test_concepts_without_a_cell_of_their_own_lesson_are_left_out() -> None:
    sparse = {place: value for place, value in MATRIX.items() if place != (1, 1)}
    assert lost(sparse, 3) == pytest.approx({2: -0.05})


def test_f_mmd_compares_a_concepts_own_pictures() -> None:
    draw = torch.Generator().manual_seed(0)
    first, later = torch.randn(2, 4, 3, generator=draw)
    features = {(1, 1): first, (2, 1): later, (2, 2): first}
    assert moved(features, 2) == {1: mmd(first, later, paired=True)}
    assert moved({(1, 1): first, (2, 1): first}, 2) == pytest.approx({1: 0.0}, abs=1e-9)


def test_kept_gain_is_the_share_of_what_a_lora_alone_gains() -> None:
    base, alone = {1: 0.4, 2: 0.4, 3: 0.5}, {1: 0.8, 2: 0.9, 3: 0.5}
    assert kept_gain({1: 0.7, 2: 0.4, 3: 0.9}, base, alone) == pytest.approx({1: 0.75, 2: 0.0})


def test_an_unchanged_model_has_no_drift() -> None:
    draw = torch.Generator().manual_seed(1)
    base, texts = torch.randn(2, 5, 4, generator=draw)
    same = base_drift(base, base, texts)
    assert same.ta == same.ta_base
    assert same.kid == pytest.approx(0.0, abs=1e-9)
    assert base_drift(-base, base, texts).ta == pytest.approx(-same.ta)
    assert base_drift(base + 1.0, base, texts).kid > 0.1
