"""Shift embeddings of ConceptGuard (CVPR 2025): earlier tokens follow the weights.

A lesson moves the weights that earlier tokens were learned with. Here the weights stay and the
earlier tokens' vectors are trained on, on the pictures that the lesson replayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from ..adapters.frozen import frozen_adapter
from ..errors import StateError
from ..localized_words import localized_nouns
from ..memory import ShortTermMemory
from ..objectives import Denoising
from ..state import LifelongState, TaskRecord
from ..training import Batches, ParameterGroup, Pictures, ProgressCallback, TrainPlan, train
from ..training.cpu import cheaper_layers
from ..training.lesson import loss_metrics
from ..training.localized import LocalizedWords
from ..training.views import encode_views
from .context import Consolidation, with_report

ROLE = "shift"
Trained = Mapping[int, Mapping[str, nn.Parameter]]
"""Number of a concept -> encoder -> its vectors [m, width]."""


@dataclass(frozen=True)
class ShiftEmbeddings:
    """Trains the vectors of the remembered concepts on their pictures; the adapter and the newest
    token stay as they are. With one concept there is nothing to do, and the state comes back
    unchanged.
    """

    name: str = "shift_embeddings"

    def __call__(
        self, work: Consolidation, state: LifelongState, on_progress: ProgressCallback | None
    ) -> LifelongState:
        """Raises StateError without memories of earlier concepts, and what `train` raises."""
        if len(state.records) < 2:
            return state
        memory = _memory(work, state)
        device = work.backbone.device
        trained = {
            number: {
                key: nn.Parameter(value.detach().to(device, copy=True))
                for key, value in state.concepts[number].vectors.items()
            }
            for number in sorted(set(memory.concepts))
        }
        report = self._train(work, state, memory, trained, on_progress)
        records = tuple(
            _with_vectors(record, trained.get(n)) for n, record in enumerate(state.records)
        )
        return with_report(replace(state, records=records), self.name, report)

    def _train(
        self,
        work: Consolidation,
        state: LifelongState,
        memory: ShortTermMemory,
        trained: Trained,
        on_progress: ProgressCallback | None,
    ) -> dict[str, object]:
        backbone, settings = work.backbone, work.settings
        gamma = float(state.records[-1].settings.get("min_snr_gamma", 0.0))
        views = encode_views(backbone, memory.images, flip=False, crop=False, seed=settings.seed)
        pictures = Pictures(ROLE, views, memory.prompts, settings.batch_size, memory.concepts)
        vectors = dict(work.vectors) | {state.concepts[n].token: v for n, v in trained.items()}
        parameters = {
            f"{state.concepts[number].token}.{key}": value
            for number, own in trained.items()
            for key, value in own.items()
        }
        localized = localized_nouns(state)
        adapter = frozen_adapter(state.adapter_spec, backbone, state.adapter)
        with adapter.attached(backbone), cheaper_layers(backbone.unet):
            plan = TrainPlan(
                device=backbone.device,
                steps=settings.shift_iterations,
                batches=Batches(
                    backbone,
                    [pictures],
                    vectors,
                    seed=settings.seed,
                    trains_text_encoder=state.adapter_spec.text_encoder,
                    localized=LocalizedWords(localized, settings.seed) if localized else None,
                ),
                terms=[Denoising("denoising", ROLE, 1.0, gamma)],
                groups=[ParameterGroup("tokens", parameters, settings.shift_learning_rate)],
                accumulation=settings.accumulation,
                precision=settings.precision,
                phase=self.name,
            )
            with backbone.checkpointed(settings.gradient_checkpointing):
                return loss_metrics(train(plan, on_progress))


def _memory(work: Consolidation, state: LifelongState) -> ShortTermMemory:
    """The pictures that the newest lesson replayed."""
    if work.memory is None:
        raise StateError(
            "There are no remembered pictures to shift the earlier tokens on. Give the memory that "
            "the lesson replayed; only methods that replay have one."
        )
    known = replace(state, records=state.records[:-1])
    # Drawn by the state before the lesson, whose weights were others.
    replace(work.memory, drawn_by="").require_state(known)
    return work.memory


def _with_vectors(record: TaskRecord, vectors: Mapping[str, nn.Parameter] | None) -> TaskRecord:
    if vectors is None:
        return record
    return replace(record, concept=replace(record.concept, vectors=vectors))
