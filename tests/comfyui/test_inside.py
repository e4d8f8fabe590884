"""The nodes' helpers on ComfyUI's own objects: see inside.py, which runs in ComfyUI's process."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lifelong_core.backbone import random_backbone, save_single_file

SCRIPT = Path(__file__).with_name("inside.py")
PACK = SCRIPT.parents[2]
CHECKS = [
    item.name
    for item in ast.parse(SCRIPT.read_text(encoding="utf-8")).body
    if isinstance(item, ast.FunctionDef) and item.name.startswith("check_")
]


@pytest.fixture(scope="module")
def results(comfyui_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    work = tmp_path_factory.mktemp("inside")
    save_single_file(random_backbone("demo"), work / "base.safetensors")
    run = subprocess.run(
        [sys.executable, str(SCRIPT), str(comfyui_path), str(PACK), str(work)],
        cwd=comfyui_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, str] = json.loads((work / "results.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("check", CHECKS)
def test_inside_comfyui(check: str, results: dict[str, str]) -> None:
    assert results[check] == ""
