"""`python -m lifelong_core lint`: ruff's check and format, and mypy."""

from __future__ import annotations

import argparse
import os
import sys

from .console import call, say
from .environment import enter
from .pack import FOLDER, link_folder
from .paths import CACHE, ROOT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(_arguments: argparse.Namespace) -> int:
    """Run all three and report each that complains."""
    code = enter(["lint"], "test")
    return check() if code is None else code


def check() -> int:
    """0 when all are content, else 1. Needs the packages of the extra `dev`."""
    failed = [name for name, code in (("ruff", _ruff()), ("mypy", _mypy())) if code != 0]
    say(f"Lint: {', '.join(failed)} complained; see above." if failed else "Lint: all clean.")
    return 1 if failed else 0


def _ruff() -> int:
    """Errors and format."""
    ruff = (sys.executable, "-m", "ruff")
    return call([*ruff, "check", ROOT]) | call([*ruff, "format", "--check", "--quiet", ROOT])


def _mypy() -> int:
    """Types. The nodes climb out of their package (`..lifelong_core`), as inside ComfyUI, so mypy
    has to see the repository as a package with a name, which a clone's folder need not have."""
    parent = CACHE / "lint"
    parent.mkdir(parents=True, exist_ok=True)
    link_folder(ROOT, parent / FOLDER)
    packages = (f"{FOLDER}.lifelong_core", f"{FOLDER}.nodes", "benchmarks")
    return call(
        [
            *(sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml"),
            *("--cache-dir", ROOT / ".mypy_cache"),
            *(part for package in packages for part in ("-p", package)),
        ],
        env={**os.environ, "MYPYPATH": str(parent)},
    )
