"""What the phases of a consolidation look at: the lesson's pictures, the concepts, the draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from ..backbone import Backbone
from ..backbone.schedule import TIMESTEPS
from ..concepts import Concept, ConceptTask
from ..localized_words import earlier_prompts
from ..memory import ShortTermMemory
from ..objectives import Predictor
from ..prompts import ConceptVectors, PromptEncoder
from ..prompts.conditioning import Conditioning
from ..seeding import generator
from ..state import LifelongState
from ..training import Pictures, ProgressCallback
from ..training.priors import prior_prompt
from ..training.views import encode_views
from .settings import ConsolidationSettings

REPORT = "consolidation"


@dataclass(frozen=True)
class NoisyBatch:
    """Pictures of the lesson with one draw of noise each, which all concepts share.

    latents, noise, noisy, target: [B, 4, h, w] fp32; target is what the model should answer.
    timesteps: [B] integers in [0, 999].
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    noisy: Tensor
    target: Tensor


@dataclass(frozen=True)
class Consolidation:
    """Made once per consolidation of the lesson `task`; the pictures are used, never stored.

    concepts: all that the state knows, oldest first; the last one is the lesson's (c_n).
    views: the pictures' latents [N, 1, 4, h, w]. memory: what the lesson replayed, if it did.
    prompts: what encodes the concepts' prompts.
    """

    backbone: Backbone
    task: ConceptTask
    settings: ConsolidationSettings
    concepts: tuple[Concept, ...]
    views: Tensor
    prompts: PromptEncoder
    memory: ShortTermMemory | None = None

    @property
    def current(self) -> str:
        """The prompt of the lesson's concept, c_n."""
        return concept_prompt(self.concepts[-1])

    @property
    def prior(self) -> str:
        """The prompt of the prior concept, c_0: the lesson's plain noun."""
        return prior_prompt(self.concepts[-1].noun)

    @property
    def earlier(self) -> tuple[str, ...]:
        """The prompts of the earlier concepts, c_1 … c_{n-1}, oldest first."""
        return tuple(concept_prompt(concept) for concept in self.concepts[:-1])

    @cached_property
    def vectors(self) -> dict[str, ConceptVectors]:
        """Token -> encoder -> frozen vectors of every concept, on the backbone's device."""
        device = self.backbone.device
        return {
            concept.token: {key: value.to(device) for key, value in concept.vectors.items()}
            for concept in self.concepts
        }

    @cached_property
    def predictor(self) -> Predictor:
        """Runs the UNet on rows that share prompts."""
        return Predictor(self.backbone)

    def subset(self, phase: str, index: int) -> tuple[str, ...]:
        """The prompts c_k of batch `index`: current, prior, and up to k - 2 earlier concepts.

        The earlier ones are drawn without replacement; all of them when there are no more.
        """
        room = min(self.settings.subset - 2, len(self.earlier))
        draw = generator(self.settings.seed, phase, "subset", index)
        chosen = torch.randperm(len(self.earlier), generator=draw)[:room].tolist()
        return (self.current, self.prior, *(self.earlier[place] for place in chosen))

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encoded prompts, one row each, without gradient; each prompt is encoded once.

        Not for adapters that change the text encoders: encode with `backbone.text` then.
        """
        return self.prompts.encode(prompts, self.vectors)

    def batch(self, phase: str, index: int) -> NoisyBatch:
        """Batch `index` of a phase, always the same: pictures, timesteps and noise.

        Pictures come in shuffled rounds, timesteps are uniform (Eq 1).
        """
        settings = self.settings
        prompts = (self.current,) * len(self.views)
        pictures = Pictures(phase, self.views, prompts, settings.batch_size)
        latents, _ = pictures.draw(settings.seed, index)
        draw = generator(settings.seed, phase, "noise", index)
        timesteps = torch.randint(TIMESTEPS, (len(latents),), generator=draw).to(latents.device)
        noise = torch.randn(latents.shape, generator=draw).to(latents.device)
        schedule = self.backbone.schedule
        return NoisyBatch(
            latents=latents,
            noise=noise,
            timesteps=timesteps,
            noisy=schedule.add_noise(latents, noise, timesteps),
            target=schedule.target(latents, noise, timesteps),
        )


class Phase(Protocol):
    """One thing that a method does after a lesson."""

    @property
    def name(self) -> str:
        """What it does; phases that differ have different names."""
        ...

    def __call__(
        self, work: Consolidation, state: LifelongState, on_progress: ProgressCallback | None
    ) -> LifelongState:
        """The state after it. What `on_progress` raises cancels and is raised again."""
        ...


def concept_prompt(concept: Concept) -> str:
    """The prompt that a concept is recognised by."""
    return f"a photo of {concept.phrase}"


def prepare(
    backbone: Backbone,
    task: ConceptTask,
    settings: ConsolidationSettings,
    state: LifelongState,
    memory: ShortTermMemory | None = None,
) -> Consolidation:
    """Encode the pictures and gather what the phases need."""
    views = encode_views(backbone, task.images, flip=False, crop=False, seed=settings.seed)
    prompts = earlier_prompts(backbone.text, state)
    return Consolidation(backbone, task, settings, state.concepts, views, prompts, memory)


def with_report(state: LifelongState, name: str, report: dict[str, Any]) -> LifelongState:
    """`state` whose newest record tells in its metrics what phase `name` reports."""
    *older, newest = state.records
    phases = {**newest.metrics.get(REPORT, {}), name: report}
    newest = replace(newest, metrics={**newest.metrics, REPORT: phases})
    return replace(state, records=(*older, newest))
