"""Noise schedule: what is added can be taken away, in both prediction types."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from lifelong_core.backbone import NoiseSchedule
from lifelong_core.errors import ModelError
from lifelong_core.seeding import generator

BOTH = pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
STEPS = torch.tensor([0, 1, 250, 500, 998, 999])


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    source = generator(1, "schedule")
    shape = (len(STEPS), 4, 8, 8)
    return torch.randn(shape, generator=source), torch.randn(shape, generator=source)


@BOTH
def test_target_gives_back_clean_latents_and_noise(prediction: str) -> None:
    schedule = NoiseSchedule.scaled_linear(prediction)
    x0, noise = drawn()
    xt = schedule.add_noise(x0, noise, STEPS)
    target = schedule.target(x0, noise, STEPS)
    assert torch.allclose(schedule.x0_from_output(target, xt, STEPS), x0, atol=1e-4)
    assert torch.allclose(schedule.noise_from_output(target, xt, STEPS), noise, atol=1e-4)


def test_table_is_stable_diffusions() -> None:
    alphas = NoiseSchedule.scaled_linear().alphas_cumprod
    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert alphas.dtype == torch.float32
    assert alphas.shape == (1000,)
    assert bool((alphas[1:] < alphas[:-1]).all())
    assert torch.allclose(alphas, theirs.alphas_cumprod, rtol=1e-4)


def test_zero_terminal_snr_keeps_the_first_step_and_empties_the_last() -> None:
    usual = NoiseSchedule.scaled_linear("v_prediction").alphas_cumprod
    shifted = NoiseSchedule.scaled_linear("v_prediction", zero_terminal_snr=True).alphas_cumprod
    assert shifted[0].item() == pytest.approx(usual[0].item(), rel=1e-6)
    assert 0 < shifted[-1].item() < 1e-7
    assert bool((shifted[1:] < shifted[:-1]).all())


def test_v_is_noise_at_the_clean_end_and_negative_picture_at_the_noisy_end() -> None:
    schedule = NoiseSchedule.scaled_linear("v_prediction")
    x0, noise = drawn()
    target = schedule.target(x0, noise, STEPS)
    assert (target[0] - noise[0]).norm() < 0.05 * noise[0].norm()
    assert (target[-1] + x0[-1]).norm() < 0.15 * x0[-1].norm()


def test_min_snr_weights() -> None:
    epsilon = NoiseSchedule.scaled_linear("epsilon")
    v = NoiseSchedule.scaled_linear("v_prediction")
    snr = epsilon.snr(STEPS)
    assert torch.allclose(
        epsilon.min_snr_weight(STEPS), torch.minimum(snr, 5 * torch.ones(6)) / snr
    )
    assert torch.allclose(v.min_snr_weight(STEPS), (5 / (1 + snr)).clamp(max=1))
    noisy = snr < 4
    assert bool((v.min_snr_weight(STEPS)[noisy] == 1).all())
    assert bool((epsilon.min_snr_weight(STEPS, gamma=1.0) <= 1).all())


def test_weights_agree_in_clean_picture_space() -> None:
    """Both are a cap on the weight of the error in x0: eps has SNR, v has SNR + 1 per unit."""
    epsilon = NoiseSchedule.scaled_linear("epsilon")
    snr = epsilon.snr(STEPS)
    in_x0 = epsilon.min_snr_weight(STEPS) * snr
    assert torch.allclose(in_x0, snr.clamp(max=5.0), rtol=1e-5)


def test_unknown_prediction_type_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="sample"):
        NoiseSchedule.scaled_linear("sample")
