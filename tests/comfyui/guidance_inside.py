"""Runs inside ComfyUI's own process: attention guidance on ComfyUI's samplers.

python guidance_inside.py COMFYUI PACK WORK: see inside.py.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

from inside import (
    backbone,
    comfy,
    foreign_lora,
    loaded,
    main,
    meta_model,
    pack,
    refused,
    some_state,
    torch,
)

# What follows can be imported once inside.py has set ComfyUI up.
# isort: split
import comfy.controlnet
import comfy.samplers
from comfy_extras import nodes_custom_sampler as custom

import nodes

PROMPT = "a photo of a red dog and a blue cat"
PAIRS = "red dog\nblue cat"
STEPS = 4
STRONG = 480.0
"""Weights that are random need more than trained ones to move visibly."""


def conditioning(clip: Any, text: str) -> Any:
    with torch.inference_mode():
        return nodes.CLIPTextEncode().encode(clip, text)[0]


def empty_latent(batch: int = 1, side: int = 16) -> dict[str, Any]:
    return {"samples": torch.zeros(batch, 4, side, side)}


def sampled(
    model: Any,
    positive: Any,
    negative: Any,
    latent: dict[str, Any] | None = None,
    *,
    steps: int = STEPS,
    cfg: float = 4.0,
    sampler: str = "euler",
) -> torch.Tensor:
    """The stock KSampler."""
    with torch.inference_mode():
        latent = latent or empty_latent()
        done = nodes.KSampler().sample(
            model, 1, steps, cfg, sampler, "normal", positive, negative, latent
        )
        return done[0]["samples"].clone()


def guided(
    model: Any,
    clip: Any,
    *,
    prompt: str = PROMPT,
    pairs: str = PAIRS,
    strength: float = STRONG,
    fraction: float = 0.5,
    state: Any = None,
) -> Any:
    """MODEL from Orthogonal Attention Guidance."""
    node = pack("nodes.orthogonal_attention_guidance").OrthogonalAttentionGuidance
    with torch.inference_mode():
        return node.execute(model, clip, prompt, pairs, strength, 0.4, fraction, state).result[0]


def artist(
    model: Any, clip: Any, positive: Any, negative: Any, latent: Any = None, **values: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and maps of the Concept Attention Artist Sampler."""
    node = pack("nodes.concept_attention_artist_sampler").ConceptAttentionArtistSampler
    usual = {
        "prompt": PROMPT, "concepts": PAIRS, "seed": 1, "steps": STEPS, "cfg": 4.0,
        "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, "caa_strength": 0.0,
        "oaa_strength": 0.0, "threshold": 0.4, "guided_fraction": 0.5, "maps": "average",
    }  # fmt: skip
    latent = latent or empty_latent()
    with torch.inference_mode():
        done = node.execute(model, clip, positive, negative, latent, **{**usual, **values})
        return done.result[0]["samples"].clone(), done.result[1].clone()


@contextmanager
def passes() -> Iterator[list[dict[str, Any]]]:
    """What every gradient pass inside the block was called with."""
    capture = pack("nodes.attention_capture").AttentionCapture
    call, seen = capture.__call__, []

    def noting(self: Any, executor: Any, x: Any, *args: Any, **options: Any) -> Any:
        seen.append({"rows": len(x), "context": args[1].shape[1], "size": tuple(x.shape[2:])})
        return call(self, executor, x, *args, **options)

    with patch.object(capture, "__call__", noting):
        yield seen


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        state = model.model.diffusion_model.state_dict()
        return {key: weight.clone() for key, weight in state.items()}


def same_weights(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).norm() / right.norm())


class Base:
    """MODEL, CLIP and two conditionings."""

    def __init__(self) -> None:
        self.model, self.clip, self.vae = loaded()
        self.positive = conditioning(self.clip, PROMPT)
        self.negative = conditioning(self.clip, "")


@cache
def loaded_base() -> Base:
    """One for all checks: none may leave anything behind."""
    return Base()


def check_strength_zero_is_no_node_at_all() -> None:
    base = loaded_base()
    plain = sampled(base.model, base.positive, base.negative)
    assert guided(base.model, base.clip, strength=0.0) is base.model
    assert guided(base.model, base.clip, fraction=0.0) is base.model
    latents, maps = artist(base.model, base.clip, base.positive, base.negative)
    assert torch.equal(latents, plain)
    assert float(maps.std()) > 0


def check_guidance_moves_the_picture_and_leaves_the_model() -> None:
    base = loaded_base()
    plain = sampled(base.model, base.positive, base.negative)
    before = weights_of(base.model)
    model = guided(base.model, base.clip)
    first = sampled(model, base.positive, base.negative)
    assert distance(first, plain) > 1e-3 and bool(first.isfinite().all())
    assert torch.equal(sampled(model, base.positive, base.negative), first)
    assert same_weights(weights_of(base.model), before)
    assert torch.equal(sampled(base.model, base.positive, base.negative), plain)
    assert base.model.wrappers == {}
    parameters = base.model.model.diffusion_model.parameters()
    assert all(weight.grad is None and not weight.requires_grad for weight in parameters)


def check_the_sampler_goes_on_from_the_moved_latent() -> None:
    """An Euler loop that is written out and moves x itself ends at the same latents."""
    base = loaded_base()
    moves: dict[float, torch.Tensor] = {}
    run = pack("nodes.guidance")._Run
    call = run.__call__

    def noting(self: Any, executor: Any, x: Any, timestep: Any, *args: Any) -> Any:
        before = x.clone()
        denoised = call(self, executor, x, timestep, *args)
        moves[float(timestep[0])] = x - before
        return denoised

    with patch.object(run, "__call__", noting):
        got = sampled(guided(base.model, base.clip), base.positive, base.negative)
    assert [bool(move.any()) for move in moves.values()] == [True, True, False, False]

    def explicit(model: Any, x: Any, sigmas: Any, extra_args: Any = None, **_: Any) -> Any:
        for now, then in zip(sigmas[:-1], sigmas[1:], strict=True):
            x = x + moves[float(now)]
            denoised = model(x, now * x.new_ones([len(x)]), **extra_args)
            x = x + (x - denoised) / now * (then - now)
        return x

    with torch.inference_mode():
        noise = comfy.sample.prepare_noise(empty_latent()["samples"], 1)
        sampling = base.model.get_model_object("model_sampling")
        expected = comfy.samplers.sample(
            base.model, noise, base.positive, base.negative, 4.0, base.model.load_device,
            comfy.samplers.KSAMPLER(explicit),
            comfy.samplers.calculate_sigmas(sampling, "normal", STEPS), {},
            latent_image=empty_latent()["samples"], seed=1, disable_pbar=True,
        )  # fmt: skip
    assert distance(got, expected) < 1e-5


def check_the_gradient_is_that_of_autograd_by_hand() -> None:
    """The first move equals one computed with a plain forward pass and maps from to_q and to_k."""
    base = loaded_base()
    library = pack("lifelong_core.attention")
    moved: list[torch.Tensor] = []
    run = pack("nodes.guidance")._Run
    call = run.__call__

    def noting(self: Any, executor: Any, x: Any, timestep: Any, *args: Any) -> Any:
        before = x.clone()
        denoised = call(self, executor, x, timestep, *args)
        moved.append((before, x - before, float(timestep[0])))
        return denoised

    with patch.object(run, "__call__", noting):
        sampled(guided(base.model, base.clip), base.positive, base.negative)
    before, move, sigma = moved[0]
    unet = base.model.model.diffusion_model
    words = pack("nodes.prompt_words").read_prompt(base.clip, PROMPT, PAIRS)
    settings = library.GuidanceSettings(oaa=STRONG)
    slots = pack("nodes.guidance").slots_of(base.model)
    maps: list[torch.Tensor] = []
    projected: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            projected[name] = output
            if name == "k":
                q, k = projected["q"], projected["k"]
                heads = len(q[0, 0]) // 32
                per_head = [
                    (a @ b.mT / math.sqrt(32)).softmax(-1)
                    for a, b in zip(q.chunk(heads, -1), k.chunk(heads, -1), strict=True)
                ]
                maps.append(torch.stack(per_head).mean(0))

        return hook

    handles = []
    for slot in slots:
        attention = attention_at(unet, slot)
        handles.append(attention.to_q.register_forward_hook(keep("q")))
        handles.append(attention.to_k.register_forward_hook(keep("k")))
    try:
        with torch.inference_mode(False), torch.enable_grad():
            z = (before / math.sqrt(1 + sigma**2)).clone().requires_grad_(True)
            sampling = base.model.get_model_object("model_sampling")
            t = sampling.timestep(torch.tensor([sigma])).float()
            unet(z, t, context=base.positive[0][0].clone(), transformer_options={})
            loss = library.guidance_loss(
                torch.stack(maps).mean(0), (16, 16), [words.places], settings
            )
            (gradient,) = torch.autograd.grad(loss.sum(), z)
    finally:
        for handle in handles:
            handle.remove()
    step = library.step_size(library.Step(0, STEPS), settings)
    step *= library.cell_factor(before.shape[-2:], (16, 16))
    expected = -step * gradient * math.sqrt(1 + sigma**2)
    assert len(maps) == len(slots) and float(expected.norm()) > 0
    assert distance(move, expected) < 1e-3


def check_maps_and_moves_are_those_of_the_library() -> None:
    """On a diffusers copy of the same weights, with the latents that ComfyUI's UNet got."""
    base = loaded_base()
    model = guided(base.model, base.clip)
    library, captures = pack("lifelong_core.attention"), pack("nodes.attention_capture")
    guide, seen, moves = library.Guide, [], []
    call, attend = guide.__call__, captures.AttentionCapture.__call__

    def watched(self: Any, executor: Any, z: Any, timesteps: Any, *args: Any, **more: Any) -> Any:
        on_maps = self.on_maps

        def keep(maps: Any, size: Any) -> bool:
            seen.append((z.detach().clone(), int(timesteps[0]), maps.detach(), size))
            return on_maps(maps, size)

        self.on_maps = keep
        return attend(self, executor, z, timesteps, *args, **more)

    def moved(self: Any, latents: Any, *args: Any) -> Any:
        result = call(self, latents, *args)
        moves.append(result.latents - latents)
        return result

    with (
        patch.object(captures.AttentionCapture, "__call__", watched),
        patch.object(guide, "__call__", moved),
    ):
        sampled(model, base.positive, base.negative, empty_latent(2))
    assert len(seen) == len(moves) == 2
    words = pack("nodes.prompt_words").read_prompt(base.clip, PROMPT, PAIRS)
    settings = library.GuidanceSettings(oaa=STRONG)
    branches = pack("lifelong_core.attention.capture").ConditionalBranch
    sampling = base.model.get_model_object("model_sampling")
    with torch.inference_mode(False), backbone(base.model, base.clip, base.vae) as copy:
        conditioning = copy.text.encode([PROMPT] * 2)
        for index, ((z, timestep, maps, size), move) in enumerate(zip(seen, moves, strict=True)):
            found: list[Any] = []

            def keep(got: Any, shape: Any, found: list[Any] = found) -> bool:
                found.append((got.detach(), shape))
                return False

            branch = branches(copy, conditioning, torch.tensor(timestep), (128, 128))
            branch(z, keep)
            assert found[0][1] == size and distance(maps, found[0][0]) < 1e-3
            step = library.Step(index, STEPS)
            result = library.guided_latent(z, branch, [words.places] * 2, settings, step)
            scale = math.sqrt(1 + float(sampling.sigma(torch.tensor(timestep))) ** 2)
            assert distance(move, (result.latents - z) * scale) < 1e-2


def check_every_sampler_is_guided_once_per_step() -> None:
    base = loaded_base()
    model = guided(base.model, base.clip)
    for sampler, steps in (
        ("euler", 4), ("euler_ancestral", 4), ("heun", 4), ("heunpp2", 5), ("dpm_2", 4),
        ("dpmpp_2s_ancestral", 4), ("dpmpp_2m", 4), ("uni_pc", 4), ("exp_heun_2_x0", 4),
    ):  # fmt: skip
        with passes() as seen:
            latents = sampled(model, base.positive, base.negative, steps=steps, sampler=sampler)
        extra = len(seen) - math.ceil(steps / 2)
        # Before a sampler has come to a second level, a trial below it looks like a step.
        assert extra in ((0, 1) if sampler == "dpmpp_2s_ancestral" else (0,)), (sampler, extra)
        assert bool(latents.isfinite().all()), sampler


def check_samplers_without_a_schedule_are_guided_too() -> None:
    base = loaded_base()
    with passes() as seen:
        sampled(guided(base.model, base.clip), base.positive, base.negative, sampler="dpm_fast")
    assert 1 <= len(seen) <= 2


def check_heun_is_guided_where_its_step_begins() -> None:
    steps = pack("nodes.sampler_steps")
    counting = steps.SamplerSteps([8.0, 4.0, 2.0, 1.0, 0.0], ahead=1)
    calls = (8.0, 4.0, 4.0, 2.0, 2.0, 1.0, 1.0)
    begun = [counting.begun(sigma) for sigma in calls]
    assert [step.index if step else None for step in begun] == [0, None, 1, None, 2, None, 3]
    assert {step.count for step in begun if step} == {4}
    middle = steps.SamplerSteps([8.0, 4.0, 2.0, 0.0])
    begun = [middle.begun(sigma) for sigma in (8.0, 5.6, 4.00001, 2.8, 2.0)]
    assert [step.index if step else None for step in begun] == [0, None, 1, None, 2]
    free = steps.SamplerSteps([8.0, 4.0, 2.0, 0.0])
    begun = [free.begun(sigma) for sigma in (8.0, 7.0, 3.9, 3.0, 1.5)]
    assert [step.index if step else None for step in begun] == [0, None, 1, None, 2]
    for name, ahead in (("heun", 1), ("heunpp2", 2), ("euler", 0)):
        assert steps.levels_ahead(comfy.samplers.ksampler(name)) == ahead
        assert steps.levels_ahead(object()) == 0


def check_the_gradient_pass_ends_behind_the_last_layer() -> None:
    base = loaded_base()
    model = guided(base.model, base.clip)
    ended: list[bool] = []
    handle = base.model.model.diffusion_model.out.register_forward_hook(
        lambda *_: ended.append(torch.is_inference_mode_enabled())
    )
    try:
        with passes() as seen:
            sampled(model, base.positive, base.negative)
    finally:
        handle.remove()
    assert [one["rows"] for one in seen] == [1, 1], "the conditional rows alone"
    assert ended == [True] * STEPS, "only the sampler's own passes reach the end"


def check_the_layers_that_are_read_are_there_in_every_family() -> None:
    map_blocks = pack("lifelong_core.attention").map_blocks
    for name in pack("lifelong_core.backbone").FAMILIES:
        model, _ = meta_model(name)
        unet = model.model.diffusion_model
        slots = pack("nodes.guidance").slots_of(model)
        assert slots == map_blocks(name) and slots
        for slot in slots:
            assert attention_at(unet, slot).to_q.weight.ndim == 2
    five = {("input", 7, 0), ("input", 8, 0), *(("output", number, 0) for number in (3, 4, 5))}
    assert set(map_blocks("sd1")) == set(map_blocks("sd2")) == five


def attention_at(unet: Any, slot: tuple[str, int, int]) -> Any:
    """The cross-attention that ComfyUI calls by this name."""
    block, number, depth = slot
    blocks = {
        "input": unet.input_blocks,
        "middle": [unet.middle_block],
        "output": unet.output_blocks,
    }
    return blocks[block][number][1].transformer_blocks[depth].attn2


def check_a_replace_patch_is_chained_in_either_order() -> None:
    base = loaded_base()
    calls: list[tuple[int, bool]] = []

    def halved(q: Any, k: Any, v: Any, extra: Any) -> torch.Tensor:
        calls.append((len(q), torch.is_grad_enabled()))
        heads = extra["n_heads"]
        attend = comfy.ldm.modules.attention.optimized_attention
        return attend(q, k, v, heads, attn_precision=extra["attn_precision"]) * 0.5

    def patched(model: Any) -> Any:
        clone = model.clone()
        clone.set_model_attn2_replace(halved, "input", 1)
        clone.set_model_attn2_replace(halved, "output", 4, 0)
        return clone

    plain = sampled(patched(base.model), base.positive, base.negative)
    assert distance(plain, sampled(base.model, base.positive, base.negative)) > 1e-3
    read = (("input", 1, 0), ("output", 4, 0), ("output", 5, 0))
    with patch.object(pack("nodes.guidance"), "map_blocks", lambda family: read):
        orders = (
            guided(patched(base.model), base.clip),
            patched(guided(base.model, base.clip)),
        )
    results = []
    for model in orders:
        calls.clear()
        results.append(sampled(model, base.positive, base.negative))
        assert calls.count((1, True)) == 2 * 2, "both patches in both gradient passes"
        assert calls.count((2, False)) == 2 * STEPS, "and in every pass of the sampler"
    assert torch.equal(*results) and distance(results[0], plain) > 1e-3
    assert torch.equal(
        artist(patched(base.model), base.clip, base.positive, base.negative)[0], plain
    )


def check_a_patch_that_adds_tokens_leaves_the_words_where_they_are() -> None:
    base = loaded_base()

    def with_picture(n: Any, context: Any, value: Any, extra: Any) -> Any:
        more = context[:, :4] * 0.1
        return n, torch.cat([context, more], 1), torch.cat([value, more], 1)

    model = guided(base.model, base.clip)
    model.set_model_attn2_patch(with_picture)
    plain = base.model.clone()
    plain.set_model_attn2_patch(with_picture)
    latents = sampled(model, base.positive, base.negative)
    assert distance(latents, sampled(plain, base.positive, base.negative)) > 1e-3


def check_maps_are_shown_for_every_word_picture_and_step() -> None:
    base = loaded_base()
    given = (base.model, base.clip, base.positive, base.negative)
    height, width = 24 + 256, 256
    for values, count, panels in (
        ({"caa_strength": 1.0}, 2, 5),
        ({"oaa_strength": 1.0, "maps": "every step"}, 2 * 2, 5),
        ({"maps": "every step", "guided_fraction": 1.0}, 2 * STEPS, 5),
        ({"caa_strength": 1.0, "concepts": "red dog\ncat", "vae": base.vae}, 2, 4),
    ):
        _, maps = artist(*given, empty_latent(2), **values)
        assert maps.shape == (count, height, panels * (width + 6) - 6, 3), maps.shape
        assert float(maps.min()) >= 0 and float(maps.max()) <= 1
        halves = maps[:, 24:, :width], maps[:, 24:, width + 6 :]
        assert all(float(half.std()) > 0.01 for half in halves)
    _, flat = artist(*given, {"samples": torch.zeros(1, 4, 8, 24)}, caa_strength=1.0)
    assert flat.shape[1:3] == (24 + 85, 5 * (256 + 6) - 6)


def check_both_nodes_share_one_gradient_pass() -> None:
    base = loaded_base()
    model = guided(base.model, base.clip, strength=2.0)
    with passes() as seen:
        chained, maps = artist(model, base.clip, base.positive, base.negative, caa_strength=3.0)
    assert len(seen) == 2
    alone, maps_alone = artist(
        base.model, base.clip, base.positive, base.negative, caa_strength=3.0, oaa_strength=2.0
    )
    assert torch.equal(chained, alone) and torch.equal(maps, maps_alone)
    twice = guided(guided(base.model, base.clip, strength=1.0), base.clip, strength=1.0)
    once = guided(base.model, base.clip, strength=2.0)
    assert torch.equal(
        sampled(twice, base.positive, base.negative), sampled(once, base.positive, base.negative)
    )
    other = guided(model, base.clip, fraction=1.0)
    with passes() as seen:
        sampled(other, base.positive, base.negative)
    assert len(seen) == 2 + 4, "guidance that differs in more than strength has its own passes"


def check_an_interrupt_in_the_gradient_pass_leaves_nothing_behind() -> None:
    base = loaded_base()
    plain = sampled(base.model, base.positive, base.negative)
    before = weights_of(base.model)
    model = guided(base.model, base.clip)
    wrappers = {kind: {k: list(w) for k, w in by.items()} for kind, by in model.wrappers.items()}
    expected = sampled(model, base.positive, base.negative)
    library = pack("lifelong_core.attention.guidance")
    for error in (comfy.model_management.InterruptProcessingException, RuntimeError):

        def broken(*_: Any, error: type[BaseException] = error) -> Any:
            raise error()

        with patch.object(library, "total_loss", broken):
            try:
                sampled(model, base.positive, base.negative)
            except error:
                pass
            else:
                raise AssertionError(f"{error.__name__} did not come through")
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert model.wrappers == wrappers and "patches_replace" not in str(model.model_options)
        assert same_weights(weights_of(base.model), before)
        assert torch.equal(sampled(base.model, base.positive, base.negative), plain)
        assert torch.equal(sampled(model, base.positive, base.negative), expected)
    comfy.model_management.interrupt_current_processing(True)
    try:
        sampled(model, base.positive, base.negative)
    except comfy.model_management.InterruptProcessingException:
        pass
    else:
        raise AssertionError("cancel was not heard")
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert torch.equal(sampled(base.model, base.positive, base.negative), plain)


def check_a_batch_is_guided_picture_by_picture() -> None:
    base = loaded_base()
    model = guided(base.model, base.clip)
    with passes() as seen:
        both = sampled(model, base.positive, base.negative, empty_latent(2))
    assert [one["rows"] for one in seen] == [2, 2], "all pictures at once"
    alone = sampled(model, base.positive, base.negative)
    assert distance(both[:1], alone) < 1e-3
    assert distance(both[1:], alone) > 1e-2
    second = {"samples": torch.zeros(1, 4, 16, 16), "batch_index": [1]}
    assert distance(both[1:], sampled(model, base.positive, base.negative, second)) < 1e-3


def check_cfg_one_is_guided() -> None:
    base = loaded_base()
    plain = sampled(base.model, base.positive, base.negative, cfg=1.0)
    with passes() as seen:
        latents = sampled(guided(base.model, base.clip), base.positive, base.negative, cfg=1.0)
    assert len(seen) == 2 and distance(latents, plain) > 1e-3


def check_a_lora_is_guided_and_comes_off_again() -> None:
    base = loaded_base()
    plain = sampled(base.model, base.positive, base.negative)
    before = weights_of(base.model)
    styled = foreign_lora(base.model, 1.0)
    expected = sampled(styled, base.positive, base.negative)
    for model in (guided(styled, base.clip), foreign_lora(guided(base.model, base.clip), 1.0)):
        latents = sampled(model, base.positive, base.negative)
        assert distance(latents, expected) > 1e-3
        assert torch.equal(sampled(styled, base.positive, base.negative), expected)
        assert torch.equal(sampled(base.model, base.positive, base.negative), plain)
    assert same_weights(weights_of(base.model), before)


def check_weights_that_are_patched_while_they_are_used_are_loaded_in_full() -> None:
    """ComfyUI keeps LoRAs of models that do not fit as functions on the layers (lowvram)."""
    base = loaded_base()
    styled = foreign_lora(base.model, 1.0)
    model = guided(styled, base.clip)
    expected = sampled(model, base.positive, base.negative)
    with torch.inference_mode():
        comfy.model_management.unload_all_models()
        layer = base.model.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn1.to_q
        model.load(model.load_device, lowvram_model_memory=1)
        assert layer.weight_function or layer.comfy_cast_weights
    latents = sampled(model, base.positive, base.negative)
    assert distance(latents, expected) < 1e-5
    comfy.model_management.unload_all_models()


def check_a_whole_graph_of_custom_nodes_is_guided_the_same() -> None:
    base = loaded_base()
    model = guided(base.model, base.clip)
    expected = sampled(model, base.positive, base.negative)
    with torch.inference_mode():
        noise = custom.RandomNoise.execute(1).result[0]
        sampler = custom.KSamplerSelect.execute("euler").result[0]
        sigmas = custom.BasicScheduler.execute(model, "normal", STEPS, 1.0).result[0]
        guiders = {
            "CFGGuider": custom.CFGGuider.execute(model, base.positive, base.negative, 4.0),
            "BasicGuider": custom.BasicGuider.execute(model, base.positive),
            "DualCFGGuider": custom.DualCFGGuider.execute(
                model, base.negative, base.positive, base.negative, 4.0, 2.0, "regular"
            ),
        }
        results = {}
        for name, guider in guiders.items():
            with passes() as seen:
                done = custom.SamplerCustomAdvanced.execute(
                    noise, guider.result[0], sampler, sigmas, empty_latent()
                )
            assert len(seen) == 2, name
            results[name] = done.result[0]["samples"]
    assert torch.equal(results["CFGGuider"], expected)
    assert torch.equal(
        results["BasicGuider"], sampled(model, base.positive, base.negative, cfg=1.0)
    )


def check_conditionings_of_many_kinds() -> None:
    base = loaded_base()
    model = guided(base.model, base.clip)
    other = conditioning(base.clip, "a house in the snow")
    long_negative = conditioning(base.clip, "ugly " * 100)
    area, mask, times = (nodes.ConditioningSetArea(), nodes.ConditioningSetMask(),
                         nodes.ConditioningSetTimestepRange())  # fmt: skip
    left = torch.zeros(1, 128, 128)
    left[..., :64] = 1
    inside = area.append(base.positive, 64, 64, 32, 32, 1.0)[0]
    combined = nodes.ConditioningCombine().combine(other, base.positive)[0]
    masked = mask.append(base.positive, left, "default", 1.0)[0]
    concatenated = nodes.ConditioningConcat().concat(base.positive, other)[0]
    late = times.set_range(base.positive, 0.5, 1.0)[0]
    early = times.set_range(base.positive, 0.0, 0.5)[0]
    latent = {**empty_latent(2), "noise_mask": left[:, None]}
    for name, positive, negative, start, expected in (
        ("long negative", base.positive, long_negative, None, {"rows": 1, "context": 77}),
        ("area", combined + inside, base.negative, None, {"rows": 1, "size": (16, 16)}),
        ("area alone", inside, base.negative, None, {"rows": 1, "size": (8, 8)}),
        ("combined", combined, base.negative, None, {"rows": 1}),
        ("masked", masked + other, base.negative, None, {"rows": 1}),
        ("concatenated", concatenated, base.negative, None, {"rows": 1, "context": 154}),
        ("noise mask", base.positive, base.negative, latent, {"rows": 2}),
        ("early and late", late + early, base.negative, None, {"rows": 1}),
        ("late", late + other, base.negative, None, None),
    ):
        plain = sampled(base.model, positive, negative, start)
        with passes() as seen:
            latents = sampled(model, positive, negative, start)
        assert bool(latents.isfinite().all()), name
        if expected is None:
            assert not seen and torch.equal(latents, plain), name
            continue
        assert len(seen) == 2, (name, seen)
        assert all(expected.items() <= one.items() for one in seen), (name, seen)
        assert distance(latents, plain) > 1e-4, name


def check_prompts_of_several_chunks() -> None:
    base = loaded_base()
    prompt = "grass " * 80 + PROMPT
    words = pack("nodes.prompt_words").read_prompt(base.clip, prompt, PAIRS)
    assert words.places.length == 154 and min(words.places.pairs[0].noun) > 77
    model = guided(base.model, base.clip, prompt=prompt)
    positive = conditioning(base.clip, prompt)
    with passes() as seen:
        latents = sampled(model, positive, base.negative)
    assert [one["context"] for one in seen] == [154, 154]
    assert distance(latents, sampled(base.model, positive, base.negative)) > 1e-5


def check_a_control_net_is_a_constant() -> None:
    base = loaded_base()
    with torch.inference_mode():
        weight = torch.randn(64, 4, 1, 1) * 0.1

    class Control(comfy.controlnet.ControlBase):
        """A network of one layer."""

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[bool] = []

        def get_control(self, x: Any, *_: Any) -> Any:
            self.seen.append(x.requires_grad)
            added = torch.nn.functional.conv2d(x / 15, weight)
            return {"input": [added], "middle": [], "output": []}

    control = Control()
    steered = [[cond, {**extra, "control": control}] for cond, extra in base.positive]
    steered_negative = [[cond, {**extra, "control": control}] for cond, extra in base.negative]
    plain = sampled(base.model, steered, steered_negative)
    assert distance(plain, sampled(base.model, base.positive, base.negative)) > 1e-4
    latents = sampled(guided(base.model, base.clip), steered, steered_negative)
    assert distance(latents, plain) > 1e-4
    assert len(control.seen) > 2 * STEPS and not any(control.seen)


def check_a_gradient_that_is_not_a_number_moves_nothing() -> None:
    base = loaded_base()
    plain = sampled(base.model, base.positive, base.negative)
    losses = pack("lifelong_core.attention.guidance")
    loss = losses.total_loss
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger(losses.__name__).addHandler(handler)
    try:
        with patch.object(losses, "total_loss", lambda *args: loss(*args) * math.nan):
            latents = sampled(guided(base.model, base.clip), base.positive, base.negative)
    finally:
        logging.getLogger(losses.__name__).removeHandler(handler)
    assert torch.equal(latents, plain)
    assert len(said) == 1 and "not finite" in said[0]


def check_words_that_are_not_there_are_refused() -> None:
    base = loaded_base()
    for pairs, word in (("red horse", "horse"), ("green dog", "green"), ("red dog\ndog", "dog")):
        refused("InputError", word, lambda pairs=pairs: guided(base.model, base.clip, pairs=pairs))
    refused("InputError", "photo", lambda: guided(base.model, base.clip, pairs="horse"))
    refused("InputError", "one pair per line", lambda: guided(base.model, base.clip, pairs=" \n"))
    foreign = conditioning(base.clip, "a house")
    model = guided(base.model, base.clip)
    refused("InputError", PROMPT, lambda: sampled(model, foreign, base.positive))
    refused(
        "InputError", "samples",
        lambda: artist(base.model, base.clip, base.positive, base.negative, empty_latent(0)),
    )  # fmt: skip
    hollow = {**empty_latent(), "noise_mask": torch.zeros(1, 0, 0)}
    refused(
        "InputError", "noise_mask",
        lambda: artist(base.model, base.clip, base.positive, base.negative, hollow),
    )  # fmt: skip


def check_models_without_a_unet_are_refused_by_name() -> None:
    base = loaded_base()
    flux = base.model.clone()
    config = type("Flux", (), {})()
    flux.model = type(
        "Other", (), {"model_config": config, "diffusion_model": torch.nn.Linear(1, 1),
                      "model_sampling": object()},
    )()  # fmt: skip
    refused("ModelError", "This MODEL is Flux", lambda: guided(flux, base.clip))
    strange = base.clip.clone()
    strange.tokenizer = type("Tokenizer", (), {})()
    refused("ModelError", "This CLIP is", lambda: guided(base.model, strange))


def check_concepts_of_a_state_are_found() -> None:
    base = loaded_base()
    state = some_state("x")
    _, reader = pack("nodes.patching").apply_state(base.model, base.clip, state)
    prompt = "a photo of a (embedding:my_dog dog:1.2), and a cat"
    read = pack("nodes.prompt_words").read_prompt
    words = read(reader, prompt, "", state)
    (pair,) = words.places.pairs
    assert pair.concept == (5, 6) and pair.noun == (7,)
    assert words.same(read(reader, prompt, "embedding:my_dog dog"))
    assert not words.same(read(reader, prompt, "embedding:my_dog cat"))
    assert words.are_in(conditioning(reader, prompt)[0][0])
    assert not words.are_in(conditioning(reader, prompt.replace("1.2", "1.4"))[0][0])
    refused("InputError", "embedding:my_dog", lambda: read(reader, PROMPT, "", state))
    refused("InputError", "my_cat", lambda: read(reader, prompt, "embedding:my_cat cat"))


def check_pairs_are_read_line_by_line() -> None:
    parse = pack("nodes.prompt_words").parse_pairs
    text = "embedding:my_dog dog\n\n red  duck toy \ncat\n"
    assert parse(text) == [("embedding:my_dog", "dog"), ("red", "duck toy"), (None, "cat")]
    assert parse(" \n") == []


if __name__ == "__main__":
    main(globals())
