"""Looks into finished runs: how well scores tell concepts apart, and what a Fisher is like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lifelong_core.backbone import Backbone
from lifelong_core.backbone.schedule import TIMESTEPS
from lifelong_core.classifier import concept_errors, concept_outputs, entropy, scores
from lifelong_core.concepts import ConceptTask
from lifelong_core.consolidation import ConsolidationSettings, consolidate
from lifelong_core.consolidation.context import concept_prompt
from lifelong_core.consolidation.fisher import UpdateFisher
from lifelong_core.drawing import knowing
from lifelong_core.evaluation.stream import Subject
from lifelong_core.fisher import DIAGONAL, DiagonalFisher
from lifelong_core.objectives import Predictor
from lifelong_core.seeding import generator
from lifelong_core.state import LifelongState
from lifelong_core.training.views import encode_views

TRIALS = 8
TOP = 0.01
"""The share of weights that is called the top."""


@torch.no_grad()
def classification(
    backbone: Backbone,
    state: LifelongState,
    subjects: Sequence[Subject],
    *,
    temperature: float,
    trials: int = TRIALS,
    seed: int = 0,
) -> dict[str, Any]:
    """How often unseen pictures of each concept are denoised best under its own prompt (Eq 3).

    The rivals are all concepts of `state`, which are those of `subjects`, in their order.
    accuracy: by the mean error over `trials` draws of timestep and noise, which all concepts
    share; accuracy_one_trial: by single draws, as in a consolidation; entropy_share: of the scores
    of single draws, of the highest possible. chance: accuracy of a guess.
    """
    prompts = [concept_prompt(concept) for concept in state.concepts]
    verdicts = []
    with knowing(backbone, state) as vectors:
        encoded = backbone.text.encode(prompts, vectors)
        predict = Predictor(backbone)
        for number, subject in enumerate(subjects):
            latents = encode_views(backbone, subject.real, flip=False, crop=False, seed=seed)[:, 0]
            rows = torch.arange(len(prompts)).expand(len(latents), -1)
            trial_errors = []
            for trial in range(trials):
                noisy, timesteps, target = _noised(backbone, latents, seed, number, trial)
                outputs = concept_outputs(predict, noisy, timesteps, encoded, rows)
                trial_errors.append(concept_errors(outputs, target))
            verdicts.append(_verdict(torch.stack(trial_errors), number, temperature))
    means = {key: sum(one[key] for one in verdicts) / len(verdicts) for key in verdicts[0]}
    tokens = [concept.token for concept in state.concepts]
    each = dict(zip(tokens, verdicts, strict=True))
    return {**means, "chance": 1.0 / len(prompts), "concepts": each}


def _noised(
    backbone: Backbone, latents: Tensor, seed: int, concept: int, trial: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Noised latents, timesteps and targets, the same for every model."""
    draw = generator(seed, "classification", concept, trial)
    timesteps = torch.randint(TIMESTEPS, (len(latents),), generator=draw).to(latents.device)
    noise = torch.randn(latents.shape, generator=draw).to(latents.device)
    schedule = backbone.schedule
    target = schedule.target(latents, noise, timesteps)
    return schedule.add_noise(latents, noise, timesteps), timesteps, target


def _verdict(errors: Tensor, own: int, temperature: float) -> dict[str, float]:
    """From errors [trials, pictures, concepts]."""
    share = entropy(scores(errors.flatten(0, 1), temperature)) / math.log(errors.shape[2])
    return {
        "accuracy": float((errors.mean(0).argmin(1) == own).float().mean()),
        "accuracy_one_trial": float((errors.argmin(2) == own).float().mean()),
        "entropy_share": float(share.mean()),
    }


def spectra(
    backbone: Backbone,
    task: ConceptTask,
    state: LifelongState,
    settings: ConsolidationSettings,
    workspace: Path | None = None,
) -> dict[str, Any]:
    """The newest lesson's Fisher with and without the classifier's term, at the same weights.

    Each as `spectrum` tells, and how much of the top of one is in the top of the other. `task` is
    the newest lesson's. The diagonal stands for the eigenvalues.
    """
    extras = {name: group for name, group in state.extras.items() if name != DIAGONAL}
    bare = replace(state, extras=extras)
    found = {}
    for name, dc in (("with_dc", True), ("without_dc", False)):
        phases = (UpdateFisher(dc=dc),)
        counted = consolidate(
            backbone, task, bare, phases=phases, settings=settings, workspace=workspace
        )
        fisher = DiagonalFisher.of(counted)
        assert fisher is not None
        found[name] = torch.cat([fisher.values[key].flatten() for key in sorted(fisher.values)])
    tops = [set(value.topk(_top(value)).indices.tolist()) for value in found.values()]
    return {name: spectrum(value) for name, value in found.items()} | {
        "shared_top": len(tops[0] & tops[1]) / len(tops[0])
    }


def spectrum(values: Tensor) -> dict[str, Any]:
    """Of a Fisher's diagonal: its largest values at ranks 1, 2, 5, 10, …, its mean, the share that
    the top 1 % of the weights has in the sum, and how many equal weights would be as uneven:
    (Σ f)² / Σ f².
    """
    ordered = values.double().sort(descending=True).values
    ranks = [rank for power in range(9) for rank in (10**power, 2 * 10**power, 5 * 10**power)]
    total = float(ordered.sum())
    return {
        "ranks": {str(rank): float(ordered[rank - 1]) for rank in ranks if rank <= len(ordered)},
        "weights": len(ordered),
        "mean": total / len(ordered),
        "top_share": float(ordered[: _top(values)].sum()) / total,
        "effective_weights": total**2 / float(ordered.square().sum()),
    }


def _top(values: Tensor) -> int:
    return max(1, round(TOP * values.numel()))
