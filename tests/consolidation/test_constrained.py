"""The constrained merge solves its own equations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from lifelong_core.adapters import AdapterSpec
from lifelong_core.backbone import Backbone
from lifelong_core.backbone.context_layers import family_context_layers
from lifelong_core.concepts import ConceptTask
from lifelong_core.consolidation import ConsolidationSettings, consolidate, constrained
from lifelong_core.consolidation.constrained import (
    ConstrainedMerge,
    Projection,
    caption_states,
    concept_states,
    values_at_targets,
)
from lifelong_core.errors import StateError
from lifelong_core.state import LifelongState

StateAfter = Callable[..., LifelongState]
FULL = AdapterSpec("key_value")


@pytest.fixture(autouse=True)
def few_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constrained, "NOUNS", ("tree", "house", "cup"))


def test_targets_get_what_their_own_change_gives_and_captions_the_least() -> None:
    draw = torch.Generator().manual_seed(0)
    targets = [torch.randn(n, 12, generator=draw) for n in (2, 3)]
    captions = torch.randn(40, 12, generator=draw)
    deltas = [torch.randn(7, 12, generator=draw) for _ in targets]
    values = values_at_targets(deltas, targets)
    merged = Projection(torch.cat(targets), captions)(values)
    for delta, states in zip(deltas, targets, strict=True):
        torch.testing.assert_close(
            merged @ states.double().mT, (delta @ states.mT).double(), rtol=1e-4, atol=1e-5
        )
    # Any other change that meets the constraints changes the captions more.
    rows = torch.cat(targets).double()
    free = torch.eye(12, dtype=torch.float64) - torch.linalg.pinv(rows) @ rows
    other = 0.1 * torch.randn(7, 12, generator=draw, dtype=torch.float64) @ free
    least = float((merged @ captions.double().mT).norm())
    for sign in (1, -1):
        assert float(((merged + sign * other) @ captions.double().mT).norm()) > least


def test_more_states_than_dimensions_are_met_as_well_as_can_be() -> None:
    draw = torch.Generator().manual_seed(0)
    targets, captions = torch.randn(9, 4, generator=draw), torch.randn(20, 4, generator=draw)
    change = torch.randn(3, 4, generator=draw)
    merged = Projection(targets, captions)(values_at_targets([change], [targets]))
    torch.testing.assert_close(merged, change.double(), rtol=1e-4, atol=1e-5)


def test_concept_states_begin_at_the_token(backbone: Backbone, state_after: StateAfter) -> None:
    state = state_after(2)
    first, second = concept_states(backbone, state.concepts, state.vectors)
    assert first.shape == second.shape == (6, 128), "token, noun and end, in two prompts"
    nearest = torch.cdist(first, second).min()
    assert float(nearest) > 1e-2, "no state that both concepts share"
    captions = caption_states(backbone, state.vectors)
    assert len(captions) > 100
    assert torch.allclose(captions[0], backbone.text.encode(["x"]).context[0, 0], atol=1e-5)


def test_the_phase_merges_all_lessons(
    backbone: Backbone, state_after: StateAfter, task_of: Callable[[int], ConceptTask]
) -> None:
    state = state_after(2, FULL)
    before = state.content_hash
    merged = consolidate(
        backbone, task_of(2), state, phases=[ConstrainedMerge()], settings=ConsolidationSettings()
    )
    assert state.content_hash == before
    assert merged.adapter_spec == FULL
    for old, new in zip(state.records, merged.records, strict=True):
        assert all(torch.equal(new.adapter[key], old.adapter[key]) for key in old.adapter)
    for states, record in zip(
        concept_states(backbone, state.concepts, state.vectors), state.records, strict=True
    ):
        for key, delta in merged.adapter.items():
            wanted = states @ record.adapter[key].float().mT
            torch.testing.assert_close(states @ delta.mT, wanted, rtol=1e-3, atol=1e-4)
    report = merged.records[-1].metrics["consolidation"]["constrained merge"]
    assert report["constraints"] == 12
    assert report["missed"] < 1e-6


def test_layer_wise_tokens_are_met_in_every_layer(
    backbone: Backbone, state_after: StateAfter, task_of: Callable[[int], ConceptTask]
) -> None:
    state = state_after(2, FULL)
    record = state.records[0]
    draw = torch.Generator().manual_seed(3)
    vectors = {"clip_l": torch.randn(10, 1, 128, generator=draw) * 0.02}
    concept = replace(record.concept, vectors=vectors)
    state = replace(state, records=(replace(record, concept=concept), state.records[1]))
    merged = consolidate(
        backbone, task_of(2), state, phases=[ConstrainedMerge()], settings=ConsolidationSettings()
    )
    encoded = backbone.text.encode([concept.phrase], state.vectors)
    own = record.adapter
    for number, name in enumerate(family_context_layers("demo")):
        states = encoded.at_layer(number)[0, 1:4]
        key = f"unet.{name}.to_k.delta"
        wanted = states @ own[key].float().mT
        torch.testing.assert_close(states @ merged.adapter[key].mT, wanted, rtol=1e-3, atol=1e-3)


def test_one_lesson_is_left_alone_and_other_kinds_are_refused(
    backbone: Backbone, state_after: StateAfter, task_of: Callable[[int], ConceptTask]
) -> None:
    settings = ConsolidationSettings()
    alone = state_after(1, FULL)
    phases = [ConstrainedMerge()]
    assert consolidate(backbone, task_of(1), alone, phases=phases, settings=settings) is alone
    with pytest.raises(StateError, match="key_value.*lora"):
        consolidate(backbone, task_of(2), state_after(2), phases=phases, settings=settings)
    state = state_after(2, FULL)
    first, second = state.records
    without = replace(state, records=(replace(first, adapter={}), second))
    with pytest.raises(StateError, match="thing_1"):
        consolidate(backbone, task_of(2), without, phases=phases, settings=settings)
