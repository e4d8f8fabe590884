"""Looking back: the models of earlier lessons, what they drew, and what is left of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lifelong_core.adapters import build_adapter
from lifelong_core.adapters.spec import AdapterSpec
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.concepts import Concept
from lifelong_core.errors import InputError, StateError
from lifelong_core.review import kept_lessons, look_back, state_after, weight_drift
from lifelong_core.state import LifelongState, TaskRecord
from lifelong_core.training import Progress

SPEC = AdapterSpec(rank=2, alpha=2.0)
SIZE = 32


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo", seed=3)


def learned(backbone: Backbone, *strengths: float, method: str = "lora") -> LifelongState:
    """A state of one concept per strength; the adapter after a lesson is that of the first times
    its strength, so that distances are known."""
    weights = build_adapter(SPEC, backbone, seed=1).state()
    draw = torch.Generator().manual_seed(1)
    for key, value in weights.items():
        if key.endswith(".up"):
            weights[key] = torch.randn(value.shape, generator=draw)
    records = []
    for number, strength in enumerate(strengths):
        own = {k: v * strength if k.endswith(".up") else v for k, v in weights.items()}
        vectors = {k: v + number for k, v in backbone.text.noun_vector("dog").items()}
        concept = Concept(f"toy_{number}", "dog", vectors)
        records.append(TaskRecord(concept, "hash", own, {"method": method}, {}))
    adapter = {key: value.float() for key, value in records[-1].adapter.items()}
    return LifelongState(
        "demo",
        backbone.fingerprint,
        SPEC,
        adapter,
        tuple(records),
        {"fisher": {"x": torch.ones(1)}},
    )


def test_an_earlier_state_is_put_together_again(backbone: Backbone) -> None:
    state = learned(backbone, 1.0, 2.0, 3.0)
    second = state_after(state, 2)
    assert [c.token for c in second.concepts] == ["toy_0", "toy_1"]
    assert second.extras == {}
    for key, value in state.records[1].adapter.items():
        assert torch.equal(second.adapter[key], value.float())
    assert state_after(state, 3) is state
    for lesson in (0, 4):
        with pytest.raises(InputError, match="no lesson"):
            state_after(state, lesson)
    first, *rest = state.records
    forgetful = replace(state, records=(replace(first, adapter={}), *rest))
    with pytest.raises(StateError, match="toy_0"):
        state_after(forgetful, 1)
    assert kept_lessons(forgetful, 10) == [2, 3]


def test_some_of_many_lessons_are_first_last_and_between(backbone: Backbone) -> None:
    state = learned(backbone, *range(1, 10))
    assert kept_lessons(state, 20) == list(range(1, 10))
    assert kept_lessons(state, 3) == [1, 5, 9]
    assert kept_lessons(state, 2) == [1, 9]


def test_drift_is_in_units_of_what_had_been_learned(backbone: Backbone) -> None:
    drift = weight_drift(learned(backbone, 1.0, 1.5, 3.0), [1, 2, 3])
    assert drift == pytest.approx({(2, 1): 0.5, (3, 1): 2.0, (3, 2): 1.0}, rel=2e-3)
    assert weight_drift(learned(backbone, 0.0, 1.0), [1, 2]) == {}


def test_looking_back_at_two_concepts(backbone: Backbone) -> None:
    state = learned(backbone, 1.0, 1.0, 0.0)
    before = {key: value.clone() for key, value in backbone.unet.state_dict().items()}
    seen: list[Progress] = []
    review = look_back(
        backbone, state, [1, 2], pictures=1, steps=1, size=SIZE, on_progress=seen.append
    )
    assert set(review.looks) == {1, 2, 3}
    looks = review.looks[1]
    assert looks.plain.shape == looks.then.shape == looks.now.shape == (1, 3, SIZE, SIZE)
    # The second lesson left the adapter as it was, the third took it away.
    assert review.kept[1, 1] == review.kept[2, 1] == review.kept[2, 2] == 1.0
    assert review.kept[3, 1] < 0.999
    assert set(review.kept) == {(1, 1), (2, 1), (3, 1), (2, 2), (3, 2), (3, 3)}
    assert not torch.equal(looks.then, looks.plain)
    assert torch.equal(review.looks[3].then, review.looks[3].now)
    assert (seen[-1].step, seen[-1].of) == (8, 8)
    assert all(torch.equal(v, before[k]) for k, v in backbone.unet.state_dict().items())
    assert not any("forward" in module.__dict__ for module in backbone.unet.modules())


def test_hard_routing_keeps_everything(backbone: Backbone) -> None:
    state = learned(backbone, 1.0, 2.0, method="hard_routing")
    assert weight_drift(state, [1, 2]) == {}
    review = look_back(backbone, state, [1, 2], pictures=1, steps=1, size=SIZE)
    assert review.kept[2, 1] == 1.0
    assert torch.equal(review.looks[1].then, review.looks[1].now)


@pytest.mark.parametrize("method", ["lora_composite", "lora_switch"])
def test_there_is_no_one_model_to_look_back_at(backbone: Backbone, method: str) -> None:
    state = learned(backbone, 1.0, 2.0, method=method)
    assert weight_drift(state, [1, 2]) == {}
    with pytest.raises(InputError, match="LoRA-.*every step"):
        look_back(backbone, state, [1, 2])


def test_it_can_be_cancelled_and_refuses_what_it_cannot_see(backbone: Backbone) -> None:
    state = learned(backbone, 1.0)

    def cancel(_progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look_back(backbone, state, [1], pictures=1, steps=1, size=SIZE, on_progress=cancel)
    assert not any("forward" in module.__dict__ for module in backbone.unet.modules())
    with pytest.raises(StateError, match="no lesson"):
        look_back(backbone, replace(state, records=()), [1])
    with pytest.raises(StateError, match="fingerprint"):
        look_back(backbone, replace(state, base_fingerprint="other"), [1])
