"""Scores of a diffusion model as a classifier, on outputs that are known."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from lifelong_core.backbone import Conditioning, NoiseSchedule, random_backbone
from lifelong_core.classifier import (
    ScoreLog,
    concept_errors,
    concept_outputs,
    entropy,
    noise_errors,
    scores,
)
from lifelong_core.objectives import Predictor


def test_scores_are_equation_3_over_the_concepts_given() -> None:
    errors = torch.tensor([[0.1, 0.2, 0.4], [5.0, 5.0, 5.0]])
    p = scores(errors, 0.1)
    weights = [math.exp(-e / 0.1) for e in (0.1, 0.2, 0.4)]
    assert p[0].tolist() == pytest.approx([w / sum(weights) for w in weights], rel=1e-5)
    assert p[1].tolist() == pytest.approx([1 / 3] * 3)
    assert float(scores(errors * 1e6, 0.1)[0, 0]) == 1.0


def test_entropy_is_highest_for_equal_scores_and_zero_for_certain_ones() -> None:
    p = torch.tensor([[0.25] * 4, [1.0, 0.0, 0.0, 0.0]])
    assert entropy(p).tolist() == pytest.approx([math.log(4), 0.0])


def test_errors_are_means_over_the_latent() -> None:
    target = torch.zeros(2, 4, 3, 3)
    outputs = torch.stack([target + 1.0, target - 3.0], dim=1)
    assert concept_errors(outputs, target).tolist() == [[1.0, 9.0]] * 2


def test_all_concepts_of_a_picture_share_its_noise_in_one_pass() -> None:
    """Row r of the pass is picture r // k under the concept that `rows` names."""
    calls = []

    def predict(noisy, timesteps, prompts, rows):  # noqa: ANN001, ANN202
        calls.append(len(noisy))
        shift = prompts.context[rows].mean(dim=(1, 2))
        return noisy + timesteps.view(-1, 1, 1, 1) + shift.view(-1, 1, 1, 1)

    noisy = torch.tensor([10.0, 20.0]).view(2, 1, 1, 1).expand(2, 4, 2, 2)
    prompts = Conditioning(torch.tensor([100.0, 200.0, 300.0]).view(3, 1, 1))
    rows = torch.tensor([[0, 1], [2, 0]])
    outputs = concept_outputs(predict, noisy, torch.tensor([1, 2]), prompts, rows)
    assert outputs.shape == (2, 2, 4, 2, 2)
    assert outputs[..., 0, 0, 0].tolist() == [[111.0, 211.0], [322.0, 122.0]]
    assert calls == [4]


def test_one_pass_gives_what_a_pass_per_concept_gives() -> None:
    backbone = random_backbone("demo")
    draw = torch.Generator().manual_seed(0)
    noisy, target = torch.randn(2, 2, 4, 8, 8, generator=draw)
    steps = torch.tensor([100, 900])
    prompts = backbone.text.encode(["a photo of a dog", "a photo of a cat", "a duck"])
    rows = torch.arange(3).expand(2, 3)
    with torch.no_grad():
        outputs = concept_outputs(Predictor(backbone), noisy, steps, prompts, rows)
        errors = concept_errors(outputs, target)
        for i in range(3):
            output = backbone.predict(noisy, steps, prompts[torch.tensor([i, i])])
            alone = (output - target).square().mean(dim=(1, 2, 3))
            torch.testing.assert_close(errors[:, i], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_errors_in_noise_are_those_of_the_noise_that_the_output_stands_for(kind: str) -> None:
    schedule = NoiseSchedule.scaled_linear(kind)
    draw = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 3, 4, 2, 2, generator=draw)
    outputs = torch.randn(3, 2, 4, 2, 2, generator=draw)
    t = torch.tensor([1, 500, 998])
    noisy, target = schedule.add_noise(x0, noise, t), schedule.target(x0, noise, t)
    errors = noise_errors(concept_errors(outputs, target), t, schedule)
    stands_for = [schedule.noise_from_output(outputs[:, i], noisy, t) for i in range(2)]
    expected = concept_errors(torch.stack(stands_for, dim=1), noise)
    torch.testing.assert_close(errors, expected, rtol=1e-4, atol=1e-6)


def test_inert_scores_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    log = ScoreLog()
    log.add(torch.tensor([[0.34, 0.33, 0.33]]))
    log.add(torch.tensor([[0.25] * 4, [0.25] * 4]))
    with caplog.at_level(logging.WARNING):
        report = log.report("phase")
    assert report["entropy_share"] > 0.99
    assert report["highest_score"] == pytest.approx((0.34 + 0.5) / 3)
    assert "phase are almost equal" in caplog.text
    assert "lower temperature" in caplog.text


def test_scores_that_say_something_are_not(caplog: pytest.LogCaptureFixture) -> None:
    log = ScoreLog()
    log.add(torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1]]))
    with caplog.at_level(logging.WARNING):
        report = log.report("phase")
    assert report["accuracy"] == 0.5
    assert not caplog.text
