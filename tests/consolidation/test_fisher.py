"""The Fisher of a batched pass is that of one backward pass per picture."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lifelong_core.adapters import AdapterSpec, build_adapter
from lifelong_core.backbone import Backbone
from lifelong_core.concepts import ConceptTask
from lifelong_core.consolidation import Consolidation, ConsolidationSettings, fisher_passes
from lifelong_core.consolidation.context import prepare
from lifelong_core.consolidation.fisher import UpdateFisher
from lifelong_core.consolidation.fisher_passes import separation
from lifelong_core.errors import InputError, StateError, TrainingError
from lifelong_core.fisher import DiagonalFisher, RankOneFisher
from lifelong_core.state import LifelongState

SETTINGS = ConsolidationSettings(
    subset=3, batch_size=2, fisher_iterations=2, temperature=0.1, delta=0.7, seed=3
)
States = Callable[..., LifelongState]
Tasks = Callable[[int], ConceptTask]


def naive_gradients(
    work: Consolidation, state: LifelongState, phase: UpdateFisher, index: int
) -> list[dict[str, Tensor]]:
    """One loss and one backward pass per picture of batch `index`, written out from the paper."""
    backbone, settings = work.backbone, work.settings
    batch = work.batch(phase.name, index)
    concepts = work.subset(phase.name, index) if phase.dc else (work.current,)
    adapter = build_adapter(state.adapter_spec, backbone, seed=0)
    adapter.load(state.adapter)
    found = []
    for b in range(len(batch.latents)):
        t = batch.timesteps[b : b + 1]
        noisy = backbone.schedule.add_noise(batch.latents[b : b + 1], batch.noise[b : b + 1], t)
        target = backbone.schedule.target(batch.latents[b : b + 1], batch.noise[b : b + 1], t)
        errors = []
        with adapter.attached(backbone):
            for prompt in concepts:
                encoded = backbone.text.encode([prompt], state.vectors)
                errors.append((backbone.predict(noisy, t, encoded) - target).square().mean())
        gamma = state.records[-1].settings["min_snr_gamma"]
        loss = errors[0] * backbone.schedule.min_snr_weight(t, gamma)[0]
        if phase.dc:
            scaled = [-error / settings.temperature for error in errors]
            total = torch.stack(scaled).exp().sum()
            cross_entropies = [-(value.exp() / total).log() for value in scaled]
            signed = cross_entropies[0] - sum(cross_entropies[1:])
            loss = loss + settings.delta * signed
        parameters = adapter.named_parameters()
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        found.append(dict(zip(parameters, gradients, strict=True)))
    return found


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To 1e-4 of every tensor's largest entry."""
    for name, value in expected.items():
        largest = float(value.abs().max())
        assert largest > 0, name
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-4 * largest, msg=name)


SPECS = {
    "lora": AdapterSpec(rank=2),
    "everywhere": AdapterSpec(rank=2, targets=("attn1.to_q", "attn2.to_out.0"), text_encoder=True),
    "vera": AdapterSpec(kind="vera", rank=8, alpha=8.0),
    "key_value": AdapterSpec(kind="key_value"),
    "spectral": AdapterSpec(kind="spectral"),
}
# A spectral adapter has weights in all layers: once is enough.
CASES = [(kind, dc) for kind in SPECS for dc in (False, True) if not (kind == "spectral" and dc)]


@pytest.mark.parametrize(("kind", "dc"), CASES)
def test_it_is_the_mean_of_squared_gradients_of_single_pictures(
    backbone: Backbone, state_after: States, task_of: Tasks, kind: str, dc: bool
) -> None:
    state = state_after(2, SPECS[kind])
    assert_is_mean_of_squares(backbone, state, task_of(2), UpdateFisher(dc=dc))
    assert not any("forward" in module.__dict__ for module in backbone.unet.modules())
    assert not any(module._forward_hooks for module in backbone.unet.modules())


def test_so_it_is_with_layer_wise_tokens(
    backbone: Backbone, state_after: States, task_of: Tasks
) -> None:
    state = state_after(2)
    first, last = state.records
    draw = torch.Generator().manual_seed(7)
    vectors = {"clip_l": torch.randn(backbone.text.layers, 1, 128, generator=draw) * 0.05}
    last = replace(last, concept=replace(last.concept, vectors=vectors))
    state = replace(state, records=(first, last))
    assert_is_mean_of_squares(backbone, state, task_of(2), UpdateFisher(dc=True))


def test_layer_wise_tokens_beside_a_trained_text_encoder_are_refused(
    backbone: Backbone, state_after: States, task_of: Tasks
) -> None:
    """Their rows do not come sample by sample, so no gradient would be a single picture's."""
    state = state_after(1, SPECS["everywhere"])
    (record,) = state.records
    vectors = {"clip_l": torch.zeros(backbone.text.layers, 1, 128)}
    record = replace(record, concept=replace(record.concept, vectors=vectors))
    state = replace(state, records=(record,))
    with pytest.raises(InputError, match="layer-wise"):
        UpdateFisher(dc=False)(prepare(backbone, task_of(1), SETTINGS, state), state, None)


def test_accumulated_batches_all_count(
    backbone: Backbone, state_after: States, task_of: Tasks
) -> None:
    settings = replace(SETTINGS, batch_size=1, accumulation=2)
    phase = UpdateFisher(dc=True)
    assert_is_mean_of_squares(backbone, state_after(2), task_of(2), phase, settings)


def assert_is_mean_of_squares(
    backbone: Backbone,
    state: LifelongState,
    task: ConceptTask,
    phase: UpdateFisher,
    settings: ConsolidationSettings = SETTINGS,
) -> None:
    work = prepare(backbone, task, settings, state)
    batches = range(settings.fisher_iterations * settings.accumulation)
    samples = [g for index in batches for g in naive_gradients(work, state, phase, index)]
    expected = {
        name: torch.stack([sample[name].square() for sample in samples]).mean(0)
        for name in state.adapter
    }
    after = phase(work, state, None)
    assert_close(dict(DiagonalFisher.of(after).values), expected)


def test_precision_and_checkpointing_change_the_way_and_not_the_result(
    backbone: Backbone, state_after: States, task_of: Tasks
) -> None:
    state, phase = state_after(2), UpdateFisher(dc=True)

    def fisher(**changes: object) -> Tensor:
        work = prepare(backbone, task_of(2), replace(SETTINGS, **changes), state)
        values = DiagonalFisher.of(phase(work, state, None)).values
        return torch.cat([value.flatten() for value in values.values()])

    plain = fisher()
    checkpointed = fisher(gradient_checkpointing=True)
    torch.testing.assert_close(checkpointed, plain, rtol=1e-3, atol=1e-4 * float(plain.max()))
    assert not backbone.unet.is_gradient_checkpointing
    half = fisher(precision="bf16")
    assert half.dtype == torch.float32
    assert float(torch.corrcoef(torch.stack([half, plain]))[0, 1]) > 0.98


def test_losses_are_scaled_down_until_fp16_holds_their_gradients(
    backbone: Backbone, state_after: States, task_of: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, phase = state_after(2), UpdateFisher()
    found = []
    for precision, scale in (("fp32", 1.0), ("fp16", 2.0**36)):
        monkeypatch.setattr(fisher_passes, "FP16_SCALE", scale)
        settings = replace(SETTINGS, precision=precision)
        work = prepare(backbone, task_of(2), settings, state)
        values = DiagonalFisher.of(phase(work, state, None)).values
        found.append(torch.cat([value.flatten() for value in values.values()]))
    plain, half = found
    torch.testing.assert_close(half.sum(), plain.sum(), rtol=0.1, atol=0.0)
    assert float(torch.corrcoef(torch.stack(found))[0, 1]) > 0.99


def test_the_term_of_equation_5_has_the_gradient_that_its_reading_says() -> None:
    draw = torch.Generator().manual_seed(0)
    s = torch.randn(3, 5, generator=draw, dtype=torch.float64).requires_grad_()
    logs = torch.log_softmax(s, dim=1)
    p = logs.exp()
    expected = 1.0 - 3.0 * p
    expected = torch.cat([-(1.0 + 3.0 * p[:, :1]), expected[:, 1:]], dim=1)
    (actual,) = torch.autograd.grad(separation(logs).sum(), s)
    torch.testing.assert_close(actual, expected)
    uniform = torch.zeros(1, 5, requires_grad=True)
    (actual,) = torch.autograd.grad(separation(torch.log_softmax(uniform, 1)).sum(), uniform)
    torch.testing.assert_close(actual, torch.tensor([[-1.6, 0.4, 0.4, 0.4, 0.4]]))


def test_it_is_a_running_mean_over_lessons(
    backbone: Backbone, state_after: States, task_of: Tasks
) -> None:
    """Each lesson's own Fisher, from a state without any, averages to the state's."""
    settings = replace(SETTINGS, batch_size=1)
    phase, own, state = UpdateFisher(), [], state_after(1)
    for number in (1, 2, 3):
        fresh = state_after(number)
        state = replace(fresh, extras=state.extras)
        work = prepare(backbone, task_of(number), settings, state)
        own.append(DiagonalFisher.of(phase(work, fresh, None)).values)
        state = phase(work, state, None)
    fisher = DiagonalFisher.of(state)
    assert fisher.lessons == (0, 1, 2)
    assert set(fisher.values) == set(state.adapter)
    for name, value in fisher.values.items():
        mean = torch.stack([values[name] for values in own]).mean(0)
        torch.testing.assert_close(value, mean, rtol=1e-5, atol=0.0)
        assert value.dtype == torch.float32


def test_tokens_have_no_fisher_and_stay_as_they_are(
    backbone: Backbone, state_after: States, task_of: Tasks
) -> None:
    state = state_after(2)
    work = prepare(backbone, task_of(2), SETTINGS, state)
    after = UpdateFisher(dc=True)(work, state, None)
    assert set(after.extras["fisher"]) == {*state.adapter, "lessons"}
    for before, now in zip(state.concepts, after.concepts, strict=True):
        assert all(torch.equal(now.vectors[key], value) for key, value in before.vectors.items())
    assert all(torch.equal(after.adapter[key], value) for key, value in state.adapter.items())


def test_a_lesson_is_counted_once(backbone: Backbone, state_after: States, task_of: Tasks) -> None:
    state = state_after(1)
    work = prepare(backbone, task_of(1), SETTINGS, state)
    for phase in (UpdateFisher(), UpdateFisher(rank_one=True)):
        state = phase(work, state, None)
        with pytest.raises(StateError, match="thing_1.*already"):
            phase(work, state, None)


@pytest.mark.parametrize(("lessons", "subset", "expected"), [(1, 5, 2), (2, 5, 3), (4, 3, 3)])
def test_the_subset_takes_what_there_is(
    backbone: Backbone,
    state_after: States,
    task_of: Tasks,
    lessons: int,
    subset: int,
    expected: int,
) -> None:
    """Current and prior always; earlier concepts as far as there are any, in changing choice."""
    state = state_after(lessons)
    work = prepare(backbone, task_of(lessons), replace(SETTINGS, subset=subset), state)
    drawn = [work.subset("phase", index) for index in range(20)]
    for prompts in drawn:
        assert len(prompts) == len(set(prompts)) == expected
        assert prompts[:2] == (work.current, work.prior)
        assert set(prompts[2:]) <= set(work.earlier)
    assert {p for prompts in drawn for p in prompts[2:]} == set(work.earlier)
    after = UpdateFisher(dc=True)(work, state, None)
    assert min(float(v.min()) for v in DiagonalFisher.of(after).values.values()) >= 0.0


def test_the_rank_one_form_keeps_the_mean_gradient_and_what_goes_along_it(
    backbone: Backbone, state_after: States, task_of: Tasks
) -> None:
    """μ from the first batch, E[(μ·g)²] from the second."""
    phase, states = UpdateFisher(dc=True, rank_one=True), state_after(2)
    work = prepare(backbone, task_of(2), SETTINGS, states)
    first, second = (naive_gradients(work, states, phase, index) for index in (0, 1))

    def flat(values: dict[str, Tensor]) -> Tensor:
        return torch.cat([values[name].flatten() for name in states.adapter])

    mu = torch.stack([flat(g) for g in first]).mean(0)
    along = torch.stack([(flat(g) @ mu).square() for g in second]).mean()
    after = phase(work, states, None)
    kept = RankOneFisher.of(after)
    direction = flat({name: value[0].float() for name, value in kept.directions.items()})
    assert float(direction.square().mean()) == pytest.approx(1.0, rel=1e-3)
    assert float(torch.cosine_similarity(direction, mu, dim=0)) > 0.99999
    c = along / mu.square().sum() ** 2
    assert float(kept.strengths[0]) == pytest.approx(float(c * mu.square().sum()), rel=1e-3)
    assert float(kept.places[0]) == pytest.approx(float(direction @ flat(states.adapter)), rel=1e-3)
    assert kept.lessons == (1,)


def test_scores_that_tell_nothing_apart_are_warned_of(
    backbone: Backbone, state_after: States, task_of: Tasks, caplog: pytest.LogCaptureFixture
) -> None:
    state = state_after(2)
    for temperature, warned in ((1e4, True), (1e-5, False)):
        caplog.clear()
        settings = replace(SETTINGS, temperature=temperature)
        work = prepare(backbone, task_of(2), settings, state)
        with caplog.at_level(logging.WARNING):
            after = UpdateFisher(dc=True)(work, state, None)
        assert ("almost equal" in caplog.text) == warned
        report = after.records[-1].metrics["consolidation"]["fisher_dc"]
        assert (report["entropy_share"] > 0.99) == warned
        assert 0.0 <= report["accuracy"] <= 1.0


def test_the_space_of_the_scores_matters_to_models_that_predict_v(
    backbone: Backbone, state_after: States, task_of: Tasks
) -> None:
    state = state_after(2)
    found = []
    for space in ("own", "noise"):
        work = prepare(backbone, task_of(2), replace(SETTINGS, space=space), state)
        found.append(DiagonalFisher.of(UpdateFisher(dc=True)(work, state, None)).values)
    name = next(iter(state.adapter))
    assert not torch.allclose(found[0][name], found[1][name], rtol=1e-3)


def test_gradients_that_are_not_finite_stop_it(
    backbone: Backbone, state_after: States, task_of: Tasks
) -> None:
    state = state_after(1)
    broken = {key: torch.full_like(value, float("nan")) for key, value in state.adapter.items()}
    state = replace(state, adapter=broken)
    work = prepare(backbone, task_of(1), SETTINGS, state)
    with pytest.raises(TrainingError, match="not finite"):
        UpdateFisher()(work, state, None)
    assert not any("forward" in module.__dict__ for module in backbone.unet.modules())
