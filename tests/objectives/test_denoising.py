"""The denoising term against its formula."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lifelong_core.backbone import NoiseSchedule
from lifelong_core.objectives import denoising, prior_preservation


def batch(prediction: str) -> SimpleNamespace:
    draw = torch.Generator().manual_seed(0)
    return SimpleNamespace(
        output=torch.randn(5, 4, 2, 2, generator=draw),
        target=torch.randn(5, 4, 2, 2, generator=draw),
        timesteps=torch.tensor([0, 200, 500, 800, 999]),
        roles={"concept": slice(0, 3), "prior": slice(3, 5)},
        backbone=SimpleNamespace(schedule=NoiseSchedule.scaled_linear(prediction)),
    )


def test_each_term_sees_its_own_rows() -> None:
    given = batch("epsilon")
    errors = (given.output - given.target).square().flatten(1).mean(1)
    torch.testing.assert_close(denoising()(given), errors[:3].mean())
    term = prior_preservation(0.5)
    torch.testing.assert_close(term(given), errors[3:].mean())
    assert (term.weight, denoising().weight) == (0.5, 1.0)
    assert term.name != denoising().name


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights_every_row_by_its_own_timestep(prediction: str) -> None:
    given = batch(prediction)
    errors = (given.output - given.target).square().flatten(1).mean(1)[:3]
    alphas = NoiseSchedule.scaled_linear(prediction).alphas_cumprod[given.timesteps[:3]]
    snr = alphas / (1 - alphas)
    if prediction == "epsilon":
        weights = snr.clamp(max=5.0) / snr
    else:
        weights = (5.0 / (snr + 1)).clamp(max=1.0)
    torch.testing.assert_close(denoising(min_snr_gamma=5.0)(given), (weights * errors).mean())
