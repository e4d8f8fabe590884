"""Runs inside ComfyUI's own process: what its LoRA and embedding loaders find in our files.

python lora_keys.py COMFYUI PACK WORK: reads WORK/shapes.json (family -> UNet key -> shape),
WORK/widths.json (family -> text encoder -> width), WORK/<family>_*.safetensors and
WORK/embeddings/<family>; writes WORK/report.json, what the demo's layers get added, and the
embedding of each text encoder.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from pathlib import Path

COMFYUI, PACK, WORK = (Path(argument).resolve() for argument in sys.argv[1:4])
sys.path.insert(0, str(COMFYUI))
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.lora  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


def register_demo_model() -> str:
    spec = importlib.util.spec_from_file_location("demo_model", PACK / "nodes" / "demo_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.register_demo_model()
    return module.MARKER


def key_map(shapes: dict[str, list[int]]) -> tuple[dict[str, str], dict[str, list[int]]]:
    """ComfyUI's name table for a model with these UNet weights, and its weights' shapes."""
    unet = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    config = comfy.model_detection.model_config_from_unet(unet, "")
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(config, device=torch.device("meta"))
    clip = config.clip_target({}).clip(device="meta", dtype=torch.float16, model_options={})
    names = comfy.lora.model_lora_keys_unet(model, {})
    names = comfy.lora.model_lora_keys_clip(clip, names)
    weights = {**model.state_dict(), **clip.state_dict()}
    return names, {key: list(value.shape) for key, value in weights.items()}


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def main() -> None:
    marker = register_demo_model()
    report = {}
    for family, shapes in json.loads((WORK / "shapes.json").read_text(encoding="utf-8")).items():
        names, weights = key_map(shapes | ({marker: [1]} if family == "demo" else {}))
        for path in sorted(WORK.glob(f"{family}_*.safetensors")):
            warnings = Warnings()
            logging.getLogger().addHandler(warnings)
            patches = comfy.lora.load_lora(comfy.utils.load_torch_file(str(path)), names)
            logging.getLogger().removeHandler(warnings)
            report[path.name] = {"warnings": warnings.messages, "patched": {}}
            for key, patch in patches.items():
                if isinstance(patch, tuple):  # A whole change: ("diff", (tensor,)).
                    shape = list(patch[1][0].shape)
                else:
                    up, down = patch.weights[:2]
                    shape = [up.shape[0], down.shape[1]]
                report[path.name]["patched"][key] = shape == weights[key]
            if family == "demo" and not any(isinstance(p, tuple) for p in patches.values()):
                added = {
                    key: patch.calculate_weight(
                        torch.zeros(weights[key]), key, 1.0, 1.0, None, lambda value: value
                    )
                    for key, patch in patches.items()
                }
                save_file(added, WORK / f"added.{path.name}")
    for family, widths in json.loads((WORK / "widths.json").read_text(encoding="utf-8")).items():
        folder = str(WORK / "embeddings" / family)
        read = {
            encoder: comfy.sd1_clip.load_embed("sks-1", folder, width, encoder)
            for encoder, width in widths.items()
        }
        save_file(read, WORK / f"embeddings.{family}.safetensors")
    (WORK / "report.json").write_text(json.dumps(report), encoding="utf-8")


main()
