"""Runs inside ComfyUI's own process: regions on ComfyUI's samplers.

python regions_inside.py COMFYUI PACK WORK: see inside.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any
from unittest.mock import patch

from guidance_inside import (
    PROMPT,
    conditioning,
    distance,
    empty_latent,
    guided,
    nodes,
    passes,
    same_weights,
    sampled,
    weights_of,
)
from inside import backbone, comfy, foreign_lora, loaded, main, pack, refused, torch

SCENE = "a photo of a street"
KEY_VALUE = ("attn2.to_k", "attn2.to_v")
TARGETS = tuple(
    f"{attention}.{name}"
    for attention in ("attn1", "attn2")
    for name in ("to_q", "to_k", "to_v", "to_out.0")
)
DOG, CAT = "a photo of embedding:my_dog dog", "a photo of embedding:my_cat cat on the grass"


@cache
def base() -> tuple[Any, Any, Any]:
    return loaded()


@cache
def negative() -> Any:
    return conditioning(base()[1], "blurred")


@cache
def scene() -> Any:
    return conditioning(base()[1], SCENE)


@cache
def two_toys(targets: tuple[str, ...] = KEY_VALUE) -> Any:
    """A state with two lessons whose adapters are their own, of a size to be seen."""
    draw = torch.Generator().manual_seed(0)
    states, concepts = pack("lifelong_core.state"), pack("lifelong_core.concepts")
    spec = pack("lifelong_core.adapters.spec").AdapterSpec(rank=4, alpha=4.0, targets=targets)
    layers = pack("lifelong_core.sharing.naming").layers("demo")
    records = []
    for token, noun in (("my_dog", "dog"), ("my_cat", "cat")):
        adapter = {}
        for key, (out, width) in layers.items():
            if key.endswith(targets):
                adapter[f"{key}.down"] = torch.randn(4, width, generator=draw) / width**0.5
                adapter[f"{key}.up"] = torch.randn(out, 4, generator=draw) / 2
        vectors = {"clip_l": torch.randn(2, 128, generator=draw)}
        concept = concepts.Concept(token, noun, vectors)
        settings = {"method": "hard_routing"}
        records.append(states.TaskRecord(concept, "hash", adapter, settings, {}))
    fingerprint = pack("nodes.bridge").base_model(base()[0]).fingerprint
    return states.LifelongState("demo", fingerprint, spec, records[-1].adapter, tuple(records))


def region(prompt: str, *box: float, mask: Any = None, before: Any = ()) -> Any:
    """REGIONS from the node."""
    node = pack("nodes.regional_concept").RegionalConcept
    return node.execute(prompt, *(box or (0.0, 0.0, 1.0, 1.0)), mask, before).result[0]


@cache
def halves() -> Any:
    return region(CAT, 0.5, 0.0, 1.0, 1.0, before=region(DOG, 0.0, 0.0, 0.5, 1.0))


def drawn(regions: Any, **values: Any) -> torch.Tensor:
    """Latents of the Context Controllable Sampler."""
    return both(regions, **values)[0]


def small(batch: int = 1) -> dict[str, Any]:
    return empty_latent(batch, 8)


def both(regions: Any, **values: Any) -> tuple[torch.Tensor, torch.Tensor]:
    node = pack("nodes.context_controllable_sampler").ContextControllableSampler
    model, clip, _ = base()
    usual = {
        "model": model, "clip": clip, "state": two_toys(), "regions": regions,
        "positive": scene(), "negative": negative(), "latent_image": small(), "seed": 1,
        "steps": 3, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
        "alpha": 0.1, "softness": 0.0,
    }  # fmt: skip
    with torch.inference_mode():
        latents, picture = node.execute(**{**usual, **values}).result
        return latents["samples"].clone(), picture.clone()


def plain(**options: Any) -> torch.Tensor:
    return sampled(base()[0], scene(), negative(), small(), **{"steps": 3, **options})


def applied(state: Any, prompt: str) -> tuple[Any, Any]:
    """MODEL and positive conditioning of one concept's own adapter on the whole picture."""
    routing = pack("lifelong_core.consolidation.routing")
    own = routing.route(state, prompt)
    own = replace(own, records=[replace(record, settings={}) for record in own.records])
    model, clip = pack("nodes.patching").apply_state(*base()[:2], own)
    return model, conditioning(clip, prompt)


@contextmanager
def batches() -> Iterator[list[int]]:
    """How many rows every call of ComfyUI's model inside the block had."""
    unet = base()[0].model.diffusion_model
    rows: list[int] = []
    handle = unet.out.register_forward_hook(lambda _module, given, _out: rows.append(len(given[0])))
    try:
        yield rows
    finally:
        handle.remove()


@contextmanager
def noted() -> Iterator[list[tuple[torch.Tensor, float, torch.Tensor]]]:
    """Latents, noise level and denoised latents of every call of a guider inside the block."""
    guider = comfy.samplers.CFGGuider
    call, seen = guider.outer_predict_noise, []

    def noting(self: Any, x: Any, timestep: Any, *args: Any, **options: Any) -> Any:
        denoised = call(self, x, timestep, *args, **options)
        seen.append((x.clone(), float(timestep[0]), denoised.clone()))
        return denoised

    with patch.object(guider, "outer_predict_noise", noting):
        yield seen


def check_one_region_everywhere_is_plain_sampling_with_its_adapter() -> None:
    for targets in (KEY_VALUE, TARGETS):
        state = two_toys(targets)
        model, positive = applied(state, DOG)
        expected = sampled(model, positive, negative(), small(), steps=3)
        assert distance(expected, plain()) > 0.05
        for alpha in (0.0, 1.0):
            got = drawn(region(DOG), state=state, alpha=alpha)
            assert distance(got, expected) < 1e-4, (targets, alpha, distance(got, expected))


def check_a_region_without_concept_is_the_base_model_with_its_prompt() -> None:
    positive = conditioning(base()[1], "a red ball")
    expected = sampled(base()[0], positive, negative(), small(), steps=3)
    assert distance(drawn(region("a red ball")), expected) < 1e-5
    assert distance(expected, plain()) > 1e-3


def check_steps_are_one_batch_of_two_more_rows_than_regions() -> None:
    for regions, values, rows in (
        (halves(), {}, 4),
        (halves(), {"cfg": 1.0}, 3),
        (halves(), {"alpha": 1.0}, 2),
        (region(DOG), {}, 2),
        (region("a lawn", 0.2, 0.2, 0.8, 0.4, before=halves()), {}, 5),
        (halves(), {"latent_image": small(3)}, 12),
    ):
        with batches() as seen:
            drawn(regions, steps=2, **values)
        assert seen == [rows] * 2, (values, seen)


def check_noise_is_that_of_the_library() -> None:
    """On a diffusers copy of the weights, from the latents that ComfyUI's sampler had."""
    regional = pack("lifelong_core.attention.regional")
    slots = pack("lifelong_core.regional_slots")
    layouts = pack("lifelong_core.attention.layout")
    library = pack("lifelong_core.attention.regions")
    third = region("a lawn", 0.3, 0.25, 0.8, 0.8, before=halves())
    sampling = base()[0].get_model_object("model_sampling")
    for targets, softness in ((KEY_VALUE, 0.0), (TARGETS, 0.1)):
        state = two_toys(targets)
        with noted() as seen:
            drawn(third, state=state, softness=softness, latent_image=small(2), steps=2)
        with torch.inference_mode(False), backbone(*base()) as copy:
            placed = [one.in_picture((64, 64)) for one in third]
            masks = [one.mask for one in placed]
            made = slots.encode_slots(
                copy, slots.region_slots(copy, state, SCENE, placed), "blurred"
            )
            unet = regional.RegionalUnet(copy, *made)
            rows = [
                row
                for picture in range(2)
                for row in (
                    slots.unconditional_row(4, picture),
                    slots.whole_row(4, picture),
                    *(slots.region_row(4, slot, picture) for slot in (1, 2, 3)),
                )
            ]
            device = torch.device("cpu")
            layout = layouts.Layout(rows, [masks, masks], (8, 8), softness, device)
            for x, sigma, denoised in seen:
                t = sampling.timestep(torch.tensor(sigma))
                z = x / (sigma**2 + 1) ** 0.5
                with torch.no_grad(), unet.attached():
                    noise = unet.predict(z.repeat_interleave(5, 0), t, layout, (64, 64))
                each = noise.unflatten(0, (2, 5)).transpose(0, 1)
                each = each[0] + 4.0 * (each[1:] - each[0])
                cells = library.cover(masks, (8, 8), softness)
                output = library.aggregate_noise(each[0], each[1:], cells, 0.1)
                expected = sampling.calculate_denoised(torch.tensor([sigma]), output, x)
                assert distance(x - denoised, x - expected) < 1e-3, targets
                assert distance(denoised, expected) < 1e-3, targets


def check_alpha_and_softness_count() -> None:
    usual = drawn(halves())
    for values in ({"alpha": 0.0}, {"alpha": 1.0}, {"softness": 0.2}):
        assert distance(drawn(halves(), **values), usual) > 1e-4, values


def check_masks_of_any_size_are_boxes_of_the_same_shape() -> None:
    expected = drawn(halves())
    for height, width in ((64, 64), (200, 40), (8, 2)):
        left = torch.zeros(1, height, width)
        left[..., : width // 2] = 1
        regions = region(CAT, mask=1 - left, before=region(DOG, mask=left))
        assert distance(drawn(regions), expected) < 1e-5, (height, width)


def check_regions_that_overlap_are_drawn_in_any_order() -> None:
    dog, cat = (DOG, 0.0, 0.0, 0.7, 1.0), (CAT, 0.3, 0.0, 1.0, 1.0)
    one = drawn(region(*cat, before=region(*dog)))
    other = drawn(region(*dog, before=region(*cat)))
    assert distance(one, other) < 1e-5


def check_a_batch_is_drawn_picture_by_picture() -> None:
    two = drawn(halves(), latent_image=small(2))
    assert distance(two[:1], drawn(halves())) < 1e-4
    second = {**small(), "batch_index": [1]}
    assert distance(two[1:], drawn(halves(), latent_image=second)) < 1e-4
    assert distance(two[1:], two[:1]) > 0.1


def check_rows_that_do_not_fit_into_memory_are_run_in_parts() -> None:
    whole = drawn(halves())
    model = base()[0].model
    single = model.memory_required((1, 4, 8, 8))
    for fits, expected in ((2, 2), (1, 4)):
        free = 1.5 * single * (fits + 0.5)
        with (
            patch.object(
                type(model), "memory_required", lambda _self, shape, **_: shape[0] * single
            ),
            patch.object(comfy.model_patcher.ModelPatcher, "get_free_memory", return_value=free),
            batches() as seen,
        ):
            latents = drawn(halves())
        assert seen == [fits] * (expected * 3), seen
        assert distance(latents, whole) < 1e-4


def check_nothing_is_left_behind_whatever_ends_it() -> None:
    expected, alone, before = drawn(halves()), plain(), weights_of(base()[0])
    options = str(base()[0].model_options)
    library = pack("nodes.regional_attention")
    mix = library.mix_attention
    for error in (comfy.model_management.InterruptProcessingException, RuntimeError):
        calls: list[int] = []

        def broken(
            *given: Any, error: type[BaseException] = error, calls: list[int] = calls
        ) -> Any:
            calls.append(1)
            if len(calls) > 40:
                raise error()
            return mix(*given)

        with patch.object(library, "mix_attention", broken):
            try:
                drawn(halves())
            except error:
                pass
            else:
                raise AssertionError(f"{error.__name__} did not come through")
        assert base()[0].wrappers == {} and str(base()[0].model_options) == options
        assert same_weights(weights_of(base()[0]), before)
        assert torch.equal(plain(), alone)
        assert torch.equal(drawn(halves()), expected)


def check_a_replace_patch_computes_every_attention() -> None:
    """Halved everywhere, regions included; other patches are told of positive and negative."""
    told: list[tuple[list[int], int, int]] = []

    def halved(q: Any, k: Any, v: Any, extra: Any) -> torch.Tensor:
        indices = extra["cond_or_uncond"]
        told.append((indices, len(q), extra["activations_shape"][0]))
        assert len(extra["uuids"]) == len(indices)
        attend = comfy.ldm.modules.attention.optimized_attention
        return attend(q, k, v, extra["n_heads"], attn_precision=extra["attn_precision"]) * 0.5

    def patched(model: Any) -> Any:
        clone = model.clone()
        clone.set_model_attn2_replace(halved, "input", 1)
        clone.set_model_attn2_replace(halved, "output", 4, 0)
        return clone

    state = two_toys(TARGETS)
    model, positive = applied(state, DOG)
    expected = sampled(patched(model), positive, negative(), small(), steps=3)
    told.clear()
    got = drawn(region(DOG), state=state, model=patched(base()[0]))
    assert distance(got, expected) < 1e-4 < distance(drawn(region(DOG), state=state), expected)
    assert {index for indices, _, _ in told for index in indices} == {0, 1}
    assert all(rows == shape and rows % len(indices) == 0 for indices, rows, shape in told)
    told.clear()
    drawn(halves(), state=state, model=patched(base()[0]))
    assert {index for indices, _, _ in told for index in indices} == {0, 1}


def check_loras_of_others_and_applied_states_are_bases() -> None:
    styled = foreign_lora(base()[0], 1.0)
    expected = drawn(halves(), model=styled)
    assert distance(expected, drawn(halves())) > 1e-3
    (record, _) = two_toys().records
    one = replace(two_toys(), records=[replace(record, settings={})])
    model, clip = pack("nodes.patching").apply_state(*base()[:2], one)
    assert torch.equal(drawn(halves(), model=model, clip=clip), drawn(halves()))
    assert torch.equal(drawn(halves(), model=foreign_lora(model, 1.0), clip=clip), expected)


def check_every_sampler_draws_regions() -> None:
    for sampler in (
        "euler_ancestral", "heun", "dpm_2", "lms", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m",
        "dpmpp_2m_sde", "ddpm", "lcm", "ddim", "uni_pc", "euler_cfg_pp", "res_multistep",
    ):  # fmt: skip
        found = drawn(halves(), sampler_name=sampler, steps=2)
        alone = plain(sampler=sampler, steps=2)
        assert bool(found.isfinite().all()) and distance(found, alone) > 1e-3, sampler


def check_conditionings_of_many_kinds() -> None:
    area, mask, times = (nodes.ConditioningSetArea(), nodes.ConditioningSetMask(),
                         nodes.ConditioningSetTimestepRange())  # fmt: skip
    other = conditioning(base()[1], "a house in the snow")
    left = torch.zeros(1, 64, 64)
    left[..., :32] = 1
    inside = area.append(scene(), 32, 32, 32, 16, 1.0)[0]
    late = times.set_range(scene(), 0.5, 1.0)[0]
    early = times.set_range(other, 0.0, 0.5)[0]
    for name, values in {
        "long negative": {"negative": conditioning(base()[1], "ugly " * 100)},
        "long positive": {"positive": conditioning(base()[1], "grass " * 100)},
        "area": {"positive": other + inside},
        "masked": {"positive": mask.append(scene(), left, "default", 1.0)[0] + other},
        "early and late": {"positive": late + early},
        "noise mask": {"latent_image": {**small(2), "noise_mask": left[:, None]}},
        "image to image": {"latent_image": {"samples": torch.ones(1, 4, 8, 8)}, "denoise": 0.5},
        "no square": {"latent_image": {"samples": torch.zeros(1, 4, 7, 12)}},
    }.items():
        assert bool(drawn(halves(), **values).isfinite().all()), name


def check_an_area_sees_the_regions_at_their_place() -> None:
    """A region in the left half alone counts nothing in a conditioning of the right half."""
    attention = pack("nodes.regional_attention")
    prompts = attention.RegionalPrompts(
        (torch.eye(8).cumsum(1).clamp(max=1),), 0.0, torch.zeros(1, 1, 77, 128), (None,), {}, {}
    )
    whole = prompts.covered((8, 8), (8, 8))
    cropped = prompts.covered((4, 4), (8, 8), (4, 4, 2, 3))
    assert torch.equal(cropped, whole[:, 2:6, 3:7])
    right = torch.zeros(8, 8)
    right[:, 4:] = 1
    prompts = attention.RegionalPrompts((right,), 0.0, prompts.contexts, (None,), {}, {})
    assert not prompts.covered((4, 2), (8, 8), (8, 4, 0, 0)).any()


def check_guidance_and_regions_go_together() -> None:
    model, clip, _ = base()
    values = {"positive": conditioning(clip, PROMPT)}
    expected = drawn(halves(), **values)
    with passes() as seen:
        found = drawn(halves(), model=guided(model, clip), **values)
    assert [one["rows"] for one in seen] == [1, 1], "guidance looks at its own prompt alone"
    assert distance(found, expected) > 1e-3


def check_a_text_encoders_adapter_reads_its_own_prompt() -> None:
    layers = pack("lifelong_core.sharing.naming").layers("demo")
    draw = torch.Generator().manual_seed(5)
    text = {
        f"{key}.{part}": torch.randn(*shape, generator=draw) / 8
        for key, (out, width) in layers.items()
        if key.startswith("text.")
        for part, shape in (("down", (4, width)), ("up", (out, 4)))
    }
    usual = two_toys()
    records = [replace(r, adapter={**r.adapter, **text}) for r in usual.records]
    state = replace(
        usual,
        adapter={**usual.adapter, **text},
        adapter_spec=replace(usual.adapter_spec, text_encoder=True),
        records=records,
    )
    model, positive = applied(state, DOG)
    expected = sampled(model, positive, negative(), small(), steps=3)
    assert distance(drawn(region(DOG), state=state), expected) < 1e-4
    assert distance(drawn(region(DOG)), expected) > 1e-3


def check_every_layer_reads_its_own_vectors() -> None:
    count = len(pack("lifelong_core.attention.layers").context_blocks("demo"))
    draw = torch.Generator().manual_seed(6)
    records = [
        replace(
            record,
            concept=replace(
                record.concept, vectors={"clip_l": torch.randn(count, 2, 128, generator=draw)}
            ),
        )
        for record in two_toys().records
    ]
    state = replace(two_toys(), records=records)
    model, positive = applied(state, DOG)
    expected = sampled(model, positive, negative(), small(), steps=3)
    mean = [replace(record, concept=record.concept.single()) for record in records]
    assert distance(drawn(region(DOG), state=state), expected) < 1e-4
    assert distance(drawn(region(DOG), state=replace(state, records=mean)), expected) > 1e-4
    assert bool(drawn(region("a lawn", before=halves()), state=state).isfinite().all())


def check_the_regions_are_shown() -> None:
    _, picture = both(halves(), steps=1)
    assert picture.shape[0] == 1 and picture.shape[2:] == (512, 3)
    assert float(picture.min()) >= 0 and float(picture.max()) <= 1
    left, right = picture[0, 20, 20], picture[0, 20, -20]
    assert distance(left, right) > 0.1
    _, wide = both(halves(), steps=1, latent_image={"samples": torch.zeros(1, 4, 4, 16)})
    assert wide.shape[1] < picture.shape[1] and wide.shape[2] == 512


def check_what_cannot_be_drawn_is_refused_by_name() -> None:
    empty, many = torch.zeros(1, 8, 8), torch.ones(3, 8, 8)
    wrong = torch.full((1, 8, 8), torch.nan)
    for kind, words, call in (
        ("InputError", "my_dog dog' is empty", lambda: region(DOG, mask=empty)),
        ("InputError", "holds 3 masks", lambda: region(DOG, mask=many)),
        ("InputError", "not inside the picture", lambda: region(DOG, 0.2, 0.0, 1.2, 1.0)),
        ("InputError", "is empty or not", lambda: region(DOG, 0.5, 0.0, 0.5, 1.0)),
        ("InputError", "not between 0 and 1", lambda: drawn(region(DOG, mask=wrong))),
        ("InputError", "There is no region", lambda: drawn(())),
        ("InputError", "embedding:my_cow", lambda: drawn(region("embedding:my_cow cow"))),
        ("InputError", "alpha", lambda: drawn(halves(), alpha=2.0)),
    ):
        with batches() as seen:
            refused(kind, words, call)
        assert not seen
    other = replace(two_toys(), base_fingerprint="another")
    refused("StateError", "another", lambda: drawn(halves(), state=other))
    (dog, cat) = two_toys().records
    lost = replace(two_toys(), records=[replace(dog, adapter={}), cat])
    refused("StateError", "has not kept the adapter", lambda: drawn(halves(), state=lost))
    assert bool(drawn(region("a lawn"), state=lost, steps=1).isfinite().all())


if __name__ == "__main__":
    main(globals())
