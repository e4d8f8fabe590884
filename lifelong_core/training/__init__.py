"""The one training loop, and what it is fed with."""

from .batches import Batches, Pictures
from .loop import Hook, TrainPlan, train
from .optimizer import ParameterGroup
from .progress import Progress, ProgressCallback
from .session import Session, Snapshot

__all__ = [
    "Batches",
    "Hook",
    "ParameterGroup",
    "Pictures",
    "Progress",
    "ProgressCallback",
    "Session",
    "Snapshot",
    "TrainPlan",
    "train",
]
