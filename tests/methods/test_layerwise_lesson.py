"""Lessons with layer-wise tokens: what is learned, kept, and drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lifelong_core.adapters import AdapterSpec
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.concepts import ConceptTask, make_task
from lifelong_core.drawing import knowing
from lifelong_core.errors import InputError
from lifelong_core.lesson import LessonSettings
from lifelong_core.methods import learn
from lifelong_core.sampling import generate
from lifelong_core.seeding import generator
from lifelong_core.state import LifelongState, load_state, save_state

LAYERS = 10
SETTINGS = LessonSettings(
    steps=3, batch_size=2, prior_count=0, adapter=AdapterSpec(rank=2), layerwise_tokens=True
)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


def task(token: str = "my_dog", noun: str = "dog") -> ConceptTask:
    pictures = [torch.rand(3, 64, 64, generator=generator(n, token)) for n in range(2)]
    return make_task(token, noun, pictures, size=64)


@pytest.fixture(scope="module")
def first(backbone: Backbone) -> LifelongState:
    return learn(backbone, task(), settings=SETTINGS)


def test_layers_start_alike_and_learn_differently(backbone: Backbone, first: LifelongState) -> None:
    (concept,) = first.concepts
    learned = concept.vectors["clip_l"]
    assert learned.shape == (LAYERS, 1, 128) and concept.layers == LAYERS
    moved = learned - backbone.text.noun_vector("dog")["clip_l"]
    assert bool((moved.abs().amax((1, 2)) > 0).all())
    assert len(learned.flatten(1).unique(dim=0)) == LAYERS
    assert concept.single().vectors["clip_l"].shape == (1, 128)
    assert torch.equal(concept.single().vectors["clip_l"], learned.mean(0))


@pytest.mark.parametrize(
    "change",
    [
        {"gradient_checkpointing": True},
        {"adapter": AdapterSpec(rank=2, text_encoder=True)},
        {"token_count": 2},
    ],
)
def test_it_goes_with_other_settings(
    backbone: Backbone, first: LifelongState, change: dict[str, object]
) -> None:
    state = learn(backbone, task(), settings=replace(SETTINGS, **change))
    learned = state.concepts[0].vectors["clip_l"]
    assert len(learned.flatten(1).unique(dim=0)) == LAYERS
    if "gradient_checkpointing" in change:
        torch.testing.assert_close(learned, first.concepts[0].vectors["clip_l"])


def test_a_state_of_both_kinds_is_kept_and_told_apart(
    backbone: Backbone, first: LifelongState, tmp_path: Path
) -> None:
    plain = replace(SETTINGS, layerwise_tokens=False)
    state = learn(backbone, task("my_cat", "cat"), state=first, settings=plain)
    loaded = load_state(save_state(state, tmp_path / "a.lifelong.safetensors"))
    assert loaded.content_hash == state.content_hash
    assert [concept.layers for concept in loaded.concepts] == [LAYERS, 0]
    record = first.records[0]
    single = replace(first, records=(replace(record, concept=record.concept.single()),))
    assert single.content_hash != first.content_hash
    with knowing(backbone, loaded) as vectors:
        pictures = generate(
            backbone,
            ["a photo of embedding:my_dog dog", "a photo of embedding:my_cat cat"],
            seed=0,
            steps=2,
            size=(64, 64),
            vectors=vectors,
        )
        alone = generate(
            backbone,
            ["a photo of embedding:my_dog dog"],
            seed=0,
            steps=2,
            size=(64, 64),
            vectors={"my_dog": vectors["my_dog"]},
        )
    torch.testing.assert_close(pictures[:1], alone, rtol=0, atol=1e-4)


def test_a_concept_of_another_number_of_layers_is_refused_before_work(
    backbone: Backbone, first: LifelongState
) -> None:
    record = first.records[0]
    vectors = {"clip_l": torch.zeros(16, 1, 128)}
    foreign = replace(record, concept=replace(record.concept, vectors=vectors))
    state = replace(first, records=(foreign,))
    with pytest.raises(InputError, match="for 16 cross-attention layers.*has 10"):
        learn(backbone, task("my_cat", "cat"), state=state, settings=SETTINGS)
