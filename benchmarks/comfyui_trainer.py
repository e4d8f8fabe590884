"""ComfyUI's TrainLoraNode in a process of its own, and its time per step."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed_data import BATCH, PRIOR_BATCH
from lifelong_core.errors import SetupError
from lifelong_core.files import save_tensors
from lifelong_core.launch import comfyui
from lifelong_core.launch.paths import ROOT

SCRIPT = Path(__file__).with_name("comfyui_train.py")
LOG_TAIL = 4000


class ComfyTrainer:
    """Use it as a context manager; inside, the process waits to be asked for steps.

    weights: ComfyUI's name of every weight that it trains -> its shape.
    """

    def __init__(
        self, checkpoint: Path, latents: Tensor, context: Tensor, *, rank: int, threads: int
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        work = Path(self._folder.name)
        data = save_tensors(work / "data.safetensors", {"latents": latents, "context": context})
        self._log = work / "log.txt"
        numbers = (threads, rank, BATCH + PRIOR_BATCH)
        self._command = [
            *(sys.executable, str(SCRIPT), str(comfyui.require().path), str(ROOT)),
            *(str(checkpoint), str(data), *(str(number) for number in numbers)),
        ]
        self._process: subprocess.Popen[str] | None = None
        self.weights: dict[str, list[int]] = {}
        self.about: dict[str, Any] = {}

    def __enter__(self) -> ComfyTrainer:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
            )
        try:
            ready = self._answer()
        except BaseException:
            self._stop()
            raise
        self.weights = ready.pop("weights")
        self.about = ready
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def run(self, way: str, steps: int) -> dict[str, Any]:
        """Train for one step that does not count and `steps` that do: seconds of each by the clock
        ("wall") and of the processor ("cpu"), and the "rows" of the UNet's batches per step."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps({"way": way, "steps": steps + 1}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            log = self._log.read_text(encoding="utf-8", errors="replace")
            raise SetupError(f"ComfyUI's training ended early:\n{log[-LOG_TAIL:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
        self._folder.cleanup()


def weights_in(weights: dict[str, list[int]]) -> int:
    """Number of values in tensors of these shapes."""
    return sum(torch.Size(shape).numel() for shape in weights.values())
