"""What the simple methods of the table fix: their adapter, their token, where they start."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lifelong_core.adapters import AdapterSpec
from lifelong_core.adapters.spec import TARGETS
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.concepts import ConceptTask, make_task
from lifelong_core.lesson import LessonSettings, defaults_for, for_adapter
from lifelong_core.methods import METHODS, learn, lesson_settings, teach
from lifelong_core.seeding import generator
from lifelong_core.state import LifelongState

SETTINGS = LessonSettings(
    steps=2, batch_size=1, prior_batch_size=1, prior_count=0, adapter=AdapterSpec(rank=2)
)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


def task(token: str, noun: str = "dog") -> ConceptTask:
    picture = torch.rand(3, 64, 64, generator=generator(0, token))
    return make_task(token, noun, [picture], size=64)


def two_lessons(backbone: Backbone, method: str) -> tuple[LifelongState, LifelongState]:
    first = teach(backbone, task("thing_1"), method=method, settings=SETTINGS)
    return first, teach(backbone, task("thing_2"), state=first, method=method, settings=SETTINGS)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_fixes_is_fixed_once(method: str) -> None:
    once = METHODS[method].settings(SETTINGS)
    assert METHODS[method].settings(once) == once


def test_dreambooth_trains_all_attention_but_not_its_identifier(backbone: Backbone) -> None:
    first, second = two_lessons(backbone, "dreambooth_lora")
    spec = second.adapter_spec
    assert (spec.rank, spec.scale, spec.targets, spec.text_encoder) == (4, 1.0, TARGETS, True)
    vectors = [concept.vectors["clip_l"] for concept in second.concepts]
    noun = backbone.text.noun_vector("dog")["clip_l"]
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-3), "concepts of one noun differ"
    for vector in vectors:
        assert float(vector.std() / noun.std()) == pytest.approx(1.0, abs=0.25)
    moved = [k for k, v in second.adapter.items() if not torch.equal(v, first.adapter[k])]
    assert any(key.startswith("text.clip_l.") for key in moved)
    again = learn(backbone, task("thing_1"), method="dreambooth_lora", settings=SETTINGS)
    assert torch.equal(again.concepts[0].vectors["clip_l"], vectors[0])


def test_textual_inversion_trains_the_token_alone(backbone: Backbone) -> None:
    first, second = two_lessons(backbone, "textual_inversion")
    noun = backbone.text.noun_vector("dog")["clip_l"]
    for concept in second.concepts:
        assert float((concept.vectors["clip_l"] - noun).abs().max()) > 1e-3
    assert all(torch.equal(second.adapter[key], value) for key, value in first.adapter.items())
    assert not any(float(v.abs().sum()) for k, v in second.adapter.items() if k.endswith(".up"))
    assert set(second.records[1].metrics["terms"]) == {"denoising"}
    with_priors = replace(SETTINGS, prior_count=8)
    assert METHODS["textual_inversion"].settings(with_priors).prior_count == 0


def test_custom_diffusion_goes_on_with_whole_matrices(backbone: Backbone) -> None:
    first, second = two_lessons(backbone, "custom_diffusion")
    assert second.adapter_spec == AdapterSpec("key_value")
    step = SETTINGS.learning_rate / 10
    for key, value in second.adapter.items():
        assert 0 < float((value - first.adapter[key]).abs().max()) <= 2.5 * step


def test_custom_diffusion_merges_lessons_that_each_start_from_nothing(backbone: Backbone) -> None:
    _, merged = two_lessons(backbone, "custom_diffusion_merge")
    alone = learn(backbone, task("thing_2"), method="custom_diffusion_merge", settings=SETTINGS)
    own, kept = alone.records[0].adapter, merged.records[1].adapter
    assert all(torch.equal(own[key], kept[key]) for key in own)
    assert "constrained merge" in merged.records[1].metrics["consolidation"]
    assert not any(torch.equal(merged.adapter[key], kept[key].float()) for key in kept)


@pytest.mark.parametrize("method", ["lora_merge", "hard_routing"])
def test_lessons_that_start_afresh_learn_what_they_would_alone(
    backbone: Backbone, method: str
) -> None:
    _, second = two_lessons(backbone, method)
    alone = learn(backbone, task("thing_2"), method="lora", settings=SETTINGS)
    own, kept = alone.records[0].adapter, second.records[1].adapter
    assert all(torch.equal(own[key], kept[key]) for key in own)


def test_rates_follow_the_kind_of_adapter(backbone: Backbone) -> None:
    vera = for_adapter(SETTINGS, AdapterSpec("vera"))
    assert vera.learning_rate == pytest.approx(10 * SETTINGS.learning_rate)
    assert for_adapter(vera, AdapterSpec("vera", rank=8)).learning_rate == vera.learning_rate
    full = for_adapter(vera, AdapterSpec("key_value"))
    assert full.learning_rate == pytest.approx(SETTINGS.learning_rate / 10)
    state = learn(
        backbone, task("thing_1"), settings=replace(vera, adapter=AdapterSpec("vera", rank=4))
    )
    usual = lesson_settings(backbone, state, "lora")
    assert usual.adapter == state.adapter_spec
    assert usual.learning_rate == pytest.approx(10 * defaults_for("demo").learning_rate)
