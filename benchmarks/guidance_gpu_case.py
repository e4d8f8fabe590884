"""Runs inside ComfyUI's own process: pictures without, with and again without attention guidance.

python guidance_gpu_case.py COMFYUI PACK CASE: CASE is `guidance_gpu`'s Case as JSON. Writes the
gradient of every guided step and the guided latent to its `answer`, and one line of JSON.

ComfyUI is set up as its main.py does it, in that order: comfy-aimdo must be there before torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

COMFYUI, PACK = (Path(argument).resolve() for argument in sys.argv[1:3])
CASE = json.loads(sys.argv[3])
sys.path.insert(0, str(COMFYUI))
sys.argv = [sys.argv[0], *CASE["options"]]
logging.basicConfig(level=logging.INFO)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy_aimdo.control  # noqa: E402
from comfy.cli_args import args, enables_dynamic_vram  # noqa: E402

if enables_dynamic_vram():
    comfy_aimdo.control.init(nvml_pressure=not args.disable_nvml_pressure)

import cuda_malloc  # noqa: E402, F401

assert "torch" not in sys.modules

import comfy.memory_management  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.model_prefetch  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

# ComfyUI's top-level module; the pack's has the same name.
from nodes import CLIPTextEncode, KSampler  # type: ignore[attr-defined]  # noqa: E402

NAME = str(PACK)  # ComfyUI gives a pack its path as name.
MIB = 2**20
CPU = torch.device("cpu")
ON_GPU = not args.cpu


def start_dynamic_loading() -> None:
    """What main.py does once the device is known."""
    management = comfy.model_management
    if not (enables_dynamic_vram() and management.is_nvidia() and not management.is_wsl()):
        return
    devices = [(device.index, 0) for device in management.get_all_torch_devices()]
    if comfy_aimdo.control.init_devices(devices):
        comfy_aimdo.control.set_log_info()
        comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
        comfy.memory_management.aimdo_enabled = True


def make_deterministic() -> None:
    """ComfyUI's own option for this would also copy weights without overlap, which hides races."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def node_ended() -> None:
    """What ComfyUI does behind every node of a workflow."""
    if comfy.memory_management.aimdo_enabled:
        import comfy_aimdo.model_vbar

        comfy.model_management.reset_cast_buffers()
        comfy.model_prefetch.cleanup_prefetch_queues()
        comfy_aimdo.model_vbar.vbars_reset_watermark_limits()


def ballast() -> torch.Tensor | None:
    """Takes all of the GPU's memory but the case's room."""
    if not ON_GPU or CASE["room_mib"] is None:
        return None
    device = comfy.model_management.get_torch_device()
    free, _ = torch.cuda.mem_get_info(device)
    return torch.empty(free - CASE["room_mib"] * MIB, dtype=torch.uint8, device=device)


def pack(module: str) -> Any:
    """A module of this pack, imported as ComfyUI would."""
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(NAME, PACK / "__init__.py")
        assert spec is not None and spec.loader is not None
        root = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = root
        spec.loader.exec_module(root)
    return importlib.import_module(f"{NAME}.{module}")


class Pictures:
    """The model, and one prompt to draw with it."""

    def __init__(self) -> None:
        pack("nodes.demo_model").register_demo_model()
        # On the CPU in every case, so that all draw from the very same numbers.
        text_options = {"load_device": CPU, "offload_device": CPU}
        self.model, self.clip, *_ = comfy.sd.load_checkpoint_guess_config(
            CASE["checkpoint"], output_vae=False, te_model_options=text_options
        )
        encode = CLIPTextEncode().encode
        self.positive = encode(self.clip, CASE["prompt"])[0]
        self.negative = encode(self.clip, "")[0]
        node_ended()

    def plain(self) -> torch.Tensor:
        """The latent of the stock KSampler."""
        found = KSampler().sample(**self._sampling())
        node_ended()
        return found[0]["samples"].clone()

    def guided(self) -> torch.Tensor:
        """That of the Concept Attention Artist Sampler."""
        node = pack("nodes.concept_attention_artist_sampler").ConceptAttentionArtistSampler
        found = node.execute(
            **self._sampling(),
            clip=self.clip,
            prompt=CASE["prompt"],
            concepts=CASE["concepts"],
            caa_strength=CASE["strength"],
            oaa_strength=CASE["strength"],
            threshold=0.4,
            guided_fraction=0.5,
            maps="average",
        )
        node_ended()
        return found.result[0]["samples"].clone()

    def resident_mib(self) -> float:
        """Weights of the given MODEL that are in the GPU's memory now."""
        return round(self.model.loaded_size() / MIB, 1)

    def _sampling(self) -> dict[str, Any]:
        side = CASE["side"]
        return {
            "model": self.model,
            "seed": 1,
            "steps": CASE["steps"],
            "cfg": 4.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "positive": self.positive,
            "negative": self.negative,
            "latent_image": {"samples": torch.zeros(1, 4, side, side)},
            "denoise": 1.0,
        }


def guided_with_gradients(pictures: Pictures) -> dict[str, torch.Tensor]:
    """The guided latent and the gradient of every guided step."""
    module = pack("lifelong_core.attention.guidance")
    compute, gradients = module._gradient, []

    def noting(*arguments: Any) -> Any:
        found = compute(*arguments)
        gradients.append(found.gradient)  # Not copied to the CPU yet: waiting would hide races.
        return found

    with ExitStack() as stack:
        stack.enter_context(patch.object(module, "_gradient", noting))
        if not CASE["guarded"]:
            dynamic = comfy.model_patcher.ModelPatcherDynamic
            stack.enter_context(patch.object(dynamic, "get_non_dynamic_delegate", dynamic.clone))
        latent = pictures.guided()
    tensors = {f"gradient_{step}": gradient for step, gradient in enumerate(gradients)}
    return {
        name: value.cpu().contiguous() for name, value in ({"latent": latent} | tensors).items()
    }


def peak_mib(taken: torch.Tensor | None) -> float | None:
    """Tensors in the GPU's memory at the peak, without the ballast."""
    if not ON_GPU:
        return None
    own = 0 if taken is None else taken.numel()
    return round((torch.cuda.max_memory_allocated() - own) / MIB, 1)


def main() -> None:
    start_dynamic_loading()
    make_deterministic()
    with torch.inference_mode():  # as in ComfyUI's server
        taken = ballast()
        pictures = Pictures()
        before = pictures.plain()
        resident = [pictures.resident_mib()]
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats()
        found = guided_with_gradients(pictures)
        resident.append(pictures.resident_mib())
        peak = peak_mib(taken)
        after = pictures.plain()
    save_file(found, CASE["answer"])
    told = {
        "dynamic": pictures.model.is_dynamic(),
        "plain_unchanged": torch.equal(before, after),
        "peak_mib": peak,
        "resident_mib": resident,
        "dtype": str(pictures.model.model.get_dtype()).removeprefix("torch."),
    }
    print(json.dumps(told), flush=True)
    os._exit(0)  # What aimdo holds need not be taken apart in any order.


main()
