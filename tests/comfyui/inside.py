"""Sets ComfyUI up in a process of its own, for the scripts …_inside.py; see run_scripts.py."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
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


def tokens(clip: Any, prompt: str) -> int:
    """How many of the prompt's tokens are embeddings."""
    return sum(torch.is_tensor(token) for token, _ in clip.tokenize(prompt)["l"][0])
