"""Muon (momentum orthogonalised by Newton-Schulz) for convolution and linear weights.

`torch.optim.Muon` takes matrices only; nearly all weights of a VAE are convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Quintic coefficients of Jordan et al. (2024): five steps bring singular values close to one.
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """[rows, columns] -> nearly orthogonal matrix with the same singular vectors."""
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised per weight, scaled by sqrt(max(1, rows / columns))."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group["lr"], group["momentum"])

    def _update(self, parameter: nn.Parameter, lr: float, momentum: float) -> None:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        grad = parameter.grad
        assert grad is not None
        buffer = state["momentum"].lerp_(grad, 1 - momentum)
        update = orthogonalise(grad.lerp(buffer, momentum).flatten(1))
        scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
        parameter.add_(update.view_as(parameter), alpha=-lr * scale)


def split_parameters(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weights with two or more dimensions (for Muon) and the rest (for AdamW)."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
