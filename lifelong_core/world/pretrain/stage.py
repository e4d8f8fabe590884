"""The loop of every pretraining stage: fixed plan, checkpoints, exact resume, recorded curve."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ModelError, TrainingError
from ...files import load_tensors, read_json, save_tensors, write_json
from .parallel import agreed, average_gradients, rank

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 180.0
RECORD_EVERY = 50
CALIBRATION_STEPS = 12


@dataclass
class Stage:
    """One stage. `loss(step)` must depend on `step` and the weights alone, so that a resumed run
    equals an uninterrupted one; with several processes it is that of this one's share of the
    batch. `begin_from`: weights of an earlier model to begin with instead of the module's own.
    `ema` of 0 keeps no moving average."""

    name: str
    folder: Path
    module: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    loss: Callable[[int], Tensor]
    measure: Callable[[], dict[str, float]] | None = None
    measures: int = 12
    begin_from: Path | None = None
    ema: float = 0.0
    ema_every: int = 4
    warmup: int = 100
    decay_from: float = 0.2
    clip: float = 1.0
    history: list[dict[str, float]] = field(default_factory=list)
    average: dict[str, Tensor] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.name}.checkpoint.safetensors"

    @property
    def record(self) -> Path:
        return self.folder / f"{self.name}.json"


def run_stage(stage: Stage, *, steps: int | None = None, seconds: float | None = None) -> None:
    """Train to the end of the plan; a finished stage only loads its weights.

    The plan is a number of steps. With `seconds` it is measured once, at the first start, and
    kept: from then on nothing depends on the clock.
    """
    stage.folder.mkdir(parents=True, exist_ok=True)
    base_rates = [[group["lr"] for group in opt.param_groups] for opt in stage.optimizers]
    if stage.begin_from and not stage.checkpoint.exists():
        _begin(stage.module, stage.begin_from)
    if stage.ema:
        stage.average = {k: v.detach().clone() for k, v in stage.module.state_dict().items()}
    start, total = _resume(stage)
    if not total:
        total = agreed(steps or _calibrate(stage, seconds or 0.0))
    began = saved = time.monotonic()
    running, seen = 0.0, 0
    for step in range(start, total):
        _set_rates(stage, base_rates, step, total)
        value = _step(stage, step)
        running, seen = running + value, seen + 1
        if (step + 1) % RECORD_EVERY == 0 or step + 1 == total:
            row = {"step": step + 1, "loss": running / seen, "seconds": time.monotonic() - began}
            running, seen = 0.0, 0
            if stage.measure and not rank() and _is_measured(step + 1, total, stage.measures):
                row.update(_measured(stage))
            stage.history.append(row)
            log.info("%s %s", stage.name, {k: round(v, 4) for k, v in row.items()})
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            _save(stage, step + 1, total)
            saved = time.monotonic()
    if start < total:
        _save(stage, total, total)
    load_average(stage)


def _is_measured(step: int, total: int, times: int) -> bool:
    every = max(RECORD_EVERY, total // times // RECORD_EVERY * RECORD_EVERY)
    return step % every == 0 or step == total


def _measured(stage: Stage) -> dict[str, float]:
    """Measure with the averaged weights, then put the raw ones back."""
    assert stage.measure is not None
    raw = {k: v.detach().clone() for k, v in stage.module.state_dict().items()}
    load_average(stage)
    values = stage.measure()
    stage.module.load_state_dict(raw)
    return values


def load_average(stage: Stage) -> None:
    """Put the moving average (if one is kept) into the module."""
    if stage.average:
        stage.module.load_state_dict(stage.average)


def _step(stage: Stage, step: int) -> float:
    loss = stage.loss(step)
    if not torch.isfinite(loss):
        raise TrainingError(f"{stage.name}: the loss is not finite at step {step}.")
    loss.backward()
    average_gradients(stage.module)
    if stage.clip:
        nn.utils.clip_grad_norm_(stage.module.parameters(), stage.clip)
    for optimizer in stage.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if stage.ema and (step + 1) % stage.ema_every == 0:
        _update_average(stage, step)
    return float(loss.detach())


@torch.no_grad()
def _update_average(stage: Stage, step: int) -> None:
    decay = min(stage.ema, (1 + step) / (10 + step))
    for key, value in stage.module.state_dict().items():
        if value.dtype.is_floating_point:
            stage.average[key].lerp_(value, 1 - decay)
        else:
            stage.average[key].copy_(value)


def _set_rates(stage: Stage, base: list[list[float]], step: int, total: int) -> None:
    """Linear warm-up, constant, then a cosine to 2 % of the rate."""
    progress = step / total
    factor = min(1.0, (step + 1) / stage.warmup)
    if progress > stage.decay_from:
        share = (progress - stage.decay_from) / (1 - stage.decay_from)
        factor *= 0.02 + 0.98 * (0.5 + 0.5 * cos(pi * share))
    for optimizer, rates in zip(stage.optimizers, base, strict=True):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor


def _calibrate(stage: Stage, seconds: float) -> int:
    """How many steps fit into `seconds`, from a few forward and backward passes."""
    times = []
    for step in range(CALIBRATION_STEPS):
        began = time.monotonic()
        stage.loss(step).backward()
        times.append(time.monotonic() - began)
        stage.module.zero_grad(set_to_none=True)
    per_step = sorted(times)[CALIBRATION_STEPS // 2] * 1.1
    return max(10, int(seconds / per_step))


def _save(stage: Stage, step: int, total: int) -> None:
    if rank():
        return
    tensors = {f"model.{k}": v for k, v in stage.module.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in stage.average.items()}
    for index, optimizer in enumerate(stage.optimizers):
        for slot, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                tensors[f"optimizer.{index}.{slot}.{key}"] = torch.as_tensor(value)
    # The record first: a checkpoint without its record cannot be resumed, the reverse can.
    write_json(stage.record, {"step": step, "total": total, "history": stage.history})
    save_tensors(stage.checkpoint, tensors, {"step": str(step), "total": str(total)})


def _resume(stage: Stage) -> tuple[int, int]:
    if not stage.checkpoint.exists():
        return 0, 0
    tensors, metadata = load_tensors(stage.checkpoint)
    stage.module.load_state_dict(_under("model.", tensors))
    stage.average = _under("average.", tensors)
    for index, optimizer in enumerate(stage.optimizers):
        state: dict[int, dict[str, Any]] = {}
        for key, value in _under(f"optimizer.{index}.", tensors).items():
            slot, name = key.split(".", 1)
            state.setdefault(int(slot), {})[name] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    stage.history[:] = [
        row for row in read_json(stage.record)["history"] if row["step"] <= int(metadata["step"])
    ]
    log.info("%s: going on at step %s of %s", stage.name, metadata["step"], metadata["total"])
    return int(metadata["step"]), int(metadata["total"])


def _begin(module: nn.Module, path: Path) -> None:
    """Put the weights in `path` into `module`. Raises ModelError when they do not fit."""
    tensors, _ = load_tensors(path)
    own = {k: v for k, v in module.state_dict().items() if v.dtype.is_floating_point}
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in tensors.items()}:
        raise ModelError(
            f"{path} does not hold the weights of this model, so nothing can begin from it. "
            "Take the file that the same stage wrote, or begin from nothing."
        )
    module.load_state_dict(tensors, strict=False)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
