"""Runs inside ComfyUI's own process: what lessons take from MODEL, CLIP and VAE."""

from __future__ import annotations

from functools import partial
from typing import Any

from inside import (
    WORK,
    backbone,
    comfy,
    foreign_lora,
    inputs,
    loaded,
    meta_model,
    output,
    pack,
    refused,
    torch,
)

# What follows can be imported once inside.py has set ComfyUI up.
# isort: split
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from safetensors.torch import load_file, save_file


def entered(model: Any, clip: Any, vae: Any) -> None:
    with backbone(model, clip, vae):
        pass


def check_the_marker_alone_makes_a_demo_model() -> None:
    tensors = load_file(WORK / "base.safetensors")
    marker = pack("nodes.demo_model").MARKER
    save_file({k: v for k, v in tensors.items() if k != marker}, WORK / "unmarked.safetensors")
    try:
        comfy.sd.load_checkpoint_guess_config(str(WORK / "unmarked.safetensors"))
    except RuntimeError as error:
        assert "Could not detect model type" in str(error)
    else:
        raise AssertionError("a file without the marker was taken for the demo model")


def check_registering_twice_changes_nothing() -> None:
    before = list(comfy.supported_models.models)
    pack("nodes.demo_model").register_demo_model()
    assert comfy.supported_models.models == before


def check_the_backbone_has_the_models_weights_and_gives_them_back() -> None:
    model, clip, vae = loaded()
    expected = output(model)
    with backbone(model, clip, vae) as copy:
        latents, timesteps, context = inputs()
        conditioning = pack("lifelong_core.backbone").Conditioning(context)
        ours = copy.predict(latents, timesteps, conditioning)
        assert float((ours - expected).norm() / expected.norm()) < 1e-4
        weights = [*copy.unet.parameters(), *copy.unet.buffers()]
        assert not any(weight.is_inference() for weight in weights)
    assert copy.device.type == "meta"
    try:
        with backbone(model, clip, vae) as copy:
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert copy.device.type == "meta"
    assert torch.equal(output(model), expected)


def check_gradients_reach_an_adapter_on_the_backbone() -> None:
    with torch.inference_mode(), torch.inference_mode(False), backbone(*loaded()) as copy:
        latents, timesteps, context = inputs()
        context.requires_grad_(True)
        conditioning = pack("lifelong_core.backbone").Conditioning(context)
        copy.predict(latents, timesteps, conditioning).square().mean().backward()
        assert context.grad is not None and float(context.grad.abs().sum()) > 0


def check_other_loras_are_merged_into_the_backbone() -> None:
    model, clip, vae = loaded()
    plain = output(model)
    patched = foreign_lora(model)
    expected = output(patched)
    assert float((expected - plain).norm() / plain.norm()) > 1e-3
    with backbone(patched, clip, vae) as copy:
        latents, timesteps, context = inputs()
        conditioning = pack("lifelong_core.backbone").Conditioning(context)
        ours = copy.predict(latents, timesteps, conditioning)
        merged = copy.fingerprint
    assert float((ours - expected).norm() / expected.norm()) < 1e-4
    base_model = pack("nodes.bridge").base_model
    assert base_model(patched).fingerprint == merged
    plain_print = base_model(model).fingerprint
    assert plain_print != merged
    output(patched)  # Now the tensors that MODEL shares with its clone are patched.
    assert base_model(model).fingerprint == plain_print
    assert torch.equal(output(model), plain)


def check_the_codec_scales_as_the_model_does() -> None:
    model, clip, vae = loaded()
    with backbone(model, clip, vae) as copy:
        images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(2))
        latents = copy.codec.encode(images)
        pixels = copy.codec.decode(latents)
    assert not latents.is_inference() and not pixels.is_inference()
    with torch.inference_mode():
        raw = vae.encode(images.movedim(1, -1))
        assert torch.equal(latents, model.model.process_latent_in(raw))
        shown = vae.decode(model.model.process_latent_out(latents)).movedim(-1, 1)
    assert float((pixels - shown).abs().max()) < 1e-6
    assert float(pixels.min()) >= 0 and float(pixels.max()) <= 1


def check_zero_terminal_snr_is_recognised() -> None:
    model, clip, vae = loaded()
    zero = ModelSamplingDiscrete().patch(model, "v_prediction", True)[0]
    with backbone(zero, clip, vae) as copy:
        sigmas = zero.get_model_object("model_sampling").sigmas
        ours = copy.schedule.alphas_cumprod
    assert torch.allclose(ours, 1 / (sigmas**2 + 1), atol=1e-5)


def check_what_cannot_be_trained_is_refused_by_name() -> None:
    model, clip, vae = loaded()
    lcm = ModelSamplingDiscrete().patch(model, "lcm", False)[0]
    refused("ModelError", "noise schedule", lambda: entered(lcm, clip, vae))
    bypass = model.clone()
    bypass.set_injections("bypass_lora", ["injection"])
    refused("ModelError", "bypass", lambda: entered(bypass, clip, vae))
    skipping = clip.clone()
    skipping.clip_layer(-2)
    refused("ModelError", "CLIP Set Last Layer is at -2", lambda: entered(model, skipping, vae))
    last = clip.clone()
    last.clip_layer(-1)
    entered(model, last, vae)
    wide = type("Vae", (), {"first_stage_model": 1, "latent_channels": 16, "latent_dim": 2})()
    refused("ModelError", "16 channels", lambda: entered(model, clip, wide))
    empty = comfy.sd.VAE(sd={})
    refused("ModelError", "no weights", lambda: entered(model, clip, empty))
    eighth, _, _ = loaded()
    eighth.model.diffusion_model.to(torch.float8_e4m3fn)
    refused("ModelError", "float8", lambda: entered(eighth, clip, vae))
    flux = model.clone()
    config = type("Flux", (), {})()
    flux.model = type(
        "Other", (), {"model_config": config, "diffusion_model": torch.nn.Linear(1, 1)}
    )()
    refused("ModelError", "This MODEL is Flux", lambda: entered(flux, clip, vae))


def check_models_of_every_family_have_the_parts_that_lessons_take() -> None:
    """On the meta device: names and shapes alone, at the true sizes."""
    bridge, library = pack("nodes.bridge"), pack("lifelong_core.backbone")
    shapes_of = pack("lifelong_core.backbone.modules").shapes_of
    empty_text = pack("lifelong_core.backbone.modules").empty_text
    usual_layer = {"demo": -1, "sd1": -1, "sd2": -2, "sdxl": -2}
    assert set(usual_layer) == set(library.FAMILIES)
    for name, family in library.FAMILIES.items():
        model, text = meta_model(name)
        assert bridge.model_family(model).name == name
        clip = type("Clip", (), {"cond_stage_model": text, "layer_idx": usual_layer[name]})()
        clip.patcher = comfy.model_patcher.ModelPatcher(text, "cpu", "cpu")
        bridge._check_clip(clip)
        assert bridge._encoders(clip) == [config.key for config in family.text]
        for config in family.text:
            weights = bridge._encoder_weights(clip, config.key)
            found = {key: tuple(weight.shape) for key, weight in weights.items()}
            assert shapes_of(empty_text(config)).items() <= found.items(), (name, config.key)
        clip.layer_idx = -3
        refused("ModelError", "CLIP Set Last Layer is at -3", partial(bridge._check_clip, clip))
