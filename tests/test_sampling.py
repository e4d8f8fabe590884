"""Pictures from a base model: the same whatever the batch size, and guided by the prompt."""

from __future__ import annotations

import pytest
import torch

from lifelong_core.backbone import Backbone, Conditioning, NoiseSchedule, random_backbone
from lifelong_core.course import solver
from lifelong_core.errors import InputError
from lifelong_core.sampling import generate
from lifelong_core.seeding import generator

PROMPTS = ["a dog", "a (red:1.3) cat", "a house " * 40]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo", seed=4)


def test_batch_size_does_not_change_pictures(backbone: Backbone) -> None:
    whole = generate(backbone, PROMPTS, seed=7, steps=3, batch_size=3)
    single = generate(backbone, PROMPTS, seed=7, steps=3, batch_size=1)
    assert whole.shape == (3, 3, 128, 128)
    assert whole.dtype == torch.float32
    assert whole.min() >= 0 and whole.max() <= 1
    assert (whole - single).abs().max() < 1e-4


def test_seed_prompt_negative_and_guidance_matter(backbone: Backbone) -> None:
    def one(prompt: str = "a dog", seed: int = 1, **options: object) -> torch.Tensor:
        return generate(backbone, [prompt], seed=seed, steps=2, as_latents=True, **options)

    plain = one()
    assert plain.shape == (1, 4, 16, 16)
    assert torch.equal(plain, one())
    for other in (
        one("a cat"),
        one(seed=2),
        one(negative="blue"),
        one(guidance=1.0),
        one(size=(128, 64)),
    ):
        assert plain.shape != other.shape or (plain - other).abs().max() > 1e-5


def test_global_generator_is_untouched(backbone: Backbone) -> None:
    before = torch.get_rng_state()
    generate(backbone, ["a dog"], seed=1, steps=1, as_latents=True)
    assert torch.equal(before, torch.get_rng_state())


def test_progress_counts_steps_over_all_batches(backbone: Backbone) -> None:
    seen: list[tuple[int, int]] = []
    generate(
        backbone,
        PROMPTS,
        seed=1,
        steps=2,
        batch_size=2,
        as_latents=True,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_vectors_reach_the_picture(backbone: Backbone) -> None:
    def one(seed: int) -> torch.Tensor:
        row = torch.randn(1, 128, generator=generator(seed, "vector"))
        vectors = {"rex": {"clip_l": row}}
        return generate(
            backbone, ["embedding:rex dog"], seed=1, steps=2, vectors=vectors, as_latents=True
        )

    assert (one(1) - one(2)).abs().max() > 1e-5


def test_autocast_stays_near_full_precision(backbone: Backbone) -> None:
    full = generate(backbone, ["a dog"], seed=1, steps=3, as_latents=True)
    mixed = generate(backbone, ["a dog"], seed=1, steps=3, as_latents=True, autocast=torch.bfloat16)
    assert 0 < (full - mixed).norm() < 0.1 * full.norm()


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"batch_size": 0}, {"size": (128, 100)}, {"size": (0, 128)}]
)
def test_unusable_settings_are_refused(backbone: Backbone, options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        generate(backbone, ["a dog"], seed=1, **options)


class Oracle:
    """A model that knows the picture: its output always points to `clean`."""

    def __init__(self, schedule: NoiseSchedule, clean: torch.Tensor) -> None:
        self.schedule, self.clean = schedule, clean

    def predict(self, xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        signal = self.schedule.alphas_cumprod[t].sqrt().view(-1, 1, 1, 1)
        sigma = (1 - signal**2).sqrt()
        noise = (xt - signal * self.clean) / sigma
        return self.schedule.target(self.clean.expand_as(xt), noise, t)


@pytest.mark.parametrize(
    ("prediction", "zero_snr"),
    [("epsilon", False), ("v_prediction", False), ("v_prediction", True)],
)
def test_solver_finds_the_picture_that_the_model_points_to(prediction: str, zero_snr: bool) -> None:
    schedule = NoiseSchedule.scaled_linear(prediction, zero_terminal_snr=zero_snr)
    source = generator(1, "oracle")
    clean = torch.randn(1, 4, 4, 4, generator=source)
    oracle = Oracle(schedule, clean)
    latents = torch.randn(2, 4, 4, 4, generator=source)
    steps = solver(schedule)
    steps.set_timesteps(10)
    for t in steps.timesteps:
        output = oracle.predict(latents, t.expand(2))
        latents = steps.step(output, t, latents, return_dict=False)[0]
    assert torch.allclose(latents, clean.expand(2, -1, -1, -1), atol=2e-2)


def test_contexts_of_different_length_share_a_batch(backbone: Backbone) -> None:
    """Repeating all tokens equally often leaves attention, so the prediction, as it was."""
    short = backbone.text.encode(["a dog"])
    long = backbone.text.encode(["a house " * 40])
    joined = Conditioning.cat([short, long])
    assert joined.context.shape[1] == 154
    latents = torch.randn(1, 4, 16, 16, generator=generator(1, "latents"))
    with torch.no_grad():
        alone = backbone.predict(latents, torch.tensor([300]), short)
        shared = backbone.predict(latents, torch.tensor([300]), joined[slice(0, 1)])
    assert torch.allclose(alone, shared, atol=1e-5)
