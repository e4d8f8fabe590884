"""A random demo model as file and as tensors, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lifelong_core.backbone import Backbone, random_backbone, save_single_file


@pytest.fixture(scope="session")
def demo() -> Backbone:
    return random_backbone("demo", seed=1)


@pytest.fixture(scope="session")
def demo_file(demo: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "demo.safetensors"
    return save_single_file(demo, path, dtype=torch.float32)


@pytest.fixture(scope="session")
def demo_tensors(demo_file: Path) -> dict[str, torch.Tensor]:
    return load_file(demo_file)
