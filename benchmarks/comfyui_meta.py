"""Runs inside ComfyUI's own process: its LoRA loading on a model without memory for weights.

python comfyui_meta.py COMFYUI WORK LORA: reads WORK/shapes.json (UNet key -> shape) and WORK/LORA;
writes WORK/report.json: the layers whose change has the shape of their weight, and the warnings.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

COMFYUI, WORK = (Path(argument).resolve() for argument in sys.argv[1:3])
LORA = WORK / sys.argv[3]
sys.path.insert(0, str(COMFYUI))
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_base  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402


class Warnings(logging.Handler):
    """Keeps what is logged as a warning or worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def main() -> None:
    shapes = json.loads((WORK / "shapes.json").read_text(encoding="utf-8"))
    weights = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    config = comfy.model_detection.model_config_from_unet(weights, "")
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(config, device=torch.device("meta"))
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
    warnings = Warnings()
    logging.getLogger().addHandler(warnings)
    lora = comfy.utils.load_torch_file(str(LORA))
    patched, _ = comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 0.0)
    fitting = 0
    for key, ((_, patch, *_),) in patched.patches.items():
        up, down = patch.weights[:2]
        fitting += (up.shape[0], down.shape[1]) == comfy.utils.get_attr(model, key).shape
    report = {"model": type(config).__name__, "fitting": fitting, "warnings": warnings.messages}
    (WORK / "report.json").write_text(json.dumps(report), encoding="utf-8")


main()
