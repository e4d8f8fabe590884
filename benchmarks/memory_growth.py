"""How a whole L2DM lesson grows with what is known before it, with and without a bound."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.made_state import made_state
from benchmarks.speed_data import STREAM_SEED
from lifelong_core.backbone import Backbone
from lifelong_core.concepts import Concept, ConceptTask, make_task
from lifelong_core.lesson import LessonSettings, defaults_for
from lifelong_core.memory import (
    ConceptMemory,
    LongTermMemory,
    MemorySettings,
    recall,
    with_memory,
    world_features,
)
from lifelong_core.methods import METHODS, learn
from lifelong_core.seeding import generator
from lifelong_core.state import LifelongState
from lifelong_core.world.streams import toys5

KNOWN = (5, 20, 50)
LIMIT = 160
"""Pictures drawn per lesson with the bound: four concepts of 5 pictures and 8 candidates."""
REMEMBERED = 5


def lesson_growth(
    backbone: Backbone,
    method: str,
    *,
    known: Sequence[int] = KNOWN,
    limit: int = LIMIT,
    lesson: LessonSettings | None = None,
    memory: MemorySettings | None = None,
    kept: Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]] = lambda _name, row: row(),
) -> list[dict[str, Any]]:
    """A row per number of known concepts, without and with `limit`: processor seconds of drawing
    and choosing the memory, and of the lesson with all that it draws itself, none of it cached.

    The concepts before it are made, not learned, and remembered by made features.
    kept: a name and what measures its row -> the row, which may be known already.
    """
    toy = toys5(STREAM_SEED)[0]
    task = make_task(toy.token, toy.noun, toy.photos(5), size=backbone.family.default_size)
    settings = METHODS[method].settings(lesson or defaults_for(backbone.family.name))
    rows: list[dict[str, Any]] = []
    for count in known:
        newest = replace(task, token="made_0")
        state = _remembering(made_state(backbone, newest, count, settings.adapter))
        for n in (0, limit):
            chosen = replace(memory or MemorySettings(), limit=n)
            measure = partial(_whole_lesson, backbone, task, state, method, settings, chosen)
            rows.append(kept(f"lesson of {method} after {count} concepts, limit {n}", measure))
    return rows


def _whole_lesson(
    backbone: Backbone,
    task: ConceptTask,
    state: LifelongState,
    method: str,
    settings: LessonSettings,
    memory: MemorySettings,
) -> dict[str, Any]:
    begin = time.process_time()
    found = recall(backbone, state, world_features(), settings=memory, size=task.images.shape[-1])
    between = time.process_time()
    learn(backbone, task, state=state, method=method, settings=settings, memory=found.memory)
    end = time.process_time()
    known = len(state.concepts)
    return {
        "run": f"lesson of {method} after {known} concepts, limit {memory.limit}",
        "known": known,
        "limit": memory.limit,
        "pictures_drawn": len(found.thumbnails),
        "pictures_replayed": len(found.memory.images),
        "memory_cpu_seconds": round(between - begin, 2),
        "lesson_cpu_seconds": round(end - between, 2),
    }


def growth_summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """`whole_lesson_seconds_<known>`, and the same with `limited_` before it: memory and lesson."""
    return {
        "limited_" * bool(row["limit"]) + f"whole_lesson_seconds_{row['known']}": round(
            row["memory_cpu_seconds"] + row["lesson_cpu_seconds"], 1
        )
        for row in rows
    }


def _remembering(state: LifelongState) -> LifelongState:
    concepts = {one.token: _made(one, number) for number, one in enumerate(state.concepts)}
    model = world_features().fingerprint
    return with_memory(state, LongTermMemory(state.base_fingerprint, model, concepts))


def _made(concept: Concept, number: int) -> ConceptMemory:
    draw = generator(number, "remembered")
    features = F.normalize(torch.randn(REMEMBERED, 128, generator=draw), dim=1)
    return ConceptMemory(features, (f"a photo of {concept.phrase}",) * REMEMBERED)
