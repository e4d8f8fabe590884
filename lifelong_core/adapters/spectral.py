"""SVDiff (Han et al. 2023, eq. 2): W_δ = U diag(ReLU(σ + δ)) Vᵀ for the weights W = U diag(σ) Vᵀ of
all linear and convolution layers of the UNet, and shifts of its norms' weights and biases.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import StateError
from .layered import LayeredAdapter
from .layers import Forward, Layer, base_forward, computes_in_fp32
from .spec import NORM_PARTS, AdapterSpec
from .spectrum import Spectrum


class SpectralAdapter(LayeredAdapter):
    """Per linear or convolution layer `shift` [r], r = min(out, in · k²); per norm `scale` and
    `offset` [channels]. All start at zero. Stable Diffusion 1.5: 222,696 + 200,320 weights.

    spectrum: the decompositions of the layers' weights, shared by all adapters of a base model.

    The change U diag(max(δ, -σ)) Vᵀ is added to W, which is the same function: the base model's
    own rounding stays in place, and without shifts nothing changes at all.
    """

    def __init__(self, spec: AdapterSpec, layers: Mapping[str, Layer], spectrum: Spectrum) -> None:
        super().__init__(spec, layers)
        self._layers = dict(layers)
        self._spectrum = spectrum
        self._settled: dict[tuple[str, float], Tensor] | None = None
        for key, layer in layers.items():
            for part, size in shift_sizes(layer).items():
                zeros = torch.zeros(size, device=layer.weight.device)
                self._weights[f"{key}.{part}"] = nn.Parameter(zeros)

    def state(self) -> dict[str, Tensor]:
        """A singular value that was shifted below zero is given as shifted to zero: the same."""
        weights = super().state()
        for key, (_, values, _) in self._spectrum.items():
            name = f"{key}.shift"
            weights[name] = torch.maximum(weights[name], -values)
        return weights

    def deltas(self) -> dict[str, Tensor]:
        """Changes of the layers' weights, each of its weight's shape; of norms, `scale` itself."""
        return {
            key: self._dense(key, self.change(key)).view(shape)
            if key in self._spectrum
            else self._weights[f"{key}.scale"]
            for key, shape in self._shapes.items()
        }

    def change(self, key: str) -> Tensor:
        """ReLU(σ + δ) - σ [r] of a layer; as max(δ, -σ), which loses no digits of a small δ."""
        shift, values = self._weights[f"{key}.shift"], self._spectrum[key].values
        return torch.where(shift > -values, shift, -values)

    def rest_on(self, changes: Mapping[str, Tensor]) -> None:
        raise StateError(
            "A spectral adapter shifts the singular values of the base model's own weights and "
            "cannot rest on other adapters. Choose a LoRA for methods that stack adapters."
        )

    @torch.no_grad()
    def sample_gradients(self, layer: str, inputs: Tensor, gradients: Tensor) -> dict[str, Tensor]:
        """∂L/∂δ_i = (V x)_i (Uᵀ g)_i, summed over a sample's rows: no matrix is formed."""
        module = self._layers[layer]
        if layer not in self._spectrum:
            plain = _normalised(module, inputs.flatten(0, 1)).view_as(inputs)
            dims = _all_but_channels(module, inputs)
            return {
                f"{layer}.scale": self.strength * (plain * gradients).sum(dims),
                f"{layer}.offset": self.strength * gradients.sum(dims),
            }
        left, values, right = self._spectrum[layer]
        if isinstance(module, nn.Conv2d):
            samples = len(inputs)
            hidden = _convolve(module, inputs.flatten(0, 1), right.float())
            seen = torch.einsum("nohw,or->nrhw", gradients.flatten(0, 1), left.float())
            products = (hidden * seen).sum((2, 3)).view(samples, -1, len(values))
        else:
            products = (inputs @ right.float().mT) * (gradients @ left.float())
        alive = self._weights[f"{layer}.shift"] > -values
        return {f"{layer}.shift": self.strength * alive * products.sum(1)}

    def settle(self) -> None:
        """Each layer's changed weight is kept from its first use on, one per strength."""
        super().settle()
        self._settled = {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        super().load(state)
        self._settled = None

    def _dense(self, key: str, change: Tensor) -> Tensor:
        """U diag(change) Vᵀ [out, in], fp32."""
        left, _, right = self._spectrum[key]
        return (left.float() * change) @ right.float()

    def _forward(self, key: str, layer: Layer) -> Forward:
        if key not in self._spectrum:
            return self._norm_forward(key, layer)
        left, _, right = self._spectrum[key]

        def forward(x: Tensor, *args: object, **kwargs: object) -> Tensor:
            if self.strength == 0.0:
                return base_forward(layer, x)
            if computes_in_fp32(x) and layer.weight.dtype == torch.float32:
                return _apply(layer, x, self._whole(key, layer), layer.bias)
            change = self.strength * self.change(key)
            down, up = right.to(x.dtype), left.to(x.dtype)
            if isinstance(layer, nn.Conv2d):
                hidden = _convolve(layer, x, down)
                scaled = hidden * change[:, None, None].to(hidden.dtype)
                return base_forward(layer, x) + F.conv2d(scaled, up[:, :, None, None])
            hidden = F.linear(x, down)
            return base_forward(layer, x) + F.linear(hidden * change.to(hidden.dtype), up)

        return forward

    def _whole(self, key: str, layer: Layer) -> Tensor:
        """The layer's changed weight [out, in · k²], fp32."""
        name = (key, self.strength)
        if self._settled is not None and name in self._settled:
            return self._settled[name]
        left, _, right = self._spectrum[key]
        change = self.strength * self.change(key)
        whole = torch.addmm(layer.weight.flatten(1), left.float() * change, right.float())
        if self._settled is not None:
            self._settled[name] = whole
        return whole

    def _norm_forward(self, key: str, layer: nn.GroupNorm | nn.LayerNorm) -> Forward:
        scale, offset = (self._weights[f"{key}.{part}"] for part in NORM_PARTS)

        def forward(x: Tensor) -> Tensor:
            if self.strength == 0.0:
                return base_forward(layer, x)
            if computes_in_fp32(x) and layer.weight.dtype == torch.float32:
                return _normalised(
                    layer,
                    x,
                    torch.add(layer.weight, scale, alpha=self.strength),
                    torch.add(layer.bias, offset, alpha=self.strength),
                )
            answer = base_forward(layer, x)
            plain = _normalised(layer, x)
            shape = (-1,) + (1,) * (x.dim() - 2) if isinstance(layer, nn.GroupNorm) else (-1,)
            added = plain * scale.view(shape) + offset.view(shape)
            return answer + (self.strength * added).to(answer.dtype)

        return forward


def shift_sizes(layer: Layer) -> dict[str, int]:
    """Part -> how many weights a spectral adapter has on `layer`."""
    if isinstance(layer, (nn.GroupNorm, nn.LayerNorm)):
        return dict.fromkeys(NORM_PARTS, len(layer.weight))
    out = len(layer.weight)
    return {"shift": min(out, layer.weight.numel() // out)}


def _apply(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What `layer` computes with another weight [out, in · k²]."""
    if isinstance(layer, nn.Conv2d):
        return _convolve(layer, x, weight, bias)
    return F.linear(x, weight, bias)


def _convolve(layer: nn.Conv2d, x: Tensor, rows: Tensor, bias: Tensor | None = None) -> Tensor:
    """The layer's convolution with `rows` [n, in · k²] as its kernels; [B, n, h, w]."""
    kernels = rows.view(len(rows), *layer.weight.shape[1:])
    return F.conv2d(x, kernels, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def _normalised(
    layer: nn.GroupNorm | nn.LayerNorm,
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The norm of `x` with another weight and bias; without them, before they count."""
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(x, layer.num_groups, weight, bias, layer.eps)
    return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)


def _all_but_channels(layer: nn.GroupNorm | nn.LayerNorm, inputs: Tensor) -> tuple[int, ...]:
    """The dimensions of [B, N, …] inputs other than samples and channels."""
    channels = 2 if isinstance(layer, nn.GroupNorm) else inputs.dim() - 1
    return tuple(dim for dim in range(1, inputs.dim()) if dim != channels)
