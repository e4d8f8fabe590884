"""Noise levels and prediction types: what the model sees, and what it is asked for.

With ab = alphas_cumprod[t]: x_t = sqrt(ab) x0 + sqrt(1 - ab) noise, SNR = ab / (1 - ab), and
v = sqrt(ab) noise - sqrt(1 - ab) x0 (Salimans & Ho 2022, section 4 and appendix D).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import ModelError

TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012
PREDICTION_TYPES = ("epsilon", "v_prediction")
_LAST_ALPHA = 4.8973451890853435e-08
"""What is left of the signal at the last step of a schedule with zero terminal SNR."""


@dataclass(frozen=True)
class NoiseSchedule:
    """Stable Diffusion's schedule; `alphas_cumprod` [1000] fp32, falling.

    Tensors are [B, 4, h, w], timesteps `t` [B] integers in [0, 999], per-timestep results [B].
    """

    prediction_type: str
    alphas_cumprod: Tensor

    @classmethod
    def scaled_linear(
        cls, prediction_type: str = "epsilon", *, zero_terminal_snr: bool = False
    ) -> NoiseSchedule:
        """The schedule of SD1, SD2 and SDXL (square roots of beta are linear).

        `zero_terminal_snr` shifts it so that the last step is all noise (Lin et al. 2023, alg. 1).
        Raises ModelError for an unknown prediction type.
        """
        if prediction_type not in PREDICTION_TYPES:
            raise ModelError(
                f"The model predicts {prediction_type!r}; supported are "
                f"{' and '.join(PREDICTION_TYPES)}."
            )
        roots = torch.linspace(BETA_START**0.5, BETA_END**0.5, TIMESTEPS, dtype=torch.float64)
        alphas = torch.cumprod(1.0 - roots**2, dim=0)
        if zero_terminal_snr:
            signal = alphas.sqrt()
            signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
            alphas = signal**2
            alphas[-1] = _LAST_ALPHA
        return cls(prediction_type, alphas.float())

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """The same schedule with its table on `device`."""
        return replace(self, alphas_cumprod=self.alphas_cumprod.to(device))

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t from clean latents and noise."""
        signal, sigma = self._scales(t, x0)
        return signal * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the model should answer for x_t: the noise, or v."""
        if self.prediction_type == "epsilon":
            return noise
        signal, sigma = self._scales(t, x0)
        return signal * noise - sigma * x0

    def x0_from_output(self, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The clean latents that the model's output stands for."""
        signal, sigma = self._scales(t, xt)
        if self.prediction_type == "epsilon":
            return (xt - sigma * output) / signal
        return signal * xt - sigma * output

    def noise_from_output(self, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The noise that the model's output stands for."""
        if self.prediction_type == "epsilon":
            return output
        signal, sigma = self._scales(t, xt)
        return sigma * xt + signal * output

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio ab / (1 - ab), [B] fp32."""
        alphas = self._alphas(t)
        return alphas / (1.0 - alphas)

    def min_snr_weight(self, t: Tensor, gamma: float = 5.0) -> Tensor:
        """Weight of a sample's error in the model's own output, [B] fp32.

        epsilon: min(SNR, gamma) / SNR (Hang et al. 2023, eq. 7). v: min(1, gamma / (1 + SNR)),
        flat at high noise, where a small model decides what is drawn.
        """
        snr = self.snr(t)
        if self.prediction_type == "epsilon":
            return snr.clamp(max=gamma) / snr
        return (gamma / (1.0 + snr)).clamp(max=1.0)

    def _alphas(self, t: Tensor) -> Tensor:
        return self.alphas_cumprod.to(t.device)[t]

    def _scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(ab) and sqrt(1 - ab), shaped for broadcasting over `like`, in its dtype."""
        alphas = self._alphas(t).to(like.device).reshape(-1, *[1] * (like.ndim - 1))
        return alphas.sqrt().to(like.dtype), (1.0 - alphas).sqrt().to(like.dtype)
