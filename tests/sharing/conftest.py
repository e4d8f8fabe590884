"""States with random weights, as lessons would leave them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lifelong_core.adapters.spec import AdapterSpec
from lifelong_core.backbone.families import FAMILIES
from lifelong_core.concepts import Concept
from lifelong_core.seeding import generator
from lifelong_core.sharing.naming import layers
from lifelong_core.state import LifelongState, TaskRecord

MakeState = Callable[..., LifelongState]
NOUNS = {"sks-1": "dog", "Ducky": "rubber duck"}


def state_of(
    family: str = "demo",
    spec: AdapterSpec | None = None,
    nouns: dict[str, str] = NOUNS,
    seed: int = 0,
) -> LifelongState:
    spec = spec or AdapterSpec(rank=4, alpha=2.0)
    adapter = {}
    for layer, (out, width) in layers(family).items():
        text = layer.startswith("text.")
        if (text and spec.text_encoder) or (not text and layer.endswith(spec.targets)):
            random = generator(seed, layer)
            adapter[f"{layer}.down"] = torch.randn(spec.rank, width, generator=random)
            adapter[f"{layer}.up"] = torch.randn(out, spec.rank, generator=random)
    records = []
    for token, noun in nouns.items():
        vectors = {
            config.key: torch.randn(2, config.width, generator=generator(seed, token, config.key))
            for config in FAMILIES[family].text
        }
        settings = {"steps": 200, "learning_rate": 1e-3, "seed": 7, "folder": "/home/ann/dogs"}
        records.append(TaskRecord(Concept(token, noun, vectors), "ab12", adapter, settings, {}))
    return LifelongState(family, f"{family}-v-0123", spec, adapter, tuple(records))


@pytest.fixture(scope="session")
def make_state() -> MakeState:
    return state_of
