"""The Fisher of a batched pass is that of one backward pass per picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lifelong_core.adapters import AdapterSpec, build_adapter
from lifelong_core.backbone import Backbone
from lifelong_core.concepts import ConceptTask
from lifelong_core.consolidation import Consolidation, ConsolidationSettings
from lifelong_core.consolidation.context import prepare
from lifelong_core.consolidation.fisher import UpdateFisher
from lifelong_core.fisher import DiagonalFisher
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


@pytest.mark.parametrize("dc", [False, True])
@pytest.mark.parametrize(
    "spec",
    [
        AdapterSpec(rank=2),
        AdapterSpec(rank=2, targets=("attn1.to_q", "attn2.to_out.0"), text_encoder=True),
        AdapterSpec(kind="vera", rank=8, alpha=8.0),
        AdapterSpec(kind="key_value"),
    ],
    ids=["lora", "everywhere", "vera", "key_value"],
)
def test_it_is_the_mean_of_squared_gradients_of_single_pictures(
    backbone: Backbone, state_after: States, task_of: Tasks, spec: AdapterSpec, dc: bool
) -> None:
    state, phase = state_after(2, spec), UpdateFisher(dc=dc)
    settings = replace(SETTINGS, fisher_iterations=2, batch_size=2)
    work = prepare(backbone, task_of(2), settings, state)
    samples = [g for index in (0, 1) for g in naive_gradients(work, state, phase, index)]
    expected = {
        name: torch.stack([sample[name].square() for sample in samples]).mean(0)
        for name in state.adapter
    }
    after = phase(work, state, None)
    assert_close(dict(DiagonalFisher.of(after).values), expected)
    assert not any("forward" in module.__dict__ for module in backbone.unet.modules())
    assert not any(module._forward_hooks for module in backbone.unet.modules())
