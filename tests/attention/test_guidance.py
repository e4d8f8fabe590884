"""Schedule and latent update, on a model of one matrix that can be worked out by hand."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from lifelong_core.attention import (
    GuidanceSettings,
    Guide,
    OnMaps,
    PromptPlaces,
    Step,
    WordPlaces,
    cell_factor,
    guidance_loss,
    guided_latent,
    is_guided,
    k_diffusion_factor,
    refinement_target,
    step_size,
)
from lifelong_core.errors import InputError
from lifelong_core.seeding import generator

SIZE = (4, 4)
PLACES = PromptPlaces((WordPlaces((2,), (3,)), WordPlaces((5,), (6,))), 77)
CAA = GuidanceSettings(caa=1.0)
FIRST = Step(0, 10)


class Toy:
    """Latents [B, 8, 4, 4] -> maps by a fixed matrix; counts what it runs."""

    def __init__(self, scale: float = 0.3) -> None:
        self.mix = torch.randn(8, 77, generator=generator(0, "toy")) * scale
        self.passes = self.finished = 0

    def maps(self, latents: Tensor) -> Tensor:
        return (latents.flatten(2).mT @ self.mix).softmax(-1)

    def __call__(self, latents: Tensor, on_maps: OnMaps) -> Tensor | None:
        self.passes += 1
        if not on_maps(self.maps(latents), SIZE):
            return None
        self.finished += 1
        assert not torch.is_grad_enabled()
        return latents * 2


def _latents(rows: int = 2) -> Tensor:
    return torch.randn(rows, 8, *SIZE, generator=generator(1, "latents"))


def test_alpha_and_the_guided_steps_are_those_of_attend_and_excite() -> None:
    line = torch.linspace(1.0, 0.5, 50)
    for index in range(50):
        expected = 20 * math.sqrt(float(line[index]))
        assert step_size(Step(index, 50), CAA) == pytest.approx(expected)
    assert [is_guided(Step(i, 50), CAA) for i in range(50)] == [True] * 25 + [False] * 25
    assert all(is_guided(Step(i, 3), GuidanceSettings(oaa=1, guided_fraction=1)) for i in range(3))
    assert step_size(Step(0, 1), CAA) == 20
    excite = GuidanceSettings(attend_and_excite=1)
    targets = {i: refinement_target(Step(i, 50), excite) for i in range(50)}
    assert {i: t for i, t in targets.items() if t} == {0: 0.05, 10: 0.5, 20: 0.8}
    assert refinement_target(Step(0, 50), CAA) is None


def test_the_latent_moves_down_the_gradient() -> None:
    latents, toy = _latents(), Toy()
    moved = guided_latent(latents, toy, [PLACES] * 2, CAA, Step(3, 10))
    leaf = latents.clone().requires_grad_(True)
    loss = guidance_loss(toy.maps(leaf), SIZE, [PLACES] * 2, CAA)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert moved.moved and moved.output is None and toy.finished == 0
    assert torch.allclose(
        moved.latents, latents - step_size(Step(3, 10), CAA) / 16 * gradient, atol=1e-6
    )
    assert not moved.latents.requires_grad


def test_a_position_moves_as_far_whatever_the_number_of_its_latents() -> None:
    """Latents of twice the side, pooled before the model: the pooled ones move alike."""
    small, toy = _latents(), Toy()
    large = small.repeat_interleave(2, -1).repeat_interleave(2, -2)

    def pooled(latents: Tensor, on_maps: OnMaps) -> Tensor | None:
        return toy(avg_pool2d(latents, 2), on_maps)

    moved = guided_latent(small, toy, [PLACES] * 2, CAA, FIRST).latents
    grown = guided_latent(large, pooled, [PLACES] * 2, CAA, FIRST).latents
    assert torch.allclose(avg_pool2d(grown, 2), moved, atol=1e-6)
    assert cell_factor((64, 64), (16, 16)) == 1 and cell_factor((96, 64), (24, 16)) == 1


def test_k_diffusions_latents_move_as_the_papers_do() -> None:
    """x = z sqrt(1 + s^2): a model that takes x moves to the same picture."""
    sigma, latents, toy = 3.7, _latents().double(), Toy()
    toy.mix = toy.mix.double()
    grown = math.sqrt(1 + sigma**2)

    def on_x(x: Tensor, on_maps: OnMaps) -> Tensor | None:
        return toy(x / grown, on_maps)

    plain = guided_latent(latents, toy, [PLACES] * 2, CAA, FIRST)
    factor = k_diffusion_factor(sigma)
    scaled = guided_latent(latents * grown, on_x, [PLACES] * 2, CAA, FIRST, factor)
    assert torch.allclose(scaled.latents / grown, plain.latents, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "step"),
    [
        (GuidanceSettings(), FIRST),
        (GuidanceSettings(caa=1, guided_fraction=0), FIRST),
        (CAA, Step(5, 10)),
    ],
)
def test_nothing_is_run_without_guidance(settings: GuidanceSettings, step: Step) -> None:
    toy, latents = Toy(), _latents()
    guided = guided_latent(latents, toy, [PLACES] * 2, settings, step)
    assert guided.latents is latents and not guided.moved and toy.passes == 0


def test_a_picture_whose_gradient_is_not_finite_stays_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    latents = _latents(3)
    latents[1, 0, 0, 0] = math.nan
    guide = Guide(CAA, [PLACES] * 3)
    with caplog.at_level(logging.WARNING):
        for index in range(2):
            guided = guide(latents, Toy(), Step(index, 10))
    assert guided.skipped == 1 and guided.moved
    assert torch.equal(guided.latents[1].nan_to_num(), latents[1].nan_to_num())
    assert not torch.equal(guided.latents[0], latents[0])
    assert len(caplog.records) == 1 and "1 of 3 pictures" in caplog.text
    assert len(guide.seen) == 2


def test_the_output_is_used_again_where_nothing_moved() -> None:
    latents = torch.full((1, 8, *SIZE), math.nan)
    toy = Toy()
    guided = guided_latent(latents, toy, [PLACES], CAA, FIRST)
    assert not guided.moved and guided.latents is latents and toy.finished == 1
    assert guided.output is not None
    assert torch.is_grad_enabled()


def test_attend_and_excite_refines_until_the_target_or_the_cap() -> None:
    latents, places = _latents(), [PLACES] * 2
    capped = GuidanceSettings(attend_and_excite=1, refinement=3, step_size=1e-6)
    toy = Toy()
    at_half = Step(2, 10)
    guided_latent(latents, toy, places, capped, at_half)
    assert toy.passes == 4  # three refinements that do not help, and the step itself
    toy = Toy()
    guided_latent(latents, toy, places, capped, Step(3, 10))
    assert toy.passes == 1
    toy = Toy()
    able = GuidanceSettings(attend_and_excite=1, refinement=40, step_size=960)
    guided = guided_latent(latents, toy, places, able, at_half)
    assert 1 < toy.passes < 40
    assert guided.words is not None
    loss = guidance_loss(toy.maps(guided.latents), SIZE, places, able)
    assert float(loss.max()) < 0.6


def test_a_picture_that_reached_the_target_waits_for_the_others() -> None:
    toy, able = Toy(), GuidanceSettings(attend_and_excite=1, refinement=40, step_size=960)
    step = Step(2, 10)
    both = guided_latent(_latents(), toy, [PLACES] * 2, able, step).latents
    for row in range(2):
        alone = guided_latent(_latents()[row : row + 1], Toy(), [PLACES], able, step).latents
        assert torch.allclose(both[row : row + 1], alone, atol=1e-4)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="0 pictures"):
        guided_latent(_latents(0), Toy(), [], CAA, FIRST)
    with pytest.raises(InputError, match="2 pictures and the words of 1"):
        guided_latent(_latents(), Toy(), [PLACES], CAA, FIRST)
    with pytest.raises(InputError, match="no attention map"):
        guided_latent(_latents(), lambda latents, on_maps: latents, [PLACES] * 2, CAA, FIRST)
