"""A training run on disk, from which it goes on as if it had never stopped."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import FileError
from ..files import CHECKSUM, FORMAT, VERSION, content_hash, load_tensors, save_tensors
from .optimizer import ParameterGroup

SESSION_FORMAT = "lifelong_session"
SESSION_VERSION = 1
HEADER = "lifelong.session"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """How far a run has come.

    step: optimiser steps done; losses: [step, columns] fp64, one column per name; seconds: spent
    on these steps. Random draws need no state here: each is made from seed and step.
    """

    step: int
    columns: tuple[str, ...]
    losses: Tensor
    seconds: float


@dataclass(frozen=True)
class Session:
    """Where a run keeps itself. `key` names everything that the run depends on."""

    path: Path
    key: str

    def save(
        self,
        snapshot: Snapshot,
        groups: Sequence[ParameterGroup],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ) -> None:
        """Write parameters, optimiser moments, loss scale and progress. Raises FileError."""
        tensors: dict[str, Tensor] = {"losses": snapshot.losses}
        for group in groups:
            tensors |= {f"parameters/{group.name}/{k}": p for k, p in group.parameters.items()}
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": value for name, value in moments.items()}
        header = json.dumps(
            {
                "key": self.key,
                "step": snapshot.step,
                "columns": snapshot.columns,
                "seconds": snapshot.seconds,
                "scaler": scaler.state_dict(),
            }
        )
        metadata = {
            FORMAT: SESSION_FORMAT,
            VERSION: str(SESSION_VERSION),
            CHECKSUM: content_hash(header, tensors),
            HEADER: header,
        }
        save_tensors(self.path, tensors, metadata)

    def restore(
        self,
        groups: Sequence[ParameterGroup],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ) -> Snapshot | None:
        """Put an earlier run's values back; None, changing nothing, when there is none to use.

        A damaged or foreign file is not an error: the run starts again, and the log says why.
        """
        if not self.path.exists():
            return None
        try:
            tensors, metadata = load_tensors(self.path)
            header = self._checked_header(tensors, metadata)
        except FileError as error:
            logger.warning("Starting the lesson from its beginning: %s", error)
            return None
        for group in groups:
            for name, parameter in group.parameters.items():
                parameter.data.copy_(tensors[f"parameters/{group.name}/{name}"])
        packed = optimizer.state_dict()
        packed["state"] = _moments(tensors)
        optimizer.load_state_dict(packed)
        scaler.load_state_dict(header["scaler"])
        return Snapshot(
            header["step"], tuple(header["columns"]), tensors["losses"], header["seconds"]
        )

    def remove(self) -> None:
        """Delete the file; nothing happens when there is none."""
        self.path.unlink(missing_ok=True)

    def _checked_header(self, tensors: dict[str, Tensor], metadata: dict[str, str]) -> dict:
        text = metadata.get(HEADER, "")
        if (
            metadata.get(FORMAT) != SESSION_FORMAT
            or metadata.get(VERSION) != str(SESSION_VERSION)
            or metadata.get(CHECKSUM) != content_hash(text, tensors)
        ):
            raise FileError(f"{self.path} is damaged or of another version.")
        header = json.loads(text)
        if header["key"] != self.key:
            raise FileError(f"{self.path} belongs to another lesson.")
        return header


def _moments(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/")
            moments.setdefault(int(index), {})[name] = value
    return moments
