"""Consolidation as the paper describes it, with our parts: what ours is compared to.

Both phases make what the library's own make, from the same draws; see the tests. Adapters, the
cheaper layers and the shared prompts are the library's on both sides, so that a comparison tells
of batches and of UNets alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from lifelong_core.adapters import Adapter, build_adapter
from lifelong_core.adapters.mixed import TRAINED, MixedAdapters
from lifelong_core.backbone import Backbone, Conditioning
from lifelong_core.consolidation import Consolidation, NoisyBatch
from lifelong_core.consolidation.distill import DistillPhase
from lifelong_core.consolidation.fisher_passes import FisherPasses
from lifelong_core.fisher import with_diagonal
from lifelong_core.objectives import Predictor
from lifelong_core.objectives.predict import RunsUnet
from lifelong_core.state import LifelongState
from lifelong_core.training import Progress, ProgressCallback
from lifelong_core.training.cpu import cheaper_layers


class OneByOne(Predictor):
    """Every row in a pass of its own."""

    def __call__(
        self, latents: Tensor, timesteps: Tensor, prompts: Conditioning, rows: Tensor
    ) -> Tensor:
        first = torch.zeros(1, dtype=torch.long)
        outputs = [
            super(OneByOne, self).__call__(
                latents[place : place + 1],
                timesteps[place : place + 1],
                prompts[rows[place : place + 1]],
                first,
            )
            for place in range(len(rows))
        ]
        return torch.cat(outputs)


class SeparateConsolidation(Consolidation):
    """A consolidation whose rows never share a pass."""

    @cached_property
    def predictor(self) -> Predictor:
        return OneByOne(self.backbone)


@dataclass(frozen=True)
class SeparateFisher:
    """`UpdateFisher(dc=True)` as in Eq 4 and 5: picture by picture, k forward passes of one row and
    one backward pass, whose gradient is squared."""

    name: str = "fisher_dc"

    def __call__(
        self, work: Consolidation, state: LifelongState, on_progress: ProgressCallback | None
    ) -> LifelongState:
        settings, backbone = work.settings, work.backbone
        adapter = build_adapter(state.adapter_spec, backbone, seed=0)
        adapter.load(state.adapter)
        weights = adapter.named_parameters()
        apart = SeparateConsolidation(
            **{one.name: getattr(work, one.name) for one in fields(Consolidation)}
        )
        passes = FisherPasses(apart, state, self.name, True, None)
        squares = {name: torch.zeros_like(value) for name, value in weights.items()}
        pictures = 0
        with adapter.attached(backbone), cheaper_layers(backbone.unet):
            for iteration in range(settings.fisher_iterations):
                first = iteration * settings.accumulation
                for index in range(first, first + settings.accumulation):
                    batch = work.batch(self.name, index)
                    concepts = apart.subset(self.name, index)
                    for one in _single(batch):
                        losses, _ = passes.losses(one, concepts)
                        found = torch.autograd.grad(losses.sum(), list(weights.values()))
                        for name, value in zip(weights, found, strict=True):
                            squares[name] += value.square()
                        pictures += 1
                if on_progress is not None:
                    total = settings.fisher_iterations
                    on_progress(Progress(iteration + 1, total, {}, phase=self.name))
        return with_diagonal(state, {name: value / pictures for name, value in squares.items()})


def _single(batch: NoisyBatch) -> Iterator[NoisyBatch]:
    """The pictures of a batch, as batches of one."""
    names = [one.name for one in fields(NoisyBatch)]
    for place in range(len(batch.latents)):
        yield NoisyBatch(**{name: getattr(batch, name)[place : place + 1] for name in names})


class ThreeUnets(MixedAdapters):
    """One UNet for each adapter: the base model's for the trained one, copies for the frozen."""

    def __init__(self, backbone: Backbone, trained: Adapter, frozen: Sequence[Adapter]) -> None:
        super().__init__(trained, frozen)
        self.backbones = [backbone, *(_with_own_unet(backbone) for _ in frozen)]
        self.predictors = [Predictor(one) for one in self.backbones]

    @contextmanager
    def attached(self, backbone: Backbone) -> Iterator[None]:
        with ExitStack() as stack:
            for adapter, own in zip(self.adapters, self.backbones, strict=True):
                stack.enter_context(adapter.attached(own))
            for own in self.backbones[1:]:  # the phase does it to the base model's
                stack.enter_context(cheaper_layers(own.unet))
            yield

    def predict(
        self,
        predict: RunsUnet,
        latents: Tensor,
        timesteps: Tensor,
        prompts: Conditioning,
        rows: Tensor,
        adapters: Tensor,
    ) -> Tensor:
        differentiable = torch.is_grad_enabled()
        orders, outputs = [], []
        for number, predictor in enumerate(self.predictors):
            chosen = (adapters == number).nonzero()[:, 0]
            here = chosen.to(latents.device)
            with torch.set_grad_enabled(differentiable and number == TRAINED):
                outputs.append(predictor(latents[here], timesteps[here], prompts, rows[chosen]))
            orders.append(here)
        return torch.cat(outputs)[torch.argsort(torch.cat(orders))]


@dataclass(frozen=True)
class DistillOnThreeUnets(DistillPhase):
    """`DistillPhase` with a UNet for the student and one for each teacher."""

    def _models(
        self, backbone: Backbone, student: Adapter, teachers: Sequence[Adapter]
    ) -> MixedAdapters:
        return ThreeUnets(backbone, student, teachers)


def _with_own_unet(backbone: Backbone) -> Backbone:
    """The same base model around a copy of its UNet."""
    other = copy.copy(backbone)
    other.unet = copy.deepcopy(backbone.unet)
    return other
