"""TAME and ECD as one regression, against the two losses written out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lifelong_core.adapters import Adapter, AdapterSpec, build_adapter
from lifelong_core.adapters.frozen import frozen_adapter, standing_in
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.objectives import StepBatch, denoising
from lifelong_core.objectives.replay import Replay
from lifelong_core.prompts import PromptCache
from lifelong_core.seeding import generator
from lifelong_core.training import Batches, Pictures

ALPHA, GAMMA = 0.7, 1.6
TEXT = AdapterSpec(rank=2, text_encoder=True)
SPECS = {"lora": AdapterSpec(rank=2), "text": TEXT, "spectral": AdapterSpec("spectral")}
PROMPTS = ("a photo of embedding:old dog", "a drawing of embedding:old dog")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


def weights(backbone: Backbone, spec: AdapterSpec, seed: int) -> dict[str, Tensor]:
    return {
        key: torch.randn(value.shape, generator=generator(seed, key)) * 0.1
        for key, value in build_adapter(spec, backbone, seed=0).state().items()
    }


def batches(backbone: Backbone, spec: AdapterSpec, vectors: dict) -> Batches:
    def latents(role: str) -> Tensor:
        return torch.randn(2, 1, 4, 8, 8, generator=generator(1, role))

    sources = [
        Pictures("concept", latents("concept"), ("a photo of a cat",) * 2, 1),
        Pictures("replay", latents("replay"), PROMPTS, 3),
    ]
    return Batches(backbone, sources, vectors, seed=3, trains_text_encoder=spec.text_encoder)


@pytest.fixture(params=SPECS)
def lesson(
    request: pytest.FixtureRequest, backbone: Backbone
) -> Iterator[tuple[Adapter, Adapter, StepBatch, Replay]]:
    """An attached student, its teacher, a batch with two replayed prompts, and the term."""
    spec = SPECS[request.param]
    student, vectors = (
        build_adapter(spec, backbone, seed=0),
        {"old": {"clip_l": torch.randn(1, 128, generator=generator(0, "old")) * 0.02}},
    )
    student.load(weights(backbone, spec, 0))
    teacher = frozen_adapter(spec, backbone, weights(backbone, spec, 1))
    own = (PromptCache(backbone.text, trains_encoder=True), vectors) if spec.text_encoder else None
    term = Replay(
        ALPHA, GAMMA, lambda: standing_in(teacher, student, backbone), 5.0, own_prompts=own
    )
    make = batches(backbone, spec, vectors)
    with student.attached(backbone):
        yield student, teacher, make(0), term


def separate_losses(
    backbone: Backbone, student: Adapter, teacher: Adapter, batch: StepBatch
) -> tuple[Tensor, Tensor]:
    """Equations 4 (its first sum) and 6, each with forward passes of its own, picture by picture.

    The prompts are encoded by the model that answers.
    """
    rows = batch.roles["replay"]
    gammas = backbone.schedule.min_snr_weight(batch.timesteps, 5.0)
    vectors = {"old": {"clip_l": torch.randn(1, 128, generator=generator(0, "old")) * 0.02}}
    tame, ecd = [], []
    for row in range(*rows.indices(len(batch.noisy))):
        noisy, t = batch.noisy[row : row + 1], batch.timesteps[row : row + 1]
        prompt = batch.texts[int(batch.prompt_rows[row])]

        def answer(noisy: Tensor = noisy, t: Tensor = t, prompt: str = prompt) -> Tensor:
            return backbone.predict(noisy, t, backbone.text.encode([prompt], vectors))

        with standing_in(teacher, student, backbone), torch.no_grad():
            old = answer()
        own = answer()
        tame.append(gammas[row] * (batch.target[row] - own[0]).square().mean())
        ecd.append(gammas[row] * (old - own).square().mean())
    return torch.stack(tame).mean(), torch.stack(ecd).mean()


def test_its_gradient_is_that_of_both_losses(
    backbone: Backbone, lesson: tuple[Adapter, Adapter, StepBatch, Replay]
) -> None:
    student, teacher, batch, term = lesson
    parameters = student.named_parameters()
    tame, ecd = separate_losses(backbone, student, teacher, batch)
    both = ALPHA * tame + GAMMA * ecd
    expected = torch.autograd.grad(both, list(parameters.values()))
    value = term(batch)
    found = torch.autograd.grad(term.weight * value, list(parameters.values()))
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for name, mine, theirs in zip(parameters, found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * largest, msg=name)
    # The rest of the sum does not depend on the student.
    constant = both - term.weight * value
    assert constant.item() > 0


@pytest.mark.parametrize("teacher_weight", [GAMMA, 0.0])
def test_the_student_runs_once_for_all_terms(
    backbone: Backbone, teacher_weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SPECS["lora"]
    vectors = {"old": {"clip_l": torch.zeros(1, 128)}}
    student = build_adapter(spec, backbone, seed=0)
    teacher = frozen_adapter(spec, backbone, weights(backbone, spec, 1))
    term = Replay(ALPHA, teacher_weight, lambda: standing_in(teacher, student, backbone))
    passes: list[tuple[int, bool]] = []
    forward = backbone.predict

    def counted(latents: Tensor, *args: object) -> Tensor:
        passes.append((len(latents), torch.is_grad_enabled()))
        return forward(latents, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(backbone, "predict", counted)
    with student.attached(backbone):
        batch = batches(backbone, spec, vectors)(0)
        sum(made(batch) for made in (term, denoising())).backward()
    assert passes == [(4, True), (3, False)][: 2 if teacher_weight else 1]


def test_without_one_of_them_the_other_is_left(
    backbone: Backbone, lesson: tuple[Adapter, Adapter, StepBatch, Replay]
) -> None:
    student, teacher, batch, term = lesson
    tame, ecd = separate_losses(backbone, student, teacher, batch)
    parts = {"min_snr_gamma": 5.0, "own_prompts": term.own_prompts}
    with torch.no_grad():
        only_tame = Replay(2.0, 0.0, term.teacher, **parts)
        torch.testing.assert_close(only_tame(batch), tame.detach(), rtol=1e-4, atol=1e-6)
        only_ecd = Replay(0.0, 2.0, term.teacher, **parts)
        torch.testing.assert_close(only_ecd(batch), ecd.detach(), rtol=1e-4, atol=1e-6)
    assert only_tame.weight == only_ecd.weight == 2.0
