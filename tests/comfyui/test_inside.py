"""The nodes' helpers on ComfyUI's own objects: see the scripts, which run in ComfyUI's process."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lifelong_core.backbone import random_backbone, save_single_file

FOLDER = Path(__file__).parent
PACK = FOLDER.parents[1]
SCRIPTS = sorted({path.name for path in FOLDER.glob("*_inside.py")} - {Path(__file__).name})
CHECKS = [
    (script, item.name)
    for script in SCRIPTS
    for item in ast.parse((FOLDER / script).read_text(encoding="utf-8")).body
    if isinstance(item, ast.FunctionDef) and item.name.startswith("check_")
]

Outcome = Callable[[str, str], str]
"""Script and check -> "" or what went wrong."""


def selected(items: Sequence[pytest.Item]) -> list[str]:
    """The scripts of which a check is to run."""
    functions = (item for item in items if isinstance(item, pytest.Function))
    checks = (f for f in functions if f.function is test_inside_comfyui)
    return sorted({str(check.callspec.params["script"]) for check in checks})


@pytest.fixture(scope="module")
def outcome(
    request: pytest.FixtureRequest, comfyui_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Outcome:
    """Runs all selected scripts, once."""
    work = tmp_path_factory.mktemp("inside")
    save_single_file(random_backbone("demo"), work / "base.safetensors")
    runner, scripts = str(FOLDER / "run_scripts.py"), selected(request.session.items)
    run = subprocess.run(
        [sys.executable, runner, str(comfyui_path), str(PACK), str(work), *scripts],
        cwd=comfyui_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    written = work / "results.json"
    found = json.loads(written.read_text("utf-8")) if written.exists() else {}
    ended = f"The process ended with {run.returncode}: {run.stderr[-4000:]}"
    return lambda script, check: str(found.get(script, {}).get(check, ended))


@pytest.mark.parametrize(("script", "check"), CHECKS)
def test_inside_comfyui(script: str, check: str, outcome: Outcome) -> None:
    assert outcome(script, check) == ""
