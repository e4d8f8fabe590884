"""Runs inside ComfyUI's own process: what the nodes' helpers do to ComfyUI's objects.

python inside.py COMFYUI PACK WORK: WORK/base.safetensors is a demo checkpoint; runs every
check_… function and writes WORK/results.json, its name -> "" or the traceback.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

COMFYUI, PACK, WORK = (Path(argument).resolve() for argument in sys.argv[1:4])
sys.path.insert(0, str(COMFYUI))
sys.argv = [sys.argv[0], "--cpu", "--fp32-text-enc"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.lora  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.model_sampling  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

NAME = str(PACK)  # ComfyUI gives a pack its path as name.
EMBEDDINGS = WORK / "embeddings"
TARGETS = ("attn2.to_k", "attn2.to_v")


def pack(module: str) -> Any:
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(NAME, PACK / "__init__.py")
        assert spec is not None and spec.loader is not None
        root = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = root
        spec.loader.exec_module(root)
    return importlib.import_module(f"{NAME}.{module}")


def loaded(name: str = "base") -> tuple[Any, Any, Any]:
    with torch.inference_mode():
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
            str(WORK / f"{name}.safetensors"), embedding_directory=[str(EMBEDDINGS)]
        )
    return model, clip, vae


def backbone(model: Any, clip: Any, vae: Any) -> Any:
    return pack("nodes.bridge").training_backbone(model, clip, vae, "fp32")


def some_state(fingerprint: str, token: str = "my_dog", seed: int = 0) -> Any:
    """A state with random weights, as a lesson would leave it."""
    generator = torch.Generator().manual_seed(seed)
    spec = pack("lifelong_core.adapters.spec").AdapterSpec(rank=4, alpha=4.0)
    unet = pack("lifelong_core.backbone.modules").empty_unet(
        pack("lifelong_core.backbone").family_named("demo")
    )
    adapter = {}
    for path, module in unet.named_modules():
        if path.endswith(TARGETS):
            adapter[f"unet.{path}.down"] = torch.randn(4, module.in_features, generator=generator)
            adapter[f"unet.{path}.up"] = torch.randn(module.out_features, 4, generator=generator)
    vectors = {"clip_l": torch.randn(2, 128, generator=generator)}
    concept = pack("lifelong_core.concepts").Concept(token, "dog", vectors)
    states = pack("lifelong_core.state")
    record = states.TaskRecord(concept, "hash", adapter, {}, {})
    return states.LifelongState("demo", fingerprint, spec, adapter, (record,))


def foreign_lora(model: Any, scale: float = 0.1) -> Any:
    """A clone of MODEL with another node's LoRA on a layer that lessons do not touch."""
    layer = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(9)
    lora = {
        f"{layer}.lora_A.weight": torch.randn(4, 64, generator=generator) * scale,
        f"{layer}.lora_B.weight": torch.randn(64, 4, generator=generator) * scale,
    }
    return comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]


def output(model: Any) -> torch.Tensor:
    """ComfyUI's own UNet on fixed inputs, with the patches of `model` loaded."""
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model], force_full_load=True)
        latents, timesteps, context = inputs()
        return model.model.diffusion_model(
            latents, timesteps.float(), context=context, transformer_options={}
        ).clone()


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 16, 16, generator=generator)
    return latents, torch.tensor([10, 700]), torch.randn(2, 77, 128, generator=generator)


def refused(kind: str, words: str, call: Callable[[], Any]) -> None:
    error_type = getattr(pack("lifelong_core.errors"), kind)
    try:
        call()
    except error_type as error:
        assert words in str(error), f"{words!r} is not in {error}"
    else:
        raise AssertionError(f"not refused: {words}")


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


def meta_model(family: str) -> tuple[Any, Any]:
    """ComfyUI's MODEL and text encoders of a family, without memory."""
    shapes = pack("lifelong_core.backbone.modules").unet_shapes(family)
    names = pack("lifelong_core.backbone.keys").unet_diffusers_to_ldm(family)
    unet = {names[key]: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    if family == "demo":
        unet[pack("nodes.demo_model").MARKER] = torch.empty(1)
    config = comfy.model_detection.model_config_from_unet(unet, "")
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(config, device=torch.device("meta"))
    text = config.clip_target({}).clip(device="meta", dtype=torch.float16, model_options={})
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu")), text


def check_a_state_is_put_on_and_taken_off() -> None:
    model, clip, vae = loaded()
    patching = pack("nodes.patching")
    plain = output(model)
    styled = foreign_lora(model)
    with_style = output(styled)
    first, second = some_state("x"), some_state("x", token="my_cat", seed=1)
    taught, reader = patching.apply_state(styled, clip, first)
    assert patching.applied_tokens(taught) == patching.applied_tokens(reader) == ("my_dog",)
    learned = output(taught)
    assert float((learned - with_style).norm() / with_style.norm()) > 1e-3
    again, other_reader = patching.apply_state(*patching.apply_state(taught, reader, first), second)
    only_second = output(again)
    assert torch.equal(only_second, output(patching.apply_state(styled, clip, second)[0]))
    assert tokens(other_reader, "embedding:my_cat") and not tokens(other_reader, "embedding:my_dog")
    assert torch.equal(output(patching.remove_state(taught)), with_style)
    assert patching.remove_state(reader).tokenizer is clip.tokenizer
    assert torch.equal(output(model), plain)
    assert patching.applied_tokens(model) == patching.applied_tokens(clip) == ()
    assert not tokens(clip, "embedding:my_dog")


def check_a_lora_added_after_a_state_stays() -> None:
    model, clip, _ = loaded()
    patching = pack("nodes.patching")
    taught, _ = patching.apply_state(model, clip, some_state("x"))
    styled = foreign_lora(taught)
    assert torch.equal(output(patching.remove_state(styled)), output(foreign_lora(model)))


def check_states_that_do_not_fit_are_refused() -> None:
    model, clip, _ = loaded()
    patching = pack("nodes.patching")
    state = some_state("x")
    apply_state = pack("nodes.state_nodes").ApplyLifelongState.execute
    refused("StateError", "fingerprint", lambda: apply_state(model, clip, state))
    blind = clip.clone()
    blind.tokenizer = type("Tokenizer", (), {})()
    refused("ModelError", "no text encoder", lambda: patching.apply_state(model, blind, state))


def check_tokens_in_memory_are_read_as_embedding_files_are() -> None:
    _, clip, _ = loaded()
    state = some_state("x")
    vectors = state.vectors["my_dog"]["clip_l"]
    EMBEDDINGS.mkdir(exist_ok=True)
    save_file({"emb_params": vectors.clone()}, EMBEDDINGS / "on_disk.safetensors")
    model, _, _ = loaded()
    _, reader = pack("nodes.patching").apply_state(model, clip, state)
    for prompt in (
        "a photo of embedding:NAME dog",
        "embedding:NAME",
        "embedding:NAME, on the beach",
        "embedding:NAME,",
        "a (embedding:NAME:1.3) and (embedding:NAME dog:0.7) at night",
        "embedding:NAME<cat> embedding:NAME[x] y",
        "embedding:NAME. dog",
        "embedding:NAMEX dog",
        "word " * 74 + "embedding:NAME dog " + "word " * 80,
    ):
        in_memory = reader.tokenize(prompt.replace("NAME", "my_dog"))["l"]
        on_disk = clip.tokenize(prompt.replace("NAME", "on_disk"))["l"]
        assert same_tokens(in_memory, on_disk), prompt
    for plain_text in ("a,embedding:my_dog dog", "Embedding:my_dog dog"):
        assert not tokens(reader, plain_text)
    reader_of_both = reader.tokenize("embedding:my_dog embedding:on_disk")["l"]
    assert sum(torch.is_tensor(token) for token, _ in reader_of_both[0]) == 4


def check_widgets_at_their_defaults_are_the_librarys_settings() -> None:
    values = pack("nodes.consolidation_values")
    defaults_for = pack("lifelong_core.consolidation").consolidation_defaults
    inputs = pack("nodes.consolidation_schema").consolidation_inputs()
    apart = {"phases", "classifier_terms", "captions"}
    widgets = {
        one.id: one.default
        for one in inputs
        if getattr(one, "default", None) is not None and one.id not in apart
    }
    for family in pack("lifelong_core.backbone").FAMILIES:
        usual = defaults_for(family)
        assert values.consolidation_settings(usual, **widgets) == usual, family
        assert values.consolidation_settings(usual) == usual, family
    changed = values.consolidation_settings(defaults_for("sd1"), batch_size=2, subset=3, seed=9)
    assert (changed.batch_size, changed.subset, changed.seed) == (2, 3, 9)
    names = [phase.name for phase in values.chosen_phases("DSC, then Fisher", True)]
    plain = [phase.name for phase in values.chosen_phases("DSC, then Fisher", False)]
    assert len(names) == len(plain) == 2 and not set(names) & set(plain)


def check_what_methods_fix_holds_for_every_lesson() -> None:
    values = pack("nodes.lesson_values")
    library = pack("lifelong_core.methods")
    defaults = pack("lifelong_core.lesson").defaults_for("demo")
    assert set(values.LESSON_METHODS) <= set(library.METHODS)
    full = values.usual_settings("demo", None, "custom_diffusion")
    assert full.adapter.kind == "key_value" and full.learning_rate < defaults.learning_rate
    state = some_state("x")
    settings = values.usual_settings("demo", state, "ewc")
    assert settings.adapter == state.adapter_spec
    assert settings.learning_rate == defaults.learning_rate
    firm = values.lesson_settings(settings, ewc_weight=0.0, learning_rate=0.25)
    assert (firm.ewc_weight, firm.learning_rate) == (0.0, 0.25)
    assert values.lesson_settings(settings) == settings


def check_one_model_cannot_hold_hard_routing() -> None:
    model, clip, _ = loaded()
    patching = pack("nodes.patching")
    replace = importlib.import_module("dataclasses").replace
    (record,) = some_state("x").records
    routed = replace(record, settings={"method": "hard_routing"})
    state = replace(some_state("x"), records=(routed,))
    refused("InputError", "hard_routing", lambda: patching.apply_state(model, clip, state))


def check_a_merge_draws_with_the_mean_of_its_lessons() -> None:
    patching, sharing = pack("nodes.patching"), pack("lifelong_core.sharing.lora")
    methods = pack("lifelong_core.methods")
    replace = importlib.import_module("dataclasses").replace
    one, other = some_state("x"), some_state("x", token="my_cat", seed=1)
    records = [
        replace(record, settings={"method": "lora_merge"})
        for record in (*one.records, *other.records)
    ]
    both = replace(one, adapter=other.adapter, records=records)
    first, second, merged = (
        sharing.lora_state_dict(state) for state in (one, other, methods.any_prompt_state(both))
    )
    for key in (key for key in merged if key.endswith(".alpha")):
        layer = key.removesuffix(".alpha")
        mean = (lora_change(first, layer) + lora_change(second, layer)) / 2
        # The lessons are kept in fp16.
        assert float((lora_change(merged, layer) - mean).norm() / mean.norm()) < 1e-3
    model, clip, _ = loaded()
    drawing, reader = patching.apply_state(model, clip, both)
    assert patching.applied_tokens(drawing) == ("my_dog", "my_cat")
    assert tokens(reader, "embedding:my_dog") and tokens(reader, "embedding:my_cat")


def lora_change(lora: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
    down, up = lora[f"{layer}.lora_down.weight"], lora[f"{layer}.lora_up.weight"]
    return lora[f"{layer}.alpha"] / len(down) * (up @ down)


def check_a_report_shows_one_lesson_and_many() -> None:
    pages, review = pack("nodes.report_pages"), pack("lifelong_core.review")
    replace = importlib.import_module("dataclasses").replace
    for count in (1, 12):
        (record,) = some_state("x").records
        records = [
            replace(
                record,
                concept=replace(record.concept, token=f"toy_{number}"),
                metrics={"loss": [1.0] * number, "seconds": 1.0},
            )
            for number in range(count)
        ]
        state = replace(some_state("x"), records=records)
        lessons = review.kept_lessons(state, 10)
        picture = torch.rand(2, 3, 64, 64)
        looks = {lesson: review.Looks(picture, picture, picture) for lesson in lessons}
        kept = {(after, n): 1.5 - after / 2 for after in lessons for n in lessons if n <= after}
        told = review.Review(looks, kept)
        drift = review.weight_drift(state, lessons)
        for seen in (None, told):
            page = pages.plots(state, lessons, drift, seen)
            assert page.shape[0] == 1 and page.shape[-1] == 3 and 0 <= page.min() <= page.max() <= 1
        sheet = pages.picture_sheet(state, told)
        assert sheet.shape[1] > 64 * len(lessons) and sheet.shape[2] > 3 * 128
        text = pages.text_report(state, lessons, drift, told)
        assert all(f"embedding:toy_{number} dog" in text for number in range(count))


def tokens(clip: Any, prompt: str) -> int:
    """How many of the prompt's tokens are embeddings."""
    return sum(torch.is_tensor(token) for token, _ in clip.tokenize(prompt)["l"][0])


def same_tokens(left: Any, right: Any) -> bool:
    def plain(chunks: Any) -> Any:
        return [
            [(token.tolist() if torch.is_tensor(token) else token, w) for token, w in chunk]
            for chunk in chunks
        ]

    return plain(left) == plain(right)


def main(names: Mapping[str, Any]) -> None:
    """Run the check_… functions among `names`, a script's globals."""
    pack("nodes.demo_model").register_demo_model()
    results = {}
    checks = {key: value for key, value in names.items() if key.startswith("check_")}
    for name, check in checks.items():
        try:
            check()
            results[name] = ""
        except BaseException:
            results[name] = traceback.format_exc()
    (WORK / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(globals())
