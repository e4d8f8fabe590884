"""Runs the scripts …_inside.py beside this file in one process with ComfyUI.

python run_scripts.py COMFYUI PACK WORK SCRIPT…: WORK/base.safetensors is a demo checkpoint. Runs
every check_… function of the scripts; WORK/results.json: script -> check -> "" or a traceback.
One process, because importing ComfyUI and torch takes longer than most scripts.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path

SCRIPTS = sys.argv[4:]

from inside import WORK, pack  # noqa: E402  It takes the arguments for ComfyUI.


def results(script: str) -> dict[str, str]:
    found = {}
    for name, check in vars(importlib.import_module(Path(script).stem)).items():
        if name.startswith("check_"):
            try:
                check()
                found[name] = ""
            except BaseException:
                found[name] = traceback.format_exc()
    return found


pack("nodes.demo_model").register_demo_model()
everything = {}
for script in SCRIPTS:
    everything[script] = results(script)
    # After every script, so that a crash of the process takes no earlier result away.
    (WORK / "results.json").write_text(json.dumps(everything), encoding="utf-8")
