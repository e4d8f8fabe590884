"""What our consolidation is compared to makes the same numbers, in the passes that it claims."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.made_state import made_state
from benchmarks.separate_passes import DistillOnThreeUnets, SeparateFisher
from lifelong_core.adapters import AdapterSpec
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.concepts import ConceptTask, make_task
from lifelong_core.consolidation import Consolidation, ConsolidationSettings
from lifelong_core.consolidation.context import prepare
from lifelong_core.consolidation.distill import DistillPhase
from lifelong_core.consolidation.fisher import UpdateFisher
from lifelong_core.fisher import DIAGONAL
from lifelong_core.seeding import generator
from lifelong_core.state import LifelongState

SETTINGS = ConsolidationSettings(
    subset=3,
    temperature=0.01,
    batch_size=2,
    fisher_iterations=2,
    distillation_iterations=2,
    gamma=1.0,
)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


@pytest.fixture(scope="module")
def task() -> ConceptTask:
    images = torch.rand(2, 3, 32, 32, generator=generator(0, "pictures"))
    return make_task("my_dog", "dog", list(images), size=32)


@pytest.fixture(scope="module")
def state(backbone: Backbone, task: ConceptTask) -> LifelongState:
    return made_state(backbone, task, 4, AdapterSpec(rank=2))


@pytest.fixture
def work(backbone: Backbone, task: ConceptTask, state: LifelongState) -> Consolidation:
    return prepare(backbone, task, SETTINGS, state)


def rows_of(backbone: Backbone) -> tuple[list[int], object]:
    """The rows of every pass through the base model's UNet, or copies of it, from now on."""
    rows: list[int] = []
    hook = backbone.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows, hook


def test_separate_passes_make_the_fisher_of_the_batched_ones(
    backbone: Backbone, work: Consolidation, state: LifelongState
) -> None:
    rows, hook = rows_of(backbone)
    seen: list[int] = []
    separate = SeparateFisher()(work, state, lambda progress: seen.append(progress.step))
    assert rows == [1] * (2 * 2 * 3)
    rows.clear()
    batched = UpdateFisher(dc=True)(work, state, None)
    hook.remove()
    assert rows == [2 * 3] * 2 and seen == [1, 2]
    for name in state.adapter:
        one, other = separate.extras[DIAGONAL][name], batched.extras[DIAGONAL][name]
        assert float(other.abs().max()) > 0.0
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-4 * float(other.max()))


def test_three_unets_make_the_student_of_one(
    backbone: Backbone, work: Consolidation, state: LifelongState
) -> None:
    rows, hook = rows_of(backbone)
    three = DistillOnThreeUnets()(work, state, None)
    assert rows == [3 * 2] * (3 * 2)  # one pass for each model; copies have the hook too
    rows.clear()
    one = DistillPhase()(work, state, None)
    hook.remove()
    assert rows == [6 * 2, 3 * 2] * 2
    before, ours, theirs = (flat(known) for known in (state, one, three))
    moved = ours - before
    assert moved.abs().max() > 4e-4
    # Adam makes a step of the last bit of a gradient near zero: few numbers may differ, all cannot.
    assert (theirs - ours).norm() < 1e-2 * moved.norm()


def flat(state: LifelongState) -> torch.Tensor:
    """All numbers of the adapter."""
    return torch.cat([state.adapter[name].flatten() for name in sorted(state.adapter)])


def test_the_base_model_is_itself_again(
    backbone: Backbone, work: Consolidation, state: LifelongState
) -> None:
    short = replace(work, settings=replace(SETTINGS, distillation_iterations=1))
    DistillOnThreeUnets()(short, state, None)
    SeparateFisher()(work, state, None)
    assert not [module for module in backbone.unet.modules() if "forward" in module.__dict__]


def test_a_made_state_knows_as_many_concepts_as_asked(
    backbone: Backbone, task: ConceptTask, state: LifelongState
) -> None:
    assert [concept.noun for concept in state.concepts][-1] == task.noun
    assert len(state.records) == 4 and state.records[-1].task_hash == task.content_hash
    state.require_backbone(backbone)
    first, second = (record.adapter for record in state.records[:2])
    assert all(not torch.equal(first[name], second[name]) for name in first)
