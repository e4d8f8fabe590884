"""A result has all its parts and tells nothing about the machine's owner."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.record import RESULTS, Recorder
from lifelong_core.errors import InputError

KEYS = ["summary", "runs", "command", "settings", "versions", "hardware", "date"]


def recorder(folder: Path, command: str = "python -m benchmarks.x --family sd15", **settings: Any):
    return Recorder("x_1", command, settings, folder)


def test_a_result_has_its_parts_and_its_pictures_beside_it(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 2), (255, 0, 0))
    path = recorder(tmp_path, steps=2).write({"gain": 0.5}, [{"seed": 1}], {"dogs": picture})
    result = json.loads(path.read_text(encoding="utf-8"))
    assert path == tmp_path / "x_1.json"
    assert list(result) == [*KEYS, "pictures"]
    assert result["summary"] == {"gain": 0.5} and result["runs"] == [{"seed": 1}]
    assert result["settings"] == {"steps": 2} and result["command"].endswith("--family sd15")
    assert {"lifelong", "python", "torch", "diffusers"} <= result["versions"].keys()
    assert {"processor", "cores_used", "load_before", "load_after"} <= result["hardware"].keys()
    assert "unknown" not in json.dumps([result["versions"], result["hardware"]])
    assert result["pictures"] == ["x_1_dogs.jpg"]
    with Image.open(tmp_path / "x_1_dogs.jpg") as written:
        red, green, blue = written.getpixel((0, 0))
        assert written.size == (4, 2) and red > 250 and max(green, blue) < 5


@pytest.mark.parametrize(
    "text",
    [
        "/home/ann/dogs",
        "in /root/x, there",
        "C:\\Users\\ann",
        "d:/data",
        "\\\\server\\share",
        "--out=/tmp/x/y",
        f"on {socket.gethostname()}!" if socket.gethostname() != "localhost" else "/etc/hostname",
    ],
)
def test_paths_and_the_machines_name_are_refused(tmp_path: Path, text: str) -> None:
    for wrong in (
        lambda: recorder(tmp_path, note=text).write({}, []),
        lambda: recorder(tmp_path, command=text).write({}, []),
        lambda: recorder(tmp_path).write({}, [{"a": [{"b": text}]}], {"p": Image.new("L", (1, 1))}),
        lambda: recorder(tmp_path).write({text: 1}, []),
    ):
        with pytest.raises(InputError, match="machine"):
            wrong()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    ["https://example.org/a/b", "steps 3/4", "models/loras/x", "text/image", "a: b", "v1.0/2"],
)
def test_other_texts_pass(tmp_path: Path, text: str) -> None:
    recorder(tmp_path, note=text).write({}, [])


def test_names_are_plain() -> None:
    with pytest.raises(InputError, match="no result"):
        Recorder("../x", "python", {})


@pytest.mark.parametrize(("stream", "recorded"), [(1, False), (2, True)])
def test_what_settings_are_chosen_on_is_no_result(stream: int, recorded: bool) -> None:
    assert (Recorder("x_1", "", {"stream_seed": stream}).folder == RESULTS) is recorded
