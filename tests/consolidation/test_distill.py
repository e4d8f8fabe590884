"""Diffusion Scores Consolidation on a random demo model, against plain computations."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lifelong_core.adapters import AdapterSpec, build_adapter
from lifelong_core.adapters.frozen import frozen_adapter
from lifelong_core.adapters.mixed import MixedAdapters
from lifelong_core.backbone import Backbone
from lifelong_core.concepts import Concept, ConceptTask, make_task
from lifelong_core.consolidation import Consolidation, ConsolidationSettings, consolidate
from lifelong_core.consolidation.context import prepare
from lifelong_core.consolidation.distill import DistillBatches, DistillPhase
from lifelong_core.errors import StateError, TrainingError
from lifelong_core.objectives.distillation import (
    OUTPUT_ROLES,
    SCORE_ROLES,
    DistillOutputs,
    DistillScores,
)
from lifelong_core.seeding import generator
from lifelong_core.state import LifelongState, TaskRecord
from lifelong_core.training import Progress

SPEC = AdapterSpec(rank=4)
SETTINGS = ConsolidationSettings(distillation_iterations=2, batch_size=2, learning_rate=5e-3)


class Cancel(BaseException):
    """What ComfyUI's cancel looks like."""


@pytest.fixture(scope="module")
def task() -> ConceptTask:
    draw = generator(0, "pictures")
    return make_task("my_c", "dog", [torch.rand(3, 32, 32, generator=draw) for _ in "ab"], size=32)


def weights(backbone: Backbone, seed: int, scale: float = 0.1) -> dict[str, Tensor]:
    return {
        key: (torch.randn(value.shape, generator=generator(seed, key)) * scale).half().float()
        for key, value in build_adapter(SPEC, backbone, seed=0).state().items()
    }


@pytest.fixture(scope="module")
def state(backbone: Backbone, task: ConceptTask) -> LifelongState:
    """Three concepts with quite different adapters; the last one is the task's."""
    records = tuple(
        TaskRecord(
            Concept(token, noun, backbone.text.noun_vector(noun)),
            task.content_hash if token == task.token else token,
            weights(backbone, seed),
            {},
            {},
        )
        for seed, (token, noun) in enumerate((("my_a", "cat"), ("my_b", "duck"), ("my_c", "dog")))
    )
    return LifelongState("demo", backbone.fingerprint, SPEC, weights(backbone, 2), records)


@pytest.fixture(scope="module")
def work(backbone: Backbone, task: ConceptTask, state: LifelongState) -> Consolidation:
    return prepare(backbone, task, SETTINGS, state)


def mixed_batches(
    work: Consolidation, state: LifelongState, roles: tuple[str, ...], student: dict[str, Tensor]
) -> tuple[MixedAdapters, DistillBatches]:
    trained = build_adapter(SPEC, work.backbone, seed=0)
    trained.load(student)
    newest, earlier = (frozen_adapter(SPEC, work.backbone, state.adapter) for _ in "ne")
    mixed = MixedAdapters(trained, (newest, earlier))
    return mixed, DistillBatches("dsc_dc", work, state, mixed, earlier, roles)


def plain_loss(
    work: Consolidation, state: LifelongState, index: int, place: int, student: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq 6 with three models one after another on copies of the UNet, and gradients by name."""
    drawn, backbone, settings = work.batch("dsc_dc", index), work.backbone, work.settings
    concept = state.concepts[place]
    prompts = {
        "current": "a photo of embedding:my_c dog",
        "prior": "a photo of a dog",
        "previous": f"a photo of {concept.phrase}",
    }
    outputs: dict[tuple[str, str], Tensor] = {}
    own = build_adapter(SPEC, backbone, seed=0)
    models = {"student": student, "newest": state.adapter, "earlier": state.records[place].adapter}
    for model, values in models.items():
        adapter = own if model == "student" else build_adapter(SPEC, backbone, seed=0)
        adapter.load(values)
        with adapter.attached(backbone):
            for name, prompt in prompts.items():
                encoded = backbone.text.encode([prompt], state.vectors)
                encoded = encoded[torch.zeros(len(drawn.noisy), dtype=torch.long)]
                outputs[model, name] = backbone.predict(drawn.noisy, drawn.timesteps, encoded)
    errors = {
        model: torch.stack(
            [(outputs[model, name] - drawn.target).square().flatten(1).mean(1) for name in prompts]
        )
        for model in models
    }
    entropy, distance = torch.zeros(()), torch.zeros(())
    for model, name in (("newest", "current"), ("earlier", "previous")):
        wanted = torch.softmax(-errors[model].detach() / 0.05, dim=0)
        entropy = entropy - (wanted * torch.log(torch.softmax(-errors["student"], 0))).sum(0).mean()
        difference = outputs[model, name].detach() - outputs["student", name]
        distance = distance + difference.square().mean()
    total = settings.gamma * entropy + settings.distillation_weight * distance
    parameters = own.named_parameters()
    found = torch.autograd.grad(total, list(parameters.values()))
    return total, dict(zip(parameters, found, strict=True))


def test_the_loss_and_its_gradient_are_those_of_three_models(
    work: Consolidation, state: LifelongState, backbone: Backbone
) -> None:
    student = weights(backbone, 5)
    mixed, batches = mixed_batches(work, state, SCORE_ROLES, student)
    terms = DistillOutputs(1.5), DistillScores(0.1)
    with mixed.attached(backbone):
        batch = batches(0)
        total = torch.stack([term.weight * term(batch) for term in terms]).sum()
        total.backward()
    expected, gradients = plain_loss(work, state, 0, batches.teacher(0), student)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6)
    for name, parameter in mixed.adapters[0].named_parameters().items():
        assert parameter.grad is not None
        largest = float(gradients[name].abs().max())
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-2, atol=1e-3 * largest)


def test_without_scores_only_the_rows_that_are_compared_are_computed(
    work: Consolidation, state: LifelongState, backbone: Backbone
) -> None:
    student, values = weights(backbone, 5), []
    for roles in (OUTPUT_ROLES, SCORE_ROLES):
        mixed, batches = mixed_batches(work, state, roles, student)
        with mixed.attached(backbone), torch.no_grad():
            batch = batches(0)
            values.append(DistillOutputs(1.0)(batch))
        assert len(batch.noisy) == SETTINGS.batch_size * {4: 4, 9: 9}[len(roles)]
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-6)


def test_every_earlier_lesson_teaches(work: Consolidation, state: LifelongState) -> None:
    _, batches = mixed_batches(work, state, OUTPUT_ROLES, dict(state.adapter))
    places = [batches.teacher(index) for index in range(40)]
    assert set(places) == {0, 1}
    first = places.index(0), places.index(1)
    for index, place in zip(first, (0, 1), strict=True):
        batches(index)
        kept = state.records[place].adapter
        assert all(torch.equal(v, kept[k].float()) for k, v in batches.earlier.state().items())


def test_the_student_comes_closer_to_both_teachers(
    backbone: Backbone, task: ConceptTask, state: LifelongState
) -> None:
    settings = replace(SETTINGS, distillation_iterations=6, learning_rate=2e-3)
    result = consolidate(backbone, task, state, phases=[DistillPhase()], settings=settings)
    losses = result.records[-1].metrics["consolidation"][DistillPhase().name]["loss"]
    work = prepare(backbone, task, replace(settings, batch_size=8), state)
    mixed, batches = mixed_batches(work, state, OUTPUT_ROLES, dict(result.adapter))
    start, starts = mixed_batches(work, state, OUTPUT_ROLES, dict(state.adapter))
    before, after = 0.0, 0.0
    with torch.no_grad():
        for index in range(2):
            with mixed.attached(backbone):
                after += float(DistillOutputs(1.0)(batches(index)))
            with start.attached(backbone):
                before += float(DistillOutputs(1.0)(starts(index)))
    assert len(losses) == 6
    assert after < 0.95 * before


@pytest.mark.parametrize(
    ("kind", "factor"), [("lora", 1), ("vera", 10), ("key_value", 0.1), ("spectral", 3)]
)
def test_kinds_are_distilled_at_the_rates_of_their_lessons(
    backbone: Backbone,
    task_of: Callable[[int], ConceptTask],
    state_after: Callable[..., LifelongState],
    kind: str,
    factor: float,
) -> None:
    state = state_after(2, AdapterSpec(kind))
    settings = replace(SETTINGS, distillation_iterations=1, learning_rate=1e-3)
    phases = [DistillPhase(dc=False)]
    result = consolidate(backbone, task_of(2), state, phases=phases, settings=settings)
    start = build_adapter(state.adapter_spec, backbone, seed=0)
    start.load(state.adapter)
    before, moved = start.state(), dict[float, float]()
    for key, value in result.adapter.items():
        rate = 1e-6 if key.endswith((".scale", ".offset")) else factor * 1e-3
        furthest = float((value - before[key]).abs().max())
        moved[rate] = max(moved.get(rate, 0.0), furthest)
    assert len(moved) == (2 if kind == "spectral" else 1)
    for rate, furthest in moved.items():  # AdamW's first step is the rate, whatever the gradient
        assert furthest == pytest.approx(rate, rel=0.05)


def test_nothing_else_changes(backbone: Backbone, task: ConceptTask, state: LifelongState) -> None:
    before = state.content_hash
    base = {key: value.clone() for key, value in backbone.unet.state_dict().items()}
    seen: list[Progress] = []
    result, again = (
        consolidate(
            backbone, task, state, phases=[DistillPhase()], settings=SETTINGS, on_progress=call
        )
        for call in (seen.append, None)
    )
    assert result.content_hash == again.content_hash
    assert all(torch.equal(again.adapter[key], value) for key, value in result.adapter.items())
    assert state.content_hash == before != result.content_hash
    assert result.records[:-1] == state.records[:-1]
    assert result.records[-1].concept is state.records[-1].concept
    for key, value in result.adapter.items():
        assert not torch.equal(value, state.adapter[key])
        assert torch.equal(result.records[-1].adapter[key], value.half())
    assert [(p.step, p.phase) for p in seen] == [(n, "dsc_dc") for n in (1, 2)]
    assert set(seen[0].losses) == {"distillation", "scores", "loss"}
    assert all(torch.equal(v, base[k]) for k, v in backbone.unet.state_dict().items())
    assert not any("forward" in module.__dict__ for module in backbone.unet.modules())


def test_another_seed_gives_another_student(
    backbone: Backbone, task: ConceptTask, state: LifelongState
) -> None:
    settings = replace(SETTINGS, distillation_iterations=1)
    hashes = {
        consolidate(
            backbone, task, state, phases=[DistillPhase(False)], settings=replace(settings, seed=s)
        ).content_hash
        for s in (0, 1)
    }
    assert len(hashes) == 2


def test_one_concept_is_left_alone(
    backbone: Backbone, task: ConceptTask, state: LifelongState, caplog: pytest.LogCaptureFixture
) -> None:
    alone = replace(state, records=state.records[-1:])
    with caplog.at_level(logging.INFO):
        result = consolidate(backbone, task, alone, phases=[DistillPhase()], settings=SETTINGS)
    assert result is alone
    assert "no earlier concept" in caplog.text


def test_a_missing_teacher_is_named(
    backbone: Backbone, task: ConceptTask, state: LifelongState
) -> None:
    first, *others = state.records
    without = replace(state, records=(replace(first, adapter={}), *others))
    with pytest.raises(StateError, match="'my_a'.*cannot teach"):
        consolidate(backbone, task, without, phases=[DistillPhase()], settings=SETTINGS)


def test_a_cancel_leaves_nothing_behind(
    backbone: Backbone, task: ConceptTask, state: LifelongState
) -> None:
    def cancel(progress: Progress) -> None:
        raise Cancel

    before = state.content_hash
    with pytest.raises(Cancel):
        consolidate(
            backbone, task, state, phases=[DistillPhase()], settings=SETTINGS, on_progress=cancel
        )
    assert state.content_hash == before
    assert not any("forward" in module.__dict__ for module in backbone.unet.modules())


def test_a_loss_that_is_not_finite_is_an_error(
    backbone: Backbone, task: ConceptTask, state: LifelongState
) -> None:
    huge = {key: torch.full_like(value, 1e30) for key, value in state.adapter.items()}
    with pytest.raises(TrainingError, match="not finite"):
        consolidate(
            backbone,
            task,
            replace(state, adapter=huge),
            phases=[DistillPhase(dc=False)],
            settings=SETTINGS,
        )
