"""States of many concepts whose adapters and word vectors are made, not learned.

What an iteration costs depends on shapes and counts alone, and 50 lessons take hours.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from lifelong_core.adapters import AdapterSpec, build_adapter
from lifelong_core.backbone import Backbone
from lifelong_core.concepts import Concept, ConceptTask
from lifelong_core.lesson import LessonSettings, defaults_for
from lifelong_core.seeding import generator
from lifelong_core.state import LifelongState, TaskRecord
from lifelong_core.world.shapes import NOUNS

CHANGE = 0.02
"""Size of the made weights beside those that an adapter starts from."""


def taught_with(state: LifelongState, **settings: object) -> LifelongState:
    """The state as if all lessons had these settings, such as another method."""
    records = [replace(one, settings={**one.settings, **settings}) for one in state.records]
    return replace(state, records=tuple(records))


def made_state(
    backbone: Backbone, newest: ConceptTask, concepts: int, spec: AdapterSpec | None = None
) -> LifelongState:
    """A state of `concepts` lessons, the last one on `newest`, each with an adapter of its own.

    spec: of the adapter, by default the family's.
    """
    usual = defaults_for(backbone.family.name)
    spec = spec or usual.adapter
    settings = LessonSettings(min_snr_gamma=usual.min_snr_gamma, adapter=spec).to_json()
    fresh = build_adapter(spec, backbone, seed=0).state()
    records = []
    for number in range(1, concepts + 1):
        last = number == concepts
        token = newest.token if last else f"made_{number}"
        noun = newest.noun if last else NOUNS[number % len(NOUNS)]
        draw = generator(number, "made")
        vectors = {
            key: value.cpu() + CHANGE * torch.randn(value.shape, generator=draw)
            for key, value in backbone.text.noun_vector(noun).items()
        }
        adapter = {
            name: value.cpu() + CHANGE * torch.randn(value.shape, generator=draw)
            for name, value in fresh.items()
        }
        task_hash = newest.content_hash if last else f"made {number}"
        records.append(TaskRecord(Concept(token, noun, vectors), task_hash, adapter, settings, {}))
    return LifelongState(
        family=backbone.family.name,
        base_fingerprint=backbone.fingerprint,
        adapter_spec=spec,
        adapter=records[-1].adapter,
        records=tuple(records),
    )
