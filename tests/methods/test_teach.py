"""A whole task: the lesson, what holds it to earlier ones, and the phases after it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lifelong_core.adapters import AdapterSpec
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.concepts import ConceptTask, make_task
from lifelong_core.consolidation import ConsolidationSettings
from lifelong_core.errors import InputError
from lifelong_core.lesson import LessonSettings
from lifelong_core.methods import METHODS, learn, teach
from lifelong_core.state import LifelongState

SETTINGS = LessonSettings(steps=2, batch_size=1, prior_count=0, adapter=AdapterSpec(rank=2))
CONSOLIDATION = ConsolidationSettings(batch_size=1, fisher_iterations=2)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


def task(token: str = "my_dog", noun: str = "dog") -> ConceptTask:
    draw = torch.Generator().manual_seed(len(noun))
    return make_task(token, noun, [torch.rand(3, 64, 64, generator=draw)], size=64)


def next_task() -> ConceptTask:
    return task("my_cup", "cup")


@pytest.fixture(scope="module")
def first(backbone: Backbone) -> LifelongState:
    return teach(backbone, task(), method="ewc_dc", settings=SETTINGS, consolidation=CONSOLIDATION)


@pytest.mark.parametrize(
    ("method", "phases", "groups"),
    [
        ("lora", [], set()),
        ("ewc", ["fisher"], {"fisher"}),
        ("ewc_dc", ["fisher_dc"], {"fisher"}),
        ("ewc_rank1", ["fisher_rank1"], {"fisher_rank1"}),
    ],
)
def test_a_lesson_and_then_the_methods_phases(
    backbone: Backbone, method: str, phases: list[str], groups: set[str]
) -> None:
    assert [phase.name for phase in METHODS[method].after] == phases
    state = teach(backbone, task(), method=method, settings=SETTINGS, consolidation=CONSOLIDATION)
    assert set(state.extras) == groups
    lesson = learn(backbone, task(), method=method, settings=SETTINGS)
    assert all(torch.equal(state.adapter[name], value) for name, value in lesson.adapter.items())
    assert not lesson.extras
    assert set(lesson.records[0].metrics["terms"]) == {"denoising"}


def moved(state: LifelongState, before: LifelongState) -> float:
    """How far the adapter is from where the state before had it."""
    pairs = [(state.adapter[name], value) for name, value in before.adapter.items()]
    return sum(float((now - then).square().sum()) for now, then in pairs) ** 0.5


def test_the_penalty_holds_the_adapter_where_it_was(
    backbone: Backbone, first: LifelongState
) -> None:
    settings = replace(SETTINGS, steps=6)
    free, held = (
        learn(
            backbone,
            next_task(),
            state=first,
            method="ewc",
            settings=replace(settings, ewc_weight=weight),
        )
        for weight in (0.0, 1e4)
    )
    assert set(free.records[-1].metrics["terms"]) == {"denoising"}
    penalty = held.records[-1].metrics["terms"]["ewc"]
    assert penalty[0] == 0.0
    assert penalty[1] > 0.0
    assert moved(held, first) < 0.9 * moved(free, first)


def test_a_lesson_that_nothing_protects_is_warned_of(
    backbone: Backbone, first: LifelongState, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "lifelong_core.methods.elastic"):
        learn(backbone, next_task(), state=first, method="ewc", settings=SETTINGS)
        assert not caplog.text
        bare = replace(first, extras={})
        state = learn(backbone, next_task(), state=bare, method="ewc", settings=SETTINGS)
    assert "Not protected" in caplog.text
    assert "embedding:my_dog dog" in caplog.text
    assert set(state.records[-1].metrics["terms"]) == {"denoising"}


def test_half_precision_lessons_have_a_full_precision_penalty(backbone: Backbone) -> None:
    settings = replace(SETTINGS, precision="bf16")
    state = teach(
        backbone,
        task(),
        method="ewc_rank1",
        settings=settings,
        consolidation=replace(CONSOLIDATION, precision="bf16"),
    )
    second = learn(backbone, next_task(), state=state, method="ewc_rank1", settings=settings)
    penalty = second.records[-1].metrics["terms"]["ewc"]
    assert penalty[0] == pytest.approx(0.0, abs=1e-9)
    assert penalty[1] > 0.0


def test_lesson_and_phases_are_found_again(backbone: Backbone, tmp_path: Path) -> None:
    def run(seen: list[str]) -> LifelongState:
        return teach(
            backbone,
            task(),
            method="ewc",
            settings=SETTINGS,
            consolidation=CONSOLIDATION,
            on_progress=lambda progress: seen.append(progress.phase),
            workspace=tmp_path,
        )

    seen: list[str] = []
    state = run(seen)
    assert seen == ["lesson", "lesson", "fisher", "fisher"]
    seen.clear()
    assert run(seen).content_hash == state.content_hash
    assert not seen


def test_a_precision_that_the_phases_cannot_have_is_refused_before_the_lesson() -> None:
    half, called = random_backbone("demo", dtype=torch.bfloat16), []
    with pytest.raises(InputError, match="precision"):
        teach(
            half,
            task(),
            method="ewc",
            settings=replace(SETTINGS, precision="bf16"),
            consolidation=CONSOLIDATION,
            on_progress=called.append,
        )
    assert not called
    state = teach(half, task(), method="lora", settings=replace(SETTINGS, precision="bf16"))
    assert len(state.records) == 1
