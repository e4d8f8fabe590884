"""Runs inside ComfyUI's own process: what ComfyUI computes from a demo checkpoint.

python reference.py COMFYUI PACK WORK: reads WORK/{model.safetensors, inputs.safetensors,
prompts.json}, WORK/embeddings and WORK/loras, writes WORK/outputs.safetensors.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

COMFYUI, PACK, WORK = (Path(argument).resolve() for argument in sys.argv[1:4])
sys.path.insert(0, str(COMFYUI))
sys.argv = [sys.argv[0], "--cpu", "--fp32-text-enc"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


def register_demo_model() -> None:
    spec = importlib.util.spec_from_file_location("demo_model", PACK / "nodes" / "demo_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.register_demo_model()


def main() -> None:
    register_demo_model()
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
        str(WORK / "model.safetensors"), embedding_directory=[str(WORK / "embeddings")]
    )
    inputs = load_file(WORK / "inputs.safetensors")
    prompts = json.loads((WORK / "prompts.json").read_text(encoding="utf-8"))
    outputs = {}
    for number, prompt in enumerate(prompts):
        tokens = clip.tokenize(prompt)
        outputs[f"context.{number}"] = clip.encode_from_tokens(tokens)
    unet = model.model.diffusion_model
    context = outputs["context.0"].expand(len(inputs["latents"]), -1, -1)
    outputs["unet"] = unet(
        inputs["latents"], inputs["timesteps"], context=context, transformer_options={}
    )
    sampling = model.get_model_object("model_sampling")
    sigmas = sampling.sigma(inputs["timesteps"])
    scaled = inputs["latents"] * (1 + sigmas[:, None, None, None] ** 2) ** 0.5
    outputs["x0"] = model.model.apply_model(
        scaled, sigmas, c_crossattn=context, transformer_options={}
    )
    outputs["images"] = vae.decode(model.model.process_latent_out(inputs["latents"]))
    outputs["encoded"] = model.model.process_latent_in(vae.encode(inputs["images"]))
    for path in sorted((WORK / "loras").glob("*.safetensors")):
        lora = comfy.utils.load_torch_file(str(path))
        taught, reader = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)
        context = reader.encode_from_tokens(reader.tokenize(prompts[0]))
        comfy.model_management.load_models_gpu([taught], force_full_load=True)
        outputs[f"context.{path.stem}"] = context
        outputs[f"unet.{path.stem}"] = taught.model.diffusion_model(
            inputs["latents"],
            inputs["timesteps"],
            context=context.expand(len(inputs["latents"]), -1, -1),
            transformer_options={},
        )
    plain = {key: value.detach().float().contiguous().clone() for key, value in outputs.items()}
    save_file(plain, WORK / "outputs.safetensors")


with torch.inference_mode():
    main()
