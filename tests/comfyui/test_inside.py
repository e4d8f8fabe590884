"""The nodes' helpers on ComfyUI's own objects: see the scripts, which run in ComfyUI's process."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from lifelong_core.backbone import random_backbone, save_single_file

FOLDER = Path(__file__).parent
PACK = FOLDER.parents[1]
SCRIPTS = sorted({path.name for path in FOLDER.glob("*inside.py")} - {Path(__file__).name})
CHECKS = [
    (script, item.name)
    for script in SCRIPTS
    for item in ast.parse((FOLDER / script).read_text(encoding="utf-8")).body
    if isinstance(item, ast.FunctionDef) and item.name.startswith("check_")
]


class Scripts:
    """Results of a script, check -> "" or a traceback; every script runs once."""

    def __init__(self, comfyui: Path, work: Path) -> None:
        self.comfyui = comfyui
        self.work = work
        self.results = cache(self._results)

    def _results(self, script: str) -> dict[str, str]:
        work = self.work / Path(script).stem
        work.mkdir()
        save_single_file(random_backbone("demo"), work / "base.safetensors")
        run = subprocess.run(
            [sys.executable, str(FOLDER / script), str(self.comfyui), str(PACK), str(work)],
            cwd=self.comfyui,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        found: dict[str, str] = json.loads((work / "results.json").read_text(encoding="utf-8"))
        return found


@pytest.fixture(scope="module")
def scripts(comfyui_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Scripts:
    return Scripts(comfyui_path, tmp_path_factory.mktemp("inside"))


@pytest.mark.parametrize(("script", "check"), CHECKS)
def test_inside_comfyui(script: str, check: str, scripts: Scripts) -> None:
    assert scripts.results(script)[check] == ""
