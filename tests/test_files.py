"""Writing files: all or nothing, and readable by whom the system's settings say."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from lifelong_core.errors import FileError
from lifelong_core.files import atomic_write, load_tensors, locked, save_tensors, write_json


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


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")
def test_blocks_that_lock_the_same_file_take_turns(tmp_path: Path) -> None:
    table, entered = tmp_path / "folder" / "table.json", threading.Event()

    def other() -> None:
        with locked(table):
            entered.set()

    thread = threading.Thread(target=other)
    with locked(table):
        thread.start()
        assert not entered.wait(0.2)
        with locked(tmp_path / "folder" / "another.json") as ours:
            assert ours
        with locked(table, wait=False) as ours:
            assert not ours
    thread.join(timeout=60)
    assert entered.is_set()
    with locked(table, wait=False) as ours:
        assert ours


def test_a_lock_in_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="file"), locked(tmp_path / "file" / "table.json"):
        pass
