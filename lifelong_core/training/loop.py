"""The one training loop: lessons and consolidations differ in their plan alone."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import FileError, TrainingError
from ..objectives import StepBatch, Term
from .optimizer import ParameterGroup, learning_rate_factor, make_optimizer, set_learning_rates
from .precision import autocast, check_scale, make_scaler
from .progress import Progress, ProgressCallback
from .session import Session, Snapshot

CLIP_NORM = 1.0
TOTAL = "loss"

logger = logging.getLogger(__name__)


class Hook(Protocol):
    """Code of a method that acts on gradients or weights, in a place of its own in every step."""

    def after_backward(self, step: int) -> None:
        """All gradients of step 0, 1, … are there, neither clipped nor (in fp16) unscaled."""
        ...

    def after_step(self, step: int) -> None:
        """The optimiser has moved the weights."""
        ...


@dataclass(frozen=True)
class TrainPlan:
    """Everything that `train` does.

    batches: batch number -> batch, the same whenever asked; step s uses the numbers
        s · accumulation … (s + 1) · accumulation - 1.
    terms: the loss is Σ weight · term, averaged over the batches of a step.
    preview: draws a picture [3, H, W]; called every `preview_every` steps, 0 never.
    session: where the run is kept, every `checkpoint_every` steps and when it is stopped.
    memory_advice: what to change when memory runs out.
    """

    device: torch.device
    steps: int
    batches: Callable[[int], StepBatch]
    terms: Sequence[Term]
    groups: Sequence[ParameterGroup]
    accumulation: int = 1
    precision: str = "fp32"
    lr_schedule: str = "constant"
    warmup: int = 0
    hooks: Sequence[Hook] = ()
    preview: Callable[[], Tensor] | None = None
    preview_every: int = 0
    session: Session | None = None
    checkpoint_every: int = 50
    memory_advice: str = "Use a smaller batch."
    phase: str = "lesson"


@dataclass
class _Run:
    """The moving parts of a run. `consistent` is False while weights and step count may differ."""

    plan: TrainPlan
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    losses: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0
    consistent: bool = True

    @property
    def step(self) -> int:
        return len(self.losses)

    @property
    def columns(self) -> tuple[str, ...]:
        return (*(term.name for term in self.plan.terms), TOTAL)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.plan.groups for p in group.parameters.values()]

    def snapshot(self) -> Snapshot:
        losses = torch.tensor(self.losses, dtype=torch.float64).reshape(-1, len(self.columns))
        return Snapshot(self.step, self.columns, losses, self.seconds)

    def save(self) -> None:
        if self.plan.session is not None:
            self.plan.session.save(self.snapshot(), self.plan.groups, self.optimizer, self.scaler)

    def restore(self) -> None:
        if self.plan.session is None:
            return
        found = self.plan.session.restore(self.plan.groups, self.optimizer, self.scaler)
        if found is not None:
            self.losses, self.seconds = found.losses.tolist(), found.seconds
            logger.info("Going on after step %d of %d.", self.step, self.plan.steps)


def train(plan: TrainPlan, on_progress: ProgressCallback | None = None) -> Snapshot:
    """Run `plan` from where its session stopped to its last step; parameters change in place.

    Whatever `on_progress` raises stops the run, is raised again, and leaves a session that goes
    on with the same bits. Raises TrainingError when the loss or its gradient is not finite
    (the parameters are then those of the last finite step) or when memory runs out.
    """
    run = _Run(plan, make_optimizer(plan.groups), make_scaler(plan.device, plan.precision))
    run.restore()
    try:
        while run.step < plan.steps:
            _step(run)
            if run.step % plan.checkpoint_every == 0 and run.step < plan.steps:
                run.save()
            if on_progress is not None:
                on_progress(_progress(run))
    except BaseException as error:
        run.optimizer.zero_grad()
        if _out_of_memory(error):
            advice = f"Memory ran out in step {run.step + 1}. {plan.memory_advice}"
        else:
            if run.consistent and not isinstance(error, TrainingError):
                _save_quietly(run)
            raise
    else:
        return run.snapshot()
    # Outside of the handler, so that the failed step's tensors are freed with its traceback.
    raise TrainingError(advice)


def _step(run: _Run) -> None:
    """One optimiser step."""
    plan, scaler, started = run.plan, run.scaler, time.perf_counter()
    factor = learning_rate_factor(run.step, plan.steps, plan.warmup, plan.lr_schedule)
    set_learning_rates(run.optimizer, plan.groups, factor)
    sums = torch.zeros(len(plan.terms) + 1, device=plan.device)
    for micro in range(plan.accumulation):
        with autocast(plan.device, plan.precision):
            batch = plan.batches(run.step * plan.accumulation + micro)
            values = [term(batch).float() for term in plan.terms]
            total = sum(
                (term.weight * value for term, value in zip(plan.terms, values, strict=True)),
                start=torch.zeros((), device=plan.device),
            )
        scaler.scale(total / plan.accumulation).backward()
        sums += torch.stack([*values, total]).detach() / plan.accumulation
    for hook in plan.hooks:
        hook.after_backward(run.step)
    scaler.unscale_(run.optimizer)
    norm = nn.utils.clip_grad_norm_(run.parameters, CLIP_NORM)
    *losses, gradient = torch.cat([sums, norm.reshape(1).to(sums)]).tolist()
    _check_finite(run, losses[-1], gradient)
    run.consistent = False
    scaler.step(run.optimizer)
    scaler.update()
    for hook in plan.hooks:
        hook.after_step(run.step)
    run.optimizer.zero_grad()
    run.losses.append(losses)
    run.seconds += time.perf_counter() - started
    run.consistent = True


def _check_finite(run: _Run, loss: float, gradient: float) -> None:
    step = run.step + 1
    overflowed = run.scaler.is_enabled() and math.isfinite(loss)
    if overflowed and not math.isfinite(gradient):
        check_scale(run.scaler, step)  # the scaler leaves this step out and scales less
    elif not (math.isfinite(loss) and math.isfinite(gradient)):
        what = "loss" if not math.isfinite(loss) else "gradient"
        raise TrainingError(
            f"The {what} was not finite in step {step} of {run.plan.steps}; training stopped "
            f"with the weights of step {step - 1}. Try a smaller learning rate, or precision "
            "bf16 or fp32."
        )


def _progress(run: _Run) -> Progress:
    plan, preview = run.plan, None
    if plan.preview is not None and plan.preview_every and run.step % plan.preview_every == 0:
        preview = plan.preview()
    losses = dict(zip(run.columns, run.losses[-1], strict=True))
    return Progress(run.step, plan.steps, losses, preview, plan.phase)


def _save_quietly(run: _Run) -> None:
    """Keep the run for later; a full disk must not hide why it was stopped."""
    try:
        run.save()
    except FileError as error:
        logger.warning("The stopped run could not be kept: %s", error)


def _out_of_memory(error: BaseException) -> bool:
    texts = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(text in str(error).lower() for text in texts)
    )
