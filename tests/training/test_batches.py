"""What a step sees is decided by the seed and the step alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.training import Batches, Pictures


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


def pictures(role: str, count: int, batch_size: int, views: int = 1) -> Pictures:
    """Latents that hold 10 · picture + view."""
    numbers = 10.0 * torch.arange(count)[:, None] + torch.arange(views)
    latents = numbers[:, :, None, None, None].expand(-1, -1, 4, 8, 8)
    prompts = tuple(f"a photo of embedding:tok dog {n}" for n in range(count))
    if role == "prior":
        prompts = ("a photo of a dog",) * count
    return Pictures(role, latents, prompts, batch_size)


def batches(backbone: Backbone, vectors: nn.Parameter, **options: float) -> Batches:
    sources = [pictures("concept", 5, 3), pictures("prior", 4, 2)]
    return Batches(backbone, sources, {"tok": {"clip_l": vectors}}, seed=3, **options)


def token() -> nn.Parameter:
    return nn.Parameter(torch.full((1, 128), 0.02))


def test_every_picture_comes_equally_often_with_its_own_prompt() -> None:
    source = pictures("concept", 5, 3, views=2)
    counts = torch.zeros(5)
    views = set()
    for index in range(10):
        latents, prompts = source.draw(1, index)
        for latent, prompt in zip(latents, prompts, strict=True):
            number, view = divmod(int(latent[0, 0, 0]), 10)
            assert prompt == source.prompts[number]
            counts[number] += 1
            views.add(view)
    assert counts.tolist() == [6.0] * 5
    assert views == {0, 1}


def test_groups_of_any_size_come_equally_often_and_so_do_their_pictures() -> None:
    source = replace(pictures("replay", 6, 4), groups=(7, 2, 2, 2, 7, 5))
    counts = torch.zeros(6)
    for index in range(9):
        latents, prompts = source.draw(1, index)
        for latent, prompt in zip(latents, prompts, strict=True):
            number = int(latent[0, 0, 0]) // 10
            assert prompt == source.prompts[number]
            counts[number] += 1
    assert counts.tolist() == [6.0, 4.0, 4.0, 4.0, 6.0, 12.0]
    assert torch.equal(source.draw(1, 5)[0], source.draw(1, 5)[0])
    alike = replace(source, groups=(3,) * 6)
    plain = replace(source, groups=())
    assert torch.equal(alike.draw(1, 2)[0], plain.draw(1, 2)[0])


def test_any_batch_can_be_made_at_any_time(backbone: Backbone) -> None:
    first, second = batches(backbone, token()), batches(backbone, token())
    for _ in range(2):
        second(0)
    a, b, other = first(4), second(4), first(5)
    assert torch.equal(a.noisy, b.noisy)
    assert torch.equal(a.timesteps, b.timesteps)
    assert torch.equal(a.prompts.context, b.prompts.context)
    assert not torch.equal(a.noise, other.noise)
    assert a.generator("x").initial_seed() == b.generator("x").initial_seed()
    assert a.generator("x").initial_seed() != other.generator("x").initial_seed()


def test_rows_roles_and_prompts_belong_together(backbone: Backbone) -> None:
    made = batches(backbone, token())
    batch = made(0)
    assert (batch.roles["concept"], batch.roles["prior"]) == (slice(0, 3), slice(3, 5))
    assert len(batch.prompts) == 4  # three captions and one noun
    prompts = [f"a photo of embedding:tok dog {int(n) // 10}" for n in batch.latents[:3, 0, 0, 0]]
    prompts += ["a photo of a dog"] * 2
    with torch.no_grad():
        expected = backbone.text.encode(prompts, made.vectors).context
    torch.testing.assert_close(batch.prompts.context[batch.prompt_rows], expected)
    schedule = backbone.schedule
    torch.testing.assert_close(
        schedule.x0_from_output(batch.target, batch.noisy, batch.timesteps),
        batch.latents,
        rtol=1e-3,
        atol=1e-2,
    )


def test_only_the_new_tokens_prompts_follow_its_vectors(backbone: Backbone) -> None:
    vectors = token()
    made = batches(backbone, vectors)
    before = made(0)
    before.prompts.context.square().sum().backward()
    assert float(vectors.grad.abs().sum()) > 0
    with torch.no_grad():
        vectors += 0.5
    after = made(0)
    changed = (after.prompts.context != before.prompts.context).flatten(1).any(1)
    assert changed[batch_rows(after, "concept")].all()
    assert not changed[batch_rows(after, "prior")].any()


def batch_rows(batch, role: str) -> torch.Tensor:  # noqa: ANN001
    return batch.prompt_rows[batch.roles[role]]


def test_noise_offset_is_the_same_all_over_a_channel(backbone: Backbone) -> None:
    plain = batches(backbone, token())(0)
    offset = batches(backbone, token(), noise_offset=0.3)(0)
    difference = offset.noise - plain.noise
    assert float(difference.std(dim=(2, 3)).max()) < 1e-5
    assert float(difference.abs().max()) > 0.05
    assert torch.equal(offset.timesteps, plain.timesteps)
