"""The small models that come with the package, and where they lie."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..errors import ModelError
from ..files import load_tensors, save_tensors

WEIGHTS = Path(__file__).parent / "weights"


def weights_path(name: str) -> Path:
    """The file of `name` ("demo", "judge", "clip"). Raises ModelError when it is not there."""
    path = WEIGHTS / f"{name}.safetensors"
    if not path.is_file():
        raise ModelError(
            f"The weights of the demo world's {name} ({path.name}) are missing from the package. "
            "Install it again, or make them with 'python -m lifelong_core world pretrain'."
        )
    return path


def read_weights(name: str) -> dict[str, Tensor]:
    """The tensors of `name`, floating point ones as fp32. Raises ModelError, FileError."""
    tensors, _ = load_tensors(weights_path(name))
    return {key: v.float() if v.is_floating_point() else v for key, v in tensors.items()}


def write_weights(name: str, tensors: dict[str, Tensor], folder: Path = WEIGHTS) -> Path:
    """Write `name` in fp16, floating point tensors only: counters of training stay behind."""
    half = {key: value.half() for key, value in tensors.items() if value.is_floating_point()}
    return save_tensors(folder / f"{name}.safetensors", half, {"lifelong.world": name})
