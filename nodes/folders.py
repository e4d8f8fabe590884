"""Where this pack's files live inside ComfyUI's own folders. No path comes from a workflow."""

from __future__ import annotations

import os
import re
from pathlib import Path

import folder_paths

from ..lifelong_core.errors import FileError

STATES = "lifelong"
STATE_ENDING = ".lifelong.safetensors"


def register_state_folders() -> None:
    """Make the folders with states known to ComfyUI's file lists.

    States are saved in output/lifelong; models/lifelong is for those that came from elsewhere;
    lessons that broke off leave their last good weights in the workspace.
    """
    for folder in (
        state_folder(),
        Path(folder_paths.models_dir) / STATES,
        workspace() / "broken_off",
    ):
        folder_paths.add_model_folder_path(STATES, str(folder))


def state_folder() -> Path:
    """The folder in which states are saved."""
    return Path(folder_paths.get_output_directory()) / STATES


def state_files() -> list[str]:
    """The saved states that ComfyUI's file list knows, as offered in a combo."""
    return [name for name in folder_paths.get_filename_list(STATES) if name.endswith(STATE_ENDING)]


def state_path(name: str) -> Path:
    """The file of a name offered by `state_files`. Raises FileError for any other name."""
    found = folder_paths.get_full_path(STATES, name) if name.endswith(STATE_ENDING) else None
    if found is None:
        raise FileError(
            f"There is no lifelong state {name!r} in {' or '.join(_state_roots())}. Refresh "
            "the page's node definitions (key R) and choose one of the files listed."
        )
    return Path(found)


def saved_states(name: str) -> list[Path]:
    """The numbered files `<name>_<number>` in the state folder, oldest first."""
    numbered = re.compile(re.escape(name) + r"_(\d+)" + re.escape(STATE_ENDING))
    if not state_folder().is_dir():
        return []
    matches = ((numbered.fullmatch(path.name), path) for path in state_folder().iterdir())
    return [path for _, path in sorted((int(match[1]), path) for match, path in matches if match)]


def new_state_path(name: str) -> Path:
    """`<name>_<number>` with the number after the last one in use."""
    last = saved_states(name)
    number = int(last[-1].name[len(name) + 1 : -len(STATE_ENDING)]) + 1 if last else 1
    return state_folder() / f"{name}_{number:05}{STATE_ENDING}"


def photo_folders() -> list[str]:
    """The folders inside ComfyUI's input folder, as offered in a combo."""
    return list(folder_paths.get_input_subfolders())


def photo_folder(name: str) -> Path:
    """The folder of a name offered by `photo_folders`. Raises FileError for any other name."""
    inputs = folder_paths.get_input_directory()
    path = os.path.join(inputs, name)
    if name not in photo_folders() or not folder_paths.is_within_directory(inputs, path):
        raise FileError(
            f"There is no folder {name!r} in {inputs}. Put the pictures into a folder in there, "
            "refresh the page's node definitions (key R) and choose it."
        )
    return Path(path)


def file_list(folder: Path) -> str:
    """Names, sizes and times of a folder's files: another text when one of them has changed."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    return "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in sorted(found))


def workspace() -> Path:
    """Folder of sessions, finished lessons and prior pictures, out of reach of ComfyUI's routes."""
    return Path(folder_paths.get_system_user_directory("lifelong"))


def _state_roots() -> list[str]:
    return [str(path) for path in folder_paths.get_folder_paths(STATES)]
