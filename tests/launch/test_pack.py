"""The pack in custom_nodes: a link where possible, else a copy, and never a loss at its source."""

from __future__ import annotations

from pathlib import Path

import pytest

from lifelong_core.launch import pack


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    for name in ("nodes/x.py", "tests/t.py", ".git/config", ".cache/big", "__init__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def no_symlinks(*_args: object, **_kwargs: object) -> None:
    raise OSError("not allowed")


def test_the_base_directory_has_pack_and_folders(tmp_path: Path) -> None:
    for _ in range(2):
        pack.prepare_base(tmp_path / "base")
    entry = tmp_path / "base" / "custom_nodes" / pack.FOLDER / "__init__.py"
    assert "comfy_entrypoint" in entry.read_text()
    assert (tmp_path / "base" / "models" / "checkpoints").is_dir()


def test_a_link_follows_its_source_and_is_replaced(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "pack"
    for _ in range(2):
        pack.link_folder(source, target)
    (source / "new.py").touch()
    assert (target / "new.py").exists()
    pack.remove_link(target)
    assert not target.exists()
    assert (source / "nodes" / "x.py").read_text() == "nodes/x.py"


def test_without_links_a_fresh_copy_of_what_comfyui_needs(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "symlink_to", no_symlinks)
    target = tmp_path / "pack"
    pack.link_folder(source, target)
    assert {p.name for p in target.iterdir()} == {"nodes", "__init__.py"}
    (source / "nodes" / "x.py").write_text("newer")
    pack.link_folder(source, target)
    assert (target / "nodes" / "x.py").read_text() == "newer"
    assert (source / ".git" / "config").exists()


def test_a_placed_file_follows_a_replaced_source(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    for content in ("one", "two"):
        source.unlink(missing_ok=True)
        source.write_text(content)
        pack.place_file(source, target)
        assert target.read_text() == content
