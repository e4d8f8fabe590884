"""Image-to-image and inpainting: how much of the picture stays, and where."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lifelong_core.attention import AttentionGuidance, GuidanceSettings
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.errors import InputError
from lifelong_core.picture_start import PictureStart
from lifelong_core.sampling import generate
from lifelong_core.seeding import generator

PROMPTS = ["a dog", "a (red:1.3) cat", "a house " * 40]
STEPS = 3
SIZE = 64


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo", seed=4)


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.rand(3, 3, SIZE, SIZE, generator=generator(1, "pictures"))


@pytest.fixture(scope="module")
def mask() -> Tensor:
    """The right half, with an edge of half a latent cell."""
    mask = torch.zeros(SIZE, SIZE)
    mask[:, SIZE // 2 + 4 :] = 1
    return mask


def draw(backbone: Backbone, start: PictureStart | None, **options: object) -> Tensor:
    values = {"seed": 7, "steps": STEPS, "as_latents": True, **options}
    if start is None:
        values.setdefault("size", (SIZE, SIZE))
    return generate(backbone, PROMPTS, start=start, **values)  # type: ignore[arg-type]


def karras(backbone: Backbone, steps: int) -> list[float]:
    """Karras et al. 2022, eq. 5, rho = 7, over the schedule's whole range; then 0."""
    alphas = backbone.schedule.alphas_cumprod.double()
    sigmas = ((1 - alphas) / alphas).sqrt()
    low, high = float(sigmas[0]) ** (1 / 7), float(sigmas[-1]) ** (1 / 7)
    return [(high + i / (steps - 1) * (low - high)) ** 7 for i in range(steps)] + [0.0]


@torch.no_grad()
def reference(
    backbone: Backbone, prompt: str, noise: Tensor, sigmas: list[float],
    picture: Tensor | None = None, mask: Tensor | None = None, *, whole: bool = True,
) -> Tensor:  # fmt: skip
    """DPM-Solver++(2M) as k-diffusion writes it, on x = z_0 + sigma noise, for one prompt."""
    levels = ((1 - backbone.schedule.alphas_cumprod) / backbone.schedule.alphas_cumprod).sqrt()
    encoded, empty = backbone.text.encode([prompt]), backbone.text.encode([""])
    origin = torch.zeros(1) if picture is None else backbone.codec.encode(picture[None])
    weight = torch.ones(1) if mask is None else mask.unfold(0, 8, 8).unfold(1, 8, 8).mean((2, 3))

    def denoised(x: Tensor, sigma: float) -> Tensor:
        t = (levels.log() - torch.tensor(sigma).log()).abs().argmin().expand(1)
        z = x / (1 + sigma**2) ** 0.5
        without, known = (backbone.predict(z, t, one).float() for one in (empty, encoded))
        v = without + backbone.family.guidance * (known - without)
        return (z - sigma * v) / (1 + sigma**2) ** 0.5

    def held(x: Tensor, sigma: float) -> Tensor:
        return weight * x + (1 - weight) * (origin + sigma * noise)

    first = (1 + sigmas[0] ** 2) ** 0.5 * noise if whole else origin + sigmas[0] * noise
    x, before = held(first, sigmas[0]), None
    for at, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        clean = denoised(x, sigma)
        if following == 0:
            return held(clean, 0)
        ratio = following / sigma
        mixed = clean
        if before is not None:
            h, last = torch.tensor([sigma / following, sigmas[at - 1] / sigma]).log()
            mixed = clean + h / last / 2 * (clean - before)
        x, before = held(ratio * x + (1 - ratio) * mixed, following), clean
    raise AssertionError


def noise_of(seed: int, index: int) -> Tensor:
    shape = (4, SIZE // 8, SIZE // 8)
    return torch.randn(shape, generator=generator(seed, "noise", index))[None]


@pytest.mark.parametrize(("strength", "steps"), [(1.0, 3), (0.5, 3), (0.35, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_it_equals_a_plain_loop(
    backbone: Backbone, pictures: Tensor, mask: Tensor, strength: float, steps: int, masked: bool
) -> None:
    """The schedule's last steps, as ComfyUI cuts them: 3 of 3, 3 of 6, 4 of 11."""
    start = PictureStart(pictures, strength, mask if masked else None)
    ours = draw(backbone, start, steps=steps)
    sigmas = karras(backbone, int(steps / strength))[-steps - 1 :]
    for row, prompt in enumerate(PROMPTS[:2]):
        given = (pictures[row], mask if masked else None)
        noise = noise_of(7, row)
        theirs = reference(backbone, prompt, noise, sigmas, *given, whole=strength == 1)
        assert (ours[row] - theirs[0]).norm() < 1e-3 * theirs.norm()


def test_without_a_start_it_is_the_whole_schedule_from_noise(backbone: Backbone) -> None:
    ours = draw(backbone, None)
    for row, prompt in enumerate(PROMPTS[:2]):
        theirs = reference(backbone, prompt, noise_of(7, row), karras(backbone, STEPS))
        assert (ours[row] - theirs[0]).norm() < 1e-3 * theirs.norm()


def test_strength_one_starts_from_noise_alone(backbone: Backbone, pictures: Tensor) -> None:
    plain = draw(backbone, None)
    assert torch.equal(plain, draw(backbone, PictureStart(pictures, 1.0)))
    everywhere = torch.ones(SIZE, SIZE)
    assert torch.equal(plain, draw(backbone, PictureStart(pictures, 1.0, everywhere)))


def test_less_strength_keeps_more_of_the_picture(backbone: Backbone, pictures: Tensor) -> None:
    origin = backbone.codec.encode(pictures)
    away = [
        float((draw(backbone, PictureStart(pictures, strength)) - origin).norm())
        for strength in (0.01, 0.3, 0.6, 1.0)
    ]
    assert away == sorted(away)
    assert away[0] < 0.1 * away[-1]


def test_a_mask_of_ones_changes_no_bit(backbone: Backbone, pictures: Tensor) -> None:
    plain = draw(backbone, PictureStart(pictures, 0.5))
    assert torch.equal(plain, draw(backbone, PictureStart(pictures, 0.5, torch.ones(SIZE, SIZE))))


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_outside_the_mask_no_bit_changes(
    backbone: Backbone, pictures: Tensor, mask: Tensor, strength: float
) -> None:
    drawn = draw(backbone, PictureStart(pictures, strength, mask))
    origin = torch.cat([backbone.codec.encode(one) for one in pictures.split(1)])
    assert torch.equal(drawn[..., :4], origin[..., :4])
    assert ((drawn - origin)[..., 4:].abs().amax((1, 2, 3)) > 1e-2).all()


def test_what_lies_outside_reaches_inside(
    backbone: Backbone, pictures: Tensor, mask: Tensor
) -> None:
    other = pictures.clone()
    other[..., : SIZE // 2] = 1 - other[..., : SIZE // 2]
    drawn, changed = (draw(backbone, PictureStart(p, 1.0, mask)) for p in (pictures, other))
    assert (drawn - changed)[..., -2:].abs().max() > 1e-5


def test_a_soft_edge_lies_between(backbone: Backbone, pictures: Tensor, mask: Tensor) -> None:
    """Of one step: the mean of what is drawn and the picture, weighted by the mask."""
    drawn = draw(backbone, PictureStart(pictures, 0.5), steps=1)
    origin = backbone.codec.encode(pictures)
    soft = draw(backbone, PictureStart(pictures, 0.5, 0.25 * torch.ones(SIZE, SIZE)), steps=1)
    assert torch.allclose(soft, 0.25 * drawn + 0.75 * origin, atol=1e-5)


def test_same_seed_same_bits_and_the_global_generator_is_untouched(
    backbone: Backbone, pictures: Tensor, mask: Tensor
) -> None:
    start = PictureStart(pictures, 0.6, mask)
    before = torch.get_rng_state()
    first = draw(backbone, start)
    assert torch.equal(first, draw(backbone, start))
    assert torch.equal(before, torch.get_rng_state())
    assert (first - draw(backbone, start, seed=8)).abs().max() > 1e-5


def test_the_batch_size_does_not_change_pictures(
    backbone: Backbone, pictures: Tensor, mask: Tensor
) -> None:
    masks = torch.stack([mask, mask.flip(1), torch.ones_like(mask)])
    whole = draw(backbone, PictureStart(pictures, 0.6, masks))
    single = draw(backbone, PictureStart(pictures, 0.6, masks), batch_size=1)
    assert (whole - single).abs().max() < 1e-4
    assert torch.equal(whole[0, ..., :4], single[0, ..., :4])
    assert torch.equal(whole[1, ..., 4:], single[1, ..., 4:])


def test_one_picture_serves_all_prompts(backbone: Backbone, pictures: Tensor, mask: Tensor) -> None:
    one = PictureStart(pictures[:1], 0.6, mask[None])
    many = PictureStart(pictures[:1].repeat(3, 1, 1, 1), 0.6, mask.repeat(3, 1, 1))
    assert torch.equal(draw(backbone, one, batch_size=2), draw(backbone, many, batch_size=2))


def test_guidance_goes_on_from_a_picture(
    backbone: Backbone, pictures: Tensor, mask: Tensor
) -> None:
    guidance = AttentionGuidance(
        GuidanceSettings(caa=1.0), [[(None, "dog")], [("red", "cat")], [(None, "house")]]
    )
    start = PictureStart(pictures, 0.6, mask)
    guided = draw(backbone, start, attention=guidance)
    assert torch.equal(guided[..., :4], draw(backbone, start)[..., :4])
    assert (guided - draw(backbone, start))[..., 4:].abs().max() > 1e-5
    assert [len(guide.seen) for guide in guidance.guides] == [2]  # steps 0 and 1 of 3


def test_pictures_keep_their_size_and_steps_are_counted(
    backbone: Backbone, pictures: Tensor
) -> None:
    seen: list[tuple[int, int]] = []
    start = PictureStart(pictures[..., :32], 0.5)
    drawn = draw(
        backbone, start, as_latents=False, on_progress=lambda done, all_: seen.append((done, all_))
    )
    assert drawn.shape == (3, 3, SIZE, 32)
    assert seen == [(1, 3), (2, 3), (3, 3)]


GOOD = torch.full((3, 3, SIZE, SIZE), 0.5)
ONES = torch.ones(SIZE, SIZE)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pictures": GOOD[0]}, r"\[B, 3, H, W\]"),
        ({"pictures": GOOD[:, :1]}, r"\[B, 3, H, W\]"),
        ({"pictures": GOOD[:0]}, r"\[B, 3, H, W\]"),
        ({"pictures": 255 * GOOD}, "from 0 to 1"),
        ({"pictures": torch.nan * GOOD}, "from 0 to 1"),
        ({"pictures": GOOD.byte()}, "from 0 to 1"),
        ({"strength": 0.0}, "strength is 0.0"),
        ({"strength": 1.1}, "strength is 1.1"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"mask": ONES[:8]}, "The mask is"),
        ({"mask": ONES[None, None]}, "The mask is"),
        ({"mask": -ONES}, "Masks must hold"),
        ({"mask": torch.inf * ONES}, "Masks must hold"),
        ({"mask": 0 * ONES}, "no area"),
        ({"mask": torch.stack([ONES, 0 * ONES, ONES])}, "no area"),
    ],
)
def test_what_cannot_be_a_start_is_refused(values: dict[str, object], message: str) -> None:
    good = PictureStart(GOOD, 0.5, ONES)
    with pytest.raises(InputError, match=message):
        replace(good, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("start", "options", "message"),
    [
        (PictureStart(GOOD, 0.5), {"size": (32, SIZE)}, "64 x 64 and those to make 32 x 64"),
        (PictureStart(GOOD[:2], 0.5), {}, "2 pictures to start from and 3 prompts"),
        (PictureStart(GOOD, 0.5, ONES.repeat(2, 1, 1)), {}, "2 masks and 3 prompts"),
        (PictureStart(GOOD[..., :60], 0.5), {}, "multiples of 8"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    backbone: Backbone, start: PictureStart, options: dict[str, object], message: str
) -> None:
    steps: list[int] = []
    with pytest.raises(InputError, match=message):
        draw(backbone, start, on_progress=lambda done, _: steps.append(done), **options)
    assert steps == []
