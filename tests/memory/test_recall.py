"""From remembered features to pictures that a lesson can replay."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lifelong_core.adapters import AdapterSpec, build_adapter
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.concepts import Concept
from lifelong_core.drawing import knowing
from lifelong_core.errors import InputError, StateError
from lifelong_core.memory import (
    RANDOM,
    LongTermMemory,
    MemorySettings,
    Recollection,
    ShortTermMemory,
    drawer_hash,
    recall,
    remember,
)
from lifelong_core.memory import candidates as drawing
from lifelong_core.memory.candidates import anchors_of
from lifelong_core.memory.features import directions
from lifelong_core.memory.selection import choose_best, rainbow_scores
from lifelong_core.sampling import generate
from lifelong_core.seeding import derive_seed
from lifelong_core.state import LifelongState, TaskRecord
from lifelong_core.training import Progress

from .toy import COLOURS, OTHERS, task

SPEC = AdapterSpec(rank=2)
SETTINGS = MemorySettings(candidates=3, steps=1)
LESSONS = [("toy-2", 2), ("a_1", 1)]


class Cancel(BaseException):
    """What ComfyUI's cancel looks like."""


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


@pytest.fixture(scope="module")
def state(backbone: Backbone) -> LifelongState:
    """Two concepts with made weights, three remembered pictures."""
    adapter = build_adapter(SPEC, backbone, seed=1).state()
    weights = {name: torch.full_like(value, 0.01) for name, value in adapter.items()}
    known = LifelongState(backbone.family.name, backbone.fingerprint, SPEC, weights)
    for token, pictures in LESSONS:
        taught = task(token, pictures)
        vectors = {key: value * 1.1 for key, value in backbone.text.noun_vector("dog").items()}
        record = TaskRecord(Concept(token, "dog", vectors), taught.content_hash, {}, {}, {})
        known = remember(replace(known, records=(*known.records, record)), taught, COLOURS)
    return known


@pytest.fixture(scope="module")
def recalled(backbone: Backbone, state: LifelongState) -> Recollection:
    return recall(backbone, state, COLOURS, settings=SETTINGS, size=64)


def test_the_state_draws_every_prompt_and_the_best_are_kept(
    backbone: Backbone, state: LifelongState, recalled: Recollection
) -> None:
    """Against one call per picture's prompt, one feature and one score after the other."""
    pictures, features, prompts = [], [], []
    memory = LongTermMemory.of(state)
    assert memory is not None
    with knowing(backbone, state) as vectors:
        for token, known in memory.concepts.items():
            for number, prompt in enumerate(known.prompts):
                seed = derive_seed(0, "memory", token, number)
                drawn = generate(
                    backbone,
                    [prompt] * 3,
                    seed=seed,
                    steps=1,
                    guidance=backbone.family.guidance / 2,
                    size=(64, 64),
                    vectors=vectors,
                )
                pictures += list(drawn)
                features.append(directions(COLOURS, drawn))
                prompts += [prompt] * 3
    anchors = torch.cat([known.features for known in memory.concepts.values()])
    scores = rainbow_scores(torch.cat(features), anchors, 1.0)
    concepts = torch.tensor([0, 0, 1])
    chosen = choose_best(scores, concepts, concepts.repeat_interleave(3)).tolist()
    assert recalled.chosen.tolist() == chosen
    assert torch.allclose(recalled.scores, scores, atol=1e-5)
    wanted = torch.stack([pictures[number] for number in chosen])
    assert torch.allclose(recalled.memory.images, wanted, atol=1e-5)
    assert recalled.memory.prompts == tuple(prompts[number] for number in chosen)
    assert recalled.memory.concepts == (0, 0, 1)
    assert recalled.memory.drawn_by == drawer_hash(state)
    assert recalled.thumbnails.shape == (9, 3, 96, 96)


def test_the_same_state_gives_the_same_memory_and_another_seed_another(
    backbone: Backbone, state: LifelongState, recalled: Recollection
) -> None:
    again = recall(backbone, state, COLOURS, settings=SETTINGS, size=64)
    assert again.memory.content_hash == recalled.memory.content_hash
    other = recall(backbone, state, COLOURS, settings=replace(SETTINGS, seed=1), size=64)
    assert other.memory.content_hash != recalled.memory.content_hash


def test_guidance_is_a_share_of_the_usual_and_never_less_than_none(
    backbone: Backbone, state: LifelongState, recalled: Recollection
) -> None:
    def hash_at(share: float) -> str:
        settings = replace(SETTINGS, guidance=share)
        return recall(backbone, state, COLOURS, settings=settings, size=64).memory.content_hash

    assert hash_at(1.0) != recalled.memory.content_hash
    assert hash_at(0.0) == hash_at(1.0 / backbone.family.guidance)


def test_cancelled_drawing_goes_on_and_what_is_drawn_is_found_again(
    backbone: Backbone,
    state: LifelongState,
    recalled: Recollection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[list[str]] = []
    really = generate

    def counted(backbone: Backbone, prompts: list[str], **given: object) -> torch.Tensor:
        calls.append(prompts)
        return really(backbone, prompts, **given)  # type: ignore[arg-type]

    def cancel(progress: Progress) -> None:
        if progress.step == 2:
            raise Cancel

    monkeypatch.setattr(drawing, "generate", counted)
    with pytest.raises(Cancel):
        recall(
            backbone,
            state,
            COLOURS,
            settings=SETTINGS,
            size=64,
            workspace=tmp_path,
            on_progress=cancel,
        )
    assert len(calls) == 2
    assert not any("forward" in module.__dict__ for module in backbone.unet.modules())

    def found() -> Recollection:
        return recall(backbone, state, COLOURS, settings=SETTINGS, size=64, workspace=tmp_path)

    assert found().memory.content_hash == recalled.memory.content_hash
    assert len(calls) == 3
    found()
    assert len(calls) == 3
    wiser = replace(state, adapter={key: value * 2 for key, value in state.adapter.items()})
    recall(backbone, wiser, COLOURS, settings=SETTINGS, size=64, workspace=tmp_path)
    assert len(calls) == 6


def test_a_damaged_file_is_drawn_again(
    backbone: Backbone,
    state: LifelongState,
    recalled: Recollection,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(2):
        found = recall(backbone, state, COLOURS, settings=SETTINGS, size=64, workspace=tmp_path)
        next((tmp_path / "memories").iterdir()).write_bytes(b"?")
    assert found.memory.content_hash == recalled.memory.content_hash
    assert "Drawing remembered pictures again" in caplog.text


def test_a_limit_draws_some_concepts_and_others_after_the_next_lesson(
    state: LifelongState,
) -> None:
    memory = LongTermMemory.of(state)
    assert memory is not None
    assert len(anchors_of(state, memory, SETTINGS)) == 3
    kept = [
        [(anchor.concept, anchor.number) for anchor in anchors_of(state, memory, limited)]
        for limited in (replace(SETTINGS, limit=7, seed=seed) for seed in range(8))
    ]
    assert {tuple(numbers) for numbers in kept} == {((0, 0), (0, 1)), ((0, 0), (1, 0))}
    with pytest.raises(InputError, match="less than the 3 candidates"):
        replace(SETTINGS, limit=2)


def test_random_selection_draws_the_same_and_chooses_otherwise(
    backbone: Backbone, state: LifelongState, recalled: Recollection
) -> None:
    chosen = {
        tuple(
            recall(
                backbone,
                state,
                COLOURS,
                settings=replace(SETTINGS, selection=RANDOM),
                size=64,
            ).chosen.tolist()
        )
        for _ in range(2)
    }
    assert len(chosen) == 1
    (numbers,) = chosen
    assert {number // 6 for number in numbers} == {0, 1}


def test_what_cannot_be_recalled_is_refused_before_anything_is_drawn(
    backbone: Backbone, state: LifelongState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "generate", lambda *_, **__: pytest.fail("it drew"))
    with pytest.raises(StateError, match="memory bank is empty"):
        recall(backbone, replace(state, extras={}), COLOURS, size=64)
    with pytest.raises(StateError, match=r"colours:1.*shapes:1"):
        recall(backbone, state, OTHERS, size=64)
    with pytest.raises(StateError, match="other-base"):
        recall(backbone, replace(state, base_fingerprint="other-base"), COLOURS, size=64)
    with pytest.raises(InputError, match="candidates is 0"):
        MemorySettings(candidates=0)


def test_lessons_that_were_not_remembered_are_named(
    backbone: Backbone,
    state: LifelongState,
    caplog: pytest.LogCaptureFixture,
) -> None:
    half = {
        key: value for key, value in state.extras["memory"].items() if not key.startswith("toy-2/")
    }
    with caplog.at_level(logging.WARNING):
        partly = replace(state, extras={"memory": half})
        memory = recall(backbone, partly, COLOURS, settings=SETTINGS, size=64).memory
    assert memory.concepts == (1,)
    assert "Not remembered, so not replayed: toy-2" in caplog.text


def test_a_memory_must_be_of_the_state_that_replays_it(
    state: LifelongState, recalled: Recollection
) -> None:
    recalled.memory.require_state(state)
    wiser = replace(state, adapter={key: value * 2 for key, value in state.adapter.items()})
    with pytest.raises(StateError, match="drawn by another state"):
        recalled.memory.require_state(wiser)
    images = recalled.memory.images
    with pytest.raises(StateError, match="concept 3, but the state knows 2"):
        ShortTermMemory(images[:1], ("embedding:a_1",), (2,)).require_state(state)
    with pytest.raises(StateError, match="does not name its concept"):
        ShortTermMemory(images[:1], ("embedding:a_1 dog",), (0,)).require_state(state)


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        (torch.rand(0, 3, 8, 8), (), "without pictures"),
        (torch.rand(1, 4, 8, 8), ("embedding:x",), r"expected \[M, 3, H, W\]"),
        (torch.rand(2, 3, 8, 8), ("embedding:x",), "2 remembered pictures came with 1"),
        (torch.rand(1, 3, 8, 8) * float("inf"), ("embedding:x",), "not finite"),
        (torch.rand(1, 3, 8, 8) + 9, ("embedding:x",), "outside of 0 to 1"),
    ],
)
def test_memories_that_cannot_be_replayed_are_refused(
    images: torch.Tensor, prompts: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ShortTermMemory(images, prompts, (0,) * len(prompts))
