"""diffusers loads the exported files, every layer, and adds the same to the weights."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.schedulers import DDIMScheduler
from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from lifelong_core.adapters.spec import AdapterSpec
from lifelong_core.backbone.families import FAMILIES
from lifelong_core.backbone.modules import empty_unet
from lifelong_core.files import load_tensors
from lifelong_core.sharing import ExportInfo, export_lora, lora_state_dict
from lifelong_core.sharing.naming import layer_names, layers

ORIGINAL = re.compile(r"lora_unet_(input|middle|output)_block")
SPEC = AdapterSpec(rank=4, alpha=2.0, text_encoder=True)
FULL = AdapterSpec("key_value")


def demo_pipeline() -> StableDiffusionPipeline:
    family = FAMILIES["demo"]
    unet = empty_unet(family).to_empty(device="cpu")
    for parameter in unet.parameters():
        torch.nn.init.constant_(parameter, 0.01)
    clip = family.text[0]
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=clip.width,
            intermediate_size=clip.intermediate,
            num_hidden_layers=clip.layers,
            num_attention_heads=clip.heads,
        )
    )
    return StableDiffusionPipeline(
        vae=AutoencoderKL(), text_encoder=text, tokenizer=None, unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def added_by(pipe: StableDiffusionPipeline) -> dict[str, Tensor]:
    """What the loaded LoRA adds to each layer, by our names of the layers."""
    found = {}
    for place, module in (("unet", pipe.unet), ("text.clip_l", pipe.text_encoder)):
        for path, layer in module.named_modules():
            if hasattr(layer, "lora_A"):
                (adapter,) = layer.lora_A
                # transformers 5 leaves "text_model." out of its module paths.
                if place != "unet":
                    path = f"text_model.{path.removeprefix('text_model.')}"
                found[f"{place}.{path}"] = layer.get_delta_weight(adapter)
    return found


@pytest.mark.parametrize(
    ("spec", "bundle"),
    [(SPEC, False), (SPEC, True), (AdapterSpec("vera", rank=8), False), (FULL, False)],
    ids=["lora", "bundled", "vera", "key_value"],
)
def test_pipeline_loads_every_layer_with_its_delta(
    make_state, changes, tmp_path: Path, spec: AdapterSpec, bundle: bool
) -> None:
    state = make_state(spec=spec)
    info = ExportInfo("v_prediction")
    options = {"bundle": True} if bundle else {}
    path = export_lora(state, tmp_path, tmp_path / "e", "x", info=info, **options).lora
    pipe = demo_pipeline()
    if bundle:
        tensors, _ = load_tensors(path)
        layers_only = {key: value for key, value in tensors.items() if key.startswith("lora_")}
        assert len(layers_only) < len(tensors)
        pipe.load_lora_weights(layers_only)
    else:
        pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    found = added_by(pipe)
    expected = changes(state)
    assert found.keys() == expected.keys()
    for layer, delta in found.items():
        assert torch.allclose(delta, expected[layer], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_conversion_finds_every_layer_of_every_family(make_state, family: str) -> None:
    targets = ("attn1.to_q", "attn1.to_out.0", "attn2.to_k")
    state = make_state(family, AdapterSpec(rank=1, alpha=3.0, targets=targets, text_encoder=True))
    loader = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    config = empty_unet(FAMILIES[family]).config
    converted, alphas = loader.lora_state_dict(lora_state_dict(state), unet_config=config)
    encoders = [text.key for text in FAMILIES[family].text]
    found = set()
    places = {
        "unet": "unet.",
        **dict(zip(encoders, ("text_encoder.", "text_encoder_2."), strict=False)),
    }
    for place, prefix in places.items():
        name = place if place == "unet" else f"text.{place}"
        part = {
            key.removeprefix(prefix): value
            for key, value in converted.items()
            if key.startswith(prefix)
        }
        convert = convert_unet_state_dict_to_peft if place == "unet" else convert_state_dict_to_peft
        keys = convert(part)
        found |= {f"{name}.{re.sub(r'[.]lora_[AB][.]weight$', '', key)}" for key in keys}
    assert found == {key.rsplit(".", 1)[0] for key in state.adapter} <= set(layers(family))
    assert len(alphas) == len(found) and set(alphas.values()) == {3.0}


def test_original_names_of_sdxl_mean_to_diffusers_what_they_mean_to_us() -> None:
    """Our table of block names against diffusers' own conversion of them."""
    config = empty_unet(FAMILIES["sdxl"]).config
    converted = []
    for original in (True, False):
        names = {
            layer: name
            for name, layer in layer_names("sdxl").items()
            if layer.startswith("unet.") and original == bool(ORIGINAL.match(name))
        }
        tensors = {}
        for number, layer in enumerate(sorted(names)):
            for part in ("lora_down", "lora_up"):
                tensors[f"{names[layer]}.{part}.weight"] = torch.tensor(float(number))
        state, _ = StableDiffusionXLPipeline.lora_state_dict(tensors, unet_config=config)
        converted.append({key: float(value) for key, value in state.items()})
    assert len(converted[0]) == 2 * 70 * 8
    assert converted[0] == converted[1]
