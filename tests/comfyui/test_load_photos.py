"""People's files through Load Concept Photos, in a real ComfyUI: read right, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lifelong_core.errors import WorkflowError
from lifelong_core.launch.client import RunResult
from lifelong_core.launch.server import ComfyServer
from tests.comfyui.graphs import PHOTOS, Graph, Workflow, training_steps

RED, BLUE, WHITE = (220, 30, 20), (10, 40, 200), (255, 255, 255)
GREY_16 = 0x4000


def halves(size: tuple[int, int]) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, size[0], size[1]))
    return image


def loader(folder: object) -> Graph:
    """The folder's pictures saved by `images`, its captions shown by `captions`."""
    workflow = Workflow()
    workflow.node("LoadConceptPhotos", "photos", folder=folder)
    workflow.show(["photos", 0], "images")
    workflow.node("PreviewAny", "captions", source=["photos", 1])
    return workflow.graph


def linked_loader(folder: str) -> Graph:
    """The same with the folder's name on a link, of which ComfyUI checks nothing."""
    switch = {"switch": True, "on_true": folder, "on_false": ""}
    return {
        "name": {"class_type": "ComfySwitchNode", "inputs": switch},
        **loader(["name", 0]),
    }


def loaded(server: ComfyServer, result: RunResult) -> list[np.ndarray]:
    """The saved pictures, each as [H, W, 3]."""
    return [np.asarray(Image.open(path), dtype=np.int16) for path in server.files(result, "images")]


def captions(result: RunResult) -> list[str]:
    shown: list[str] = result.outputs["captions"]["text"]
    return shown


def close(pixel: np.ndarray, rgb: tuple[int, int, int]) -> bool:
    return bool(np.abs(pixel - np.array(rgb)).max() <= 8)


@pytest.fixture
def folder(comfyui_server: ComfyServer, request: pytest.FixtureRequest) -> Path:
    """A new folder in ComfyUI's input folder, of the test's name."""
    name = request.node.name.translate(str.maketrans("[ ", "__", "]"))
    path = comfyui_server.folder("input") / "t_photos" / name
    path.mkdir(parents=True)
    return path


def test_photos_of_all_kinds_are_read_right_and_again_when_they_change(
    comfyui_server: ComfyServer, folder: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was held upright: to be shown turned by a quarter.
    halves((200, 120)).save(folder / "a_turned.jpg", exif=exif, quality=95)
    cut_out = halves((80, 90)).convert("RGBA")
    cut_out.paste((0, 0, 0, 0), (0, 0, 80, 40))
    cut_out.save(folder / "b_cut_out.png")
    Image.fromarray(np.full((70, 100), GREY_16, np.uint16)).save(folder / "c_grey.png")
    graph = loader(f"t_photos/{folder.name}")
    result = comfyui_server.run(graph)
    turned, on_white, grey = loaded(comfyui_server, result)
    assert turned.shape == (200, 120, 3)
    assert close(turned[20, 60], RED) and close(turned[180, 60], BLUE)
    assert on_white.shape == (90, 80, 3)
    assert close(on_white[20, 20], WHITE) and close(on_white[70, 20], RED)
    assert grey.shape == (70, 100, 3)
    assert np.abs(grey - GREY_16 // 256).max() <= 1
    assert captions(result) == [""]

    assert "photos" not in comfyui_server.run(graph).executed, "unchanged files were read again"
    halves((64, 64)).save(folder / "b_cut_out.png")
    again = comfyui_server.run(graph)
    assert [picture.shape[:2] for picture in loaded(comfyui_server, again)] == [
        (200, 120), (64, 64), (70, 100),
    ]  # fmt: skip


def test_captions_come_as_a_lesson_takes_them_when_no_picture_lacks_one(
    comfyui_server: ComfyServer, folder: Path
) -> None:
    for name in "ab":
        halves((80, 80)).rotate(90 * ord(name)).save(folder / f"{name}.png")
    (folder / "a.txt").write_text("a photo of embedding:t_texts\ndog, on a sofa\n")
    graph = loader(f"t_photos/{folder.name}")
    assert captions(comfyui_server.run(graph)) == [""]
    assert "there is none for b.png" in comfyui_server.logs()

    (folder / "b.txt").write_text("embedding:t_texts dog in the snow")
    workflow = Workflow()
    workflow.graph.update(graph)
    base = workflow.checkpoint()
    workflow.lesson(base, ["photos", 0], "t_texts", name="lesson", captions=["photos", 1])
    result = comfyui_server.run(workflow.graph)
    assert captions(result) == [
        "a photo of embedding:t_texts dog, on a sofa\nembedding:t_texts dog in the snow"
    ]
    assert training_steps(result, "lesson")[-1] == 3


def truncated(path: Path) -> None:
    Image.effect_noise((160, 120), 60).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("half.jpg", truncated, "half.jpg cannot be read: the file is cut short"),
        ("page.jpg", lambda path: path.write_text("<html>404</html>"), "page.jpg is not a picture"),
    ],
    ids=["cut short", "a web page"],
)
def test_a_file_that_is_no_whole_picture_is_refused_by_name(
    name: str,
    make: Callable[[Path], object],
    words: str,
    comfyui_server: ComfyServer,
    folder: Path,
) -> None:
    halves((80, 80)).save(folder / "good.png")
    make(folder / name)
    with pytest.raises(WorkflowError, match=words) as caught:
        comfyui_server.run(loader(f"t_photos/{folder.name}"))
    assert caught.value.kind == "failed"


@pytest.mark.parametrize("name", ["../output", "t_photos/../../output", "..", "/", ""])
def test_a_folder_outside_the_input_folder_is_refused(
    name: str, comfyui_server: ComfyServer
) -> None:
    with pytest.raises(WorkflowError, match="folder") as caught:
        comfyui_server.run(loader(name))
    assert caught.value.kind == "refused"

    with pytest.raises(WorkflowError, match="There is no folder") as caught:
        comfyui_server.run(linked_loader(name))
    assert caught.value.kind == "failed"


def test_a_linked_name_of_a_folder_within_is_taken(comfyui_server: ComfyServer) -> None:
    result = comfyui_server.run(linked_loader(PHOTOS))
    assert len(loaded(comfyui_server, result)) == 5
