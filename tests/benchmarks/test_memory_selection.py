"""The bank's benchmark: both lessons are the same but for the replay, and IA is taken in pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import memory_selection
from benchmarks.memory_growth import growth_summary, lesson_growth
from benchmarks.memory_selection import (
    ANCHORS,
    CANDIDATES,
    CONCEPTS,
    RAINBOW,
    RANDOM,
    rainbow_minus_random,
    selection_seconds,
    step_seconds,
)
from lifelong_core.backbone import random_backbone
from lifelong_core.errors import FileError
from lifelong_core.files import write_json
from lifelong_core.lesson import defaults_for
from lifelong_core.memory import MemorySettings
from lifelong_core.memory.selection import choose_best
from lifelong_core.methods import METHODS
from lifelong_core.training import priors
from lifelong_core.training.lesson import Lesson


def test_what_is_timed_is_the_choice_for_all_concepts(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Tensor] = []

    def choose(scores: Tensor, concepts: Tensor, of_candidates: Tensor) -> Tensor:
        found.append(choose_best(scores, concepts, of_candidates))
        assert torch.equal(concepts.unique(), torch.arange(CONCEPTS))
        assert of_candidates.unique(return_counts=True)[1].eq(ANCHORS * CANDIDATES).all()
        assert torch.equal(of_candidates[found[-1]], concepts)
        return found[-1]

    monkeypatch.setattr(memory_selection, "REPEATS", 2)
    monkeypatch.setattr(memory_selection, "choose_best", choose)
    assert (CONCEPTS, CANDIDATES) == (50, 8)
    assert len(selection_seconds()) == 2
    warm, *timed = found
    assert len(timed) == 2 and all(torch.equal(warm, chosen) for chosen in timed)
    assert len(warm.unique()) == len(warm) == CONCEPTS * ANCHORS


def test_both_lessons_train_the_same_and_one_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(priors, "SAMPLER_STEPS", 1)
    seen: list[Lesson] = []
    make = METHODS["l2dm_lora"].terms

    def look(lesson: Lesson) -> None:
        seen.append(lesson)

    method = replace(METHODS["l2dm_lora"], terms=(*make, look))
    monkeypatch.setitem(METHODS, "l2dm_lora", method)
    spans = step_seconds(random_backbone("demo"), "l2dm_lora", rounds=1, steps=1)
    assert {name: len(seconds) for name, seconds in spans.items()} == {"plain": 1, "replay": 1}
    plain, replay = seen
    assert plain.memory is None and replay.memory is not None
    assert plain.settings == replay.settings
    assert [len(replay.memory.images)] == [8]
    sizes = {plain.settings.batch_size, plain.settings.prior_batch_size}
    assert sizes == {plain.settings.replay_batch_size}


def run(method: str, seed: int, ia: float) -> dict[str, Any]:
    final = [{"concept": concept, "ia": ia + concept / 100} for concept in (1, 2)]
    return {"method": method, "stream_seed": seed, "measured": {"world_clip": {"final": final}}}


def test_rainbow_is_compared_with_random_on_the_same_seeds(tmp_path: Path) -> None:
    table = tmp_path / "toys5.json"
    assert rainbow_minus_random(table) is None
    runs = [run(RAINBOW, 2, 0.7), run(RAINBOW, 3, 0.8), run("lora", 2, 0.1)]
    write_json(table, {"summary": {}, "runs": runs})
    assert rainbow_minus_random(table) is None
    runs += [run(RANDOM, 2, 0.6), run(RANDOM, 3, 0.7)]
    write_json(table, {"summary": {}, "runs": runs})
    assert rainbow_minus_random(table) == pytest.approx([0.1, 0.1, 0.1])
    with pytest.raises(FileError, match="no table"):
        rainbow_minus_random(write_json(tmp_path / "other.json", {}))


def test_a_bound_holds_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(priors, "SAMPLER_STEPS", 1)
    lesson = replace(defaults_for("demo"), steps=1, prior_count=4, batch_size=1)
    rows = lesson_growth(
        random_backbone("demo"),
        "l2dm_lora",
        known=(1, 2),
        limit=5,
        lesson=lesson,
        memory=MemorySettings(candidates=1, steps=1),
    )
    assert [row["pictures_drawn"] for row in rows] == [5, 5, 10, 5]
    assert [row["pictures_replayed"] for row in rows] == [5, 5, 10, 5]
    assert list(growth_summary(rows)) == [
        "whole_lesson_seconds_1",
        "limited_whole_lesson_seconds_1",
        "whole_lesson_seconds_2",
        "limited_whole_lesson_seconds_2",
    ]
