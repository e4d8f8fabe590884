"""Where the time of a training step goes: by part of the step, and by torch's operators."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed_lessons import OurLesson
from lifelong_core.backbone import Backbone

STEPS = 6
OPERATORS = 15


class Marks:
    """Processor time by part. As a hook of the loop it knows where the backward pass ends."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._last = time.process_time()

    def mark(self, part: str) -> None:
        """What went by since the last mark belongs to `part`."""
        now = time.process_time()
        self.spent[part] = self.spent.get(part, 0.0) + now - self._last
        self._last = now

    def after_backward(self, step: int) -> None:
        self.mark("backward pass")

    def after_step(self, step: int) -> None:
        self.mark("gradient clipping and optimiser")

    def per_step(self, steps: int) -> dict[str, dict[str, float]]:
        """Part -> milliseconds per step and share of the step."""
        total = sum(self.spent.values())
        return {
            part: {
                "milliseconds": round(1e3 * seconds / steps, 2),
                "share": round(seconds / total, 4),
            }
            for part, seconds in sorted(self.spent.items(), key=lambda item: -item[1])
        }


def parts_of(lesson: OurLesson, backbone: Backbone) -> dict[str, dict[str, float]]:
    """Processor time per step and part."""
    marks = Marks()
    rest = "batch, losses and the loop itself"

    def timed(part: str) -> Callable[..., None]:
        return lambda *_: marks.mark(part)

    with ExitStack() as stack:
        stack.enter_context(_around(backbone.unet, timed(rest), timed("UNet forward")))
        for encoder in backbone.text.modules.values():
            stack.enter_context(_around(encoder, timed(rest), timed("text encoder forward")))
        lesson.run(1, lambda: None)
        marks = Marks()
        lesson.run(STEPS, timed(rest), hooks=(marks,))
    return marks.per_step(STEPS)


def operators_of(lesson: OurLesson) -> list[dict[str, Any]]:
    """The operators that take most of a step, without what they call, by torch's profiler."""
    lesson.run(1, lambda: None)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        lesson.run(STEPS, lambda: None)
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return [
        {
            "operator": event.key,
            "milliseconds": round(event.self_cpu_time_total / 1e3 / STEPS, 2),
            "share": round(event.self_cpu_time_total / total, 4),
            "calls": round(event.count / STEPS, 1),
        }
        for event in events[:OPERATORS]
    ]


@contextmanager
def _around(
    module: nn.Module, before: Callable[..., None], after: Callable[..., None]
) -> Iterator[None]:
    handles = (
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
