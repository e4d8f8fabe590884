"""Diffusion Scores Consolidation: "Mining your own secrets" (ICLR 2025), section 3.2, algorithm 3.

The lesson's adapter is both the first teacher and where the student starts; the second teacher is
the adapter after a random earlier lesson, drawn anew in every batch. All three live on one UNet.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..adapters import Adapter, AdapterSpec, build_adapter
from ..adapters.frozen import frozen_adapter
from ..adapters.mixed import MixedAdapters, RowPredictor, check_can_mix
from ..backbone import Backbone
from ..errors import StateError
from ..lesson import NORM_LEARNING_RATE, RATES
from ..objectives import StepBatch, Term
from ..objectives.distillation import (
    CONCEPTS,
    MODELS,
    OUTPUT_ROLES,
    SCORE_ROLES,
    DistillOutputs,
    DistillScores,
)
from ..seeding import generator
from ..state import LifelongState, TaskRecord
from ..training import ProgressCallback, Snapshot, TrainPlan, train
from ..training.cpu import cheaper_layers
from ..training.lesson import adapter_groups, loss_metrics
from .context import Consolidation, with_report
from .settings import ConsolidationSettings

MEMORY_ADVICE = (
    "Use a smaller batch_size with as much more accumulation, or turn gradient_checkpointing on."
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistillPhase:
    """Makes the newest adapter a student of itself and of the adapters before it (Eq 6).

    dc: also match the diffusion-classifier scores over {c_n, c_0, c_j}; without, the outputs alone
    ("DSC EWC" of the paper's tables), which takes 4 instead of 9 rows per picture.

    The result becomes the state's adapter and that of the newest record. Word vectors stay as
    they are. With one concept there is nothing to keep, and the state comes back unchanged.
    """

    dc: bool = True

    @property
    def name(self) -> str:
        return "dsc_dc" if self.dc else "dsc"

    def __call__(
        self, work: Consolidation, state: LifelongState, on_progress: ProgressCallback | None
    ) -> LifelongState:
        """Raises StateError before any training when an earlier lesson's adapter is missing or the
        adapters change the text encoders, and what `train` raises.
        """
        if len(state.records) < 2:
            logger.info("There is no earlier concept to distil; the adapter stays as it is.")
            return state
        check_teachers(state.adapter_spec, state.records[:-1])
        backbone, spec = work.backbone, state.adapter_spec
        student = build_adapter(spec, backbone, seed=work.settings.seed)
        student.load(state.adapter)
        newest = frozen_adapter(spec, backbone, state.adapter)
        earlier = frozen_adapter(spec, backbone, state.records[0].adapter)
        mixed = self._models(backbone, student, (newest, earlier))
        roles = SCORE_ROLES if self.dc else OUTPUT_ROLES
        # Once and outside of the training loop, whose precision may be another.
        work.encode((work.current, work.prior, *work.earlier))
        batches = DistillBatches(self.name, work, state, mixed, earlier, roles)
        outputs = DistillOutputs(work.settings.distillation_weight)
        scores = _score_term(work.settings) if self.dc else None
        terms = (outputs, scores) if scores else (outputs,)
        with mixed.attached(backbone), cheaper_layers(backbone.unet):
            report = loss_metrics(self._train(work, student, batches, terms, on_progress))
        if scores:
            report |= scores.log.report(self.name)
        weights = student.state()
        *older, record = state.records
        record = replace(record, adapter=weights)
        consolidated = replace(state, adapter=weights, records=(*older, record))
        return with_report(consolidated, self.name, report)

    def _models(
        self, backbone: Backbone, student: Adapter, teachers: Sequence[Adapter]
    ) -> MixedAdapters:
        """Student and teachers as one: here on one UNet, row by row."""
        return MixedAdapters(student, teachers)

    def _train(
        self,
        work: Consolidation,
        student: Adapter,
        batches: DistillBatches,
        terms: Sequence[Term],
        on_progress: ProgressCallback | None,
    ) -> Snapshot:
        settings, backbone = work.settings, work.backbone
        rate = settings.learning_rate * RATES[student.spec.kind]
        plan = TrainPlan(
            device=backbone.device,
            steps=settings.distillation_iterations,
            batches=batches,
            terms=terms,
            groups=adapter_groups(student, rate, NORM_LEARNING_RATE),
            accumulation=settings.accumulation,
            precision=settings.precision,
            memory_advice=MEMORY_ADVICE,
            phase=self.name,
        )
        with backbone.checkpointed(settings.gradient_checkpointing):
            return train(plan, on_progress)


def _score_term(settings: ConsolidationSettings) -> DistillScores:
    return DistillScores(
        settings.gamma,
        settings.teacher_temperature,
        settings.student_temperature,
        settings.space,
    )


def check_teachers(spec: AdapterSpec, earlier: Sequence[TaskRecord]) -> None:
    """Raise StateError unless adapters of `spec` can be distilled and every earlier lesson has
    kept its own.
    """
    check_can_mix(spec)
    for record in earlier:
        if not record.adapter:
            raise StateError(
                f"The adapter that concept {record.concept.token!r} was learned with is not in "
                "this state, so it cannot teach. Use a state whose lessons were all learned with "
                "a method that keeps their adapters, or consolidate without distillation."
            )


@dataclass(frozen=True)
class DistillBatches:
    """Batch number -> pictures of the lesson, once for every role "<model>/<concept>".

    earlier: the adapter of the second teacher; it is given the weights of batch i's teacher when
    batch i is made.
    """

    phase: str
    work: Consolidation
    state: LifelongState
    mixed: MixedAdapters
    earlier: Adapter
    roles: Sequence[str]

    def teacher(self, index: int) -> int:
        """The lesson j that the second teacher of batch `index` is taken from."""
        draw = generator(self.work.settings.seed, self.phase, "teacher", index)
        return int(torch.randint(len(self.state.records) - 1, (), generator=draw))

    def __call__(self, index: int) -> StepBatch:
        work, place = self.work, self.teacher(index)
        self.earlier.load(self.state.records[place].adapter)
        drawn = work.batch(self.phase, index)
        size, count = len(drawn.latents), len(self.roles)

        def repeated(values: Tensor) -> Tensor:
            return values.repeat(count, *[1] * (values.dim() - 1))

        adapters, concepts = self._numbers
        return StepBatch(
            predictor=RowPredictor(self.mixed, work.predictor, adapters.repeat_interleave(size)),
            roles=self._slices(size),
            latents=repeated(drawn.latents),
            noise=repeated(drawn.noise),
            timesteps=repeated(drawn.timesteps),
            noisy=repeated(drawn.noisy),
            target=repeated(drawn.target),
            prompts=work.encode((work.current, work.prior, work.earlier[place])),
            prompt_rows=concepts.repeat_interleave(size),
            seed=work.settings.seed,
            index=index,
        )

    @cached_property
    def _numbers(self) -> tuple[Tensor, Tensor]:
        """Adapter and concept of each role."""
        parts = [role.split("/") for role in self.roles]
        adapters = torch.tensor([MODELS.index(model) for model, _ in parts])
        return adapters, torch.tensor([CONCEPTS.index(concept) for _, concept in parts])

    def _slices(self, size: int) -> Mapping[str, slice]:
        return {
            role: slice(place * size, (place + 1) * size) for place, role in enumerate(self.roles)
        }
