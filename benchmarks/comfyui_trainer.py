"""ComfyUI's TrainLoraNode in a process of its own, and its time per step."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.child import Child
from benchmarks.speed_data import BATCH, PRIOR_BATCH
from lifelong_core.files import save_tensors
from lifelong_core.launch import comfyui
from lifelong_core.launch.paths import ROOT

SCRIPT = Path(__file__).with_name("comfyui_train.py")


class ComfyTrainer(Child):
    """Use it as a context manager; inside, the process waits to be asked for steps.

    weights: ComfyUI's name of every weight that it trains -> its shape.
    """

    def __init__(
        self, checkpoint: Path, latents: Tensor, context: Tensor, *, rank: int, threads: int
    ) -> None:
        self._data = {"latents": latents, "context": context}
        self._numbers = (threads, rank, BATCH + PRIOR_BATCH)
        self._checkpoint = checkpoint
        self.weights: dict[str, list[int]] = {}
        super().__init__("ComfyUI's training")

    def command(self, folder: Path) -> list[str]:
        """With the data that it trains on in `folder`."""
        data = save_tensors(folder / "data.safetensors", self._data)
        return [
            *(sys.executable, str(SCRIPT), str(comfyui.require().path), str(ROOT)),
            *(str(self._checkpoint), str(data), *(str(number) for number in self._numbers)),
        ]

    def __enter__(self) -> ComfyTrainer:
        super().__enter__()
        self.weights = self.ready.pop("weights")
        return self

    def run(self, way: str, steps: int) -> dict[str, Any]:
        """Train for one step that does not count and `steps` that do: seconds of each by the clock
        ("wall") and of the processor ("cpu"), and the "rows" of the UNet's batches per step."""
        return self.ask(json.dumps({"way": way, "steps": steps + 1}))


def weights_in(weights: dict[str, list[int]]) -> int:
    """Number of values in tensors of these shapes."""
    return sum(torch.Size(shape).numel() for shape in weights.values())
