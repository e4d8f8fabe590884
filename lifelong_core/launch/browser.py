"""Find a Chromium for the tests of the web page, or install one."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from ..errors import SetupError
from .console import call, say

COMMANDS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "msedge",
)
MAC_APPS = ("Google Chrome", "Chromium", "Microsoft Edge")
WINDOWS_PROGRAMS = ("Google/Chrome/Application/chrome.exe", "Microsoft/Edge/Application/msedge.exe")
INSTRUCTIONS = (
    "The tests of the web page need Chromium (or Chrome, or Edge). Install it, for example with "
    "`sudo apt-get install chromium` on Debian or `python -m playwright install chromium` in the "
    "environment elsewhere, or set CHROMIUM_PATH to its program."
)


def find_chromium() -> Path | None:
    """CHROMIUM_PATH if set, else an installed Chromium, Chrome or Edge; None when there is none.

    Raises SetupError when CHROMIUM_PATH is no file.
    """
    named = os.environ.get("CHROMIUM_PATH")
    if named:
        if not Path(named).is_file():
            raise SetupError(f"CHROMIUM_PATH is {named}, which is no file. Correct or unset it.")
        return Path(named)
    return next((path for path in _candidates() if path.is_file()), None)


def require_chromium() -> Path:
    """Like `find_chromium`, but raises SetupError with instructions when there is none."""
    found = find_chromium()
    if found is None:
        raise SetupError(INSTRUCTIONS)
    return found


def find_or_install_chromium() -> Path:
    """Like `require_chromium`, after trying apt-get where that needs no password, then
    Playwright's own download."""
    for install in (_apt_get_chromium, _playwrights_chromium):
        if find_chromium() is None:
            install()
    return require_chromium()


def _candidates() -> Iterator[Path]:
    yield from (Path(found) for found in map(shutil.which, COMMANDS) if found)
    if sys.platform == "darwin":
        yield from (Path(f"/Applications/{app}.app/Contents/MacOS/{app}") for app in MAC_APPS)
    for variable in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA"):
        if os.environ.get(variable):
            yield from (Path(os.environ[variable], name) for name in WINDOWS_PROGRAMS)
    yield from _playwrights_own()


def _playwrights_own() -> Iterator[Path]:
    """The browser that `python -m playwright install chromium` puts down."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return
    with sync_playwright() as playwright:
        yield Path(playwright.chromium.executable_path)


def _apt_get_chromium() -> None:
    """Install Debian's or Ubuntu's package as root or with a sudo that asks nothing."""
    if shutil.which("apt-get") is None:
        return
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if not root and (shutil.which("sudo") is None or call(["sudo", "-n", "true"]) != 0):
        return
    say("Installing Chromium for the tests of the web page.")
    prefix = [] if root else ["sudo", "-n"]
    install = ["apt-get", "install", "--yes", "--no-install-recommends", "chromium"]
    call([*prefix, "apt-get", "update"])
    call([*prefix, "env", "DEBIAN_FRONTEND=noninteractive", *install])


def _playwrights_chromium() -> None:
    """Download Playwright's browser, which needs no rights."""
    say("Downloading Chromium for the tests of the web page.")
    call([sys.executable, "-m", "playwright", "install", "chromium"])
