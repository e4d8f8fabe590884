"""What counts as trained and as stored, on states made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lifelong_core.adapters import AdapterSpec, build_adapter
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.concepts import Concept
from lifelong_core.evaluation.parameters import stored_percent, trained_percent
from lifelong_core.seeding import generator
from lifelong_core.state import LifelongState, TaskRecord

SPECS = (
    AdapterSpec(rank=2),
    AdapterSpec("vera", rank=4),
    AdapterSpec("key_value"),
    AdapterSpec("spectral"),
)
LESSONS = 3
TOKEN = 128
"""Numbers in the vector of one token."""


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


def state_of(
    backbone: Backbone, method: str, spec: AdapterSpec = SPECS[0], rates: Mapping | None = None
) -> LifelongState:
    """Three lessons of `method`, each with an adapter of its own; the state has the newest."""
    settings = {"method": method, "learning_rate": 1e-3, "token_learning_rate": 1e-3}
    records, weights = [], build_adapter(spec, backbone, seed=0).state()
    for number in range(LESSONS):
        weights = {
            key: torch.randn(value.shape, generator=generator(number, key))
            for key, value in weights.items()
        }
        concept = Concept(f"my_{number}", "dog", backbone.text.noun_vector("dog"))
        records.append(TaskRecord(concept, "", weights, settings | dict(rates or {}), {}))
    return LifelongState("demo", backbone.fingerprint, spec, weights, tuple(records))


def numbers(backbone: Backbone, percent: float) -> float:
    return percent / 100 * sum(value.numel() for value in backbone.unet.parameters())


def size(adapter: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for value in adapter.values())


@pytest.mark.parametrize(
    ("method", "adapters"),
    [
        ("lora", 1),
        ("lwf", 1),
        ("ewc_dc", 1),
        ("joint", 1),
        ("dsc", LESSONS),
        ("dsc_ewc_dc", LESSONS),
        ("c_lora", LESSONS),
        ("lora_merge", LESSONS),
        ("hard_routing", LESSONS),
        ("cidm", LESSONS),
        ("orthogonal_adaptation", LESSONS),
    ],
)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_adapters_of_single_lessons_count_for_methods_that_use_them(
    backbone: Backbone, spec: AdapterSpec, method: str, adapters: int
) -> None:
    state = state_of(backbone, method, spec)
    expected = LESSONS * TOKEN + adapters * size(state.adapter)
    assert numbers(backbone, stored_percent(backbone, state)) == pytest.approx(expected)


def test_a_merged_adapter_counts_beside_those_it_is_made_of(backbone: Backbone) -> None:
    state = state_of(backbone, "custom_diffusion_merge", SPECS[2])
    merged = replace(state, adapter={key: 0.5 * value for key, value in state.adapter.items()})
    expected = LESSONS * TOKEN + (LESSONS + 1) * size(state.adapter)
    assert numbers(backbone, stored_percent(backbone, merged)) == pytest.approx(expected)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_textual_inversion_stores_tokens(backbone: Backbone, spec: AdapterSpec) -> None:
    """Its untrained adapter can be made again from nothing; one that lessons trained can not."""
    state = state_of(backbone, "textual_inversion", spec, {"learning_rate": 0.0})
    untrained = replace(state, adapter=build_adapter(spec, backbone, seed=0).state())
    assert numbers(backbone, stored_percent(backbone, untrained)) == pytest.approx(LESSONS * TOKEN)
    expected = LESSONS * TOKEN + size(state.adapter)
    assert numbers(backbone, stored_percent(backbone, state)) == pytest.approx(expected)
    assert numbers(backbone, trained_percent(backbone, state)) == pytest.approx(TOKEN)


def test_what_a_method_carries_along_counts(backbone: Backbone) -> None:
    state = state_of(backbone, "ewc")
    held = replace(state, extras={"fisher": {"a": torch.ones(7, 5), "b": torch.ones(3)}})
    more = stored_percent(backbone, held) - stored_percent(backbone, state)
    assert numbers(backbone, more) == pytest.approx(38)


def test_the_newest_lesson_alone_is_trained(backbone: Backbone) -> None:
    state = state_of(backbone, "lora")
    expected = size(state.adapter) + TOKEN
    assert numbers(backbone, trained_percent(backbone, state)) == pytest.approx(expected)
    fixed = state_of(backbone, "dreambooth_lora", rates={"token_learning_rate": 0.0})
    assert numbers(backbone, trained_percent(backbone, fixed)) == pytest.approx(size(state.adapter))


def test_a_frozen_factor_is_not_trained(backbone: Backbone) -> None:
    state = state_of(backbone, "orthogonal_adaptation")
    ups = {key: value for key, value in state.adapter.items() if key.endswith(".up")}
    expected = size(ups) + TOKEN
    assert numbers(backbone, trained_percent(backbone, state)) == pytest.approx(expected)
