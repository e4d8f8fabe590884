"""Whether ComfyUI finds every layer of our LoRA, without memory for the model's weights."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from lifelong_core.backbone import family_named
from lifelong_core.backbone.keys import unet_diffusers_to_ldm
from lifelong_core.backbone.modules import unet_shapes
from lifelong_core.concepts import Concept
from lifelong_core.errors import SetupError
from lifelong_core.files import load_tensors, read_json, write_json
from lifelong_core.launch import comfyui
from lifelong_core.lesson import defaults_for
from lifelong_core.seeding import generator
from lifelong_core.sharing import ExportInfo, export_lora
from lifelong_core.sharing.naming import layers
from lifelong_core.state import LifelongState, TaskRecord

SCRIPT = Path(__file__).with_name("comfyui_meta.py")


def load_on_meta_device(family: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Export a default lesson's layers with random weights, and load them in ComfyUI's process
    onto its own model of the family on torch's meta device. Returns summary and runs."""
    state = random_state(family)
    info = ExportInfo(family_named(family).default_prediction)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        lora = export_lora(state, work, work / "embeddings", "random", info=info).lora
        names = unet_diffusers_to_ldm(family)
        shapes = {names[key]: list(shape) for key, shape in unet_shapes(family).items()}
        write_json(work / "shapes.json", shapes)
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(comfyui.require().path), str(work), lora.name],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SetupError(f"ComfyUI could not load the LoRA:\n{done.stderr[-4000:]}")
        report = read_json(work / "report.json")
        written = sum(key.endswith(".lora_down.weight") for key in load_tensors(lora)[0])
    summary = {
        "lora_layers_written": written,
        "lora_layers_loaded": report["fitting"],
        "lora_keys_not_loaded": len(report["warnings"]),
    }
    return summary, [{"run": "load on the meta device", **report}]


def random_state(family: str) -> LifelongState:
    """A state as after one lesson with the family's defaults, with random weights."""
    spec = defaults_for(family).adapter
    adapter = {}
    for layer, (out, width) in layers(family).items():
        if layer.startswith("unet.") and layer.endswith(spec.targets):
            random = generator(0, layer)
            adapter[f"{layer}.down"] = torch.randn(spec.rank, width, generator=random)
            adapter[f"{layer}.up"] = torch.randn(out, spec.rank, generator=random)
    vectors = {
        config.key: torch.randn(1, config.width, generator=generator(0, config.key))
        for config in family_named(family).text
    }
    record = TaskRecord(Concept("my_dog", "dog", vectors), "", {}, {}, {})
    return LifelongState(family, f"{family}-random", spec, adapter, (record,))
