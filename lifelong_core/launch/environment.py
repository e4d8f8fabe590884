"""The Python environment in which everything runs: found, made, filled, and then entered.

A command calls `enter` first. Under any bare Python that makes `.venv` and runs the same command
in it; inside, it installs what is missing and returns, and the command goes on. What is installed
is remembered under a hash of the requirements, so that a second run touches neither pip nor the
network.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import SetupError
from .borrow import find_torch_elsewhere
from .comfyui import locate_or_fetch
from .console import call, capture, retry, say
from .paths import VENV, require_repository
from .requirements import GROUPS, Requirements, requirements_for

RECORD = "lifelong.json"
PTH = "lifelong_borrowed.pth"
PIP = ("-m", "pip", "--disable-pip-version-check")


def enter(command: Sequence[str], group: str) -> int | None:
    """Make sure that `python -m lifelong_core command…` runs where group's packages are.

    Returns None when this process is in the right environment and it is complete; else the
    command has been run there and its exit code is returned. Raises SetupError.
    """
    require_repository()
    if _inside(VENV):
        _complete(group)
        return None
    if not _usable():
        if _prepared_by_user(group):
            return None
        _create()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONHOME"}
    return call([_python(VENV), "-m", "lifelong_core", *command], env=environment)


def _inside(venv: Path) -> bool:
    return venv.is_dir() and Path(sys.prefix).resolve() == venv.resolve()


def _python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _usable() -> bool:
    """Whether `.venv` was made to the end: by us, or by a user (then it is never cleared)."""
    if not _python(VENV).is_file():
        return False
    return (VENV / RECORD).is_file() or capture([_python(VENV), *PIP, "--version"])[0] == 0


def _prepared_by_user(group: str) -> bool:
    """Whether the Python that runs now has everything already: then no `.venv` is needed."""
    if find_spec("torch") is None or find_spec("pip") is None:
        return False
    lines = requirements_for(group, locate_or_fetch()).lines
    with _requirement_files(Requirements(lines, ())) as files:
        offline = ("--isolated", "install", "--dry-run", "--no-index", "--no-deps", "--quiet")
        code, _ = capture([sys.executable, *PIP, *offline, *files])
    return code == 0


def _create() -> None:
    """Make `.venv` with the Python that runs now, or with that of the user's ComfyUI."""
    borrowed = find_torch_elsewhere()
    python = borrowed.python if borrowed else Path(sys.executable)
    say(f"Making a Python environment in {VENV}.")
    code, output = capture([python, "-m", "venv", "--clear", VENV], timeout=600)
    if code != 0 or not _python(VENV).is_file():
        raise SetupError(
            f"Python could not make an environment in {VENV}:\n{output.strip()}\n"
            "On Debian and Ubuntu install the package python3-venv, then run the command again."
        )
    record: dict[str, Any] = {}
    if borrowed:
        say(f"Using the torch {borrowed.versions['torch']} that {borrowed.python} has.")
        code, site = capture(
            [_python(VENV), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        )
        Path(site.strip(), PTH).write_text("\n".join(borrowed.folders) + "\n", encoding="utf-8")
        record["borrowed"] = borrowed.versions
    _write_record(record)


def _complete(group: str) -> None:
    """Install into `.venv` (the environment we are in) what `group` still lacks."""
    comfyui = locate_or_fetch()
    record = _read_record()
    wanted = requirements_for(group, comfyui, record.get("borrowed"))
    if record.get(group) == wanted.stamp():
        return
    say("Installing the Python packages (several GB the first time).")
    _install(wanted)
    # "test" holds all of "demo".
    for name in GROUPS[: GROUPS.index(group) + 1]:
        record[name] = requirements_for(name, comfyui, record.get("borrowed")).stamp()
    _write_record(record)
    importlib.invalidate_caches()


def _install(wanted: Requirements) -> None:
    with _requirement_files(wanted) as files:
        retry(
            [
                # Python compiles what it imports; compiling all of it would take a minute more.
                *(sys.executable, *PIP, "install", "--prefer-binary", "--no-compile"),
                *("--retries", "10", "--timeout", "60", *files),
            ],
            "pip could not install the packages; its messages are above. Check the network and "
            "the room on the disk (about 8 GB), then run the command again.",
            show=_worth_showing,
        )


def _worth_showing(line: str) -> bool:
    """Of pip's many lines those by which one sees it move."""
    return line.lstrip().startswith(("Downloading", "Building", "Installing collected"))


@contextmanager
def _requirement_files(wanted: Requirements) -> Iterator[tuple[str, ...]]:
    """`wanted` as files, given as pip's options for them."""
    with tempfile.TemporaryDirectory() as folder:
        requirements, constraints = Path(folder, "requirements.txt"), Path(folder, "pins.txt")
        requirements.write_text("\n".join(wanted.lines) + "\n", encoding="utf-8")
        constraints.write_text("\n".join(wanted.pins) + "\n", encoding="utf-8")
        yield ("-r", str(requirements), "-c", str(constraints))


def _read_record() -> dict[str, Any]:
    """What `.venv` is known to hold; empty when that is unknown or unreadable."""
    try:
        record = json.loads((VENV / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write_record(record: dict[str, Any]) -> None:
    temporary = VENV / f"{RECORD}.tmp"
    temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    os.replace(temporary, VENV / RECORD)
