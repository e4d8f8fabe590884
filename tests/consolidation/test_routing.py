"""A prompt is drawn by the adapter that it names, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lifelong_core.adapters import AdapterSpec, low_rank_factors
from lifelong_core.adapters.frozen import frozen_adapter
from lifelong_core.backbone import Backbone
from lifelong_core.concepts import ConceptTask
from lifelong_core.consolidation.routing import route, routed_tokens
from lifelong_core.errors import StateError
from lifelong_core.lesson import LessonSettings
from lifelong_core.methods import drawing_state, learn
from lifelong_core.sampling import generate
from lifelong_core.sharing.naming import layers
from lifelong_core.state import LifelongState

StateAfter = Callable[..., LifelongState]
SPECS = (AdapterSpec(rank=2), AdapterSpec("vera", rank=4), AdapterSpec("key_value"))
FIRST, SECOND = "embedding:thing_1 dog", "embedding:thing_2 cat"


def draw(backbone: Backbone, state: LifelongState | None, prompt: str, vectors=None) -> Tensor:
    """Latents of `prompt` after two steps, with the state's adapter or none."""

    def latents() -> Tensor:
        return generate(
            backbone, [prompt], seed=3, steps=2, size=(64, 64), as_latents=True,
            vectors=vectors if state is None else state.vectors,
        )  # fmt: skip

    if state is None:
        return latents()
    with frozen_adapter(state.adapter_spec, backbone, state.adapter).attached(backbone):
        return latents()


def test_tokens_of_a_prompt(state_after: StateAfter) -> None:
    state = state_after(2)
    assert routed_tokens(state, "a photo of a dog") == ()
    assert routed_tokens(state, f"{SECOND} and (embedding:thing_1:1.2)") == ("thing_1", "thing_2")
    assert routed_tokens(state, "embedding:thing_12 dog, thing_1") == ()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_the_adapter_of_the_token_or_none(state_after: StateAfter, spec: AdapterSpec) -> None:
    state = state_after(3, spec)
    routed = route(state, f"a photo of {SECOND}")
    kept = state.records[1].adapter
    assert routed.adapter_spec == spec
    assert all(torch.equal(routed.adapter[key], kept[key].float()) for key in kept)
    assert routed.concepts == state.concepts
    assert not any(float(value.abs().sum()) for value in route(state, "a dog").adapter.values())


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_several_tokens_share_equally(state_after: StateAfter, spec: AdapterSpec) -> None:
    state = state_after(3, spec)
    routed = route(state, f"{FIRST} and {SECOND}")
    found = low_rank_factors(routed.adapter_spec, routed.adapter, layers("demo"))
    first, second = (
        low_rank_factors(spec, record.adapter, layers("demo")) for record in state.records[:2]
    )
    for layer, factors in found.items():
        change, one, other = (
            part.scale * (part.up @ part.down) for part in (factors, first[layer], second[layer])
        )
        torch.testing.assert_close(change, (one + other) / 2, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_without_a_token_the_base_model_draws_bit_for_bit(
    backbone: Backbone, state_after: StateAfter, spec: AdapterSpec
) -> None:
    prompt = "a photo of a dog"
    routed = draw(backbone, route(state_after(2, spec), prompt), prompt)
    assert torch.equal(routed, draw(backbone, None, prompt))


def test_later_lessons_change_no_bit_of_an_earlier_concept(
    backbone: Backbone, task_of: Callable[[int], ConceptTask]
) -> None:
    settings = LessonSettings(steps=2, batch_size=1, prior_count=0, adapter=AdapterSpec(rank=2))
    state, alone = None, {}
    for number in (1, 2):
        learned = [
            learn(backbone, task_of(number), state=before, method="hard_routing", settings=settings)
            for before in (None, state)
        ]
        alone[number], state = learned
    for number, phrase in ((1, FIRST), (2, SECOND)):
        prompt = f"a photo of {phrase}"
        single = draw(backbone, drawing_state(alone[number], prompt, backbone.text), prompt)
        assert torch.equal(
            draw(backbone, drawing_state(state, prompt, backbone.text), prompt), single
        )
        plain = draw(backbone, None, prompt, state.vectors)
        assert not torch.equal(single, plain)


def test_an_adapter_that_was_not_kept_is_missed(state_after: StateAfter) -> None:
    state = state_after(2)
    first, second = state.records
    with pytest.raises(StateError, match="thing_1"):
        route(replace(state, records=(replace(first, adapter={}), second)), SECOND)
