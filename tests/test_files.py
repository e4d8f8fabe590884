"""Writing files: all or nothing, and readable by whom the system's settings say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lifelong_core.errors import FileError
from lifelong_core.files import atomic_write, load_tensors, save_tensors, write_json


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    path = save_tensors(tmp_path / "a.safetensors", {"x": torch.arange(3)}, {"key": "value"})
    tensors, metadata = load_tensors(path)
    assert torch.equal(tensors["x"], torch.arange(3))
    assert metadata["key"] == "value"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_files_are_readable_by_others_as_any_new_file_is(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    usual = (tmp_path / "plain").stat().st_mode
    assert save_tensors(tmp_path / "a", {"x": torch.zeros(1)}).stat().st_mode == usual
    assert write_json(tmp_path / "b", {}).stat().st_mode == usual


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(FileError, match="disk full"):
        atomic_write(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"not safetensors")
    with pytest.raises(FileError, match=r"broken\.safetensors"):
        load_tensors(path)
