"""The comparison of layer-wise and single vectors: what is compared, and with which sign."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import layerwise
from benchmarks.layerwise import LAYERWISE, MEAN, SINGLE
from lifelong_core.adapters.spec import AdapterSpec
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.concepts import Concept
from lifelong_core.state import LifelongState, TaskRecord
from lifelong_core.world.streams import toys5


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


def test_lessons_differ_in_the_tokens_alone_and_means_come_from_the_second(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def lesson(_backbone: Backbone, task: Any, *, settings: Any, **_: Any) -> LifelongState:
        asked.append(settings)
        shape = (10, 1, 128) if settings.layerwise_tokens else (1, 128)
        vectors = {"clip_l": torch.arange(1280.0).view(10, 1, 128)[: shape[0]].view(shape)}
        concept = Concept(task.token, task.noun, vectors)
        spec = AdapterSpec("key_value")
        return LifelongState("demo", "x", spec, {}, (TaskRecord(concept, "", {}, {}, {}),))

    monkeypatch.setattr(layerwise, "learn", lesson)
    states = layerwise.taught(backbone, toys5(2)[0], 7)
    first, second = (given.to_json() for given in asked)
    assert {key for key in first if first[key] != second[key]} == {"layerwise_tokens"}
    assert first["steps"] == 7 and not first["layerwise_tokens"]
    counts = {kind: state.concepts[0].layers for kind, state in states.items()}
    assert counts == {SINGLE: 0, LAYERWISE: 10, MEAN: 0}
    expected = states[LAYERWISE].concepts[0].vectors["clip_l"].mean(0)
    assert torch.equal(states[MEAN].concepts[0].vectors["clip_l"], expected)


def test_differences_are_paired_and_have_the_sign_of_their_name(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = {SINGLE: 0.5, LAYERWISE: 0.6, MEAN: 0.4}
    monkeypatch.setattr(layerwise, "taught", lambda *_: {kind: kind for kind in numbers})
    monkeypatch.setattr(
        layerwise,
        "alignment",
        lambda _b, _s, toy, kind, _p: torch.full((4,), numbers[kind] + 0.1 * (toy is toys[0])),
    )
    toys = toys5(2)[:2]
    summary, rows = layerwise.measure_layerwise(backbone, toys, 1)
    assert summary["layerwise_minus_single_ia"] == pytest.approx(0.1)
    assert summary["mean_minus_layerwise_ia"] == pytest.approx(-0.2)
    assert summary["mean_minus_single_ia"] == pytest.approx(-0.1)
    assert summary["layerwise_minus_single_ia_interval"] == pytest.approx([0.1, 0.1])
    assert [row["ia_single"] for row in rows] == [0.6, 0.5]
