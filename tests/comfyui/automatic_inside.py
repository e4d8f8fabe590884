"""Runs inside ComfyUI's own process: regions that are read from the model's own first steps."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from guidance_helpers import conditioning, distance, empty_latent, sampled
from inside import backbone, pack, refused, torch
from regions_helpers import base, drawn, negative, two_toys

# What follows can be imported once inside.py has set ComfyUI up.
# isort: split
import comfy.samplers
from comfy.patcher_extension import WrappersMP

PROMPT = "a photo of a embedding:my_dog dog and a embedding:my_cat cat on the beach"
PLAIN = "a photo of a dog and a cat on the beach"
STEPS, BEGUN = 4, 2
SAMPLERS = (
    "dpmpp_2m",
    "euler_ancestral",
    "heun",
    "dpm_2_ancestral",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "dpmpp_3m_sde",
    "dpm_fast",
    "dpm_adaptive",
    "lms",
    "uni_pc",
    "ddim",
    "lcm",
)


def found(**values: Any) -> tuple[Any, Any, torch.Tensor]:
    """REGIONS, CONDITIONING and masks from the node."""
    node = pack("nodes.automatic_regions").AutomaticRegions
    model, clip, _ = base()
    usual = {
        "model": model, "clip": clip, "state": two_toys(), "negative": negative(),
        "latent_image": empty_latent(), "prompt": PROMPT, "seed": 1, "steps": STEPS, "cfg": 4.0,
        "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, "delay": BEGUN / STEPS,
        "concepts": "",
    }  # fmt: skip
    with torch.inference_mode():
        regions, positive, masks = node.execute(**{**usual, **values}).result
        return regions, positive, masks.clone()


@cache
def usual() -> tuple[Any, Any, torch.Tensor]:
    return found()


def check_every_concept_has_a_region_and_a_prompt_of_its_own() -> None:
    regions, positive, masks = usual()
    assert [region.prompt for region in regions] == [
        "a photo of a embedding:my_dog dog and a cat on the beach",
        "a photo of a dog and a embedding:my_cat cat on the beach",
    ]
    assert masks.shape == (2, 16, 16)
    assert masks.unique().tolist() == [0.0, 1.0]
    assert masks.flatten(1).any(1).all() and masks.sum(0).max() == 1
    assert all(torch.equal(one.place[0], mask) for one, mask in zip(regions, masks, strict=True))
    assert torch.equal(positive[0][0], conditioning(base()[1], PLAIN)[0][0])


def watched() -> tuple[Any, list[tuple[float, torch.Tensor]]]:
    """A clone of MODEL, and timestep and latents of every call of its UNet."""
    model, seen = base()[0].clone(), []

    def see(executor: Any, x: Any, timesteps: Any, *args: Any, **options: Any) -> Any:
        seen.append((float(timesteps[0]), x[:1].clone()))
        return executor(x, timesteps, *args, **options)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", see)
    return model, seen


def check_they_are_read_where_the_plain_picture_is_after_the_delay() -> None:
    """Whatever the sampler: also where its noise or its steps depend on the whole schedule."""
    assert set(SAMPLERS) <= set(comfy.samplers.KSampler.SAMPLERS)
    for name in SAMPLERS:
        model, plain = watched()
        positive = conditioning(base()[1], PLAIN)
        sampled(model, positive, negative(), steps=STEPS, sampler=name)
        model, seen = watched()
        masks = found(model=model, sampler_name=name)[2]
        assert masks.flatten(1).any(1).all(), name
        assert len(seen) <= len(plain), name
        for (t, x), (time, expected) in zip(seen, plain, strict=False):
            assert t == time, name
            assert distance(x, expected) < 1e-5, name


def check_masks_are_the_librarys() -> None:
    """On a diffusers copy of the weights, from the latents that ComfyUI's sampler had."""
    automatic, words = (
        pack("lifelong_core.attention.automatic"),
        pack("lifelong_core.attention.words"),
    )
    model, seen = watched()
    masks = found(model=model)[2]
    (t, z), state = seen[-1], two_toys()
    with torch.inference_mode(False), torch.no_grad(), backbone(*base()) as copy:
        context = copy.text.encode([PLAIN]).context
        places = words.noun_places(
            words.prompt_tokens(copy.text.tokenize(PROMPT, state.vectors)),
            [("my_dog", "dog"), ("my_cat", "cat")],
            words.prompt_tokens(copy.text.tokenize(PLAIN)),
        )
        with automatic.looking(copy) as sight:
            copy.unet(z.clone(), torch.tensor(t), encoder_hidden_states=context)
        (expected,) = sight.masks(copy, (16, 16), places)
    assert (masks != torch.stack(expected)).float().mean() < 0.02


def check_the_sampler_draws_them() -> None:
    regions, positive, _ = usual()
    values = {"positive": positive, "latent_image": empty_latent(), "steps": STEPS}
    got = drawn(regions, **values)
    with torch.inference_mode():
        plain = sampled(base()[0], positive, negative(), steps=STEPS)
    assert distance(got, plain) > 0.01


def check_the_model_stays_as_it_was() -> None:
    positive = conditioning(base()[1], PLAIN)
    before = sampled(base()[0], positive, negative(), steps=2)
    found(seed=3)
    assert torch.equal(sampled(base()[0], positive, negative(), steps=2), before)


def check_every_picture_of_a_batch_has_regions_of_its_own() -> None:
    alone = [found(latent_image={**empty_latent(), "batch_index": [number]}) for number in range(3)]
    regions, positive, masks = found(latent_image={**empty_latent(3), "batch_index": [0, 1, 2]})
    assert masks.shape == (6, 16, 16)
    assert distance(masks, torch.cat([one[2][k, None] for k in (0, 1) for one in alone])) < 0.05
    assert not torch.equal(masks[0], masks[1])
    values = {"positive": positive, "steps": STEPS}
    together = drawn(regions, latent_image=empty_latent(3), **values)
    assert bool(together.isfinite().all())
    refused("InputError", "masks for 3 pictures", lambda: drawn(regions, **values))


def check_only_asked_for_concepts_have_a_region() -> None:
    refused("InputError", "names 1 of the concepts", lambda: found(concepts="my_dog"))
    refused("InputError", "does not name the concept 'my_cow'", lambda: found(concepts="my_cow"))
    regions = found(concepts=" embedding:my_cat \n\nmy_dog\n")[0]
    assert [region.prompt for region in regions] == [region.prompt for region in usual()[0]]


def check_each_region_has_its_own_concepts_adapter_alone() -> None:
    """Also where a style, which has no region, is named in all of them."""
    known = two_toys()
    dog, cat = known.records
    drawings = []
    for size in (1.0, 3.0):
        concept = replace(dog.concept, token="my_style", noun="painting")
        style = {key: value.flip(0) * size for key, value in dog.adapter.items()}
        style = replace(dog, concept=concept, adapter=style)
        state = replace(known, records=(dog, cat, style))
        regions, positive, _ = found(
            state=state,
            prompt="a embedding:my_style painting of a embedding:my_dog dog and a "
            "embedding:my_cat cat",
            concepts="my_dog\nmy_cat",
        )
        assert all("embedding:my_style painting" in one.prompt for one in regions)
        values = {"positive": positive, "latent_image": empty_latent(), "delay": 0.5}
        drawings.append(drawn(regions, state=state, steps=STEPS, **values))
    assert torch.equal(*drawings)


def check_bad_input_is_refused() -> None:
    refused("InputError", "names 0 of the concepts", lambda: found(prompt=PLAIN))
    refused("InputError", "at least 2", lambda: found(steps=1))
    refused("InputError", "No regions were read", lambda: found(denoise=0.0))
    refused("InputError", "are empty", lambda: found(latent_image=empty_latent(0)))
    without = "a photo of a embedding:my_dog and a embedding:my_cat cat"
    refused("InputError", "dog", lambda: found(prompt=without))
