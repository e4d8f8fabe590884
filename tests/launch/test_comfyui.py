"""Finding ComfyUI, and unpacking a fetched one without trusting the archive."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from lifelong_core.errors import SetupError
from lifelong_core.launch import comfyui

INSIDE = ("vendor", "ComfyUI")


def archive(path: Path, *members: tuple[str, bytes | None], link: str | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, link or ""
            info.size = len(content or b"")
            tar.addfile(info, io.BytesIO(content or b""))
    return path


def fake_comfyui(path: Path, version: str) -> Path:
    (path / "comfy").mkdir(parents=True)
    (path / "main.py").touch()
    (path / "requirements.txt").touch()
    (path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return path


def test_only_the_wanted_folder_is_unpacked(tmp_path: Path) -> None:
    source = archive(
        tmp_path / "a.tar.gz",
        ("top/vendor/ComfyUI/main.py", b"main"),
        ("top/vendor/ComfyUI/comfy/ops.py", b"ops"),
        ("top/setup.py", b"never"),
        ("top/vendor/Other/x.py", b"never"),
    )
    comfyui.unpack_folder(source, INSIDE, tmp_path / "out")
    files = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.py")}
    assert files == {"main.py", "comfy/ops.py"}
    assert (tmp_path / "out" / "comfy" / "ops.py").read_bytes() == b"ops"


@pytest.mark.parametrize(
    "name",
    [
        "top/vendor/ComfyUI/../../../evil.py",
        "top/vendor/ComfyUI/C:/evil.py",
        "top/vendor/ComfyUI/..\\evil.py",
    ],
)
def test_names_that_climb_out_are_refused(tmp_path: Path, name: str) -> None:
    source = archive(tmp_path / "a.tar.gz", (name, b"evil"))
    with pytest.raises(SetupError, match="unsafe name"):
        comfyui.unpack_folder(source, INSIDE, tmp_path / "out")
    assert not list(tmp_path.rglob("*evil*"))


def test_links_are_refused(tmp_path: Path) -> None:
    source = archive(tmp_path / "a.tar.gz", ("top/vendor/ComfyUI/models", None), link="/etc")
    with pytest.raises(SetupError, match="no plain file"):
        comfyui.unpack_folder(source, INSIDE, tmp_path / "out")


def test_an_archive_without_comfyui_is_refused(tmp_path: Path) -> None:
    source = archive(tmp_path / "a.tar.gz", ("top/setup.py", b""))
    with pytest.raises(SetupError, match="does not hold vendor/ComfyUI"):
        comfyui.unpack_folder(source, INSIDE, tmp_path / "out")


def test_a_changed_download_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(b"changed")
    with pytest.raises(SetupError, match="expected de5d0c"):
        comfyui.check_sha256(path, comfyui.SDIST_SHA256)


def test_comfyui_path_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(fake_comfyui(tmp_path / "mine", "0.30.0")))
    assert comfyui.locate() == comfyui.ComfyUI((tmp_path / "mine").resolve(), own=True)


def test_comfyui_path_must_be_comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SetupError, match=r"has no main\.py, requirements\.txt, comfy"):
        comfyui.locate()


def test_an_old_comfyui_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(fake_comfyui(tmp_path / "mine", "0.29.2")))
    with pytest.raises(SetupError, match=r"version 0\.29\.2; 0\.30\.0 or newer"):
        comfyui.locate()


def test_without_comfyui_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(comfyui, "COMFYUI_CACHE", tmp_path)
    assert comfyui.locate() is None
    with pytest.raises(SetupError, match="python -m lifelong_core setup"):
        comfyui.require()
