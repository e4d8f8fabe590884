"""Methods that look back at earlier lessons, on a demo model with random weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lifelong_core.adapters import AdapterSpec, build_adapter
from lifelong_core.backbone import Backbone, Conditioning, random_backbone
from lifelong_core.concepts import Concept, ConceptTask, make_task
from lifelong_core.consolidation.stacking import stacked_state, summed_changes
from lifelong_core.errors import StateError
from lifelong_core.lesson import LessonSettings
from lifelong_core.methods import METHODS, any_prompt_state, learn, teach
from lifelong_core.objectives import StepBatch
from lifelong_core.objectives.overlap import Overlap
from lifelong_core.seeding import generator
from lifelong_core.state import LifelongState, TaskRecord
from lifelong_core.training.lesson import prepare_lesson

SPEC = AdapterSpec(rank=2)
SETTINGS = LessonSettings(steps=1, batch_size=2, prior_count=0, adapter=SPEC)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


def task() -> ConceptTask:
    picture = torch.rand(3, 32, 32, generator=generator(0, "picture"))
    return make_task("my_new", "dog", [picture], size=32)


def after(backbone: Backbone, lessons: int, method: str = "lora") -> LifelongState:
    """A state of lessons of `method` with random adapters."""
    records = []
    for number in range(lessons):
        weights = {
            key: torch.randn(value.shape, generator=generator(number, key)) * 0.1
            for key, value in build_adapter(SPEC, backbone, seed=0).state().items()
        }
        concept = Concept(f"my_{number}", "cat", backbone.text.noun_vector("cat"))
        records.append(TaskRecord(concept, str(number), weights, {"method": method}, {}))
    return LifelongState("demo", backbone.fingerprint, SPEC, weights, tuple(records))


def answer(backbone: Backbone) -> Tensor:
    draw = generator(1, "inputs")
    latents = torch.randn(1, 4, 8, 8, generator=draw)
    context = torch.randn(1, 77, 128, generator=draw)
    with torch.no_grad():
        return backbone.predict(latents, torch.tensor([500]), Conditioning(context))


def test_summed_changes_are_those_of_all_records(backbone: Backbone) -> None:
    state = after(backbone, 3)
    sums = summed_changes(state, backbone)
    assert len(sums) == 20
    for key, value in sums.items():
        naive = torch.zeros_like(value)
        for record in state.records:
            up, down = (record.adapter[f"{key}.{part}"].float() for part in ("up", "down"))
            naive += SPEC.scale * up @ down
        torch.testing.assert_close(value, naive, rtol=1e-4, atol=1e-6)


def test_c_lora_trains_on_top_of_what_it_will_draw_with(backbone: Backbone) -> None:
    state = after(backbone, 3)
    before = answer(backbone)
    earlier = replace(state, records=state.records[:2], adapter=state.records[1].adapter)
    lesson = prepare_lesson(backbone, task(), SETTINGS, earlier, METHODS["c_lora"].start)
    assert float(lesson.adapter.state().popitem()[1].abs().sum()) == 0.0
    lesson.adapter.load(state.records[2].adapter)
    with lesson.adapter.attached(backbone):
        trained = answer(backbone)
    stacked = stacked_state(state)
    drawn = build_adapter(stacked.adapter_spec, backbone, seed=0)
    drawn.load(stacked.adapter)
    with drawn.attached(backbone):
        torch.testing.assert_close(answer(backbone), trained, rtol=1e-4, atol=1e-4)
    assert stacked.adapter_spec.rank == 6
    assert not torch.allclose(trained, before, atol=1e-2)
    assert torch.equal(answer(backbone), before)


class Operations(TorchDispatchMode):
    """Counts operations and the numbers that they give."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.numbers = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls += 1
        self.numbers += result.numel() if isinstance(result, Tensor) else 0
        return result


def test_a_step_of_c_lora_costs_the_same_after_one_and_after_many_lessons(
    backbone: Backbone,
) -> None:
    counts = []
    for lessons in (1, 6):
        lesson = prepare_lesson(
            backbone, task(), SETTINGS, after(backbone, lessons), METHODS["c_lora"].start
        )
        term = METHODS["c_lora"].terms[-1](lesson)
        assert isinstance(term, Overlap)
        with Operations() as operations:
            term(cast(StepBatch, None))
        kept = sum(value.numel() for value in term.magnitudes.values())
        counts.append((operations.calls, operations.numbers, kept))
    assert counts[0] == counts[1]
    assert counts[0][0] > 20


@pytest.mark.parametrize(("method", "term"), [("lwf", "retention"), ("c_lora", "overlap")])
def test_a_lesson_looks_back_only_if_there_is_something(
    backbone: Backbone, method: str, term: str
) -> None:
    first = learn(backbone, task(), method=method, settings=SETTINGS)
    assert set(first.records[-1].metrics["terms"]) == {"denoising"}
    known = after(backbone, 2, method)
    second = learn(backbone, task(), state=known, method=method, settings=SETTINGS)
    assert set(second.records[-1].metrics["terms"]) == {"denoising", term}
    rank = any_prompt_state(second).adapter_spec.rank
    assert rank == (6 if method == "c_lora" else 2)
    assert not any("forward" in module.__dict__ for module in backbone.unet.modules())


def test_retention_pulls_towards_the_model_before_the_lesson(backbone: Backbone) -> None:
    """Its value is 0 where the lesson starts, so the first step is that of sequential LoRA."""
    known = after(backbone, 2)
    settings = replace(SETTINGS, steps=2, learning_rate=1e-2, retention_weight=100.0)
    state = learn(backbone, task(), state=known, method="lwf", settings=settings)
    first, second = state.records[-1].metrics["terms"]["retention"]
    assert first < 1e-9 < second


def test_what_keeps_a_method_from_distilling_is_said_before_the_lesson(backbone: Backbone) -> None:
    known = after(backbone, 2)
    without = replace(known, records=(replace(known.records[0], adapter={}), known.records[1]))
    with pytest.raises(StateError, match="'my_0'.*cannot teach"):
        teach(backbone, task(), state=without, method="dsc_ewc_dc", settings=SETTINGS)
    everywhere = replace(SETTINGS, adapter=AdapterSpec(rank=2, text_encoder=True))
    with pytest.raises(StateError, match="text_encoder"):
        teach(backbone, task(), method="dsc", settings=everywhere)
