"""Merging is the mean, exactly; cutting it down is the best that a rank can do, and says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lifelong_core.adapters import AdapterSpec, low_rank_factors
from lifelong_core.backbone import Backbone
from lifelong_core.consolidation.merge import merge_adapters, merged_state, truncated
from lifelong_core.consolidation.stacking import stacked_state
from lifelong_core.errors import InputError, StateError
from lifelong_core.methods import METHODS, any_prompt_state, drawing_state
from lifelong_core.sharing.naming import layers
from lifelong_core.state import LifelongState

StateAfter = Callable[..., LifelongState]
SHAPES = layers("demo")
SPECS = {
    "lora": AdapterSpec(rank=3, alpha=2.0),
    "vera": AdapterSpec("vera", rank=5),
    "key_value": AdapterSpec("key_value"),
}


def changes(spec: AdapterSpec, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Layer -> ΔW."""
    return {
        layer: factors.scale * (factors.up @ factors.down)
        for layer, factors in low_rank_factors(spec, weights, SHAPES).items()
    }


def mean_change(state: LifelongState) -> dict[str, Tensor]:
    each = [changes(state.adapter_spec, record.adapter) for record in state.records]
    return {layer: torch.stack([own[layer] for own in each]).mean(0) for layer in each[0]}


@pytest.mark.parametrize("kind", SPECS)
def test_the_merge_is_the_mean_of_the_changes(state_after: StateAfter, kind: str) -> None:
    state = state_after(3, SPECS[kind])
    merged, kept = merged_state(state)
    assert kept == 1.0
    expected = mean_change(state)
    found = changes(merged.adapter_spec, merged.adapter)
    assert found.keys() == expected.keys() and len(found) == 20
    for layer, change in expected.items():
        assert float(change.abs().max()) > 0
        torch.testing.assert_close(found[layer], change, rtol=1e-4, atol=1e-7)


def test_ranks_add_up_and_full_matrices_stay_what_they_are(state_after: StateAfter) -> None:
    low_rank, _ = merged_state(state_after(3, SPECS["lora"]))
    assert (low_rank.adapter_spec.kind, low_rank.adapter_spec.rank) == ("lora", 9)
    assert low_rank.adapter_spec.targets == SPECS["lora"].targets
    full, _ = merged_state(state_after(3, SPECS["key_value"]))
    assert full.adapter_spec == SPECS["key_value"]


@pytest.mark.parametrize("kind", SPECS)
def test_a_rank_keeps_the_energy_that_it_reports(state_after: StateAfter, kind: str) -> None:
    state = state_after(3, SPECS[kind])
    merged, kept = merged_state(state, rank=4)
    assert (merged.adapter_spec.kind, merged.adapter_spec.rank) == ("lora", 4)
    lost = whole = best = 0.0
    found = changes(merged.adapter_spec, merged.adapter)
    for layer, change in mean_change(state).items():
        values = torch.linalg.svdvals(change.double()).square()
        lost += float((change - found[layer]).double().square().sum())
        whole += float(values.sum())
        best += float(values[:4].sum())
    assert 0.1 < kept < 1.0
    assert kept == pytest.approx(best / whole, rel=1e-5)
    assert 1.0 - kept == pytest.approx(lost / whole, rel=1e-3)


def test_more_rank_than_there_is_loses_nothing() -> None:
    down, up = torch.randn(2, 7), torch.randn(5, 2)
    (new_down, new_up), (kept, whole) = truncated(down, up, 6)
    assert new_down.shape == (6, 7) and new_up.shape == (5, 6)
    torch.testing.assert_close(new_up @ new_down, up @ down)
    assert kept == whole == pytest.approx(float((up @ down).square().sum()), rel=1e-5)


@pytest.mark.parametrize("kind", ["lora", "vera"])
def test_no_more_rank_than_layers_have_is_needed(state_after: StateAfter, kind: str) -> None:
    state = state_after(2, AdapterSpec(kind, rank=700))
    merged, kept = merged_state(state)
    widest = max(min(SHAPES[name.rsplit(".", 1)[0]]) for name in merged.adapter)
    assert (merged.adapter_spec.rank, kept) == (widest, 1.0)
    found = changes(merged.adapter_spec, merged.adapter)
    summed = changes(merged.adapter_spec, stacked_state(state).adapter)
    for layer, change in mean_change(state).items():
        bounds = {"rtol": 1e-4, "atol": 1e-5 * float(change.abs().max())}
        torch.testing.assert_close(found[layer], change, **bounds)
        torch.testing.assert_close(summed[layer], 2 * found[layer])


def test_nothing_of_nothing_is_lost() -> None:
    zeros = {
        f"{layer}.{part}": torch.zeros(shape)
        for layer, (out, width) in SHAPES.items()
        if layer.endswith("attn2.to_k")
        for part, shape in (("down", (700, width)), ("up", (out, 700)))
    }
    merged = merge_adapters(AdapterSpec(rank=700), [zeros, zeros], SHAPES, rank=3)
    assert merged.kept_energy == 1.0


def test_what_cannot_be_merged_is_refused(state_after: StateAfter) -> None:
    state = state_after(2)
    with pytest.raises(InputError, match="no adapter to merge"):
        merge_adapters(AdapterSpec(), [], SHAPES)
    with pytest.raises(InputError, match="Rank 0"):
        merged_state(state, rank=0)
    first, second = state.records
    with pytest.raises(StateError, match="thing_1"):
        merged_state(replace(state, records=(replace(first, adapter={}), second)))


def test_the_method_draws_with_the_merge(backbone: Backbone, state_after: StateAfter) -> None:
    state = state_after(2)
    *older, newest = state.records
    told = {**newest.settings, "method": "lora_merge"}
    state = replace(state, records=(*older, replace(newest, settings=told)))
    drawn = drawing_state(state, "anything", backbone.text)
    assert drawn.content_hash == merged_state(state)[0].content_hash
    assert any_prompt_state(state).content_hash == drawn.content_hash
    assert drawn.vectors.keys() == state.vectors.keys()
    assert METHODS["lora"].draw_with(state, "anything", backbone.text) is state
