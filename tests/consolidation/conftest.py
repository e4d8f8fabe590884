"""Small states to consolidate: random weights stand for what lessons would have learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from lifelong_core.adapters import AdapterSpec, build_adapter
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.concepts import Concept, ConceptTask, make_task
from lifelong_core.lesson import LessonSettings
from lifelong_core.seeding import generator
from lifelong_core.state import LifelongState, TaskRecord

NOUNS = ("dog", "cat", "duck", "cup")


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return random_backbone("demo")


def example_task(number: int) -> ConceptTask:
    """What lesson 1, 2, … was learned from: two pictures of 64 pixels."""
    draw = generator(number, "pictures")
    pictures = [torch.rand(3, 64, 64, generator=draw) for _ in range(2)]
    return make_task(f"thing_{number}", NOUNS[number - 1], pictures, size=64)


def example_state(
    backbone: Backbone, lessons: int, spec: AdapterSpec | None = None
) -> LifelongState:
    """The state after `lessons` lessons, every one with an adapter of its own."""
    spec = spec or AdapterSpec(rank=2)
    settings = replace(LessonSettings(), adapter=spec).to_json()
    records = []
    for number in range(1, lessons + 1):
        task = example_task(number)
        draw = generator(number, "weights")
        vectors = {
            key: torch.randn(value.shape, generator=draw) * value.std()
            for key, value in backbone.text.noun_vector(task.noun).items()
        }
        adapter = {
            name: torch.randn(value.shape, generator=draw) * 0.05
            for name, value in build_adapter(spec, backbone, seed=0).state().items()
        }
        concept = Concept(task.token, task.noun, vectors)
        records.append(TaskRecord(concept, task.content_hash, adapter, settings, {}))
    return LifelongState(
        family="demo",
        base_fingerprint=backbone.fingerprint,
        adapter_spec=spec,
        adapter=adapter,
        records=tuple(records),
    )


@pytest.fixture(scope="session")
def task_of() -> Callable[[int], ConceptTask]:
    return example_task


@pytest.fixture(scope="session")
def state_after(backbone: Backbone) -> Callable[..., LifelongState]:
    """lessons, spec -> the state after so many lessons."""
    return lambda lessons, spec=None: example_state(backbone, lessons, spec)
