"""What a method draws with depends on the prompt exactly where its entry says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lifelong_core.adapters import AdapterSpec, build_adapter
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.concepts import Concept
from lifelong_core.errors import InputError
from lifelong_core.methods import METHODS, any_prompt_state, drawing_state
from lifelong_core.seeding import generator
from lifelong_core.state import LifelongState, TaskRecord

SPEC = AdapterSpec(rank=1)
TOKENS = ("first_thing", "second_thing")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


def weights(backbone: Backbone, token: str) -> dict[str, Tensor]:
    draw = generator(0, token)
    fresh = build_adapter(SPEC, backbone, seed=0).state()
    return {key: torch.randn(value.shape, generator=draw) for key, value in fresh.items()}


def learned(backbone: Backbone, method: str) -> LifelongState:
    """A state of two concepts, every one with an adapter of its own."""
    records = []
    for token in TOKENS:
        draw = generator(0, token, "vectors")
        vectors = {k: torch.randn(1, w, generator=draw) for k, w in backbone.text.widths.items()}
        concept = Concept(token, "dog", vectors)
        adapter = weights(backbone, token)
        records.append(TaskRecord(concept, token, adapter, {"method": method}, {}))
    family, fingerprint = backbone.family.name, backbone.fingerprint
    return LifelongState(family, fingerprint, SPEC, adapter, tuple(records))


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("method", METHODS)
def test_other_prompts_have_other_adapters_where_the_table_says_so(
    backbone: Backbone, method: str
) -> None:
    state = learned(backbone, method)
    one, other = (
        drawing_state(state, f"a photo of embedding:{token} dog", backbone.text).adapter
        for token in TOKENS
    )
    assert same(one, other) != METHODS[method].by_prompt
    if not METHODS[method].one_adapter:
        with pytest.raises(InputError, match=f"{method}.*every (prompt|step)"):
            any_prompt_state(state)
    else:
        assert same(any_prompt_state(state).adapter, one)


def test_without_a_lesson_the_state_draws_itself(backbone: Backbone) -> None:
    state = replace(learned(backbone, "hard_routing"), records=())
    assert any_prompt_state(state) is state
    assert drawing_state(state, "a dog", backbone.text) is state
