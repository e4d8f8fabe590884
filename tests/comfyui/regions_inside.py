"""Runs inside ComfyUI's own process: regions on ComfyUI's samplers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from guidance_helpers import conditioning, distance, same_weights, sampled, weights_of
from inside import backbone, comfy, pack, refused, torch
from regions_helpers import (
    CAT,
    DOG,
    KEY_VALUE,
    SCENE,
    TARGETS,
    applied,
    base,
    batches,
    both,
    drawn,
    halves,
    negative,
    noted,
    plain,
    region,
    scene,
    small,
    two_toys,
)
from safetensors.torch import save_file


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
    """On a diffusers copy of the weights, from the latents that ComfyUI's sampler had: of the
    nouns in the first of two steps, of the concepts in the second."""
    regional = pack("lifelong_core.attention.regional")
    slots = pack("lifelong_core.regional_slots")
    layouts = pack("lifelong_core.attention.layout")
    library = pack("lifelong_core.attention.regions")
    third = region("a lawn", 0.3, 0.25, 0.8, 0.8, before=halves())
    sampling = base()[0].get_model_object("model_sampling")
    for targets, softness, localized in (
        (KEY_VALUE, 0.0, ()),
        (TARGETS, 0.1, ()),
        (KEY_VALUE, 0.0, ("my_dog",)),
        (TARGETS, 0.0, ("my_dog", "my_cat")),
    ):
        state = two_toys(targets, localized)
        with noted() as seen:
            drawn(third, state=state, softness=softness, latent_image=small(2), steps=2, delay=0.5)
        with torch.inference_mode(False), backbone(*base()) as copy:
            placed = [one.in_picture((64, 64)) for one in third]
            masks = [one.mask for one in placed]
            learned = slots.region_slots(copy, state, SCENE, placed)
            units = [
                regional.RegionalUnet(copy, *slots.encode_slots(copy, own, "blurred"))
                for own in (slots.plain_slots(learned), learned)
            ]
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
            for unet, (x, sigma, denoised) in zip(units, seen, strict=True):
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


def check_words_that_were_learned_alone_are_read_alone() -> None:
    """As the library reads them, but for the rounding of ComfyUI's own text encoder."""
    prompts = pack("nodes.regional_prompts")
    encoding = pack("lifelong_core.localized_words")
    usual, state = two_toys(), two_toys(localized=("my_dog",))
    dog = state.records[0]
    for prompt in ("embedding:my_dog dog and a cat", "a cat, a big (embedding:my_dog dog:1.3)"):
        placed = [one.in_picture((64, 64)) for one in region(prompt)]
        _, clip = prompts.knowing(*base()[:2], state)
        read = prompts.read_regions(clip, state, [placed], 0.0).contexts[0]
        _, clip = prompts.knowing(*base()[:2], usual)
        other = prompts.read_regions(clip, usual, [placed], 0.0).contexts[0]
        with torch.inference_mode(False), torch.no_grad(), backbone(*base()) as copy:
            expected = encoding.encode_localized(
                copy.text, [prompt], state.vectors, [dog.concept]
            ).context
        assert distance(read, expected) < 1e-4, prompt
        assert distance(read, other) > 1e-2, prompt


def check_the_delay_is_over_at_its_step_with_every_kind_of_sampler() -> None:
    """Its calls above that step's noise level are those of the regions' nouns."""
    nouns = region("a photo of a cat on the grass", 0.5, 0.0, 1.0, 1.0,
                   before=region("a photo of a dog", 0.0, 0.0, 0.5, 1.0))  # fmt: skip
    for sampler in ("euler", "heun", "dpmpp_2m_sde", "dpm_fast"):
        runs = []
        for regions, delay in ((halves(), 0.5), (nouns, 0.5), (halves(), 0.0)):
            with noted() as seen:
                drawn(regions, steps=4, delay=delay, sampler_name=sampler)
            runs.append(seen)
        late = [sigma for _, sigma, _ in runs[0]]
        same = [torch.equal(one[2], other[2]) for one, other in zip(*runs[:2], strict=True)]
        assert same[0] and not same[-1], (sampler, same)
        assert same == sorted(same, reverse=True), (sampler, late, same)
        assert distance(runs[0][-1][2], runs[2][-1][2]) > 1e-4, sampler


def check_without_concepts_the_delay_changes_no_bit() -> None:
    lawn = region("a lawn", 0.0, 0.5, 1.0, 1.0)
    assert torch.equal(drawn(lawn, delay=0.6), drawn(lawn))


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


def check_every_picture_of_a_batch_may_have_its_own_masks() -> None:
    """Each is drawn as it is alone, by softness and cropped to an area, too."""
    placed = pack("nodes.regional_concept").PlacedRegion
    left, top = torch.zeros(64, 64), torch.zeros(64, 64)
    left[:, :32], top[:32] = 1, 1
    area = [[scene()[0][0], {**scene()[0][1], "area": (8, 4, 0, 2)}]]
    for values in ({}, {"softness": 0.1, "alpha": 0.5}, {"positive": area}):
        one = {"latent_image": {**small(), "batch_index": [0]}, **values}
        other = {"latent_image": {**small(), "batch_index": [1]}, **values}
        both_ = {"latent_image": {**small(2), "batch_index": [0, 1]}, **values}
        mirrored = torch.stack([1 - left, 1 - top])
        masks = (placed(DOG, torch.stack([left, top])), placed(CAT, mirrored))
        first = drawn((placed(DOG, left), placed(CAT, 1 - left)), **one)
        second = drawn((placed(DOG, top), placed(CAT, 1 - top)), **other)
        assert distance(drawn(masks, **both_), torch.cat([first, second])) < 1e-4
        assert distance(drawn(masks, **both_)[1:], first) > 1e-2
    shown = both(masks, steps=1, latent_image=small(2))[1]
    assert len(shown) == 2 and distance(shown[0], shown[1]) > 0.01
    refused(
        "InputError", "masks for 2 pictures, but 3", lambda: drawn(masks, latent_image=small(3))
    )


def check_the_regions_are_shown() -> None:
    _, picture = both(halves(), steps=1)
    assert picture.shape[0] == 1 and picture.shape[2:] == (512, 3)
    assert float(picture.min()) >= 0 and float(picture.max()) <= 1
    left, right = picture[0, 20, 20], picture[0, 20, -20]
    assert distance(left, right) > 0.1
    _, wide = both(halves(), steps=1, latent_image={"samples": torch.zeros(1, 4, 4, 16)})
    assert wide.shape[1] < picture.shape[1] and wide.shape[2] == 512


def check_embeddings_of_others_may_have_any_name() -> None:
    with TemporaryDirectory() as folder:
        words = base()[1].tokenizer.clip_l
        vectors = torch.ones(1, words.embedding_size)
        save_file({words.embedding_key: vectors}, Path(folder) / "Easy.v2.safetensors")
        with patch.object(words, "embedding_directory", [folder]):
            known = drawn(region("a dog, embedding:Easy.v2"), steps=1)
    assert distance(known, drawn(region("a dog,"), steps=1)) > 1e-4


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
        ("InputError", "embedding:my_dog.", lambda: drawn(region("see embedding:my_dog. A dog"))),
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
