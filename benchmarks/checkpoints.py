"""Files of base models to measure with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lifelong_core.launch.paths import DEMO_WEIGHTS

if TYPE_CHECKING:
    import torch


def checkpoint(family: str, folder: Path, dtype: torch.dtype) -> Path:
    """The shipped demo model; of other families one of random weights in `dtype`, in `folder`."""
    if family == "demo":
        return DEMO_WEIGHTS
    # Takes seconds to import, which the demo model needs not.
    from lifelong_core.backbone import random_backbone, save_single_file

    path = folder / f"random_{family}.safetensors"
    save_single_file(random_backbone(family, dtype=dtype), path)
    return path
