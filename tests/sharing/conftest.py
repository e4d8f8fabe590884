"""States with random weights, as lessons would leave them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lifelong_core.adapters.spec import AdapterSpec
from lifelong_core.adapters.vera import random_matrices
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
            shapes: dict[str, dict[str, tuple[int, ...]]] = {
                "lora": {"down": (spec.rank, width), "up": (out, spec.rank)},
                "vera": {"d": (spec.rank,), "b": (out,)},
                "key_value": {"delta": (out, width)},
            }
            for part, shape in shapes[spec.kind].items():
                adapter[f"{layer}.{part}"] = torch.randn(shape, generator=random)
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


def changes_of(state: LifelongState) -> dict[str, torch.Tensor]:
    """Layer -> ΔW by the definition of the adapter's kind."""
    spec, weights = state.adapter_spec, state.adapter
    names = dict.fromkeys(key.rsplit(".", 1)[0] for key in weights)
    if spec.kind == "key_value":
        return {layer: weights[f"{layer}.delta"] for layer in names}
    if spec.kind == "lora":
        return {
            layer: spec.scale * weights[f"{layer}.up"] @ weights[f"{layer}.down"] for layer in names
        }
    shapes = layers(state.family)
    a, b = random_matrices(spec.rank, [shapes[layer] for layer in names])
    changes = {}
    for layer in names:
        out, width = shapes[layer]
        left, right = torch.diag(weights[f"{layer}.b"]), torch.diag(weights[f"{layer}.d"])
        changes[layer] = left @ b[:out] @ right @ a[:, :width]
    return changes


@pytest.fixture(scope="session")
def changes() -> Callable[[LifelongState], dict[str, torch.Tensor]]:
    return changes_of
