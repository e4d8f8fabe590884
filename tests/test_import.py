"""What ComfyUI loads when it starts, long before anything is learned or drawn."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARY = re.compile(r"^from \.\.(lifelong_core[\w.]*) import", re.MULTILINE)
SLOW = ("diffusers", "peft", "transformers", "open_clip", "timm", "torchvision", "matplotlib")


def test_the_nodes_need_none_of_the_large_libraries_to_be_listed() -> None:
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "nodes").glob("*.py"))]
    modules = sorted({name for text in texts for name in LIBRARY.findall(text)})
    assert "lifelong_core.methods" in modules
    program = (
        f"import importlib, sys; [importlib.import_module(name) for name in {modules}]; "
        f"print([name for name in {SLOW} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
