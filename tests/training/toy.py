"""A small regression problem that has all the parts of a training plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lifelong_core.seeding import generator
from lifelong_core.training import ParameterGroup, TrainPlan


@dataclass
class Fit:
    """Mean squared error of a linear map on the batch's samples; `name` and `weight` as a term."""

    weights: nn.Parameter
    name: str = "fit"
    weight: float = 1.0
    fault: Callable[[int], float] = field(default=lambda index: 1.0)

    def __call__(self, batch: Any) -> Tensor:
        index, x, y = batch
        return self.fault(index) * (x @ self.weights - y).square().mean()


def batches(index: int) -> tuple[int, Tensor, Tensor]:
    draw = generator(7, "batch", index)
    x = torch.randn(16, 4, generator=draw)
    return index, x, x @ torch.tensor([1.0, -2.0, 0.5, 3.0])


def make_plan(weights: nn.Parameter, bias: nn.Parameter | None = None, **options: Any) -> TrainPlan:
    groups = [ParameterGroup("adapter", {"w": weights}, 0.05, 0.01)]
    if bias is not None:
        groups.append(ParameterGroup("token", {"b": bias}, 0.5))
    settings = {"steps": 12, "terms": (Fit(weights),)} | options
    return TrainPlan(device=torch.device("cpu"), batches=batches, groups=groups, **settings)


def start() -> nn.Parameter:
    return nn.Parameter(torch.zeros(4))
