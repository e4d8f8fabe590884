"""Lessons that change nothing but how their own concept's words are read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lifelong_core.adapters import AdapterSpec, low_rank_factors
from lifelong_core.adapters.spec import TARGETS
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.errors import InputError
from lifelong_core.lesson import LessonSettings
from lifelong_core.methods import METHODS, any_prompt_state, learn
from lifelong_core.methods.null_space import SHARE, VECTORS, other_words
from lifelong_core.prompts.ordinary import ordinary_prompts
from lifelong_core.sharing.naming import layers
from lifelong_core.state import LifelongState
from lifelong_core.training.lesson import prepare_lesson
from tests.consolidation.conftest import example_state, example_task

METHOD = METHODS["null_space"]
SPEC = AdapterSpec(rank=2)
SETTINGS = METHOD.settings(LessonSettings(steps=3, batch_size=1, adapter=SPEC))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


@pytest.fixture(scope="module")
def learned(backbone: Backbone) -> LifelongState:
    """After two lessons."""
    state = None
    for number in (1, 2):
        state = learn(
            backbone, example_task(number), state=state, method="null_space", settings=SETTINGS
        )
    assert state is not None
    return state


def share_of_change(backbone: Backbone, state: LifelongState, prompts: list[str]) -> float:
    """How long what the state's adapter reads of prompts' rows is, in parts of the rows."""
    rows = backbone.text.encode(prompts, state.vectors).context.flatten(0, 1)
    found = low_rank_factors(state.adapter_spec, state.adapter, layers(state.family))
    read = [
        float((rows @ one.down.mT).norm() / rows.norm() / one.down.norm()) for one in found.values()
    ]
    return max(read)


def test_settings_are_what_the_method_needs() -> None:
    given = LessonSettings(token_count=6)
    fixed = METHOD.settings(given)
    assert (fixed.localized_words, fixed.token_count, fixed.prior_count) == (True, 6, 0)
    assert METHOD.settings(fixed) == fixed
    assert METHOD.settings(LessonSettings()).token_count == VECTORS
    for adapter, words in (
        (AdapterSpec(targets=TARGETS), "attn2.to_k"),
        (AdapterSpec(text_encoder=True), "text encoder"),
        (AdapterSpec(kind="vera"), "kind lora"),
    ):
        with pytest.raises(InputError, match=words):
            METHOD.settings(replace(given, adapter=adapter))


def test_ordinary_prompts_are_many_and_always_the_same() -> None:
    prompts = ordinary_prompts(60)
    assert prompts == ordinary_prompts(60) and prompts[0] == ""
    assert len(set(prompts)) == 61 and not any("{" in prompt for prompt in prompts)
    assert ordinary_prompts(60, seed=1) != prompts


def test_a_lesson_reads_next_to_nothing_of_ordinary_prompts(
    backbone: Backbone, learned: LifelongState
) -> None:
    unseen = ["a photo of a green car and a dog in the snow", "two old men, a drawing"]
    usual = learn(backbone, example_task(1), method="lora", settings=SETTINGS)
    assert share_of_change(backbone, learned, ordinary_prompts(30)) < (1 - SHARE) ** 0.5
    ours, others = (share_of_change(backbone, one, unseen) for one in (learned, usual))
    assert ours < others / 2
    assert any(value.abs().max() > 0 for key, value in learned.adapter.items() if "up" in key)


def test_what_earlier_lessons_taught_is_left_alone_too(
    backbone: Backbone, learned: LifelongState
) -> None:
    first = learned.concepts[0]
    prompt = f"a photo of a {first.phrase}"
    rows = backbone.text.encode([prompt], learned.vectors).context[0]
    own = rows[5 : 5 + VECTORS + 1]  # begin, a, photo, of, a
    newest = {key: value for key, value in learned.adapter.items() if key.endswith("down")}
    read = max(float((own @ down.mT).norm() / own.norm() / down.norm()) for down in newest.values())
    assert read < (1 - SHARE) ** 0.5 + 0.02


def test_all_lessons_are_one_adapter(learned: LifelongState) -> None:
    together = any_prompt_state(learned)
    assert together.adapter_spec.rank == 2 * SPEC.rank
    assert METHOD.one_adapter


def test_the_adapter_keeps_as_many_directions_as_its_rank(backbone: Backbone) -> None:
    """However much there is to keep out; what ordinary words are comes first."""
    spec = AdapterSpec(rank=70)
    settings = METHOD.settings(LessonSettings(adapter=spec))
    state = example_state(backbone, 4, spec)
    task = replace(example_task(4), token="new")
    ordinary, known = (
        other_words(prepare_lesson(backbone, task, settings, before, METHOD.start))
        for before in (None, state)
    )
    assert ordinary.shape[1] < known.shape[1] <= 128 - spec.rank
    assert torch.allclose(known[:, : ordinary.shape[1]], ordinary, atol=1e-5)


def test_words_with_vectors_per_layer_are_left_alone_in_every_layer(backbone: Backbone) -> None:
    state = example_state(backbone, 1)
    (record,) = state.records
    draw = torch.Generator().manual_seed(0)
    vectors = {"clip_l": torch.randn(backbone.text.layers, 1, 128, generator=draw) * 0.05}
    record = replace(record, concept=replace(record.concept, vectors=vectors))
    state = replace(state, records=(record,))
    settings = METHOD.settings(LessonSettings(adapter=SPEC))
    lesson = prepare_lesson(backbone, example_task(2), settings, state, METHOD.start)
    known = other_words(lesson)
    prompt = f"a photo of a {record.concept.phrase}"
    read = backbone.text.encode([prompt], state.vectors).layers
    assert read is not None
    own = read[0, :, 5:7].flatten(0, 1)  # begin, a, photo, of, a
    apart = own - own @ known @ known.T
    assert float(apart.norm() / own.norm()) < 0.1
