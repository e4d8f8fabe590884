"""Which of a state's adapters draws a concept in a place of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.errors import StateError
from lifelong_core.methods import drawing_state, placed_state
from lifelong_core.state import LifelongState
from tests.consolidation.conftest import example_state

FIRST, SECOND = "a photo of embedding:thing_1 dog", "embedding:thing_2 cat"


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo", seed=4)


@pytest.fixture(scope="module")
def state(backbone: Backbone) -> LifelongState:
    return example_state(backbone, 2)


def by_method(state: LifelongState, method: str) -> LifelongState:
    settings = {**state.records[-1].settings, "method": method}
    return replace(state, records=[replace(one, settings=settings) for one in state.records])


def same(one: LifelongState | None, adapter: object) -> bool:
    assert one is not None and isinstance(adapter, dict)
    return all(torch.equal(one.adapter[key], adapter[key]) for key in adapter)


@pytest.mark.parametrize("method", ["lora", "ewc", "lora_merge", "hard_routing", "cidm"])
def test_a_place_shows_what_its_own_lesson_left(state: LifelongState, method: str) -> None:
    known = by_method(state, method)
    for prompt, record in zip((FIRST, SECOND), known.records, strict=True):
        assert same(placed_state(known, prompt), dict(record.adapter))


def test_without_a_concept_it_is_the_base_model(state: LifelongState) -> None:
    lost = replace(state, records=[replace(one, adapter={}) for one in state.records])
    for known in (by_method(state, "ewc"), by_method(state, "c_lora"), lost):
        assert placed_state(known, "a dog") is None


def test_lessons_that_are_nothing_without_those_before_draw_together(
    backbone: Backbone, state: LifelongState
) -> None:
    known = by_method(state, "c_lora")
    assert same(
        placed_state(known, FIRST), dict(drawing_state(known, FIRST, backbone.text).adapter)
    )


def test_a_state_that_kept_no_lesson_draws_with_what_it_has(state: LifelongState) -> None:
    joint = by_method(replace(state, records=[replace(r, adapter={}) for r in state.records]), "x")
    assert same(placed_state(joint, SECOND), dict(state.adapter))


def test_a_lost_adapter_is_told(state: LifelongState) -> None:
    first, second = state.records
    lost = replace(state, records=[replace(first, adapter={}), second])
    with pytest.raises(StateError, match="has not kept the adapter of the lesson on 'thing_1'"):
        placed_state(lost, FIRST)
