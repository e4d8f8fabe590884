"""Double distillation and Learning without Forgetting against plainly written formulas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from lifelong_core.backbone import Conditioning, NoiseSchedule, random_backbone
from lifelong_core.objectives import Predictor, StepBatch
from lifelong_core.objectives.distillation import (
    CONCEPTS,
    MODELS,
    SCORE_ROLES,
    DistillOutputs,
    DistillScores,
    output_distance,
    score_cross_entropy,
)
from lifelong_core.objectives.retention import Retention
from lifelong_core.seeding import generator

PICTURES = 2


def batch(prediction: str = "v_prediction") -> StepBatch:
    """Random outputs of three models under three concepts, for two pictures."""
    draw = generator(0, "batch")
    count = PICTURES * len(SCORE_ROLES)
    target = torch.randn(PICTURES, 4, 2, 2, generator=draw).repeat(len(SCORE_ROLES), 1, 1, 1)
    made = SimpleNamespace(
        output=target + torch.randn(count, 4, 2, 2, generator=draw).requires_grad_(),
        target=target,
        timesteps=torch.tensor([100, 900]).repeat(len(SCORE_ROLES)),
        roles={r: slice(PICTURES * i, PICTURES * (i + 1)) for i, r in enumerate(SCORE_ROLES)},
        backbone=SimpleNamespace(schedule=NoiseSchedule.scaled_linear(prediction)),
    )
    return cast(StepBatch, made)


def rows(given: StepBatch, role: str) -> torch.Tensor:
    return given.output[given.roles[role]]


@pytest.mark.parametrize("space", ["own", "noise"])
def test_the_loss_is_equation_6(space: str) -> None:
    given = batch()
    teacher_temperature, student_temperature = 0.05, 1.0
    entropy, distance = torch.zeros(()), torch.zeros(())
    for teacher in ("newest", "earlier"):
        for picture in range(PICTURES):
            errors = {
                (model, concept): (
                    rows(given, f"{model}/{concept}")[picture] - given.target[picture]
                )
                .square()
                .mean()
                for model in MODELS
                for concept in CONCEPTS
            }
            if space == "noise":
                share = given.backbone.schedule.alphas_cumprod[given.timesteps[picture]]
                errors = {key: value * share for key, value in errors.items()}
            wanted = [torch.exp(-errors[teacher, c] / teacher_temperature) for c in CONCEPTS]
            answer = [torch.exp(-errors["student", c] / student_temperature) for c in CONCEPTS]
            for a, b in zip(wanted, answer, strict=True):
                entropy = entropy - a / sum(wanted) * torch.log(b / sum(answer)) / PICTURES
    for teacher, concept in (("newest", "current"), ("earlier", "previous")):
        difference = rows(given, f"{teacher}/{concept}") - rows(given, f"student/{concept}")
        distance = distance + difference.square().mean()
    scores = DistillScores(0.1, teacher_temperature, student_temperature, space)
    outputs = DistillOutputs(1.5)
    torch.testing.assert_close(scores(given), entropy, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs(given), distance)
    assert (scores.weight, outputs.weight) == (0.1, 1.5)


@pytest.mark.parametrize("term", [DistillOutputs(1.0), DistillScores(1.0)])
def test_teachers_are_constants(term: DistillOutputs | DistillScores) -> None:
    given = batch()
    (gradient,) = torch.autograd.grad(term(given), given.output)
    taught = torch.cat([gradient[given.roles[r]] for r in SCORE_ROLES if r.startswith("student")])
    others = torch.cat(
        [gradient[given.roles[r]] for r in SCORE_ROLES if not r.startswith("student")]
    )
    assert float(taught.abs().max()) > 0
    assert float(others.abs().max()) == 0


def test_equal_outputs_cost_nothing_and_equal_scores_their_entropy() -> None:
    same = torch.randn(2, 4, 2, 2, generator=generator(0, "same"))
    assert float(output_distance(same, same)) == 0.0
    even = torch.ones(2, 3)
    torch.testing.assert_close(score_cross_entropy(even, even, 0.05, 1.0), torch.tensor(3.0).log())
    sharp = torch.tensor([[0.0, 1.0, 1.0]])
    right, wrong = score_cross_entropy(sharp, sharp, 0.05, 0.05), sharp.roll(1, 1)
    assert float(right) < 1e-6 < float(score_cross_entropy(sharp, wrong, 0.05, 0.05))


def test_the_newest_teachers_scores_are_logged() -> None:
    term, given = DistillScores(1.0), batch()
    term(given)
    assert term.log.pictures == PICTURES


class Prompts:
    """Encodes every prompt as its number; which prompts were asked for is kept."""

    known = ("a photo of a dog", "a photo of embedding:a cat", "a photo of embedding:b cat")

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def encode(self, prompts: list[str], vectors: Any) -> Conditioning:
        self.asked.append(list(prompts))
        numbers = torch.tensor([float(self.known.index(p)) for p in prompts])
        return Conditioning(numbers[:, None, None].expand(-1, 77, 128))


def test_retention_compares_both_models_under_what_was_known_before() -> None:
    backbone = random_backbone("demo")
    shift, prompts = {"teacher": 0.0}, Prompts()

    def predict(
        latents: torch.Tensor, steps: torch.Tensor, encoded: Conditioning, rows: torch.Tensor
    ) -> torch.Tensor:
        number = encoded.context[rows][:, :1, :1, None]
        return latents + (1 + shift["teacher"]) * number

    @contextmanager
    def teacher() -> Iterator[None]:
        assert not torch.is_grad_enabled()
        shift["teacher"] = 1.0
        yield
        shift["teacher"] = 0.0

    draw = generator(0, "retention")
    count, steps = 64, torch.randint(1000, (80,), generator=generator(0, "steps"))
    given = cast(
        StepBatch,
        SimpleNamespace(
            noisy=torch.randn(80, 4, 2, 2, generator=draw),
            timesteps=steps,
            roles={"concept": slice(0, count), "prior": slice(count, 80)},
            predictor=predict,
            backbone=backbone,
            generator=lambda *labels: generator(3, *labels),
        ),
    )
    term = Retention(teacher, prompts.known[1:], prompts.known[0], {}, cast(Any, prompts))
    # Teacher and student differ by the prompt's number: 0 for half of the rows, else 1 or 2.
    value = float(term(given))
    assert 0.5 * 0.8 * 2.5 < value < 0.5 * 1.2 * 2.5
    assert prompts.asked[1] == prompts.asked[2]
    assert set(prompts.asked[1]) == set(prompts.known)
    assert float(term(given)) == value
    weighted = Retention(
        teacher, prompts.known[1:], prompts.known[0], {}, cast(Any, prompts), min_snr_gamma=5.0
    )
    assert 0 < float(weighted(given)) < value


def test_retention_runs_on_a_real_model() -> None:
    """The same adapter as teacher and student: nothing to retain, up to rounding."""
    backbone = random_backbone("demo")
    draw = generator(0, "real")
    given = cast(
        StepBatch,
        SimpleNamespace(
            noisy=torch.randn(3, 4, 8, 8, generator=draw),
            timesteps=torch.tensor([1, 500, 900]),
            roles={"concept": slice(0, 3)},
            predictor=Predictor(backbone),
            backbone=backbone,
            generator=lambda *labels: generator(3, *labels),
        ),
    )

    @contextmanager
    def teacher() -> Iterator[None]:
        yield

    term = Retention(teacher, Prompts.known[1:], Prompts.known[0], {}, cast(Any, Prompts()))
    assert float(term(given)) == 0.0
