"""Where the launcher keeps things: all inside the repository, in folders that git ignores."""

from __future__ import annotations

from pathlib import Path

from ..errors import SetupError

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
CACHE = ROOT / ".cache"
COMFYUI_CACHE = CACHE / "comfyui"
BASE = CACHE / "base"
DEMO_OUTPUT = ROOT / "demo_output"
WORKFLOWS = ROOT / "workflows"
DEMO_WEIGHTS = ROOT / "lifelong_core" / "world" / "weights" / "demo.safetensors"


def require_repository() -> None:
    """Raise SetupError when this package does not lie in its repository."""
    if not (ROOT / "pyproject.toml").is_file() or not (ROOT / "__init__.py").is_file():
        raise SetupError(
            f"{ROOT} is not a copy of the repository (no pyproject.toml beside lifelong_core). "
            "Clone the repository and run the command in it."
        )
