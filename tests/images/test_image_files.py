"""People's files, made here in every state of repair, are read right or refused by name."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from lifelong_core.errors import InputError
from lifelong_core.images import decode, image_files, load_captions, load_image, load_images

RED, BLUE = (220, 30, 20), (10, 40, 200)


def halves(size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, size[0], size[1]))
    return image


def noise(size: tuple[int, int] = (160, 120)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def colour(rgb: tuple[int, int, int]) -> torch.Tensor:
    return torch.tensor(rgb) / 255.0


def close(pixel: torch.Tensor, rgb: tuple[int, int, int], levels: float = 1.0) -> bool:
    return bool((pixel - colour(rgb)).abs().max() <= levels / 255.0 + 1e-6)


def test_plain_png_is_read_exactly(tmp_path: Path) -> None:
    original = noise()
    original.save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image.dtype == torch.float32 and image.is_contiguous()
    assert torch.equal(
        (image * 255).round().to(torch.uint8), torch.from_numpy(np.array(original)).permute(2, 0, 1)
    )


@pytest.mark.parametrize(
    ("orientation", "left", "right"),
    # (x, y) of a red and of a blue pixel in the upright picture
    [(1, (5, 5), (90, 5)), (3, (90, 5), (5, 5)), (6, (5, 5), (5, 90)), (8, (5, 90), (5, 5))],
)
def test_exif_rotation(tmp_path: Path, orientation: int, left: tuple, right: tuple) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    halves().save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = load_image(tmp_path / "a.jpg")
    assert image.shape == ((3, 72, 96) if orientation in (1, 3) else (3, 96, 72))
    assert close(image[:, left[1], left[0]], RED, 6) and close(
        image[:, right[1], right[0]], BLUE, 6
    )


def test_alpha_is_laid_on_white(tmp_path: Path) -> None:
    image = halves().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 20, 20))
    image.paste((0, 0, 0, 128), (0, 20, 20, 40))
    image.save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert close(loaded[:, 10, 10], (255, 255, 255)) and close(loaded[:, 30, 10], (127, 127, 127))
    assert close(loaded[:, 60, 10], RED)


def test_grey_with_alpha(tmp_path: Path) -> None:
    image = Image.new("LA", (80, 80), (40, 255))
    image.paste((0, 0), (0, 0, 40, 80))
    image.save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert close(loaded[:, 5, 5], (255, 255, 255)) and close(loaded[:, 5, 70], (40, 40, 40))


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_becomes_three_equal_channels(tmp_path: Path, mode: str) -> None:
    noise().convert(mode).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image.shape == (3, 120, 160)
    assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
    assert float(image.std()) > 0.1


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 100 * 80).reshape(80, 100).round().astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    expected = torch.from_numpy(ramp.astype(np.float32) / 65535)
    assert image.shape == (3, 80, 100)
    assert torch.allclose(image, expected.expand(3, -1, -1), atol=1e-6)


def test_16_bit_rgb_is_scaled_not_clipped(tmp_path: Path) -> None:
    levels = np.stack([np.full((70, 70), v, np.uint16) for v in (1000, 30000, 64000)], axis=-1)
    (tmp_path / "a.png").write_bytes(png(levels, depth=16))
    image = load_image(tmp_path / "a.png")
    assert torch.allclose(image[:, 0, 0], torch.tensor([1000, 30000, 64000]) / 65535, atol=1 / 255)


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = halves().quantize(8)
    image.save(tmp_path / "a.gif", transparency=image.getpixel((0, 0)))
    loaded = load_image(tmp_path / "a.gif")
    assert close(loaded[:, 5, 5], (255, 255, 255)) and close(loaded[:, 5, 90], BLUE, 3)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    halves().convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    loaded = load_image(tmp_path / "a.jpg")
    assert close(loaded[:, 30, 10], RED, 10) and close(loaded[:, 30, 85], BLUE, 10)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    first, second = Image.new("RGB", (80, 80), RED), Image.new("RGB", (80, 80), BLUE)
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    first.save(path, save_all=True, append_images=[second], duration=50, **options)
    assert close(load_image(path)[:, 40, 40], RED, 3)


def test_colour_profile_does_not_change_pixels(tmp_path: Path) -> None:
    noise().save(tmp_path / "a.png")
    noise().save(tmp_path / "b.png", icc_profile=b"not a profile at all")
    assert torch.equal(load_image(tmp_path / "a.png"), load_image(tmp_path / "b.png"))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_large_pictures_are_reduced_in_proportion(tmp_path: Path, suffix: str) -> None:
    halves((2400, 1800)).save(tmp_path / f"a.{suffix}")
    image = load_image(tmp_path / f"a.{suffix}")
    assert image.shape == (3, 1536, 2048)
    assert close(image[:, 700, 200], RED, 3) and close(image[:, 700, 1900], BLUE, 3)


def test_large_16_bit_is_reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "KEEP_SIDE", 100)
    Image.fromarray(np.full((200, 300), 40000, np.uint16)).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image.shape == (3, 100, 150) and torch.allclose(image, torch.tensor(40000 / 65535))


def test_strips_stay_within_memory_bounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(decode, "KEEP_PIXELS", 30_000)
    halves((3000, 70)).save(tmp_path / "a.png")
    height, width = load_image(tmp_path / "a.png").shape[1:]
    assert height * width <= 31_000 and width / height == pytest.approx(3000 / 70, rel=0.05)


def png(pixels: np.ndarray, depth: int = 8, size: tuple[int, int] | None = None) -> bytes:
    """A PNG file written by hand: Pillow writes neither 16-bit RGB nor false sizes."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(
            ">I", zlib.crc32(kind + data)
        )  # fmt: skip

    rows = b"".join(
        b"\0" + row.astype(">u2" if depth == 16 else np.uint8).tobytes() for row in pixels
    )
    width, height = size or (pixels.shape[1], pixels.shape[0])
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def truncated(path: Path, image: Image.Image, share: float) -> None:
    image.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


PLAIN = np.zeros((70, 70, 3), np.uint8)
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated.jpg": (lambda p: truncated(p, noise(), 0.6), "cut short or damaged"),
    "truncated.png": (lambda p: truncated(p, noise(), 0.6), "cut short or damaged"),
    "headless.jpg": (lambda p: p.write_bytes(bytes(300)), "not a picture"),
    "only-the-start.jpg": (lambda p: truncated(p, noise(), 0.01), "not a picture|cut short"),
    "page.jpg": (lambda p: p.write_text("<html>404</html>"), "not a picture"),
    "empty.png": (lambda p: p.write_bytes(b""), "0 bytes"),
    "phone.heic": (lambda p: p.write_bytes(HEIC), "HEIC"),
    "drawing.eps": (lambda p: noise().save(p), "not a picture of a known kind"),
    "icon.png": (lambda p: noise((200, 40)).save(p), "too small: 200 x 40"),
    "pixel.png": (lambda p: noise((1, 1)).save(p), "too small"),
    "bomb.png": (lambda p: p.write_bytes(png(PLAIN, size=(13000, 13000))), "too large.*13000"),
    "bigger-bomb.png": (lambda p: p.write_bytes(png(PLAIN, size=(60000, 60000))), "too large"),
    "float.tiff": (lambda p: noise().convert("F").save(p), "32-bit"),
    "missing.jpg": (lambda p: None, "cannot be opened"),
    "folder.jpg": (lambda p: p.mkdir(), "cannot be opened"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    make, reason = BROKEN[name]
    make(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=reason) as caught:
            load_image(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_cut_files_are_refused_although_another_pack_tolerates_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    truncated(tmp_path / f"a.{suffix}", noise(), 0.6)
    with pytest.raises(InputError, match="cut short"):
        load_image(tmp_path / f"a.{suffix}")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_damage_in_the_middle_never_escapes_as_another_error(tmp_path: Path) -> None:
    noise().save(tmp_path / "a.png")
    noise().save(tmp_path / "a.jpg")
    noise().quantize(16).save(tmp_path / "a.gif")
    noise().save(tmp_path / "a.webp", lossless=True)
    noise().save(tmp_path / "a.tiff")
    random = np.random.default_rng(1)
    refused = 0
    for path in sorted(tmp_path.iterdir()):
        data = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(12):
            broken = data.copy()
            broken[random.integers(0, min(len(data), 400), 6)] = random.integers(0, 256, 6)
            path.write_bytes(broken.tobytes())
            try:
                assert load_image(path).shape[0] == 3
            except InputError as error:
                assert path.name in str(error)
                refused += 1
    assert refused > 10


def test_folder_is_read_in_order_of_names_without_texts_and_litter(tmp_path: Path) -> None:
    for name, fill in {"b.png": BLUE, "A.jpg": RED}.items():
        Image.new("RGB", (70, 70), fill).save(tmp_path / name)
    for name in ("A.txt", "b.caption", "notes.md", "set.json", ".DS_Store", "Thumbs.db"):
        (tmp_path / name).write_text("x")
    (tmp_path / "old").mkdir()
    assert [path.name for path in image_files(tmp_path)] == ["A.jpg", "b.png"]
    first, second = load_images(str(tmp_path))
    assert close(first[:, 9, 9], RED, 3) and close(second[:, 9, 9], BLUE)


def test_list_keeps_its_order(tmp_path: Path) -> None:
    for name, fill in {"b.png": BLUE, "a.png": RED}.items():
        Image.new("RGB", (70, 70), fill).save(tmp_path / name)
    first, second = load_images([tmp_path / "b.png", str(tmp_path / "a.png")])
    assert close(first[:, 9, 9], BLUE) and close(second[:, 9, 9], RED)


def test_other_files_in_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    noise().save(tmp_path / "a.png")
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(100))
    with pytest.raises(InputError, match=r"clip\.mp4"):
        load_images(tmp_path)


@pytest.mark.parametrize("texts", [[], ["a.txt"]])
def test_folder_without_pictures(tmp_path: Path, texts: list[str]) -> None:
    for name in texts:
        (tmp_path / name).write_text("x")
    with pytest.raises(InputError, match=f"{tmp_path.name} has no pictures"):
        load_images(tmp_path)


def test_empty_list_and_too_many_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pictures"):
        load_images([])
    with pytest.raises(InputError, match="101 pictures"):
        load_images([tmp_path / "a.png"] * 101)


def test_duplicates_are_kept_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise().save(tmp_path / "a.png")
    (tmp_path / "a copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    halves().save(tmp_path / "z.png")
    with caplog.at_level(logging.WARNING):
        assert len(load_images(tmp_path)) == 3
    assert [record.getMessage() for record in caplog.records] == [
        "a.png shows the same picture as a copy.png."
    ]


def test_captions_beside_pictures(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.png"):
        noise().save(tmp_path / name)
    (tmp_path / "a.txt").write_bytes("\ufeffein Hündchen\n  im Gras \n".encode())
    (tmp_path / "c.txt").write_text(" \n")
    assert load_captions(tmp_path) == ["ein Hündchen im Gras", None, None]


@pytest.mark.parametrize("data", [b"caf\xe9", b"x" * 3000])
def test_unusable_captions_are_refused_by_name(tmp_path: Path, data: bytes) -> None:
    noise().save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.txt"):
        load_captions(tmp_path)
