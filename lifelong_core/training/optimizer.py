"""Parameter groups, AdamW and the course of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

FUSED_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class ParameterGroup:
    """Named fp32 parameters with one learning rate and weight decay."""

    name: str
    parameters: Mapping[str, nn.Parameter]
    learning_rate: float
    weight_decay: float = 0.0


def make_optimizer(groups: Sequence[ParameterGroup]) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over all groups, in one kernel where torch has one."""
    devices = {p.device.type for group in groups for p in group.parameters.values()}
    return torch.optim.AdamW(
        [
            {
                "params": list(group.parameters.values()),
                "lr": group.learning_rate,
                "weight_decay": group.weight_decay,
            }
            for group in groups
        ],
        fused=devices <= set(FUSED_DEVICES),
    )


def learning_rate_factor(step: int, steps: int, warmup: int, schedule: str) -> float:
    """Factor on the learning rates in step 0..steps-1.

    Linear growth over `warmup` steps, then "constant", or "linear" or "cosine" fall towards zero
    after the last step. Depends on the step alone, so resuming needs no state.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def set_learning_rates(
    optimizer: torch.optim.Optimizer, groups: Sequence[ParameterGroup], factor: float
) -> None:
    """Give every group its own rate times `factor`."""
    for options, group in zip(optimizer.param_groups, groups, strict=True):
        options["lr"] = group.learning_rate * factor
