"""Runs inside ComfyUI's own process: attention guidance on ComfyUI's samplers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from guidance_helpers import (
    PAIRS,
    PROMPT,
    STEPS,
    STRONG,
    artist,
    distance,
    empty_latent,
    guided,
    held_latents,
    loaded_base,
    passes,
    same_weights,
    sampled,
    weights_of,
)
from inside import backbone, comfy, meta_model, pack, torch

# What follows can be imported once inside.py has set ComfyUI up.
# isort: split
import comfy.samplers


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
        assert extra == 0, (sampler, extra)
        assert bool(latents.isfinite().all()), sampler


def check_trials_that_a_sampler_throws_away_are_not_moved() -> None:
    base = loaded_base()
    model = guided(base.model, base.clip)
    run = pack("nodes.guidance")._Run
    call = run.__call__
    moved: list[Any] = []

    def noting(self: Any, executor: Any, x: Any, *args: Any) -> Any:
        before = x.clone()
        done = call(self, executor, x, *args)
        moved.extend([] if torch.equal(before, x) else [x])
        return done

    for sampler in (
        "euler", "heun", "dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral",
        "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde",
    ):  # fmt: skip
        moved.clear()
        with patch.object(run, "__call__", noting), held_latents() as held:
            sampled(model, base.positive, base.negative, sampler=sampler)
        assert len(moved) == math.ceil(STEPS / 2), (sampler, len(moved))
        assert all(any(x is one for one in held) for x in moved), sampler


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
    for calls in ((8.0, 4.0, 4.0, 2.0, 2.0, 1.0, 1.0), (8.0, 5.6, 4.0, 2.8, 2.0, 1.4, 1.0)):
        ancestral = steps.SamplerSteps([8.0, 4.0, 2.0, 1.0, 0.0], every_second=True)
        begun = [ancestral.begun(sigma) for sigma in calls]
        assert [step.index if step else None for step in begun] == [0, None, 1, None, 2, None, 3]
    for name, ahead in (("heun", 1), ("heunpp2", 2), ("euler", 0)):
        assert steps.steps_of(comfy.samplers.ksampler(name), [1.0, 0.0]).ahead == ahead
    twice = steps.steps_of(comfy.samplers.ksampler("dpm_2_ancestral"), [1.0, 0.0])
    assert twice.every_second and not steps.steps_of(object(), [1.0, 0.0]).every_second


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
