"""Runs inside ComfyUI's own process: its TrainLoraNode, as often as the other side asks.

python comfyui_train.py COMFYUI PACK CHECKPOINT DATA THREADS RANK BATCH: DATA holds "latents"
[n, 4, h, w] in model scale and "context" [n, 77, width]. Writes one line of JSON when it is ready,
with the names and shapes of all trained weights; then reads lines {"way": …, "steps": …} and
answers each with {"wall": […], "cpu": […], "rows": …}: seconds of every step but the first, and
the rows that the UNet ran on per step.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

COMFYUI, PACK, CHECKPOINT, DATA = (Path(argument).resolve() for argument in sys.argv[1:5])
THREADS, RANK, BATCH = (int(argument) for argument in sys.argv[5:8])
sys.path.insert(0, str(COMFYUI))
sys.argv = [sys.argv[0], "--cpu"]
ANSWERS = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)  # What ComfyUI prints must not get between the answers.

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.modules.attention import optimized_attention  # noqa: E402
from comfy_extras.nodes_train import TrainLoraNode  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

SETTINGS = {
    "learning_rate": 1e-3,
    "rank": RANK,
    "optimizer": "AdamW",
    "loss_function": "MSE",
    "seed": 0,
    "training_dtype": "fp32",
    "lora_dtype": "fp32",
    "quantized_backward": False,
    "algorithm": "LoRA",
    "gradient_checkpointing": False,
    "checkpoint_depth": 1,
    "offloading": False,
    "existing_lora": "[None]",
    "bucket_mode": False,
    "bypass_mode": False,
}
NEVER = {"start_percent": 1.0, "end_percent": 1.0}


class Trainer:
    """The demo model in ComfyUI's hands, and clocks at the end of each of its training steps."""

    def __init__(self) -> None:
        with torch.inference_mode():  # as in ComfyUI's server
            self.model, *_ = comfy.sd.load_checkpoint_guess_config(str(CHECKPOINT))
        data = load_file(DATA)
        self.latents = self.model.model.process_latent_out(data["latents"])
        self.contexts = list(data["context"].split(1))
        self.marks: list[tuple[float, float]] = []
        comfy.utils.set_progress_bar_global_hook(self._step_ended)
        self.rows = 0
        self._count_rows(type(self.model.model.diffusion_model))

    def run(self, way: str, steps: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Train for `steps` steps on `BATCH` pictures each: what it took, and the weights."""
        self.marks, self.rows = [], 0
        latents, prompts, batch, accumulation = self._ways(way)
        settings = {
            **SETTINGS,
            "batch_size": batch,
            "grad_accumulation_steps": accumulation,
            "steps": steps,
        }
        lora = TrainLoraNode.execute(
            model=[self.model],
            latents=[{"samples": latents}],
            positive=[prompts],
            **{name: [value] for name, value in settings.items()},
        ).args[0]
        ends = self.marks[accumulation - 1 :: accumulation]
        spans = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(ends, ends[1:], strict=False)]
        took = {
            "wall": [wall for wall, _ in spans],
            "cpu": [cpu for _, cpu in spans],
            "rows": self.rows / steps,
        }
        return took, lora

    def _ways(self, way: str) -> tuple[torch.Tensor, list[Any], int, int]:
        """Latents, conditioning, batch size and accumulation of a way to train on BATCH pictures.

        The node runs every picture of a batch with the prompts of all its pictures. "batch" leaves
        it at that; "accumulated" takes batches of one picture; "one_prompt" silences all prompts
        but one, so that every picture runs once, which is the least that the node can do.
        """
        prompts: list[Any] = [[context, {}] for context in self.contexts]
        if way == "batch":
            return self.latents, prompts, BATCH, 1
        if way == "accumulated":
            return self.latents, prompts, 1, BATCH
        silent = [[context, dict(NEVER)] for context in self.contexts[1:BATCH]]
        return self.latents[:BATCH], [prompts[0], *silent], BATCH, 1

    def _count_rows(self, unet: Any) -> None:
        """On the class, because the node trains a copy of the model."""
        forward = unet.forward

        def counting(module: Any, latents: torch.Tensor, *args: Any, **keywords: Any) -> Any:
            self.rows += len(latents)
            return forward(module, latents, *args, **keywords)

        unet.forward = counting

    def _step_ended(self, *_args: Any, **_keywords: Any) -> None:
        self.marks.append((time.perf_counter(), time.process_time()))


def register_demo_model() -> None:
    spec = importlib.util.spec_from_file_location("demo_model", PACK / "nodes" / "demo_model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.register_demo_model()


def answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), file=ANSWERS, flush=True)


def main() -> None:
    torch.set_num_threads(THREADS)
    register_demo_model()
    trainer = Trainer()
    _, lora = trainer.run("accumulated", 1)
    answer(
        {
            "weights": {name: list(value.shape) for name, value in lora.items()},
            "dtype": str(trainer.model.model.get_dtype()),
            "attention": optimized_attention.__name__,
        }
    )
    for line in sys.stdin:
        asked = json.loads(line)
        answer(trainer.run(asked["way"], asked["steps"])[0])


main()
