"""The passes that a Fisher is estimated from: the loss of Eq 5, sample by sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..adapters import target_layers
from ..adapters.frozen import frozen_adapter
from ..backbone import Conditioning
from ..classifier import ScoreLog, concept_errors, concept_outputs, log_scores, noise_errors
from ..errors import InputError, TrainingError
from ..state import LifelongState
from ..training import Progress, ProgressCallback
from ..training.cpu import cheaper_layers
from ..training.precision import autocast
from .context import Consolidation, NoisyBatch
from .per_sample import sample_gradients

FP16_SCALE = 2.0**16
"""First scale of the losses in fp16; a sixteenth of it whenever a gradient overflows."""


def separation(logs: Tensor) -> Tensor:
    """T [B] = Σ_i (2 · 1[i = n] - 1) H_i with H_i = -log p_i, from log scores [B, k].

    Column 0 is the current concept n. This is the bracket of Eq 5 with the ordinary cross-entropy
    of a one-hot label. It has no minimum: as a training loss it would make the model worse at
    every other concept. Only its gradient is ever taken, to find the weights that separate the
    concepts. With s = -e / τ: ∂T/∂s_n = -(1 + (k - 2) p_n), ∂T/∂s_i = 1 - (k - 2) p_i. Equal
    scores thus still compare the current concept's error with the others', with fixed shares.
    """
    return logs[:, 1:].sum(dim=1) - logs[:, 0]


class FisherPasses:
    """Gradients of single samples at the weights of `state`, batch after batch.

    The loss of a sample is L_ewc = L_D + δ T (Eq 5), with `dc`, else L_D. L_D is the denoising
    error under the current concept, weighted over timesteps as the lesson weighted it. All
    concepts of a sample share its noise and one forward pass.
    """

    def __init__(
        self,
        work: Consolidation,
        state: LifelongState,
        name: str,
        dc: bool,
        on_progress: ProgressCallback | None,
    ) -> None:
        self.work = work
        self.name = name
        self.dc = dc
        self.on_progress = on_progress
        self.iterations = work.settings.fisher_iterations
        if state.adapter_spec.text_encoder and any(one.layers for one in state.concepts):
            raise InputError(
                "The Fisher of weights inside the text encoders cannot be told apart picture by "
                "picture where tokens are layer-wise. Learn with layerwise_tokens or with the text "
                "encoder, not with both, or consolidate without this phase."
            )
        self.log = ScoreLog()
        self._adapter = frozen_adapter(state.adapter_spec, work.backbone, state.adapter)
        self._layers = target_layers(work.backbone, state.adapter_spec)
        self._min_snr_gamma = float(state.records[-1].settings.get("min_snr_gamma", 0.0))
        self._scale = FP16_SCALE if work.settings.precision == "fp16" else 1.0
        self._done = 0

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The state's adapter on the base model, which is as before afterwards in every case."""
        backbone = self.work.backbone
        checkpointed = backbone.checkpointed(self.work.settings.gradient_checkpointing)
        with self._adapter.attached(backbone), cheaper_layers(backbone.unet), checkpointed:
            yield

    def gradients(self, iterations: range) -> Iterator[dict[str, Tensor]]:
        """Per batch of the iterations: weight -> gradients of its samples [B, *shape], fp32.

        Raises TrainingError when they are not finite.
        """
        batches = self.work.settings.accumulation
        for iteration in iterations:
            loss = torch.zeros((), device=self.work.backbone.device)
            for index in range(iteration * batches, (iteration + 1) * batches):
                losses, gradients = self._finite(index)
                loss = loss + losses.mean() / batches
                yield gradients
            self._done += 1
            if self.on_progress is not None:
                losses_now = {"loss": float(loss)}
                self.on_progress(Progress(self._done, self.iterations, losses_now, phase=self.name))

    def losses(self, batch: NoisyBatch, concepts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """L_ewc [B] of a batch, and the log scores [B, k] of its concepts, the current one first.

        One forward pass of B · k rows.
        """
        work, settings = self.work, self.work.settings
        with autocast(work.backbone.device, settings.precision):
            prompts, rows = self._conditions(concepts, len(batch.latents))
            outputs = concept_outputs(work.predictor, batch.noisy, batch.timesteps, prompts, rows)
        errors = concept_errors(outputs, batch.target)
        denoising = errors[:, 0]
        schedule = work.backbone.schedule
        if self._min_snr_gamma:
            weights = schedule.min_snr_weight(batch.timesteps, self._min_snr_gamma)
            denoising = denoising * weights
        if settings.space == "noise":
            errors = noise_errors(errors, batch.timesteps, schedule)
        logs = log_scores(errors, settings.temperature)
        if not self.dc:
            return denoising, logs
        return denoising + settings.delta * separation(logs), logs

    def _finite(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses and gradients of batch `index`, at a scale at which nothing overflows."""
        work = self.work
        batch = work.batch(self.name, index)
        concepts = work.subset(self.name, index) if self.dc else (work.current,)
        logs = torch.empty(0)

        def losses() -> Tensor:
            nonlocal logs
            values, logs = self.losses(batch, concepts)
            return values

        while True:
            values, gradients = sample_gradients(
                self._adapter, self._layers, losses, scale=self._scale
            )
            finite = torch.stack([value.isfinite().all() for value in gradients.values()])
            if bool(finite.all()):
                break
            if self._scale <= 1.0:
                raise TrainingError(
                    f"A gradient of batch {index + 1} of the Fisher is not finite. The adapter "
                    "may have diverged in its lesson: learn it with a smaller learning rate, or "
                    "choose precision fp32 or bf16."
                )
            self._scale /= 16.0
        if self.dc:
            self.log.add(logs.detach().exp())
        return values, gradients

    def _conditions(self, concepts: Sequence[str], pictures: int) -> tuple[Conditioning, Tensor]:
        """Encoded prompts, and which of them each picture's concepts are, [B, k].

        An adapter in the text encoders needs every picture's own pass through them.
        """
        work, k = self.work, len(concepts)
        if not self._adapter.spec.text_encoder:
            return work.encode(concepts), torch.arange(k).expand(pictures, k)
        tokenized = [work.backbone.text.tokenize(prompt, work.vectors) for prompt in concepts]
        prompts = work.backbone.text.encode_tokenized(tokenized * pictures, work.vectors)
        return prompts, torch.arange(pictures * k).view(pictures, k)
