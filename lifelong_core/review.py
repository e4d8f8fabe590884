"""Looking back over a state's lessons with nothing but the state and its base model.

A state keeps every lesson's adapter, so the model as it was after any lesson can be put together
again: what it drew then can be compared with what it draws now, without the lessons' pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .adapters.distance import change_norm, measured_change
from .backbone import Backbone
from .backbone.families import DOWNSCALE
from .consolidation.context import concept_prompt
from .errors import InputError, StateError
from .localized_words import encode_localized
from .methods import any_prompt_state, newest_method
from .sampling import generate
from .seeding import derive_seed, generator
from .sharing.naming import layers
from .state import LifelongState
from .training import Progress, ProgressCallback
from .training.precision import autocast, autocast_dtype
from .training.priors import prior_prompt
from .word_routing import Known, prompted

TIMESTEPS = (100, 300, 500, 700, 900)
ROWS = 8
"""Rows of one pass through the UNet."""

Cells = dict[tuple[int, int], float]
"""(after lesson j, lesson i) -> a value; lessons count from 1, j ≥ i."""


@dataclass(frozen=True)
class Looks:
    """One concept's pictures [P, 3, H, W] in [0, 1], each row of three from the same noise.

    plain: by the base model, of the plain noun; then: right after the lesson; now: by the state.
    """

    plain: Tensor
    then: Tensor
    now: Tensor


@dataclass(frozen=True)
class Review:
    """looks: lesson -> its concept's pictures.

    kept: (after j, lesson i) -> 1 - ‖o_j - o_i‖ / ‖o_0 - o_i‖, where o are the model's outputs for
    the pictures drawn after lesson i, with noise of `TIMESTEPS`: o_j after lesson j, o_0 by the
    base model for the plain noun. 1: answers as right after the lesson; 0: as far from that as the
    plain noun is; below 0: further.
    """

    looks: dict[int, Looks]
    kept: Cells


def state_after(state: LifelongState, lesson: int) -> LifelongState:
    """The state as it was after lesson `lesson`, from 1; without extras unless it is the newest.

    Raises InputError for a lesson that there is not, StateError when its adapter was not kept.
    """
    if not 1 <= lesson <= len(state.records):
        raise InputError(f"There is no lesson {lesson}; this state has {len(state.records)}.")
    if lesson == len(state.records):
        return state
    records = state.records[:lesson]
    if not records[-1].adapter:
        raise StateError(
            f"This state has not kept the adapter of the lesson on "
            f"{records[-1].concept.token!r}, so its model cannot be put together again."
        )
    return replace(state, adapter=records[-1].adapter, records=records, extras={})


def kept_lessons(state: LifelongState, most: int) -> list[int]:
    """Lessons, from 1, whose adapters the state has; at most `most` (≥ 2) of them: the first, the
    newest, and evenly between.
    """
    count = len(state.records)
    lessons = [n for n, record in enumerate(state.records, 1) if record.adapter or n == count]
    if len(lessons) <= most:
        return lessons
    places = {round(place * (len(lessons) - 1) / (most - 1)) for place in range(most)}
    return [lessons[place] for place in sorted(places)]


def weight_drift(state: LifelongState, lessons: Sequence[int]) -> Cells:
    """‖ΔW_j - ΔW_i‖ / ‖ΔW_i‖ of the model's changes after lessons i < j.

    Lessons that had changed no weight have no entry, and there is none at all where not one adapter
    draws everything. Raises what `state_after` raises.
    """
    method = newest_method(state)
    if method is not None and not method.one_adapter:
        return {}
    changes = {}
    for lesson in lessons:
        drawn = any_prompt_state(state_after(state, lesson))
        changes[lesson] = measured_change(drawn.adapter_spec, drawn.adapter, layers(state.family))
    sizes = {lesson: change_norm(factors) for lesson, factors in changes.items()}
    return {
        (after, lesson): change_norm(changes[after], changes[lesson]) / sizes[lesson]
        for after in lessons
        for lesson in lessons
        if lesson < after and sizes[lesson] > 0.0
    }


@torch.no_grad()
def look_back(
    backbone: Backbone,
    state: LifelongState,
    lessons: Sequence[int],
    *,
    pictures: int = 2,
    seed: int = 0,
    steps: int = 20,
    size: int | None = None,
    precision: str = "fp32",
    on_progress: ProgressCallback | None = None,
) -> Review:
    """Draw the concepts of `lessons` then and now, and measure what the model has kept of them.

    lessons: from 1; the newest is always looked at as well. size: side of the pictures; by default
    the family's. What `on_progress` raises cancels; `backbone` is as it was in every case.

    Raises StateError for a state without a lesson, of another base model, or without the adapters,
    InputError for one whose method changes adapters between steps.
    """
    if not state.records:
        raise StateError("This state has no lesson to look back at; learn a concept first.")
    state.require_backbone(backbone)
    method = newest_method(state)
    if method is not None and method.sample_with is not None:
        raise InputError(
            f"A state of {method.title} is drawn with other adapters at every step, so there is no "
            "model to look back at. Use a state that was learned with another method."
        )
    newest = len(state.records)
    chosen = sorted({*lessons, newest})
    states = {lesson: state_after(state, lesson) for lesson in chosen}
    total = (3 * len(chosen) - 1) * steps * -(-pictures // ROWS)
    eye = _Eye(backbone, state, pictures, seed, steps, size, precision, _Beats(on_progress, total))
    plain = {lesson: eye.decoded(eye.drawn(None, lesson)) for lesson in chosen}
    then, now = {}, {}
    answers: dict[tuple[int, int], Tensor] = {}
    for after, known in states.items():
        then[after] = eye.drawn(known, after)
        for lesson in (number for number in chosen if number <= after):
            answers[after, lesson] = eye.answers(known, lesson, then[lesson])
            if after == newest:
                now[lesson] = then[lesson] if lesson == newest else eye.drawn(known, lesson)
    kept = {}
    for lesson in chosen:
        own = answers[lesson, lesson]
        span = float((eye.answers(None, lesson, then[lesson]) - own).norm())
        for after in (number for number in chosen if number >= lesson and span > 0.0):
            kept[after, lesson] = 1.0 - float((answers[after, lesson] - own).norm()) / span
    looks = {
        lesson: Looks(plain[lesson], eye.decoded(then[lesson]), eye.decoded(now[lesson]))
        for lesson in chosen
    }
    return Review(looks, kept)


class _Beats:
    """Counts sampling steps for the progress callback."""

    def __init__(self, on_progress: ProgressCallback | None, total: int) -> None:
        self.on_progress, self.total, self.done = on_progress, total, 0

    def __call__(self, step: int = 1) -> None:
        self.done += step
        if self.on_progress is not None:
            self.on_progress(Progress(self.done, self.total, {}, None, "looking back"))


@dataclass(frozen=True)
class _Eye:
    """One way of looking at concepts; a state of None is the base model with the plain noun."""

    backbone: Backbone
    state: LifelongState
    pictures: int
    seed: int
    steps: int
    size: int | None
    precision: str
    beats: _Beats

    def drawn(self, known: LifelongState | None, lesson: int) -> Tensor:
        """Latents [P, 4, h, w] of the lesson's concept."""
        side = self.size or self.backbone.family.default_size
        with self._seeing(known, lesson) as (prompt, seen):
            return generate(
                self.backbone,
                [prompt] * self.pictures,
                seed=derive_seed(self.seed, "look back", self._token(lesson)),
                steps=self.steps,
                size=(side, side),
                vectors=seen.vectors,
                localized=seen.localized,
                batch_size=ROWS,
                as_latents=True,
                autocast=autocast_dtype(self.precision),
                on_progress=lambda _done, _of: self.beats(),
            )

    def decoded(self, latents: Tensor) -> Tensor:
        """Pictures [P, 3, H, W]."""
        return self.backbone.codec.decode(latents.to(self.backbone.device)).float().cpu()

    def answers(self, known: LifelongState | None, lesson: int, latents: Tensor) -> Tensor:
        """The model's outputs [P · T, 4, h, w], on the CPU, for always the same noise."""
        schedule, device = self.backbone.schedule, self.backbone.device
        clean = latents.repeat_interleave(len(TIMESTEPS), dim=0)
        times = torch.tensor(TIMESTEPS).repeat(len(latents))
        draw = generator(self.seed, "look back", "noise", self._token(lesson))
        noise = torch.randn(clean.shape, generator=draw)
        noisy = schedule.add_noise(clean.to(device), noise.to(device), times.to(device))
        size = (DOWNSCALE * latents.shape[-2], DOWNSCALE * latents.shape[-1])
        found = []
        with self._seeing(known, lesson) as (prompt, seen):
            text = self.backbone.text
            encoded = encode_localized(text, [prompt], seen.vectors, seen.localized)
            for start in range(0, len(noisy), ROWS):
                part, when = noisy[start : start + ROWS], times[start : start + ROWS].to(device)
                rows = encoded[torch.zeros(len(part), dtype=torch.long)]
                with autocast(device, self.precision):
                    output = self.backbone.predict(part, when, rows, size)
                found.append(output.float().cpu())
                self.beats(0)
        return torch.cat(found)

    @contextmanager
    def _seeing(self, known: LifelongState | None, lesson: int) -> Iterator[tuple[str, Known]]:
        """The prompt of the lesson's concept, with what draws it."""
        concept = self.state.concepts[lesson - 1]
        if known is None:
            yield prior_prompt(concept.noun), Known()
            return
        prompt = concept_prompt(concept)
        with prompted(self.backbone, known, prompt) as seen:
            yield prompt, seen

    def _token(self, lesson: int) -> str:
        return self.state.concepts[lesson - 1].token
